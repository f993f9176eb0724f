"""Meta-training: collect transitions, learn, evaluate, save the best policy."""

from lightning_dqnlr.meta.collect import CollectConfig
from lightning_dqnlr.meta.ray import RayWorkers
from lightning_dqnlr.meta.train import MetaTrainer, TrainConfig
from lightning_dqnlr.meta.workers import LocalWorkers

__all__ = ["CollectConfig", "LocalWorkers", "MetaTrainer", "RayWorkers", "TrainConfig"]
