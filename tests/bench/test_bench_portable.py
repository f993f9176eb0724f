"""Records made on another kind of CPU, whose computed data differ in their last bits."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from lightning import LightningModule

from lightning_dqnlr.bench.methods import METHODS
from lightning_dqnlr.bench.methods.schedules import ScheduledLR, warmup_cosine
from lightning_dqnlr.bench.runs.archive import CODES, Archive, Store
from lightning_dqnlr.bench.runs.fingerprint import code_hash
from lightning_dqnlr.bench.runs.suite import Suite, complete, plan
from lightning_dqnlr.bench.tasks import TASKS
from lightning_dqnlr.cli import bench as cli_bench
from lightning_dqnlr.errors import ConfigurationError
from lightning_dqnlr.scoring.task_content import task_content
from lightning_dqnlr.tasks.task import Task
from tests.cli.test_cli_bench import composed

ROOT = Path(__file__).parents[2]
COSINE = ScheduledLR("cosine", warmup_cosine)


@pytest.fixture(scope="module")
def teacher() -> Task:
    """Its data are computed by a network."""
    return next(task for task in TASKS if task.name == "teacher MLP").open()


def changed(task: Task, *, by: float = 0.0, at: int | None = None) -> Task:
    """Inputs moved by a relative amount, or one of them replaced."""
    inputs, *others = task.train_data
    generator = torch.Generator().manual_seed(7)
    inputs = inputs * (1 + by * torch.randn(inputs.shape, generator=generator))
    if at is not None:
        inputs[at] = 1.0
    return replace(task, train_data=(inputs, *others))


def scaled(module: LightningModule) -> LightningModule:
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.mul_(8)
    return module


def hashes(task: Task) -> tuple[str, str]:
    portable = task_content(task, portable=True)
    return code_hash(COSINE, task), code_hash(COSINE, task, portable)


def test_last_bits_change_the_exact_hash_but_not_the_portable_one(teacher):
    exact, portable = hashes(teacher)
    other_exact, other_portable = hashes(changed(teacher, by=1e-7))
    assert exact != other_exact
    assert portable == other_portable
    assert exact != portable


@pytest.mark.parametrize(
    "change",
    [
        lambda task: changed(task, by=0.1),
        lambda task: replace(task, horizon=task.horizon + 1),
        lambda task: replace(task, train_data=tuple(x[:-1] for x in task.train_data)),
        lambda task: replace(task, train_data=tuple(x.flip(0) for x in task.train_data)),
        lambda task: replace(task, train_data=tuple(4 * x for x in task.train_data)),
        lambda task: replace(task, build=lambda seed: task.build(seed + 1)),
        lambda task: replace(task, build=lambda seed: scaled(task.build(seed))),
    ],
    ids=[
        "noise",
        "horizon",
        "an example less",
        "another order",
        "other units",
        "other weights",
        "larger weights",
    ],
)
def test_the_portable_hash_changes_with_what_the_result_depends_on(teacher, change):
    assert hashes(change(teacher))[1] != hashes(teacher)[1]


def test_values_that_are_not_numbers_have_a_portable_hash_too(teacher):
    inputs, *others = teacher.train_data
    holes = inputs.where(inputs > 0, torch.nan)
    assert hashes(replace(teacher, train_data=(holes, *others)))[1] != hashes(teacher)[1]


ARGUMENTS = (
    "suite.tasks=[quadratic]", "suite.methods=[constant]", "suite.points=1", "workers=1",
)  # fmt: skip


def made_elsewhere(folder: Path) -> None:
    """Turns the records of an archive into those of a machine with other last bits."""
    (record,) = Archive(folder).of("quadratic").values()
    (portable,) = json.loads((folder / CODES).read_text())["quadratic/constant"]
    other = replace(record, code="elsewhere")
    Archive(folder).pack([other], [other.key], {other.key: portable})


def test_the_archive_serves_a_machine_with_other_last_bits_which_adds_to_it(tmp_path, capsys):
    archive = tmp_path / "archive"
    one = (*ARGUMENTS, f"archive={archive}", "suite.seeds=1")
    cli_bench.run(composed(*one, f"folder={tmp_path}/mine"), "quick")
    cli_bench.run(composed(*one, f"folder={tmp_path}/mine", "pack=true"), "quick")
    made_elsewhere(archive)
    yours = (*ARGUMENTS, f"archive={archive}", f"folder={tmp_path}/yours", "suite.seeds=2")
    for arguments, said in (
        (yours, "2 runs, 1 of them stored"),
        ((*yours, "dry_run=true"), "2 runs, 2 of them stored"),
        ((*yours, "pack=true"), "2 of 2 runs packed"),
    ):
        capsys.readouterr()
        cli_bench.run(composed(*arguments), "quick")
        assert said in capsys.readouterr().out
    assert {r.code for r in Archive(archive).of("quadratic").values()} == {"elsewhere"}
    (archive / CODES).unlink()  # decoy: without portable hashes nothing is known
    cli_bench.run(composed(*one, f"folder={tmp_path}/third", "dry_run=true"), "quick")
    assert "1 runs, 0 of them stored" in capsys.readouterr().out


def test_a_run_of_code_that_was_edited_since_the_plan_is_kept_under_its_own_hash(tmp_path):
    (planned,) = plan(Suite(["quadratic"], ["constant"], 1, 1, 2.0), TASKS, METHODS)
    older = replace(planned, exact="older", key=(*planned.key[:4], "older", planned.key[5]))
    store = Store(tmp_path)
    complete([older], store, 1, lambda progress: None)
    assert store.has(planned.key)
    assert not store.has(older.key)


def test_a_damaged_file_of_codes_is_named_with_the_remedy(tmp_path):
    (tmp_path / CODES).write_text("{")
    with pytest.raises(ConfigurationError, match=r"codes\.json .*fetch it again"):
        Archive(tmp_path).code_of("a", "b", "c")


def test_the_code_of_every_shipped_record_has_a_portable_hash():
    shipped = ROOT / "benchmarks" / "records"
    codes = json.loads((shipped / CODES).read_text())
    for task in TASKS:
        held = {(r.method, r.code) for r in Archive(shipped).of(task.name).values()}
        known = {(m, c) for m, _ in held for c in codes.get(f"{task.name}/{m}", {}).values()}
        assert held == known, task.name
