"""chemprop: its message-passing network on 1,017 ligands of ChEMBL, which rdkit ships.

The model has its defaults: Adam under a warm-up from 1e-4 to 1e-3 and an exponential decay back
(a LambdaLR), batches of 64; 20 epochs. It is judged by its error in activity, the negative decimal
logarithm of a concentration, on a fifth of the ligands.
"""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
from chemprop import data, models, nn
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from rdkit import RDConfig
from trials import Arm, main

FOLDER = Path(RDConfig.RDContribDir, "FreeWilson", "data")
EPOCHS = 20
SHARES = (0.7, 0.1, 0.2)  # for training, choice of the checkpoint, test


def ligands() -> list[data.MoleculeDatapoint]:
    """Molecules with their activities."""
    with open(FOLDER / "CHEMBL2321810_act.csv", newline="") as file:
        activities = {row["Name"]: float(row["Act"]) for row in csv.DictReader(file)}
    lines = (FOLDER / "CHEMBL2321810.smi").read_text().splitlines()
    rows = [line.split() for line in lines]
    return [
        data.MoleculeDatapoint.from_smi(smiles, np.array([activities[name]]))
        for smiles, name in rows
        if name in activities
    ]


def fit(arm: Arm) -> dict[str, float]:
    """Root mean squared error on the test ligands, of the best checkpoint and of the last step."""
    molecules = ligands()
    order = np.random.default_rng(0).permutation(len(molecules))
    ends = np.round(np.cumsum(SHARES)[:2] * len(molecules)).astype(int)
    parts = [
        data.MoleculeDataset([molecules[number] for number in part])
        for part in np.split(order, ends)
    ]
    scaler = parts[0].normalize_targets()
    parts[1].normalize_targets(scaler)
    loaders = [
        data.build_dataloader(part, num_workers=0, shuffle=part is parts[0]) for part in parts
    ]
    output = nn.UnscaleTransform.from_standard_scaler(scaler)
    rates = {"init_lr": 1e-4, "max_lr": 1e-3, "final_lr": 1e-4}
    model = models.MPNN(
        nn.BondMessagePassing(),
        nn.NormAggregation(),
        nn.RegressionFFN(output_transform=output),
        **{name: rate * arm.factor for name, rate in rates.items()},
    )
    kept = ModelCheckpoint("checkpoints", monitor="val_loss", save_last=True)
    trainer = Trainer(
        max_epochs=EPOCHS,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[kept, *arm.callbacks],
    )
    trainer.fit(model, *loaders[:2])
    last = test_error(trainer, model, loaders[2], parts[2])
    model = models.MPNN.load_from_checkpoint(kept.best_model_path, weights_only=False)
    best = test_error(trainer, model, loaders[2], parts[2])
    return {"test RMSE": best, "test RMSE of the last step": last}


def test_error(trainer: Trainer, model: models.MPNN, loader: object, part: object) -> float:
    """Root mean squared error in the data's own units."""
    predicted = np.concatenate([batch.numpy() for batch in trainer.predict(model, loader)])
    return float(np.sqrt(np.mean((predicted - part.Y) ** 2)))


if __name__ == "__main__":
    main(fit)
