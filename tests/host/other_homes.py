"""Runs in the Trainer of transformers and in a loop of Accelerate; no Lightning is loaded.

python -m tests.host.other_homes FOLDER
"""

import json
import sys
from pathlib import Path

import accelerate
import torch
import transformers
from torch import nn

from lightning_dqnlr import DQNLRScheduler, DQNLRTrainerCallback

QUIET = {
    "per_device_train_batch_size": 4,
    "report_to": [],
    "disable_tqdm": True,
    "use_cpu": True,
    "logging_steps": 1,
    "save_strategy": "no",
}


class Model(transformers.GPT2LMHeadModel):
    """Remembers its batches; multiplies losses, and spoils gradients, where it is told to."""

    def __init__(self):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1)
            super().__init__(
                transformers.GPT2Config(
                    vocab_size=16, n_positions=12, n_embd=16, n_layer=1, n_head=2,
                    bos_token_id=0, eos_token_id=1, loss_type="ForCausalLMLoss",
                )
            )  # fmt: skip
        self.batches, self.poison, self.spoilt = [], {}, ()

    def forward(self, input_ids=None, labels=None, **kwargs):
        output = super().forward(input_ids=input_ids, labels=labels, **kwargs)
        if self.training and output.loss is not None:
            output.loss = output.loss * self.poison.get(len(self.batches), 1.0)
            if len(self.batches) in self.spoilt:
                output.loss.register_hook(lambda gradient: gradient * float("nan"))
            self.batches.append(input_ids.clone())
        return output


def sorted_numbers():
    generator = torch.Generator().manual_seed(0)
    rows = torch.randint(0, 16, (48, 12), generator=generator).sort().values
    return [{"input_ids": row, "labels": row} for row in rows]


def make(folder, callback, model=None, optimizers=(None, None), **arguments):
    arguments = transformers.TrainingArguments(str(folder), **{**QUIET, **arguments})
    return transformers.Trainer(
        model or Model(),
        arguments,
        train_dataset=sorted_numbers(),
        eval_dataset=sorted_numbers()[:4],
        callbacks=[callback],
        optimizers=optimizers,
    )


def logged(trainer, name):
    return [entry[name] for entry in trainer.state.log_history if name in entry]


class Criterion(nn.Module):
    def forward(self, logits, labels):
        return nn.functional.cross_entropy(logits, labels)


def accelerated(folder, policy, steps, resume=False):
    """A loop of Accelerate, over windows of two batches; the scheduler goes through `prepare`."""
    accelerator = accelerate.Accelerator(cpu=True, gradient_accumulation_steps=2)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        inputs = torch.randn(96, 6)
        net = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2))
    labels = (inputs[:, :3].sum(1) > 0).long()
    criterion = Criterion()
    optimizer = torch.optim.Adam(net.parameters(), lr=5.0)
    given = DQNLRScheduler(
        optimizer, policy, horizon=40, module=net, epsilon=0.3, loss_from=criterion
    )
    net, optimizer, scheduler = accelerator.prepare(net, optimizer, given)
    if resume:
        accelerator.load_state(folder)
    rates = []
    for step in range(30 if resume else 0, steps):
        index = torch.arange(step * 8, step * 8 + 8) % len(inputs)
        with accelerator.accumulate(net):
            loss = criterion(net(inputs[index]), labels[index])
            accelerator.backward(loss)
            optimizer.step()
            rates.append(scheduler.get_last_lr()[0])
            scheduler.step()
            optimizer.zero_grad()
        if step == 29 and not resume:
            accelerator.save_state(folder)
    return given, rates


def main(folder):
    """Run in each of two processes: a Trainer, its resumed run, and a loop of Accelerate."""
    torch.set_num_threads(1)
    policy, rates = folder / "policy", []
    for more in ({}, {"resume_from_checkpoint": str(folder / "checkpoint-6")}):
        callback = DQNLRTrainerCallback(policy)
        saves = {} if more else {"save_strategy": "steps", "save_steps": 6}
        make(folder, callback, max_steps=12, **saves).train(**more)
        rates.append([record["lr"] for record in callback.trace])
    rates.append(accelerated(folder / "accelerate", policy, 20)[1])
    print("RATES", json.dumps(rates))
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
