"""Two LightningModules as a team might have them. Nothing in here knows of lightning-dqnlr."""

import math

import torch
from lightning import LightningModule
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics.functional.classification import multiclass_accuracy


class DigitClassifier(LightningModule):
    """A small convolutional network with BatchNorm."""

    def __init__(self, channels: int = 8, lr: float = 1e-3) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.net = nn.Sequential(
            nn.Conv2d(1, channels, 3, stride=2, padding=1),
            nn.BatchNorm2d(channels),
            nn.ReLU(),
            nn.Conv2d(channels, 2 * channels, 3, stride=2, padding=1),
            nn.BatchNorm2d(2 * channels),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(8 * channels, 10),
        )

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Cross-entropy of a batch of 8x8 images."""
        images, labels = batch
        loss = functional.cross_entropy(self.net(images), labels)
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Accuracy, too."""
        images, labels = batch
        outputs = self.net(images)
        self.log("val_loss", functional.cross_entropy(outputs, labels))
        self.log("val_accuracy", multiclass_accuracy(outputs, labels, num_classes=10))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """AdamW."""
        return torch.optim.AdamW(self.parameters(), lr=self.hparams["lr"], weight_decay=0.01)


class Forecaster(LightningModule):
    """Predicts the next value of a seasonal series from the last 24 ones."""

    def __init__(self, width: int = 32, lr: float = 1e-2) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.net = nn.Sequential(
            nn.Linear(24, width), nn.GELU(), nn.LayerNorm(width), nn.Linear(width, 1)
        )

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> dict[str, Tensor]:
        """Squared error of a batch of windows."""
        loss = functional.mse_loss(self.net(batch["window"]).squeeze(-1), batch["next"])
        self.log("train_loss", loss)
        return {"loss": loss}

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Momentum, with no decay of the output layer's bias."""
        *decayed, bias = self.parameters()
        groups = [{"params": decayed, "weight_decay": 1e-4}, {"params": [bias]}]
        return torch.optim.SGD(groups, lr=self.hparams["lr"], momentum=0.9)


def digit_images(batch_size: int = 32) -> DataLoader:
    """The handwritten digits that scikit-learn brings along."""
    bunch = load_digits()
    images = torch.tensor(bunch.images, dtype=torch.float32).unsqueeze(1) / 16
    data = TensorDataset(images, torch.tensor(bunch.target))
    return DataLoader(data, batch_size=batch_size, shuffle=True)


def seasonal_series(length: int = 1500, batch_size: int = 32) -> DataLoader:
    """Two seasons, a trend and noise, cut into windows."""
    time = torch.arange(length, dtype=torch.float32)
    noise = torch.randn(length, generator=torch.Generator().manual_seed(0))
    seasons = torch.sin(2 * math.pi * time / 24) + 0.5 * torch.sin(2 * math.pi * time / 168)
    series = seasons + 0.3 * time / length + 0.1 * noise
    windows = series.unfold(0, 25, 1)
    examples = [{"window": row[:-1], "next": row[-1]} for row in windows]
    return DataLoader(examples, batch_size=batch_size, shuffle=True)  # type: ignore[arg-type]
