"""The race over a grid: which peaks stay, which runs follow, and what the report says of it."""

import math

import pytest

from lightning_dqnlr.bench.report.comparison import Comparison
from lightning_dqnlr.bench.report.write import write_report
from lightning_dqnlr.bench.runs.archive import Store
from lightning_dqnlr.bench.runs.record import survivors
from lightning_dqnlr.bench.runs.suite import Suite, plan, rounds
from lightning_dqnlr.bench.tasks import Sampled
from lightning_dqnlr.bench.tasks.task import BenchTask
from lightning_dqnlr.cli import bench as cli_bench
from lightning_dqnlr.errors import ConfigurationError
from lightning_dqnlr.tasks.families.basic import TeacherMLPs
from tests.bench.synthetic_records import record
from tests.bench.tiny_methods import Absent, Plain, Raising
from tests.cli.test_cli_bench import composed

# e is 0.02: the losses of `record` begin at 2.0. Loss 0.18 is then 0.2, and twice that 0.38.
BEST, WITHIN, BEYOND = 0.18, 0.38, 0.39


def raced(*losses, **fields):
    """One run per loss, at the LRs 1, 2, 3, ..."""
    return [
        record(method="cosine", lr=float(i), final_train=loss, **fields)
        for i, loss in enumerate(losses, 1)
    ]


GRIDS = {
    "within the margin, more than three": ((WITHIN, BEST, WITHIN, BEST, BEYOND), {1, 2, 3, 4}),
    "the best three, however far behind": ((1.0, BEST, 1.5, 1.9), {1, 2, 3}),
    "at the margin's edge only": ((BEST, BEST, BEST, WITHIN, BEYOND), {1, 2, 3, 4}),
    "diverged ones last": ((None, BEST, math.inf, BEYOND, None, 1.9), {2, 4, 6}),
    "fewer than three are finite": ((BEST, None, None, None), {1, 2, 3}),
    "a tie for the third place": ((BEST, 0.2, 1.0, 1.0, 1.0), {1, 2, 3}),
    "all diverged": ((None, None, None, None, None), {1, 2, 3, 4, 5}),
    "two peaks": ((BEST, 1.9), {1, 2}),
    # Log loss alone would put a factor of ten between them; e says that both are solved.
    "small losses are equal": ((1e-5, 1e-4, 1e-5, 1e-4, 1.0), {1, 2, 3, 4}),
}


@pytest.mark.parametrize("case", GRIDS)
def test_only_hopeless_peaks_are_dropped(case):
    losses, stay = GRIDS[case]
    assert survivors(raced(*losses), math.log(2) + 1e-9) == stay


def test_a_run_that_raised_is_no_winner_whatever_its_loss():
    runs = [*raced(0.01, failure="no"), *raced(None, BEST, 0.2, 0.2)[1:]]
    assert survivors(runs, 0.0) == {2, 3, 4}


def test_a_wider_margin_keeps_more():
    assert survivors(raced(BEST, 0.5, 0.5, 1.0, 1.9), math.log(6)) == {1, 2, 3, 4}


def lr_losses(store, runs, losses):
    for run in runs:
        if run.lr in losses and run.seed == 0:
            fields = {"version": run.key.version, "final_train": losses[run.lr]}
            store.put(record(run.task.name, run.method.name, run.lr, 0, **fields))


@pytest.fixture
def planned():
    suite = Suite(seeds=3, points=5, decades=4.0, race_margin=0.7)
    task = BenchTask("tiny", "new seeds", Sampled(TeacherMLPs, "adam", 20), 1.0)
    return list(plan(suite, [task], [Plain(), Raising()]))


def told(runs):
    return sorted((run.method.name, run.lr or 0.0, run.seed) for run in runs)


def test_before_the_first_seed_is_over_no_further_one_is_wanted(planned, tmp_path):
    store = Store(tmp_path)
    lr_losses(store, planned, {0.01: BEST, 0.1: 1.0, 1.0: 1.0, 10.0: 1.0})  # 100.0 is not there
    wanted, undecided = rounds(planned, store, 0.7)
    firsts = [("plain", lr, 0) for lr in (0.01, 0.1, 1.0, 10.0, 100.0)]
    assert told(wanted) == sorted([*firsts, *[("raising", 0.0, seed) for seed in (0, 1, 2)]])
    assert len(undecided) == 5 * 2
    assert told(wanted + undecided) == told(planned)


def test_then_only_what_stayed_runs_with_further_seeds(planned, tmp_path):
    store = Store(tmp_path)
    lr_losses(store, planned, {0.01: 1.9, 0.1: BEST, 1.0: 1.0, 10.0: 1.5, 100.0: None})
    wanted, undecided = rounds(planned, store, 0.7)
    assert undecided == []
    further = [run for run in told(wanted) if run[0] == "plain" and run[2] > 0]
    assert further == [("plain", lr, seed) for lr in (0.1, 1.0, 10.0) for seed in (1, 2)]
    assert len(wanted) == 5 + 3 * 2 + 3


def test_without_a_margin_there_is_no_race(planned, tmp_path):
    assert rounds(planned, Store(tmp_path), None) == (planned, [])


@pytest.mark.parametrize("margin", [-0.1, math.inf, math.nan])
def test_a_margin_that_cannot_be_is_refused(margin):
    with pytest.raises(ConfigurationError, match="race_margin"):
        Suite(race_margin=margin)


def grid_of_two_seeds():
    """LRs 1 to 3 with both seeds, 4 dropped by the race, 5 stayed but lacks its second seed."""
    first = raced(0.2, 0.2, BEST, 1.9, 0.3, seed=0, seconds=2.0)
    return first + raced(0.2, 0.19, 0.5, seed=1, seconds=4.0)


def test_a_peak_that_was_dropped_does_not_count_as_unfinished():
    entry = Comparison(grid_of_two_seeds(), race_margin=0.7).entries["t", "cosine"]
    assert (entry.lr, entry.unfinished, entry.dropped) == (2.0, 1, 1)
    assert entry.tries == 5
    assert entry.seconds == 3 * 3.0 + 2 * 2.0  # a peak costs what its seeds take on average
    entry = Comparison(grid_of_two_seeds()).entries["t", "cosine"]
    assert (entry.unfinished, entry.dropped) == (2, 0)


def test_the_report_calls_only_the_unfinished_a_defect(tmp_path):
    runs = grid_of_two_seeds() + [record(seed=seed) for seed in (0, 1)]
    write_report(runs, tmp_path, race_margin=0.7)
    text = (tmp_path / "report.md").read_text()
    assert "1 LRs of its grid lack a seed" in text
    write_report([run for run in runs if run.lr != 5], tmp_path, race_margin=0.7)
    assert "lack a seed" not in (tmp_path / "report.md").read_text()


def test_the_command_races_and_goes_on_from_any_round(tmp_path, capsys):
    arguments = (
        "suite.tasks=[fine-tuned encoder]",
        "suite.methods=[constant]",
        "suite.seeds=2",
        "suite.points=5",
        "suite.race_margin=0.0",
        "workers=1",
        f"folder={tmp_path}",
    )
    cli_bench.run(composed(*arguments, "dry_run=true"), "quick")
    assert "5 runs, 0 of them stored" in capsys.readouterr().out
    assert cli_bench.run(composed(*arguments), "quick").is_file()
    records = list(Store(tmp_path / "runs").records())
    assert len([run for run in records if run.seed == 0]) == 5
    assert {run.lr for run in records if run.seed == 1} == survivors(
        [run for run in records if run.seed == 0], 0.0
    )
    assert len(records) == 5 + 3
    capsys.readouterr()
    cli_bench.run(composed(*arguments, "dry_run=true"), "quick")
    assert "8 runs, 8 of them stored" in capsys.readouterr().out


def test_the_first_methods_run_first_on_each_task():
    make = Sampled(TeacherMLPs, "adam", 20)
    tasks = [BenchTask(name, "new seeds", make, 1.0) for name in "ab"]
    suite = Suite(seeds=1, points=1, first=["absent", "raising"])
    order = [
        (run.task.name, run.method.name)
        for run in plan(suite, tasks, [Plain(), Raising(), Absent()])
    ]
    assert order == [(task, name) for task in "ab" for name in ("absent", "raising", "plain")]
    with pytest.raises(ConfigurationError, match=r"suite.first: \['no such'\]"):
        list(plan(Suite(first=["no such"]), tasks, [Plain()]))
