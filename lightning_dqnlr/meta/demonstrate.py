"""Demonstrations: a simple rule that seeds the replay with good and bad peaks alike.

At first every action of an untrained network is a random walk of the learning rate that never
comes near a good peak. The rule finds peaks of every height, the group's score tells which of them
were good, and off-policy learning does the rest.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lightning_dqnlr.envs.environment import LREnvironment
from lightning_dqnlr.policy.choice import epsilon_greedy


@dataclass
class Demonstrators:
    """Replicas that follow the rule, for one run; tensors are (R,).

    Args:
        ratio: each one's target of ||dtheta|| / ||theta|| at the peak.
        shows: bool, which replicas demonstrate.
        epsilon: probability of a random action instead. Its effect lasts, since the rule does not
            steer back once the climb is over: what a change is worth shows at the end.
        drift: power of the step that the scale follows between the climb and the built-in decay.
            0 keeps the scale; 0.5 makes up for an optimizer whose steps shrink like its root.
    """

    ratio: Tensor
    shows: Tensor
    epsilon: float
    drift: Tensor

    def __post_init__(self) -> None:
        self._due = torch.zeros_like(self.ratio)  # of the drift, in units of log scale
        self._log_step = 0.0

    def act(self, env: LREnvironment, generator: torch.Generator) -> Tensor:
        """Actions int64 (R,) of all replicas, demonstrators or not, between two decisions.

        The rule steers the update ratio to its target during the first sixteenth of the run (at
        least 12 decisions). The scale then drifts until the built-in decay begins. Without a known
        horizon no decay is built in. The rule then goes on steering, to the target times a cosine
        of the true progress: a demonstration may know what the policy cannot.
        """
        count = len(env.controller.spec.actions)
        preferred = nn.functional.one_hot(self._rule(env), count)
        return epsilon_greedy(preferred, self.epsilon, generator)

    def _rule(self, env: LREnvironment) -> Tensor:
        controller = env.controller
        actions = controller.spec.actions
        progress = controller.step / env.task.horizon
        climbing = controller.decisions < 12 or progress < 1 / 16
        before = self._log_step
        self._log_step = math.log(max(controller.step, 1))
        if env.task.known_horizon and not climbing:
            if progress < 1 - controller.spec.decay_share:
                self._due += self.drift * (self._log_step - before)
            action = actions.nearest(self._due)
            self._due -= actions.log_multiplier(action)
            return action
        cosine = 0.5 * (1 + math.cos(math.pi * min(progress, 0.99)))
        wanted = self.ratio.log() + math.log(cosine)
        return actions.nearest(wanted - controller.update_ratio.clamp_min(1e-12).log())
