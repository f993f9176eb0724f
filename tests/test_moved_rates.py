"""`benchmarks/moved_rates.py`: what moving a policy's rate within its runs would change."""

import subprocess
import sys
from pathlib import Path

import torch
from moved_rates import MOVES, Move, Mover, differences
from torch import Tensor

from lightning_dqnlr.control.spec import ControllerSpec
from lightning_dqnlr.envs.vector import ON_CPU
from lightning_dqnlr.policy.policy import LRPolicy
from lightning_dqnlr.tasks.families.basic import NoisyQuadratics
from lightning_dqnlr.tasks.task import Task

ROOT = Path(__file__).parents[1]


class Keeps(torch.nn.Module):
    """Prefers to keep the rate, whatever it sees."""

    observation_size, num_actions = len(ControllerSpec().features), 7

    def forward(self, observation: Tensor) -> Tensor:
        return torch.eye(7)[3].expand(*observation.shape[:-1], 7)


def keeping() -> LRPolicy:
    return LRPolicy(Keeps(), ControllerSpec())  # type: ignore[arg-type]


def quadratic() -> Task:
    family = NoisyQuadratics(
        optimizers=["sgd"],
        min_horizon=200,
        max_horizon=200,
        known_horizon_probability=1.0,
        ordinary_probability=1.0,
    )
    return family.sample(0, "validation")


def test_a_rate_is_moved_once_and_in_the_direction_that_is_told():
    """From its safe start a policy that keeps its rate hardly learns: higher is better there.

    Decoys: a move at every decision would blow up or vanish; one in the wrong direction is worse.
    """
    changes = differences(quadratic(), keeping(), 2, ON_CPU).tolist()
    found = {tuple(move): change for move, change in zip(MOVES, changes, strict=True)}
    for held in (False, True):  # a policy that keeps its rate holds it
        assert max(found[0.15, 4.0, held]) < max(found[0.15, 2.0, held]) < 0
        assert min(found[0.15, 0.5, held]) > 0
        assert found[0.15, 2.0, held] == found[0.15, 2.0, not held]
    assert found[0.15, 1.0, True] == [0.0, 0.0]
    assert max(found[0.15, 2.0, False]) < min(found[0.35, 2.0, False]) < 0  # later is less


def test_a_rate_that_is_held_follows_the_policy_until_then_alone():
    """Of a policy that quadruples its rate at every decision, holding it leaves the first 15%."""
    policy = keeping()
    policy.network.forward = lambda observation: torch.eye(7)[6].expand(len(observation), 7)
    moves = [None, Move(0.15, 1.0, True), Move(0.15, 0.5, False)]
    mover = Mover(policy, moves)
    observation = torch.zeros(3, policy.network.observation_size)
    seen = [mover.act(observation, progress).tolist() for progress in (0.1, 0.2, 0.3)]
    assert seen == [[6, 6, 6], [6, 3, 1], [6, 3, 6]]


def test_the_script_prints_its_table():
    script = ROOT / "benchmarks" / "moved_rates.py"
    command = [str(script), "default", "--mixture", "quick", "--tasks", "2", "--seeds", "2"]
    done = subprocess.run([sys.executable, *command], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    table = [line for line in done.stdout.splitlines() if line.startswith("| x")]
    assert len(table) == 10
    assert table[1].startswith("| x2 at 15%, the policy goes on | ")
