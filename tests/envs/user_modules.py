"""Modules as users write them: nothing of this project in them."""

import pytorch_lightning
import torch
from lightning import LightningModule
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1, weight_decay=0.01),
    "momentum": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
    "nesterov": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True),
    "adam": lambda p: torch.optim.Adam(p, lr=0.1, weight_decay=0.01),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.1, weight_decay=0.1),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.1),
}


class Classifier(LightningModule):
    """BatchNorm and dropout if asked for, a dict for a batch, metrics logged all along."""

    def __init__(self, optimizer="adam", norm=False, dropout=0.0):
        super().__init__()
        middle = nn.BatchNorm1d(12) if norm else nn.Identity()
        # A bias before BatchNorm has no gradient but rounding noise, which Adam would amplify.
        first = nn.Linear(6, 12, bias=not norm)
        self.net = nn.Sequential(first, middle, nn.Tanh(), nn.Dropout(dropout), nn.Linear(12, 3))
        self.optimizer = optimizer

    def training_step(self, batch, batch_idx):
        loss = nn.functional.cross_entropy(self.net(batch["inputs"]), batch["labels"])
        self.log("train_loss", loss, prog_bar=True)
        self.log_dict({"again": loss})
        return {"loss": loss}

    def configure_optimizers(self):
        return OPTIMIZERS[self.optimizer](self.parameters())


class TwoRates(Classifier):
    """Two groups with settings of their own, listed against the order of the parameters."""

    def configure_optimizers(self):
        first, last = self.net[0], self.net[-1]
        groups = [
            {"params": last.parameters(), "lr": 0.02, "weight_decay": 0.5},
            {"params": first.parameters(), "lr": 0.1},
        ]
        return torch.optim.AdamW(groups, lr=0.1, weight_decay=0.0)


class WarmsUp(Classifier):
    """A warm-up that begins at zero, a plateau of a metric that nobody logs, a step of its own."""

    def configure_optimizers(self):
        groups = [{"params": self.net[0].parameters(), "lr": 0.02}]
        groups += [{"params": self.net[-1].parameters()}]
        optimizer = torch.optim.Adam(groups, lr=0.1)
        warm_up = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, step / 5))
        plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer)
        return [optimizer], [
            {"scheduler": warm_up, "interval": "step"},
            {"scheduler": plateau, "monitor": "val_loss"},
        ]

    def lr_scheduler_step(self, scheduler, metric):
        scheduler.step()


class OlderName(pytorch_lightning.LightningModule):
    """The same under the other name of Lightning, whose classes are others."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(6, 12), nn.Tanh(), nn.Linear(12, 3))

    training_step = Classifier.training_step
    configure_optimizers = WarmsUp.configure_optimizers


class Frozen(Classifier):
    """Fine-tuning: only the head is trained."""

    def __init__(self):
        super().__init__(optimizer="adam")
        self.net[0].requires_grad_(False)

    def configure_optimizers(self):
        return torch.optim.Adam([p for p in self.parameters() if p.requires_grad], lr=0.1)


class Branching(Classifier):
    """What vmap cannot carry: Python asks for a value."""

    def training_step(self, batch):
        loss = super().training_step(batch, 0)["loss"]
        return loss if loss > 0 else -loss


class AsksItsTrainer(Classifier):
    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)["loss"]
        return loss * (1 + 0 * self.current_epoch)


class HasAHook(Classifier):
    def on_after_backward(self):
        for parameter in self.parameters():
            parameter.grad.mul_(0.5)


class Rows(torch.utils.data.Dataset):
    """Examples as dicts."""

    def __init__(self, count=56, seed=0):
        generator = torch.Generator().manual_seed(seed)
        self.inputs = torch.randn(count, 6, generator=generator)
        self.labels = torch.randint(3, (count,), generator=generator).tolist()

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        return {"inputs": self.inputs[index], "labels": self.labels[index]}


def rows(shuffle=True, **arguments):
    return DataLoader(Rows(), batch_size=8, shuffle=shuffle, **arguments)


def pairs():
    generator = torch.Generator().manual_seed(0)
    return DataLoader(TensorDataset(torch.randn(24, 5, generator=generator)), batch_size=4)
