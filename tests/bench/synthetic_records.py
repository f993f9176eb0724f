"""Records without training: runs whose losses follow from their learning rate by a formula."""

import math
import random

from lightning_dqnlr.bench.runs.record import Record

GRID = tuple(10.0 ** (i / 4) for i in range(-16, 1))
SIX_DECADES = tuple(10.0**i for i in range(-6, 1))


def record(task="t", method="dqnlr", lr=None, seed=0, **fields):
    """One run from 2.0 to 1.0 in 100 steps unless told otherwise."""
    values = {
        "split": "new seeds",
        "optimizer": "AdamW",
        "horizon": 100,
        "batch_size": 32,
        "parameters": 1000,
        "initial_train": 2.0,
        "initial_validation": 2.0,
        "final_train": 1.0,
        "final_validation": 1.0,
        "curve": {"step": [], "train": [], "validation": [], "lr": []},
        "seconds": 1.0,
        "extra_bytes": 0,
        "tries": 1,
        "failure": None,
        "version": "protocol=1 task=1 method=1",
        "policy": None,
    }
    return Record(task=task, method=method, lr=lr, seed=seed, **{**values, **fields})


SHAPES = {
    "cosine": lambda p: 0.5 * (1 + math.cos(math.pi * p)) * min(1.0, p / 0.05 + 0.02),
    "linear": lambda p: 1 - p,
    "constant": lambda p: 1.0,
    "wsd": lambda p: min(1.0, 5 * (1 - p)),
    "onecycle": lambda p: math.sin(math.pi * min(1.0, p + 0.1)),
    "plateau": lambda p: 0.5 ** int(4 * p),
}
OWN = ("dqnlr", "classic", "lr-finder", "prodigy", "d-adaptation", "schedule-free", "greedy")
OWN += ("hypergradient", "untrained", "state-blind", "mean-curve", "q_table")
TASKS = {
    "digits-mlp-adamw": "new seeds",
    "digits-cnn-sgd": "new seeds",
    "teacher-momentum": "new seeds",
    "attention-text": "new families",
    "gru-sequences": "new families",
    "autoencoder": "new families",
    "regression-tables": "new families",
    "embeddings": "new families",
    "finetuning": "new families",
    "noisy-labels": "new families",
    "digits-adafactor": "new optimizer",
    "long-mlp-x10": "longer runs",
}


def suite(tasks=TASKS, seeds=range(3), methods=(*SHAPES, *OWN)):
    """A whole benchmark of invented runs: every schedule over its grid, the others over the LR."""
    records = []
    for i, (task, split) in enumerate(tasks.items()):
        for method in methods:
            grid = GRID if method in SHAPES else (None, *SIX_DECADES)
            records += [_run(task, split, i, method, lr, seed) for lr in grid for seed in seeds]
    return records


def _run(task, split, i, method, lr, seed):
    rng = random.Random(f"{task}/{method}/{lr}/{seed}")
    skill = random.Random(f"{task}/{method}").gauss(0.15, 0.3) + 0.1 * (method == "constant")
    best = 10.0 ** (-3 + (i % 4) / 2)
    used = best * 10 ** (0.3 * skill) if lr is None or method in OWN else lr
    if method == "prodigy" and lr is not None:
        used = best * lr
    off = math.log10(used / best)
    horizon = 400 if "x10" not in task else 4000
    quality = skill + 0.9 * off**2 + rng.gauss(0, 0.04)
    broken = off > 1.6 or (method == "state-blind" and rng.random() < 0.2)
    initial = 2.3 + 0.02 * seed
    floor = initial * (0.02 + 0.05 * (i % 3)) * math.exp(quality)
    shape = SHAPES.get(method, SHAPES["cosine"])
    curve = {"step": [], "train": [], "validation": [], "lr": []}
    for k in range(25):
        p = k / 24
        done = (1 - math.exp(-5 * p)) / (1 - math.exp(-5))
        loss = math.exp((1 - done) * math.log(initial) + done * math.log(min(floor, 2 * initial)))
        lost = broken and p > 0.4
        curve["step"].append(round(p * horizon))
        curve["train"].append(None if lost else loss * math.exp(rng.gauss(0, 0.03)))
        curve["validation"].append(None if lost else 1.1 * loss * math.exp(rng.gauss(0, 0.02)))
        curve["lr"].append(used * max(shape(p), 1e-4) if k else None)
    final = min(floor, 2 * initial)
    return record(
        task,
        method,
        lr,
        seed,
        split=split,
        horizon=horizon,
        initial_train=initial,
        initial_validation=1.1 * initial,
        final_train=None if broken else final,
        final_validation=None if broken else 1.1 * final * math.exp(rng.gauss(0, 0.02)),
        curve=curve,
        seconds=horizon / 200 * (1 + (method == "dqnlr") * 0.15 + rng.random() * 0.05),
        extra_bytes=4000 * 3 if method == "dqnlr" else 8000 * (method == "prodigy"),
        tries=2 if method == "lr-finder" else 1,
        failure="RuntimeError: no" if method == "state-blind" and broken else None,
        policy="f00d" if method == "dqnlr" else None,
    )
