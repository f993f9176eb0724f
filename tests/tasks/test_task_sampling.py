import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lightning_dqnlr.errors import ConfigurationError
from lightning_dqnlr.tasks.sampling import Draws, derive_seed

SPLITS = ("train", "validation", "test")


def test_splits_never_share_a_generator_seed_over_thousands():
    seeds = {split: {derive_seed("digits", split, i) for i in range(5000)} for split in SPLITS}
    assert all(len(seeds[split]) == 5000 for split in SPLITS)
    assert len(set().union(*seeds.values())) == 15000


@given(st.integers(), st.integers(), st.text(), st.text())
def test_no_seed_of_one_split_reaches_the_stream_of_another(seed_a, seed_b, family_a, family_b):
    # Hash collisions would slip through a test by examples: the split must sit in its own bits.
    train = derive_seed(family_a, "train", seed_a)
    test = derive_seed(family_b, "test", seed_b)
    assert train % 4 != test % 4


@given(st.integers(), st.sampled_from(SPLITS))
def test_derived_seed_survives_the_32_bits_that_the_cpu_generator_keeps(seed, split):
    assert 0 <= derive_seed("digits", split, seed) < 2**32


def test_derived_seed_depends_on_every_argument_and_on_no_hash_randomisation():
    base = derive_seed("digits", "train", 3)
    assert base == 2799537052  # the same on every machine and in every process
    assert base != derive_seed("digits", "train", 4)
    assert base != derive_seed("teacher", "train", 3)


def test_unknown_split_is_refused_by_name():
    with pytest.raises(ConfigurationError, match="split='dev' must be one of"):
        derive_seed("digits", "dev", 0)  # type: ignore[arg-type]


def test_equal_seeds_draw_equal_numbers_and_different_seeds_do_not():
    first, again, other = Draws(5), Draws(5), Draws(6)
    assert torch.equal(first.normal(4), again.normal(4))
    assert first.uniform(0, 1) == again.uniform(0, 1) != other.uniform(0, 1)


@given(st.integers(0, 2**32 - 1))
def test_draws_stay_inside_their_bounds(seed):
    draws = Draws(seed)
    assert draws.integer(2, 3) in (2, 3)
    assert 8 <= draws.log_integer(8, 96) <= 96
    assert 0.01 <= draws.log_uniform(0.01, 100.0) <= 100.0
    assert not draws.chance(0.0)
    assert draws.chance(1.0)


def test_log_uniform_puts_equal_mass_on_each_decade():
    draws = Draws(0)
    small = sum(draws.log_uniform(0.01, 1.0) < 0.1 for _ in range(2000))
    assert 900 < small < 1100  # uniform draws would give about 180


def test_choice_follows_its_weights_and_never_takes_a_weight_of_zero():
    draws = Draws(0)
    drawn = [draws.choice(("a", "never", "b"), (1.0, 0.0, 3.0)) for _ in range(2000)]
    assert "never" not in drawn
    assert 400 < drawn.count("a") < 600
    assert {draws.choice(("a", "b")) for _ in range(50)} == {"a", "b"}


def test_rotation_preserves_lengths():
    rotation = Draws(0).rotation(16)
    torch.testing.assert_close(rotation @ rotation.T, torch.eye(16), atol=1e-5, rtol=0.0)
