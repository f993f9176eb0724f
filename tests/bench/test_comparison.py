import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_dqnlr.bench.report.comparison import PLAIN, RIVAL, SUBJECT, Comparison
from lightning_dqnlr.bench.runs.record import VALIDATION, diverged
from lightning_dqnlr.errors import ConfigurationError
from lightning_dqnlr.scoring.cosine import DIVERGED
from tests.bench.synthetic_records import record

# Initial losses are 2.0, so e is 0.02.
losses = st.floats(0.0, 10.0)


def runs(method, *final_losses, lr=None, task="t", **fields):
    return [
        record(task, method, lr, seed, final_train=loss, final_validation=loss, **fields)
        for seed, loss in enumerate(final_losses)
    ]


def regrets(comparison, method, which="train"):
    return comparison.regrets("t", method, which).tolist()


def test_regret_by_hand():
    # The rival's losses plus e are 0.5 and 2.0: geometric mean 1, not the arithmetic 1.25.
    rival = runs("cosine", 0.48, 1.98, lr=0.1)
    compared = Comparison(rival + runs("dqnlr", 0.98, 3.98))
    assert regrets(compared, "dqnlr") == pytest.approx([0.0, math.log(4)])
    assert regrets(compared, "cosine") == pytest.approx([-math.log(2), math.log(2)])


def test_validation_regret_uses_the_validation_losses_and_their_own_e():
    fields = {"initial_validation": 4.0, "final_train": 7.0}
    rival = record(method="cosine", lr=0.1, final_validation=0.96, **fields)
    mine = record(method="dqnlr", final_validation=2.96, **fields)
    compared = Comparison([rival, mine])
    assert regrets(compared, "dqnlr", VALIDATION) == pytest.approx([math.log(3)])


def test_diverged_runs_count_at_ten_times_the_initial_loss():
    worst = math.log((DIVERGED * 2.0 + 0.02) / 1.0)
    rival = runs("cosine", 0.98, 0.98, 0.98, lr=0.1)
    mine = runs("dqnlr", None, 1e9, 0.5)
    mine[2] = record(method="dqnlr", seed=2, final_train=0.5, failure="RuntimeError: late")
    assert regrets(Comparison(rival + mine), "dqnlr") == pytest.approx([worst] * 3)


def test_losses_below_zero_count_as_zero():
    compared = Comparison(runs("cosine", 0.0, lr=0.1) + runs("dqnlr", -5.0))
    assert regrets(compared, "dqnlr") == [0.0]


def test_the_peak_is_the_best_mean_of_the_log_training_loss():
    # The losses + e are 0.5 and 8 (mean log 2) against 4 and 4 (mean log 4). The latter have the
    # lower arithmetic mean and the lower validation loss.
    chosen = runs("cosine", 0.48, 7.98, lr=1.0)
    decoy = [
        record(method="cosine", lr=0.1, seed=seed, final_train=3.98, final_validation=0.1)
        for seed in (0, 1)
    ]
    entry = Comparison(decoy + chosen).entries["t", "cosine"]
    assert entry.lr == 1.0
    assert [run.final_train for run in entry.runs] == [0.48, 7.98]
    assert entry.tries == 2
    assert entry.seconds == 2.0


def test_a_method_that_ran_without_an_lr_is_not_tuned_by_its_sweep():
    sweep = runs("dqnlr", 0.1, lr=0.1) + runs("dqnlr", 0.2, lr=1.0)
    compared = Comparison(runs("cosine", 0.98, lr=0.1) + runs("dqnlr", 0.98, tries=3) + sweep)
    assert compared.entries["t", "dqnlr"].lr is None
    assert compared.entries["t", "dqnlr"].tries == 3
    assert list(compared.sweep("t", "dqnlr")) == [0.1, 1.0]


def test_an_lr_that_lacks_a_seed_cannot_be_chosen():
    compared = Comparison(runs("cosine", 0.9, 0.9, lr=0.1) + runs("cosine", 0.1, lr=1.0))
    entry = compared.entries["t", "cosine"]
    assert (entry.lr, entry.unfinished, entry.tries) == (0.1, 1, 2)


def test_a_method_that_lacks_a_seed_of_the_rivals_is_missing():
    compared = Comparison(runs("cosine", 0.9, 0.9, lr=0.1) + runs("dqnlr", 0.1))
    assert compared.missing("dqnlr") == ("t",)
    assert compared.complete() == ("cosine",)


def test_seeds_that_the_rival_lacks_do_not_count():
    compared = Comparison(runs("cosine", 0.98, lr=0.1) + runs("dqnlr", 0.98, 1.5))
    assert regrets(compared, "dqnlr") == pytest.approx([0.0])


def test_a_sweep_keeps_the_seeds_that_every_lr_has():
    compared = Comparison(runs("dqnlr", 0.1, 0.2, lr=0.1) + runs("dqnlr", 0.3, lr=1.0))
    assert [len(group) for group in compared.sweep("t", "dqnlr").values()] == [1, 1]


def test_two_records_of_one_run_are_refused():
    with pytest.raises(ConfigurationError, match="two runs"):
        Comparison([record(version="old"), record(version="new")])


def test_a_task_in_two_splits_is_refused():
    with pytest.raises(ConfigurationError, match="splits"):
        Comparison([record(split="a"), record(split="b", seed=1)])


def test_diverged_means_raised_lost_or_above_the_start():
    assert diverged(record(final_train=None))
    assert diverged(record(final_train=2.1))
    assert diverged(record(failure="ValueError: no"))
    assert not diverged(record(final_train=2.0))


def curve(steps, validation):
    blank = [None] * len(steps)
    return {"step": steps, "validation": validation, "train": blank, "lr": blank}


def test_time_ratios_by_hand():
    # The rival first reaches its final 1.0 at step 80, the subject half way between 40 and 60.
    rival = record(
        method="cosine",
        lr=0.1,
        final_validation=1.0,
        seconds=10.0,
        curve=curve([0, 80, 90, 100], [2.0, 1.0, 0.5, 1.0]),
    )
    mine = record(final_validation=0.5, seconds=20.0, curve=curve([0, 40, 60], [2.0, 1.5, 0.5]))
    compared = Comparison([rival, mine])
    assert compared.ratios("dqnlr", ["t"]) == pytest.approx([50 / 80])
    assert compared.ratios("dqnlr", ["t"], seconds=True) == pytest.approx([2 * 50 / 80])
    assert compared.ratios("cosine", ["t"]) == [1.0]


def test_the_final_loss_ends_the_curve():
    rival = record(method="cosine", lr=0.1, final_validation=1.0)
    late = record(final_validation=0.0, curve=curve([0, 50], [2.0, 2.0]))
    never = record(method="other", final_validation=1.01, curve=curve([0, 50], [2.0, 2.0]))
    compared = Comparison([rival, late, never])
    assert compared.ratios("dqnlr", ["t"]) == pytest.approx([0.75])
    assert compared.ratios("other", ["t"]) == [math.inf]


def test_a_run_that_raised_before_it_began_leaves_no_initial_loss():
    failed = record(initial_train=math.nan, final_train=None, failure="no")
    compared = Comparison([*runs("cosine", 0.98, lr=0.1), failed])
    assert regrets(compared, "dqnlr") == pytest.approx([math.log(20.02)])


@given(st.lists(losses, min_size=1, max_size=4), st.lists(losses, min_size=1, max_size=4))
@settings(max_examples=40)
def test_the_mean_regret_of_the_rival_to_itself_is_zero(first, second):
    count = min(len(first), len(second))
    records = runs("cosine", *first[:count], lr=0.1) + runs("cosine", *second[:count], lr=1.0)
    assert sum(regrets(Comparison(records), "cosine")) == pytest.approx(0.0, abs=1e-9)


@given(losses, losses)
@settings(max_examples=40)
def test_a_higher_loss_never_has_a_lower_regret(first, second):
    low, high = sorted((first, second))
    rival = runs("cosine", 1.0, 1.0, lr=0.1)
    better, worse = regrets(Comparison(rival + runs("dqnlr", low, high)), "dqnlr")
    assert better <= worse


@given(st.randoms())
@settings(max_examples=20)
def test_the_order_of_the_records_does_not_matter(shuffle: random.Random):
    records = runs("cosine", 0.9, 1.1, lr=0.1) + runs("cosine", 1.2, 0.8, lr=1.0)
    records += runs("dqnlr", 0.7, 1.3) + runs("dqnlr", 0.7, 1.3, task="other")
    first, second = Comparison(records), Comparison(shuffle.sample(records, len(records)))
    assert (first.methods, first.tasks, first.entries) == (
        second.methods,
        second.tasks,
        second.entries,
    )


def test_the_methods_that_the_report_is_about_come_first():
    records = [record(method=name) for name in ("a", PLAIN, RIVAL, SUBJECT)]
    assert Comparison(records).methods == (SUBJECT, RIVAL, PLAIN, "a")
