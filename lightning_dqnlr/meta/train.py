"""The meta-training loop: sample a task, run it under the exploring policy, learn, evaluate.

Everything that the next outer step depends on is in the checkpoint (networks, optimizer, replay,
random state, task cursor), so a run that was killed goes on as if it had not been.
"""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from lightning_dqnlr.control.spec import ControllerSpec
from lightning_dqnlr.envs.vector import Reward
from lightning_dqnlr.errors import ConfigurationError
from lightning_dqnlr.files import write_atomically
from lightning_dqnlr.meta.collect import CollectConfig, Episode, collect_episode
from lightning_dqnlr.meta.evaluate import Rivals, Scores, evaluate
from lightning_dqnlr.policy.network import QNetwork
from lightning_dqnlr.policy.policy import LRPolicy
from lightning_dqnlr.rl.dqn import DQNConfig, DQNLearner
from lightning_dqnlr.rl.replay import ReplayBuffer
from lightning_dqnlr.tasks.task import Task, TaskFamily


@dataclass(frozen=True)
class TrainConfig:
    """The outer loop.

    Args:
        episodes: outer steps; each runs one task with R replicas.
        updates: DQN updates after each episode.
        warm_up_episodes: episodes before the first update.
        capacity: of the replay buffer, in transitions.
        hidden: widths of the Q-network.
        dueling: value and advantage heads.
        evaluate_every: episodes between evaluations.
        evaluation_tasks: number of validation tasks.
        evaluation_seeds: replicas of each.
        checkpoint_every: episodes between checkpoints.
        max_minutes: stop after this wall-clock time; None for no limit.
        seed: of tasks, exploration and network.
        device: where inner and outer loop run.

    Raises:
        ConfigurationError: for counts below 1.
    """

    episodes: int = 1000
    updates: int = 200
    warm_up_episodes: int = 4
    capacity: int = 500_000
    hidden: tuple[int, ...] = (128, 128)
    dueling: bool = True
    evaluate_every: int = 25
    evaluation_tasks: int = 12
    evaluation_seeds: int = 8
    checkpoint_every: int = 25
    max_minutes: float | None = None
    seed: int = 0
    device: str = "cpu"

    def __post_init__(self) -> None:
        for name in ("episodes", "evaluate_every", "checkpoint_every", "evaluation_tasks"):
            if getattr(self, name) < 1:
                raise ConfigurationError(f"{name}={getattr(self, name)} must be at least 1.")


@dataclass
class Progress:
    """What a log line is made of after each episode."""

    episode: int
    inner_steps: int
    loss: float
    result: Episode
    task: Task
    scores: Scores | None = None


@dataclass
class MetaTrainer:
    """Learns an `LRPolicy` over a distribution of tasks.

    Args:
        tasks: where training ("train") and selection ("validation") tasks come from.
        reward: of an interval.
        spec: features, actions, decision times.
        dqn: the learner.
        collect: the rollouts.
        config: the outer loop.
        folder: checkpoints, the best policy and the rivals' cache go here.
    """

    tasks: TaskFamily
    reward: Reward
    spec: ControllerSpec
    dqn: DQNConfig
    collect: CollectConfig
    config: TrainConfig
    folder: Path
    episode: int = 0
    inner_steps: int = 0
    seconds: float = 0.0
    best_score: float = float("inf")
    failures: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        torch.manual_seed(self.config.seed)
        self.generator = torch.Generator().manual_seed(self.config.seed)
        size, actions = len(self.spec.features), len(self.spec.actions)
        network = QNetwork(size, actions, self.config.hidden, self.config.dueling)
        self.learner = DQNLearner(network, self.dqn, self.config.device)
        self.replay = ReplayBuffer(self.config.capacity, size, self.config.device)
        self.rivals = Rivals(self.folder / "rivals", self.config.device)

    @property
    def behaviour(self) -> LRPolicy:
        """The exploring policy: the online network."""
        return LRPolicy(self._network(self.learner.online), self.spec)

    @property
    def policy(self) -> LRPolicy:
        """The policy to evaluate and ship: the averaged network."""
        return LRPolicy(self._network(self.learner.average), self.spec)

    def validation_tasks(self) -> Sequence[Task]:
        """The tasks that choose; never trained on, never reported on."""
        return [self.tasks.sample(i, "validation") for i in range(self.config.evaluation_tasks)]

    def fit(self, report: Callable[[Progress], None]) -> float:
        """Runs to the last episode (or the time limit); returns the best validation score."""
        validation = self.validation_tasks()
        started = time.monotonic() - self.seconds
        while self.episode < self.config.episodes and not self._out_of_time():
            progress = self._outer_step()
            self.seconds = time.monotonic() - started
            last = self.episode >= self.config.episodes or self._out_of_time()
            if progress is not None:
                if self.episode % self.config.evaluate_every == 0 or last:
                    progress.scores = self._select(validation)
                report(progress)
            if self.episode % self.config.checkpoint_every == 0 or last:
                self.save_checkpoint()
        return self.best_score

    def _outer_step(self) -> Progress | None:
        """One episode and its updates; None if the task itself failed (recorded, skipped)."""
        seed = self.config.seed * 1_000_003 + self.episode
        self.episode += 1
        try:
            task = self.tasks.sample(seed, "train")
            episode = collect_episode(
                task, self.behaviour, self.collect, self.reward, self.generator, self.config.device
            )
        except (RuntimeError, ValueError) as error:
            self.failures.append(f"task seed {seed}: {type(error).__name__}: {error}")
            return None
        self.inner_steps += episode.steps
        self.replay.extend(episode.transitions)
        loss = float("nan")
        if self.episode > self.config.warm_up_episodes:
            loss = self._learn()
        return Progress(self.episode, self.inner_steps, loss, episode, task)

    def _learn(self) -> float:
        total = torch.zeros((), device=self.config.device)
        for _ in range(self.config.updates):
            batch = self.replay.sample(self.dqn.batch_size, self.generator)
            total += self.learner.update(batch)
        return (total / max(1, self.config.updates)).item()

    def _select(self, validation: Sequence[Task]) -> Scores:
        policy, seeds = self.policy, range(self.config.evaluation_seeds)
        scores = evaluate(policy.act, self.spec, validation, self.rivals, seeds, self.config.device)
        if scores.score < self.best_score:
            self.best_score = scores.score
            policy.record = {"validation": scores.summary(), **self._provenance()}
            policy.save(self.folder / "best")
        return scores

    def _provenance(self) -> dict[str, Any]:
        return {
            "episodes": self.episode,
            "inner_steps": self.inner_steps,
            "updates": self.learner.updates,
            "minutes": round(self.seconds / 60, 1),
            "seed": self.config.seed,
        }

    def save_checkpoint(self) -> Path:
        """Writes `checkpoint.pt` atomically; plain data that loads with `weights_only=True`."""
        content = io.BytesIO()
        torch.save(self.state_dict(), content)
        return write_atomically(self.folder / "checkpoint.pt", content.getvalue())

    def load_checkpoint(self) -> None:
        """Continues from `checkpoint.pt`.

        Raises:
            ConfigurationError: if there is none.
        """
        path = self.folder / "checkpoint.pt"
        if not path.is_file():
            raise ConfigurationError(
                f"resume=true, but {path} does not exist; start with resume=false or give the "
                "folder of the run to continue."
            )
        self.load_state_dict(torch.load(path, weights_only=True))

    def state_dict(self) -> dict[str, Any]:
        """Everything the next outer step depends on."""
        return {
            "learner": self.learner.state_dict(),
            "replay": self.replay.state_dict(),
            "generator": self.generator.get_state(),
            "torch_rng": torch.get_rng_state(),
            "episode": self.episode,
            "inner_steps": self.inner_steps,
            "seconds": self.seconds,
            "best_score": self.best_score,
            "failures": list(self.failures),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what `state_dict` returned."""
        self.learner.load_state_dict(state["learner"])
        self.replay.load_state_dict(state["replay"])
        self.generator.set_state(state["generator"])
        torch.set_rng_state(state["torch_rng"])
        self.episode, self.inner_steps = state["episode"], state["inner_steps"]
        self.seconds, self.best_score = state["seconds"], state["best_score"]
        self.failures = list(state["failures"])

    def _out_of_time(self) -> bool:
        limit = self.config.max_minutes
        return limit is not None and self.seconds > 60 * limit

    def _network(self, module: torch.nn.Module) -> QNetwork:
        network = QNetwork(
            len(self.spec.features), len(self.spec.actions), self.config.hidden, self.config.dueling
        )
        network.load_state_dict(module.state_dict())
        return network.to(self.config.device).requires_grad_(False)
