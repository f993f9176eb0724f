"""The same control in a Hugging Face `Trainer`: one line, `DQNLRTrainerCallback()`.

    python examples/hf_trainer.py

A small GPT-2 of random weights learns the characters of Python's own source code. Nothing is
downloaded. The Trainer's learning rate of 5e-5 is never used.
"""

from __future__ import annotations

import argparse
import tempfile

import torch
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments

from lightning_dqnlr import DQNLRTrainerCallback
from lightning_dqnlr.tasks.data.text import VOCABULARY, encode, source_files

LENGTH = 64  # characters of a window


def windows(count: int) -> list[dict[str, torch.Tensor]]:
    """Pieces of the standard library's sources, as the model takes them."""
    text = torch.cat([encode(path) for path in source_files("train")[:40]])
    rows = text[: len(text) // LENGTH * LENGTH].long().view(-1, LENGTH)
    rows = rows[torch.randperm(len(rows))[:count]]
    return [{"input_ids": row, "labels": row} for row in rows]


def main() -> None:
    """Trains and prints every eighth decision."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=200)
    steps = parser.parse_args().steps
    torch.manual_seed(0)
    shape = {"n_positions": LENGTH, "n_embd": 64, "n_layer": 2, "n_head": 4}
    special = {"bos_token_id": 0, "eos_token_id": 0}
    model = GPT2LMHeadModel(GPT2Config(vocab_size=VOCABULARY, **shape, **special))
    callback = DQNLRTrainerCallback()
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            folder,
            max_steps=steps,
            per_device_train_batch_size=16,
            bf16=True,
            use_cpu=not torch.cuda.is_available(),
            logging_steps=max(1, steps // 4),
            save_strategy="no",
            report_to=[],
        )
        data = windows(4096)
        Trainer(model, arguments, train_dataset=data, callbacks=[callback]).train()
    for record in callback.trace[::8]:
        print(
            f"step {record['step']:4d}  loss {record['loss']:.4f}  "
            f"lr {record['lr']:.1e} -> {record['next_lr']:.1e}  {record['reason']}"
        )
    last = [record["loss"] for record in callback.trace[-8:]]
    print(f"final loss {sum(last) / len(last):.4f} (at the start: {callback.trace[0]['loss']:.2f})")


if __name__ == "__main__":
    main()
