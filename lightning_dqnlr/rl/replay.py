"""Transitions: n-step returns from recorded rollouts, and the replay buffer that holds them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from lightning_dqnlr.checks import check_integer, check_number
from lightning_dqnlr.errors import ConfigurationError


class Transitions(NamedTuple):
    """A batch of B transitions.

    Attributes:
        observation: (B, F) float32.
        action: (B,) int64.
        reward: (B,) float32, the n-step return `sum_i gamma^i r_{t+i}`.
        next_observation: (B, F) float32, where the return ends.
        discount: (B,) float32, gamma^n, and 0 if the episode ended inside the window.
    """

    observation: Tensor
    action: Tensor
    reward: Tensor
    next_observation: Tensor
    discount: Tensor


class Draw(NamedTuple):
    """Transitions drawn from a replay.

    Attributes:
        transitions: B of them.
        rows: (B,) int64, where in the replay they lie.
        weights: (B,) factors that undo the bias of an uneven draw; None where it was even.
    """

    transitions: Transitions
    rows: Tensor
    weights: Tensor | None = None


class Replay(Protocol):
    """Holds transitions and draws those to learn from."""

    def __len__(self) -> int: ...

    def extend(self, transitions: Transitions) -> object:
        """Takes in a batch; the oldest make room.

        Raises:
            ConfigurationError: the observations are of another size, or the fields disagree on B.
        """

    def sample(self, batch_size: int, generator: torch.Generator | None = None) -> Draw:
        """Draws B = `batch_size` transitions with replacement; B may exceed the number held.

        Raises:
            ConfigurationError: there is none.
        """

    def learned(self, rows: Tensor, errors: Tensor) -> None:
        """Takes note of the temporal-difference errors (B,) of what was just drawn."""

    def state_dict(self) -> dict[str, Any]:
        """A snapshot in plain containers and tensors, loadable with `weights_only=True`."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Holds the snapshot's transitions, so that samples continue alike.

        Raises:
            ConfigurationError: the snapshot is of another capacity, observation size or kind.
        """


class ReplayConfig(Protocol):
    """The settings of a kind of replay, and how to make one."""

    def build(
        self, capacity: int, observation_size: int, device: torch.device | str = "cpu"
    ) -> Replay:
        """An empty replay."""


@dataclass(frozen=True)
class UniformReplayConfig:
    """Each of N transitions is drawn with probability P(i) = 1 / N: nothing to set."""

    def build(
        self, capacity: int, observation_size: int, device: torch.device | str = "cpu"
    ) -> ReplayBuffer:
        return ReplayBuffer(capacity, observation_size, device)


class Rollout(NamedTuple):
    """What T steps of R replicas were like.

    Attributes:
        observations: (T + 1, R, F); row t is what the action at t saw.
        actions: (T, R) int64.
        rewards: (T, R), of the step that the action at t began.
        continues: (T, R) in {0, 1}; 0 where that step ended the replica's episode.
        valid: (T, R) bool, False on padding, which is neither read nor returned. By default
            everything after a replica's first terminal is padding.
        explored: (T, R) bool, True where the action was not the greedy one; None for no cuts. A
            window ends before the next such action and bootstraps there. No action then pays for
            later exploration (Watkins's Q(lambda); Sutton & Barto 2018, section 12.10).
    """

    observations: Tensor
    actions: Tensor
    rewards: Tensor
    continues: Tensor
    valid: Tensor | None = None
    explored: Tensor | None = None

    def of(self, replicas: Tensor) -> Rollout:
        """The rollout of the replicas in a mask, (R,) bool."""
        given = {name: steps for name, steps in self._asdict().items() if steps is not None}
        return self._replace(**{name: steps[:, replicas] for name, steps in given.items()})


def n_step_transitions(rollout: Rollout, n: int, gamma: float) -> Transitions:
    """Cuts the rollouts of R replicas into n-step transitions (Sutton & Barto 2018, eq. 7.1).

    From step t the return takes m = min(n, steps to the replica's end) rewards and ends at
    observations[t + m]. A terminal inside the window ends the sum with discount 0. A window that
    the record's end or padding cuts, with no terminal before, bootstraps with gamma^m.

    Args:
        rollout: what was recorded.
        n: longest window, in steps.
        gamma: discount per step, in [0, 1].

    Returns:
        One transition per valid step, ordered by t and then by replica.

    Raises:
        ConfigurationError: shapes disagree, n < 1, or gamma outside [0, 1].
    """
    _check_rollout(rollout)
    check_integer("n", n, 1)
    check_number("gamma", gamma, "[0, 1]")
    going_on = rollout.continues.bool()
    kept = _before_the_end(going_on) if rollout.valid is None else rollout.valid.bool()
    explored = rollout.explored
    follows = torch.ones_like(kept) if explored is None else ~explored.bool()
    windows = _windows(rollout.rewards.float(), going_on, kept, follows, n, gamma)
    step, replica = kept.nonzero(as_tuple=True)
    end = step + windows.length[step, replica]
    return Transitions(
        observation=rollout.observations[step, replica].float(),
        action=rollout.actions[step, replica].long(),
        reward=windows.returns[step, replica],
        next_observation=rollout.observations[end, replica].float(),
        discount=windows.discount[step, replica],
    )


def _before_the_end(going_on: Tensor) -> Tensor:
    """(T, R): True up to and including each replica's first terminal."""
    ended = (~going_on).long().cumsum(dim=0)
    return (ended == 0) | ((ended == 1) & ~going_on)


class _Windows(NamedTuple):
    """The windows that start at each (t, replica); all (T, R)."""

    returns: Tensor
    discount: Tensor
    length: Tensor  # in steps


def _windows(
    rewards: Tensor, going_on: Tensor, valid: Tensor, follows: Tensor, n: int, gamma: float
) -> _Windows:
    """The window of at most n steps that starts at each (t, replica)."""
    steps = rewards.shape[0]
    returns = torch.zeros_like(rewards)
    length = torch.zeros_like(rewards, dtype=torch.long)
    open_ = torch.ones_like(valid)
    ended = torch.zeros_like(valid)
    for i in range(min(n, steps)):
        taken = open_[: steps - i] & valid[i:]
        if i > 0:
            taken = taken & follows[i:]
        returns[: steps - i] += torch.where(taken, gamma**i * rewards[i:], 0.0)
        length[: steps - i] += taken
        ended[: steps - i] |= taken & ~going_on[i:]
        open_[: steps - i] = taken & going_on[i:]
    discount = torch.where(ended, 0.0, torch.pow(gamma, length.to(rewards.dtype)))
    return _Windows(returns, discount, length)


def _check_rollout(rollout: Rollout) -> None:
    seen = rollout.observations.shape
    if len(seen) != 3 or seen[0] < 2:
        raise ConfigurationError(
            f"observations must be (T + 1, R, F) with at least one step; got shape {tuple(seen)}."
        )
    wanted = (seen[0] - 1, seen[1])
    for name, tensor in rollout._asdict().items():
        if name != "observations" and tensor is not None and tuple(tensor.shape) != wanted:
            raise ConfigurationError(
                f"{name} must be (T, R) = {wanted}, one row fewer than observations; "
                f"got shape {tuple(tensor.shape)}."
            )


class ReplayBuffer:
    """The latest `capacity` transitions in a ring of tensors, sampled evenly (Lin 1992).

    Memory for all of them, with observations of F = `observation_size`, is taken at once.

    Raises:
        ConfigurationError: capacity or observation_size below 1.
    """

    def __init__(
        self, capacity: int, observation_size: int, device: torch.device | str = "cpu"
    ) -> None:
        check_integer("capacity", capacity, 1)
        check_integer("observation_size", observation_size, 1)
        self.capacity = capacity
        self.observation_size = observation_size
        self.device = torch.device(device)
        self._next = 0
        self._size = 0
        self._ring = Transitions(
            observation=torch.zeros(capacity, observation_size, device=self.device),
            action=torch.zeros(capacity, dtype=torch.long, device=self.device),
            reward=torch.zeros(capacity, device=self.device),
            next_observation=torch.zeros(capacity, observation_size, device=self.device),
            discount=torch.zeros(capacity, device=self.device),
        )

    def __len__(self) -> int:
        return self._size

    def extend(self, transitions: Transitions) -> Tensor:
        """Of a batch above capacity the end remains; returns the rows written, int64."""
        rows = self._check(transitions)
        kept = min(rows, self.capacity)
        offsets = torch.arange(rows - kept, rows, device=self.device)
        places = (self._next + offsets) % self.capacity
        for ring, new in zip(self._ring, transitions, strict=True):
            ring[places] = new[rows - kept :].detach().to(self.device, ring.dtype)
        self._next = (self._next + rows) % self.capacity
        self._size = min(self._size + rows, self.capacity)
        return places

    def _check(self, transitions: Transitions) -> int:
        rows = transitions.action.shape[0]
        for name, ring, new in zip(Transitions._fields, self._ring, transitions, strict=True):
            if new.shape != (rows, *ring.shape[1:]):
                raise ConfigurationError(
                    f"transitions.{name} must be of shape {(rows, *ring.shape[1:])}; "
                    f"got {tuple(new.shape)}."
                )
        return rows

    def sample(self, batch_size: int, generator: torch.Generator | None = None) -> Draw:
        self.check_not_empty()
        source = self.device if generator is None else generator.device
        drawn = torch.randint(self._size, (batch_size,), generator=generator, device=source)
        rows = drawn.to(self.device)
        return Draw(self.at(rows), rows)

    def at(self, rows: Tensor) -> Transitions:
        """The transitions that lie in these rows, (B,) int64."""
        return Transitions(*(ring[rows] for ring in self._ring))

    def learned(self, rows: Tensor, errors: Tensor) -> None:
        """Errors change nothing where all are drawn alike."""

    def check_not_empty(self) -> None:
        """Raises ConfigurationError if there is nothing to draw."""
        if self._size == 0:
            raise ConfigurationError("The replay buffer is empty: extend() it before sample().")

    def state_dict(self) -> dict[str, Any]:
        """Copies of the rows in use: a saved view would drag the whole ring along."""
        rows = {
            name: ring[: self._size].clone()
            for name, ring in zip(Transitions._fields, self._ring, strict=True)
        }
        return {"capacity": self.capacity, "next": self._next, "size": self._size, **rows}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if state["capacity"] != self.capacity:
            raise ConfigurationError(
                f"capacity is {self.capacity} but the state was saved with {state['capacity']}; "
                "build the buffer with the saved capacity."
            )
        self._check(Transitions(*(state[name] for name in Transitions._fields)))
        for name, ring in zip(Transitions._fields, self._ring, strict=True):
            ring[: state["size"]] = state[name].to(self.device)
        self._next = int(state["next"])
        self._size = int(state["size"])
