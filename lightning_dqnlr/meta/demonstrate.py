"""Demonstrations: a simple rule that seeds the replay with good and bad peaks alike.

At first every action of an untrained network is a random walk of the learning rate that never
comes near a good peak. The rule finds peaks of every height, the group's score tells which of them
were good, and off-policy learning does the rest.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_dqnlr.envs.environment import LREnvironment


@dataclass(frozen=True)
class Demonstrators:
    """Replicas that follow the rule.

    Args:
        ratio: (R,) each one's target of ||dtheta|| / ||theta|| at the peak.
        shows: (R,) bool, which replicas demonstrate.
        epsilon: probability of a random action instead. Its effect lasts, since the rule does not
            steer back once the climb is over: what a change is worth shows at the end.
    """

    ratio: Tensor
    shows: Tensor
    epsilon: float

    def act(self, env: LREnvironment, generator: torch.Generator) -> Tensor:
        """Actions int64 (R,) of all replicas, demonstrators or not.

        Steers the update ratio to its target during the first sixteenth of the run (at least 12
        decisions), then keeps the scale. Without a known horizon, where no decay is built in, it
        goes on steering, to the target times a cosine of the true progress: a demonstration may
        know what the policy cannot.

        Args:
            env: between two decisions.
            generator: of the random actions.
        """
        count = len(env.controller.spec.actions)
        random = torch.rand(len(self.ratio), generator=generator) < self.epsilon
        anything = torch.randint(count, (len(self.ratio),), generator=generator)
        device = self.ratio.device
        return torch.where(random.to(device), anything.to(device), self._rule(env))

    def _rule(self, env: LREnvironment) -> Tensor:
        controller, actions = env.controller, env.controller.spec.actions
        progress = controller.step / env.task.horizon
        climbing = controller.decisions < 12 or progress < 1 / 16
        if env.task.known_horizon and not climbing:
            return torch.full_like(self.ratio, actions.keep, dtype=torch.long)
        wanted = self.ratio.log() + math.log(_cosine(progress))
        change = wanted - controller.update_ratio.clamp_min(1e-12).log()
        table = actions.log_multiplier(torch.arange(len(actions), device=self.ratio.device))
        return (change.unsqueeze(-1) - table).abs().argmin(-1)


def _cosine(progress: float) -> float:
    return 0.5 * (1 + math.cos(math.pi * min(progress, 0.99)))
