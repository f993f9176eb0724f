"""`dqnlr-bench` from outside: a kill, going on, a user's own module, errors."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hydra import compose, initialize_config_module

from lightning_dqnlr import policy
from lightning_dqnlr.bench.runs.archive import Store
from lightning_dqnlr.cli import bench as cli_bench
from lightning_dqnlr.errors import ConfigurationError, PolicyFileError

COMMAND = Path(sys.executable).with_name("dqnlr-bench")
# Two tasks, two methods: 2 x (1 + 2) runs of 300 and 800 steps, of the fastest.
TINY = (
    "suite.tasks=[fine-tuned encoder,noisy labels MLP]",
    "suite.methods=[dqnlr,cosine]",
    "suite.seeds=1",
    "suite.points=2",
    "suite.decades=1.0",
    "folder=bench",
    "workers=2",
)
MODELS = """
import torch
from lightning import LightningModule
from torch.utils.data import DataLoader, TensorDataset

class Line(LightningModule):
    def __init__(self):
        super().__init__()
        self.net = torch.nn.Linear(4, 1)

    def training_step(self, batch, batch_idx):
        inputs, targets = batch
        loss = (self.net(inputs) - targets).square().mean()
        self.log("train_loss", loss)
        return loss

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.02)

def points():
    inputs = torch.randn(200, 4, generator=torch.Generator().manual_seed(0))
    return DataLoader(TensorDataset(inputs, inputs.sum(1, keepdim=True)), 10, shuffle=True)
"""


def environment(**more):
    plain = {k: v for k, v in os.environ.items() if k != "HYDRA_FULL_ERROR"}
    return {**plain, "OMP_NUM_THREADS": "1", **more}


def run_command(*arguments, cwd, **more):
    return subprocess.run(
        [str(COMMAND), *arguments],
        cwd=cwd,
        env=environment(**more),
        capture_output=True,
        text=True,
        check=False,
        timeout=180,
    )


def composed(*overrides):
    # Without the records that ship with the repository: what is stored is what the test stored.
    overrides = ("archive=null", *overrides)
    with initialize_config_module("lightning_dqnlr.conf", version_base="1.3"):
        return compose("bench", list(overrides))


def contents(folder):
    return {path: (path.stat().st_ino, path.read_bytes()) for path in folder.rglob("*.json")}


def running(folder):
    """Ids of the processes that work in a folder, as Linux tells them."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and (entry / "cwd").resolve() == folder.resolve():
                state = (entry / "stat").read_text().rpartition(")")[2].split()[0]
                found += [entry.name] if state != "Z" else []
        except OSError:
            continue  # it ended, or is another user's
    return found


@pytest.fixture(scope="module")
def killed_and_resumed(tmp_path_factory):
    """Killed when the first runs were stored; what there was then, and the second call."""
    cwd = tmp_path_factory.mktemp("elsewhere")
    process = subprocess.Popen(
        [str(COMMAND), *TINY],
        cwd=cwd,
        env=environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    while process.poll() is None:
        if len(contents(cwd / "bench/runs")) >= 2:
            process.kill()
            process.wait()
        time.sleep(0.01)
    before = contents(cwd / "bench/runs")
    deadline = time.monotonic() + 30
    while running(cwd) and time.monotonic() < deadline:
        time.sleep(0.05)
    orphans = running(cwd)
    resumed = run_command(*TINY[:-1], "workers=1", cwd=cwd)
    return cwd, process.returncode, before, orphans, resumed


def test_a_killed_benchmark_goes_on_with_what_is_missing(killed_and_resumed):
    cwd, returncode, before, orphans, done = killed_and_resumed
    assert returncode == -signal.SIGKILL
    assert orphans == []
    assert 2 <= len(before) < 6
    assert done.returncode == 0, done.stderr
    assert f"6 runs, {len(before)} of them stored" in done.stdout
    after = contents(cwd / "bench/runs")
    assert len(after) == 6
    assert before.items() <= after.items()  # the same files, not the same results again


def test_the_report_is_written_and_its_headline_shown(killed_and_resumed):
    cwd, *_, done = killed_and_resumed
    page = cwd / "bench/quick/report.html"
    assert page.is_file()
    assert str(page) in done.stdout.splitlines()[-1]
    assert "| **dqnlr** | 2 |" in done.stdout
    assert "time left 0:00:00" in done.stderr
    assert [path.name for path in cwd.iterdir()] == ["bench"]


def test_a_second_call_runs_nothing_and_reports_again(killed_and_resumed):
    cwd, *_ = killed_and_resumed
    before = contents(cwd / "bench/runs")
    (cwd / "bench/quick/report.html").unlink()
    done = run_command(*TINY, cwd=cwd)
    assert done.returncode == 0, done.stderr
    assert "6 runs, 6 of them stored" in done.stdout
    assert "run " not in done.stderr  # no progress bar
    assert contents(cwd / "bench/runs") == before
    assert (cwd / "bench/quick/report.html").is_file()


def test_interrupting_leaves_whole_records_and_says_how_to_go_on(tmp_path):
    process = subprocess.Popen(
        [str(COMMAND), *TINY[:-1], "workers=1"],
        cwd=tmp_path,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # Whoever starts the tests in the background of a script ignores Ctrl-C for all below.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    while process.poll() is None and not contents(tmp_path / "bench/runs"):
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to all processes
    _, shown = process.communicate(timeout=60)
    assert process.returncode == 130, shown
    assert "interrupted; what was finished is stored" in shown
    assert "Traceback" not in shown
    assert 1 <= len(list(Store(tmp_path / "bench/runs").records())) < 6
    assert running(tmp_path) == []


def test_a_users_own_module_is_compared(tmp_path, monkeypatch, capsys):
    (tmp_path / "models.py").write_text(MODELS)
    arguments = (
        "suite=mine",
        "+task.module._target_=models.Line",
        "+task.dataloader._target_=models.points",
        "+task.horizon=40",
        "suite.methods=[dqnlr,cosine]",
        "suite.sensitivity=[]",
        "suite.seeds=2",
        "suite.points=3",
        "suite.race_margin=null",
        "folder=bench",
        "workers=1",
    )
    done = run_command(*arguments, cwd=tmp_path, PYTHONPATH=str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert "8 runs, 0 of them stored" in done.stdout
    assert "By the first run, the others take less than a minute." in done.stdout
    assert "# Line: dqnlr against 1 other methods" in done.stdout
    records = list(Store(tmp_path / "bench/runs").records())
    assert {(r.task, r.split, r.optimizer) for r in records} == {("Line", "your own", "sgd")}
    assert {r.lr for r in records if r.method == "cosine"} == {2e-4, 2e-2, 2.0}
    starts = {r.seed: r.initial_train for r in records}
    assert starts[0] != starts[1]  # a class, not one module's weights for all
    assert (tmp_path / "bench/mine/report.md").is_file()
    # Another length is another task, whatever its name.
    longer = [a.replace("horizon=40", "horizon=41") for a in arguments]
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    for again, stored in ((arguments, 8), (longer, 0)):
        cli_bench.run(composed(*again, "dry_run=true"), "mine")
        assert f"8 runs, {stored} of them stored" in capsys.readouterr().out


ERRORS = {
    "a task that does not exist": (["suite.tasks=[mnist]"], "suite.tasks: ['mnist']; there are: "),
    "a method that does not exist": (["suite.methods=[adam]"], "suite.methods: ['adam']"),
    "no seeds": (["suite.seeds=0"], "seeds=0 must be"),
    "no workers": (["workers=0"], "workers=0 must be"),
    "a suite that does not exist": (["suite=best"], "suite=best: there are full, gpu, mine,"),
    "an own task without anything": (["suite=mine"], "dataloader"),
    "a task that is none": (
        ["suite=mine", "task._target_=builtins.dict"],
        "it must name a function that returns a Task",
    ),
}


@pytest.mark.parametrize("case", ERRORS)
def test_a_wrong_setting_is_one_line_and_exit_code_2(case, tmp_path, monkeypatch, capsys):
    overrides, message = ERRORS[case]
    monkeypatch.setattr(sys, "argv", ["dqnlr-bench", f"folder={tmp_path}/bench", *overrides])
    monkeypatch.setenv("HYDRA_FULL_ERROR", "0")  # bench() sets it; this puts it back afterwards
    with pytest.raises(SystemExit) as stopped:
        cli_bench.bench()
    shown = capsys.readouterr()
    assert stopped.value.code == 2
    assert shown.err.startswith("dqnlr-bench: error: ")
    assert message in shown.err
    assert len(shown.err.splitlines()) == 1


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.4, "less than a minute"), (61, "about 1 minute"), (7000, "about 2 hours")],
)
def test_nothing_takes_about_0_minutes(seconds, words):
    assert cli_bench._about(seconds) == words


def test_help_fits_a_screen(tmp_path):
    done = run_command("--help", cwd=tmp_path)
    assert "suite=mine" in done.stdout
    assert len(done.stdout.splitlines()) <= 30


def test_a_dry_run_says_what_is_missing_and_writes_nothing(tmp_path, capsys):
    config = composed(f"folder={tmp_path}/bench", "dry_run=true", "workers=2", *TINY[:5])
    assert cli_bench.run(config, "quick") is None
    assert "6 runs, 0 of them stored" in capsys.readouterr().out
    assert not (tmp_path / "bench").exists()


def test_a_policy_that_is_not_there_is_refused_before_any_run(tmp_path):
    config = composed(f"folder={tmp_path}", "+policies.mine=nowhere", "suite.methods=[mine]")
    with pytest.raises(PolicyFileError, match="nowhere"):
        cli_bench.run(config, "quick")


def test_a_report_of_what_is_stored_runs_nothing_and_says_what_is_missing(tmp_path, capsys):
    settings = (f"folder={tmp_path}/bench", "workers=1", *TINY[:5])
    with pytest.raises(ConfigurationError, match=r"archive=.* hold no record.*report_only=false"):
        cli_bench.run(composed(*settings, "report_only=true"), "quick")
    assert not (tmp_path / "bench" / "runs").exists()
    assert capsys.readouterr().out == ""  # no estimate of runs before the error


def test_a_policy_of_ones_own_runs_although_the_suite_names_its_methods(tmp_path, capsys):
    folder = Path(policy.__file__).parent / "classic"
    settings = (f"folder={tmp_path}", "dry_run=true", *TINY[:5], f"+policies.mine={folder}")
    cli_bench.run(composed(*settings), "quick")
    assert "8 runs, 0 of them stored" in capsys.readouterr().out


def test_a_policy_of_ones_own_runs_on_the_tasks_that_stand_apart(tmp_path, capsys):
    settings = ("suite=full", "suite.splits=[longer runs]", "suite.apart_methods=[wsd]")
    settings += ("suite.seeds=1", "suite.points=1", "dry_run=true", f"folder={tmp_path}")
    folder = Path(policy.__file__).parent / "classic"
    cli_bench.run(composed(*settings, f"+policies.mine={folder}"), "full")
    assert "8 runs, 0 of them stored" in capsys.readouterr().out  # of two methods on four tasks


def test_the_suite_of_shipped_records_runs_nothing_unless_it_is_told_to():
    assert composed("suite=shipped").report_only
    assert composed("suite=shipped").suite.seeds == 5
    assert not composed("suite=shipped", "report_only=false").report_only
    assert not composed("suite=full").report_only
