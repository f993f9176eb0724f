"""Runs that are killed, that meet a full disk, or whose tasks fail."""

import csv
import os
import random
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from lightning_dqnlr.cli import train as cli
from lightning_dqnlr.errors import ConfigurationError
from lightning_dqnlr.meta.checkpoint import CHECKPOINT, read_checkpoint, write_checkpoint
from lightning_dqnlr.meta.logs import CSV_FILE, CSVLog
from lightning_dqnlr.policy.policy import LRPolicy
from tests.cli.test_cli import COMMAND, TINY, composed, environment, rows
from tests.meta.test_meta_train import ignore, make_trainer, weights
from tests.meta.tiny_tasks import Poisoned, TinyTasks

RUN = (
    *TINY,
    "tensorboard=false",
    "train.episodes=24",
    "train.checkpoint_every=1",
    "train.evaluate_every=6",
)


def kill_at_some_moment(arguments, cwd, episodes, seconds):
    """Starts the command and kills it so long after so many episodes are in its log."""
    process = subprocess.Popen(
        [COMMAND, *arguments],
        cwd=cwd,
        env=environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    log = cwd / "run" / CSV_FILE
    while process.poll() is None and not (log.is_file() and len(rows(log.parent)) >= episodes):
        time.sleep(0.005)
    time.sleep(seconds)
    process.kill()
    process.wait()
    assert process.returncode == -signal.SIGKILL


def same_policies(folder, other):
    return all(
        (folder / name).read_bytes() == (other / name).read_bytes()
        for name in ("best/policy.safetensors", "last/policy.safetensors")
    )


def test_a_run_killed_at_any_moment_ends_with_the_weights_of_the_undisturbed_one(tmp_path):
    """Killed before the first checkpoint, between checkpoints and while they are written."""
    whole = tmp_path / "whole"
    cli.meta_train(composed(*RUN), whole)
    chance, arguments = random.Random(5), (*RUN, "folder=run", "resume=true")
    for episodes in (0, chance.randint(1, 6), chance.randint(8, 14)):
        kill_at_some_moment(arguments, tmp_path, episodes, chance.uniform(0, 0.05))
    assert 0 < read_checkpoint(tmp_path / "run")["episode"] < 24
    assert not same_policies(tmp_path / "run", whole)
    cli.meta_train(composed(*RUN, "resume=true"), tmp_path / "run")
    assert same_policies(tmp_path / "run", whole)
    assert rows(tmp_path / "run") == rows(whole)
    assert not list((tmp_path / "run").rglob(".*.partial"))


WRITE_AND_DIE = """
import resource, signal, sys
from pathlib import Path
from lightning_dqnlr.files import write_atomically
signal.signal(signal.SIGXFSZ, signal.SIG_DFL)  # the kernel kills whoever writes past the limit
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), resource.RLIM_INFINITY))
write_atomically(Path(sys.argv[1]), b"x" * 5000)
"""


@pytest.mark.parametrize("written", [1, 4096, 4999])
def test_a_kill_in_the_middle_of_a_write_leaves_the_last_checkpoint_whole(tmp_path, written):
    path = write_checkpoint(tmp_path, {"episode": 7})
    command = [sys.executable, "-c", WRITE_AND_DIE, str(path), str(written)]
    assert subprocess.run(command, check=False).returncode == -signal.SIGXFSZ
    assert read_checkpoint(tmp_path) == {"episode": 7}
    (leftover,) = (p for p in tmp_path.iterdir() if p != path)
    assert leftover.stat().st_size == written


def test_what_killed_processes_left_half_written_goes_when_the_run_goes_on(tmp_path):
    """Each is as large as a checkpoint: a run that is killed daily would fill the disk."""
    make_trainer(tmp_path, episodes=2).fit(ignore)
    half = [tmp_path / ".checkpoint.pt.abc.partial", tmp_path / "best/.policy.json.abc.partial"]
    for path in half:
        path.write_bytes(b"half")
    resumed = make_trainer(tmp_path, episodes=3)
    resumed.load_checkpoint()
    resumed.fit(ignore)
    assert [path.exists() for path in half] == [False, False]


@pytest.fixture
def largest_file():
    """Sets the size beyond which writing a file fails, as it does on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    def set_limit(size):
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))

    yield set_limit
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def run_here(monkeypatch, *arguments):
    """`dqnlr-train` in this process; returns its exit code."""
    monkeypatch.setattr(sys, "argv", ["dqnlr-train", *arguments])
    monkeypatch.setenv("HYDRA_FULL_ERROR", "0")  # train() sets it; this puts it back afterwards
    with pytest.raises(SystemExit) as stopped:
        cli.train()
    return stopped.value.code


def test_a_full_disk_is_one_line_and_leaves_the_last_checkpoint_whole(
    tmp_path, monkeypatch, capsys, largest_file
):
    folder, rivals, length = tmp_path / "run", tmp_path / "rivals", "train.episodes=8"
    cli.meta_train(composed(*RUN, length), tmp_path / "whole", rivals=rivals)
    cli.meta_train(composed(*RUN, "train.episodes=4"), folder, rivals=rivals)
    before = (folder / CHECKPOINT).read_bytes()
    largest_file(len(before) - 1000)
    code = run_here(monkeypatch, *RUN, length, f"folder={folder}", "resume=true")
    largest_file(resource.RLIM_INFINITY)
    line = capsys.readouterr().err.splitlines()[-1]
    assert code == 2
    assert line.startswith(f"dqnlr-train: error: path='{folder}/checkpoint.pt' cannot be written")
    assert "free some space" in line
    assert (folder / CHECKPOINT).read_bytes() == before
    assert not list(folder.rglob(".*.partial"))
    cli.meta_train(composed(*RUN, length, "resume=true"), folder, rivals=rivals)
    assert same_policies(folder, tmp_path / "whole")


def test_a_full_disk_under_a_policy_leaves_its_two_files_as_they_were(tmp_path, largest_file):
    """The weights still fit, the record does not: half a new policy would be none at all."""
    trainer = make_trainer(tmp_path, episodes=1)
    old = trainer.policy.save(tmp_path / "policy")
    before = {path.name: path.read_bytes() for path in old.iterdir()}
    new = make_trainer(tmp_path, episodes=1, seed=1).policy
    new.record["note"] = "x" * 100_000
    largest_file(90_000)
    with pytest.raises(ConfigurationError, match=r"policy.json.*File too large"):
        new.save(old)
    assert {path.name: path.read_bytes() for path in old.iterdir()} == before


def test_a_log_that_can_no_longer_be_written_is_named(tmp_path, largest_file):
    from tests.meta.test_meta_report import progress

    log = CSVLog(tmp_path)
    largest_file((tmp_path / CSV_FILE).stat().st_size + 20)
    with pytest.raises(ConfigurationError, match=r"episodes.csv' cannot be written"):
        log(progress(1))
    log.close()


def test_a_folder_in_which_nothing_can_be_made_is_one_line(monkeypatch, capsys):
    """/proc cannot be written, not even by root."""
    assert run_here(monkeypatch, *RUN, "folder=/proc/dqnlr") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "/proc/dqnlr" in line
    assert "choose another folder" in line


def test_a_folder_that_is_taken_away_is_an_error_and_the_checkpoint_stays(tmp_path):
    trainer = make_trainer(tmp_path, episodes=2)
    trainer.fit(ignore)
    before = (tmp_path / CHECKPOINT).read_bytes()
    for path in (tmp_path / "last").iterdir():
        path.unlink()
    (tmp_path / "last").rmdir()
    (tmp_path / "last").write_text("in the way")
    resumed = make_trainer(tmp_path)
    resumed.load_checkpoint()
    with pytest.raises(ConfigurationError, match=r"last/policy.* cannot be written"):
        resumed.fit(ignore)
    assert (tmp_path / CHECKPOINT).read_bytes() == before


def test_a_task_of_nan_is_recorded_reported_and_skipped(tmp_path):
    """The rest of the run is as if the task had been left out by its author."""
    trainer = make_trainer(tmp_path, Poisoned(seeds=(2,)))
    log = CSVLog(tmp_path)
    trainer.fit(log)
    log.close()
    failure = "task tiny/train/2: not one of 4 replicas ended with a finite loss"
    with (tmp_path / CSV_FILE).open(newline="") as file:
        logged = [(row["task"], row["failure"]) for row in csv.DictReader(file)]
    assert logged[2] == ("tiny/train/2", failure)
    assert [text for _, text in logged].count("") == 5
    assert LRPolicy.load(tmp_path / "last").record["failures"] == [failure]
    raising = make_trainer(tmp_path / "raising", TinyTasks(failing=(2,)))
    raising.fit(ignore)
    for name, weight in weights(raising).items():
        assert torch.equal(weight, weights(trainer)[name]), name
    held = trainer.replay.sample(500).transitions
    assert all(torch.isfinite(field).all() for field in held)


def test_a_validation_task_of_nan_is_left_out_of_every_evaluation(tmp_path):
    trainer = make_trainer(tmp_path, Poisoned(seeds=(1,), split="validation"))
    reports = []
    trainer.fit(reports.append)
    scored = [report.scores.names for report in reports if report.scores]
    assert scored == [("tiny/validation/0",)] * 3
    record = LRPolicy.load(tmp_path / "best").record
    assert record["failures"] == ["task tiny/validation/1: its loss is not finite"]


def test_without_a_validation_task_there_is_nothing_to_select_on(tmp_path):
    trainer = make_trainer(tmp_path, Poisoned(seeds=(0, 1), split="validation"))
    with pytest.raises(ConfigurationError, match="all validation tasks failed, the last with"):
        trainer.fit(ignore)
    assert trainer.episode == 0


def test_disk_use_does_not_grow_with_time(tmp_path):
    """The replay is full after 150 transitions; only the log has a line for each episode."""

    def size(folder):
        return sum(os.path.getsize(p) for p in Path(folder).rglob("*") if p.is_file())

    trainer = make_trainer(tmp_path, episodes=6)
    trainer.fit(ignore)
    early = size(tmp_path)
    longer = make_trainer(tmp_path, episodes=18)
    longer.load_checkpoint()
    longer.fit(ignore)
    assert size(tmp_path) < early + 500
