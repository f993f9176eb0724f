"""`dqnlr-train -m` and `dqnlr-promote` from outside, on the same small sweep."""

import json
import math
import os
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml

from lightning_dqnlr.cli import policies as cli
from lightning_dqnlr.errors import ConfigurationError
from lightning_dqnlr.meta.promote import BUNDLED, Candidate, RankedCandidate, table, verdict
from lightning_dqnlr.policy.policy import LRPolicy
from lightning_dqnlr.scoring.evaluate import Regrets
from lightning_dqnlr.scoring.statistics import interquartile_mean
from tests.cli.test_cli import TINY, run_command
from tests.cli.test_cli_combine import save_member

SHORT = (*TINY, "train.episodes=3", "train.evaluate_every=2", "tensorboard=false")


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    """Two jobs of one command, one after the other (Hydra's basic launcher)."""
    cwd = tmp_path_factory.mktemp("elsewhere")
    return cwd, run_command("-m", *SHORT, "agent=classic,double", "folder=sweep", cwd=cwd)


def promote(monkeypatch, *arguments):
    """`dqnlr-promote` in this process."""
    monkeypatch.setattr(sys, "argv", ["dqnlr-promote", *map(str, arguments)])
    cli.promote()


def test_every_job_of_a_sweep_has_its_own_folder_and_all_share_the_rivals(swept):
    cwd, done = swept
    assert done.returncode == 0, done.stderr
    names = {path.name for path in (cwd / "sweep").iterdir()}
    assert names == {"0", "1", "multirun.yaml", "rivals"}
    agents = [LRPolicy.load(cwd / "sweep" / job / "best").record["agent"] for job in "01"]
    assert ["double=True" in agent for agent in agents] == [False, True]
    assert len(list((cwd / "sweep/rivals").iterdir())) == 1
    assert not (cwd / "sweep/0/rivals").exists()


def test_a_sweeper_receives_the_validation_score_as_its_objective(tmp_path):
    sweeper = ("hydra/sweeper=optuna", "hydra.sweeper.n_trials=2", "hydra.sweeper.n_jobs=1")
    varied = "agent.learner.learning_rate=tag(log,interval(1e-4,1e-2))"
    done = run_command("-m", *SHORT, *sweeper, varied, "folder=sweep", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    found = yaml.safe_load((tmp_path / "sweep/optimization_results.yaml").read_text())
    assert math.isfinite(found["best_value"])
    records = [LRPolicy.load(tmp_path / "sweep" / job / "best").record for job in "01"]
    assert found["best_value"] == min(record["validation"]["score"] for record in records)
    rates = [
        f"learning_rate={found['best_params']['agent.learner.learning_rate']}" in r["agent"]
        for r in records
    ]
    assert rates.count(True) == 1


def test_a_job_that_fails_is_named_and_does_not_keep_the_others_from_running(tmp_path):
    done = run_command("-m", *SHORT, "agent.learner.loss=l1,mse", "folder=sweep", cwd=tmp_path)
    assert done.returncode == 2
    assert (
        "dqnlr-train: error: agent.learner: DQNConfig.loss='l1' must be"
        in done.stderr.splitlines()[-1]
    )
    assert (tmp_path / "sweep/1/best/policy.json").is_file()


def test_a_policy_s_own_folder_is_not_written_to_by_a_comparison(swept, monkeypatch):
    first, second = (swept[0] / "sweep" / job / "best" for job in "01")
    before = sorted(path.name for path in first.iterdir())
    arguments = ("--into", swept[0] / "chosen", "--tasks", 1, "--seeds", 1)
    promote(monkeypatch, first, second, *arguments)
    assert sorted(path.name for path in first.iterdir()) == before


def test_the_best_policy_of_a_sweep_is_promoted_with_one_command(swept, monkeypatch, capsys):
    folder = swept[0] / "sweep"
    into = swept[0] / "won"
    promote(monkeypatch, folder, "--into", into, "--tasks", 2, "--seeds", 3)
    shown = capsys.readouterr().out
    winner, record = LRPolicy.load(into), json.loads((into / "policy.json").read_text())["record"]
    promoted = record["promoted"]
    scores = [each["score"] for each in promoted["candidates"]]
    assert scores == sorted(scores)
    assert len(scores) >= 2
    original = LRPolicy.load(folder / promoted["from"])
    for name, weight in original.network.state_dict().items():
        assert torch.equal(weight, winner.network.state_dict()[name]), name
    assert record["command"] == original.record["command"]
    own = [each["name"] for each in promoted["candidates"] if each["name"] != BUNDLED]
    assert (own[0], len(own)) == (promoted["from"], len(scores) - 1)
    assert promoted["split"] == "validation"
    numbers = [name.split("/")[1:] for name in promoted["tasks"]]
    assert numbers == [["validation", "1000"], ["validation", "1001"]]  # none selected on these
    for part in (
        "0/best",
        "1/best",
        "agent=classic",
        "agent=double",
        "95% interval",
        "score (95%)",
    ):
        assert part in shown


def test_a_promoted_policy_beside_its_sweep_is_not_compared_with_itself(swept, monkeypatch, capsys):
    folder = swept[0] / "sweep"
    for more in ((), ("--force",)):
        promote(monkeypatch, folder, "--into", folder / "won", "--tasks", 1, "--seeds", 1, *more)
    assert not any(line.startswith("won ") for line in capsys.readouterr().out.splitlines())


def test_a_policy_is_not_overwritten_in_silence(tmp_path, monkeypatch, capsys):
    save_member(tmp_path / "mine", 0)
    save_member(tmp_path / "won", 1)
    before = (tmp_path / "won/policy.safetensors").read_bytes()
    with pytest.raises(SystemExit):
        promote(monkeypatch, tmp_path / "mine", "--into", tmp_path / "won", "--family", "quick")
    assert "holds a policy; add --force to replace it" in capsys.readouterr().err
    assert (tmp_path / "won/policy.safetensors").read_bytes() == before


def test_what_is_worse_than_the_bundled_policy_is_not_copied(tmp_path, monkeypatch, capsys):
    """On the regrets that are given here; the policy is an untrained one."""
    save_member(tmp_path / "mine", 0)
    arguments = (tmp_path / "mine", "--into", tmp_path / "won", "--family", "quick")
    arguments += ("--tasks", 1, "--seeds", 1)

    def regrets_by_name(candidates, *_):
        found = [standing("x", *[[0.5 * (c.name != BUNDLED)]] * 5) for c in candidates]
        ranked = [replace(s, candidate=c) for s, c in zip(found, candidates, strict=True)]
        return sorted(ranked, key=lambda s: s.scores.score)

    monkeypatch.setattr("lightning_dqnlr.meta.promote.compare", regrets_by_name)
    monkeypatch.setattr("lightning_dqnlr.meta.failures.usable_tasks", lambda *_: [])
    promote(monkeypatch, *arguments)
    shown = capsys.readouterr().out
    assert shown.partition("overrides")[2].splitlines()[1].startswith(BUNDLED)
    assert "keep the bundled one, DQNLRCallback()." in shown
    assert "Nothing was copied" in shown
    assert not (tmp_path / "won").exists()
    promote(monkeypatch, *arguments, "--without-bundled")
    assert BUNDLED not in capsys.readouterr().out
    assert LRPolicy.load(tmp_path / "won").record["promoted"]["from"] == "."


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--tasks", 0], "--tasks=0 must be an integer of at least 1"),
        (["--device", "tpu"], "device='tpu' must be cpu, cuda or auto"),
        (["--family", "nope"], "--family='nope' must be one of 'broad', "),
        (["--into", f"{__file__}/won"], "won' cannot be written (Not a directory)"),
        ([], "No policy in"),
    ],
)
def test_a_wrong_argument_is_one_line(arguments, message, tmp_path, monkeypatch, capsys):
    with pytest.raises(SystemExit) as stopped:
        promote(monkeypatch, tmp_path, "--into", tmp_path / "won", *arguments)
    (line,) = capsys.readouterr().err.splitlines()
    assert stopped.value.code == 2
    assert line.startswith("dqnlr-promote: error: ")
    assert message in line
    assert not (tmp_path / "won").exists()


def test_policies_of_unknown_tasks_need_the_family_to_be_named(tmp_path, monkeypatch, capsys):
    save_member(tmp_path / "a", 0)
    with pytest.raises(SystemExit):
        promote(monkeypatch, tmp_path, "--into", tmp_path / "won")
    assert "--family" in capsys.readouterr().err


def standing(name, *regrets):
    """Of one row of regrets per task."""
    rows = torch.tensor(regrets)
    names = tuple(f"task/{i}" for i in range(len(rows)))
    policy = LRPolicy.load("default")
    policy.record = {"overrides": [f"seed={name}", "round=8"]}
    return RankedCandidate(Candidate(name, Path(name), policy), Regrets(names, rows, rows, 0.0), 0)


def test_a_lead_on_one_task_of_many_is_within_noise():
    first = standing("a", *[[0.1, 0.1]] * 7, [0.0, 0.0])
    second = standing("b", *[[0.1, 0.1]] * 7, [0.4, 0.4])
    assert "within noise" in verdict([first, second])


def test_a_lead_on_every_task_is_more_than_noise_however_different_the_tasks_are():
    first = standing("a", *[[0.2 * i, 0.2 * i] for i in range(8)])
    second = standing("b", *[[0.2 * i + 0.05, 0.2 * i + 0.05] for i in range(8)])
    assert "0.050 to 0.050 in score (95%): more than noise" in verdict([first, second])


def test_the_table_shows_what_the_runs_did_differently():
    lines = table([standing("a", [0.0, 1.0], [0.0, 3.0]), standing("b", [2.0] * 2, [2.0] * 2)])
    first = lines.splitlines()[1]
    assert first.endswith("seed=a")
    assert first.split()[1:5] == ["0.750", "1.000", "0.000", "0.500"]  # 3 is clipped to 2 in score
    assert interquartile_mean(torch.tensor([0.0, 1.0, 0.0, 3.0])) == 0.5


def test_runs_on_different_tasks_are_not_compared_in_silence(tmp_path):
    for name in "ab":
        (tmp_path / name / ".hydra").mkdir(parents=True)
        (tmp_path / name / ".hydra/config.yaml").write_text(
            f"tasks: {{_target_: {name}}}\nenv: {{engine: {{}}}}\n"
        )
    with pytest.raises(ConfigurationError, match="must agree"):
        cli._recorded(None, [tmp_path / "a/best", tmp_path / "b/best"])


ENGINE = "env: {engine: {_target_: lightning_dqnlr.envs.VectorEngine, _partial_: true}}\n"


def recorded(folder, tasks, engine=ENGINE):
    """A run's folder whose configuration names these tasks; returns that of its policy."""
    (folder / ".hydra").mkdir(parents=True)
    (folder / ".hydra/config.yaml").write_text(f"tasks: {tasks}\n{engine}")
    return folder / "best"


@pytest.fixture
def canary(tmp_path, monkeypatch):
    """A module that leaves a file when it is imported, and another when it is called."""
    text = "import pathlib; here = pathlib.Path(__file__).parent; (here / 'imported').touch()\n"
    (tmp_path / "canary_of_others.py").write_text(
        text + "from lightning_dqnlr.tasks import NoisyQuadratics\n"
        "def run(**_): (here / 'called').touch(); return NoisyQuadratics()\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path
    sys.modules.pop("canary_of_others", None)


@pytest.mark.parametrize(
    "target",
    [
        "canary_of_others.run",
        "os.system",
        "torch.hub.load",
        "lightning_dqnlr.provenance.subprocess.run",
        "lightning_dqnlr.bench.methods.packages.import_module",
        "lightning_dqnlr.tasks.task.torch.load",
        "lightning_dqnlr.cli.policies.instantiate",
        "lightning_dqnlr.tasks.Task.from_lightning",
        "lightning_dqnlr.tasks",
        "[os, system]",
        "''",
        "null",
    ],
)
@pytest.mark.parametrize("where", ["{{_target_: {0}}}", "[{{x: {{_target_: {0}}}}}]"])
def test_a_folder_cannot_have_code_run_that_is_not_ours(canary, target, where):
    policy = recorded(canary / "run", where.format(target))
    with pytest.raises(ConfigurationError, match=r"tasks.*_target_=.*--trust"):
        cli._recorded(None, [policy])
    policy = recorded(
        canary / "other",
        "{_target_: lightning_dqnlr.tasks.NoisyQuadratics}",
        "env: {engine: " + where.format(target) + "}",
    )
    with pytest.raises(ConfigurationError, match=r"env\.engine.*_target_=.*--trust"):
        cli._recorded(None, [policy])
    assert not (canary / "imported").exists()
    assert "canary_of_others" not in sys.modules


def test_what_a_user_trusts_is_instantiated(canary):
    policy = recorded(canary / "run", "{_target_: canary_of_others.run, seed: '${seed}'}\nseed: 3")
    family, _ = cli._recorded(None, [policy], trust=True)
    assert (canary / "called").exists()
    assert family.sample(0, "validation").horizon > 0


def test_the_console_script_refuses_foreign_tasks_and_takes_them_with_trust(
    canary, monkeypatch, capsys
):
    save_member(recorded(canary / "run", "{_target_: canary_of_others.run}"), 0)
    arguments = (canary / "run", "--into", canary / "won", "--tasks", 1, "--seeds", 1)
    with pytest.raises(SystemExit):
        promote(monkeypatch, *arguments)
    assert "canary_of_others.run" in (text := capsys.readouterr().err)
    assert "--trust" in text
    assert not (canary / "imported").exists()
    promote(monkeypatch, *arguments, "--trust")
    assert (canary / "called").exists()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("a: &a [x, x]\nb: [*a, *a]\ntasks: 1", "alias"),
        ("tasks: " + "[" * 500 + "]" * 500, "levels"),
        ("tasks: {_target_: 'x", "cannot be used"),
        ("tasks: \xff\x00", "cannot be used"),
        ("[1, 2]", "is no configuration"),
        ("x" * 300_000, "300000 bytes"),
        ("tasks: '${oc.env:HOME}'\n" + ENGINE, "tasks=.*would be computed"),
        ("tasks: {a: '${b}'}\nb: 3\n" + ENGINE, "tasks.a=.*would be computed"),
        ("tasks: {a: 3}\n" + ENGINE, "no family of tasks"),
        ("env: 3", "no family of tasks"),
        ("", "no family of tasks"),
    ],
)
def test_a_configuration_that_is_none_is_one_error(tmp_path, content, reason):
    policy = recorded(tmp_path / "run", "")
    (tmp_path / "run/.hydra/config.yaml").write_bytes(content.encode("latin1"))
    with pytest.raises(ConfigurationError, match=reason):
        cli._recorded(None, [policy])


def test_a_configuration_that_never_ends_is_not_waited_for(tmp_path):
    policy = recorded(tmp_path / "run", "")
    path = tmp_path / "run/.hydra/config.yaml"
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(ConfigurationError, match="no regular file"):
        cli._recorded(None, [policy])
    path.unlink()
    path.symlink_to("/dev/zero")
    with pytest.raises(ConfigurationError, match="no regular file"):
        cli._recorded(None, [policy])
