import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lightning_dqnlr.errors import ConfigurationError
from lightning_dqnlr.policy.choice import epsilon_greedy
from lightning_dqnlr.rl.dqn import DQNConfig
from lightning_dqnlr.rl.td import double_q_target, q_learning_target, td_error, td_loss

NAN = float("nan")

# Row 0: the networks disagree on the best action. Row 1: they agree. Row 2: terminal.
R_T = torch.tensor([1.0, -1.0, 0.5])
DISCOUNT_T = torch.tensor([0.5, 0.9, 0.0])
Q_T_TARGET = torch.tensor([[2.0, 8.0, 4.0], [3.0, 1.0, 2.0], [7.0, 7.0, 7.0]])
Q_T_ONLINE = torch.tensor([[9.0, 5.0, 1.0], [6.0, 0.0, 0.0], [7.0, 8.0, 7.0]])


def test_q_learning_takes_the_target_networks_maximum():
    target = q_learning_target(R_T, DISCOUNT_T, Q_T_TARGET)
    torch.testing.assert_close(target, torch.tensor([5.0, 1.7, 0.5]))


def test_double_q_selects_with_the_online_network_and_evaluates_with_the_target():
    target = double_q_target(R_T, DISCOUNT_T, Q_T_TARGET, Q_T_ONLINE)
    # row 0: 1 + 0.5 * 2; decoys: 5 (target's own maximum), 5.5 (online's), 3.5 (roles swapped)
    torch.testing.assert_close(target, torch.tensor([2.0, 1.7, 0.5]))


@pytest.mark.parametrize("poison", [NAN, math.inf, -math.inf])
def test_a_terminal_does_not_bootstrap_from_non_finite_values(poison):
    q_t = torch.tensor([[1.0, 2.0], [poison, poison]])
    r_t, discount_t = torch.tensor([0.0, 0.5]), torch.tensor([1.0, 0.0])
    expected = torch.tensor([2.0, 0.5])
    assert torch.equal(q_learning_target(r_t, discount_t, q_t), expected)
    assert torch.equal(double_q_target(r_t, discount_t, q_t, q_t), expected)


def test_no_gradient_flows_through_a_target():
    q_t = Q_T_TARGET.clone().requires_grad_()
    assert not q_learning_target(R_T, DISCOUNT_T, q_t).requires_grad
    assert not double_q_target(R_T, DISCOUNT_T, q_t, q_t).requires_grad
    loss = td_loss(q_t, torch.tensor([0, 1, 2]), q_t.sum(dim=1), kind="mse")
    loss.backward()
    # Only the chosen entries: 2/3 * (q - target), target 14, 6, 21.
    expected = torch.diag(torch.tensor([2.0 - 14.0, 1.0 - 6.0, 7.0 - 21.0])) * 2 / 3
    torch.testing.assert_close(q_t.grad, expected)


Q_TM1 = torch.tensor([[1.0, 50.0], [50.0, 2.0]])
A_TM1 = torch.tensor([0, 1])
TARGET = torch.tensor([1.5, -1.0])  # errors 0.5 and -3


def test_td_error_is_target_minus_the_taken_actions_value():
    torch.testing.assert_close(td_error(Q_TM1, A_TM1, TARGET), torch.tensor([0.5, -3.0]))


@pytest.mark.parametrize(
    ("kind", "delta", "expected"),
    [
        ("mse", 1.0, (0.25 + 9.0) / 2),
        ("mse", 2.0, (0.25 + 9.0) / 2),
        ("huber", 1.0, (0.125 + 2.5) / 2),
        ("huber", 2.0, (0.125 + 4.0) / 2),
    ],
)
def test_td_loss_by_hand(kind, delta, expected):
    loss = td_loss(Q_TM1, A_TM1, TARGET, kind=kind, delta=delta)
    torch.testing.assert_close(loss, torch.tensor(expected))


def test_weights_scale_each_transitions_loss_and_leave_the_count():
    weights = torch.tensor([3.0, 0.0])
    loss = td_loss(Q_TM1, A_TM1, TARGET, kind="mse", weights=weights)
    torch.testing.assert_close(loss, torch.tensor(0.375))


def test_a_column_of_targets_is_refused_instead_of_broadcast():
    with pytest.raises(ConfigurationError, match="target"):
        td_loss(Q_TM1, A_TM1, TARGET.unsqueeze(1), kind="mse")
    with pytest.raises(ConfigurationError, match="r_t"):
        q_learning_target(R_T.unsqueeze(1), DISCOUNT_T, Q_T_TARGET)


def test_an_unknown_loss_is_refused():
    with pytest.raises(ConfigurationError, match="kind"):
        td_loss(Q_TM1, A_TM1, TARGET, kind="mae")


def test_epsilon_zero_is_greedy_and_one_is_even():
    q_values = torch.tensor([1.0, 3.0, 2.0]).expand(6000, 3)
    generator = torch.Generator().manual_seed(0)
    assert torch.equal(epsilon_greedy(q_values, 0.0, generator), torch.ones(6000).long())
    counts = epsilon_greedy(q_values, 1.0, generator).bincount(minlength=3)
    assert (counts - 2000).abs().max() < 150  # four standard deviations: 146


def test_epsilon_may_differ_between_replicas():
    q_values = torch.tensor([0.0, 0.0, 0.0, 1.0]).expand(2, 500, 4)
    epsilon = torch.tensor([[0.0], [1.0]])
    actions = epsilon_greedy(q_values, epsilon, torch.Generator().manual_seed(0))
    assert (actions[0] == 3).all()
    assert (actions[1] != 3).any()


def test_exploration_draws_the_best_action_too():
    q_values = torch.tensor([0.0, 1.0]).expand(10000, 2)
    actions = epsilon_greedy(q_values, 0.5, torch.Generator().manual_seed(0))
    assert abs(actions.float().mean().item() - 0.75) < 0.02


@given(st.floats(0, 1))
def test_epsilon_does_not_change_the_randomness_that_follows(epsilon):
    generator = torch.Generator().manual_seed(3)
    epsilon_greedy(torch.zeros(5, 4), epsilon, generator)
    after = torch.rand(1, generator=generator)
    generator.manual_seed(3)
    epsilon_greedy(torch.zeros(5, 4), 0.0, generator)
    assert torch.equal(after, torch.rand(1, generator=generator))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("double", "yes"),
        ("loss", "mae"),
        ("learning_rate", 0.0),
        ("learning_rate", NAN),
        ("batch_size", 0),
        ("batch_size", 2.5),
        ("target_update", "never"),
        ("target_period", 0),
        ("target_period", True),
        ("target_tau", 0.0),
        ("target_tau", 1.5),
        ("weight_decay", -1.0),
        ("max_grad_norm", 0.0),
        ("average_decay", 1.0),
    ],
)
def test_config_names_the_field_at_fault(field, value):
    with pytest.raises(ConfigurationError, match=rf"DQNConfig\.{field}="):
        DQNConfig(**{field: value})


def test_config_accepts_its_limits():
    config = DQNConfig(target_tau=1.0, average_decay=0.0, max_grad_norm=math.inf, target_period=1)
    assert (config.target_tau, config.average_decay, config.target_period) == (1.0, 0.0, 1)
