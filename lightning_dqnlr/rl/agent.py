"""An agent of the meta-training: how it learns, and from which of its experiences."""

from __future__ import annotations

from dataclasses import dataclass, field

from lightning_dqnlr.rl.dqn import DQNConfig
from lightning_dqnlr.rl.learner import LearnerConfig
from lightning_dqnlr.rl.replay import ReplayConfig, UniformReplayConfig


@dataclass(frozen=True)
class Agent:
    """What learns. The length of its returns belongs to the rollouts (`CollectConfig.n_step`).

    Args:
        learner: of the Q-values.
        replay: which transitions an update is made of.
    """

    learner: LearnerConfig = field(default_factory=DQNConfig)
    replay: ReplayConfig = field(default_factory=UniformReplayConfig)
