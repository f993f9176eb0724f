"""Rules that watch the training: plateau, GreedyLR, hypergradient descent, Lightning's finder.

They start from the user's learning rate; none of them searches for one beforehand, but the finder.
"""

from __future__ import annotations

import io
import math
import tempfile
from collections import deque
from collections.abc import Mapping
from contextlib import redirect_stderr
from dataclasses import dataclass
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import ReduceLROnPlateau

from lightning_dqnlr.bench.methods.plan import Plan, Setting
from lightning_dqnlr.envs.process import RandomStream
from lightning_dqnlr.envs.trainer_data import task_loader, task_trainer
from lightning_dqnlr.envs.trainer_run import RateSetter
from lightning_dqnlr.tasks.user import library_of


@dataclass(frozen=True)
class Plateau:
    """Torch's `ReduceLROnPlateau` on the training loss.

    Torch counts epochs, which short runs hardly have; here an "epoch" is a hundredth of the run,
    and its loss the mean over these steps. Factor and patience are torch's defaults, so that the
    rate falls to a tenth after a tenth of the run without progress.

    Attributes:
        factor: by which the rate is cut.
        patience: windows without progress that are let pass.
        windows: per run.
    """

    name: str = "plateau"
    tuned: bool = False
    factor: float = 0.1
    patience: int = 10
    windows: int = 100

    def plan(self, setting: Setting) -> Plan:
        steps = max(1, setting.task.horizon // self.windows)
        return Plan(lr=setting.lr, callbacks=(FollowPlateau(self, steps),))


class FollowPlateau(Callback):
    """Gives torch's scheduler the mean training loss of every few steps."""

    def __init__(self, method: Plateau, steps: int) -> None:
        self._method = method
        self._steps = steps
        self._losses: list[Tensor] = []
        self._scheduler: ReduceLROnPlateau | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        method = self._method
        # Without its absolute `eps` of 1e-8, which would forbid cuts of small learning rates.
        self._scheduler = ReduceLROnPlateau(
            trainer.optimizers[0], factor=method.factor, patience=method.patience, eps=0.0
        )

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        assert self._scheduler is not None
        self._losses.append(_loss(outputs))
        if len(self._losses) == self._steps:
            self._scheduler.step(torch.stack(self._losses).mean().item())
            self._losses.clear()


@dataclass(frozen=True)
class GreedyLR:
    """Raises the rate while the loss falls, else lowers it.

    The rule is of Subramanian, Krishnamoorthy & Murthy 2025 (arXiv:2512.14527). After more than
    `patience` losses in a row that are new bests, the rate is divided by a factor F < 1. After as
    many that are not, it is multiplied by F. It stays between two bounds.

    Factor, patience, threshold and window are the defaults of its authors' scheduler in Hugging
    Face transformers, and so is the lack of warm-up and cool-down. The moving average is on,
    because here the rule sees single batches. The authors set the bounds per experiment; here they
    leave three decades on both sides of the user's rate.

    Attributes:
        factor: F.
        patience: losses in a row that are let pass.
        window: steps of the moving average of the loss.
        threshold: by which a new best must be lower.
        decades: on both sides of the user's rate.
    """

    name: str = "greedy"
    tuned: bool = False
    factor: float = 0.95
    patience: int = 10
    window: int = 50
    threshold: float = 1e-6
    decades: float = 3.0

    def plan(self, setting: Setting) -> Plan:
        return Plan(lr=setting.lr, callbacks=(FollowLoss(self),))


class FollowLoss(RateSetter):
    """The rule of GreedyLR after every step."""

    def __init__(self, method: GreedyLR) -> None:
        self._method = method
        self._losses: deque[float] = deque(maxlen=method.window)
        self._best = math.inf
        self._good = 0
        self._bad = 0

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        method = self._method
        self._losses.append(_loss(outputs).item())
        loss = sum(self._losses) / len(self._losses)
        better = loss < self._best - method.threshold
        self._best = loss if better else self._best
        self._good = self._good + 1 if better else 0
        self._bad = 0 if better else self._bad + 1
        if max(self._good, self._bad) <= method.patience:
            return
        rates = self.rates
        lr = rates.lr / method.factor if self._good else rates.lr * method.factor
        self._good = self._bad = 0
        span = 10.0**method.decades
        rates.set(min(max(lr, rates.reference / span), rates.reference * span))


@dataclass(frozen=True)
class Hypergradient:
    """Hypergradient descent, multiplicative (Baydin et al. 2018, arXiv:1703.04782).

    Theta moves by -lr u in a step. The update u is the gradient in SGD-HD and Adam's quotient in
    Adam-HD. The loss's derivative by the last learning rate is minus the product of the gradient
    now and the last u. The multiplicative rule divides it by both norms, so that no unit is left:
    lr <- lr (1 + beta cos(g, u)). u is read off the last displacement, whatever the optimizer;
    decoupled weight decay, a small part of it, is not taken out.

    Attributes:
        beta: the hypergradient's own rate; 35 agreeing gradients in a row double the rate.
    """

    name: str = "hypergradient"
    tuned: bool = False
    beta: float = 0.02

    def plan(self, setting: Setting) -> Plan:
        return Plan(lr=setting.lr, callbacks=(FollowHypergradient(self.beta),))


class FollowHypergradient(RateSetter):
    """The multiplicative rule before every step."""

    def __init__(self, beta: float) -> None:
        self._beta = beta
        self._before: Tensor | None = None  # the weights before the last step

    @torch.no_grad()
    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer
    ) -> None:
        # The gradients are in place, and not clipped yet.
        weights = [p for group in optimizer.param_groups for p in group["params"]]
        now = torch.cat([weight.detach().flatten() for weight in weights])
        if self._before is not None:
            gradients = [p.new_zeros(p.shape) if p.grad is None else p.grad for p in weights]
            gradient = torch.cat([g.flatten() for g in gradients])
            cosine = _cosine(gradient, self._before - now)
            self.rates.set(self.rates.lr * (1 + self._beta * cosine))
        self._before = now

    def state_dict(self) -> dict[str, Any]:
        return {"before": self._before}


def _cosine(a: Tensor, b: Tensor) -> float:
    """Of two vectors, 0 where one of them vanishes or is not finite."""
    cosine = torch.dot(a, b) / (a.norm() * b.norm())
    return cosine.nan_to_num(0.0, 0.0, 0.0).clamp(-1.0, 1.0).item()


@dataclass(frozen=True)
class LRFinder:
    """Lightning's `Tuner.lr_find` with its defaults, then that rate to the end.

    That is what `lr_find` does for its users: it sets the module's learning rate and says nothing
    about a schedule. 100 steps at rates that climb from 1e-8 to 1 are made on a copy of the model
    (the range test of Smith 2017, arXiv:1506.01186). Where it has no suggestion to make, the rate
    stays what it was, as it does for its users.

    Attributes:
        steps: of the search.
    """

    name: str = "lr-finder"
    tuned: bool = False
    steps: int = 100

    def plan(self, setting: Setting) -> Plan:
        finder = self._search(setting)
        horizon = setting.task.horizon
        found = finder.suggestion()
        tries = math.ceil((horizon + len(finder.results["lr"])) / horizon)
        return Plan(lr=setting.lr if found is None else found, tries=tries)

    def _search(self, setting: Setting) -> Any:
        """Lightning's finder after its steps."""
        task = setting.task
        module = task.build(setting.seed)
        # The finder draws a progress bar of its own that no argument turns off.
        with tempfile.TemporaryDirectory() as folder, redirect_stderr(io.StringIO()):
            trainer = task_trainer(module, task, [], setting.device, folder=folder)
            loader = task_loader(task, setting.seed)
            with RandomStream(setting.seed, setting.device).active():
                tuner = library_of(module).tuner.Tuner(trainer)
                return tuner.lr_find(module, loader, num_training=self.steps, update_attr=False)


def _loss(outputs: Any) -> Tensor:
    """The loss of a step as Lightning hands it to callbacks, shape ()."""
    loss = outputs.get("loss") if isinstance(outputs, Mapping) else outputs
    return torch.as_tensor(loss).detach().float()
