"""The ablation: a sweep of two agents and two seeds, and the table that comes of it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from ablation import read_runs, table
from hydra import compose, initialize_config_module

ROOT = Path(__file__).parents[2]
COMMAND = Path(sys.executable).with_name("dqnlr-train")
TINY = (
    "tasks=quick",
    "tasks.families=[{_target_:lightning_dqnlr.tasks.families.basic.TeacherMLPs,"
    "min_horizon:20,max_horizon:20}]",
    "tasks.weights=null",
    "env.collect.replicas=4",
    "env.spec.probe_size=16",
    "train.episodes=4",
    "train.updates=2",
    "train.warm_up_episodes=1",
    "train.evaluation_tasks=2",
    "train.evaluation_seeds=2",
)


def record(agent, seed, score, **changes):
    validation = {"score": score, "regret_mean": score + 1, "regret_median": 0.5, "regret_p90": 2.0}
    return {
        "overrides": [f"agent={agent}", f"seed={seed}"],
        "seed": seed,
        "episodes": 8,
        "updates": 40,
        "inner_steps": 1_000_000 + seed,
        "minutes": 1.5,
        "commit": "0123456789",
        "created": "2026-01-02T03:04:05",
        "validation": {**validation, "tasks": {"a": {}, "b": {}}},
        **changes,
    }


def write(sweep, records):
    for number, each in enumerate(records):
        folder = sweep / str(number) / "last"
        folder.mkdir(parents=True)
        (folder / "policy.json").write_text(json.dumps({"record": each}))
    return sweep


RECORDS = [
    record("n_step", 1, 0.5),
    record("n_step", 0, 0.3),
    record("double", 0, 0.1),
    record("double", 1, 0.6),
]


def test_the_table_by_hand(tmp_path):
    lines = table(read_runs(write(tmp_path, RECORDS))).splitlines()
    assert lines[0].startswith("| agent | score | over the seeds | against n_step |")
    # By seed: 0.1 - 0.3 and 0.6 - 0.5; decoy, by the order of the folders: -0.4 and 0.3
    double = "| double | 0.350 | 0.100 to 0.600 | -0.050 (-0.200 to +0.100) "
    assert lines[2] == double + "| 1.350 | 0.500 | 2.000 | 1.5 |"
    assert lines[3].startswith("| n_step | 0.400 | 0.300 to 0.500 | 0 |")
    assert len(lines) == 4


def test_a_table_without_the_common_ground_compares_with_nothing(tmp_path):
    runs = read_runs(write(tmp_path, RECORDS[2:]))
    assert "| 0.100 to 0.600 | - |" in table(runs)


@pytest.mark.parametrize(
    ("records", "message"),
    [
        ([], "holds no runs"),
        (RECORDS[:3], r"missing: \[\('double', 1\)\]"),
        ([*RECORDS, RECORDS[0]], "one run per agent and seed"),
        ([*RECORDS[:3], record("double", 1, 0.6, updates=41)], "seed 1 had unequal"),
    ],
)
def test_what_cannot_be_compared_is_refused(records, message, tmp_path):
    with pytest.raises(SystemExit, match=message):
        read_runs(write(tmp_path, records))


def test_a_sweep_becomes_a_page(tmp_path):
    """Two of the agents; what stands on the command line overrules the experiment."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}

    def run(*command):
        return subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )

    choice = ("-m", "experiment=ablation", "folder=sweep", "agent=n_step,tabular", "seed=0,1")
    done = run(COMMAND, *choice, *TINY)
    assert done.returncode == 0, done.stderr
    sweep = tmp_path / "sweep"
    assert sorted(p.name for p in sweep.iterdir() if p.is_dir()) == ["0", "1", "2", "3", "rivals"]
    assert len(list((sweep / "rivals").iterdir())) == 2  # found once for all four runs
    assert not (sweep / "0/rivals").exists()
    done = run(sys.executable, str(ROOT / "benchmarks/ablation.py"), "sweep", "--into", "page.md")
    assert done.returncode == 0, done.stderr
    text = (tmp_path / "page.md").read_text()
    assert "2 seeds each, 4 episodes, 6 updates" in text
    assert "\n| n_step | " in text
    assert "\n| tabular | " in text
    assert (tmp_path / "page.svg").read_text().lstrip().startswith("<?xml")


def test_the_experiment_compares_every_agent_with_three_seeds():
    with initialize_config_module("lightning_dqnlr.conf", version_base="1.3"):
        config = compose("train", ["experiment=ablation"], return_hydra_config=True)
    params = config.hydra.sweeper.params
    names = {path.stem for path in (ROOT / "conf/agent").glob("*.yaml")}
    assert set(params.agent.split(",")) == names
    assert len(set(params.seed.split(","))) >= 3
