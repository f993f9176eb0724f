"""The fit is Gaussian process regression, and its criterion the expected improvement."""

import math

import pytest
import torch

from lightning_dqnlr.memory import fit as fits
from lightning_dqnlr.memory.fit import Point, fit, next_run

POINTS = [
    Point(0.0, 1.0),
    Point(1.0, 0.7, error=0.1),
    Point(-1.0, 3.3, group=1, width=1.0, batch=-2.0),
    Point(0.5, 3.0, group=1, width=1.0, batch=-2.0),
]


def kernel(a, b):
    near = (a.x - b.x) ** 2 / (2 * fits._LENGTH**2)
    near += (a.width - b.width) ** 2 / (2 * fits._WIDTH_LENGTH**2)
    near += (a.batch - b.batch) ** 2 / (2 * fits._BATCH_LENGTH**2)
    return fits._SPREAD**2 * math.exp(-near) + fits._LEVEL**2 * (a.group == b.group)


def prior(x):
    return fits._CURVATURE * (x - fits._OPTIMUM) ** 2


def test_mean_and_deviation_are_those_of_the_joint_normal_distribution():
    found = fit(POINTS)
    index = 5
    star = Point(float(found.x[index]), 0.0)
    everything = [*POINTS, star]
    entries = [[kernel(a, b) for b in everything] for a in everything]
    joint = torch.tensor(entries, dtype=torch.float64)
    for i, p in enumerate(POINTS):
        joint[i, i] += fits._NOISE**2 + p.error**2
    # By the precision matrix: mean and variance of the last one given the others.
    precision = torch.linalg.inv(joint)
    rest = torch.tensor([p.y - prior(p.x) for p in POINTS], dtype=torch.float64)
    mean = prior(star.x) - (precision[-1, :-1] @ rest) / precision[-1, -1]
    assert float(found.mean[index]) == pytest.approx(float(mean), abs=1e-5)
    assert float(found.deviation[index]) == pytest.approx(
        float(precision[-1, -1] ** -0.5), abs=1e-5
    )


def test_the_improvement_is_that_of_many_draws():
    found = fit(POINTS)
    tried = [(found.x - p.x).abs().argmin() for p in POINTS if p.group == 0]
    reached = min(float(found.mean[i]) for i in tried)
    index = int(found.improvement.argmax())
    draws = torch.randn(400_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    gains = reached - (found.mean[index] + found.deviation[index] * draws)
    expected = float(gains.clamp_min(0).mean())
    assert float(found.improvement[index]) == pytest.approx(expected, rel=0.02)


def test_a_models_own_level_says_nothing():
    shifted = [p._replace(y=p.y + (5.0 if p.group else -2.0)) for p in POINTS]
    assert torch.allclose(fit(POINTS).improvement, fit(shifted).improvement, atol=1e-4)


def test_a_plain_valley_is_found_and_then_kept_to():
    points = [Point(0.0, 0.0)]
    for _ in range(12):
        x = next_run(fit(points)).x
        points.append(Point(x, 0.3 * (x + 1.0) ** 2))
    assert next_run(fit(points)).x == pytest.approx(-1.0, abs=0.5)
    assert "settled" in next_run(fit(points * 60)).why


@pytest.mark.parametrize("seed", range(3))
def test_no_rate_is_tried_beyond_an_eighth_and_eight_times(seed):
    generator = torch.Generator().manual_seed(seed)
    points = []
    for _ in range(8):
        x = next_run(fit(points)).x if points else 0.0
        assert -3.0 <= x <= 3.0
        points.append(Point(x, float(torch.randn((), generator=generator))))
