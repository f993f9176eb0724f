"""The callback against a Hugging Face `Trainer`'s own schedules, `linear` and `greedy`.

    python benchmarks/hf_trainer.py --result hf.json

A small GPT-2 of random weights learns the characters of Python's sources in real Trainers, by AdamW
with `max_grad_norm=1`. `linear` is the Trainer's default. `greedy` is GreedyLR (Subramanian et al.
2025, arXiv:2512.14527), which the Trainer steps after each evaluation, here every 5 steps. It has
its default factor; its bounds leave three decades on both sides of the rate. Held-out files give
the validation loss.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import torch
import transformers
from tqdm import tqdm

from lightning_dqnlr import DQNLRTrainerCallback
from lightning_dqnlr.files import write_atomically
from lightning_dqnlr.tasks.data.text import VOCABULARY, encode, source_files

RATES = (5e-5, 1.6e-3, 5e-3, 1.6e-2)  # the first is the Trainer's default
PATIENCES = (10, 1)  # of GreedyLR; the first is its default
LENGTH = 32
EVALUATED_EVERY = 5
Rows = list[dict[str, torch.Tensor]]


class Method(NamedTuple):
    """How a run gets its learning rate."""

    name: str
    lr: float
    settings: dict[str, Any]
    ours: bool = False


class Losses(NamedTuple):
    """What a run ended at."""

    train: float
    validation: float


def methods() -> list[Method]:
    """All of them, each at every rate; ours at one, because it is not used."""
    found = [Method("DQNLRTrainerCallback()", RATES[0], {}, ours=True)]
    found += [Method("linear", lr, {"lr_scheduler_type": "linear"}) for lr in RATES]
    for patience in PATIENCES:
        for lr in RATES:
            bounds = {"min_lr": lr / 1000, "max_lr": lr * 1000, "eps": 0.0}
            greedy = {
                "lr_scheduler_type": "greedy",
                "lr_scheduler_kwargs": {"patience": patience, **bounds},
                "metric_for_best_model": "loss",
                "eval_strategy": "steps",
                "eval_steps": EVALUATED_EVERY,
            }
            found.append(Method(f"greedy, patience {patience}", lr, greedy))
    return found


def windows(split: Any, count: int) -> Rows:
    """Pieces of a split's source files."""
    text = torch.cat([encode(path) for path in source_files(split)])
    rows = text[: len(text) // LENGTH * LENGTH].long().view(-1, LENGTH)
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))
    return [{"input_ids": row, "labels": row} for row in rows[order[:count]]]


@cache
def data() -> dict[str, Rows]:
    """What trains, what is measured, and what the Trainer evaluates for GreedyLR."""
    train = windows("train", 40_000)
    parts = {"train": train, "seen": train[:1024], "held out": windows("test", 1024)}
    return {**parts, "steering": windows("validation", 64)}


def run(method: Method, seed: int, steps: int) -> Losses:
    """Trains once."""
    torch.set_num_threads(1)
    transformers.set_seed(seed)
    shape = {"n_positions": LENGTH, "n_embd": 64, "n_layer": 2, "n_head": 4}
    special = {"bos_token_id": 0, "eos_token_id": 0, "loss_type": "ForCausalLMLoss"}
    config = transformers.GPT2Config(vocab_size=VOCABULARY, **shape, **special)
    with tempfile.TemporaryDirectory() as folder:
        arguments = transformers.TrainingArguments(
            folder,
            max_steps=steps,
            learning_rate=method.lr,
            per_device_train_batch_size=16,
            per_device_eval_batch_size=256,
            use_cpu=True,
            seed=seed,
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
            log_level="error",
            logging_strategy="no",
            **method.settings,
        )
        trainer = transformers.Trainer(
            transformers.GPT2LMHeadModel(config),
            arguments,
            train_dataset=data()["train"],
            eval_dataset=data()["steering"],
            callbacks=[DQNLRTrainerCallback()] if method.ours else [],
        )
        trainer.remove_callback(transformers.PrinterCallback)
        trainer.train()
        ends = (trainer.evaluate(data()[part])["eval_loss"] for part in ("seen", "held out"))
        return Losses(*ends)


def table(found: list[tuple[Method, list[Losses]]]) -> str:
    """Every method at the Trainer's default rate and at its best one, in Markdown."""
    lines = ["| method | rate | runs | training loss | validation loss |"]
    lines.append("| --- | ---: | ---: | ---: | ---: |")
    for name in dict.fromkeys(method.name for method, _ in found):
        rows = [(m, losses) for m, losses in found if m.name == name]
        best = min(rows, key=lambda row: mean(row[1]).train)
        chosen = {rows[0][0].lr: (rows[0], 1), best[0].lr: (best, len(rows))}
        for (method, losses), runs in chosen.values():
            end = mean(losses)
            rate = "not used" if method.ours else f"{method.lr:g}"
            shown = f"{end.train:.3f} | {end.validation:.3f}"
            lines.append(f"| `{name}` | {rate} | {runs} | {shown} |")
    return "\n".join(lines)


def mean(losses: list[Losses]) -> Losses:
    """Over the seeds."""
    return Losses(*(statistics.mean(values) for values in zip(*losses, strict=True)))


def main() -> None:
    """Runs everything and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--workers", type=int, default=1, help="processes")
    parser.add_argument("--result", type=Path, help="a JSON file of all runs")
    given = parser.parse_args()
    found = []
    with ProcessPoolExecutor(given.workers, get_context("spawn")) as pool:
        begun = [
            (method, [pool.submit(run, method, seed, given.steps) for seed in range(given.seeds)])
            for method in methods()
        ]
        for method, runs in tqdm(begun):
            losses = [each.result() for each in runs]
            tqdm.write(f"{method.name} at {method.lr:g}: {losses}")
            found.append((method, losses))
    print(table(found))
    if given.result:
        records = [{"name": m.name, "lr": m.lr, "losses": losses} for m, losses in found]
        write_atomically(given.result, json.dumps(records, indent=1).encode())


if __name__ == "__main__":
    main()
