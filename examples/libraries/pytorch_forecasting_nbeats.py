"""pytorch-forecasting: N-BEATS on 100 noisy series with trend and season, of its own generator.

The model is that of the package's tutorial at its default rate: Adam at 1e-2, ReduceLROnPlateau
with a patience of 1,000, gradients clipped, EarlyStopping, the best checkpoint. It has 10 epochs of
30 batches. It is judged by the validation loss, the scaled error of the last 20 steps.
"""

from __future__ import annotations

import math

import numpy as np
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from pytorch_forecasting import NBeats, TimeSeriesDataSet
from pytorch_forecasting.data.encoders import NaNLabelEncoder
from pytorch_forecasting.data.examples import generate_ar_data
from runs import Arm, main

SEEN, FORECAST = 60, 20  # steps
EPOCHS, BATCHES = 10, 30


def fit(arm: Arm) -> dict[str, float]:
    """The validation loss (MASE) of the best checkpoint."""
    state = np.random.get_state()
    table = generate_ar_data(seasonality=10.0, timesteps=400, n_series=100, seed=42)
    np.random.set_state(state)
    table["series"] = table["series"].astype(str)
    own = TimeSeriesDataSet(
        table[table["time_idx"] < 400 - FORECAST],
        time_idx="time_idx",
        target="value",
        categorical_encoders={"series": NaNLabelEncoder().fit(table["series"])},
        group_ids=["series"],
        time_varying_unknown_reals=["value"],
        max_encoder_length=SEEN,
        max_prediction_length=FORECAST,
    )
    held = TimeSeriesDataSet.from_dataset(own, table, min_prediction_idx=400 - FORECAST)
    loaders = [part.to_dataloader(train=part is own, batch_size=64) for part in (own, held)]
    model = NBeats.from_dataset(
        own,
        learning_rate=1e-2 * arm.factor,
        weight_decay=1e-2,
        widths=[32, 512],
        backcast_loss_ratio=0.1,
    )
    kept = ModelCheckpoint("checkpoints", monitor="val_loss")
    trainer = Trainer(
        max_epochs=EPOCHS,
        limit_train_batches=BATCHES,
        gradient_clip_val=0.01,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[kept, EarlyStopping("val_loss", min_delta=1e-4, patience=10), *arm.callbacks],
    )
    trainer.fit(model, *loaders)
    best = math.nan if kept.best_model_score is None else float(kept.best_model_score)
    return {"validation MASE": best}


if __name__ == "__main__":
    main(fit)
