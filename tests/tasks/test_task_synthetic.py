import math

import pytest
import torch

from lightning_dqnlr.tasks.data.synthetic import adding, autoregression, copying, documents, ratings
from lightning_dqnlr.tasks.sampling import Draws


def test_adding_sums_the_two_marked_numbers_one_of_each_half():
    (inputs, targets), (held_out, _) = adding(10, 80, Draws(0))
    assert inputs.shape == (80, 10, 2)
    assert held_out.shape == (20, 10, 2)
    for sequence, target in zip(inputs, targets, strict=True):
        marked = sequence[:, 1].nonzero()[:, 0].tolist()
        assert len(marked) == 2
        assert marked[0] < 5 <= marked[1]
        assert target.item() == pytest.approx(sequence[marked, 0].sum().item(), abs=1e-6)
    assert inputs[..., 0].min() < -0.9
    assert inputs[..., 0].max() > 0.9


def test_copying_asks_for_the_first_symbols_at_the_end():
    (inputs, targets), _ = copying(9, 4, 3, 40, Draws(0))
    assert inputs.shape == (40, 9, 6)
    assert torch.equal(inputs.sum(2), torch.ones(40, 9))
    shown = inputs.argmax(2)
    assert torch.equal(targets[:, -3:], shown[:, :3])
    assert (targets[:, :-3] == 4).all()
    assert (shown[:, 3:6] == 4).all()
    assert (shown[:, 6:] == 5).all()
    assert set(shown[:, :3].flatten().tolist()) == {0, 1, 2, 3}


def test_autoregression_asks_for_the_next_value_and_noise_hides_the_inputs_alone():
    (clean, targets), _ = autoregression(20, 0.0, 400, Draws(3))
    assert clean.shape == targets.shape == (400, 20, 1)
    assert torch.equal(clean[:, 1:], targets[:, :-1])
    # The coefficients can be found again by least squares on two past values.
    draws = Draws(3)
    radius, frequency = draws.uniform(0.8, 0.99), draws.uniform(0.1, math.pi / 2)
    past = torch.stack([clean[:, 1:, 0].flatten(), clean[:, :-1, 0].flatten()], 1)
    fitted = torch.linalg.lstsq(past, targets[:, 1:].reshape(-1, 1)).solution[:, 0]
    expected = torch.tensor([2.0 * radius * math.cos(frequency), -(radius**2)])
    torch.testing.assert_close(fitted, expected, atol=0.05, rtol=0.0)
    assert targets.std() == pytest.approx(1.0, rel=0.1)
    (noisy, same), _ = autoregression(20, 0.5, 400, Draws(3))
    assert torch.equal(same, targets)
    assert (noisy - clean).std() == pytest.approx(0.5, rel=0.05)


def test_ratings_are_entries_of_one_low_rank_matrix_and_favour_popular_items():
    (pairs, entries), (held_out, held_out_entries) = ratings(12, 10, 2, 0.0, 2000, Draws(0))
    matrix = torch.full((12, 10), float("nan"))
    matrix[tuple(pairs.T)] = entries[:, 0]
    assert torch.equal(matrix[tuple(pairs.T)], entries[:, 0])
    assert torch.equal(matrix[tuple(held_out.T)], held_out_entries[:, 0])
    assert torch.linalg.matrix_rank(matrix.nan_to_num(), atol=1e-3) == 2
    counts = torch.bincount(pairs[:, 1], minlength=10)
    assert counts[0] > 3 * counts[9]
    noisy = ratings(12, 10, 2, 0.5, 2000, Draws(0))
    assert (noisy.train[1] - entries).std() == pytest.approx(0.5, rel=0.1)
    assert torch.equal(noisy.validation[1], held_out_entries)


def test_classes_of_documents_differ_in_their_words():
    (words, labels), _ = documents(3, 50, 64, 400, Draws(0))
    assert words.shape == (400, 64)
    assert words.max() < 50
    frequency = torch.stack(
        [torch.bincount(words[labels == c].flatten(), minlength=50).float() for c in range(3)]
    )
    frequency = frequency / frequency.sum(1, keepdim=True)
    # Words of a class differ from another class's far more than those of two halves of one.
    halves = [words[labels == 0][i::2].flatten() for i in range(2)]
    own = [torch.bincount(half, minlength=50) / len(half) for half in halves]
    assert (frequency[0] - frequency[1]).abs().sum() > 5 * (own[0] - own[1]).abs().sum()
