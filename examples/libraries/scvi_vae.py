"""scvi-tools: SCVI on 700 blood cells, 765 genes, which its dependency scanpy ships.

The data hold normalised counts; the counts come back when the least of each cell becomes 1. The
model has its defaults: Adam at 1e-3, nine tenths of the cells for training; 100 epochs instead of
400, to save time. It is judged by the negative evidence lower bound on the other cells.
"""

from __future__ import annotations

from pathlib import Path

import anndata
import numpy as np
import scanpy
import scvi
from runs import Arm, main

EPOCHS = 100
FILE = Path("datasets", "10x_pbmc68k_reduced.h5ad")


def cells() -> anndata.AnnData:
    """The counts, (cells, genes)."""
    normalised = np.expm1(anndata.read_h5ad(Path(scanpy.__file__).parent / FILE).raw.X.toarray())
    one = np.where(normalised > 0, normalised, np.inf).min(axis=1, keepdims=True)
    return anndata.AnnData(np.round(normalised / one).astype(np.float32))


def fit(arm: Arm) -> dict[str, float]:
    """The negative bound per held-out cell, and on the cells that trained."""
    data = cells()
    scvi.settings.seed = arm.seed
    scvi.model.SCVI.setup_anndata(data)
    model = scvi.model.SCVI(data)
    model.train(
        max_epochs=EPOCHS,
        accelerator="cpu",
        plan_kwargs={"lr": 1e-3 * arm.factor},
        enable_progress_bar=False,
        logger=False,
        callbacks=arm.callbacks,
    )
    held_out = -float(model.get_elbo(indices=model.validation_indices))
    trained = -float(model.get_elbo(indices=model.train_indices))
    return {"validation negative ELBO": held_out, "training negative ELBO": trained}


if __name__ == "__main__":
    main(fit)
