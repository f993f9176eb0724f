"""The benchmark's tasks and suites, and the processes that make its runs."""

import math
from dataclasses import replace
from pathlib import Path
from typing import get_args

import pytest
import torch
from hydra import compose, initialize_config_module
from hydra.utils import instantiate
from torch.utils import _pytree as pytree

from lightning_dqnlr.bench.methods import METHODS
from lightning_dqnlr.bench.runs.archive import Store
from lightning_dqnlr.bench.runs.record import RunKey
from lightning_dqnlr.bench.runs.run import PlannedRun
from lightning_dqnlr.bench.runs.suite import (
    Suite,
    choose,
    complete,
    estimate,
    grid,
    make_runs,
    missing,
    plan,
    rates,
    your_own,
)
from lightning_dqnlr.bench.tasks import TASKS, Sampled
from lightning_dqnlr.bench.tasks.sequences import KINDS, Lion, token_kinds
from lightning_dqnlr.bench.tasks.task import APART, BenchSplit, BenchTask, fixed_draws
from lightning_dqnlr.errors import ConfigurationError
from lightning_dqnlr.tasks.families.basic import TeacherMLPs
from lightning_dqnlr.tasks.optimizers import OptimizerName
from lightning_dqnlr.tasks.sampling import derive_seed
from tests.bench.tiny_methods import Absent, Killer, Plain, Raising

BY_NAME = {task.name: task for task in TASKS}
every_task = pytest.mark.parametrize("named", TASKS, ids=lambda task: task.name.replace(" ", "_"))


def tiny(name="tiny", horizon=20, **changed):
    build = Sampled(TeacherMLPs, "adam", horizon)
    return BenchTask(**{"name": name, "split": "new seeds", "build": build, "lr": 1e-3, **changed})


def planned(task, method, lr=None, seed=0):
    key = RunKey(task.name, method.name, lr, seed, "v", None)
    return PlannedRun(task, method, lr, seed, key)


def suite_of(name):
    with initialize_config_module("lightning_dqnlr.conf", version_base="1.3"):
        return instantiate(compose("bench", [f"suite={name}"]).suite)


def tensors(task):
    module = task.build(3)
    return [*pytree.tree_leaves((task.train_data, task.validation_data)), *module.parameters()]


@every_task
def test_a_task_is_the_same_each_time_and_falls_at_its_usual_rate(named):
    task = named.open()
    torch.manual_seed(1)
    state = torch.random.get_rng_state()
    for first, second in zip(tensors(task), tensors(named.open()), strict=True):
        assert torch.equal(first, second)
    assert torch.equal(torch.random.get_rng_state(), state)
    module = task.build(0)
    optimizer = module.configure_optimizers()
    assert optimizer.param_groups[0]["lr"] == named.lr
    batch = pytree.tree_map(lambda t: t[: task.batch_size], task.train_data)
    losses = []
    for _ in range(16):
        loss = module.training_step(batch, 0)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert all(map(math.isfinite, losses))
    assert sum(losses[-4:]) < sum(losses[:4])


@every_task
def test_validation_examples_are_finite_and_not_those_of_training(named):
    task = named.open()
    train, validation = (pytree.tree_leaves(d) for d in (task.train_data, task.validation_data))
    rows = [{row.numpy().tobytes() for row in leaves[0]} for leaves in (train, validation)]
    assert all(leaf.isfinite().all() for leaf in (*train, *validation))
    if named.name != "Adagrad word vectors":  # its first tensor is one word, of 400
        assert len(rows[0] & rows[1]) < 0.2 * len(rows[1])


def test_there_are_enough_tasks_in_every_split():
    assert len(BY_NAME) == len(TASKS) >= 12
    splits = [task.split for task in TASKS]
    assert set(splits) == set(get_args(BenchSplit)) - {"your own", "real size"}
    assert min(splits.count(split) for split in set(splits)) >= 3


def test_no_seed_of_the_benchmark_is_one_of_training_or_selection():
    for named in TASKS:
        if isinstance(named.build, Sampled):
            assert f"/test/{named.build.seed}" in named.build().name
    ours = fixed_draws("diffusion").generator.initial_seed()
    assert ours & 0b11 == derive_seed("any", "test", 0) & 0b11
    assert ours & 0b11 != derive_seed("any", "train", 0) & 0b11
    assert ours & 0b11 != derive_seed("any", "validation", 0) & 0b11


def test_a_new_optimizer_is_one_that_no_family_can_draw():
    names = {task.open().optimizer for task in TASKS if task.split == "new optimizer"}
    assert names == {"nadam", "adagrad", "lion"}
    assert not names & set(get_args(OptimizerName))
    others = {task.open().optimizer for task in TASKS if task.split != "new optimizer"}
    assert {"sgd", "momentum", "adam", "adamw"} <= others <= set(get_args(OptimizerName))


def test_new_families_have_networks_of_their_own():
    for named in (task for task in TASKS if task.split == "new families"):
        kinds = {type(part).__module__ for part in named.open().build(0).modules()}
        assert not any(kind.startswith("lightning_dqnlr.tasks") for kind in kinds), named.name


def test_the_longest_runs_are_ten_times_the_longest_trained_on():
    horizons = {task.name: task.open().horizon for task in TASKS if task.split == "longer runs"}
    assert horizons["long quadratic"] == 40_000
    assert horizons["long digits MLP"] == 10_000
    assert min(horizons.values()) > 1000
    assert all(task.open().horizon <= 1000 for task in TASKS if task.split != "longer runs")


def test_lion_takes_the_step_of_its_paper():
    weight = torch.nn.Parameter(torch.tensor([1.0, -2.0]))
    optimizer = Lion([weight], lr=0.1, betas=(0.5, 0.75), weight_decay=0.5)
    weight.grad = torch.tensor([4.0, -8.0])
    optimizer.step()  # decay by 5%, then 0.1 against the sign
    assert weight.tolist() == pytest.approx([0.95 - 0.1, -1.9 + 0.1])
    weight.grad = torch.tensor([-2.0, 8.0])  # momentum (1, -2); interpolated (-0.5, 3)
    optimizer.step()
    assert weight.tolist() == pytest.approx([0.85 * 0.95 + 0.1, -1.8 * 0.95 - 0.1])
    assert optimizer.state[weight]["momentum"].tolist() == pytest.approx([0.25, 0.5])


def test_the_syntax_of_a_source_is_told_by_its_characters(tmp_path):
    path = tmp_path / "source.py"
    path.write_text('ab = 12  # né\nx = """q\nr"""\n', encoding="utf-8")
    name, number, string, operator, comment = KINDS.values()
    first = [name] * 2 + [0, operator, 0] + [number] * 2 + [0] * 2 + [comment] * 4 + [0]
    second = [name, 0, operator, 0] + [string] * 9 + [0]
    assert token_kinds(path).tolist() == first + second


def test_the_coarse_grid_is_part_of_the_fine_one():
    assert grid(1e-3, 5, 4) == (1e-5, 1e-4, 1e-3, 1e-2, 1e-1)
    assert grid(0.1, 1, 4) == (0.1,)
    fine = grid(2e-3, 17, 4)
    assert len(fine) == 17
    assert (fine[0], fine[8], fine[16]) == (2e-5, 2e-3, 0.2)
    assert set(grid(2e-3, 5, 4)) < set(fine)


def test_only_who_needs_a_peak_gets_the_grid():
    suite = Suite(points=3, decades=2.0, sensitivity=["raising", "plain"], sensitivity_decades=4)
    task = tiny(lr=1.0)
    assert rates(suite, Plain(), task) == (0.1, 1.0, 10.0, 0.01, 100.0)
    assert rates(suite, Raising(), task) == (None, 0.01, 0.1, 1.0, 10.0, 100.0)
    assert rates(suite, Absent(), task) == (None,)


@pytest.mark.parametrize("split", APART)
def test_a_question_left_to_few_methods_is_not_asked_at_every_rate(split):
    apart = tiny(lr=1.0, split=split)
    few = Suite(points=3, decades=2.0, sensitivity=["plain"], apart_methods=["plain"])
    assert rates(few, Plain(), apart) == (0.1, 1.0, 10.0)
    assert len(rates(few, Plain(), tiny(lr=1.0))) == 7
    assert len(rates(replace(few, apart_methods=None), Plain(), apart)) == 7


def test_three_grids_are_centred_above_the_rate_of_the_module():
    higher = {
        task.name: task.centre / task.lr for task in TASKS if task.centre not in (None, task.lr)
    }
    assert higher == {
        name: pytest.approx(10.0) for name in ("digits CNN", "autoencoder", "Lion word LSTM")
    }
    suite = Suite(points=3, decades=2.0, sensitivity=["plain"], sensitivity_decades=2)
    # The sensitivity is to the user's rate.
    assert rates(suite, Plain(), tiny(lr=1.0, centre=10.0)) == (1.0, 10.0, 100.0, 0.1)
    runs = plan(Suite(["digits CNN"], ["cosine"], 1, 3, 2.0), TASKS, METHODS)
    assert [run.lr for run in runs] == [1e-3, 1e-2, 1e-1]


@pytest.mark.parametrize("wrong", [{"lr": 0.0}, {"lr": 1.0, "centre": math.inf}])
def test_a_task_without_a_usable_rate_is_refused(wrong):
    with pytest.raises(ConfigurationError, match=r"(lr|centre)=.* must be a number in \(0, inf\)"):
        BenchTask("a", "new seeds", tiny, **wrong)


def test_the_quick_suite_is_what_it_promises():
    runs = list(plan(suite_of("quick"), TASKS, METHODS))
    names = {planned.method.name for planned in runs}
    of = {name: [r for r in runs if r.method.name == name] for name in names}
    assert names == {
        *("dqnlr", "cosine", "wsd", "schedule-free", "prodigy", "constant", "plateau", "untrained"),
    }
    assert len({run.task.name for run in runs}) == 4
    assert {run.seed for run in runs} == {0, 1}
    assert {run.lr for run in of["plateau"]} == {run.lr for run in of["dqnlr"]} == {None}
    for task in {planned.task for planned in runs}:
        rates = sorted(run.lr for run in of["cosine"] if run.task is task and run.seed == 0)
        assert rates == list(grid(task.lr, 5, 4))
    assert len({run.key for run in runs}) == len(runs)
    assert estimate(runs, workers=2) < 5 * 60


def test_the_full_suite_has_everything():
    suite = suite_of("full")
    assert choose(TASKS, suite.tasks, "tasks") == TASKS
    assert choose(METHODS, suite.methods, "methods") == METHODS
    apart = {method.name for method in choose(METHODS, suite.apart_methods, "apart_methods")}
    assert apart == {"dqnlr", "cosine", "wsd", "prodigy", "untrained"}
    (dqnlr,) = choose(METHODS, ["dqnlr"], "methods")
    (cosine,) = choose(METHODS, ["cosine"], "methods")
    given = rates(suite, dqnlr, tiny())
    assert suite.seeds == 5
    assert given[0] is None
    assert given[1:] == grid(1e-3, 7, 6)
    assert max(given[1:]) / min(given[1:]) == pytest.approx(1e6)
    assert rates(suite, cosine, tiny())[:17] == grid(1e-3, 17, 4)


def test_an_unknown_name_is_refused_with_those_that_there_are():
    with pytest.raises(ConfigurationError, match=r"suite.tasks: \['no such'\]; there are: qua"):
        list(plan(Suite(tasks=["no such"]), TASKS, METHODS))
    with pytest.raises(ConfigurationError, match=r"suite.sensitivity: \['cosin'\]"):
        list(plan(Suite(sensitivity=["cosin"]), TASKS, METHODS))


@pytest.mark.parametrize("wrong", [{"seeds": 0}, {"points": 2.5}, {"decades": 0}])
def test_a_suite_that_cannot_be_is_refused(wrong):
    with pytest.raises(ConfigurationError, match=next(iter(wrong))):
        Suite(**wrong)


def test_an_own_task_begins_at_its_own_learning_rate():
    task = tiny().open()
    assert your_own(task).lr == 1e-3
    assert your_own(task, lr=0.5).lr == 0.5
    assert your_own(task).open().name == task.name


def test_runs_are_stored_failures_too_and_only_what_is_missing_runs(tmp_path):
    store, suite = Store(tmp_path), Suite(seeds=2, points=2, decades=1.0)
    runs = list(plan(suite, [tiny()], [Plain(), Raising(), Absent()]))
    assert len(runs) == 2 * 2 + 2 + 2
    seen = []
    refused = complete(missing(runs, store), store, 1, seen.append)
    assert set(refused) == {"absent"}
    assert len(seen) == 8
    assert seen[-1].seconds_left == 0.0
    assert sum(progress.failure is not None for progress in seen) == 2
    assert {run.method.name for run in missing(runs, store)} == {"absent"}
    assert len(missing(runs, store, retry_failed=True)) == 4
    keys = {run.key for run in runs if run.method.name != "absent"}
    assert {record.key for record in store.records()} == keys  # planned before, recorded after


def test_the_time_left_is_by_the_seconds_of_the_runs_and_counts_what_follows(tmp_path):
    """The task says an hour; its runs take a moment, and the measure counts."""
    task, store = tiny(seconds=3600.0), Store(tmp_path)
    runs = list(plan(Suite(seeds=3, points=1), [task], [Plain()]))
    seen = []
    complete(runs, store, 1, seen.append, later=2 * 3600.0)
    assert [progress.over for progress in seen] == [1, 2, 3]
    assert 0 < seen[-1].seconds_left < seen[0].seconds_left < 600


@pytest.fixture
def one_thread():
    """As in the benchmark's processes: sums of several threads round differently."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("one_thread")
def test_the_number_of_processes_changes_no_result():
    runs = [planned(tiny(), Plain(), lr, seed) for lr in (1e-3, 1e-2) for seed in (0, 1)]
    ended = {one.run.key: one.outcome for one in make_runs(runs, 2, lambda _: False)}
    there = [ended[one.key].final_train for one in runs]
    here = [one.make(one.task.open()) for one in runs]
    assert there == [record.final_train for record in here]
    assert len(set(there)) == 4


def test_a_process_that_is_killed_is_named_with_its_remedy():
    runs = [planned(tiny(), Killer())]
    with pytest.raises(ConfigurationError, match="ended with code 9"):
        list(make_runs(runs, 1, lambda _: False))


def test_a_task_that_cannot_be_sent_is_refused():
    local = BenchTask("local", "your own", lambda: tiny().open(), 1e-3)
    with pytest.raises(ConfigurationError, match="cannot be sent to another process"):
        list(make_runs([planned(local, Plain())], 1, lambda _: False))


def test_every_suite_has_a_configuration():
    conf = Path(__file__).parents[2] / "conf/suite"
    assert {path.stem for path in conf.glob("*.yaml")} == {
        *("quick", "full", "shipped", "mine", "real", "gpu")
    }
