"""`OptimizerDriver`: the learning-rate controller at the wheel of one torch optimizer.

`DQNLRCallback` and `DQNLRScheduler` differ only in how they learn of an optimizer step. What
follows from a step is here, once, and follows the vectorised environment step for step. The order
is `before_step` with the gradients in place, `after_step` once the optimizer has moved the weights,
and `finish_step` with the training loss. The telemetry holds the step under way. At the end of an
interval the statistics travel to the host in one transfer; controller and policy live there. On
the steps that are not observed only the loss is added up.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from lightning_dqnlr.control.alarm import Alarm, alarm_on
from lightning_dqnlr.control.controller import LRController
from lightning_dqnlr.control.telemetry import IntervalStats, Telemetry
from lightning_dqnlr.errors import (
    ConfigurationError,
    NonFiniteLossError,
    UnsupportedTrainingError,
    silent_optimizer,
)
from lightning_dqnlr.host.best_state import BestState
from lightning_dqnlr.host.decisions import (
    DECAY_BEGINS,
    AppliedDecision,
    DecisionLog,
    DecisionRecord,
)
from lightning_dqnlr.host.driver_state import check_state, own_state
from lightning_dqnlr.host.group_rates import GroupRates
from lightning_dqnlr.host.options import ControlOptions, identity
from lightning_dqnlr.host.ranks import (
    from_rank_zero,
    largest_over_ranks,
    mean_over_ranks,
    of_all_ranks,
    sum_over_ranks,
)
from lightning_dqnlr.host.shards import ProbedModel, is_sharded
from lightning_dqnlr.host.snapshot import Snapshot
from lightning_dqnlr.policy.choice import Choice, Policy

_MOST_HALVINGS = 16
_LOGGER = logging.getLogger("lightning_dqnlr")

GradientScale = Callable[[], float | Tensor | None]


class OptimizerDriver:
    """Sets the learning rates of one optimizer.

    The group with the largest learning rate is the reference; the others keep their ratio to it.
    Groups that join later keep their ratio to the reference's rate of that moment. The statistics
    go on describing the parameters that were there, and trainable, at the first step.

    Args:
        optimizer: any `torch.optim` optimizer but LBFGS and Rprop.
        policy: chooses the actions.
        options: of the run.
        module: whose buffers and frozen followers belong to the training state; None for none.
        averages: averages of that module, which belong to it too.
        rates: sets the learning rates; None to set those of all groups outright.
        across_ranks: whether this is one process of a parallel run. Statistics are then averaged
            over all processes, those of shards are added up, and all follow rank 0.

    Attributes:
        controller: makes the learning rate; it is the one home of that rate.
        log: its decisions on record.
        stepped: whether the optimizer has stepped since the last `finish_step`.

    Raises:
        ConfigurationError: if all learning rates are zero, or for `save_snapshot` of sharded
            weights.
        UnsupportedTrainingError: for LBFGS and Rprop.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        policy: Policy,
        options: ControlOptions,
        *,
        module: nn.Module | None = None,
        averages: Sequence[nn.Module] = (),
        rates: GroupRates | None = None,
        across_ranks: bool = False,
    ) -> None:
        self.optimizer = optimizer
        self.policy = policy
        self.options = options = options.filled_in(policy)
        self.stepped = False
        self.controller = LRController(
            policy.spec,
            horizon=options.horizon,
            min_lr=options.min_lr,
            max_lr=options.max_lr,
            circuit_breaker=options.circuit_breaker or False,
        )
        self._across_ranks = across_ranks
        self._sharded = any(is_sharded(p) for g in optimizer.param_groups for p in g["params"])
        self._spread = self._sharded and across_ranks  # sums over the processes are the model's
        if self._sharded and options.save_snapshot:
            raise ConfigurationError(
                "save_snapshot=True: each process holds copies of its own shards, and a checkpoint "
                "would keep those of one process. Leave save_snapshot out."
            )
        self._generator = torch.Generator().manual_seed(options.seed)
        self._rates = rates or GroupRates(optimizer)
        breaks = options.circuit_breaker
        place = "cpu" if options.snapshot == "cpu" else None
        self._snapshot = Snapshot(optimizer, module, averages, place) if breaks else None
        self._best = BestState(optimizer, module, averages) if breaks else None
        self.log = DecisionLog(self.controller, climbing=options.start == "auto")
        self._hooks: list[RemovableHandle] = []
        self._over = False  # whether it has been said that the horizon is over
        self._probed: list[int] = []  # which of the optimizer's parameters the probe looks at
        self._parameters: list[Tensor] = []
        self._weights = torch.zeros(0)  # the probe's, ahead of the step under way
        self._telemetry: Telemetry | None = None  # None before the first step
        self._alarm = Alarm()  # that of the losses' device from the first step on

    @property
    def trace(self) -> list[DecisionRecord]:
        """One plain record per decision."""
        return self.log.trace

    @property
    def begun(self) -> bool:
        """Whether it has looked at a step."""
        return self._telemetry is not None

    @property
    def lr(self) -> float:
        """The reference group's learning rate, which the coming step uses."""
        return self._rates.lr

    def watch_steps(self, before: Callable[..., None] | None = None) -> None:
        """Has the optimizer call `after_step` after each step, and `before` ahead of it.

        Args:
            before: takes the arguments of torch's hooks.

        Raises:
            UnsupportedTrainingError: if the optimizer cannot tell of its steps.
        """
        try:
            if before is not None:
                self._hooks.append(self.optimizer.register_step_pre_hook(before))
            hook = self.optimizer.register_step_post_hook(lambda *_: self.after_step())
            self._hooks.append(hook)
        except AttributeError as error:  # its __init__ did not call torch's
            raise silent_optimizer(self.optimizer) from error

    def close(self) -> None:
        """Takes the hooks off the optimizer; its learning rates stay as they are."""
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()
        if self._snapshot is not None and self._best is not None:
            self._snapshot.close()
            self._best.close()

    def before_step(self, gradient_scale: GradientScale = lambda: None) -> None:
        """Looks at gradients and weights just before an optimizer step, if it is observed.

        Args:
            gradient_scale: gives what the gradients are still multiplied by (mixed precision).
        """
        telemetry = self._telemetry or self._begin()
        if telemetry.total_steps == self.controller.horizon:
            self._say_that_the_horizon_is_over()
        self._rates.hold()
        if self._snapshot is not None:
            self._snapshot.adopt()
        if not telemetry.observing:
            return
        gradient = self._model.read_gradient()
        scale = gradient_scale()
        if scale is not None:
            gradient /= scale
        # Within one step, SAM calls a second time, at weights that it has moved for the gradient.
        if not telemetry.half_seen:
            self._weights = self._model.read_weights()
        telemetry.before(gradient, self._weights)
        if telemetry.total_steps == 0:
            self._set_start(scale)

    def after_step(self) -> None:
        """Notes a real optimizer step, and looks at the weights."""
        # A fused optimizer is called even for a step that the gradient scaler makes it skip.
        found_inf = getattr(self.optimizer, "found_inf", None)
        if found_inf is not None and bool(found_inf):
            return
        self.stepped = True
        if self._telemetry is not None and self._telemetry.half_seen:
            self._telemetry.after(self._model.read_weights())

    def finish_step(self, loss: Tensor) -> bool:
        """Takes the training loss of the step just made; at an interval's end, decides.

        Args:
            loss: scalar, on any device, detached.

        Returns:
            Whether a decision was taken.

        Raises:
            NonFiniteLossError: if the very first loss is NaN or infinite.
        """
        telemetry = self._telemetry
        if telemetry is None or telemetry.missed:  # a step made behind our back
            self.forget_step()
            return False
        self.stepped = False
        if telemetry.step == 0 and bool(self.controller.history.restored):
            self._alarm.level = float(self.controller.alarm_level(loss.float().cpu()))
        usable = self._alarm.add(loss)
        telemetry.add_loss(usable if telemetry.total_steps else loss)
        ruined = self._snapshot is not None and self._ruined(self._snapshot)
        decides = telemetry.complete or ruined
        if decides:
            self._decide(telemetry, ruined)
        return decides

    def _ruined(self, snapshot: Snapshot) -> bool:
        """Whether the interval cannot go on; the same on all processes."""
        if self._alarm.known_bad and not snapshot.sound():
            self._alarm.ring()
        return self._alarm.rings()

    def secure(self) -> bool:
        """Undoes the open interval if anything in it is ruined; for before anything outside looks.

        Validation, a checkpoint and the end of an epoch fall between two decisions. All processes
        of a data-parallel run call this at the same time.

        Returns:
            Whether the interval was undone.
        """
        telemetry = self._telemetry
        if telemetry is None or self._snapshot is None or not (telemetry.step or self.stepped):
            return False
        if self._all_agree(self._snapshot.sound() and not self._alarm.suspects):
            return False
        if telemetry.step and not self.stepped:
            self._decide(telemetry, ruined=True)
        else:  # between an update and its loss, which is going to raise the alarm
            self._put_back(self._snapshot)
        return True

    def rescue(self) -> None:
        """Puts the last proven state back without a decision, if the present one is not sound.

        For the moment of an exception, when the processes of a run no longer agree. One process's
        shard stays, because the others' would not go back with it.
        """
        if self._snapshot is not None and self.begun and not self._sharded:
            self._put_back(self._snapshot)

    @torch.no_grad()
    def _put_back(self, snapshot: Snapshot) -> None:
        """Goes back; all processes of a sharded run do, since the ruin may be in one's shard."""
        if self._sharded or not snapshot.sound():
            snapshot.restore()
            self._alarm.ring()

    def keep_best(self) -> None:
        """Copies the state, because validation has never been better; not without a breaker."""
        if self._best is not None and self._telemetry is not None:
            self._best.keep(self.controller.history, self._telemetry.total_steps)

    def come_down(self, steps: int) -> None:
        """Ends the run in `steps` steps, with a rate that falls to zero from the best state on."""
        self.controller.come_down(self.now, steps)
        self.log.note(DECAY_BEGINS)
        self._over = True  # whoever calls says what becomes of steps beyond
        self.back_to_best()

    def back_to_best(self) -> None:
        """Puts back the state that `keep_best` copied, if it did, and begins an interval there."""
        telemetry = self._telemetry
        if telemetry is None:
            return
        history = None if self._best is None else self._best.restore()
        self.controller.begin_interval(self.now, history)
        self._rates.set(float(self.controller.lr))
        if history is not None and self._snapshot is not None:
            for _ in range(2):  # the breaker must not go back behind it
                self._snapshot.take(self.controller.step)
        self._begin_interval(telemetry)

    @property
    def now(self) -> int:
        """Steps so far, those of the open interval included."""
        return self.controller.step + (0 if self._telemetry is None else self._telemetry.step)

    def forget_step(self) -> None:
        """Drops what was seen of a step that is not to be counted."""
        self.stepped = False
        if self._telemetry is not None:
            self._telemetry.forget_step()

    def _say_that_the_horizon_is_over(self) -> None:
        if not self._over:
            _LOGGER.warning(
                "the run goes on past its horizon of %s steps; its learning rate has decayed and "
                "stays low. Give the number of steps that you train as horizon.",
                self.controller.horizon,
            )
        self._over = True

    def _begin(self, probed: Sequence[int] | None = None, step: int = 0) -> Telemetry:
        """Fixes the probe. Late, because lazy layers get their shapes in the first forward pass."""
        everything = [p for group in self.optimizer.param_groups for p in group["params"]]
        if probed is None:
            probed = [i for i, p in enumerate(everything) if p.requires_grad and p.numel()]
        self._parameters = [everything[i] for i in probed]
        devices = {p.device for p in self._parameters}
        if len(devices) != 1:
            raise UnsupportedTrainingError(
                f"optimizer holds trainable parameters on {len(devices)} devices; it must hold "
                "some, and all on one device (or replicated by DDP)."
            )
        self._probed = list(probed)
        self._rates.adopt_new_groups()
        self._model = ProbedModel(self._parameters, self.policy.spec.probe_size, self._sharded)
        probe = self._model.probe
        self._telemetry = Telemetry(
            len(probe),
            device=devices.pop(),
            lecun_norm=probe.lecun_norm,
            weight_floor=probe.weight_floor,
        )
        device = self._parameters[0].device
        agree = partial(largest_over_ranks, device=device) if self._across_ranks else None
        self._alarm = alarm_on(device, agree)
        if self._snapshot is not None:
            self._snapshot.take(step)
        return self._telemetry

    def _set_start(self, gradient_scale: float | Tensor | None) -> None:
        """Once, so that all of the first gradient can be looked at: the probe may miss it."""
        if self.options.start == "optimizer":
            self.controller.start(torch.tensor(self._rates.reference))
        else:
            gradient = self._model.gradient_norm()
            if gradient_scale is not None:
                gradient = gradient / float(gradient_scale)
            weights = self._model.weight_norm()
            follows_gradient = isinstance(self.optimizer, torch.optim.SGD)
            self.controller.safe_start(gradient, weights, self._model.probe, follows_gradient)
        self._rates.set(float(self.controller.lr))

    @torch.no_grad()
    def _decide(self, telemetry: Telemetry, ruined: bool = False) -> None:
        self._rates.hold()
        self._rates.adopt_new_groups()
        stats = self._read(telemetry, ruined)
        used_lr = self.lr
        decision = self.controller.observe(stats, torch.tensor(ruined))
        tripped = bool(decision.tripped)
        restored_step = self._restore_or_keep(tripped, bool(decision.healthy))
        choice = self._choose(decision.observation)
        before = self.controller.history.log_scale
        self.controller.apply(choice.action)
        self._rates.set(float(self.controller.lr))
        self._begin_interval(telemetry)
        self.log.add(
            AppliedDecision(
                stats=stats,
                action=int(self.controller.taken(choice.action)),
                q_values=choice.q_values,
                used_lr=used_lr,
                next_lr=self.lr,
                applied=float(self.controller.history.log_scale - before),
                tripped=tripped,
                restored_step=restored_step,
                cut=bool(decision.blamed),
            )
        )

    def _begin_interval(self, telemetry: Telemetry) -> None:
        """Shorter ones after trips in a row, so that one of them can end before the next mishap."""
        controller = self.controller
        history = controller.history
        steps = controller.interval >> min(int(history.streak), _MOST_HALVINGS)
        telemetry.begin(max(1, steps))
        typical = history.loss + history.offset
        self._alarm.begin(float(controller.alarm_level()), float(typical))

    def _all_agree(self, sound: bool) -> bool:
        """Whether it holds on all processes."""
        if not self._across_ranks:
            return sound
        return not largest_over_ranks(float(not sound), self._parameters[0].device)

    def _read(self, telemetry: Telemetry, ruined: bool) -> IntervalStats:
        sound = self._snapshot is None or self._all_agree(self._snapshot.sound())
        if self._snapshot is not None and not sound:  # as a checkpoint saved before this would do
            self._put_back(self._snapshot)
        weights = self._model.read_weights()
        reduce = mean_over_ranks if self._across_ranks else None
        gather = sum_over_ranks if self._spread else None
        stats = telemetry.read(weights, "cpu", reduce, gather)
        if self.controller.decisions == 0 and not bool(stats.losses[..., 0].isfinite()):
            raise NonFiniteLossError(
                f"the training loss of the very first step is {stats.losses[..., 0].item()}; no "
                "learning rate can mend that. Look for NaN or infinite inputs, a log or a division "
                "of zero in the loss, or an initialisation that overflows."
            )
        if self._snapshot is not None:
            finite = sound and (self._alarm.finite or not ruined)
            stats = stats._replace(finite=stats.finite & self._all_agree(finite))
        return stats

    def _choose(self, observation: Tensor) -> Choice:
        choice = self.policy.choose(observation, self.options.epsilon, self._generator)
        if not self._across_ranks:
            return choice
        action = from_rank_zero(choice.action, self._parameters[0].device)
        return choice._replace(action=action)

    def _restore_or_keep(self, tripped: bool, healthy: bool) -> int | None:
        """Acts on the breaker's verdict; returns the step of the state that was restored."""
        if self._snapshot is None:
            return None
        if tripped:
            return self._snapshot.restore()
        if healthy:
            self._snapshot.take(self.controller.step)
        return None

    def state_dict(self) -> dict[str, Any]:
        """Tensors and builtins: everything to go on exactly, in the middle of an interval too.

        Without `save_snapshot` the two copies are left out. A run that is resumed then takes the
        state that it is resumed from for a healthy one, until it has two of its own.
        """
        kept = self.options.save_snapshot
        own = {
            "alarm": self._alarm.state_dict(),
            "telemetry": None if self._telemetry is None else self._telemetry.state_dict(),
        }
        return {
            "policy": identity(self.policy),
            "stepped": self.stepped,
            **own,
            **({"of_ranks": of_all_ranks(own)} if self._spread else {}),
            "base_lrs": list(self._rates.base),
            "probed": list(self._probed),
            "sizes": [p.numel() for p in self._parameters],
            "controller": self.controller.state_dict(),
            "snapshot": self._snapshot.state_dict() if kept and self._snapshot else None,
            "generator": self._generator.get_state(),
            "record": self.log.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores what `state_dict` returned, and sets the learning rates.

        Weights and optimizer state are the host's to restore, before this. The horizon becomes the
        saved one.

        Raises:
            ConfigurationError: if the state is of another optimizer, model or policy.
        """
        check_state(state, self.policy, self.optimizer)
        state = {**state, **own_state(state, spread=self._spread)}
        self.stepped = state.get("stepped", False)  # saved between a step and its loss
        self._rates.base = list(state["base_lrs"])
        self.controller.load_state_dict(state["controller"])
        self._generator.set_state(state["generator"].cpu())
        self.log.load_state_dict(state["record"])
        if state["probed"]:
            step = state["telemetry"]["counters"][2]
            self._begin(state["probed"], step).load_state_dict(state["telemetry"])
            if "alarm" in state:  # older versions had none
                self._alarm.load_state_dict(state["alarm"])
            self._rates.set(float(self.controller.lr))
        if self._snapshot is not None and state["snapshot"] and state["snapshot"]["copies"]:
            self._snapshot.load_state_dict(state["snapshot"])

    def change_horizon(self, horizon: int | None) -> None:
        """Sets the horizon in the middle of a run, with a warning if it was another."""
        saved = self.controller.horizon
        if horizon != saved:
            was = f"was {saved} steps and" if saved else "was unknown and"
            words = "the run's horizon %s is %s steps now; the learning rate follows the new one."
            _LOGGER.warning(words, was, horizon)
            self.controller.horizon = horizon
