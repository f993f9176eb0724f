"""Temporal-difference targets, errors and losses of Q-learning, as functions.

The functions name their arguments as the equations do. A transition starts at `tm1` (time t - 1)
and ends at `t`. `discount_t` is gamma^n, and 0 where the episode ended. Terminal rows never
bootstrap, not even from a NaN: a run that blew up has no finite observation to evaluate.
"""

from typing import Literal, get_args

from torch import Tensor
from torch.nn import functional

from lightning_dqnlr.checks import check_choice
from lightning_dqnlr.errors import ConfigurationError

LossKind = Literal["mse", "huber"]


def q_learning_target(r_t: Tensor, discount_t: Tensor, q_t_target: Tensor) -> Tensor:
    """Q-learning's target `r + discount * max_a Q(s', a; theta-)` (Mnih et al. 2015).

    Args:
        r_t: (B,) rewards, n-step returns where transitions span n steps.
        discount_t: (B,) gamma^n, 0 at a terminal.
        q_t_target: (B, A) values of the next observation, by the target network.

    Returns:
        (B,) targets, detached.
    """
    return bootstrapped(r_t, discount_t, q_t_target.amax(dim=-1))


def double_q_target(
    r_t: Tensor, discount_t: Tensor, q_t_target: Tensor, q_t_selector: Tensor
) -> Tensor:
    """Double Q-learning's target (van Hasselt et al. 2016, arXiv:1509.06461, eq. 4).

    `r + discount * Q(s', argmax_a Q(s', a; theta); theta-)`: the online network, whose values
    (B, A) are the selector, chooses the action and the target network evaluates it. So one
    network's noise is not both chosen and believed. The rest is as in `q_learning_target`.
    """
    a_t = q_t_selector.argmax(dim=-1, keepdim=True)
    return bootstrapped(r_t, discount_t, q_t_target.gather(-1, a_t).squeeze(-1))


def bootstrapped(r_t: Tensor, discount_t: Tensor, v_t: Tensor) -> Tensor:
    """The target `r + discount * v`, detached, of one shape; 0 * v is 0 even where v is NaN."""
    if not r_t.shape == discount_t.shape == v_t.shape:
        raise ConfigurationError(
            "r_t and discount_t must be (B,) beside q values of (B, A); got shapes "
            f"{tuple(r_t.shape)} and {tuple(discount_t.shape)} for B = {tuple(v_t.shape)}."
        )
    # 0 * nan is nan, hence no plain product. (`torch.where` with a Python number would wait for a
    # GPU to receive it; `masked_fill` does not.)
    return (r_t + (discount_t * v_t).masked_fill(discount_t == 0, 0.0)).detach()


def td_error(q_tm1: Tensor, a_tm1: Tensor, target: Tensor) -> Tensor:
    """Temporal-difference errors `target - Q(s, a)`, (B,); gradients flow through Q only.

    Args:
        q_tm1: (B, A) values of the observation acted on.
        a_tm1: (B,) int64 actions taken.
        target: (B,) targets.

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
    """Mean loss, 0-dim, of the temporal-difference errors e; see `td_error` for them.

    "mse" is `e^2`, the DQN loss as published. "huber" is `e^2 / 2` up to |e| = delta and
    `delta * (|e| - delta / 2)` beyond. Huber's loss bounds each transition's gradient by delta. The
    weights (B,) are factors of the transitions' losses; the mean stays over B.

    Raises:
        ConfigurationError: shapes disagree, or kind is neither "mse" nor "huber".
    """
    taken = _taken(q_tm1, a_tm1, target)
    check_choice("kind", kind, get_args(LossKind))
    if kind == "mse":
        losses = functional.mse_loss(taken, target.detach(), reduction="none")
    else:
        losses = functional.huber_loss(taken, target.detach(), reduction="none", delta=delta)
    return losses.mean() if weights is None else (weights * losses).mean()


def _taken(q_tm1: Tensor, a_tm1: Tensor, target: Tensor) -> Tensor:
    if not q_tm1.shape[:-1] == a_tm1.shape == target.shape:
        raise ConfigurationError(
            "a_tm1 and target must be (B,) beside q_tm1 of (B, A); got shapes "
            f"{tuple(a_tm1.shape)}, {tuple(target.shape)} and {tuple(q_tm1.shape)}."
        )
    return q_tm1.gather(-1, a_tm1.unsqueeze(-1)).squeeze(-1)
