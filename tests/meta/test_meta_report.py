import csv
import subprocess
import sys
from types import SimpleNamespace

import torch

from lightning_dqnlr.meta import logs as report
from lightning_dqnlr.meta.collect import Episode
from lightning_dqnlr.meta.logs import CSV_FILE, CSVLog, EpisodeReport, ProgressBar, TensorBoardLog
from lightning_dqnlr.meta.workers import JobOutcome, TaskSummary
from lightning_dqnlr.provenance import source_commit
from lightning_dqnlr.scoring.evaluate import Regrets


def progress(episode, **changes):
    losses = torch.tensor([0.5, 0.25, 4.0])
    result = Episode(None, 12, losses, 2.0, 1.5, 0.0)
    task = TaskSummary(f"tiny/train/{episode}", "sgd", 12)
    outcome = JobOutcome(task, result, None)
    return EpisodeReport(episode, 12 * episode, outcome, 0.125, seconds=2.0 * episode, **changes)


def scores(value):
    regrets = torch.full((2, 2), value)
    return Regrets(("a", "b"), regrets, regrets, 0.0)


def rows(folder):
    with (folder / CSV_FILE).open(newline="") as file:
        return list(csv.DictReader(file))


def test_each_episode_is_on_disk_before_the_next_one_begins(tmp_path):
    log = CSVLog(tmp_path)
    log(progress(1))
    log(progress(2, scores=scores(0.75)))
    first, second = rows(tmp_path)  # while the file is still open
    assert (first["episode"], first["task"], first["final_loss"]) == ("1", "tiny/train/1", "0.5")
    assert (first["score"], second["score"]) == ("", "0.75")
    log.close()


def test_a_failed_task_has_a_row_that_says_why(tmp_path):
    log = CSVLog(tmp_path)
    failure = 'task seed 3: LookupError: "no, such"\ndata'
    log(EpisodeReport(3, 0, JobOutcome(None, None, failure)))
    log.close()
    assert [row["failure"] for row in rows(tmp_path)] == [
        'task seed 3: LookupError: "no, such" data'
    ]


def test_a_resumed_log_has_one_header_and_no_episode_twice(tmp_path):
    log = CSVLog(tmp_path)
    for episode in (1, 2, 3, 4):
        log(progress(episode))
    log.close()
    path = tmp_path / CSV_FILE
    path.write_text(path.read_text()[:-30])  # the kill cut the last row short
    log = CSVLog(tmp_path, episode=2)
    for episode in (3, 4, 5):
        log(progress(episode))
    log.close()
    assert [row["episode"] for row in rows(tmp_path)] == ["1", "2", "3", "4", "5"]
    assert path.read_text().count("inner_steps") == 1


def test_a_row_cut_short_is_not_taken_for_an_earlier_episode(tmp_path):
    """Of the row of episode 12 only "1" reached the disk."""
    log = CSVLog(tmp_path)
    for episode in (1, 2, 12):
        log(progress(episode))
    log.close()
    path = tmp_path / CSV_FILE
    path.write_text(path.read_text()[: path.read_text().rindex("\n12,") + 2])
    CSVLog(tmp_path, episode=2).close()
    assert [row["episode"] for row in rows(tmp_path)] == ["1", "2"]


def test_tensorboard_gets_the_numbers_of_the_csv(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    log = TensorBoardLog(tmp_path)
    log(progress(1))
    log(progress(2, scores=scores(0.75)))
    log.close()
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [(e.step, e.value) for e in events.Scalars("regret_median")] == [(2, 0.75)]
    assert [(e.step, e.value) for e in events.Scalars("final_loss")] == [(1, 0.5), (2, 0.5)]


class Clock:
    """The monotonic clock that the bar reads, set by hand."""

    def __init__(self, monkeypatch):
        self.seconds = 0.0
        monkeypatch.setattr(report, "time", SimpleNamespace(monotonic=lambda: self.seconds))


def test_the_progress_bar_shows_episode_time_regret_and_trips(capsys):
    bar = ProgressBar(episodes=4)
    bar(progress(1))
    bar(progress(2, scores=scores(0.75), best_score=0.5))
    bar(EpisodeReport(3, 0, JobOutcome(None, None, "task seed 3: boom")))
    bar(progress(4))
    bar.close()
    shown = capsys.readouterr().err
    assert "episode 4/4 , time left 0:00, regret 0.750 (best score 0.500), trips 1.5" in shown
    assert "Skipped task seed 3: boom" in shown


def test_tuned_cosines_are_shown_and_count_in_no_episodes_pace(capsys, monkeypatch):
    """Three tasks take 100 s each, then every episode 10 s: 30 s are left after one of four."""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    now = Clock(monkeypatch)
    bar = ProgressBar(episodes=4)
    for _ in bar.watch(range(3)):
        now.seconds += 100
    now.seconds += 10
    bar(progress(1))
    bar.close()
    shown = capsys.readouterr().err
    assert "tuning the cosine of validation task 1/3" in shown
    assert "tuning the cosine of validation task 3/3, time left 1:40" in shown
    assert "episode 1/4 , time left 0:30" in shown


def test_the_time_left_respects_the_time_limit(capsys):
    """Of 10**9 episodes only those fit that the remaining 58 of 60 seconds allow."""
    bar = ProgressBar(episodes=10**9, max_minutes=1.0)
    bar(progress(1))
    bar.close()
    assert "time left 0:58" in capsys.readouterr().err


def test_a_package_inside_somebody_elses_repository_has_no_commit(tmp_path):
    assert source_commit(tmp_path / "file.py") is None
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b.c"]
    (tmp_path / "tracked.py").write_text("")
    (tmp_path / "installed.py").write_text("")
    subprocess.run([*git, "init", "-q"], check=True)
    subprocess.run([*git, "add", "tracked.py"], check=True)
    subprocess.run([*git, "commit", "-q", "-m", "one"], check=True)
    assert source_commit(tmp_path / "installed.py") is None
    commit = source_commit(tmp_path / "tracked.py")
    assert commit is not None
    assert len(commit) == 40
    (tmp_path / "tracked.py").write_text("changed")
    assert source_commit(tmp_path / "tracked.py") == f"{commit}-dirty"
