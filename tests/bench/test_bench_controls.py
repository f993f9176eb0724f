import pytest
import torch

from lightning_dqnlr.bench.methods.policies import (
    MeanCurve,
    in_harness,
    state_blind,
    study,
    untrained,
)
from lightning_dqnlr.control.features import CLASSIC, SCALE_FREE, FeatureSpec
from lightning_dqnlr.control.spec import ControllerSpec
from lightning_dqnlr.envs.vector import ON_CPU
from lightning_dqnlr.errors import ConfigurationError
from lightning_dqnlr.policy.network import QNetwork
from lightning_dqnlr.policy.policy import LRPolicy
from lightning_dqnlr.tasks.families.basic import NoisyQuadratics

SPEC = ControllerSpec()


def observe(scale_to_start, progress, known=1.0):
    row = torch.zeros(1, len(SCALE_FREE))
    for name, value in (
        ("scale_to_start", scale_to_start),
        ("progress", progress),
        ("horizon_known", known),
    ):
        row[0, SCALE_FREE.index(name)] = value
    return row


def test_state_blind_does_not_look_and_has_the_given_frequencies():
    frequencies = torch.tensor([0.0, 0.5, 0.0, 0.25, 0.0, 0.25, 0.0])
    first = state_blind(frequencies)(torch.randn(8000, 36))
    assert torch.equal(first, state_blind(frequencies)(torch.randn(8000, 36)))
    share = torch.bincount(first, minlength=7) / 8000
    torch.testing.assert_close(share, frequencies, atol=0.02, rtol=0)


def test_mean_curve_replays_the_mean_of_what_it_saw():
    curve = MeanCurve(SPEC)
    curve.record(observe(0.0, 0.0))
    curve.record(observe(0.4, 0.0))
    # Mean 0.2 is 5 * 0.2 = 1 in log LR above a run at 0: the nearest multiplier is 2 (0.69).
    assert curve.act(observe(0.0, 0.0)).item() == 5
    assert curve.act(observe(0.2, 0.0)).item() == 3
    assert curve.act(observe(0.6, 0.0)).item() == 0


def test_mean_curve_keeps_where_it_saw_nothing():
    assert MeanCurve(SPEC).act(observe(1.0, 0.5)).item() == 3


def test_mean_curve_tells_known_from_unknown_horizons():
    curve = MeanCurve(SPEC)
    curve.record(observe(1.0, -1.0, known=0.0))
    assert curve.act(observe(0.0, -1.0, known=0.0)).item() == 6
    assert curve.act(observe(0.0, -1.0, known=1.0)).item() == 3


def test_mean_curve_refuses_a_policy_that_does_not_see_its_own_scale():
    with pytest.raises(ConfigurationError, match="scale_to_start"):
        MeanCurve(ControllerSpec(features=FeatureSpec(CLASSIC)))


def test_untrained_is_the_same_network_with_other_weights_and_a_seed_of_its_own():
    torch.manual_seed(0)
    policy = LRPolicy(QNetwork(len(SPEC.features), len(SPEC.actions)), SPEC)
    state = torch.get_rng_state()
    observation = torch.randn(200, len(SPEC.features), generator=torch.Generator())
    once, again = untrained(policy, 3)(observation), untrained(policy, 3)(observation)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(once, again)
    assert not torch.equal(once, policy.act(observation))


def test_study_counts_the_actions_of_whole_runs():
    network = QNetwork(len(SPEC.features), len(SPEC.actions), hidden=(), dueling=False)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.zero_()
        network.advantage[-1].bias[2] = 1.0
    task = NoisyQuadratics(min_horizon=20, max_horizon=20).sample(0)
    frequencies, curve = study(LRPolicy(network, SPEC), [task], [0, 1], ON_CPU)
    assert frequencies.tolist() == [0, 0, 1, 0, 0, 0, 0]
    assert curve._count.sum() > 0


def test_a_control_keeps_the_start_and_the_circuit_breaker_of_the_policy():
    record = {"start": "optimizer", "circuit_breaker": False}
    policy = LRPolicy(QNetwork(len(SPEC.features), len(SPEC.actions)), SPEC, record)
    control = in_harness(lambda seen: torch.full(seen.shape[:-1], 2), policy)
    assert (control.start, control.circuit_breaker) == ("optimizer", False)
    assert control.act(torch.zeros(4, len(SPEC.features))).tolist() == [2, 2, 2, 2]
