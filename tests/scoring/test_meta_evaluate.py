import json
import math

import pytest
import torch

from lightning_dqnlr.control.spec import CLASSIC_MULTIPLIERS, ActionSpec, ControllerSpec
from lightning_dqnlr.policy.choice import ScriptedPolicy
from lightning_dqnlr.scoring.evaluate import (
    Regrets,
    Rivals,
    evaluate,
    fingerprint,
    interquartile_mean,
    run_policy,
)
from tests.meta.tiny_tasks import TinyTasks

SPEC = ControllerSpec(
    actions=ActionSpec(CLASSIC_MULTIPLIERS),
    decay="none",
    max_update_ratio=1e9,
    scale_floor=1e-12,
)


def keep(**harness):
    act = lambda seen: torch.full(seen.shape[:-1], SPEC.actions.keep)  # noqa: E731
    return ScriptedPolicy(act, SPEC, **harness)


def test_the_interquartile_mean_cuts_a_quarter_at_each_end():
    """Of eight values two are cut at each end, so the outliers do not count."""
    values = torch.tensor([100.0, 2.0, 3.0, -50.0, 4.0, 0.0, 9.0, 5.0])
    assert interquartile_mean(values) == pytest.approx((2 + 3 + 4 + 5) / 4)


def test_the_interquartile_mean_rounds_the_cut_down():
    assert interquartile_mean(torch.tensor([9.0, 1.0, 2.0])) == pytest.approx(4.0)
    assert interquartile_mean(torch.tensor([9.0, 1.0, 2.0, -7.0, 3.0])) == pytest.approx(2.0)


def test_the_score_clips_each_run_and_loses_none():
    """(0.2 + 2 + 2 - 0.5) / 4: one run too bad, one not a number, one too good to be true."""
    train = torch.tensor([[0.2, 5.0], [math.nan, -3.0]])
    assert Regrets(("a", "b"), train, train, 0.0).score == pytest.approx(0.925)


def test_scores_by_task_are_means_over_the_seeds_only():
    train = torch.tensor([[0.0, 1.0], [2.0, 4.0]])
    by_task = Regrets(("a", "b"), train, 10 * train, 0.0).by_task()
    assert by_task == {
        "a": {"train": 0.5, "validation": 5.0},
        "b": {"train": 3.0, "validation": 30.0},
    }


def test_a_users_start_spreads_the_learning_rates_over_seven_decades():
    """With "keep" and no decay it stays what the user set (but for the runs that are lost)."""
    free = keep(start="optimizer", circuit_breaker=False)
    result = run_policy(TinyTasks().sample(0), free, range(8))
    wanted = torch.logspace(-6, 1, 8).log()
    torch.testing.assert_close(result.log_scale[0], wanted)
    torch.testing.assert_close(result.log_scale[-1, :6], wanted[:6])


def test_the_safe_start_does_not_depend_on_any_user():
    result = run_policy(TinyTasks().sample(0), keep(), range(4))
    ratios = result.log_scale[0].exp()
    assert (ratios.max() / ratios.min()).item() < 100


def test_the_circuit_breaker_can_be_taken_out():
    task = TinyTasks().sample(0)
    with_it = run_policy(task, keep(start="optimizer"), range(8))
    without = run_policy(task, keep(start="optimizer", circuit_breaker=False), range(8))
    assert with_it.trips > 0
    assert without.trips == 0


def test_an_evaluation_repeats_exactly_and_leaves_the_random_state_alone(tmp_path):
    """The second one finds the rivals on disk; dropout must not notice."""
    tasks = [TinyTasks().sample(i, "validation") for i in range(2)]
    torch.manual_seed(3)
    before = torch.get_rng_state()
    first = evaluate(keep(), tasks, Rivals(tmp_path), range(2))
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(4)
    second = evaluate(keep(), tasks, Rivals(tmp_path), range(2))
    assert torch.equal(first.train, second.train)
    assert torch.equal(first.validation, second.validation)


def test_rivals_are_tuned_once_and_kept(tmp_path):
    task = TinyTasks().sample(0, "validation")
    tuned = Rivals(tmp_path)[task]
    (path,) = tmp_path.glob("*.json")
    assert path.stem == fingerprint(task)
    # As earlier versions kept it, without a checksum.
    path.write_text(json.dumps({**tuned._asdict(), "peak": 123.0}))
    assert Rivals(tmp_path)[task].peak == 123.0  # read, not tuned again
    assert Rivals(tmp_path)[task].train_losses == tuned.train_losses


def test_the_fingerprint_tells_tasks_apart_and_repeats():
    family = TinyTasks()
    names = {fingerprint(family.sample(seed, "validation")) for seed in (0, 1, 2)}
    assert len(names) == 3
    assert fingerprint(family.sample(1, "validation")) in names
