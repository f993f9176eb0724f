"""Versions of results: nothing that decides one changes unless somebody says what follows."""

from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from lightning import LightningModule

from lightning_dqnlr.bench.methods import METHODS
from lightning_dqnlr.bench.methods.feedback import Hypergradient
from lightning_dqnlr.bench.methods.schedules import ScheduledLR, constant
from lightning_dqnlr.bench.runs.archive import Archive
from lightning_dqnlr.bench.runs.suite import plan
from lightning_dqnlr.bench.runs.versions import run_version, stand_in
from lightning_dqnlr.bench.tasks import TASKS
from lightning_dqnlr.bench.tasks.real import REAL_TASKS
from lightning_dqnlr.scoring.task_content import task_content
from lightning_dqnlr.tasks.task import Task
from tests.bench import result_digests
from tests.bench.result_digests import definitions, digest, recorded, sketch, todays
from tests.bench.test_bench_suite import suite_of

SHIPPED = Path(__file__).parents[2] / "benchmarks" / "records"
SAY = (
    "what decides these results has changed. If the results change, raise their version "
    "(lightning_dqnlr/bench/runs/versions.py, or the task's own); then, or if they do not change: "
    "python -m tests.bench.result_digests"
)


def test_nobody_changes_what_decides_a_result_without_saying_so():
    now, before = todays(), recorded()
    changed = sorted(name for name in {*now, *before} if now.get(name) != before.get(name))
    assert changed == [], SAY


def test_every_shipped_record_is_of_todays_versions():
    tasks = (*TASKS, *REAL_TASKS)
    planned = {run.key for name in ("full", "real") for run in plan(suite_of(name), tasks, METHODS)}
    kinds = {
        (key.task, key.method, version, key.policy)
        for key in planned
        for version in (key.version, stand_in(key.version))
    }
    for task in tasks:
        for key in Archive(SHIPPED).of(task.name):
            assert (key.task, key.method, key.version, key.policy) in kinds


MOVED = 'import a\n\n\ndef f(x: int) -> int:\n    """Doc."""\n    return x  # why\n\n\ny = 1\n'


@pytest.mark.parametrize(
    ("other", "same"),
    [
        ("y = 1\n\n\nfrom b import c\n\n\ndef f( x ):\n    return x\n", True),
        ("y = 1\ndef f(x):\n    return -x\n", False),
        ("y = 2\ndef f(x):\n    return x\n", False),
        ("y = 1\ndef g(x):\n    return x\n", False),
    ],
)
def test_words_and_places_do_not_count_but_every_statement_does(other, same):
    assert (digest(*definitions(other)) == digest(*definitions(MOVED))) is same


@dataclass(frozen=True)
class Tuned:
    name: str = "tuned"
    policy: str = "somewhere"
    beta: float = 0.5
    shape: object = max

    def plan(self, setting):
        raise NotImplementedError


def test_a_methods_own_settings_make_it_another_method():
    assert run_version(Tuned(), "1") == "protocol=1 task=1 method=1"
    assert run_version(Tuned(beta=0.25), "1") == "protocol=1 task=1 method=1 beta=0.25"
    assert run_version(Tuned("renamed", "elsewhere", shape=min), "1") == run_version(Tuned(), "1")
    assert run_version(Hypergradient(), "1") != run_version(Hypergradient(beta=0.1), "1")


def test_a_policys_runs_depend_on_the_controller_and_a_gpus_on_the_gpu():
    (ours,) = (method for method in METHODS if method.name == "dqnlr")
    plain = ScheduledLR("constant", constant)
    assert run_version(ours, "2") == "protocol=1 task=2 method=1 controller=2"
    assert run_version(plain, "2", "cuda") == "protocol=1 task=2 method=1 device=cuda"


def test_a_raised_version_is_another_version(monkeypatch):
    plain = ScheduledLR("constant", constant)
    before = run_version(plain, "1")
    monkeypatch.setattr(result_digests.versions, "METHODS", {"constant": 2})
    assert run_version(plain, "1") == before.replace("method=1", "method=2")


@pytest.fixture(scope="module")
def teacher() -> Task:
    """Its data are computed by a network."""
    return next(task for task in TASKS if task.name == "teacher MLP").open()


def changed(task: Task, *, by: float = 0.0) -> Task:
    """Inputs moved by a relative amount."""
    inputs, *others = task.train_data
    generator = torch.Generator().manual_seed(7)
    inputs = inputs * (1 + by * torch.randn(inputs.shape, generator=generator))
    return replace(task, train_data=(inputs, *others))


def scaled(module: LightningModule) -> LightningModule:
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.mul_(8)
    return module


def test_last_bits_change_the_content_but_not_its_sketch(teacher):
    other = changed(teacher, by=1e-7)
    assert task_content(other) != task_content(teacher)
    assert task_content(other, sketch) == task_content(teacher, sketch)


@pytest.mark.parametrize(
    "change",
    [
        lambda task: changed(task, by=0.1),
        lambda task: replace(task, train_data=tuple(x[:-1] for x in task.train_data)),
        lambda task: replace(task, train_data=tuple(x.flip(0) for x in task.train_data)),
        lambda task: replace(task, train_data=tuple(4 * x for x in task.train_data)),
        lambda task: replace(task, build=lambda seed: task.build(seed + 1)),
        lambda task: replace(task, build=lambda seed: scaled(task.build(seed))),
    ],
    ids=["noise", "an example less", "another order", "other units", "weights", "larger weights"],
)
def test_the_sketch_changes_with_what_the_result_depends_on(teacher, change):
    assert task_content(change(teacher), sketch) != task_content(teacher, sketch)


def test_values_that_are_not_numbers_have_a_sketch_too(teacher):
    inputs, *others = teacher.train_data
    holes = inputs.where(inputs > 0, torch.nan)
    other = replace(teacher, train_data=(holes, *others))
    assert task_content(other, sketch) != task_content(teacher, sketch)
