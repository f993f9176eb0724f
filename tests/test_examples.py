import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"


def test_the_plain_torch_example_learns_with_an_optimizer_that_could_not():
    command = [sys.executable, str(EXAMPLES / "plain_torch.py"), "--steps", "400"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    final = float(re.search(r"final loss ([0-9.]+)", done.stdout)[1])
    assert final < 0.5  # 1.5 at the start
    assert "climbing from the safe start" in done.stdout


@pytest.mark.parametrize("name", ["accelerate_loop", "fabric_loop"])
def test_the_example_of_another_loop_saves_goes_on_and_learns(name):
    command = [sys.executable, str(EXAMPLES / f"{name}.py"), "--steps", "240"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    final = float(re.search(r"final loss ([0-9.]+)", done.stdout)[1])
    assert final < 0.5  # 1.5 at the start
    last = int(re.findall(r"^step +(\d+)", done.stdout, re.M)[-1])
    assert 180 < last <= 240


def test_the_example_of_a_hugging_face_trainer_learns_without_a_network():
    command = [sys.executable, str(EXAMPLES / "hf_trainer.py"), "--steps", "60"]
    offline = {**os.environ, "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=300, check=False, env=offline
    )
    assert done.returncode == 0, done.stderr
    final, start = re.search(
        r"final loss ([0-9.]+) \(at the start: ([0-9.]+)\)", done.stdout
    ).groups()
    assert float(final) < float(start) - 1


def test_a_policy_trained_on_ones_own_modules_is_used_and_compared(tmp_path):
    script = EXAMPLES / "train_your_own_policy" / "train.py"
    small = ["--episodes=4", "--workers=1", "--seeds=1", "--steps=120"]
    smaller = ["tasks.horizons=[30,60]", "env.collect.replicas=4", "train.evaluation_tasks=1"]
    command = [sys.executable, script, *small, f"--folder={tmp_path / 'policy'}", *smaller]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    for task, start in (("digits", 2.3), ("forecast", 1.2)):
        losses = re.search(rf"^{task} +([0-9.]+) +([0-9.]+) +([0-9.]+)$", done.stdout, re.M)
        own, bundled, _ = map(float, losses.groups())
        assert max(own, bundled) < 0.7 * start, done.stdout
    policy = re.search(r'policy="(.+)"', done.stdout)[1]
    assert (Path(policy) / "policy.safetensors").is_file()


def test_the_gan_is_measured_both_ways():
    command = [sys.executable, str(EXAMPLES / "gan.py"), "--steps", "32", "--seeds", "1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    distances = [float(found) for found in re.findall(r"median ([0-9.]+) ", done.stdout)]
    assert len(distances) == 3
    assert all(0.01 < distance < 2 for distance in distances), "hardly trained, and finite"


def test_a_dqn_that_is_not_ours_learns_on_the_gymnasium_environment():
    # With 400 decisions, 200 of them the warm-up, one in two learners has not learned yet.
    arguments = ["--steps", "800", "--tasks", "4"]
    command = [sys.executable, str(EXAMPLES / "sb3_dqn.py"), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    rows = re.findall(r"^(\S.*?) +(-?[0-9.]+)$", done.stdout, flags=re.MULTILINE)
    levels = {name: float(level) for name, level in rows}
    assert len(levels) == 5
    untrained = min(levels["random actions"], levels["always x1"])
    assert levels["Stable-Baselines3 DQN"] < untrained - 0.5
    assert levels["our DQNLearner"] < untrained - 0.5
