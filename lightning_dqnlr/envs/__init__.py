"""Learning-rate control as an environment."""

from lightning_dqnlr.envs.trainer import TrainerEngine
from lightning_dqnlr.envs.vector import VectorEngine

__all__ = ["TrainerEngine", "VectorEngine"]
