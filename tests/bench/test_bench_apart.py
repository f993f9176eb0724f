"""Splits that ask a question of their own: who runs there, and where the report has them."""

from dataclasses import replace

import pytest
import torch
from torch.utils import _pytree as pytree

from lightning_dqnlr.bench.methods.plan import Setting
from lightning_dqnlr.bench.methods.policies import LearnedPolicy
from lightning_dqnlr.bench.report.comparison import Comparison
from lightning_dqnlr.bench.report.costs import costs
from lightning_dqnlr.bench.report.duels import duels
from lightning_dqnlr.bench.report.losing import losing
from lightning_dqnlr.bench.report.write import write_report
from lightning_dqnlr.bench.runs.suite import Suite, plan
from lightning_dqnlr.bench.tasks import TASKS, Sampled
from lightning_dqnlr.bench.tasks.images import vision_transformer
from lightning_dqnlr.bench.tasks.task import APART, BenchTask
from lightning_dqnlr.envs.trainer_data import quiet, task_loader, task_trainer
from lightning_dqnlr.errors import ConfigurationError
from lightning_dqnlr.tasks.families.basic import TeacherMLPs
from tests.bench.synthetic_records import record
from tests.bench.tiny_methods import Plain, Raising
from tests.bench.watched_tasks import planned_run


@pytest.mark.parametrize("split", APART)
def test_splits_that_stand_apart_are_left_to_the_methods_named(split):
    make = Sampled(TeacherMLPs, "adam", 20)
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
    assert {(row.method, row.tasks, row.train.value, row.iqm) for row in duels(compared)} == {
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


def test_longer_runs_and_untold_lengths_stand_apart():
    assert set(APART) == {"longer runs", "unknown horizon"}
    assert set(APART) <= {task.split for task in TASKS}


def told_and_untold(family):
    if family == "sampled":
        return [Sampled(TeacherMLPs, "adam", 20, known_horizon=k)() for k in (True, False)]
    return [vision_transformer("a", known_horizon) for known_horizon in (True, False)]


def test_the_length_is_kept_from_the_controller_on_one_split_only():
    untold = {task.name for task in TASKS if not task.open().known_horizon}
    assert untold == {task.name for task in TASKS if task.split == "unknown horizon"}
    assert {task.open().optimizer for task in TASKS if task.name in untold} == {
        *("adam", "momentum", "adamw"),
    }


@pytest.mark.parametrize("family", ["sampled", "own"])
def test_keeping_the_length_secret_changes_nothing_else_of_a_task(family):
    told, untold = told_and_untold(family)
    assert (told.known_horizon, untold.known_horizon) == (True, False)
    fields = ("name", "horizon", "batch_size", "optimizer", "gradient_clip")
    assert all(getattr(told, field) == getattr(untold, field) for field in fields)
    of = [
        [*task.build(0).parameters(), *pytree.tree_leaves((task.train_data, task.validation_data))]
        for task in (told, untold)
    ]
    assert all(torch.equal(x, y) for x, y in zip(*of, strict=True))
    # A run that was told is no record of one that was not.
    assert planned_run(Plain(), told).key != planned_run(Plain(), untold).key


def test_no_two_tasks_are_one_draw_of_a_family():
    draws = [(t.build.family, t.build.seed) for t in TASKS if isinstance(t.build, Sampled)]
    assert len(set(draws)) == len(draws)
    heads = [t.open().build(0).net.head[1].weight for t in TASKS if "vision" in t.name]
    assert len(heads) == 2
    assert not torch.equal(*heads)


@pytest.mark.parametrize("known", [True, False])
def test_the_policy_is_told_the_length_only_where_it_may_be(known):
    task = Sampled(TeacherMLPs, "adam", 20, known_horizon=known)()
    conditions, callback = LearnedPolicy().plan(Setting(task, seed=0)).callbacks
    with quiet():
        module = task.build(0)
        trainer = task_trainer(module, task, [conditions, callback], "cpu")
        trainer.fit(module, task_loader(task, 0))
    assert callback.controller.horizon == (20 if known else None)
    assert len(callback.trace) > 0


@pytest.mark.parametrize(
    ("split", "hints"),
    [
        ("new seeds", ["LR never came down (ends at 100% of its peak), as if no horizon were k"]),
        ("unknown horizon", ["it was not told how long", "never came down (ends at 100% of its p"]),
    ],
)
def test_a_policy_is_not_blamed_for_a_length_that_it_was_not_told(split, hints):
    flat = {"step": [0, 100], "train": [2.0, 2.0], "validation": [2.0, 2.0], "lr": [0.1, 0.1]}
    runs = [
        record("a", "cosine", 0.1, final_train=0.98, split=split),
        record("a", "dqnlr", final_train=1.98, split=split, curve=flat),
    ]
    (found,) = losing(Comparison(runs))
    text = " | ".join(found.hints)
    assert all(hint in text for hint in hints)
    assert ("as if" in text) == (split == "new seeds")
    assert ("not told" in text) == (split == "unknown horizon")
