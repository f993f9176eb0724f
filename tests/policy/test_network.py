import json

import pytest
import torch
from torch import nn

from lightning_dqnlr.errors import ConfigurationError
from lightning_dqnlr.policy.network import QNetwork


def test_dueling_subtracts_the_mean_advantage_from_value_plus_advantage():
    network = QNetwork(2, 3, hidden=())
    with torch.no_grad():
        network.value[0].weight.copy_(torch.tensor([[10.0, 0.0]]))
        network.advantage[0].weight.copy_(torch.tensor([[1.0, 0.0], [2.0, 0.0], [6.0, 0.0]]))
        network.value[0].bias.zero_()
        network.advantage[0].bias.zero_()
    # V = 10, A = (1, 2, 6), mean 3 (decoy: the maximum, 6)
    q_values = network(torch.tensor([1.0, 0.0]))
    torch.testing.assert_close(q_values, torch.tensor([8.0, 9.0, 13.0]))


def test_each_observation_has_its_own_mean_advantage():
    network = QNetwork(4, 3)
    batch = torch.randn(5, 2, 4)
    q_values = network(batch)
    assert q_values.shape == (5, 2, 3)
    torch.testing.assert_close(q_values[3, 1], network(batch[3, 1]))


def test_a_shared_constant_in_the_advantages_changes_nothing():
    network = QNetwork(4, 3, hidden=(8,))
    batch = torch.randn(5, 4)
    before = network(batch)
    with torch.no_grad():
        network.advantage[-1].bias.add_(7.0)
    torch.testing.assert_close(network(batch), before)


def test_without_dueling_it_is_a_plain_perceptron():
    network = QNetwork(4, 3, hidden=(8, 6), dueling=False)
    assert network.value is None
    widths = [(m.in_features, m.out_features) for m in network.modules() if type(m) is nn.Linear]
    assert widths == [(4, 8), (8, 6), (6, 3)]


def test_dueling_streams_own_the_last_hidden_layer():
    network = QNetwork(4, 3, hidden=(8, 6))
    widths = {
        name: [layer.in_features for layer in part if isinstance(layer, nn.Linear)]
        for name, part in network.named_children()
    }
    assert widths == {"trunk": [4], "advantage": [8, 6], "value": [8, 6]}


@pytest.mark.parametrize("dueling", [True, False])
def test_an_untrained_network_is_nearly_indifferent_yet_sees_its_input(dueling):
    torch.manual_seed(0)
    q_values = QNetwork(40, 7, dueling=dueling)(2 * torch.randn(256, 40))
    assert q_values.abs().max() < 0.05
    assert q_values.std(dim=0).min() > 0


@pytest.mark.parametrize("dueling", [True, False])
def test_config_is_plain_and_rebuilds_the_network(dueling):
    network = QNetwork(5, 3, hidden=(8, 4), dueling=dueling)
    rebuilt = QNetwork(**json.loads(json.dumps(network.config)))
    rebuilt.load_state_dict(network.state_dict())
    batch = torch.randn(6, 5)
    assert torch.equal(rebuilt(batch), network(batch))
    assert rebuilt.config == network.config


@pytest.mark.parametrize(
    ("arguments", "name"),
    [((0, 3), "observation_size"), ((4, 0), "num_actions"), ((4, 3, (8, 0)), "hidden")],
)
def test_a_size_below_one_is_refused_by_name(arguments, name):
    with pytest.raises(ConfigurationError, match=name):
        QNetwork(*arguments)
