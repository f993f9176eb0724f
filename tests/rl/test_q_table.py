import pytest
import torch

from lightning_dqnlr.errors import ConfigurationError
from lightning_dqnlr.rl.q_table import QTable, q_learning_update
from lightning_dqnlr.rl.replay import Transitions

TABLE = torch.tensor([[1.0, 5.0], [2.0, 8.0]])


def one(number: int) -> torch.Tensor:
    return torch.tensor(number)


def test_the_update_by_hand():
    table = q_learning_update(
        TABLE, one(0), one(0), torch.tensor(3.0), one(1), learning_rate=0.5, discount=0.25
    )
    # 1 + 0.5 * (3 + 0.25 * 8 - 1); decoys: 8 is the maximum of the next state, not of this one (5)
    torch.testing.assert_close(table, torch.tensor([[3.0, 5.0], [2.0, 8.0]]))
    assert TABLE[0, 0] == 1.0  # a new table


def test_a_terminal_counts_only_its_reward():
    table = q_learning_update(
        TABLE,
        one(0),
        one(1),
        torch.tensor(3.0),
        one(1),
        learning_rate=0.5,
        discount=0.25,
        terminal=True,
    )
    torch.testing.assert_close(table, torch.tensor([[1.0, 4.0], [2.0, 8.0]]))


def test_a_batch_is_measured_against_one_table_and_repeats_act_as_repeated_updates():
    table = q_learning_update(
        TABLE,
        torch.tensor([0, 0, 1]),
        torch.tensor([0, 0, 1]),
        torch.tensor([3.0, 7.0, 0.0]),
        torch.tensor([1, 1, 0]),
        learning_rate=0.5,
        discount=torch.tensor([0.25, 0.25, 1.0]),
        terminal=torch.tensor([False, False, False]),
    )
    # (0, 0): two errors, 4 and 8, mean 6, fraction 1 - 0.5^2; (1, 1): 8 + 0.5 * (5 - 8)
    torch.testing.assert_close(table, torch.tensor([[5.5, 5.0], [2.0, 6.5]]))


def test_many_replicas_in_one_state_do_not_overshoot():
    visits = torch.zeros(1000, dtype=torch.long)
    table = q_learning_update(
        torch.zeros(2, 2),
        visits,
        visits,
        torch.ones(1000),
        visits + 1,
        learning_rate=0.9,
        discount=1.0,
    )
    torch.testing.assert_close(table[0, 0], torch.tensor(1.0))


@pytest.mark.parametrize("learning_rate", [0.0, 1.5, float("nan")])
def test_a_learning_rate_out_of_range_is_refused(learning_rate):
    arguments = (TABLE, one(0), one(0), torch.tensor(0.0), one(1))
    with pytest.raises(ConfigurationError, match="learning_rate"):
        q_learning_update(*arguments, learning_rate=learning_rate, discount=1.0)


def test_bins_are_bounded_by_their_edges_and_other_columns_ignored():
    table = QTable({2: [0.0, 1.0], 0: [5.0]}, num_actions=2)
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


def test_act_is_greedy_in_the_observations_bin():
    table = QTable({0: [0.0]}, num_actions=3)
    table.table = torch.tensor([[0.0, 0.0, 1.0], [0.0, 1.0, 0.0]])
    assert table.act(torch.tensor([[-1.0], [1.0]])).tolist() == [2, 1]
    explored = table.act(torch.ones(100, 1), 1.0, torch.Generator().manual_seed(0))
    assert set(explored.tolist()) == {0, 1, 2}


def chain(gamma: float) -> Transitions:
    """States 0, 1, 2; right leads on and earns 2 at the end, left leads back and earns 0.1."""
    states = torch.tensor([0.0, 0.0, 1.0, 1.0, 2.0, 2.0]).unsqueeze(1)
    successors = torch.tensor([0.0, 1.0, 0.0, 2.0, 1.0, 2.0]).unsqueeze(1)
    actions = torch.tensor([0, 1, 0, 1, 0, 1])
    rewards = torch.tensor([0.1, 0.0, 0.1, 0.0, 0.1, 2.0])
    discounts = torch.tensor([gamma, gamma, gamma, gamma, gamma, 0.0])
    return Transitions(states, actions, rewards, successors, discounts)


def test_q_learning_reaches_the_analytic_values_of_a_chain():
    table = QTable({0: [0.5, 1.5]}, num_actions=2)
    for _ in range(200):
        table.update(chain(gamma=0.5), learning_rate=0.5)
    # right: 0.5, 1, 2; left: 0.1 + 0.5 * (0.5, 0.5, 1)
    expected = torch.tensor([[0.35, 0.5], [0.35, 1.0], [0.6, 2.0]])
    torch.testing.assert_close(table.table, expected)


def test_a_saved_table_is_restored_and_a_foreign_one_refused(tmp_path):
    table = QTable({0: [0.5, 1.5], 3: [0.1]}, num_actions=2)
    table.table = torch.arange(12.0).view(6, 2)
    torch.save(table.state_dict(), tmp_path / "table.pt")
    state = torch.load(tmp_path / "table.pt", weights_only=True)
    restored = QTable({0: [0.5, 1.5], 3: [0.1]}, num_actions=2)
    restored.load_state_dict(state)
    assert torch.equal(restored.table, table.table)
    for edges in ({0: [0.5, 1.6], 3: [0.1]}, {3: [0.1], 0: [0.5, 1.5]}):
        with pytest.raises(ConfigurationError, match="edges"):
            QTable(edges, num_actions=2).load_state_dict(state)
    with pytest.raises(ConfigurationError, match="num_actions"):
        QTable({0: [0.5, 1.5], 3: [0.1]}, num_actions=3).load_state_dict(state)


@pytest.mark.parametrize("edges", [{}, {-1: [0.0]}, {0: [1.0, 0.0]}, {0: [1.0, 1.0]}])
def test_impossible_edges_are_refused(edges):
    with pytest.raises(ConfigurationError, match="edges"):
        QTable(edges, num_actions=2)
    with pytest.raises(ConfigurationError, match="num_actions"):
        QTable({0: [0.0]}, num_actions=0)
