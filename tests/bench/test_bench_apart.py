"""Splits that ask a question of their own: who runs there, and where the report has them."""

from dataclasses import replace

import pytest

from lightning_dqnlr.bench.comparison import Comparison
from lightning_dqnlr.bench.report import write_report
from lightning_dqnlr.bench.report_numbers import costs, duels
from lightning_dqnlr.bench.suite import Suite, plan
from lightning_dqnlr.bench.task import APART, BenchTask
from lightning_dqnlr.bench.tasks_known import Sampled
from lightning_dqnlr.errors import ConfigurationError
from lightning_dqnlr.tasks.families import TeacherMLPs
from tests.bench.synthetic_records import record
from tests.bench.tiny_methods import Plain, Raising


@pytest.mark.parametrize("split", APART)
def test_splits_that_stand_apart_are_left_to_the_methods_named(split):
    make = Sampled(TeacherMLPs, "adam", 20, 0, 1e-3)
    tasks = [BenchTask("a", "new seeds", make, 1.0), BenchTask("b", split, make, 1.0)]
    suite = Suite(seeds=1, points=1, apart_methods=["raising"])
    told_of = [(run.task.name, run.method.name) for run in plan(suite, tasks, [Plain(), Raising()])]
    assert told_of == [("a", "plain"), ("a", "raising"), ("b", "raising")]
    everyone = plan(replace(suite, apart_methods=None), tasks, [Plain(), Raising()])
    assert [run.method.name for run in everyone] == ["plain", "raising"] * 2
    with pytest.raises(ConfigurationError, match=r"suite.apart_methods: \['no such'\]"):
        list(plan(Suite(apart_methods=["no such"]), tasks, [Plain()]))


def long_and_short():
    """Two splits; wsd was not to run on the longer one, and prodigy failed to."""
    return [
        record(task, method, seed=seed, lr=None, split=split)
        for task, split in (("short", "new seeds"), ("long", "longer runs"))
        for method in ("dqnlr", "cosine", "wsd", "prodigy")
        for seed in (0, 1)
        if task == "short" or method != "wsd"
        if task == "short" or method != "prodigy" or seed == 0
    ]


def test_a_method_that_was_not_to_run_is_not_missing():
    compared = Comparison(long_and_short())
    assert compared.shared == ("short",)
    assert compared.ranked == ("long", "short")
    assert compared.standing_apart == ("longer runs",)
    assert compared.missing("wsd") == ()
    assert compared.missing("prodigy") == ("long",)
    assert set(compared.complete()) == {"dqnlr", "cosine", "wsd", "prodigy"}
    everywhere = Comparison(long_and_short(), apart=())
    assert everywhere.shared == everywhere.ranked
    assert everywhere.standing_apart == ()
    assert everywhere.missing("wsd") == ("long",)
    only = Comparison([r for r in long_and_short() if r.task == "long"])
    assert (only.shared, only.standing_apart) == (("long",), ())


def test_the_report_says_not_run_where_nothing_was_to_run(tmp_path):
    write_report(long_and_short(), tmp_path)
    text = (tmp_path / "report.md").read_text()
    assert "| wsd | not run |" in text
    assert "| prodigy | missing 1 of 1 |" in text
    assert "| wsd | 1 |" in text  # over all tasks, which are those that all were to run
    assert "wsd: missing" not in text


def with_a_question_apart(split):
    """On "a" dqnlr has the cosine's loss and half again its time, apart twice both of it."""
    return [
        record(task, method, lr, seed, split=of, final_train=loss, seconds=seconds)
        for task, of, mine, time in (("a", "new seeds", 0.98, 3.0), ("b", split, 1.98, 20.0))
        for method, lr, loss, seconds in (
            ("cosine", 0.1, 0.98, 2.0),
            ("constant", 0.1, 0.98, 2.0),
            ("dqnlr", None, mine, time),
        )
        for seed in (0, 1)
    ]


@pytest.mark.parametrize("split", APART)
def test_no_figure_over_all_tasks_has_a_question_apart(split, tmp_path):
    compared = Comparison(with_a_question_apart(split))
    assert {(row.method, row.tasks, row.train, row.iqm) for row in duels(compared)} == {
        ("cosine", 1, 0.5, 0.0),
        ("constant", 1, 0.5, 0.0),
    }
    mine = next(row for row in costs(compared) if row.method == "dqnlr")
    assert (mine.tasks, mine.overhead) == (1, 1.5)
    write_report(with_a_question_apart(split), tmp_path)
    text = (tmp_path / "report.md").read_text()
    assert "dqnlr ends 0.0% below the tuned cosine's training loss" in text
    assert "(interquartile mean over 1 tasks;" in text
    assert f"Not in here, because they ask a question of their own: {split}." in text
    assert f"\n{split}, {APART[split]} (b):\n" in text
    assert "| **dqnlr** | 1 | 0.693 [0.693, 0.693] |" in text  # log 2, in the split's own table
    # Where it loses is told of every task.
    assert "Some method ends more than 2% below it on 1 of 2 tasks" in text
    write_report(with_a_question_apart("new families"), tmp_path)
    assert "Not in here" not in (tmp_path / "report.md").read_text()
