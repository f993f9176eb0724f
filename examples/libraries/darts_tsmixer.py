"""darts: TSMixer on 309 years of sunspots, which its dependency statsmodels ships.

The model has its defaults: Adam at 1e-3, 100 epochs, batches of 32. It is judged by its forecasts
of the last 60 years, 12 years at a time.
"""

from __future__ import annotations

from darts import TimeSeries
from darts.dataprocessing.transformers import Scaler
from darts.metrics import mae
from darts.models import TSMixerModel
from runs import Arm, main
from statsmodels.datasets import sunspots

YEARS = 12
TESTED = 60  # years


def fit(arm: Arm) -> dict[str, float]:
    """Mean absolute error over all forecasts of the test years, in sunspots."""
    table = sunspots.load_pandas().data.astype("float32")
    series = TimeSeries.from_values(table["SUNACTIVITY"].to_numpy())
    scaler = Scaler()
    own = scaler.fit_transform(series[:-TESTED])
    model = TSMixerModel(
        input_chunk_length=3 * YEARS,
        output_chunk_length=YEARS,
        random_state=arm.seed,
        optimizer_kwargs={"lr": 1e-3 * arm.factor},
        pl_trainer_kwargs={
            "accelerator": "cpu",
            "enable_progress_bar": False,
            "callbacks": arm.callbacks,
        },
    )
    model.fit(own)
    forecasts = model.historical_forecasts(
        scaler.transform(series),
        start=len(own),
        forecast_horizon=YEARS,
        retrain=False,
        last_points_only=False,
        verbose=False,
    )
    errors = [mae(series, scaler.inverse_transform(forecast)) for forecast in forecasts]
    return {"test MAE": sum(errors) / len(errors)}


if __name__ == "__main__":
    main(fit)
