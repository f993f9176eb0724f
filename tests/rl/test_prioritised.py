import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lightning_dqnlr.errors import ConfigurationError
from lightning_dqnlr.rl.prioritised import PrioritisedReplay, PrioritisedReplayConfig
from lightning_dqnlr.rl.replay import ReplayBuffer, Transitions

PLAIN = PrioritisedReplayConfig(alpha=1.0, beta=1.0, epsilon=1e-9)


def numbered(*numbers: int) -> Transitions:
    number = torch.tensor(numbers, dtype=torch.float32)
    observation = number.unsqueeze(1)
    return Transitions(observation, number.long(), number, observation, number)


def filled(config=PLAIN, count=4, capacity=4) -> PrioritisedReplay:
    replay = PrioritisedReplay(ReplayBuffer(capacity, 1), config)
    replay.extend(numbered(*range(count)))
    return replay


def give(replay: PrioritisedReplay, *errors: float) -> None:
    replay.learned(torch.arange(len(errors)), torch.tensor(errors))


def test_probabilities_by_hand():
    replay = filled(PrioritisedReplayConfig(alpha=0.5, epsilon=1.0))
    give(replay, 0.0, 3.0, -8.0, 15.0)
    # sqrt of |error| + 1: 1, 2, 3, 4
    torch.testing.assert_close(replay.probabilities, torch.tensor([1, 2, 3, 4]).double() / 10)


def test_importance_weights_by_hand():
    replay = filled(PrioritisedReplayConfig(alpha=1.0, beta=0.5, epsilon=1e-9))
    give(replay, 1.0, 4.0, 4.0, 16.0)
    draw = replay.sample(4000, torch.Generator().manual_seed(0))
    # (N P)^-1/2 = (100 / 4p)^(1/2) = 5 / sqrt(p): 5, 2.5, 2.5, 1.25, over the largest
    wanted = torch.tensor([1.0, 0.5, 0.5, 0.25])[draw.rows]
    torch.testing.assert_close(draw.weights, wanted)
    assert set(draw.rows.tolist()) == {0, 1, 2, 3}


def test_the_largest_weight_is_that_of_all_rows_not_of_those_drawn():
    replay = filled(PLAIN)
    give(replay, 1e-6, 1.0, 1.0, 2.0)
    draw = replay.sample(3, torch.Generator().manual_seed(0))
    assert 0 not in draw.rows
    assert draw.weights.max() < 1e-5


@pytest.mark.parametrize("batch", [1, 7])
def test_transitions_are_drawn_in_proportion_to_their_priority(batch):
    replay = filled(PLAIN)
    give(replay, 1.0, 2.0, 0.5, 6.5)
    generator = torch.Generator().manual_seed(0)
    rows = torch.cat([replay.sample(batch, generator).rows for _ in range(8000 // batch)])
    share = rows.bincount(minlength=4) / len(rows)
    wanted = torch.tensor([0.1, 0.2, 0.05, 0.65])
    spread = (wanted * (1 - wanted) / len(rows)).sqrt()
    assert ((share - wanted).abs() < 4 * spread).all()


def test_a_draw_takes_one_from_each_equal_share():
    replay = filled(PLAIN)
    give(replay, 1.0, 1.0, 1.0, 1.0)
    for seed in range(20):
        rows = replay.sample(4, torch.Generator().manual_seed(seed)).rows
        assert rows.tolist() == [0, 1, 2, 3]


def test_weights_undo_the_bias_of_the_draw():
    replay = filled(PLAIN)
    give(replay, 1.0, 2.0, 3.0, 4.0)
    draw = replay.sample(40_000, torch.Generator().manual_seed(0))
    mean = (draw.weights * draw.transitions.reward).sum() / draw.weights.sum()
    assert mean.item() == pytest.approx(1.5, abs=0.02)  # of 0, 1, 2, 3; without weights 2


def test_new_transitions_get_the_largest_priority_held():
    replay = filled(PLAIN, count=2)
    torch.testing.assert_close(replay.probabilities, torch.tensor([0.5, 0.5]).double())
    give(replay, 5.0, 1.0)
    replay.extend(numbered(7, 8))
    wanted = torch.tensor([5.0, 1.0, 5.0, 5.0]).double() / 16
    torch.testing.assert_close(replay.probabilities, wanted)


def test_an_overwritten_transition_takes_its_priority_along():
    replay = filled(PLAIN)
    give(replay, 1.0, 2.0, 4.0, 1.0)
    replay.extend(numbered(9))  # onto row 0
    wanted = torch.tensor([4.0, 2.0, 4.0, 1.0]).double() / 11
    torch.testing.assert_close(replay.probabilities, wanted)


def test_empty_rows_are_never_drawn():
    replay = filled(PLAIN, count=3, capacity=100)
    give(replay, 1.0, 1e-6, 1.0)
    rows = replay.sample(1000, torch.Generator().manual_seed(0)).rows
    assert rows.max() <= 2


def test_beta_rises_to_one_with_the_draws():
    replay = filled(PrioritisedReplayConfig(beta=0.4, beta_updates=3))
    betas = []
    for _ in range(5):
        betas.append(replay.beta)
        replay.sample(1)
    assert betas == pytest.approx([0.4, 0.6, 0.8, 1.0, 1.0])


def test_weights_follow_the_rising_beta():
    replay = filled(PrioritisedReplayConfig(alpha=1.0, beta=0.0, beta_updates=2, epsilon=1e-9))
    give(replay, 1.0, 1.0, 1.0, 16.0)
    least = [replay.sample(100).weights.min().item() for _ in range(3)]
    assert least == pytest.approx([1.0, 0.25, 0.0625])


@pytest.mark.parametrize("error", [float("nan"), float("inf"), -float("inf")])
def test_an_error_that_is_not_finite_leaves_the_others_drawable(error):
    replay = filled(PrioritisedReplayConfig(alpha=0.6))
    give(replay, 1.0, error, 1.0, 1.0)
    assert replay.probabilities.isfinite().all()
    assert replay.probabilities[0] > 1e-5
    assert replay.sample(100, torch.Generator().manual_seed(0)).weights.isfinite().all()


def test_alpha_zero_draws_evenly_with_weights_of_one():
    replay = filled(PrioritisedReplayConfig(alpha=0.0))
    give(replay, 0.0, 1.0, 10.0, 100.0)
    torch.testing.assert_close(replay.probabilities, torch.full((4,), 0.25).double())
    assert replay.sample(10).weights.tolist() == [1.0] * 10


@given(st.lists(st.floats(-100, 100, width=32), min_size=1, max_size=30), st.integers(0, 2**31))
def test_whatever_the_errors_draws_are_held_rows_and_weights_in_the_unit_interval(errors, seed):
    replay = filled(PrioritisedReplayConfig(), len(errors), capacity=40)
    give(replay, *errors)
    draw = replay.sample(50, torch.Generator().manual_seed(seed))
    assert draw.rows.min() >= 0
    assert draw.rows.max() < len(errors)
    assert draw.weights.min() > 0
    assert draw.weights.max() <= 1
    assert torch.equal(draw.transitions.action, draw.rows)


def test_a_restored_replay_draws_what_the_uninterrupted_one_does(tmp_path):
    config = PrioritisedReplayConfig(beta_updates=20)

    def go_on(replay, generator, count):
        drawn = []
        for number in range(count):
            replay.extend(numbered(number, number + 1))
            draw = replay.sample(5, generator)
            replay.learned(draw.rows, torch.randn(5, generator=generator))
            drawn.append((draw.rows, draw.weights))
        return drawn

    replay, generator = filled(config, 3, capacity=9), torch.Generator().manual_seed(1)
    go_on(replay, generator, 6)  # the ring has gone round
    state = {"replay": replay.state_dict(), "generator": generator.get_state()}
    torch.save(state, tmp_path / "replay.pt")
    whole = go_on(replay, generator, 6)
    state = torch.load(tmp_path / "replay.pt", weights_only=True)
    restored, generator = filled(config, 4, capacity=9), torch.Generator()
    restored.load_state_dict(state["replay"])
    generator.set_state(state["generator"])
    for (rows, weights), (again, weights_again) in zip(
        whole, go_on(restored, generator, 6), strict=True
    ):
        assert torch.equal(rows, again)
        assert torch.equal(weights, weights_again)


def test_the_state_of_another_replay_is_refused():
    with pytest.raises(ConfigurationError, match=r"replay.s state .*missing: \['buffer'"):
        filled().load_state_dict(ReplayBuffer(4, 1).state_dict())


def test_sampling_nothing_is_an_error():
    with pytest.raises(ConfigurationError, match="empty"):
        filled(count=0).sample(1)


@pytest.mark.parametrize(
    ("field", "value"),
    [("alpha", -0.1), ("alpha", 1.1), ("beta", 2), ("beta_updates", 0), ("epsilon", 0.0)],
)
def test_a_setting_out_of_range_is_named(field, value):
    with pytest.raises(ConfigurationError, match=rf"PrioritisedReplayConfig\.{field}"):
        PrioritisedReplayConfig(**{field: value})
