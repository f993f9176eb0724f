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
