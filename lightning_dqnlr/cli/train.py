"""`dqnlr-train`: from a configuration to plain objects. Only this room knows Hydra."""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from contextlib import ExitStack, nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, cast

import hydra
import torch
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from lightning_dqnlr.checks import check_choice, check_integer, check_kind
from lightning_dqnlr.cli.errors import (
    FULL_ERROR,
    command,
    errors_in_one_line,
    find_device,
    quiet_when_full,
)
from lightning_dqnlr.cli.spelling import check_added
from lightning_dqnlr.cli.targets import with_present_targets
from lightning_dqnlr.errors import ConfigurationError

if TYPE_CHECKING:
    from lightning_dqnlr.meta.logs import EpisodeReport, Reporter
    from lightning_dqnlr.meta.train import MetaTrainer

_GO_ON = "resume=true folder=... goes on"


def train() -> None:
    """The console script `dqnlr-train`."""
    os.environ[FULL_ERROR] = "1"  # makes Hydra let errors through instead of printing its own way
    with errors_in_one_line(_GO_ON, "train"):
        _app()


@hydra.main(version_base="1.3", config_path="pkg://lightning_dqnlr.conf", config_name="train")
def _app(config: DictConfig) -> float:
    settings = HydraConfig.get()
    overrides = list(settings.overrides.task)
    folder = Path(settings.runtime.output_dir)
    sweep = settings.mode == RunMode.MULTIRUN
    rivals = Path(settings.sweep.dir) / "rivals" if sweep else None
    # Hydra announces errors that leave a job. Those of a sweep's jobs its launcher handles.
    with nullcontext() if sweep else errors_in_one_line(_GO_ON, "train"):
        check_added(overrides, "train")
        _check_resume(config, overrides)
        return meta_train(config, folder, overrides, rivals)


def meta_train(
    config: DictConfig, folder: Path, overrides: Sequence[str] = (), rivals: Path | None = None
) -> float:
    """Trains as configured; returns the best validation score, a finite number (lower is better).

    Args:
        config: the composed `conf/train.yaml`.
        folder: of the run.
        overrides: what the command line changed, for the policy's record.
        rivals: folder of the tuned cosines, unless `train.rivals` names one.

    Raises:
        ConfigurationError: a value cannot work, or the folder does not fit `resume`.
    """
    from lightning_dqnlr.envs.process import keep_freed_memory
    from lightning_dqnlr.meta.logs import ProgressBar, open_logs, summary
    from lightning_dqnlr.meta.outcome import against_bundled, how_it_ended

    _check_kinds(config)
    torch.set_num_threads(config.threads)
    keep_freed_memory()
    trainer = build_trainer(config, folder, rivals)
    elsewhere = [override for override in overrides if not override.startswith("folder=")]
    trainer.record |= {"command": command(), "overrides": elsewhere}
    _begin(trainer, config)
    print(f"Meta-training into {folder.resolve()}", flush=True)
    logs = open_logs(folder, trainer.episode, tensorboard=bool(config.tensorboard))
    bar = ProgressBar(trainer.config.episodes, trainer.episode, trainer.config.max_minutes)
    reporters: list[Reporter] = [*logs, bar]

    def report(progress: EpisodeReport) -> None:
        for reporter in reporters:
            reporter(progress)

    with ExitStack() as at_the_end:
        at_the_end.callback(setattr, threading, "excepthook", threading.excepthook)
        threading.excepthook = quiet_when_full
        for reporter in reporters:
            at_the_end.callback(reporter.close)
        score = trainer.fit(report, bar.watch)
    print(summary(folder), flush=True)
    if ended := how_it_ended(trainer):
        print(ended)
    print(against_bundled(trainer), flush=True)
    return score


def build_trainer(config: DictConfig, folder: Path, rivals: Path | None = None) -> MetaTrainer:
    """The trainer that a composed `conf/train.yaml` describes; the arguments are `meta_train`'s.

    Raises:
        ConfigurationError: the device is unknown or absent.
        InstantiationException: a group's value is refused; its cause says why.
    """
    from lightning_dqnlr.meta.train import MetaTrainer
    from lightning_dqnlr.rl.dqn import Agent

    plain = partial(instantiate, _convert_="all")
    config = with_present_targets(config)
    _check_moved(config)
    device = find_device(config.device)
    if config.train.rivals is None and rivals is not None:
        config = cast(DictConfig, OmegaConf.merge(config, {"train": {"rivals": str(rivals)}}))
    return MetaTrainer(
        tasks=plain(config.tasks),
        reward=plain(config.reward),
        spec=plain(config.env.spec),
        agent=Agent(plain(config.agent.learner), plain(config.agent.replay)),
        collect=plain(config.env.collect),
        config=plain(config.train, device=device),
        engine=plain(config.env.engine)(device),
        folder=folder,
        workers=plain(config.collector),
    )


def _check_kinds(config: DictConfig) -> None:
    """What no class of this package checks when it is made."""
    check_integer("threads", config.threads, 1)
    for name in ("resume", "tensorboard"):  # `resume=no` is text
        check_choice(name, config[name], (True, False))
    check_kind("folder", config.folder, str)
    if config.train.rivals is not None:
        check_kind("train.rivals", config.train.rivals, str)
    trials = config.env.spec.get("trials")
    if not OmegaConf.is_dict(trials) and trials is not None:
        check_kind("env.spec.trials", trials, dict)


def _check_moved(config: DictConfig) -> None:
    """Settings of a user's own `env` that belong to the reward; there they would do nothing."""
    for name in ("credit", "temperature", "final_evaluation", "trip_penalty"):
        if name in config.env.collect:
            raise ConfigurationError(
                f"env.collect.{name} is a matter of the reward now; choose reward=final_score or "
                "reward=log_progress and set what it offers (reward.temperature=0.2, say)."
            )


def _check_resume(config: DictConfig, overrides: Sequence[str]) -> None:
    """A run may have been killed before its first checkpoint, so the folder alone tells nothing."""
    if config.resume and not any(override.startswith("folder=") for override in overrides):
        raise ConfigurationError("resume=true needs folder=..., that of the run to go on with.")


def _begin(trainer: MetaTrainer, config: DictConfig) -> None:
    from lightning_dqnlr.meta.checkpoint import CHECKPOINT

    begun = (trainer.folder / CHECKPOINT).exists()
    if config.resume and not begun:
        print("No checkpoint yet: this run begins with its first episode.", flush=True)
    elif config.resume:
        trainer.load_checkpoint()
    elif begun:
        raise ConfigurationError(
            f"folder={str(trainer.folder)!r} holds a run already; add resume=true to go on with "
            "it, or choose another folder."
        )
