"""Prioritised replay: transitions whose error was large are drawn more often.

Proportional prioritisation of Schaul et al. 2016 (arXiv:1511.05952, section 3.3 and algorithm 1).
The paper keeps a sum tree for 10^6 transitions drawn 32 at a time. Here a batch is 512 of at most
some 10^5 rows. The tree's 19 dependent rounds of gathers and scatters, over four updates each,
would cost more than they save. One running sum in double precision and one binary search of all
draws at once are exact. They run on the device without waiting for it, and keep no invariant.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

import torch
from torch import Tensor

from lightning_dqnlr.checks import Count, Share, check_fields, check_settings
from lightning_dqnlr.rl.replay import Draw, ReplayBuffer, Transitions

_LARGEST_ERROR = 1e6  # an error that is not finite must not make the sum of all others vanish


@dataclass(frozen=True)
class PrioritisedReplayConfig:
    """Settings of `PrioritisedReplay`, named as in the paper.

    Attributes:
        alpha: how uneven draws are, in [0, 1]; 0 draws evenly.
        beta: how much of the bias is undone at first, in [0, 1].
        beta_updates: draws over which beta rises linearly to 1.
        epsilon: added to every |error|, so that none is never drawn again.

    Raises:
        ConfigurationError: a value out of range; the message names the field.

    Example:
        >>> replay = PrioritisedReplayConfig(alpha=0.7).build(capacity=1000, observation_size=42)
    """

    alpha: Share = 0.6
    beta: Share = 0.4
    beta_updates: Count = 5000
    epsilon: Annotated[float, f"(0, {_LARGEST_ERROR})"] = 0.01

    def __post_init__(self) -> None:
        check_settings(self, "PrioritisedReplayConfig.")

    def build(
        self, capacity: int, observation_size: int, device: torch.device | str = "cpu"
    ) -> PrioritisedReplay:
        return PrioritisedReplay(ReplayBuffer(capacity, observation_size, device), self)


class PrioritisedReplay:
    """A ring of transitions, drawn with probability `P(i) = p_i^alpha / sum_k p_k^alpha`.

    p_i is |TD error| + epsilon when the transition was last learned from. A new transition has the
    largest p held, and is therefore drawn soon.
    """

    def __init__(self, buffer: ReplayBuffer, config: PrioritisedReplayConfig) -> None:
        self.config = config
        self._buffer = buffer
        self._draws = 0
        # p^alpha; double precision, because half a million of them are summed.
        self._weight = torch.zeros(buffer.capacity, dtype=torch.float64, device=buffer.device)

    def __len__(self) -> int:
        return len(self._buffer)

    @property
    def beta(self) -> float:
        """The exponent of the next draw's importance weights."""
        share = min(1.0, self._draws / self.config.beta_updates)
        return self.config.beta + (1.0 - self.config.beta) * share

    @property
    def probabilities(self) -> Tensor:
        """P(i) of the rows in use, (len(self),) float64."""
        weight = self._weight[: len(self)]
        return weight / weight.sum()

    def extend(self, transitions: Transitions) -> Tensor:
        held = len(self)
        new = self._weight[:held].max() if held else self._weight.new_tensor(1.0)
        rows = self._buffer.extend(transitions)
        self._weight[rows] = new
        return rows

    def sample(self, batch_size: int, generator: torch.Generator | None = None) -> Draw:
        """Draws in proportion to the priorities, one from each of B equal shares of their sum.

        The shares are the paper's (appendix B.2.1): as often in the mean as independent draws
        would, with less scatter. The weights are `(N P(i))^-beta` over the largest that any row
        has. A transition's weight therefore does not depend on the others of its batch.
        """
        self._buffer.check_not_empty()
        weight = self._weight[: len(self)]
        running = weight.cumsum(0)
        source = self._buffer.device if generator is None else generator.device
        uniform = torch.rand(batch_size, generator=generator, device=source, dtype=torch.float64)
        uniform = uniform.to(running.device)
        share = torch.arange(batch_size, dtype=torch.float64, device=running.device)
        points = (share + uniform) / batch_size * running[-1]
        # Rounding may carry the last point onto the sum itself.
        rows = torch.searchsorted(running, points, right=True).clamp_max(len(self) - 1)
        # (N p_i / sum)^-beta over the same of the least p: N and the sum cancel out.
        factors = (weight[rows] / weight.min()).pow(-self.beta).float()
        self._draws += 1
        return Draw(self._buffer.at(rows), rows, factors)

    def learned(self, rows: Tensor, errors: Tensor) -> None:
        size = errors.abs().double().nan_to_num(_LARGEST_ERROR, _LARGEST_ERROR)
        priority = size.clamp_max(_LARGEST_ERROR) + self.config.epsilon
        self._weight[rows] = priority.pow(self.config.alpha)

    def state_dict(self) -> dict[str, Any]:
        weight = self._weight[: len(self)].clone()
        return {"buffer": self._buffer.state_dict(), "weight": weight, "draws": self._draws}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        check_fields("the replay's state", state, ("buffer", "weight", "draws"))
        self._buffer.load_state_dict(state["buffer"])
        self._weight[: len(self)] = state["weight"].to(self._weight)
        self._draws = int(state["draws"])
