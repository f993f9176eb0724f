"""`dqnlr memory` as a user types it."""

import pytest

from lightning_dqnlr.cli import memory as cli
from lightning_dqnlr.memory import Memory
from tests.memory.remembered import run


def typed(monkeypatch, *words):
    monkeypatch.setattr("sys.argv", ["dqnlr-memory", *map(str, words)])
    cli.memory()


def test_the_table_names_runs_models_and_the_next_run(tmp_path, monkeypatch, capsys):
    memory = Memory(tmp_path)
    paths = [memory.add(run(1.0)), memory.add(run(0.7, 0.02, date="2026-01-02T00:00:00"))]
    memory.add(run(0.9, metric="accuracy", mode="max"))
    typed(monkeypatch, tmp_path, "--picture", tmp_path / "runs.svg")
    shown = capsys.readouterr().out
    assert "net (1,000 parameters, Adam, batch 32, 1,000 steps), by val_loss" in shown
    assert "by accuracy" in shown
    assert all(path.name in shown for path in paths)
    assert shown.count("Next run: ") == 2
    assert (tmp_path / "runs.svg").read_text().count("next: ") >= 1


def test_a_run_is_forgotten_by_its_file(tmp_path, monkeypatch, capsys):
    memory = Memory(tmp_path)
    path = memory.add(run(1.0))
    typed(monkeypatch, tmp_path, "--forget", path.name)
    assert "No runs in" in capsys.readouterr().out
    for wrong in (("--forget", path.name), ("--picture", "x.txt")):
        memory.add(run(1.0))
        with pytest.raises(SystemExit) as stopped:
            typed(monkeypatch, tmp_path, *wrong)
        assert stopped.value.code == 2
        assert "error: " in capsys.readouterr().err


def test_a_folder_that_is_not_there_is_an_error_in_a_line(tmp_path, monkeypatch, capsys):
    with pytest.raises(SystemExit) as stopped:
        typed(monkeypatch, tmp_path / "none")
    assert stopped.value.code == 2
    assert "is no folder" in capsys.readouterr().err
