"""`benchmarks/bars.py`: what is said to be met is met."""

import subprocess
import sys
from pathlib import Path

import pytest
from bars import bars

from lightning_dqnlr.bench.report.comparison import Comparison
from lightning_dqnlr.bench.runs.archive import Archive
from tests.bench.synthetic_records import record

ROOT = Path(__file__).parents[1]
# Starts at 2, so e is 0.02; the cosine ends at 1.
TASKS = ("a", "b", "c")


def runs(method, loss, lr=None, tasks=TASKS, seeds=3, **fields):
    return [
        record(task, method, lr, seed, final_train=loss, final_validation=loss, **fields)
        for task in tasks
        for seed in range(seeds)
    ]


def found(*more, ours=1.0):
    records = [*runs("cosine", 1.0, lr=0.1), *runs("dqnlr", ours)]
    for others in more:
        records += others
    return {row.figure: row for row in bars(Comparison(records))}


def test_the_regret_of_an_equal_policy_is_met_and_of_a_worse_one_is_not():
    equal, worse = found(), found(ours=1.2)
    name = "IQM of regret, final training loss (3 tasks)"
    assert (equal[name].measured, equal[name].met) == ("0.000 [0.000, 0.000]", True)
    # log(1.22 / 1.02) = 0.179
    assert (worse[name].measured, worse[name].met) == ("0.179 [0.179, 0.179]", False)
    assert not worse["90th percentile of regret"].met


def test_a_thousand_runs_are_needed_to_say_that_none_is_lost():
    figure = "runs that diverge or end above their starting loss"
    assert not found()[figure].met
    many = runs("dqnlr", 1.0, lr=0.5, seeds=400)  # nine of them end as at the module's own rate
    assert found(many)[figure].measured == "0 of 1,209, of which 1,200 are unlike"
    assert found(many)[figure].met
    lost = [record("a", "dqnlr", 0.7, 0, final_train=2.1)]
    assert found(many, lost)[figure].measured == "1 of 1,210, of which 1,201 are unlike"
    assert not found(many, lost)[figure].met


def test_runs_that_are_copies_of_each_other_do_not_make_a_thousand():
    figure = "runs that diverge or end above their starting loss"
    copies = [run for n in range(200) for run in runs("dqnlr", 1.0, lr=0.001 * (n + 1))]
    assert found(copies)[figure].measured == "0 of 1,809, of which 9 are unlike"
    assert not found(copies)[figure].met


def test_each_rival_has_its_own_bar():
    rows = found(runs("wsd", 1.0, lr=0.1), runs("prodigy", 1.0), runs("greedy", 1.5))
    assert rows["probability of improvement over wsd"].met  # a tie is 1/2
    assert not rows["probability of improvement over prodigy"].met
    assert rows["probability of improvement over greedy"].measured.startswith("1.00")


def test_splits_of_their_own_are_not_among_the_tasks():
    far = {"tasks": ("far",), "split": "longer runs"}
    rows = found(runs("cosine", 1.0, lr=0.1, **far), runs("dqnlr", 1.2, **far))
    assert rows["IQM of regret, final training loss (3 tasks)"].met
    assert not rows["IQM of regret, longer runs (1 tasks)"].met


def test_a_control_that_is_as_good_is_not_clearly_worse():
    rows = found(runs("mean-curve", 1.0), runs("untrained", 1.5))
    assert not rows["mean-curve, IQM of regret (3 tasks)"].met
    assert rows["untrained, IQM of regret (3 tasks)"].met


def test_memory_beyond_two_copies_of_weights_and_moments():
    name = "memory beyond the circuit breaker's copies, at most"
    assert found()[name].met
    heavy = [
        *runs("cosine", 1.0, lr=0.1),
        *runs("dqnlr", 1.0, extra_bytes=24_000 + 1_500_000, parameters=1000),
    ]
    (row,) = [row for row in bars(Comparison(heavy)) if row.figure == name]
    assert (row.measured, row.met) == ("1.50 MB", False)


@pytest.mark.parametrize("shipped", [False, True])
def test_the_command_prints_a_table(tmp_path, shipped):
    folder = ROOT / "benchmarks" / "records"
    if not shipped:
        folder = tmp_path
        records = [
            *runs("cosine", 1.0, lr=0.1, tasks=("quadratic",)),
            *runs("dqnlr", 1.0, tasks=("quadratic",)),
        ]
        Archive(folder).pack(records, [record.key for record in records])
    command = [sys.executable, str(ROOT / "benchmarks" / "bars.py"), "--records", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("| figure | bar | measured | met |")
