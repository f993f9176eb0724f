"""`examples/libraries`: which runs are made, what becomes of failed ones, what the table says."""

import json
import math
import shlex
import sys
from pathlib import Path

import compare
import pytest

ROOT = Path(__file__).parents[1]
TINY = """
import math
from runs import main

def fit(arm):
    open("left behind", "w").write("x")
    arm.callbacks.append("added by a library")
    if arm.factor == 10.0:
        raise ValueError("NaN in the gradient")
    return {"loss": math.nan if arm.factor == 3.0 else arm.seed + len(arm.callbacks), "other": 1.0}

main(fit)
"""


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    """A library of that name with an environment; returns the folder of environments."""
    script = tmp_path / "tiny.py"
    script.write_text(TINY)
    python = tmp_path / "tiny" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} "$@"\n')
    python.chmod(0o755)
    monkeypatch.setattr(compare, "SCRIPTS", {"tiny": str(script)})
    monkeypatch.setenv("PYTHONPATH", str(ROOT / "examples/libraries"))
    return tmp_path


def test_runs_that_fail_are_records_and_nothing_is_made_twice(tiny, tmp_path):
    path = tmp_path / "results.json"
    results = compare.Results(path)
    missing = results.missing(["tiny"], seeds=2)
    assert [run.arm for run in missing["tiny"][:4]] == ["default", "callback", "3x", "10x"]
    missing["tiny"] = missing["tiny"][4:]  # as if interrupted: one seed only
    compare.make_all(results, missing, tiny, jobs=1)

    found = {each["arm"]: each for each in json.loads(path.read_text())}
    assert found["default"]["figures"] == {"loss": 2.0, "other": 1.0}
    assert found["callback"]["figures"]["loss"] == 3.0, "the callback was handed over"
    assert found["callback"]["decisions"] == 0, "of ours, not of what the library added"
    assert found["3x"]["figures"]["loss"] is None
    assert "NaN in the gradient" in found["10x"]["error"]
    left = compare.Results(path).missing(["tiny"], seeds=2)["tiny"]
    assert left == [compare.Run("tiny", 0, arm) for arm in compare.ARMS]
    assert not Path("left behind").exists()


def test_a_library_that_cannot_be_imported_is_said(tiny, tmp_path):
    Path(compare.SCRIPTS["tiny"]).write_text("import no_such_library")
    with pytest.raises(SystemExit, match=r"tiny\.py .*ended with code 1"):
        compare.make_all(
            compare.Results(tmp_path / "results.json"),
            {"tiny": [compare.Run("tiny", 0, "default")]},
            tiny,
            jobs=1,
        )


def record(arm, seed, figure):
    return {"library": "tiny", "arm": arm, "seed": seed, "figures": {"test MAE": figure}}


def test_a_diverged_run_counts_as_lost_and_as_the_worst(monkeypatch):
    monkeypatch.setattr(compare, "SCRIPTS", {"tiny": "tiny.py"})
    losses = {"default": (2.0, 4.0, 3.0), "callback": (1.5, None, 2.4)}
    losses |= {"3x": (1.0, 1.0, 1.0), "10x": (None, None, 5.0)}
    runs = [record(arm, seed, x) for arm in losses for seed, x in enumerate(losses[arm])]
    row = compare.report(runs).splitlines()[2]
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells[:3] == ["tiny", "test MAE", "3 (4)"]
    assert cells[3:] == ["2.4 (inf)", "1 (1)", "inf (inf)", "0.800", "2 of 3"]


def test_a_failed_run_has_no_figures_and_is_infinite(monkeypatch):
    runs = [{**record("10x", 0, 1.0), "figures": {}, "error": "ValueError"}]
    assert compare.first_figures(runs, "tiny", "10x") == [math.inf]


def test_the_page_shows_the_runs_that_ship():
    records = compare.Results(ROOT / "examples/libraries/results.json").records
    assert compare.report(records) in (ROOT / "docs/libraries.md").read_text()
    made = [(each["library"], each["seed"], each["arm"]) for each in records]
    assert len(set(made)) == len(made)
