"""Tabular Q-learning (Watkins 1989): the baseline that a Q-network has to beat."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from torch import Tensor

from lightning_dqnlr.checks import Count, check_kind, check_number, check_settings
from lightning_dqnlr.control.spec import ControllerSpec
from lightning_dqnlr.errors import ConfigurationError
from lightning_dqnlr.policy.network import QTable
from lightning_dqnlr.rl.learner import Update
from lightning_dqnlr.rl.replay import Transitions
from lightning_dqnlr.rl.td import q_learning_target, td_error

# Where nothing was ever learned, all actions would be equally good and the first one, the largest
# cut, be taken. So little prefers "keep" there and is forgotten at the first visit.
_PREFERENCE = 1e-6


def q_table_update(
    q_table: Tensor, state: Tensor, action: Tensor, error: Tensor, step_size: Tensor
) -> Tensor:
    """`Q(s,a) += step_size * error`, error = r + discount * max_a' Q(s',a') - Q(s,a).

    Every error of a batch was measured against the table passed in. A cell that occurs k times
    moves as k updates towards the mean of its k targets would (weighted by their step sizes). It
    moves by the fraction `1 - prod_k (1 - step_size_k)`. The batch's order is therefore irrelevant,
    and many replicas in one state cannot overshoot.

    Args:
        q_table: (S, A); left as it is.
        state: (B,) int64; likewise action.
        action: the action taken.
        error: (B,) temporal-difference errors.
        step_size: (B,) in [0, 1].
    """
    cell = state * q_table.shape[1] + action
    flat = q_table.flatten()
    zero = torch.zeros_like(flat)
    step = step_size.to(flat.dtype)
    total = zero.index_add(0, cell, step)
    mean_error = zero.index_add(0, cell, step * error) / total.clamp_min(1e-30)
    kept = zero.index_add(0, cell, torch.log1p(-step)).exp()  # log 0 = -inf: nothing is kept
    return (flat + (1 - kept) * mean_error).view_as(q_table)


@dataclass(frozen=True)
class TabularConfig:
    """Settings of tabular Q-learning.

    Attributes:
        bins: ascending edges by the feature's name; the other features are not looked at.
        learning_rate: alpha, in (0, 1].
        batch_size: transitions per update, for whoever samples the batches.

    Raises:
        ConfigurationError: a value out of range; the message names the field.

    Example:
        >>> learner = TabularConfig({"progress": (-0.5, 0.5)}).build(ControllerSpec())
        >>> learner.online.table.shape  # states, actions
        torch.Size([3, 7])
    """

    bins: Mapping[str, tuple[float, ...]]
    learning_rate: Annotated[float, "(0, 1]"] = 0.02
    batch_size: Count = 512

    def __post_init__(self) -> None:
        check_kind("TabularConfig.bins", self.bins, dict)
        for name, edges in self.bins.items():
            check_kind(f"TabularConfig.bins.{name}", edges, list)
            for edge in edges:
                check_number(f"TabularConfig.bins.{name}", edge, "[-1e30, 1e30]")
        bins = {name: tuple(map(float, edges)) for name, edges in self.bins.items()}
        object.__setattr__(self, "bins", bins)
        check_settings(self, "TabularConfig.")

    def build(self, spec: ControllerSpec, device: torch.device | str = "cpu") -> TabularLearner:
        names = spec.features.names
        absent = sorted(set(self.bins) - set(names))
        if absent:
            raise ConfigurationError(
                f"TabularConfig.bins: {absent} are not features of the observation, {names}; bin "
                "some of those."
            )
        columns = {names.index(name): edges for name, edges in self.bins.items()}
        table = QTable(len(names), len(spec.actions), columns)
        table.table[:, spec.actions.keep] = _PREFERENCE
        return TabularLearner(table, self, device)


class TabularLearner:
    """Moves a table towards Q-learning's targets; it explores, is evaluated and ships as one.

    Args:
        table: becomes `online`, which is updated in place.
        config: the settings.
        device: of the table.
    """

    def __init__(
        self, table: QTable, config: TabularConfig, device: torch.device | str = "cpu"
    ) -> None:
        self.config = config
        self.online = table.to(device)
        self.updates = 0

    @property
    def average(self) -> QTable:
        """The table itself: a small learning rate averages already."""
        return self.online

    @torch.no_grad()
    def update(self, batch: Transitions, weights: Tensor | None = None) -> Update:
        """One `q_table_update`; the weights are factors of the learning rate, at most 1."""
        table = self.online.table
        state = self.online.state_of(batch.observation)
        q_t = table[self.online.state_of(batch.next_observation)]
        target = q_learning_target(batch.reward, batch.discount, q_t)
        errors = td_error(table[state], batch.action, target)
        weights = torch.ones_like(errors) if weights is None else weights
        step_size = self.config.learning_rate * weights
        table.copy_(q_table_update(table, state, batch.action, errors, step_size))
        self.updates += 1
        return Update((weights * errors.square()).mean() / 2, errors)

    def state_dict(self) -> dict[str, Any]:
        bins = self.online.config["bins"]
        return {"bins": bins, "table": self.online.table.clone(), "updates": self.updates}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        bins = self.online.config["bins"]
        if list(state["bins"].items()) != list(bins.items()):
            raise ConfigurationError("bins differ from the saved table's; build it with those.")
        if state["table"].shape != self.online.table.shape:
            raise ConfigurationError(
                f"num_actions is {self.online.num_actions} but the saved table has "
                f"{state['table'].shape[1]}."
            )
        self.online.table.copy_(state["table"])
        self.updates = int(state["updates"])
