"""What a command says of a setting, a choice, a module or an argument that does not exist."""

import sys

import pytest

from lightning_dqnlr.cli import bench, train

MINE = ("suite=mine", "+task.dataloader._target_=my_nets.batches", "+task.horizon=9")
NET = "+task.module._target_=my_nets.Net"
CASES = {
    "a key": (
        "train",
        ["train.episode=3"],
        "there is no such setting. Did you mean train.episodes",
    ),
    "a key inside of a value": (
        "train",
        ["agent=tabular", "agent.learner.bins={nothing: [0.0]}"],
        "agent.learner.bins: its value has a key that is not there; + in front adds it.",
    ),
    "an edge that is no number": (
        "train",
        ["agent=tabular", "agent.learner.bins={progress: [a]}"],
        "TabularConfig.bins.progress='a' must be a number",
    ),
    "edges that are no list": (
        "train",
        ["agent=tabular", "agent.learner.bins={progress: 3}"],
        "TabularConfig.bins.progress=3 must be a list",
    ),
    "bins that are no object": (
        "train",
        ["agent=tabular", "agent.learner.bins=x"],
        "TabularConfig.bins='x' must be an object",
    ),
    "an address that is no text": (
        "train",
        ["collector=ray", "collector.address=5"],
        "collector.address=5 must be text",
    ),
    "a key without its group": ("train", ["max_minutes=2"], "Did you mean train.max_minutes?"),
    "a group": ("train", ["agnt=classic"], "agnt: there is no such setting. Did you mean agent?"),
    "a key like no other": ("train", ["xyzzy=3"], "dqnlr train --cfg job lists them all."),
    "an added key that nothing reads": (
        "train",
        ["+max_minutes=2"],
        "+max_minutes sets nothing. Did you mean train.max_minutes?",
    ),
    "a choice": (
        "train",
        ["experiment=quik"],
        "experiment=quik: there are ablation, classic, default, quick. Did you mean quick?",
    ),
    "a choice of one's own": ("train", ["tasks=mine"], "need --config-dir FOLDER."),
    "a number for a choice": ("train", ["experiment=0"], "experiment=0: there are ablation, "),
    "nothing for a choice": ("bench", ["suite=null"], "suite=null: there are full, gpu, mine, "),
    "an empty choice": ("bench", ["suite="], "suite=: there are full, gpu, mine, "),
    "two signs": ("train", ["seed=1=2"], "seed=1=2: a setting is written name=value"),
    "a task without a model": ("bench", MINE, "task needs module; dqnlr bench --help"),
    "no setting": ("train", ["episodes"], "episodes: a setting is written name=value"),
    "a word for a truth value": ("train", ["tensorboard=no"], "tensorboard='no' must be one of"),
    "a key of a suite": (
        "bench",
        ["suite.seed=2"],
        "suite.seed: there is no such setting. Did you",
    ),
    "a truth value": ("bench", ["dry_run=no"], "dry_run='no' must be one of True, False"),
    "a module": (
        "bench",
        [*MINE, "+task.module._target_=nowhere_at_all.Net"],
        "no module nowhere_at_all. Start the command in the folder of nowhere_at_all.py, with "
        "PYTHONPATH=. before it.",
    ),
    "a class": (
        "bench",
        [*MINE, "+task.module._target_=my_nets.Nett"],
        "task.module: my_nets.Nett cannot be found: module 'my_nets' has no attribute 'Nett'. Did "
        "you mean Net?",
    ),
    "an argument": ("bench", [*MINE, NET, "+task.modul=1"], "Did you mean module?"),
    "a module's own fault": (
        "bench",
        [*MINE, "+task.module._target_=my_faulty_nets.Net"],
        "my_faulty_nets.Net cannot be found: No module named 'not_installed'.",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_one_line_says_what_was_probably_meant(case, tmp_path, monkeypatch, capsys):
    command, overrides, message = CASES[case]
    (tmp_path / "my_nets.py").write_text("class Net: pass\ndef batches(): pass\n")
    (tmp_path / "my_faulty_nets.py").write_text("import not_installed\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "argv", [f"dqnlr-{command}", f"folder={tmp_path}/run", *overrides])
    monkeypatch.setenv("HYDRA_FULL_ERROR", "0")
    with pytest.raises(SystemExit) as stopped:
        (train.train if command == "train" else bench.bench)()
    (line,) = capsys.readouterr().err.splitlines()
    assert stopped.value.code == 2
    assert message in line
