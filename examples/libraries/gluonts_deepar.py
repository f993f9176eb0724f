"""gluonts: DeepAR on 100 daily series with weekly seasons, of the package's own generator.

The model has its defaults: Adam at 1e-3, ReduceLROnPlateau, 50 batches of 32 an epoch, gradients
clipped at 10; 10 epochs. It is judged by the weighted quantile loss of the last 20 days.
"""

from __future__ import annotations

import random

import numpy as np
from gluonts.dataset.artificial import ComplexSeasonalTimeSeries
from gluonts.dataset.common import ListDataset
from gluonts.evaluation import Evaluator, make_evaluation_predictions
from gluonts.torch import DeepAREstimator
from runs import Arm, main

DAYS = 20
EPOCHS = 10
QUANTILES = [0.1, 0.3, 0.5, 0.7, 0.9]


def series() -> tuple[ListDataset, ListDataset]:
    """What trains, and the same with the days to be forecast."""
    random.seed(0)
    np.random.seed(0)  # the generator has no seed of its own
    made = ComplexSeasonalTimeSeries(num_series=100, prediction_length=DAYS, freq_str="D")
    return ListDataset(list(made.train), freq="D"), ListDataset(list(made.test), freq="D")


def fit(arm: Arm) -> dict[str, float]:
    """The weighted quantile loss of the forecasts."""
    own, tested = series()
    random.seed(arm.seed)
    np.random.seed(arm.seed)
    estimator = DeepAREstimator(
        freq="D",
        prediction_length=DAYS,
        lr=1e-3 * arm.factor,
        trainer_kwargs={
            "max_epochs": EPOCHS,
            "accelerator": "cpu",
            "enable_progress_bar": False,
            "logger": False,
            "callbacks": arm.callbacks,
        },
    )
    predictor = estimator.train(own)
    forecasts, truths = make_evaluation_predictions(tested, predictor)
    scores, _ = Evaluator(quantiles=QUANTILES, num_workers=None)(truths, forecasts)
    return {"test weighted quantile loss": float(scores["mean_wQuantileLoss"])}


if __name__ == "__main__":
    main(fit)
