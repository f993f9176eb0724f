"""`dqnlr-combine` and `dqnlr-promote`: what is done with finished policies."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import hydra
import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from lightning_dqnlr.checks import check_choice, check_integer
from lightning_dqnlr.cli import targets
from lightning_dqnlr.cli.errors import ANEW, errors_in_one_line, find_device
from lightning_dqnlr.cli.spelling import groups_of_choices
from lightning_dqnlr.errors import ConfigurationError
from lightning_dqnlr.files import check_writable

if TYPE_CHECKING:
    from lightning_dqnlr.tasks.task import TaskFamily


_COMBINE = """Averages the Q-values of several policies into one policy. They must have learned from
the same reward under the same controller: several runs, or several moments of one."""
_PROMOTE = """Compares policies on validation tasks that none was selected on, with the same seeds,
and copies the best. The policy that ships is compared as well. If it is better for certain, nothing
is copied."""


def combine() -> None:
    """The console script `dqnlr-combine`: averages policies of several runs into one."""
    from lightning_dqnlr.policy.policy import LRPolicy, with_settings
    from lightning_dqnlr.policy.policy import combine as combine_policies
    from lightning_dqnlr.provenance import provenance

    parser = argparse.ArgumentParser(prog="dqnlr combine", description=_COMBINE)
    parser.add_argument(
        "policies", nargs="+", help="folders that dqnlr train wrote, or hf://org/name of the Hub"
    )
    parser.add_argument("--into", required=True, type=Path, help="folder of the new policy")
    parser.add_argument("--force", action="store_true", help="replace a policy in that folder")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="of the controller, otherwise than in training, as in --set decay_share=0.3",
    )
    arguments = parser.parse_args()
    with errors_in_one_line(ANEW):
        _check_free(arguments.into, force=arguments.force)
        loaded = [replace(LRPolicy.load(place), name=place) for place in arguments.policies]
        # Before they are compared: members that trained under different controllers may share one.
        policy = combine_policies([with_settings(member, arguments.set) for member in loaded])
        set_afterwards = {"set_after_training": arguments.set} if arguments.set else {}
        policy.record = {**policy.record, **set_afterwards, **provenance()}
        print(f"{len(policy.record['members'])} policies averaged in {policy.save(arguments.into)}")


def _check_free(into: Path, *, force: bool) -> None:
    from lightning_dqnlr.policy.folder import RECORD

    if (into / RECORD).exists() and not force:
        raise ConfigurationError(
            f"--into {into} holds a policy; add --force to replace it, or choose another folder."
        )


def promote() -> None:
    """The console script `dqnlr-promote`: compares policies on fresh tasks, copies the best."""
    parser = argparse.ArgumentParser(prog="dqnlr promote", description=_PROMOTE)
    parser.add_argument("folders", nargs="+", type=Path, help="of sweeps, runs or policies")
    parser.add_argument("--into", required=True, type=Path, help="folder of the winner's copy")
    parser.add_argument("--tasks", type=int, default=24, help="validation tasks (default 24)")
    parser.add_argument("--seeds", type=int, default=8, help="runs of each (default 8)")
    parser.add_argument("--family", help="as in dqnlr train tasks=...; default: that of the runs")
    parser.add_argument("--device", default="cpu", help="cpu, cuda or auto")
    parser.add_argument("--force", action="store_true", help="replace a policy in the folder")
    parser.add_argument(
        "--without-bundled",
        action="store_true",
        help="do not compare with the policy that ships; the best is then copied in any case",
    )
    parser.add_argument(
        "--trust",
        action="store_true",
        help="run whatever the runs' .hydra/config.yaml names; for tasks of your own",
    )
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with errors_in_one_line(ANEW):
        _promote(arguments)


def _promote(arguments: argparse.Namespace) -> None:
    from lightning_dqnlr.meta import promote as promotion
    from lightning_dqnlr.meta.failures import Failures, usable_tasks
    from lightning_dqnlr.meta.logs import shown
    from lightning_dqnlr.meta.outcome import beside_bundled
    from lightning_dqnlr.scoring.evaluate import Rivals

    check_integer("--tasks", arguments.tasks, 1)
    check_integer("--seeds", arguments.seeds, 1)
    check_choice("--family", arguments.family, groups_of_choices()["tasks"], optional=True)
    check_writable("--into", arguments.into)
    _check_free(arguments.into, force=arguments.force)
    device = find_device(arguments.device)
    found = promotion.find_candidates(arguments.folders, lambda text: print(f"Skipped: {text}"))
    candidates = [c for c in found if c.folder != arguments.into.resolve()]
    if not candidates:
        raise ConfigurationError(f"--into {arguments.into} holds the only policy; give others.")
    runs = [c.folder for c in candidates]
    recorded = _recorded(arguments.family, runs, trust=arguments.trust)
    candidates += [] if arguments.without_bundled else [promotion.bundled()]
    engine = recorded.open_engine(device)
    for candidate in candidates:
        candidate.policy.network.to(device)
    rivals = Rivals(promotion.rivals_folder(arguments.folders), engine)
    print(
        f"{len(candidates)} policies, {arguments.tasks} tasks, {arguments.seeds} seeds", flush=True
    )
    numbers = range(promotion.FIRST_TASK, promotion.FIRST_TASK + arguments.tasks)
    tuned = shown(numbers, "Cosines of validation tasks tuned")
    tasks = usable_tasks(recorded.family, tuned, rivals, Failures())
    standings = promotion.compare(
        shown(candidates, "Policies compared"), tasks, rivals, range(arguments.seeds), engine
    )
    print("Regret to the tuned cosine on validation tasks; lower is better:")
    print(f"{promotion.table(standings)}\n{promotion.verdict(standings)}")
    best = promotion.best_of_own(standings)
    for theirs in (each for each in standings if each.candidate.name == promotion.BUNDLED):
        beside = beside_bundled(best, theirs)
        print(beside.text)
        if beside.verdict == "worse":
            print("Nothing was copied; --without-bundled copies the best of yours all the same.")
            return
    copied = promotion.promote(standings, arguments.into, arguments.seeds)
    print(f"{best.candidate.name} is now in {copied}")


class Recorded(NamedTuple):
    """What runs were configured with."""

    family: TaskFamily
    open_engine: Any  # makes an engine for a device


def _recorded(name: str | None, policies: Sequence[Path], *, trust: bool = False) -> Recorded:
    """The tasks and the engine that the runs were configured with, or tasks of a name.

    Args:
        name: of tasks; None for those of the runs.
        policies: folders within the runs, whose configurations may be somebody else's.
        trust: whether these may run code from outside this package.

    Raises:
        ConfigurationError: if the runs do not agree, say nothing about it, or name foreign code.
    """
    own = trust or name is not None
    if name is not None:
        with hydra.initialize_config_module("lightning_dqnlr.conf", version_base="1.3"):
            configs = [hydra.compose("train", [f"tasks={name}"])]
    else:
        paths = [policy.parent / ".hydra" / "config.yaml" for policy in policies]
        configs = [targets.read_config(path) for path in paths if path.exists()]
    place = None if own else targets.face_target
    present = [targets.with_present_targets(config, place) for config in configs]
    keys = ("tasks", "env.engine")
    settings = [[_read(c, key, resolve=own) for key in keys] for c in present]
    if not settings or any(each != settings[0] for each in settings):
        raise ConfigurationError(
            f"The tasks and engines of {len(settings)} runs are recorded and they must agree; "
            "say on which tasks to compare: --family quick, say."
        )
    if not own:
        for key, node in zip(keys, settings[0], strict=True):
            targets.check_targets(node, key)
    made = Recorded(*(instantiate(node, _convert_="all") for node in settings[0]))
    if not hasattr(made.family, "sample") or not callable(made.open_engine):
        raise ConfigurationError(
            "tasks and env.engine of the recorded configuration are no family of tasks and no "
            "engine; say on which tasks to compare: --family quick, say."
        )
    return made


def _read(config: DictConfig, key: str, *, resolve: bool) -> Any:
    """A node in plain containers. Interpolations compute, so they stay text unless resolved."""
    node = OmegaConf.to_container(config, resolve=False)
    for name in key.split("."):
        node = node.get(name) if isinstance(node, dict) else None
    if resolve and node is not None:
        return OmegaConf.to_container(OmegaConf.select(config, key), resolve=True)
    return node
