import re
import subprocess
import sys
from pathlib import Path

EXAMPLES = Path(__file__).parent.parent / "examples"


def test_the_plain_torch_example_learns_with_an_optimizer_that_could_not():
    command = [sys.executable, str(EXAMPLES / "plain_torch.py"), "--steps", "400"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    final = float(re.search(r"final loss ([0-9.]+)", done.stdout)[1])
    assert final < 0.5  # 1.5 at the start
    assert "climbing from the safe start" in done.stdout


def test_a_dqn_that_is_not_ours_learns_on_the_gymnasium_environment():
    arguments = ["--steps", "400", "--tasks", "4"]
    command = [sys.executable, str(EXAMPLES / "sb3_dqn.py"), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    rows = re.findall(r"^(\S.*?) +(-?[0-9.]+)$", done.stdout, flags=re.MULTILINE)
    levels = {name: float(level) for name, level in rows}
    assert len(levels) == 5
    untrained = min(levels["random actions"], levels["always x1"])
    assert levels["Stable-Baselines3 DQN"] < untrained - 0.5
    assert levels["our DQNLearner"] < untrained - 0.5
