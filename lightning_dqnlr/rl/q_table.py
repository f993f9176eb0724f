"""Tabular Q-learning (Watkins 1989): the baseline that a Q-network has to beat."""

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from lightning_dqnlr.errors import ConfigurationError
from lightning_dqnlr.policy.exploration import epsilon_greedy
from lightning_dqnlr.rl.replay import Transitions


def q_learning_update(
    q_table: Tensor,
    state: Tensor,
    action: Tensor,
    reward: Tensor,
    next_state: Tensor,
    *,
    learning_rate: float,
    discount: float | Tensor,
    terminal: bool | Tensor = False,
) -> Tensor:
    """`Q(s,a) += learning_rate * (r + discount * max_a' Q(s',a') - Q(s,a))` on a new table.

    Every transition of a batch is measured against the table passed in. One that occurs k times
    moves Q(s,a) as k updates towards the mean of its k targets would, by the fraction
    `1 - (1 - learning_rate)^k`: the batch's order is irrelevant and many replicas in one state
    cannot overshoot.

    Args:
        q_table: (S, A); left as it is.
        state: int64, any shape (B); likewise action, reward and next_state.
        action: the action taken.
        reward: what it earned.
        next_state: where it led; ignored at a terminal, but must be a legal index.
        learning_rate: in (0, 1].
        discount: gamma, or gamma^n per transition.
        terminal: whether the transition ended its episode, so that only the reward counts.

    Returns:
        The updated (S, A) table.

    Raises:
        ConfigurationError: learning_rate outside (0, 1].
    """
    if not 0.0 < learning_rate <= 1.0:
        raise ConfigurationError(f"learning_rate must lie in (0, 1]; got {learning_rate}.")
    gamma = torch.as_tensor(discount, dtype=q_table.dtype, device=q_table.device)
    ended = torch.as_tensor(terminal, dtype=torch.bool, device=q_table.device)
    future = torch.where(ended, 0.0, gamma * q_table[next_state].amax(dim=-1))
    error = reward.to(q_table.dtype) + future - q_table[state, action]
    return _moved(q_table, (state * q_table.shape[1] + action).flatten(), error, learning_rate)


def _moved(q_table: Tensor, cell: Tensor, error: Tensor, learning_rate: float) -> Tensor:
    flat = q_table.flatten()
    errors = error.expand(cell.shape) if error.dim() == 0 else error.flatten()
    visits = torch.zeros_like(flat).index_add_(0, cell, torch.ones_like(errors))
    mean_error = torch.zeros_like(flat).index_add_(0, cell, errors) / visits.clamp(min=1)
    fraction = 1 - (1 - learning_rate) ** visits
    return (flat + fraction * mean_error).view_as(q_table)


class QTable:
    """Q-learning on an observation cut into bins.

    Args:
        edges: for each chosen column of the observation, its ascending bin edges; k edges make
            k + 1 bins, and a value on an edge belongs to the bin above. The other columns are not
            looked at. NaN counts as above the last edge.
        num_actions: A.
        device: of the table.

    Attributes:
        table: (S, A), S the product of the numbers of bins; starts at 0.

    Raises:
        ConfigurationError: no column, negative column, edges that do not ascend, no action.
    """

    def __init__(
        self,
        edges: Mapping[int, Sequence[float]],
        num_actions: int,
        device: torch.device | str = "cpu",
    ) -> None:
        _check_edges(edges)
        if num_actions < 1:
            raise ConfigurationError(f"num_actions must be at least 1; got {num_actions}.")
        self.edges = {column: tuple(map(float, cuts)) for column, cuts in edges.items()}
        states = math.prod(len(cuts) + 1 for cuts in self.edges.values())
        self.table = torch.zeros(states, num_actions, device=device)

    def state_of(self, observation: Tensor) -> Tensor:
        """The state index (...) of an observation (..., F); the last column varies fastest."""
        state = torch.zeros(observation.shape[:-1], dtype=torch.long, device=observation.device)
        for column, cuts in self.edges.items():
            bounds = observation.new_tensor(cuts)
            bin_ = torch.bucketize(observation[..., column].contiguous(), bounds, right=True)
            state = state * (len(cuts) + 1) + bin_
        return state

    def act(
        self,
        observation: Tensor,
        epsilon: float | Tensor = 0.0,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Epsilon-greedy actions (...) int64 for an observation (..., F)."""
        return epsilon_greedy(self.table[self.state_of(observation)], epsilon, generator)

    def update(self, batch: Transitions, *, learning_rate: float) -> None:
        """One `q_learning_update` on the batch, in place of `table`.

        Args:
            batch: transitions, of one step or of n; a discount of 0 marks a terminal.
            learning_rate: in (0, 1].
        """
        self.table = q_learning_update(
            self.table,
            self.state_of(batch.observation),
            batch.action,
            batch.reward,
            self.state_of(batch.next_observation),
            learning_rate=learning_rate,
            discount=batch.discount,
        )

    def state_dict(self) -> dict[str, Any]:
        """A snapshot in plain containers: the bins and the table."""
        edges = {column: list(cuts) for column, cuts in self.edges.items()}
        return {"edges": edges, "table": self.table.clone()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over a snapshot's table.

        Raises:
            ConfigurationError: the snapshot has other bins or another number of actions.
        """
        saved = {int(column): tuple(cuts) for column, cuts in state["edges"].items()}
        if list(saved.items()) != list(self.edges.items()):
            raise ConfigurationError("edges differ from the saved table's; build it with those.")
        if state["table"].shape != self.table.shape:
            raise ConfigurationError(
                f"num_actions is {self.table.shape[1]} but the saved table has "
                f"{state['table'].shape[1]}."
            )
        self.table = state["table"].to(self.table, copy=True)


def _check_edges(edges: Mapping[int, Sequence[float]]) -> None:
    if not edges:
        raise ConfigurationError("edges is empty; name at least one column of the observation.")
    for column, cuts in edges.items():
        if column < 0:
            raise ConfigurationError(f"edges: column {column} is negative; count from 0.")
        if not all(low < high for low, high in pairwise(cuts)):
            raise ConfigurationError(f"edges[{column}] must ascend strictly; got {list(cuts)}.")
