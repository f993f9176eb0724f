import pytest
import torch

from lightning_dqnlr.control.features import FeatureSpec
from lightning_dqnlr.control.spec import ControllerSpec
from lightning_dqnlr.errors import ConfigurationError
from lightning_dqnlr.policy.network import QTable
from lightning_dqnlr.rl.q_table import TabularConfig, TabularLearner, q_table_update
from lightning_dqnlr.rl.replay import Transitions

NAN = float("nan")
TABLE = torch.tensor([[1.0, 5.0], [2.0, 8.0]])
SPEC = ControllerSpec(features=FeatureSpec(("loss_level", "progress", "last_action")))


def make_learner(rows, learning_rate=0.5, edges=(0.5,)):
    """States are the numbers 0, 1, ... in the only column of the observation."""
    table = QTable(1, len(rows[0]), {0: edges})
    table.table.copy_(torch.tensor(rows))
    return TabularLearner(table, TabularConfig({"progress": edges}, learning_rate))


def transitions(*rows):
    """Of (state, action, reward, next state, discount)."""
    state, action, reward, successor, discount = zip(*rows, strict=True)
    return Transitions(
        torch.tensor(state, dtype=torch.float32).unsqueeze(1),
        torch.tensor(action),
        torch.tensor(reward, dtype=torch.float32),
        torch.tensor(successor, dtype=torch.float32).unsqueeze(1),
        torch.tensor(discount, dtype=torch.float32),
    )


def test_watkins_rule_by_hand():
    learner = make_learner(TABLE.tolist())
    found = learner.update(transitions((0, 0, 3.0, 1, 0.25)))
    # 1 + 0.5 * (3 + 0.25 * 8 - 1); decoys: 8 is the maximum of the next state, not of this one (5)
    torch.testing.assert_close(learner.online.table, torch.tensor([[3.0, 5.0], [2.0, 8.0]]))
    torch.testing.assert_close(found.errors, torch.tensor([4.0]))
    torch.testing.assert_close(found.loss, torch.tensor(8.0))
    assert learner.updates == 1


def test_a_sequence_by_hand_uses_what_it_has_just_learned():
    learner = make_learner([[0.0, 0.0], [0.0, 0.0]])
    for row in [(1, 1, 2.0, 0, 0.0), (0, 0, 0.0, 1, 0.5), (0, 0, 1.0, 1, 0.5), (1, 0, 0.0, 0, 1.0)]:
        learner.update(transitions(row))
    # Q(1,1) = 1; Q(0,0) = 0.5 * 0.5, then 0.25 + 0.5 * (1 + 0.5 - 0.25); Q(1,0) = half of that
    expected = torch.tensor([[0.875, 0.0], [0.4375, 1.0]])
    torch.testing.assert_close(learner.online.table, expected)


def test_a_terminal_counts_only_its_reward_even_beside_nan():
    learner = make_learner(TABLE.tolist())
    learner.update(transitions((0, 1, 3.0, NAN, 0.0)))
    torch.testing.assert_close(learner.online.table, torch.tensor([[1.0, 4.0], [2.0, 8.0]]))


def test_a_batch_is_measured_against_one_table_and_repeats_act_as_repeated_updates():
    learner = make_learner(TABLE.tolist())
    learner.update(transitions((0, 0, 3.0, 1, 0.25), (0, 0, 7.0, 1, 0.25), (1, 1, 0.0, 0, 1.0)))
    # (0, 0): two errors, 4 and 8, mean 6, fraction 1 - 0.5^2; (1, 1): 8 + 0.5 * (5 - 8)
    torch.testing.assert_close(learner.online.table, torch.tensor([[5.5, 5.0], [2.0, 6.5]]))


def test_weights_are_factors_of_the_learning_rate():
    learner = make_learner(TABLE.tolist())
    batch = transitions((0, 0, 3.0, 1, 0.25), (0, 0, 7.0, 1, 0.25), (1, 1, 0.0, 0, 1.0))
    found = learner.update(batch, torch.tensor([1.0, 0.5, 0.5]))
    # (0, 0): steps 0.5 and 0.25 to the errors 4 and 8: mean 16/3, fraction 1 - 0.5 * 0.75;
    # (1, 1): 8 + 0.25 * -3
    expected = torch.tensor([[1.0 + 10.0 / 3.0, 5.0], [2.0, 7.25]])
    torch.testing.assert_close(learner.online.table, expected)
    torch.testing.assert_close(found.errors, torch.tensor([4.0, 8.0, -3.0]))


@pytest.mark.parametrize("step_size", [0.9, 1.0])
def test_many_replicas_in_one_state_do_not_overshoot(step_size):
    cells = torch.zeros(1000, dtype=torch.long)
    steps = torch.full((1000,), step_size)
    table = q_table_update(torch.zeros(2, 2), cells, cells, torch.ones(1000), steps)
    torch.testing.assert_close(table, torch.tensor([[1.0, 0.0], [0.0, 0.0]]))


def chain(gamma: float) -> Transitions:
    """States 0, 1, 2; right leads on and earns 2 at the end, left leads back and earns 0.1."""
    ends = (2, 1, 2.0, 2, 0.0)
    return transitions(
        (0, 0, 0.1, 0, gamma),
        (0, 1, 0.0, 1, gamma),
        (1, 0, 0.1, 0, gamma),
        (1, 1, 0.0, 2, gamma),
        (2, 0, 0.1, 1, gamma),
        ends,
    )


def test_q_learning_reaches_the_analytic_values_of_a_chain():
    learner = make_learner([[0.0, 0.0]] * 3, edges=(0.5, 1.5))
    for _ in range(200):
        learner.update(chain(gamma=0.5))
    # right: 0.5, 1, 2; left: 0.1 + 0.5 * (0.5, 0.5, 1)
    expected = torch.tensor([[0.35, 0.5], [0.35, 1.0], [0.6, 2.0]])
    torch.testing.assert_close(learner.average.table, expected)


def test_bins_are_given_by_the_features_name():
    learner = TabularConfig({"last_action": (0.0,), "progress": (-0.5, 0.5)}).build(SPEC)
    assert learner.online.bins == {2: (0.0,), 1: (-0.5, 0.5)}
    assert learner.online.table.shape == (6, 7)


def test_a_feature_outside_the_observation_is_refused_by_name():
    with pytest.raises(ConfigurationError, match=r"update_ratio.*loss_level"):
        TabularConfig({"update_ratio": (0.0,)}).build(SPEC)


def test_where_nothing_was_learned_the_learning_rate_is_kept():
    learner = TabularConfig({"progress": (0.0,)}).build(SPEC)
    observation = torch.tensor([[0.0, -1.0, 0.0], [0.0, 1.0, 0.0]])
    assert learner.online(observation).argmax(-1).tolist() == [SPEC.actions.keep] * 2
    assert learner.online.table.abs().max() < 1e-5


@pytest.mark.parametrize(
    ("name", "value"),
    [("learning_rate", 0.0), ("learning_rate", 1.5), ("learning_rate", NAN), ("batch_size", 0)],
)
def test_a_setting_out_of_range_is_named(name, value):
    with pytest.raises(ConfigurationError, match=rf"TabularConfig\.{name}"):
        TabularConfig({"progress": (0.0,)}, **{name: value})


def test_a_saved_table_is_restored_and_a_foreign_one_refused(tmp_path):
    learner = make_learner([[0.0, 1.0], [2.0, 3.0], [4.0, 5.0]], edges=(0.5, 1.5))
    learner.update(chain(0.5))
    torch.save(learner.state_dict(), tmp_path / "table.pt")
    state = torch.load(tmp_path / "table.pt", weights_only=True)
    restored = make_learner([[0.0, 0.0]] * 3, edges=(0.5, 1.5))
    restored.load_state_dict(state)
    assert torch.equal(restored.online.table, learner.online.table)
    assert restored.updates == 1
    restored.update(chain(0.5))
    assert not torch.equal(restored.online.table, state["table"])  # a copy
    with pytest.raises(ConfigurationError, match="bins"):
        make_learner([[0.0, 0.0]] * 3, edges=(0.5, 1.6)).load_state_dict(state)
    with pytest.raises(ConfigurationError, match="num_actions"):
        make_learner([[0.0, 0.0, 0.0]] * 3, edges=(0.5, 1.5)).load_state_dict(state)
