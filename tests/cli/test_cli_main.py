"""`dqnlr` and `dqnlr demo` from outside, as a user of a wheel types them."""

import re
import subprocess
import sys
from pkgutil import resolve_name
from types import SimpleNamespace

import pytest

from lightning_dqnlr import __version__
from lightning_dqnlr.cli import main as cli
from lightning_dqnlr.cli.demo import Contestant, demo, draw

COMMAND = [sys.executable, "-c", "from lightning_dqnlr.cli.main import main; main()"]
# As if matplotlib were not installed: neither importable nor listed as a distribution.
NO_DRAWING = """
import importlib.metadata, sys
distribution = importlib.metadata.distribution
def visible(name):
    if name == "matplotlib":
        raise importlib.metadata.PackageNotFoundError(name)
    return distribution(name)
importlib.metadata.distribution = visible
sys.modules["matplotlib"] = None
"""


def run(*arguments, cwd, before=""):
    command = [*COMMAND[:2], before + COMMAND[2], *arguments]
    return subprocess.run(
        command, cwd=cwd, capture_output=True, text=True, check=False, timeout=120
    )


def test_help_names_every_subcommand_and_loads_nothing_heavy(tmp_path):
    shown = run(
        "--help", cwd=tmp_path, before="sys = __import__('sys'); sys.modules['torch']=None;"
    )
    assert shown.returncode == 0, shown.stderr
    assert set(re.findall(r"^  (\w+) ", shown.stdout, re.M)) == set(cli.SUBCOMMANDS)


def test_a_command_that_does_not_exist_is_said_in_one_error(tmp_path):
    shown = run("bnech", cwd=tmp_path)
    assert shown.returncode == 2
    assert "invalid choice: 'bnech'" in shown.stderr


@pytest.mark.parametrize("name", cli.SUBCOMMANDS)
def test_a_subcommand_is_found_and_gets_the_arguments_behind_it(name, monkeypatch):
    function = cli.SUBCOMMANDS[name].function
    assert callable(resolve_name(function))
    seen = []
    monkeypatch.setattr(function.replace(":", "."), lambda: seen.append(list(sys.argv)))
    monkeypatch.setattr(sys, "argv", ["dqnlr", name, "-m", "seed=0,1", "--help"])
    cli.main()
    assert seen == [[f"dqnlr-{name}", "-m", "seed=0,1", "--help"]]


def test_the_version_is_that_of_the_package(tmp_path):
    assert run("--version", cwd=tmp_path).stdout == f"lightning-dqnlr {__version__}\n"


@pytest.fixture(scope="module")
def shown(tmp_path_factory):
    """A short demonstration, on an installation without matplotlib."""
    cwd = tmp_path_factory.mktemp("elsewhere")
    return run("demo", "--steps=60", "--peaks=1", cwd=cwd, before=NO_DRAWING)


def test_the_demonstration_ends_alike_at_both_rates_and_below_adam(shown):
    assert shown.returncode == 0, shown.stderr
    losses = {}
    for line in shown.stdout.splitlines():
        if row := re.match(r"(\S.*?) +\d+ +([0-9.]+) +([0-9.]+) +([0-9.]+)% +\d+$", line):
            losses[row[1]] = tuple(map(float, row.groups()[1:]))
    assert len(losses) == 4, shown.stdout
    assert losses["DQNLRCallback(), given 1e-6"] == losses["DQNLRCallback(), given 10"]
    _, validation, accuracy = losses["DQNLRCallback(), given 10"]
    assert validation < losses["Adam at 1e-3"][1]
    assert accuracy > 15  # the most frequent character is 20% of the text; nothing learnt is 1%


def test_the_demonstration_shows_nothing_of_lightnings(shown):
    bars = [line for line in shown.stderr.splitlines() if line.strip() and "run/s" not in line]
    assert [line for line in bars if "training" not in line and "s/run" not in line] == []
    assert "Trainer" not in shown.stdout.replace("Trainer(callbacks=[DQNLRCallback()])", "")


def test_without_matplotlib_the_demonstration_says_what_would_draw(shown):
    assert 'pip install "lightning-dqnlr[plot]"' in shown.stdout


def test_the_picture_of_the_demonstration_has_the_format_of_its_name(tmp_path):
    recorder = SimpleNamespace(validations=[(0, 4.0), (10, 2.0)], rates=[1e-3] * 10)
    run = SimpleNamespace(recorder=recorder, validation_loss=2.0)
    draw([Contestant(name, run, 1, 1.0) for name in "abcd"], tmp_path / "demo.svg")
    assert "<svg" in (tmp_path / "demo.svg").read_text()


def test_a_demonstration_of_no_steps_is_refused_in_one_line(tmp_path):
    refused = run("demo", "--steps=0", cwd=tmp_path)
    assert refused.returncode == 2
    assert refused.stderr.startswith("dqnlr-demo: error: --steps=0")


@pytest.mark.parametrize(
    "words", [("--seed", "-1"), ("--seed", str(2**63)), ("--steps", "1000000000000")]
)
def test_a_demonstration_of_no_sensible_size_is_refused_in_a_line(words, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["dqnlr-demo", *words])
    with pytest.raises(SystemExit) as stopped:
        demo()
    (line,) = capsys.readouterr().err.splitlines()
    assert stopped.value.code == 2
    assert f"{words[0]}={words[1]} must be an integer" in line
