"""`dqnlr-train` and its like: configuration to plain objects. Only `cli*.py` know Hydra."""

from __future__ import annotations

import argparse
import errno
import os
import shlex
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, cast

import hydra
import torch
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from lightning_dqnlr.errors import ConfigurationError, PolicyFileError

if TYPE_CHECKING:
    from lightning_dqnlr.meta.report import Progress, Reporter
    from lightning_dqnlr.meta.train import MetaTrainer
    from lightning_dqnlr.tasks.task import TaskFamily

EXIT_CONFIGURATION = 2
EXIT_INTERRUPTED = 130
FULL_ERROR = "HYDRA_FULL_ERROR"
_TRACEBACKS_WANTED = os.environ.get(FULL_ERROR, "0") not in ("", "0")
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # disk, quota, largest file
_OURS = (ConfigurationError, PolicyFileError)


def train() -> None:
    """The console script `dqnlr-train`."""
    os.environ[FULL_ERROR] = "1"  # makes Hydra let errors through instead of printing its own way
    with errors_in_one_line():
        _app()


@hydra.main(version_base="1.3", config_path="pkg://lightning_dqnlr.conf", config_name="train")
def _app(config: DictConfig) -> float:
    settings = HydraConfig.get()
    overrides, folder = list(settings.overrides.task), Path(settings.runtime.output_dir)
    if settings.mode == RunMode.MULTIRUN:
        # One failed job is an error that the launcher and the sweeper know how to handle.
        _check_resume(config, overrides)
        return run(config, folder, overrides, Path(settings.sweep.dir) / "rivals")
    with errors_in_one_line():  # here too: Hydra announces errors that leave a job
        _check_resume(config, overrides)
        return run(config, folder, overrides)


def combine() -> None:
    """The console script `dqnlr-combine`: averages policies of several runs into one."""
    from lightning_dqnlr.policy.policy import LRPolicy, with_settings
    from lightning_dqnlr.policy.policy import combine as combine_policies
    from lightning_dqnlr.provenance import provenance

    parser = argparse.ArgumentParser(prog="dqnlr-combine", description=combine_policies.__doc__)
    parser.add_argument("policies", nargs="+", type=Path, help="folders that dqnlr-train wrote")
    parser.add_argument("--into", required=True, type=Path, help="folder of the new policy")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="of the controller, otherwise than in training, as in --set decay_share=0.3",
    )
    arguments = parser.parse_args()
    with errors_in_one_line():
        loaded = [LRPolicy.load(folder) for folder in arguments.policies]
        # Before they are compared: members that trained under different controllers may share one.
        policy = combine_policies([with_settings(member, arguments.set) for member in loaded])
        set_afterwards = {"set_after_training": arguments.set} if arguments.set else {}
        policy.record = {**policy.record, **set_afterwards, **provenance()}
        print(f"{len(policy.record['members'])} policies averaged in {policy.save(arguments.into)}")


def promote() -> None:
    """The console script `dqnlr-promote`: compares policies on fresh tasks, copies the best."""
    from lightning_dqnlr.meta import promote as promotion

    parser = argparse.ArgumentParser(prog="dqnlr-promote", description=promotion.__doc__)
    parser.add_argument("folders", nargs="+", type=Path, help="of sweeps, runs or policies")
    parser.add_argument("--into", required=True, type=Path, help="folder of the winner's copy")
    parser.add_argument("--tasks", type=int, default=24, help="validation tasks (default 24)")
    parser.add_argument("--seeds", type=int, default=8, help="runs of each (default 8)")
    parser.add_argument("--family", help="as in dqnlr-train tasks=...; default: that of the runs")
    parser.add_argument("--device", default="cpu", help="cpu, cuda or auto")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with errors_in_one_line():
        _promote(arguments)


def _promote(arguments: argparse.Namespace) -> None:
    from lightning_dqnlr.meta.evaluate import Rivals
    from lightning_dqnlr.meta.failures import Failures, usable_tasks
    from lightning_dqnlr.meta.promote import (
        FIRST_TASK,
        compare,
        find_candidates,
        promote,
        rivals_folder,
        table,
        verdict,
    )
    from lightning_dqnlr.meta.report import shown
    from lightning_dqnlr.meta.workers import check_count

    check_count("--tasks", arguments.tasks, 1)
    check_count("--seeds", arguments.seeds, 1)
    device = find_device(arguments.device)
    found = find_candidates(arguments.folders, lambda text: print(f"Skipped: {text}"))
    candidates = [c for c in found if c.folder != arguments.into.resolve()]
    family, open_engine = _recorded(arguments.family, [c.folder for c in candidates])
    engine = open_engine(device)
    for candidate in candidates:
        candidate.policy.network.to(device)
    rivals = Rivals(rivals_folder(arguments.folders), engine)
    print(
        f"{len(candidates)} policies, {arguments.tasks} tasks, {arguments.seeds} seeds", flush=True
    )
    numbers = range(FIRST_TASK, FIRST_TASK + arguments.tasks)
    tuned = shown(numbers, "Cosines of validation tasks tuned")
    tasks = usable_tasks(family, tuned, rivals, Failures())
    standings = compare(
        shown(candidates, "Policies compared"), tasks, rivals, range(arguments.seeds), engine
    )
    print("Regret to the tuned cosine on validation tasks; lower is better:")
    print(f"{table(standings)}\n{verdict(standings)}")
    copied = promote(standings, arguments.into, arguments.seeds)
    print(f"{standings[0].candidate.name} is now in {copied}")


def _recorded(name: str | None, policies: Sequence[Path]) -> tuple[TaskFamily, Any]:
    """The tasks and the engine that the runs were configured with, or tasks of a name.

    Raises:
        ConfigurationError: if the runs do not agree, or say nothing about it.
    """
    if name is not None:
        with hydra.initialize_config_module("lightning_dqnlr.conf", version_base="1.3"):
            configs = [hydra.compose("train", [f"tasks={name}"])]
    else:
        paths = [policy.parent / ".hydra" / "config.yaml" for policy in policies]
        configs = [cast(DictConfig, OmegaConf.load(path)) for path in paths if path.is_file()]
    settings = [
        tuple(OmegaConf.to_container(node, resolve=True) for node in (c.tasks, c.env.engine))
        for c in configs
    ]
    if not settings or any(each != settings[0] for each in settings):
        raise ConfigurationError(
            f"The tasks and engines of {len(settings)} runs are recorded and they must agree; "
            "say on which tasks to compare: --family quick, say."
        )
    tasks, engine = (instantiate(node, _convert_="all") for node in settings[0])
    return tasks, engine


def run(
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
    from lightning_dqnlr.envs.heap import keep_freed_memory
    from lightning_dqnlr.meta.report import ProgressBar, open_logs, summary

    torch.set_num_threads(_positive(config, "threads"))
    keep_freed_memory()
    trainer = build_trainer(config, folder, rivals)
    elsewhere = [override for override in overrides if not override.startswith("folder=")]
    trainer.record |= {"command": command(), "overrides": elsewhere}
    _begin(trainer, config)
    print(f"Meta-training into {folder.resolve()}", flush=True)
    logs = open_logs(folder, trainer.episode, tensorboard=bool(config.tensorboard))
    bar = ProgressBar(trainer.config.episodes, trainer.episode, trainer.config.max_minutes)
    reporters: list[Reporter] = [*logs, bar]

    def report(progress: Progress) -> None:
        for reporter in reporters:
            reporter(progress)

    with ExitStack() as at_the_end:
        at_the_end.callback(setattr, threading, "excepthook", threading.excepthook)
        threading.excepthook = _quiet_when_full
        for reporter in reporters:
            at_the_end.callback(reporter.close)
        score = trainer.fit(report, bar.watch)
    print(summary(folder), flush=True)
    return score


def build_trainer(config: DictConfig, folder: Path, rivals: Path | None = None) -> MetaTrainer:
    """The trainer that a composed `conf/train.yaml` describes.

    Args:
        config: the composed configuration.
        folder: of the run.
        rivals: folder of the tuned cosines, unless `train.rivals` names one.

    Raises:
        ConfigurationError: the device is unknown or absent.
        InstantiationException: a group's value is refused; its cause says why.
    """
    from lightning_dqnlr.meta.train import MetaTrainer
    from lightning_dqnlr.rl.agent import Agent

    def plain(node: Any) -> Any:
        return instantiate(node, _convert_="all")

    device = find_device(config.device)
    if config.train.rivals is None and rivals is not None:
        config = cast(DictConfig, OmegaConf.merge(config, {"train": {"rivals": str(rivals)}}))
    return MetaTrainer(
        tasks=plain(config.tasks),
        reward=plain(config.reward),
        spec=plain(config.env.spec),
        agent=Agent(plain(config.agent.learner), plain(config.agent.replay)),
        collect=plain(config.env.collect),
        config=instantiate(config.train, _convert_="all", device=device),
        engine=plain(config.env.engine)(device),
        folder=folder,
        workers=plain(config.collector),
    )


def find_device(name: str) -> str:
    """Checks a device's name; "auto" becomes "cuda" where there is a GPU and "cpu" elsewhere.

    Raises:
        ConfigurationError: the device is unknown, or not on this machine.
    """
    present = torch.cuda.is_available()
    if name == "auto":
        return "cuda" if present else "cpu"
    try:
        kind = torch.device(name).type
    except (RuntimeError, TypeError) as error:
        raise ConfigurationError(f"device={name!r} must be cpu, cuda or auto.") from error
    if kind not in ("cpu", "cuda") or (kind == "cuda" and not present):
        raise ConfigurationError(f"device={name!r} is not available here; use device=cpu or auto.")
    return name


def one_line(error: BaseException) -> str:
    """An error's message without line breaks; our own one if Hydra wrapped it."""
    key = next((line for line in str(error).splitlines() if line.startswith("full_key: ")), "")
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, _OURS):
        cause = cause.__cause__
    if cause is None or cause is error:
        return " ".join(str(error).split())
    return " ".join(f"{key.removeprefix('full_key: ')}: {cause}".split()).lstrip(": ")


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


def _positive(config: DictConfig, name: str) -> int:
    value = config[name]
    if not isinstance(value, int) or value < 1:
        raise ConfigurationError(f"{name}={value!r} must be an integer of at least 1.")
    return value


def command() -> str:
    """What was typed, without the folder: where files lay on a machine says nothing elsewhere."""
    typed = [word for word in sys.argv[1:] if not word.startswith("folder=")]
    return shlex.join([Path(sys.argv[0]).name, *typed])


@contextmanager
def errors_in_one_line(go_on: str = "resume=true folder=... goes on") -> Iterator[None]:
    """Shows what a user can mend as one line, with its own exit code; leaves the rest alone.

    Args:
        go_on: how to continue what was interrupted.
    """
    if _TRACEBACKS_WANTED:
        yield
        return
    try:
        yield
    except (*_OURS, HydraException, OmegaConfBaseException) as error:
        _stop(one_line(error))
    except OSError as error:
        if error.errno in _FULL:
            _stop(f"{error.strerror}; free some space. What was saved before is unchanged.")
        if error.filename is None:
            raise  # a closed pipe, say: nothing that another path could mend
        _stop(f"{error.filename}: {error.strerror}; choose another folder.")
    except KeyboardInterrupt:
        print(f"\n{Path(sys.argv[0]).name}: interrupted; {go_on}.", file=sys.stderr)
        sys.exit(EXIT_INTERRUPTED)


def _quiet_when_full(error: threading.ExceptHookArgs) -> None:
    """TensorBoard writes in a thread, and hands its errors to the main one as well."""
    if not isinstance(error.exc_value, OSError) or error.exc_value.errno not in _FULL:
        threading.__excepthook__(error)


def _stop(message: str) -> NoReturn:
    print(f"{Path(sys.argv[0]).name}: error: {message}", file=sys.stderr)
    sys.exit(EXIT_CONFIGURATION)
