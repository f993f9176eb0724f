import json

import pytest
import torch

from lightning_dqnlr.errors import ConfigurationError
from lightning_dqnlr.policy.network import QTable


def test_bins_are_bounded_by_their_edges_and_other_columns_ignored():
    table = QTable(3, 2, {2: [0.0, 1.0], 0: [5.0]})
    assert table.table.shape == (6, 2)
    observation = torch.tensor(
        [
            [4.9, 99.0, -0.1],
            [5.0, -99.0, -0.1],
            [4.9, 0.0, 0.0],
            [9.0, 0.0, 0.9],
            [0.0, 0.0, 1.0],
            [float("nan"), 0.0, float("nan")],
        ]
    )
    assert table.state_of(observation).tolist() == [0, 1, 2, 3, 4, 5]
    assert table.state_of(observation.view(2, 3, 3)).tolist() == [[0, 1, 2], [3, 4, 5]]


def test_it_is_looked_up_like_a_network():
    table = QTable(2, 3, {1: [0.0]})
    table.table.copy_(torch.tensor([[1.0, 2.0, 3.0], [6.0, 5.0, 4.0]]))
    values = table(torch.tensor([[[9.0, -1.0]], [[9.0, 1.0]]]))
    assert values.tolist() == [[[1.0, 2.0, 3.0]], [[6.0, 5.0, 4.0]]]
    assert table(torch.tensor([9.0, 1.0])).tolist() == [6.0, 5.0, 4.0]


def test_config_is_plain_and_rebuilds_the_table():
    table = QTable(3, 2, {2: [0.0, 1.0], 0: [5.0]})
    table.table.copy_(torch.arange(12.0).view(6, 2))
    rebuilt = QTable(**json.loads(json.dumps(table.config)))
    assert set(table.state_dict()) == {"table"}
    rebuilt.load_state_dict(table.state_dict())
    observation = torch.randn(50, 3)
    assert torch.equal(rebuilt(observation), table(observation))


@pytest.mark.parametrize(
    "bins", [{}, {-1: [0.0]}, {3: [0.0]}, {0: [1.0, 0.0]}, {0: [1.0, 1.0]}, {0: []}]
)
def test_impossible_bins_are_refused(bins):
    with pytest.raises(ConfigurationError, match="bins"):
        QTable(3, 2, bins)


def test_no_action_is_refused():
    with pytest.raises(ConfigurationError, match="num_actions"):
        QTable(3, 0, {0: [0.0]})
