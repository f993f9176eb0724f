import pytest
import torch

from lightning_dqnlr.control.spec import ControllerSpec
from lightning_dqnlr.policy.choice import ScriptedPolicy, epsilon_greedy

SPEC = ControllerSpec()


def test_a_scripted_policy_takes_its_functions_actions_and_explores_like_any_other():
    policy = ScriptedPolicy(lambda seen: torch.full(seen.shape[:-1], 2), SPEC)
    observation = torch.zeros(4000, len(SPEC.features))
    choice = policy.choose(observation)
    assert choice.action.eq(2).all()
    assert choice.q_values.argmax(-1).equal(choice.action)
    other = policy.choose(observation, 0.7, torch.Generator().manual_seed(0)).action != 2
    assert other.float().mean().item() == pytest.approx(0.7 * 6 / 7, abs=0.03)


def test_exploration_has_the_shape_of_any_leading_dimensions():
    q_values = torch.zeros(40, 1, 50, 7)
    action = epsilon_greedy(q_values, 1.0, torch.Generator().manual_seed(0))
    assert action.shape == (40, 1, 50)
    assert action.unique().tolist() == list(range(7))


def test_the_number_zero_for_epsilon_draws_nothing_and_one_draws():
    policy = ScriptedPolicy(lambda seen: torch.full(seen.shape[:-1], 2), SPEC)
    generator = torch.Generator().manual_seed(0)
    before = generator.get_state()
    assert policy.choose(torch.zeros(3, len(SPEC.features)), 0, generator).action.eq(2).all()
    assert generator.get_state().equal(before)
    policy.choose(torch.zeros(3, len(SPEC.features)), 1, generator)
    assert not generator.get_state().equal(before)


def test_a_scripted_policy_has_the_breaker_undo_blow_ups():
    assert ScriptedPolicy(lambda seen: seen, SPEC).circuit_breaker is True
