import sys

import pytest
import torch

from lightning_dqnlr.errors import ConfigurationError
from lightning_dqnlr.tasks.data import scikit_learn
from lightning_dqnlr.tasks.data.examples import corrupt_labels
from lightning_dqnlr.tasks.data.scikit_learn import digits
from lightning_dqnlr.tasks.data.synthetic import gaussian_inputs, teacher_data
from lightning_dqnlr.tasks.sampling import Draws


def test_digits_have_a_fixed_shuffled_split_in_the_unit_range():
    (images, labels), (held_out, held_out_labels) = digits()
    assert images.shape == (1437, 64)
    assert held_out.shape == (360, 64)
    assert images.dtype == torch.float32
    assert labels.dtype == torch.int64
    assert images.min() == 0.0
    assert images.max() == 1.0
    # The file starts 0, 1, 2, ...: an unshuffled split would hold out whole writers.
    assert labels[:10].tolist() != list(range(10))
    assert torch.bincount(held_out_labels, minlength=10).min() > 20


def test_digits_split_keeps_images_and_labels_together():
    from sklearn.datasets import load_digits

    (images, labels), (held_out, held_out_labels) = digits()
    inputs, truth = load_digits(return_X_y=True)

    def rows(features, targets):
        return sorted((*row.tolist(), int(y)) for row, y in zip(features, targets, strict=True))

    ours = torch.cat([images, held_out]) * 16.0, torch.cat([labels, held_out_labels])
    assert rows(*ours) == rows(inputs, truth)


def test_a_caller_who_writes_into_the_digits_does_not_reach_the_cache():
    (images, labels), _ = digits()
    images.zero_()
    labels.fill_(-1)
    (again, labels_again), _ = digits()
    assert again.max() == 1.0
    assert labels_again.min() == 0


def test_input_scale_multiplies_the_images_alone():
    (images, labels), _ = digits(0.25)
    assert images.max() == 0.25
    assert labels.max() == 9


def test_missing_scikit_learn_names_the_extra_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    scikit_learn._shuffled_digits.cache_clear()
    with pytest.raises(ConfigurationError, match=r'pip install "lightning-dqnlr\[train\]"'):
        digits()


def test_label_noise_redraws_the_stated_fraction_over_all_classes():
    clean = torch.zeros(20_000, dtype=torch.int64)
    noisy = corrupt_labels(clean, 0.2, 10, Draws(0))
    counts = torch.bincount(noisy, minlength=10)
    # One redrawn label in ten falls back on the true class.
    assert counts[1:].sum() == pytest.approx(20_000 * 0.2 * 0.9, rel=0.1)
    assert counts[1:].min() > 300
    assert torch.equal(corrupt_labels(clean, 0.0, 10, Draws(0)), clean)


def test_gaussian_inputs_have_mean_variance_one_and_correlated_coordinates():
    inputs = gaussian_inputs(20_000, 8, Draws(2))
    covariance = torch.cov(inputs.T)
    assert covariance.diagonal().mean() == pytest.approx(1.0, abs=0.05)
    eigenvalues = torch.linalg.eigvalsh(covariance)
    assert eigenvalues[-1] > 2.0 * eigenvalues[0]
    assert (covariance - covariance.diag().diag()).abs().max() > 0.1


def teach(kind, noise=0.0, seed=0, outputs=3):
    return teacher_data(
        kind, examples=400, dimension=6, outputs=outputs, noise=noise, draws=Draws(seed)
    )


def test_teacher_targets_are_standardised_and_repeatable():
    (inputs, targets), (held_out, held_out_targets) = teach("regression")
    assert inputs.shape == (400, 6)
    assert targets.shape == (400, 3)
    assert held_out.shape == (100, 6)
    every = torch.cat([targets, held_out_targets])
    torch.testing.assert_close(every.mean(0), torch.zeros(3), atol=1e-5, rtol=0.0)
    torch.testing.assert_close(every.std(0), torch.ones(3))
    assert torch.equal(targets, teach("regression").train[1])
    assert not torch.equal(targets, teach("regression", seed=1).train[1])


@pytest.mark.parametrize(("kind", "noise"), [("regression", 0.5), ("classification", 0.2)])
def test_noise_reaches_the_training_targets_and_never_the_validation_targets(kind, noise):
    clean, noisy = teach(kind), teach(kind, noise=noise)
    assert torch.equal(clean.train[0], noisy.train[0])
    assert not torch.equal(clean.train[1], noisy.train[1])
    assert torch.equal(clean.validation[1], noisy.validation[1])


def test_regression_noise_has_the_stated_standard_deviation():
    difference = teach("regression", noise=0.5).train[1] - teach("regression").train[1]
    assert difference.std() == pytest.approx(0.5, rel=0.1)


def test_classification_teacher_uses_every_class():
    labels = teach("classification", outputs=5).train[1]
    assert labels.dtype == torch.int64
    assert set(labels.tolist()) == set(range(5))
