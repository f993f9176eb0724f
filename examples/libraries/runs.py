"""Runs of one library, each in a process of its own; what the scripts of this folder share.

    python examples/libraries/scvi_vae.py callback:0 default:0

Each script has a function `fit(arm)`. It trains a library's model as that library's users would,
and returns figures that they judge it by. All are better when lower, and the first is compared.
The library is imported once; the process of a run is forked from there.
"""

from __future__ import annotations

import argparse
import json
import logging
import multiprocessing
import os
import tempfile
import time
import warnings
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

import torch
from lightning.pytorch import seed_everything

from lightning_dqnlr import DQNLRCallback
from lightning_dqnlr.files import finite_or_none
from lightning_dqnlr.provenance import source_commit

# Factors of the library's own learning rate; the callback does not look at that rate.
FACTORS = {"default": 1.0, "callback": 1.0, "3x": 3.0, "10x": 10.0}


class Arm(NamedTuple):
    """How one run is trained.

    Attributes:
        seed: of the run.
        factor: of the library's own learning rate.
        callbacks: what is handed to the library for its Trainer, the one line under test.
    """

    seed: int
    factor: float
    callbacks: list[Any]


Fit = Callable[[Arm], dict[str, float]]


def arm_of(name: str, seed: int) -> Arm:
    """The arm of a name: the callback at the library's rate, or a factor of that rate.

    Example:
        >>> arm_of("3x", seed=4)
        Arm(seed=4, factor=3.0, callbacks=[])
    """
    callbacks = [DQNLRCallback()] if name == "callback" else []
    return Arm(seed, FACTORS[name], callbacks)


def run(fit: Fit, name: str, seed: int) -> dict[str, Any]:
    """Makes one run; an exception of it becomes a part of the record.

    Returns:
        arm, seed, figures (empty if it failed), error (None if not), seconds, decisions (of the
        callback; 0 would say that the library dropped it), commit.
    """
    seed_everything(seed, verbose=False)
    arm = arm_of(name, seed)
    ours = arm.callbacks[:1]  # some libraries add to the list that they are given
    figures: dict[str, float | None] = {}
    error = None
    began = time.perf_counter()
    try:
        figures = {figure: finite_or_none(float(x)) for figure, x in fit(arm).items()}
    except Exception as caught:  # whatever a library raises when a run diverges
        error = f"{type(caught).__name__}: {caught}"[:300]
    return {
        "arm": name,
        "seed": seed,
        "figures": figures,
        "error": error,
        "seconds": round(time.perf_counter() - began, 1),
        "decisions": len(ours[0].trace) if ours else None,
        "commit": source_commit(),
    }


def forked(fit: Fit, name: str, seed: int) -> dict[str, Any]:
    """`run` in a process of its own, which shares nothing that a run may leave behind."""
    context: Any = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe()
    process = context.Process(target=send, args=(theirs, fit, name, seed))
    process.start()
    theirs.close()
    try:
        record: dict[str, Any] = ours.recv()
    except EOFError:
        record = {"arm": name, "seed": seed, "figures": {}, "error": "the process died"}
    process.join()
    return record


def send(to: Connection, fit: Fit, name: str, seed: int) -> None:
    """Sends the record of a run, made in a folder that vanishes with what libraries leave there."""
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        to.send(run(fit, name, seed))


def main(fit: Fit) -> None:
    """Makes the runs that the command line names, and prints the record of each as JSON."""
    parser = argparse.ArgumentParser(description="Runs of one library.")
    parser.add_argument("runs", nargs="+", help="arm:seed, as in callback:0")
    named = [text.split(":") for text in parser.parse_args().runs]
    quiet()
    torch.set_num_threads(1)
    for name, seed in named:
        print("record", json.dumps(forked(fit, name, int(seed))), flush=True)


def quiet() -> None:
    """Keeps advice of libraries out of the output; no hub is asked for data."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    for name in ("lightning.pytorch", "pytorch_lightning"):
        logging.getLogger(name).setLevel(logging.WARNING)
    warnings.filterwarnings("ignore")
