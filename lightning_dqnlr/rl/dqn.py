"""Deep Q-learning (Mnih et al. 2015): the settings and the learner."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import torch
from torch import Tensor, nn

from lightning_dqnlr.checks import Count, NotNegative, Positive, check_fields, check_settings
from lightning_dqnlr.control.spec import ControllerSpec
from lightning_dqnlr.errors import ConfigurationError
from lightning_dqnlr.policy.network import Network, QNetwork
from lightning_dqnlr.rl.learner import LearnerConfig, Update
from lightning_dqnlr.rl.replay import ReplayConfig, Transitions, UniformReplayConfig
from lightning_dqnlr.rl.td import LossKind, double_q_target, q_learning_target, td_error, td_loss

_NETWORKS = ("online", "target", "average")
TargetUpdate = Literal["hard", "soft"]


@dataclass(frozen=True)
class DQNConfig:
    """Settings of the learner. The defaults are double DQN; `classic` is in the comments.

    Attributes:
        double: select with the online network, evaluate with the target (classic: False).
        loss: of one temporal-difference error (classic: "mse").
        learning_rate: Adam's.
        batch_size: transitions per update, for whoever samples the batches.
        target_update: "hard" copies online to target every `target_period` updates (classic);
            "soft" moves the target by the fraction `target_tau` at every update.
        target_period: in updates.
        target_tau: in (0, 1].
        weight_decay: decoupled from the gradient, as in AdamW.
        max_grad_norm: the gradient's norm is clipped here; `math.inf` never clips.
        average_decay: of the Polyak average of the online weights, used for evaluation.
        hidden: widths of the network's hidden layers.
        dueling: value and advantage streams (classic: False).

    Raises:
        ConfigurationError: a value out of range; the message names the field.

    Example:
        >>> learner = DQNConfig(double=False, hidden=(32,)).build(ControllerSpec())
        >>> learner.online(torch.zeros(5, 42)).shape
        torch.Size([5, 7])
    """

    double: bool = True
    loss: LossKind = "huber"
    learning_rate: Positive = 3e-4
    batch_size: Count = 512
    target_update: TargetUpdate = "soft"
    target_period: Count = 200
    target_tau: Annotated[float, "(0, 1]"] = 0.005
    weight_decay: NotNegative = 0.1
    max_grad_norm: Annotated[float, "(0, inf]"] = 10.0
    average_decay: Annotated[float, "[0, 1)"] = 0.9995
    hidden: tuple[Count, ...] = (128, 128)
    dueling: bool = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "hidden", tuple(self.hidden))
        check_settings(self, f"{type(self).__name__}.")

    def build(self, spec: ControllerSpec, device: torch.device | str = "cpu") -> DQNLearner:
        network = QNetwork(len(spec.features), len(spec.actions), self.hidden, self.dueling)
        return DQNLearner(network, self, device)


class DQNLearner:
    """Fits an online Q-network to batches of transitions. One `update` is one step of Adam.

    Args:
        network: maps observations (B, F) to Q-values (B, A); becomes `online`, trained in place.
        config: the settings.
        device: of all three networks.

    Attributes:
        target: the delayed copy of `online`, which evaluates.
        average: the Polyak average of `online` after each update.
    """

    def __init__(
        self, network: Network, config: DQNConfig, device: torch.device | str = "cpu"
    ) -> None:
        self.config = config
        self.device = torch.device(device)
        self.online: Network = network.to(self.device)
        self.target: Network = copy.deepcopy(self.online).requires_grad_(False).eval()
        self.average: Network = copy.deepcopy(self.online).requires_grad_(False).eval()
        self.updates = 0
        self._optimizer = torch.optim.AdamW(
            self.online.parameters(),
            lr=config.learning_rate,
            weight_decay=config.weight_decay,
            fused=True,
        )

    def update(self, batch: Transitions, weights: Tensor | None = None) -> Update:
        """One step on the batch's mean loss; nothing here waits for the device."""
        found = self._loss(batch, weights)
        self._optimizer.zero_grad(set_to_none=True)
        found.loss.backward()
        nn.utils.clip_grad_norm_(self.online.parameters(), self.config.max_grad_norm)
        self._optimizer.step()
        self.updates += 1
        self._follow()
        return Update(found.loss.detach(), found.errors)

    def _loss(self, batch: Transitions, weights: Tensor | None) -> Update:
        target = self._target(batch)
        q_tm1 = self.online(batch.observation)
        loss = td_loss(q_tm1, batch.action, target, kind=self.config.loss, weights=weights)
        return Update(loss, td_error(q_tm1.detach(), batch.action, target))

    @torch.no_grad()
    def _target(self, batch: Transitions) -> Tensor:
        q_t_target = self.target(batch.next_observation)
        if not self.config.double:
            return q_learning_target(batch.reward, batch.discount, q_t_target)
        q_t_selector = self.online(batch.next_observation)
        return double_q_target(batch.reward, batch.discount, q_t_target, q_t_selector)

    def _follow(self) -> None:
        config = self.config
        if config.target_update == "soft":
            _move(self.target, self.online, config.target_tau)
        elif self.updates % config.target_period == 0:
            _move(self.target, self.online, 1.0)
        # A shorter memory at first: else the average is the untrained network for 1/(1 - decay)
        # updates. (1 + n) / (10 + n) is the usual warm-up of weight averages.
        decay = min(config.average_decay, (1 + self.updates) / (10 + self.updates))
        _move(self.average, self.online, 1.0 - decay)

    def state_dict(self) -> dict[str, Any]:
        return copy.deepcopy(
            {
                **{name: dict(getattr(self, name).state_dict()) for name in _NETWORKS},
                "optimizer": self._optimizer.state_dict(),
                "updates": self.updates,
            }
        )

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues as the learner that the snapshot was taken from would have.

        Raises:
            ConfigurationError: state lacks an entry.
            RuntimeError: the weights are those of a network of another shape (from torch).
        """
        check_fields("the learner's state", state, (*_NETWORKS, "optimizer", "updates"))
        for name in _NETWORKS:
            getattr(self, name).load_state_dict(state[name])
        # The optimizer would keep the very tensors it is given and go on to write into them.
        self._optimizer.load_state_dict(copy.deepcopy(state["optimizer"]))
        for weight, own in self._optimizer.state.items():  # torch does not look at it
            shapes = {name: value.shape for name, value in own.items()}
            if shapes != {"step": (), "exp_avg": weight.shape, "exp_avg_sq": weight.shape}:
                raise ConfigurationError(
                    f"optimizer was saved with {shapes} for a weight of shape "
                    f"{tuple(weight.shape)}; pass what DQNLearner.state_dict() returned."
                )
        self.updates = int(state["updates"])


@torch.no_grad()
def _move(follower: nn.Module, leader: nn.Module, fraction: float) -> None:
    """Moves the weights this fraction of the way to the leader's; 1 copies exactly."""
    for weight, goal in zip(follower.parameters(), leader.parameters(), strict=True):
        weight.lerp_(goal, fraction)
    for buffer, newest in zip(follower.buffers(), leader.buffers(), strict=True):
        buffer.copy_(newest)


@dataclass(frozen=True)
class Agent:
    """What learns. The length of its returns belongs to the rollouts (`CollectConfig.n_step`).

    Args:
        learner: of the Q-values.
        replay: which transitions an update is made of.

    Example:
        >>> agent = Agent(DQNConfig(dueling=False), UniformReplayConfig())
    """

    learner: LearnerConfig = field(default_factory=DQNConfig)
    replay: ReplayConfig = field(default_factory=UniformReplayConfig)
