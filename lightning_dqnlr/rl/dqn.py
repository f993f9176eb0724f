"""Deep Q-learning (Mnih et al. 2015): targets, loss and exploration as functions, and a learner.

The functions name their arguments as the equations do: a transition starts at `tm1` (time t - 1)
and ends at `t`; `discount_t` is gamma^n, and 0 where the episode ended. Terminal rows never
bootstrap, not even from a NaN: a run that blew up has no finite observation to evaluate.
"""

import copy
import math
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional

from lightning_dqnlr.errors import ConfigurationError
from lightning_dqnlr.rl.replay import Transitions

LossKind = Literal["mse", "huber"]
TargetUpdate = Literal["hard", "soft"]


def q_learning_target(r_t: Tensor, discount_t: Tensor, q_t_target: Tensor) -> Tensor:
    """Q-learning's target `r + discount * max_a Q(s', a; theta-)` (Mnih et al. 2015).

    Args:
        r_t: (B,) rewards, n-step returns where transitions span n steps.
        discount_t: (B,) gamma^n, 0 at a terminal.
        q_t_target: (B, A) values of the next observation, by the target network.

    Returns:
        (B,) targets, detached.
    """
    return _bootstrapped(r_t, discount_t, q_t_target.amax(dim=-1))


def double_q_target(
    r_t: Tensor, discount_t: Tensor, q_t_target: Tensor, q_t_selector: Tensor
) -> Tensor:
    """Double Q-learning's target (van Hasselt et al. 2016, arXiv:1509.06461, eq. 4).

    `r + discount * Q(s', argmax_a Q(s', a; theta); theta-)`: the online network selects the action
    and the target network evaluates it, so one network's noise is not both chosen and believed.

    Args:
        r_t: (B,) rewards.
        discount_t: (B,) gamma^n, 0 at a terminal.
        q_t_target: (B, A) values of the next observation, by the target network.
        q_t_selector: (B, A) the same, by the online network.

    Returns:
        (B,) targets, detached.
    """
    a_t = q_t_selector.argmax(dim=-1, keepdim=True)
    return _bootstrapped(r_t, discount_t, q_t_target.gather(-1, a_t).squeeze(-1))


def _bootstrapped(r_t: Tensor, discount_t: Tensor, v_t: Tensor) -> Tensor:
    if not r_t.shape == discount_t.shape == v_t.shape:
        raise ConfigurationError(
            "r_t and discount_t must be (B,) beside q values of (B, A); got shapes "
            f"{tuple(r_t.shape)} and {tuple(discount_t.shape)} for B = {tuple(v_t.shape)}."
        )
    # 0 * nan is nan, hence no plain product. (`torch.where` with a Python number would wait for a
    # GPU to receive it; `masked_fill` does not.)
    return (r_t + (discount_t * v_t).masked_fill(discount_t == 0, 0.0)).detach()


def td_error(q_tm1: Tensor, a_tm1: Tensor, target: Tensor) -> Tensor:
    """Temporal-difference error `target - Q(s, a)`.

    Args:
        q_tm1: (B, A) values of the observation acted on; gradients flow through these only.
        a_tm1: (B,) int64 actions taken.
        target: (B,) targets; detached here.

    Returns:
        (B,) errors.

    Raises:
        ConfigurationError: shapes disagree (a (B, 1) target would silently broadcast to (B, B)).
    """
    return target.detach() - _taken(q_tm1, a_tm1, target)


def td_loss(
    q_tm1: Tensor,
    a_tm1: Tensor,
    target: Tensor,
    *,
    kind: LossKind,
    delta: float = 1.0,
    weights: Tensor | None = None,
) -> Tensor:
    """Mean loss of the temporal-difference errors e.

    "mse" is `e^2`, the DQN loss as published; "huber" is `e^2 / 2` up to |e| = delta and
    `delta * (|e| - delta / 2)` beyond, which bounds each transition's gradient by delta.

    Args:
        q_tm1: (B, A) values of the observation acted on.
        a_tm1: (B,) int64 actions taken.
        target: (B,) targets; detached here.
        kind: the loss of one error.
        delta: where Huber's loss turns linear, in units of Q; unused by "mse".
        weights: (B,) factors of the transitions' losses; the mean stays over B.

    Returns:
        The 0-dim loss.

    Raises:
        ConfigurationError: shapes disagree, or kind is neither "mse" nor "huber".
    """
    taken = _taken(q_tm1, a_tm1, target)
    losses = _elementwise_loss(taken, target.detach(), kind, delta)
    return losses.mean() if weights is None else (weights * losses).mean()


def _elementwise_loss(taken: Tensor, target: Tensor, kind: LossKind, delta: float) -> Tensor:
    if kind == "mse":
        return functional.mse_loss(taken, target, reduction="none")
    if kind == "huber":
        return functional.huber_loss(taken, target, reduction="none", delta=delta)
    raise ConfigurationError(f"kind must be 'mse' or 'huber'; got {kind!r}.")


def _taken(q_tm1: Tensor, a_tm1: Tensor, target: Tensor) -> Tensor:
    if not q_tm1.shape[:-1] == a_tm1.shape == target.shape:
        raise ConfigurationError(
            "a_tm1 and target must be (B,) beside q_tm1 of (B, A); got shapes "
            f"{tuple(a_tm1.shape)}, {tuple(target.shape)} and {tuple(q_tm1.shape)}."
        )
    return q_tm1.gather(-1, a_tm1.unsqueeze(-1)).squeeze(-1)


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

    Raises:
        ConfigurationError: a value out of range; the message names the field.
    """

    double: bool = True
    loss: LossKind = "huber"
    learning_rate: float = 3e-4
    batch_size: int = 512
    target_update: TargetUpdate = "soft"
    target_period: int = 200
    target_tau: float = 0.005
    weight_decay: float = 0.1
    max_grad_norm: float = 10.0
    average_decay: float = 0.9995

    def __post_init__(self) -> None:
        _require(isinstance(self.double, bool), "double", self.double, "True or False")
        _require(self.loss in get_args(LossKind), "loss", self.loss, "'mse' or 'huber'")
        _require(
            self.target_update in get_args(TargetUpdate),
            "target_update",
            self.target_update,
            "'hard' or 'soft'",
        )
        for name in ("batch_size", "target_period"):
            value = getattr(self, name)
            _require(_is_count(value), name, value, "an integer of at least 1")
        self._check_ranges()

    def _check_ranges(self) -> None:
        rate, tau = self.learning_rate, self.target_tau
        _require(0 < rate < math.inf, "learning_rate", rate, "positive and finite")
        _require(0 < tau <= 1, "target_tau", tau, "in (0, 1]")
        decay, average = self.weight_decay, self.average_decay
        _require(0 <= decay < math.inf, "weight_decay", decay, "finite and not negative")
        _require(0 <= average < 1, "average_decay", average, "in [0, 1)")
        norm = self.max_grad_norm
        _require(norm > 0, "max_grad_norm", norm, "positive (math.inf never clips)")


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _require(holds: bool, field: str, value: object, wanted: str) -> None:
    if not holds:
        raise ConfigurationError(f"DQNConfig.{field} must be {wanted}; got {value!r}.")


class DQNLearner:
    """Fits an online Q-network to batches of transitions. One `update` is one step of Adam.

    Args:
        network: maps observations (B, F) to Q-values (B, A); becomes `online`, is moved to
            `device` and trained in place.
        config: the settings.
        device: of all three networks.

    Attributes:
        online: the network being trained; also selects the action in double Q-learning.
        target: its delayed copy, which evaluates.
        average: the Polyak average of `online` after each update, for evaluation.
        updates: how many updates were made.
    """

    def __init__(
        self, network: nn.Module, config: DQNConfig, device: torch.device | str = "cpu"
    ) -> None:
        self.config = config
        self.device = torch.device(device)
        self.online = network.to(self.device)
        self.target = copy.deepcopy(self.online).requires_grad_(False).eval()
        self.average = copy.deepcopy(self.online).requires_grad_(False).eval()
        self.updates = 0
        self._optimizer = torch.optim.AdamW(
            self.online.parameters(),
            lr=config.learning_rate,
            weight_decay=config.weight_decay,
            fused=True,
        )

    def update(self, batch: Transitions) -> Tensor:
        """One step on the batch's mean loss, then the target and average networks follow.

        Args:
            batch: transitions on the learner's device; observations finite, except that of the
                next observation where discount is 0.

        Returns:
            The 0-dim loss before the step, detached and still on the device: nothing here waits
            for the device.
        """
        loss = self._loss(batch)
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.online.parameters(), self.config.max_grad_norm)
        self._optimizer.step()
        self.updates += 1
        self._follow()
        return loss.detach()

    def _loss(self, batch: Transitions) -> Tensor:
        target = self._target(batch)
        q_tm1 = self.online(batch.observation)
        return td_loss(q_tm1, batch.action, target, kind=self.config.loss)

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
        """A snapshot in plain containers and tensors, loadable with `weights_only=True`."""
        return copy.deepcopy(
            {
                "online": dict(self.online.state_dict()),
                "target": dict(self.target.state_dict()),
                "average": dict(self.average.state_dict()),
                "optimizer": self._optimizer.state_dict(),
                "updates": self.updates,
            }
        )

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a snapshot exactly as the learner it was taken from would have.

        Raises:
            ConfigurationError: state lacks an entry.
            RuntimeError: the weights are those of a network of another shape (from torch).
        """
        missing = {"online", "target", "average", "optimizer", "updates"} - state.keys()
        if missing:
            raise ConfigurationError(
                f"state lacks {sorted(missing)}; pass what DQNLearner.state_dict() returned."
            )
        self.online.load_state_dict(state["online"])
        self.target.load_state_dict(state["target"])
        self.average.load_state_dict(state["average"])
        # The optimizer would keep the very tensors it is given and go on to write into them.
        self._optimizer.load_state_dict(copy.deepcopy(state["optimizer"]))
        self.updates = int(state["updates"])


@torch.no_grad()
def _move(follower: nn.Module, leader: nn.Module, fraction: float) -> None:
    """Move the follower's weights this fraction of the way to the leader's; 1 copies exactly."""
    for weight, goal in zip(follower.parameters(), leader.parameters(), strict=True):
        weight.lerp_(goal, fraction)
    for buffer, newest in zip(follower.buffers(), leader.buffers(), strict=True):
        buffer.copy_(newest)
