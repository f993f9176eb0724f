"""Asks whether a policy's rates are too low or too high: moves them within its own runs.

    python benchmarks/moved_rates.py lightning_dqnlr/policy/default --mixture long

Each task is trained by the policy, and again from the same start and batches with its rate moved
once, at 15% or 35% of the run. From there on the policy goes on, or the rate is held to the
built-in decay. The figure is the difference of the final log loss to the policy's own run (of the
whole training set, in eval mode, plus 1% of the initial loss). It is the difference of regrets, and
needs no tuned rival. The tasks are of the validation split, with known horizons.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from many_runs import parser_of, tasks_of
from torch import Tensor

from lightning_dqnlr.bench.report.content import Table
from lightning_dqnlr.control.features import compressed_loss
from lightning_dqnlr.envs.environment import Terms
from lightning_dqnlr.envs.vector import VectorEngine
from lightning_dqnlr.policy.policy import LRPolicy
from lightning_dqnlr.scoring.statistics import interquartile_mean
from lightning_dqnlr.tasks.task import Task

LARGEST = 1.0  # a difference of log losses counts as this much at most


class Move(NamedTuple):
    """A change of the rate: once, by one of the policy's multipliers."""

    at: float  # share of the run
    multiplier: float
    held: bool  # to the built-in decay from then on; else the policy goes on

    def __str__(self) -> str:
        then = "then held" if self.held else "the policy goes on"
        return f"x{self.multiplier:g} at {self.at:.0%}, {then}"


MOVES = (
    *(Move(at, multiplier, False) for at in (0.15, 0.35) for multiplier in (0.5, 2.0, 4.0)),
    *(Move(0.15, multiplier, True) for multiplier in (0.5, 1.0, 2.0, 4.0)),
)


class Mover:
    """Acts as the policy, but for one move per replica.

    Args:
        policy: what acts otherwise.
        moves: one per replica; None for none.
    """

    def __init__(self, policy: LRPolicy, moves: Sequence[Move | None]) -> None:
        table = policy.spec.actions.multipliers
        self._policy, self._keep = policy, policy.spec.actions.keep
        self._at = torch.tensor([move.at if move else 2.0 for move in moves])
        chosen = [table.index(move.multiplier) if move else self._keep for move in moves]
        self._move = torch.tensor(chosen)
        self._held = torch.tensor([bool(move and move.held) for move in moves])
        self._moved = torch.zeros(len(moves), dtype=torch.bool)

    def act(self, observation: Tensor, progress: float) -> Tensor:
        """Actions (R,), given the share of the run that is over."""
        action = self._policy.act(observation).cpu()
        action = torch.where(self._moved & self._held, self._keep, action)
        due = ~self._moved & (self._at <= progress)
        self._moved |= due
        return torch.where(due, self._move, action).to(observation.device)


def differences(task: Task, policy: LRPolicy, seeds: int, engine: VectorEngine) -> Tensor:
    """Final log loss of each move less the policy's own, (moves, seeds), clipped to +-`LARGEST`."""
    replicas = [(move, seed) for move in (None, *MOVES) for seed in range(seeds)]
    mover = Mover(policy, [move for move, _ in replicas])
    env = engine.open(task, policy.spec, [seed for _, seed in replicas], Terms())
    observation = env.reset()
    while not env.finished:
        action = mover.act(observation, env.controller.step / task.horizon)
        observation = env.step(action).observation
    level = compressed_loss(env.losses().train, env.controller.history.initial_loss)
    level = level.nan_to_num(torch.inf, torch.inf).clamp_max(1e3).view(-1, seeds).cpu()
    return (level[1:] - level[:1]).clamp(-LARGEST, LARGEST)


def main() -> None:
    """Prints a table of moves."""
    torch.set_num_threads(1)
    parser = parser_of(__doc__, tasks=24, seeds=3)
    parser.add_argument("--first", type=int, default=200, help="number of the first task")
    arguments = parser.parse_args()
    found = [
        differences(task, arguments.policy, arguments.seeds, arguments.engine)
        for task in tasks_of(arguments, "validation", arguments.first)
        if task.known_horizon
    ]
    count = f"{len(found)} tasks x {arguments.seeds} seeds"
    print(f"{count}; negative: better than the policy's own run")
    rows = [_row(move, change) for move, change in zip(MOVES, torch.stack(found, 1), strict=True)]
    print(Table(("move", "mean", "IQM", "tasks where it is better"), tuple(rows)).markdown())


def _row(move: Move, change: Tensor) -> tuple[str, ...]:
    better = (change.mean(-1) < 0).float().mean()
    iqm = interquartile_mean(change.flatten())
    return (str(move), f"{change.mean():.3f}", f"{iqm:.3f}", f"{better:.0%}")


if __name__ == "__main__":
    main()
