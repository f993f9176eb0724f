"""Pretrains the small GPT that the benchmark's fine-tuning tasks start from.

    python benchmarks/pretrain_gpt.py

It reads the sources of the standard library's packages, every tenth file left out, for 4,000 steps
of 32 windows: about five minutes on one core. The weights are written in half precision to
`pretrained/source_gpt.safetensors` beside the tasks. Records of the tasks depend on that file.
"""

from __future__ import annotations

import sys

import torch
from safetensors.torch import save_file

from lightning_dqnlr.bench.tasks.real.text import CHARACTER_CONTEXT, NextToken, source_text
from lightning_dqnlr.bench.tasks.real.tuning import PRETRAINED, small_gpt
from lightning_dqnlr.bench.tasks.task import InBfloat16
from lightning_dqnlr.scoring.cosine import cosine

STEPS = 4000
WINDOWS = 32  # per step
PEAK = 3e-3  # learning rate
TOLD_EVERY = 200  # steps


def main(steps: int = STEPS) -> None:
    """Trains and writes."""
    torch.manual_seed(0)
    text, held_out = source_text()
    gpt = small_gpt()
    net = InBfloat16(gpt)
    loss = NextToken(CHARACTER_CONTEXT)
    optimizer = torch.optim.AdamW(net.parameters(), lr=PEAK, betas=(0.9, 0.95), weight_decay=0.1)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = PEAK * cosine(step, steps)
        optimizer.zero_grad()
        value = loss(net, (some_windows(text),))
        value.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        if step % TOLD_EVERY == 0 or step == steps - 1:
            with torch.no_grad():
                validation = loss(net.eval(), (some_windows(held_out, 256),))
            net.train()
            print(f"step {step}: {value:.3f}, held out {validation:.3f}", flush=True)
    weights = {name: weight.half() for name, weight in gpt.state_dict().items()}
    kept = {k: w for k, w in weights.items() if k not in ("head.weight", "mask")}
    PRETRAINED.parent.mkdir(exist_ok=True)
    save_file(kept, PRETRAINED)


def some_windows(text: torch.Tensor, count: int = WINDOWS) -> torch.Tensor:
    """Windows (count, context + 1) at random places of a text (characters,)."""
    starts = torch.randint(len(text) - CHARACTER_CONTEXT, (count, 1))
    return text[starts + torch.arange(CHARACTER_CONTEXT + 1)]


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
