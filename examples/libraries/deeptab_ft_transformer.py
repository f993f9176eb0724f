"""deeptab: FT-Transformer on the 442 diabetes patients of scikit-learn.

The model has its defaults: AdamW at 1e-4, ReduceLROnPlateau, EarlyStopping with a patience of 15
of 100 epochs, the best checkpoint. It is judged by its error on a quarter of the patients.
"""

from __future__ import annotations

import numpy as np
from deeptab.models import FTTransformerRegressor
from runs import Arm, main
from sklearn.datasets import load_diabetes
from sklearn.model_selection import train_test_split


def fit(arm: Arm) -> dict[str, float]:
    """Root mean squared error on the test patients."""
    inputs, targets = load_diabetes(return_X_y=True, as_frame=True)
    parts = train_test_split(inputs, targets.to_numpy(dtype="float32"), random_state=0)
    own, tested, own_targets, tested_targets = parts
    middle, scale = own_targets.mean(), own_targets.std()
    model = FTTransformerRegressor(random_state=arm.seed)
    model.fit(
        own,
        (own_targets - middle) / scale,
        lr=1e-4 * arm.factor,
        accelerator="cpu",
        enable_progress_bar=False,
        logger=False,
        callbacks=arm.callbacks,
    )
    errors = np.ravel(model.predict(tested)) * scale + middle - tested_targets
    return {"test RMSE": float(np.sqrt(np.mean(errors**2)))}


if __name__ == "__main__":
    main(fit)
