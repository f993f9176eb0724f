import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lightning_dqnlr.errors import ConfigurationError
from lightning_dqnlr.rl.replay import ReplayBuffer, Rollout, Transitions, n_step_transitions


def rollout(continues: list[list[int]]) -> dict[str, torch.Tensor]:
    """Observation t of replica r is 10*r + t, its action r, its rewards 1, 10, 100, ... by t."""
    going_on = torch.tensor(continues)
    steps, replicas = going_on.shape
    observations = 10.0 * torch.arange(replicas) + torch.arange(steps + 1.0).unsqueeze(1)
    rewards = (10.0 ** torch.arange(steps)).unsqueeze(1).expand(steps, replicas)
    return {
        "observations": observations.unsqueeze(-1),
        "actions": torch.arange(replicas).expand(steps, replicas),
        "rewards": rewards,
        "continues": going_on,
    }


def of_replica(transitions: Transitions, replica: int) -> Transitions:
    return Transitions(*(field[transitions.action == replica] for field in transitions))


def test_three_step_returns_with_staggered_ends():
    # Replica 0 runs to the end of the record, replica 1 ends at its second step of four.
    record = rollout([[1, 1], [1, 0], [1, 1], [1, 1]])
    cut = n_step_transitions(Rollout(**record), n=3, gamma=0.5)
    whole, ended = of_replica(cut, 0), of_replica(cut, 1)
    # 1 + 5 + 25, 10 + 50 + 250, then the record ends: 100 + 500, 1000
    assert whole.reward.tolist() == [31.0, 310.0, 600.0, 1000.0]
    assert whole.discount.tolist() == [0.125, 0.125, 0.25, 0.5]
    assert whole.observation.flatten().tolist() == [0, 1, 2, 3]
    assert whole.next_observation.flatten().tolist() == [3, 4, 4, 4]
    # 1 + 5 and 10, then the terminal; the padding is gone
    assert ended.reward.tolist() == [6.0, 10.0]
    assert ended.discount.tolist() == [0.0, 0.0]
    assert ended.observation.flatten().tolist() == [10, 11]
    assert ended.next_observation.flatten().tolist() == [12, 12]


def test_one_step_transitions_are_the_record_itself():
    cut = n_step_transitions(Rollout(**rollout([[1], [1], [0]])), n=1, gamma=0.9)
    assert cut.reward.tolist() == [1.0, 10.0, 100.0]
    torch.testing.assert_close(cut.discount, torch.tensor([0.9, 0.9, 0.0]))
    assert cut.next_observation.flatten().tolist() == [1, 2, 3]


def test_windows_longer_than_the_record_are_monte_carlo_returns():
    cut = n_step_transitions(Rollout(**rollout([[1], [1], [0]])), n=50, gamma=1.0)
    assert cut.reward.tolist() == [111.0, 110.0, 100.0]
    assert cut.discount.tolist() == [0.0, 0.0, 0.0]


def test_a_terminal_at_the_last_recorded_step_does_not_bootstrap():
    cut = n_step_transitions(Rollout(**rollout([[1], [0]])), n=2, gamma=1.0)
    assert cut.discount.tolist() == [0.0, 0.0]
    cut = n_step_transitions(Rollout(**rollout([[1], [1]])), n=2, gamma=1.0)
    assert cut.discount.tolist() == [1.0, 1.0]


def test_padding_without_a_terminal_cuts_the_window_and_bootstraps():
    record = rollout([[1], [1], [0], [0]])  # what padding says of itself is not read
    record["rewards"] = torch.tensor([[1.0], [10.0], [float("nan")], [float("nan")]])
    valid = torch.tensor([[True], [True], [False], [False]])
    cut = n_step_transitions(Rollout(**record, valid=valid), n=3, gamma=0.5)
    assert cut.reward.tolist() == [6.0, 10.0]
    assert cut.discount.tolist() == [0.25, 0.5]
    assert cut.next_observation.flatten().tolist() == [2, 2]


def test_rows_declared_valid_after_a_terminal_are_a_new_episode():
    record = rollout([[0], [1], [1]])
    valid = torch.ones(3, 1, dtype=torch.bool)
    cut = n_step_transitions(Rollout(**record, valid=valid), n=3, gamma=1.0)
    assert cut.reward.tolist() == [1.0, 110.0, 100.0]
    assert cut.discount.tolist() == [0.0, 1.0, 1.0]


def test_a_return_ends_before_the_next_exploratory_action():
    """The actions at steps 0 and 2 were random: 0's own is its transition's, 2's nobody else's."""
    record = rollout([[1], [1], [1], [1], [0]])
    explored = torch.tensor([[True], [False], [True], [False], [False]])
    cut = n_step_transitions(Rollout(**record, explored=explored), n=3, gamma=0.5)
    # 1 + 5 and 10 stop at step 2; 100 + 500 + 2500, 1000 + 5000 and 10000 run to the terminal.
    assert cut.reward.tolist() == [6.0, 10.0, 3100.0, 6000.0, 10000.0]
    assert cut.discount.tolist() == [0.25, 0.5, 0.0, 0.0, 0.0]
    assert cut.next_observation.flatten().tolist() == [2, 2, 5, 5, 5]


@given(st.integers(1, 7), st.integers(1, 9), st.integers(0, 10**6))
def test_a_cut_return_is_the_longest_uncut_one_of_greedy_actions(steps, n, seed):
    generator = torch.Generator().manual_seed(seed)
    record = rollout((torch.rand(steps, 1, generator=generator) < 0.9).int().tolist())
    explored = torch.rand(steps, 1, generator=generator) < 0.4
    cut = n_step_transitions(Rollout(**record, explored=explored), n=n, gamma=0.5)
    for t in range(len(cut.action)):
        until_explored = next((i for i in range(1, steps - t) if explored[t + i]), steps)
        whole = n_step_transitions(Rollout(**record), n=min(n, until_explored), gamma=0.5)
        assert [field[t].tolist() for field in cut] == [field[t].tolist() for field in whole]


@given(st.integers(1, 7), st.integers(1, 3), st.integers(1, 9), st.integers(0, 10**6))
def test_vectorised_returns_equal_a_plain_loop(steps, replicas, n, seed):
    gamma = 0.7
    generator = torch.Generator().manual_seed(seed)
    record = rollout((torch.rand(steps, replicas, generator=generator) < 0.7).int().tolist())
    record["rewards"] = torch.randn(steps, replicas, generator=generator)
    cut = n_step_transitions(Rollout(**record), n=n, gamma=gamma)
    for replica in range(replicas):
        mine = of_replica(cut, replica)
        going_on = record["continues"][:, replica].tolist()
        length = going_on.index(0) + 1 if 0 in going_on else steps
        assert len(mine.reward) == length
        for t in range(length):
            end = min(t + n, length)
            rewards = record["rewards"][t:end, replica].tolist()
            total = sum(gamma**i * reward for i, reward in enumerate(rewards))
            assert mine.reward[t].item() == pytest.approx(total, abs=1e-5)
            discount = gamma ** (end - t) * going_on[end - 1]
            assert mine.discount[t].item() == pytest.approx(discount)
            assert mine.next_observation[t].item() == 10 * replica + end


@pytest.mark.parametrize("change", ["actions", "rewards", "continues", "valid", "observations"])
def test_a_misshapen_record_is_refused_by_name(change):
    record = rollout([[1, 1], [1, 1]])
    record["valid"] = torch.ones(2, 2, dtype=torch.bool)
    record[change] = record[change][:1]
    with pytest.raises(ConfigurationError, match=change):
        n_step_transitions(Rollout(**record), n=1, gamma=1.0)


@pytest.mark.parametrize(("n", "gamma", "name"), [(0, 1.0, "n=0 must"), (1, 1.5, "gamma")])
def test_an_impossible_window_is_refused_by_name(n, gamma, name):
    with pytest.raises(ConfigurationError, match=name):
        n_step_transitions(Rollout(**rollout([[1]])), n=n, gamma=gamma)


def numbered(*numbers: int) -> Transitions:
    """Transitions told apart by every one of their fields."""
    number = torch.tensor(numbers, dtype=torch.float32)
    observation = torch.stack([number, number + 0.25], dim=1)
    return Transitions(observation, number.long(), -number, observation + 0.5, number / 2)


def held(buffer: ReplayBuffer) -> list[int]:
    state = buffer.state_dict()
    expected = numbered(*state["action"].tolist())
    for name, field in zip(Transitions._fields, expected, strict=True):
        assert torch.equal(state[name], field), name
    return state["action"].tolist()


def test_the_ring_overwrites_the_oldest():
    buffer = ReplayBuffer(4, 2)
    buffer.extend(numbered(1, 2, 3))
    assert held(buffer) == [1, 2, 3]
    assert len(buffer) == 3
    buffer.extend(numbered(4, 5))
    assert held(buffer) == [5, 2, 3, 4]
    buffer.extend(numbered(6))
    assert held(buffer) == [5, 6, 3, 4]
    assert len(buffer) == 4


def test_of_a_batch_above_capacity_the_end_remains():
    buffer = ReplayBuffer(3, 2)
    buffer.extend(numbered(*range(1, 9)))
    assert sorted(held(buffer)) == [6, 7, 8]
    buffer.extend(numbered(9))
    assert sorted(held(buffer)) == [7, 8, 9]


@given(st.integers(1, 6), st.lists(st.integers(0, 9), max_size=5))
def test_batches_end_up_where_single_transitions_would(capacity, sizes):
    at_once, one_by_one = ReplayBuffer(capacity, 2), ReplayBuffer(capacity, 2)
    first = 0
    for size in sizes:
        numbers = range(first, first + size)
        at_once.extend(numbered(*numbers))
        for number in numbers:
            one_by_one.extend(numbered(number))
        first += size
    assert held(at_once) == held(one_by_one)


def test_samples_are_whole_transitions_drawn_evenly_from_those_held():
    buffer = ReplayBuffer(10, 2)
    buffer.extend(numbered(1, 2, 3, 4))
    batch = buffer.sample(8000, torch.Generator().manual_seed(0)).transitions
    for field, expected in zip(batch, numbered(*batch.action.tolist()), strict=True):
        assert torch.equal(field, expected)
    counts = batch.action.bincount(minlength=5)
    assert counts[0] == 0
    assert (counts[1:] - 2000).abs().max() < 160  # four standard deviations: 155


def test_rows_say_where_the_drawn_transitions_lie():
    buffer = ReplayBuffer(4, 2)
    buffer.extend(numbered(1, 2, 3, 4, 5))
    draw = buffer.sample(50, torch.Generator().manual_seed(0))
    assert torch.equal(buffer.state_dict()["action"][draw.rows], draw.transitions.action)
    assert draw.weights is None


def test_extending_names_the_rows_written():
    buffer = ReplayBuffer(3, 2)
    assert buffer.extend(numbered(1, 2)).tolist() == [0, 1]
    assert buffer.extend(numbered(3, 4)).tolist() == [2, 0]


def test_sampling_nothing_is_an_error_not_zeros():
    with pytest.raises(ConfigurationError, match="empty"):
        ReplayBuffer(4, 2).sample(1)


def test_the_ring_keeps_no_gradients_and_its_own_types():
    buffer = ReplayBuffer(4, 2)
    batch = numbered(1)
    buffer.extend(batch._replace(reward=batch.reward.double().requires_grad_()))
    sample = buffer.sample(1).transitions
    assert not sample.reward.requires_grad
    assert sample.reward.dtype == torch.float32


def test_a_restored_buffer_continues_at_the_same_place(tmp_path):
    buffer = ReplayBuffer(4, 2)
    buffer.extend(numbered(1, 2, 3, 4, 5))
    torch.save(buffer.state_dict(), tmp_path / "buffer.pt")
    restored = ReplayBuffer(4, 2)
    restored.load_state_dict(torch.load(tmp_path / "buffer.pt", weights_only=True))
    restored.extend(numbered(6))
    assert held(restored) == [5, 6, 3, 4]


def test_a_partly_filled_buffer_is_saved_without_its_empty_rows(tmp_path):
    buffer = ReplayBuffer(100_000, 2)
    buffer.extend(numbered(1, 2))
    torch.save(buffer.state_dict(), tmp_path / "buffer.pt")
    assert (tmp_path / "buffer.pt").stat().st_size < 10_000


def test_foreign_states_and_transitions_are_refused_by_name():
    buffer = ReplayBuffer(4, 2)
    with pytest.raises(ConfigurationError, match="capacity"):
        buffer.load_state_dict(ReplayBuffer(5, 2).state_dict())
    with pytest.raises(ConfigurationError, match="observation"):
        buffer.load_state_dict(ReplayBuffer(4, 3).state_dict())
    with pytest.raises(ConfigurationError, match="reward"):
        buffer.extend(numbered(1, 2)._replace(reward=torch.zeros(2, 1)))
    for sizes, name in (((0, 2), "capacity"), ((4, 0), "observation_size")):
        with pytest.raises(ConfigurationError, match=name):
            ReplayBuffer(*sizes)
