"""Somebody else's DQN learns learning-rate control: Stable-Baselines3 on `LRControlEnv`.

    pip install ".[sb3]"
    python examples/sb3_dqn.py

The script checks two things. Stable-Baselines3's DQN shares no line with ours, so whatever it
learns comes from the environment. Our `DQNLearner` has the same settings and as many decisions, so
it should learn about as much. Both are judged on tasks that neither has seen, beside random actions
and each action taken always ("always x1" keeps the safe start's rate).

The tasks are small noisy quadratics, 40 to 80 steps long, with about a dozen decisions each. The
controller's built-in decay is off and its cap on the update is far away. Otherwise the controller
would brake by itself, and "x4" always would do nearly as well as any policy. This is a check of the
machinery on an easy problem; it says nothing about the bundled policy.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np
import torch
from stable_baselines3 import DQN

from lightning_dqnlr.control.features import compressed_loss
from lightning_dqnlr.control.spec import ActionSpec, ControllerSpec
from lightning_dqnlr.envs.gym import ENV_ID
from lightning_dqnlr.policy.choice import epsilon_greedy
from lightning_dqnlr.policy.network import QNetwork
from lightning_dqnlr.rl.dqn import DQNConfig, DQNLearner
from lightning_dqnlr.rl.replay import ReplayBuffer, Transitions
from lightning_dqnlr.tasks import NoisyQuadratics

TASKS = NoisyQuadratics(
    optimizers=("sgd", "adam"),
    min_horizon=40,
    max_horizon=80,
    wide_probability=0.0,
    known_horizon_probability=1.0,
)
CONTROLLER = ControllerSpec(
    actions=ActionSpec((0.25, 1.0, 4.0)),
    decisions=10,
    decay="none",
    max_update_ratio=10.0,
)

# The settings of both learners; the network is Stable-Baselines3's default, two layers of 64.
LEARNING_RATE = 1e-3
BATCH_SIZE = 128
WARM_UP = 200  # in decisions
# A decision trains a model, which takes the time of about eight updates.
UPDATES_PER_DECISION = 4
TARGET_PERIOD = 100  # in decisions
FINAL_EPSILON = 0.05
EXPLORING_SHARE = 0.5

Act = Callable[[np.ndarray], int]


def environment(split: str) -> gymnasium.Env:
    """The runs of one split of the tasks."""
    return gymnasium.make(ENV_ID, tasks=TASKS, split=split, controller_spec=CONTROLLER)


def train_stable_baselines3(steps: int, seed: int) -> Act:
    """Their DQN: Huber loss, hard target updates, no double Q-learning."""
    agent = DQN(
        "MlpPolicy",
        environment("train"),
        learning_rate=LEARNING_RATE,
        buffer_size=steps,
        learning_starts=min(WARM_UP, steps // 4),
        batch_size=BATCH_SIZE,
        gamma=1.0,
        train_freq=1,
        gradient_steps=UPDATES_PER_DECISION,
        target_update_interval=TARGET_PERIOD,
        exploration_fraction=EXPLORING_SHARE,
        exploration_final_eps=FINAL_EPSILON,
        seed=seed,
        device="cpu",
    )
    agent.learn(steps)
    return lambda observation: int(agent.predict(observation, deterministic=True)[0])


def train_ours(steps: int, seed: int) -> Act:
    """The same algorithm from this package's parts."""
    torch.manual_seed(seed)
    env = environment("train")
    generator = torch.Generator().manual_seed(seed)
    features, actions = len(CONTROLLER.features), len(CONTROLLER.actions)
    config = DQNConfig(
        double=False,
        learning_rate=LEARNING_RATE,
        batch_size=BATCH_SIZE,
        target_update="hard",
        target_period=TARGET_PERIOD * UPDATES_PER_DECISION,
        weight_decay=0.0,
    )
    learner = DQNLearner(QNetwork(features, actions, hidden=(64, 64), dueling=False), config)
    replay = ReplayBuffer(steps, features)

    def act(observation: np.ndarray, epsilon: float = 0.0) -> int:
        with torch.no_grad():
            q_values = learner.online(torch.as_tensor(observation))
        return int(epsilon_greedy(q_values, epsilon, generator))

    observation, _ = env.reset(seed=seed)
    for step in range(steps):
        progress = min(1.0, step / (EXPLORING_SHARE * steps))
        action = act(observation, 1.0 + progress * (FINAL_EPSILON - 1.0))
        following, reward, terminated, _, _ = env.step(action)
        replay.extend(transition(observation, action, float(reward), following, terminated))
        observation = env.reset()[0] if terminated else following
        if step >= min(WARM_UP, steps // 4):
            for _ in range(UPDATES_PER_DECISION):
                learner.update(replay.sample(BATCH_SIZE, generator).transitions)
    return act


def transition(
    observation: np.ndarray, action: int, reward: float, following: np.ndarray, terminated: bool
) -> Transitions:
    """A batch of one."""
    discount = 0.0 if terminated else 1.0
    values: list[Any] = [observation, action, reward, following, discount]
    return Transitions(*(torch.as_tensor(value).unsqueeze(0) for value in values))


def judge(act: Act, tasks: int) -> float:
    """Mean over held-out tasks of the final log loss, relative to the initial one.

    On the scale of the reward, log(1 + L / e) with e = 1% of the initial loss: 0 where nothing was
    learned, -4.6 at a loss of zero.
    """
    env = environment("test")
    levels = []
    for seed in range(tasks):
        observation, info = env.reset(options={"task_seed": seed, "run_seed": seed})
        while "final_loss" not in info:
            observation, _, _, _, info = env.step(act(observation))
        final, initial = (torch.tensor(info[key]) for key in ("final_loss", "initial_loss"))
        levels.append(compressed_loss(final, initial) - compressed_loss(initial, initial))
    return float(torch.stack(levels).mean())


def main() -> None:
    """Trains both and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=2000, help="decisions to learn from")
    parser.add_argument("--tasks", type=int, default=24, help="held-out tasks to judge on")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.set_num_threads(1)

    multipliers = CONTROLLER.actions.multipliers
    rows: dict[str, Act] = {"random actions": Random(arguments.seed)}
    for action in range(CONTROLLER.actions.keep, len(multipliers)):
        rows[f"always x{multipliers[action]:g}"] = lambda _, action=action: action
    for name, train in (
        ("Stable-Baselines3 DQN", train_stable_baselines3),
        ("our DQNLearner", train_ours),
    ):
        began = time.perf_counter()
        rows[name] = train(arguments.steps, arguments.seed)
        print(f"{name}: {arguments.steps} decisions in {time.perf_counter() - began:.0f} s")

    print(f"\nfinal log loss against the initial, mean of {arguments.tasks} held-out tasks")
    for name, act in rows.items():
        print(f"{name:24s}{judge(act, arguments.tasks):8.3f}")


class Random:
    """Every action equally often, whatever is observed."""

    def __init__(self, seed: int) -> None:
        self._generator = np.random.default_rng(seed)

    def __call__(self, observation: np.ndarray) -> int:
        """An index of a multiplier."""
        return int(self._generator.integers(len(CONTROLLER.actions)))


if __name__ == "__main__":
    main()
