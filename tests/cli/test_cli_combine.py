"""`dqnlr-combine` from outside."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from lightning_dqnlr.cli import policies as cli
from lightning_dqnlr.control.spec import ControllerSpec
from lightning_dqnlr.policy.network import QNetwork
from lightning_dqnlr.policy.policy import LRPolicy

COMMAND = Path(sys.executable).with_name("dqnlr-combine")


def combine(*arguments):
    command = [COMMAND, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def save_member(folder, seed, spec=None):
    spec = spec or ControllerSpec()
    torch.manual_seed(seed)
    network = QNetwork(len(spec.features), len(spec.actions), hidden=(8,))
    return LRPolicy(network, spec, {"seed": seed, "minutes": 1.5, "reward": "r"}).save(folder)


def test_two_runs_become_one_policy_whose_record_names_both(tmp_path):
    folders = [save_member(tmp_path / str(seed), seed) for seed in (3, 4)]
    done = combine(*folders, "--into", tmp_path / "both")
    assert done.returncode == 0, done.stderr
    assert "2 policies averaged" in done.stdout
    record = LRPolicy.load(tmp_path / "both").record
    assert record["minutes"] == 3.0
    assert [member["seed"] for member in record["members"]] == [3, 4]
    assert record["reward"] == "r"


def test_the_controller_can_be_set_otherwise_than_in_training(tmp_path):
    folders = [save_member(tmp_path / str(seed), seed) for seed in (3, 4)]
    settings = ("--set", "cuts_in_decay=true", "--set", "decay=cosine", "--set", "decay_share=0.25")
    done = combine(*folders, "--into", tmp_path / "both", *settings)
    assert done.returncode == 0, done.stderr
    expected = ControllerSpec(cuts_in_decay=True, decay="cosine", decay_share=0.25)
    both = LRPolicy.load(tmp_path / "both")
    assert both.spec == expected
    assert both.record["set_after_training"] == list(settings[1::2])


def test_members_that_trained_under_different_decays_can_share_one(tmp_path):
    shares = (0.5, 0.3)
    specs = [ControllerSpec(decay="wsd", decay_share=share) for share in shares]
    folders = [save_member(tmp_path / str(s.decay_share), 0, s) for s in specs]
    refused = combine(*folders, "--into", tmp_path / "both")
    assert refused.returncode == 2
    assert f"{folders[0]} and {folders[1]} differ in decay_share (0.5 against" in refused.stderr
    done = combine(*folders, "--into", tmp_path / "both", "--set", "decay_share=0.3")
    assert done.returncode == 0, done.stderr
    assert LRPolicy.load(tmp_path / "both").spec == specs[1]


def test_a_missing_policy_is_one_line_and_writes_nothing(tmp_path):
    folder = save_member(tmp_path / "a", 0)
    done = combine(folder, tmp_path / "nowhere", "--into", tmp_path / "both")
    assert done.returncode == 2
    assert "nowhere" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "both").exists()


def test_a_policy_that_is_there_is_replaced_only_on_request(tmp_path):
    folders = [save_member(tmp_path / str(seed), seed) for seed in (3, 4)]
    there = save_member(tmp_path / "there", 5)
    before = (there / "policy.json").read_bytes()
    refused = combine(*folders, "--into", there)
    assert refused.returncode == 2
    assert "--force" in refused.stderr
    assert (there / "policy.json").read_bytes() == before
    done = combine(*folders, "--into", there, "--force")
    assert done.returncode == 0, done.stderr
    assert len(LRPolicy.load(there).record["members"]) == 2


def test_making_the_policy_again_replaces_the_last_one():
    """`make policy` combines anew each time, so its command must ask for the replacement."""
    makefile = (Path(__file__).parents[2] / "Makefile").read_text()
    (line,) = (line for line in makefile.splitlines() if "dqnlr-combine" in line)
    assert "--force" in line


def test_an_interrupted_command_that_cannot_be_resumed_does_not_say_so(monkeypatch, capsys):
    def interrupted(place):
        raise KeyboardInterrupt

    monkeypatch.setattr(LRPolicy, "load", interrupted)
    monkeypatch.setattr("sys.argv", ["dqnlr-combine", "one", "other", "--into", "both"])
    with pytest.raises(SystemExit):
        cli.combine()
    assert "interrupted; the same command begins anew" in capsys.readouterr().err
