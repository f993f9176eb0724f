"""neuralforecast: NHITS on the monthly passengers of two airlines, which the package ships.

The model is that of the package's quick start: Adam at 1e-3, halved three times by StepLR. It has
200 steps of 128 windows, of some 190 that there are. It is judged by its forecasts of the last
three years, twelve months at a time.
"""

from __future__ import annotations

import numpy as np
from neuralforecast import NeuralForecast
from neuralforecast.models import NHITS
from neuralforecast.utils import AirPassengersPanel
from runs import Arm, main

MONTHS = 12
STEPS = 200
TESTED = 36  # months


def fit(arm: Arm) -> dict[str, float]:
    """Mean absolute error over all windows of the test months, in passengers."""
    model = NHITS(
        h=MONTHS,
        input_size=2 * MONTHS,
        n_freq_downsample=[2, 1, 1],
        max_steps=STEPS,
        windows_batch_size=128,
        learning_rate=1e-3 * arm.factor,
        random_seed=arm.seed,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        callbacks=arm.callbacks,
    )
    forecaster = NeuralForecast(models=[model], freq="ME")
    forecasts = forecaster.cross_validation(
        AirPassengersPanel, n_windows=None, val_size=0, test_size=TESTED, step_size=1
    )
    errors = np.abs(forecasts["y"] - forecasts["NHITS"])
    return {"test MAE": float(errors.mean())}


if __name__ == "__main__":
    main(fit)
