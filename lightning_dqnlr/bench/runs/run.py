"""One run of the benchmark: a method trains a task in a real Trainer and leaves a `Record`.

All methods of one (task, seed) see the same initial weights, batches and stream of random numbers.
They can therefore be compared in pairs.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from torch.optim import Optimizer
from torch.utils import _pytree as pytree

from lightning_dqnlr.bench.methods.plan import Method, Plan, Setting
from lightning_dqnlr.bench.runs.evaluation import Evaluation
from lightning_dqnlr.bench.runs.record import Record, RunKey
from lightning_dqnlr.bench.tasks.task import BenchTask
from lightning_dqnlr.envs.process import RandomStream, interruptible
from lightning_dqnlr.envs.replicated_optimizer import configured_optimizer
from lightning_dqnlr.envs.trainer_data import quiet, task_loader, task_trainer
from lightning_dqnlr.errors import MissingPackageError, PolicyFileError
from lightning_dqnlr.files import finite_or_none
from lightning_dqnlr.host.group_rates import GroupRates
from lightning_dqnlr.tasks.task import Task


@dataclass(frozen=True)
class PlannedRun:
    """One run of a suite.

    Attributes:
        task: what to train, not yet opened.
        method: sets the learning rate.
        lr: the user's, or the peak of a schedule; None for the module's own.
        seed: of weights, data order and dropout.
        key: of the record.
        device: kind of device to train on.
        evaluations: about how many points the curve has besides the one before training.
    """

    task: BenchTask
    method: Method
    lr: float | None
    seed: int
    key: RunKey
    device: str = "cpu"
    evaluations: int = 24

    def make(self, task: Task) -> Record:
        """Trains the opened task; returns the record of a run that diverged or raised as well.

        Raises:
            MissingPackageError: if the method's own package is not installed.
            PolicyFileError: if the method's policy cannot be read.
            KeyboardInterrupt: when interrupted; nothing else that happens in the run is raised.
        """
        attempt = _Attempt(self, Setting(task, self.seed, self.lr, self.device))
        with quiet():
            attempt.make()
        return attempt.record()


class _Attempt:
    """A run that may fail at any point, and what is known of it by then."""

    def __init__(self, planned: PlannedRun, setting: Setting) -> None:
        self._planned = planned
        self._setting = setting
        self._observer = Observer(setting.task, planned.evaluations)
        self._plan = Plan()
        self._planning = 0.0
        self._parameters = 0
        self._failure: str | None = None

    def make(self) -> None:
        try:
            with interruptible():
                self._train()
        except (MissingPackageError, PolicyFileError):
            raise
        except SystemExit as stop:
            self._failure = f"SystemExit: {stop}"
        except Exception as error:  # whatever a module or an optimizer may raise
            self._failure = f"{type(error).__name__}: {error}"

    def _train(self) -> None:
        setting = self._setting
        task = setting.task
        began = time.perf_counter()
        self._plan = plan = self._planned.method.plan(setting)
        self._planning = time.perf_counter() - began
        module = task.build(setting.seed)
        self._parameters = sum(p.numel() for p in module.parameters() if p.requires_grad)
        self._observer.plan = plan
        _follow_plan(module, plan, self._observer)
        with RandomStream(setting.seed, setting.device).active():
            callbacks = [self._observer, *plan.callbacks]
            trainer = task_trainer(module, task, callbacks, setting.device)
            trainer.fit(module, task_loader(task, setting.seed))

    def record(self) -> Record:
        seen = self._observer
        task = self._setting.task
        curve = seen.curve()
        train = curve["train"]
        validation = curve["validation"]
        ended = seen.ended and self._failure is None
        chose = self._plan.tries > 1  # else planning was reading files, not training
        return Record(
            **self._planned.key._asdict(),
            split=self._planned.task.split,
            optimizer=task.optimizer,
            horizon=task.horizon,
            batch_size=task.batch_size,
            parameters=self._parameters,
            initial_train=_first(train),
            initial_validation=_first(validation),
            final_train=train[-1] if ended else None,
            final_validation=validation[-1] if ended else None,
            curve=curve,
            seconds=self._planning + seen.seconds if chose else seen.seconds,
            extra_bytes=seen.extra_bytes,
            tries=self._plan.tries,
            failure=self._failure,
        )


class Observer(Callback):
    """Evaluates at fixed steps, notes learning rates, and takes the time of the rest.

    First among the callbacks, it looks before a step is begun, when all others are done with the
    last one.
    """

    def __init__(self, task: Task, evaluations: int) -> None:
        count = max(1, min(evaluations, task.horizon))
        self._points = {round(i * task.horizon / count) for i in range(count + 1)}
        self._evaluate = Evaluation(task)
        self._curve: dict[str, list[Any]] = {"step": [], "train": [], "validation": []}
        self._rates: dict[int, float] = {}
        self._steps = 0
        self._since: float | None = None
        self.plan = Plan()
        self.plain_bytes = 0  # state of the task's own optimizer, where the plan replaces it
        self.seconds = 0.0
        self.extra_bytes = 0
        self.ended = False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        trainer.optimizers[0].register_step_post_hook(self._note_rate)
        self._look(trainer, pl_module)

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        step = trainer.global_step
        if step in self._points and step > self._curve["step"][-1]:
            self._look(trainer, pl_module)
            if not self.plan.recovers and not _finite(pl_module.parameters()):
                trainer.should_stop = True  # such weights stay so

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._stop_clock()
        optimizer = trainer.optimizers[0]
        kept = _tensor_bytes([self.plan.keeps(), *(c.state_dict() for c in self.plan.callbacks)])
        if self.plan.optimizer is not None:
            kept += _tensor_bytes(dict(optimizer.state)) - self.plain_bytes
        self.extra_bytes = kept
        self._look(trainer, pl_module)
        self._stop_clock(count=False)
        self.ended = True

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        self._stop_clock()

    def curve(self) -> dict[str, list[Any]]:
        """As `Record` has it; None for what is not finite."""
        rates = [self._rates.get(step, self._rates.get(1)) for step in self._curve["step"]]
        return pytree.tree_map(finite_or_none, {**self._curve, "lr": rates})

    def _note_rate(self, optimizer: Optimizer, *_: Any) -> None:
        self._steps += 1
        if self._steps == 1 or self._steps in self._points:
            self._rates[self._steps] = self.plan.lr_of(optimizer)

    def _look(self, trainer: Trainer, module: LightningModule) -> None:
        self._stop_clock()
        losses = self._evaluate(module, trainer.optimizers[0])
        self._curve["step"].append(trainer.global_step)
        self._curve["train"].append(losses.train.item())
        self._curve["validation"].append(losses.validation.item())
        self._since = time.perf_counter()

    def _stop_clock(self, count: bool = True) -> None:
        if self._since is not None and count:
            if torch.cuda.is_initialized():
                torch.cuda.synchronize()
            self.seconds += time.perf_counter() - self._since
        self._since = None


def _follow_plan(module: LightningModule, plan: Plan, observer: Observer) -> None:
    """Makes the module configure the plan's optimizer instead of its own."""
    own = module.configure_optimizers

    def configure() -> Any:
        module.configure_optimizers = own  # type: ignore[method-assign]
        optimizer = configured_optimizer(module)
        module.configure_optimizers = configure  # type: ignore[method-assign]
        if plan.lr is not None:
            GroupRates(optimizer).set(plan.lr)
        if plan.optimizer is not None:
            observer.plain_bytes = _bytes_after_a_step(optimizer)
            optimizer = plan.optimizer(optimizer)
        if plan.scheduler is None:
            return optimizer
        scheduler = {"scheduler": plan.scheduler(optimizer), "interval": "step"}
        return {"optimizer": optimizer, "lr_scheduler": scheduler}

    module.configure_optimizers = configure  # type: ignore[method-assign]


def _bytes_after_a_step(optimizer: Optimizer) -> int:
    """What an optimizer keeps, measured on a copy of it and its weights."""
    copy = deepcopy(optimizer)
    for group in copy.param_groups:
        for parameter in group["params"]:
            parameter.grad = torch.zeros_like(parameter) if parameter.requires_grad else None
    copy.step()
    return _tensor_bytes(dict(copy.state))


def _tensor_bytes(tree: Any) -> int:
    leaves = pytree.tree_leaves(tree)
    return sum(leaf.nbytes for leaf in leaves if isinstance(leaf, Tensor))


def _finite(tensors: Iterable[Tensor]) -> bool:
    return all(bool(tensor.isfinite().all()) for tensor in tensors)


def _first(losses: list[float | None]) -> float:
    return float("nan") if not losses or losses[0] is None else losses[0]
