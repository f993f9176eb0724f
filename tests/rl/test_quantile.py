import pytest
import torch
from torch import nn

from lightning_dqnlr.control.spec import ControllerSpec
from lightning_dqnlr.errors import ConfigurationError
from lightning_dqnlr.policy.network import QuantileNetwork
from lightning_dqnlr.rl.quantile import (
    QuantileConfig,
    QuantileLearner,
    quantile_huber_loss,
    quantile_target,
)
from lightning_dqnlr.rl.replay import Transitions

NAN = float("nan")


class Numbers(nn.Module):
    """Quantiles (S, A, N) of one-hot observations, one free number each."""

    def __init__(self, rows):
        super().__init__()
        self.theta = nn.Parameter(torch.tensor(rows))

    def quantiles(self, observation):
        return torch.einsum("...s,san->...an", observation, self.theta)

    def forward(self, observation):
        return self.quantiles(observation).mean(-1)


def test_the_loss_by_hand():
    predicted, target = torch.tensor([[0.0, 1.0]]), torch.tensor([[0.5, 3.0, 1.0]])
    loss = quantile_huber_loss(predicted, target, kappa=2.0)
    # tau 1/4: errors 0.5, 3, 1, all positive: 1/4 * (0.125, 2 * (3 - 1), 0.5), mean 4.625/12;
    # tau 3/4: errors -0.5, 2, 0: 1/4 * 0.125 and 3/4 * 2, mean 1.53125/3; summed, over kappa.
    # Decoys: the mean over i, the sum over j, tau of the other quantile, no division.
    wanted = (4.625 / 12 + 1.53125 / 3) / 2
    torch.testing.assert_close(loss, torch.tensor([wanted]))


def test_a_small_kappa_is_quantile_regressions_own_loss():
    predicted, target = torch.tensor([[0.0, 1.0]]), torch.tensor([[0.5, 3.0]])
    loss = quantile_huber_loss(predicted, target, kappa=1e-6)
    wanted = (0.25 * 0.5 + 0.25 * 3.0) / 2 + (0.25 * 0.5 + 0.75 * 2.0) / 2
    torch.testing.assert_close(loss, torch.tensor([wanted]), atol=1e-5, rtol=0)


def test_no_gradient_flows_through_the_target():
    predicted = torch.zeros(1, 2, requires_grad=True)
    target = torch.ones(1, 2, requires_grad=True)
    quantile_huber_loss(predicted, target, 1.0).sum().backward()
    assert target.grad is None
    torch.testing.assert_close(predicted.grad, torch.tensor([[-0.25, -0.75]]))


def test_the_target_moves_the_selected_actions_quantiles():
    quantiles = torch.tensor([[[1.0, 3.0], [0.0, 8.0]], [[NAN, NAN], [NAN, NAN]]])
    selector = torch.tensor([[9.0, 5.0], [0.0, 1.0]])
    target = quantile_target(
        torch.tensor([1.0, 7.0]), torch.tensor([0.5, 0.0]), quantiles, selector
    )
    # action 0 by the selector (decoy: action 1 has the larger mean); a terminal is its reward
    torch.testing.assert_close(target, torch.tensor([[1.5, 2.5], [7.0, 7.0]]))


ONE = Transitions(
    torch.tensor([[1.0, 0.0]]),
    torch.tensor([0]),
    torch.tensor([1.0]),
    torch.tensor([[0.0, 1.0]]),
    torch.tensor([0.5]),
)


@pytest.mark.parametrize(("double", "error"), [(True, 1.0 + 0.5 * 2.0), (False, 1.0 + 0.5 * 4.0)])
def test_double_selects_by_the_online_networks_mean(double, error):
    # Online prefers action 0 by its mean, though action 1 has the largest single quantile.
    online = Numbers([[[0.0, 0.0], [0.0, 0.0]], [[5.0, 5.0], [0.0, 9.0]]])
    learner = QuantileLearner(online, QuantileConfig(double=double, quantiles=2))
    with torch.no_grad():
        learner.target.theta.copy_(torch.tensor([[[0.0, 0.0]] * 2, [[1.0, 3.0], [0.0, 8.0]]]))
    found = learner.update(ONE)
    torch.testing.assert_close(found.errors, torch.tensor([error]))


def test_weights_scale_the_losses_but_not_the_errors():
    batch = Transitions(*(field.repeat(2, *[1] * (field.dim() - 1)) for field in ONE))
    weighted, plain = (
        QuantileLearner(Numbers([[[0.0] * 3] * 2] * 2), QuantileConfig(quantiles=3))
        for _ in range(2)
    )
    whole = plain.update(batch)
    found = weighted.update(batch, torch.tensor([1.0, 0.5]))
    torch.testing.assert_close(found.loss, 0.75 * whole.loss)
    assert torch.equal(found.errors, whole.errors)


def test_it_recovers_the_quantiles_of_a_known_return():
    """The return is exponential: its quantile at tau is -log(1 - tau), its mean 1."""
    torch.manual_seed(0)
    count = 10
    config = QuantileConfig(
        quantiles=count, kappa=0.01, learning_rate=0.03, weight_decay=0.0, average_decay=0.99
    )
    learner = QuantileLearner(Numbers([[[0.0] * count]]), config)
    generator, rows = torch.Generator().manual_seed(0), 500
    zeros = torch.zeros(rows)
    for _ in range(700):
        returns = torch.empty(rows).exponential_(generator=generator)
        ones = torch.ones(rows, 1)
        learner.update(Transitions(ones, zeros.long(), returns, ones, zeros))
    tau = (torch.arange(count) + 0.5) / count
    learned = learner.average.theta[0, 0]
    torch.testing.assert_close(learned, -torch.log1p(-tau), atol=0.1, rtol=0.03)


def test_it_solves_a_chain_with_a_bet():
    """From state 0 action 0 earns 1 for sure, action 1 leads to 0 or 3 with equal odds."""
    torch.manual_seed(0)
    eye, gamma = torch.eye(2), 0.9
    rows = [(0, 0, 1.0, 0, 0.0), (0, 1, 0.0, 1, gamma)] * 2
    rows += [(1, action, reward, 0, 0.0) for action in (0, 1) for reward in (0.0, 3.0)]
    state, action, reward, successor, discount = zip(*rows, strict=True)
    batch = Transitions(
        eye[list(state)],
        torch.tensor(action),
        torch.tensor(reward),
        eye[list(successor)],
        torch.tensor(discount),
    )
    config = QuantileConfig(
        quantiles=4, kappa=0.05, learning_rate=1e-2, target_tau=0.05, weight_decay=0.0
    )
    learner = QuantileLearner(QuantileNetwork(2, 2, 4, hidden=(32,)), config)
    for _ in range(600):
        learner.update(batch)
    values, quantiles = learner.average(eye), learner.average.quantiles(eye)
    wanted = torch.tensor([[1.0, 1.35], [1.5, 1.5]])
    torch.testing.assert_close(values, wanted, atol=0.1, rtol=0)
    assert values[0].argmax() == 1
    # Half of the mass at 0, half at 2.7: what a mean does not tell.
    low, high = quantiles[0, 1].sort().values.chunk(2)
    assert low.mean().item() == pytest.approx(0.0, abs=0.2)
    assert high.mean().item() == pytest.approx(2.7, abs=0.2)


def test_the_config_builds_a_network_for_the_specification():
    spec = ControllerSpec()
    learner = QuantileConfig(quantiles=5, hidden=(8,), dueling=False).build(spec)
    observation = torch.randn(3, len(spec.features))
    assert learner.online.quantiles(observation).shape == (3, len(spec.actions), 5)
    assert learner.online.value is None


@pytest.mark.parametrize(
    ("field", "value"), [("quantiles", 0), ("kappa", 0.0), ("loss", "mse"), ("learning_rate", 0)]
)
def test_a_setting_out_of_range_is_named(field, value):
    with pytest.raises(ConfigurationError, match=rf"QuantileConfig\.{field}"):
        QuantileConfig(**{field: value})
