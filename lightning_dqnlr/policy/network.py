"""Q-networks: an observation's value for each action."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from lightning_dqnlr.checks import check_fields, check_integer, check_kind, check_number
from lightning_dqnlr.errors import ConfigurationError

_INITIAL_OUTPUT_SCALE = 0.01
# What a policy's file may ask for. Far more than learning rates need, and built within a second.
_MOST_FEATURES = 4096
_MOST_ACTIONS = 256
_MOST_LAYERS = 8
_WIDEST = 2**16
_MOST_QUANTILES = 1024
_MOST_STATES = 2**22
_MOST_MEMBERS = 64


class _DuelingStreams(nn.Module):
    """Layers that an advantage stream and, if dueling, a value stream share."""

    def __init__(
        self,
        observation_size: int,
        num_actions: int,
        hidden: Sequence[int] = (128, 128),
        dueling: bool = True,
        *,
        outputs_per_action: int = 1,
    ) -> None:
        super().__init__()
        _check_sizes(observation_size, num_actions)
        check_integer("number of hidden layers", len(hidden), 0, _MOST_LAYERS)
        for width in hidden:
            check_integer("hidden", width, 1, _WIDEST)
        self.observation_size = observation_size
        self.num_actions = num_actions
        self.hidden = tuple(int(width) for width in hidden)
        self.dueling = dueling
        shared = self.hidden[:-1] if dueling else self.hidden
        own = self.hidden[-1:] if dueling else ()
        width = (observation_size, *shared)[-1]
        self.trunk = _layers(observation_size, shared)
        self.advantage = _head(width, own, num_actions * outputs_per_action)
        self.value = _head(width, own, outputs_per_action) if dueling else None

    @torch.no_grad()
    def largest_value(self, limits: Tensor) -> Tensor:
        """A bound of all |Q| for |observation| <= limits (F), as |SiLU(x)| <= |x|."""
        features = _largest(self.trunk, limits)
        heads = [self.advantage] if self.value is None else [self.advantage, self.value]
        # A value, an advantage and the mean advantage are added.
        return 3 * torch.cat([_largest(head, features) for head in heads]).amax()

    @property
    def config(self) -> dict[str, Any]:
        """The constructor's arguments as plain data."""
        return {
            "observation_size": self.observation_size,
            "num_actions": self.num_actions,
            "hidden": list(self.hidden),
            "dueling": self.dueling,
        }


class QNetwork(_DuelingStreams):
    """A multilayer perceptron from observations to Q-values, by default with dueling streams.

    Dueling (Wang et al. 2016, arXiv:1511.06581, eq. 9): all but the last hidden layer are shared;
    a value and an advantage stream each have the last one to themselves, and
    `Q(s,a) = V(s) + A(s,a) - mean_a' A(s,a')`. Most observations call for no particular action;
    V learns what they are worth from every action at once.

    The output layers start small. An untrained network is therefore nearly indifferent between
    actions, and its first targets are the rewards themselves.

    Args:
        observation_size: F.
        num_actions: A.
        hidden: widths of the hidden layers (SiLU between them); empty for a linear Q.
        dueling: False for one plain head.

    Raises:
        ConfigurationError: a size below 1; the message names the argument.

    Example:
        >>> QNetwork(observation_size=38, num_actions=7)(torch.zeros(5, 38)).shape
        torch.Size([5, 7])
    """

    def forward(self, observation: Tensor) -> Tensor:
        """Q-values (..., A) of observations (..., F)."""
        features = self.trunk(observation)
        advantage: Tensor = self.advantage(features)
        if self.value is None:
            return advantage
        value: Tensor = self.value(features)
        return value + advantage - advantage.mean(dim=-1, keepdim=True)


class QuantileNetwork(_DuelingStreams):
    """Quantiles of the return for each action (Dabney et al. 2018, arXiv:1710.10044, section 4.1).

    Quantile i of N stands for the fraction (2i + 1) / 2N. Their mean is therefore the mean return.
    With dueling streams each quantile is a value plus its own advantages, as in `QNetwork`.

    Args:
        observation_size: F.
        num_actions: A.
        quantiles: N.
        hidden: widths of the hidden layers (SiLU between them); empty for a linear map.
        dueling: False for one plain head.

    Raises:
        ConfigurationError: a size below 1; the message names the argument.

    Example:
        >>> network = QuantileNetwork(observation_size=38, num_actions=7, quantiles=16)
        >>> network.quantiles(torch.zeros(5, 38)).shape
        torch.Size([5, 7, 16])
    """

    def __init__(
        self,
        observation_size: int,
        num_actions: int,
        quantiles: int,
        hidden: Sequence[int] = (128, 128),
        dueling: bool = True,
    ) -> None:
        check_integer("quantiles", quantiles, 1, _MOST_QUANTILES)
        super().__init__(
            observation_size, num_actions, hidden, dueling, outputs_per_action=quantiles
        )
        self.num_quantiles = int(quantiles)

    def quantiles(self, observation: Tensor) -> Tensor:
        """Quantiles (..., A, N) of the return from observations (..., F)."""
        features = self.trunk(observation)
        size = (self.num_actions, self.num_quantiles)
        advantage: Tensor = self.advantage(features).unflatten(-1, size)
        if self.value is None:
            return advantage
        value: Tensor = self.value(features).unsqueeze(-2)
        return value + advantage - advantage.mean(dim=-2, keepdim=True)

    def forward(self, observation: Tensor) -> Tensor:
        """Q-values (..., A), the means of the quantiles, of observations (..., F)."""
        return self.quantiles(observation).mean(dim=-1)

    @property
    def config(self) -> dict[str, Any]:
        """The constructor's arguments as plain data: `QuantileNetwork(**config)` rebuilds it."""
        return {**super().config, "quantiles": self.num_quantiles}


class QTable(nn.Module):
    """A table that is looked up like a network; `table` is its only weight and starts at 0.

    Args:
        observation_size: F.
        num_actions: A.
        bins: for each chosen column of the observation, its ascending edges. k edges make k + 1
            bins. A value on an edge belongs to the bin above, and NaN to the last bin. The other
            columns are not looked at.

    Attributes:
        table: (S, A), S the product of the numbers of bins.

    Raises:
        ConfigurationError: no column, one outside the observation, edges that do not ascend, no
            action.

    Example:
        >>> QTable(observation_size=3, num_actions=2, bins={0: [5.0], 2: [0.0, 1.0]}).table.shape
        torch.Size([6, 2])
    """

    table: Tensor

    def __init__(
        self, observation_size: int, num_actions: int, bins: Mapping[int, Sequence[float]]
    ) -> None:
        super().__init__()
        _check_sizes(observation_size, num_actions)
        self.bins = {
            _column(column): tuple(_edge(edge) for edge in edges) for column, edges in bins.items()
        }
        _check_bins(self.bins, observation_size)
        self.observation_size = observation_size
        self.num_actions = num_actions
        states = math.prod(len(edges) + 1 for edges in self.bins.values())
        check_integer("product of the numbers of bins", states, 1, _MOST_STATES)
        self.register_buffer("table", torch.zeros(states, num_actions))
        for column, edges in self.bins.items():
            # On the CPU even where the table is to be read from a file and has no memory yet.
            values = torch.tensor(edges, device="cpu")
            self.register_buffer(_name(column), values, persistent=False)

    def state_of(self, observation: Tensor) -> Tensor:
        """The state index (...) of an observation (..., F); the last column varies fastest."""
        state = torch.zeros(observation.shape[:-1], dtype=torch.long, device=observation.device)
        for column, edges in self.bins.items():
            values = observation[..., column].contiguous()
            state = state * (len(edges) + 1) + torch.bucketize(
                values, self.get_buffer(_name(column)), right=True
            )
        return state

    def forward(self, observation: Tensor) -> Tensor:
        """Q-values (..., A) of observations (..., F)."""
        return self.table[self.state_of(observation)]

    def largest_value(self, limits: Tensor) -> Tensor:
        """The largest |Q|, whatever the limits."""
        return self.table.abs().amax()

    @property
    def config(self) -> dict[str, Any]:
        """The constructor's arguments as plain data: `QTable(**table.config)` rebuilds it."""
        return {
            "observation_size": self.observation_size,
            "num_actions": self.num_actions,
            "bins": {str(column): list(edges) for column, edges in self.bins.items()},
        }


def _name(column: int) -> str:
    return f"edges_{column}"


def _column(name: int | str) -> int:
    """Columns are strings where the bins come from JSON."""
    if isinstance(name, str) and name.isdecimal() and len(name) < 10:
        return int(name)
    check_integer("column of bins", name, 0)
    return int(name)


def _edge(value: float) -> float:
    check_number("edge of bins", value)
    return float(value)


def _check_bins(bins: Mapping[int, Sequence[float]], observation_size: int) -> None:
    if not bins:
        raise ConfigurationError("bins is empty; name at least one column of the observation.")
    for column, edges in bins.items():
        if not 0 <= column < observation_size:
            raise ConfigurationError(
                f"bins: column {column} must lie in an observation of {observation_size}."
            )
        if not edges or not all(low < high for low, high in pairwise(edges)):
            raise ConfigurationError(f"bins[{column}] must ascend strictly; got {edges[:5]}.")


class QEnsemble(nn.Module):
    """The mean Q-values of several networks (Anschel et al. 2017, arXiv:1611.01929, eq. 8).

    The action of one of 64 intervals changes a run's end by little. What a single network prefers
    is therefore partly the noise of its own replay, which independent networks do not share.

    Args:
        members: networks of equal input and output size; an ensemble counts as its members.

    Raises:
        ConfigurationError: no member, or members that do not fit each other.

    Example:
        >>> QEnsemble([QNetwork(38, 7), QNetwork(38, 7)])(torch.zeros(38)).shape
        torch.Size([7])
    """

    def __init__(self, members: Sequence[Network]) -> None:
        super().__init__()
        check_integer("number of members", len(members), 1, _MOST_MEMBERS)
        flat: list[SingleNetwork] = []
        for member in members:
            flat.extend(member.networks if isinstance(member, QEnsemble) else [member])
        sizes = {(m.observation_size, m.num_actions) for m in flat}
        if len(sizes) != 1:
            raise ConfigurationError(
                f"members must be networks of one size (observation, actions); got {sorted(sizes)}."
            )
        self.members = nn.ModuleList(flat)
        self.observation_size = flat[0].observation_size
        self.num_actions = flat[0].num_actions

    @property
    def networks(self) -> list[SingleNetwork]:
        """The members."""
        return [member for member in self.members if isinstance(member, SingleNetwork)]

    def forward(self, observation: Tensor) -> Tensor:
        """Q-values (..., A) of observations (..., F)."""
        return torch.stack([member(observation) for member in self.members]).mean(dim=0)

    def largest_value(self, limits: Tensor) -> Tensor:
        """A bound of the sum of the members' |Q|, whose mean is taken."""
        return torch.stack([member.largest_value(limits) for member in self.networks]).sum()

    @property
    def config(self) -> dict[str, Any]:
        """Plain data from which `build_network` makes the same architecture."""
        return {"members": [network.config for network in self.networks]}


SingleNetwork: TypeAlias = QNetwork | QuantileNetwork | QTable
Network: TypeAlias = SingleNetwork | QEnsemble


def build_network(config: Any) -> Network:
    """The architecture that a network's `config` describes, with fresh weights.

    Raises:
        ConfigurationError: a field is absent, unknown, of another type or out of range.

    Example:
        >>> build_network({"observation_size": 38, "num_actions": 7}).num_actions
        7
    """
    if not isinstance(config, Mapping) or "members" not in config:
        return _build_single(config)
    check_fields("network", config, ("members",))
    check_kind("network.members", config["members"], list, each=dict)
    check_integer("number of members", len(config["members"]), 1, _MOST_MEMBERS)
    return QEnsemble([_build_single(member) for member in config["members"]])


def _build_single(config: Any) -> SingleNetwork:
    sizes = ("observation_size", "num_actions")
    check_fields("network", config, sizes, ("quantiles", "bins", "hidden", "dueling"))
    if "bins" in config:
        check_fields("network", config, (*sizes, "bins"))
        check_kind("network.bins", config["bins"], dict)
        for edges in config["bins"].values():
            check_kind("edges of network.bins", edges, list)
        return QTable(**config)
    check_kind("network.hidden", config.get("hidden", []), list)
    check_kind("network.dueling", config.get("dueling", True), bool)
    return QuantileNetwork(**config) if "quantiles" in config else QNetwork(**config)


def _check_sizes(observation_size: int, num_actions: int) -> None:
    check_integer("observation_size", observation_size, 1, _MOST_FEATURES)
    check_integer("num_actions", num_actions, 1, _MOST_ACTIONS)


def _largest(layers: nn.Sequential, inputs: Tensor) -> Tensor:
    for layer in layers:
        if isinstance(layer, nn.Linear):
            inputs = layer.weight.abs() @ inputs + layer.bias.abs()
    return inputs


def _layers(inputs: int, widths: Sequence[int]) -> nn.Sequential:
    layers: list[nn.Module] = []
    for width in widths:
        layers += [nn.Linear(inputs, width), nn.SiLU()]
        inputs = width
    return nn.Sequential(*layers)


def _head(inputs: int, widths: Sequence[int], outputs: int) -> nn.Sequential:
    output = nn.Linear((inputs, *widths)[-1], outputs)
    with torch.no_grad():
        output.weight.mul_(_INITIAL_OUTPUT_SCALE)
        output.bias.mul_(_INITIAL_OUTPUT_SCALE)
    return _layers(inputs, widths).append(output)
