"""Small training runs with one fault each, under a Trainer and in a plain loop; see `soak.py`."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, EMAWeightAveraging, ModelCheckpoint
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_dqnlr import DQNLRCallback, DQNLRScheduler

EXAMPLES, WIDTH, WORDS, CLASSES = 256, 8, 400, 3
RUNAWAY = 1e4  # times the rate so far, where nothing can be learnt

FAULTS = (
    "none",
    "NaN loss, one batch",
    "NaN loss, one batch in ten",
    "NaN loss to the end",
    "infinite loss, one batch",
    "NaN batch left out",
    "NaN in a gradient",
    "NaN in one weight",
    "loss x 1e6, one batch",
    "loss x 1e6 to the end",
    "other data to the end",
    "constant added to the end",
    "constant loss",
    "zero loss",
    "loss in other units",
    "loss shifted",
    "bfloat16 weights",
    "interrupted after NaN",
)
NOTHING_TO_LEARN = ("constant loss", "zero loss")
OPTIMIZERS: dict[str, tuple[type[torch.optim.Optimizer], dict[str, Any]]] = {
    "SGD": (torch.optim.SGD, {}),
    "SGD momentum": (torch.optim.SGD, {"momentum": 0.9, "weight_decay": 1e-4}),
    "SGD Nesterov": (torch.optim.SGD, {"momentum": 0.9, "nesterov": True}),
    "Adam": (torch.optim.Adam, {}),
    "Adam AMSGrad": (torch.optim.Adam, {"amsgrad": True}),
    "AdamW": (torch.optim.AdamW, {"weight_decay": 0.1}),
    "AdamW fused": (torch.optim.AdamW, {"fused": True}),
    "Adamax": (torch.optim.Adamax, {}),
    "NAdam": (torch.optim.NAdam, {}),
    "RAdam": (torch.optim.RAdam, {}),
    "RMSprop": (torch.optim.RMSprop, {}),
    "RMSprop centred": (torch.optim.RMSprop, {"centered": True, "momentum": 0.9}),
    "Adagrad": (torch.optim.Adagrad, {}),
    "Adadelta": (torch.optim.Adadelta, {}),
    "ASGD": (torch.optim.ASGD, {}),
    "Adafactor": (torch.optim.Adafactor, {}),
}


@dataclass(frozen=True)
class Case:
    """One run: its fault and all else that its number draws."""

    number: int
    seed: int
    trainer: bool  # else a plain loop
    fault: str
    first: int  # step of the fault, from 1 on
    steps: int
    model: str
    optimizer: str
    batch: int
    factor: float  # of the loss, where the fault is its units
    shift: float
    clipping: float | None
    accumulation: int
    validation: int  # batches between validations
    saving: int  # steps between checkpoints
    weights_only: bool
    averaging: bool
    breaker: bool | str
    snapshot: str
    bounds: tuple[float | None, float | None]
    exact_horizon: bool


def draw(number: int, seed: int) -> Case:
    """The run of this number; the faults take turns."""
    chance = random.Random(f"{seed} {number}")
    fault = FAULTS[number // 2 % len(FAULTS)]
    steps = chance.randint(60, 200)
    first = chance.choice((2, 3, 4, 8, chance.randint(2, steps), steps - 1, steps))
    whole_run = ("loss in other units", "loss shifted", "bfloat16 weights", "none")
    return Case(
        number=number,
        seed=seed,
        trainer=number % 2 == 0,
        fault=fault,
        first=1 if fault in whole_run else first,
        steps=steps,
        model=chance.choice(("mlp", "normalised mlp", "embedding")),
        optimizer=chance.choice(sorted(OPTIMIZERS)),
        batch=chance.choice((4, 8, 16)),
        factor=10 ** chance.uniform(-8, 8) if fault == "loss in other units" else 1.0,
        shift=chance.choice((-1000.0, -10.0, -1.0, 1.0, 1000.0))
        if fault == "loss shifted"
        else 0.0,
        clipping=chance.choice((None, None, 1.0)),
        accumulation=chance.choice((1, 1, 1, 2)),
        validation=chance.randint(3, 40),
        saving=chance.randint(3, 40),
        weights_only=chance.random() < 0.5,
        averaging=chance.random() < 0.1,
        breaker=chance.choice((True, True, True, "finite")),
        snapshot=chance.choice(("device", "cpu")),
        bounds=chance.choice(((None, None), (None, None), (1e-7, 1e-1))),
        exact_horizon=chance.random() < 0.8,
    )


class Model(nn.Module):
    """A small classifier; the embedding has far more rows than the probe looks at."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.table = nn.Embedding(WORDS, 16) if kind == "embedding" else None
        normalisation = nn.BatchNorm1d(16) if kind == "normalised mlp" else nn.Identity()
        inputs = 16 if kind == "embedding" else WIDTH
        self.net = nn.Sequential(
            nn.Linear(inputs, 16), normalisation, nn.Tanh(), nn.Linear(16, CLASSES)
        )

    def forward(self, inputs: Tensor) -> Tensor:
        weight = self.net[0].weight
        if self.table is not None:
            words = inputs[:, 0].mul(20).add(WORDS // 2).long().clamp(0, WORDS - 2)
            return self.net(self.table(words))
        return self.net(inputs.to(weight.dtype))


def examples(seed: int) -> TensorDataset:
    """Inputs (EXAMPLES, WIDTH) and labels that a small network can learn."""
    source = torch.Generator().manual_seed(seed)
    inputs = torch.randn(EXAMPLES, WIDTH, generator=source)
    labels = inputs[:, 0].mul(1.2).add(1.5).long().clamp(0, CLASSES - 1)
    return TensorDataset(inputs, labels)


@dataclass
class Watch:
    """What a run has shown to the outside."""

    problems: list[str] = field(default_factory=list)
    rates: list[float] = field(default_factory=list)
    metrics: list[float] = field(default_factory=list)
    trips: int = 0

    def check(self, what: str, tensors: Iterable[Any]) -> None:
        """Notes tensors that are not finite."""
        numbers = [t for t in tensors if isinstance(t, Tensor) and t.is_floating_point()]
        if not all(bool(t.isfinite().all()) for t in numbers):
            self.problems.append(f"{what} not finite")


class Faulty:
    """Injects a case's fault; both hosts ask it."""

    def __init__(self, case: Case, model: Model) -> None:
        self.case = case
        self.model = model

    def due(self, step: int) -> bool:
        """Whether the fault acts in the step, counted from 1."""
        case = self.case
        if case.fault == "NaN loss, one batch in ten":
            return step >= case.first and (step - case.first) % 10 == 0
        lasting = case.fault.endswith("to the end") or case.fault in NOTHING_TO_LEARN
        return step >= case.first if lasting else step == case.first

    def loss(self, step: int, inputs: Tensor, labels: Tensor) -> Tensor:
        """The training loss of a step, with the fault in it."""
        case = self.case
        due = self.due(step)
        if due and case.fault == "other data to the end":
            labels = (labels + 1) % CLASSES
        if due and case.fault in ("NaN in one weight", "interrupted after NaN"):
            self._poison()
        loss = nn.functional.cross_entropy(self.model(inputs).float(), labels)
        return self._changed(loss, case.fault) if due else loss * case.factor + case.shift

    def _changed(self, loss: Tensor, fault: str) -> Tensor:
        case = self.case
        if fault.startswith("NaN loss") or fault == "NaN batch left out":
            return loss * math.nan
        if fault == "infinite loss, one batch":
            return loss * math.inf
        if fault.startswith("loss x 1e6"):
            return loss * 1e6
        if fault == "constant added to the end":
            return loss + 5.0
        if fault in NOTHING_TO_LEARN:
            return loss * 0.0 + (fault == "constant loss")
        return loss * case.factor + case.shift

    def _poison(self) -> None:
        """One weight becomes NaN: of the table a row that is never read."""
        table = self.model.table
        weight = self.model.net[0].weight if table is None else table.weight
        with torch.no_grad():
            weight[-1, -1] = math.nan

    def spoil_gradients(self, step: int) -> None:
        """What happens to the gradients of a step after its backward pass."""
        gradients = [p.grad for p in self.model.parameters() if p.grad is not None]
        if not self.due(step):
            return
        if self.case.fault == "NaN in a gradient":
            gradients[0].flatten()[-1] = math.nan
        if self.case.fault == "NaN batch left out":
            for gradient in gradients:
                gradient.zero_()


def build_optimizer(case: Case, model: nn.Module) -> torch.optim.Optimizer:
    """Of two groups, the second with a tenth of the rate."""
    kind, options = OPTIMIZERS[case.optimizer]
    first, *rest = model.parameters()
    return kind([{"params": rest}, {"params": [first], "lr": 1e-4}], lr=1e-3, **options)


class Interruption(Exception):
    """What stops a run in the middle of a step."""


class FaultyModule(LightningModule):
    """Trains the case's model and watches its rates and its validation."""

    def __init__(self, case: Case, model: Model, watch: Watch) -> None:
        super().__init__()
        self.model = model
        self.case = case
        self.watch = watch
        self.fault = Faulty(case, model)

    @property
    def _step(self) -> int:
        return self.global_step + 1

    def training_step(self, batch: list[Tensor], index: int) -> Tensor:
        loss = self.fault.loss(self._step, *batch)
        if self.case.fault == "interrupted after NaN" and self.fault.due(self._step):
            raise Interruption
        return loss

    def on_after_backward(self) -> None:
        self.fault.spoil_gradients(self._step)

    def optimizer_step(
        self,
        epoch: int,
        batch_idx: int,
        optimizer: torch.optim.Optimizer,
        optimizer_closure: Callable[[], Any] | None = None,
    ) -> None:
        super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
        self.watch.rates.append(max(float(group["lr"]) for group in optimizer.param_groups))

    def validation_step(self, batch: list[Tensor], index: int) -> None:
        inputs, labels = batch
        loss = nn.functional.cross_entropy(self.model(inputs).float(), labels)
        self.watch.metrics.append(loss.item())
        self.watch.check("validation", [loss])
        self.log("validation", loss)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return build_optimizer(self.case, self.model)


class Onlooker(Callback):
    """Looks at the weights when the epochs and the training end."""

    def __init__(self, watch: Watch) -> None:
        self.watch = watch

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.watch.check("weights at an epoch's end", pl_module.state_dict().values())

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.watch.check("weights at the training's end", pl_module.state_dict().values())


def train_with_trainer(case: Case, watch: Watch, folder: Path) -> None:
    """A real Trainer, with everything that looks at the weights from outside."""
    data = examples(case.seed + case.number)
    control = DQNLRCallback(
        horizon=None if case.exact_horizon else 10 * case.steps,
        min_lr=case.bounds[0],
        max_lr=case.bounds[1],
        circuit_breaker=case.breaker,
        snapshot=case.snapshot,
    )
    module = FaultyModule(case, Model(case.model), watch)
    precision = "bf16-true" if case.fault == "bfloat16 weights" else "32-true"
    clipping = None if "fused" in case.optimizer else case.clipping
    trainer = Trainer(
        accelerator="cpu",
        callbacks=list(_callbacks(case, control, watch, folder)),
        max_steps=case.steps,
        precision=precision,
        gradient_clip_val=clipping,
        accumulate_grad_batches=case.accumulation,
        val_check_interval=case.validation,
        check_val_every_n_epoch=None,
        num_sanity_val_steps=0,
        limit_val_batches=1,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
    )
    training = DataLoader(data, batch_size=case.batch, shuffle=True, drop_last=True)
    try:
        trainer.fit(module, training, DataLoader(data, batch_size=EXAMPLES))
    except Interruption:
        watch.check("weights after an exception", module.state_dict().values())
    watch.trips = sum(record["tripped"] for record in control.trace)
    watch.check("final weights", module.state_dict().values())
    for path in folder.rglob("*.ckpt"):
        saved = torch.load(path, weights_only=False)
        watch.check("weights in a checkpoint", saved["state_dict"].values())
        watch.check("optimizer in a checkpoint", _states(saved.get("optimizer_states", [])))


def _callbacks(
    case: Case, control: DQNLRCallback, watch: Watch, folder: Path
) -> Iterator[Callback]:
    """In an order that the case draws."""
    found: list[Callback] = [
        control,
        Onlooker(watch),
        ModelCheckpoint(
            folder,
            every_n_train_steps=case.saving,
            save_weights_only=case.weights_only,
            save_last=True,
            save_top_k=-1,
        ),
    ]
    if case.averaging:
        found.append(EMAWeightAveraging(decay=0.9))
    random.Random(case.number).shuffle(found)
    yield from found


def _states(states: list[dict[str, Any]]) -> Iterator[Any]:
    for state in states:
        for values in state["state"].values():
            yield from values.values()


def train_in_a_loop(case: Case, watch: Watch) -> None:
    """A plain loop with `DQNLRScheduler`."""
    data = examples(case.seed + case.number)
    model = Model(case.model)
    if case.fault == "bfloat16 weights":
        model.bfloat16()
    optimizer = build_optimizer(case, model)
    scheduler = DQNLRScheduler(
        optimizer,
        horizon=case.steps if case.exact_horizon else None,
        min_lr=case.bounds[0],
        max_lr=case.bounds[1],
        circuit_breaker=case.breaker,
        snapshot=case.snapshot,
        module=model,
    )
    fault = Faulty(case, model)
    source = torch.Generator().manual_seed(case.number)
    for step in range(1, case.steps + 1):
        inputs, labels = data[torch.randint(EXAMPLES, (case.batch,), generator=source)]
        optimizer.zero_grad()
        loss = fault.loss(step, inputs, labels)
        loss.backward()
        fault.spoil_gradients(step)
        if case.clipping:
            nn.utils.clip_grad_norm_(model.parameters(), case.clipping)
        optimizer.step()
        watch.rates.append(max(scheduler.get_last_lr()))
        scheduler.step(loss)
        if step % case.saving == 0:
            scheduler.state_dict()  # before the model's, which it mends
            watch.check("weights in a checkpoint", model.state_dict().values())
    watch.trips = sum(record["tripped"] for record in scheduler.trace)
    watch.metrics.append(nn.functional.cross_entropy(model(data[:][0]).float(), data[:][1]).item())
    if case.exact_horizon:  # else the last step may be within an interval, and nobody may look
        watch.check("final weights", model.state_dict().values())


def check_rates(case: Case, watch: Watch) -> None:
    """Notes rates that are out of bounds or run away."""
    low, high = case.bounds
    inside = all(
        math.isfinite(rate)
        and rate > 0
        and (low or 0) * 0.999 <= rate <= (high or math.inf) * 1.001
        for rate in watch.rates
    )
    if not inside:
        watch.problems.append("rate out of bounds")
    start = watch.rates[case.first - 2] if 1 < case.first <= len(watch.rates) else math.inf
    if (
        case.fault in NOTHING_TO_LEARN
        and max(watch.rates[case.first :], default=0) > RUNAWAY * start
    ):
        watch.problems.append("rate runs away")
