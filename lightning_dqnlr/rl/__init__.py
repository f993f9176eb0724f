"""Deep Q-learning: rewards, targets, replay, the learner, and the tabular baseline. Torch only."""

from lightning_dqnlr.rl.dqn import Agent, DQNConfig
from lightning_dqnlr.rl.prioritised import PrioritisedReplayConfig
from lightning_dqnlr.rl.q_table import TabularConfig
from lightning_dqnlr.rl.quantile import QuantileConfig
from lightning_dqnlr.rl.replay import UniformReplayConfig
from lightning_dqnlr.rl.rewards import FinalScore, LogProgress, LossChange

__all__ = [
    "Agent",
    "DQNConfig",
    "FinalScore",
    "LogProgress",
    "LossChange",
    "PrioritisedReplayConfig",
    "QuantileConfig",
    "TabularConfig",
    "UniformReplayConfig",
]
