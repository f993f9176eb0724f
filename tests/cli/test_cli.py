"""`dqnlr-train` from outside: its configurations, its output, its errors, a kill and a resume."""

import csv
import json
import math
import os
import re
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_module

from lightning_dqnlr.cli import train as cli
from lightning_dqnlr.control.features import CLASSIC, SCALE_FREE
from lightning_dqnlr.control.spec import CLASSIC_MULTIPLIERS, DEFAULT_MULTIPLIERS, ControllerSpec
from lightning_dqnlr.errors import ConfigurationError
from lightning_dqnlr.meta.checkpoint import CHECKPOINT
from lightning_dqnlr.meta.collect import CollectConfig
from lightning_dqnlr.meta.logs import CSV_FILE
from lightning_dqnlr.meta.train import TrainConfig
from lightning_dqnlr.policy.policy import LRPolicy
from lightning_dqnlr.rl.dqn import Agent
from lightning_dqnlr.rl.rewards import FinalScore, LogProgress, LossChange

CONF = Path(__file__).parents[2] / "conf"
CHOICES = [
    f"{path.parent.name}={path.stem}"
    for path in sorted(CONF.glob("*/*.yaml"))
    if path.parent.name not in ("suite", "callbacks")  # dqnlr bench's, and for other projects
]
SETTING = re.compile(r"\w+=(?:\([^)]*\)|[^,]+)")
COMMAND = Path(sys.executable).with_name("dqnlr-train")
# As if the extras were not installed: neither importable nor listed as distributions.
WITHOUT_EXTRAS = """
import importlib.metadata, sys
hidden = {"sklearn", "scikit-learn", "tensorboard", "rich", "matplotlib", "ray", "optuna"}
distribution = importlib.metadata.distribution
def visible(name):
    if name in hidden:
        raise importlib.metadata.PackageNotFoundError(name)
    return distribution(name)
importlib.metadata.distribution = visible
sys.modules.update(dict.fromkeys(hidden))
sys.argv[0] = "dqnlr-train"
from lightning_dqnlr.cli.train import train
train()
"""
TINY = (
    "experiment=quick",
    "tasks.families=[{_target_:lightning_dqnlr.tasks.families.basic.TeacherMLPs,"
    "min_horizon:20,max_horizon:20}]",
    "tasks.weights=null",
    "env.collect.replicas=4",
    "env.spec.probe_size=16",
    "agent.learner.batch_size=16",
    "train.episodes=14",
    "train.updates=2",
    "train.warm_up_episodes=1",
    "train.evaluate_every=4",
    "train.evaluation_tasks=1",
    "train.evaluation_seeds=2",
    "train.checkpoint_every=3",
    "train.max_minutes=null",
)


def composed(*overrides):
    with initialize_config_module("lightning_dqnlr.conf", version_base="1.3"):
        return compose("train", list(overrides))


def environment():
    """That of a user: whole error messages are not asked for."""
    return {k: v for k, v in os.environ.items() if k != "HYDRA_FULL_ERROR"}


def run_command(*arguments, cwd, command=(COMMAND,)):
    return subprocess.run(
        [*map(str, command), *arguments],
        cwd=cwd,
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


def rows(folder):
    with (folder / CSV_FILE).open(newline="") as file:
        return [{k: v for k, v in row.items() if k != "seconds"} for row in csv.DictReader(file)]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run to its end, on a plain installation: none of the extras can be imported."""
    cwd = tmp_path_factory.mktemp("elsewhere")
    command = (sys.executable, "-c", WITHOUT_EXTRAS)
    return cwd, run_command(*TINY, "folder=run", cwd=cwd, command=command)


@pytest.mark.parametrize("choice", CHOICES)
def test_every_choice_of_every_group_builds_a_trainer(choice, tmp_path):
    trainer = cli.build_trainer(composed(choice), tmp_path)
    kinds = {"spec": ControllerSpec, "agent": Agent, "collect": CollectConfig}
    kinds |= {"config": TrainConfig, "reward": FinalScore | LossChange | LogProgress}
    for name, kind in kinds.items():
        assert isinstance(getattr(trainer, name), kind), name
    assert trainer.tasks.sample(0, "validation").horizon >= 1


def test_the_groups_of_the_design_are_all_there():
    groups = {choice.split("=")[0] for choice in CHOICES}
    assert groups == {"agent", "reward", "tasks", "env", "collector", "experiment"}
    assert {"experiment=quick", "experiment=classic", "experiment=default"} <= set(CHOICES)


def test_the_default_configuration_repeats_the_defaults_of_the_code(tmp_path):
    """Two sources of one truth: whoever tunes the one must tune the other."""
    trainer = cli.build_trainer(composed(), tmp_path)
    assert trainer.spec == ControllerSpec()
    assert trainer.agent == Agent()
    assert trainer.collect == CollectConfig()
    assert trainer.reward == FinalScore()
    assert trainer.spec.features.names == SCALE_FREE
    assert trainer.spec.actions.multipliers == DEFAULT_MULTIPLIERS


def test_the_recipe_of_the_bundled_policy_is_still_the_one_its_members_were_trained_by(tmp_path):
    policy = LRPolicy.load("default")
    trainer = cli.build_trainer(composed("experiment=default"), tmp_path)
    assert trainer.spec == policy.spec
    # Its record is older than the reward's own settings, which stood among those of collection.
    recorded = policy.record["collect"].removeprefix("CollectConfig(").removesuffix(")")
    now = [f"{k}={v!r}" for k, v in {**vars(trainer.collect), **vars(trainer.reward)}.items()]
    assert set(SETTING.findall(recorded)) == {
        *now, "credit='final_score'", "final_evaluation=True"
    }  # fmt: skip
    assert isinstance(trainer.reward, FinalScore)
    assert str(trainer.agent) == policy.record["agent"]
    members = policy.record["members"]
    assert max(member["episodes"] for member in members) == trainer.config.episodes
    for earlier, later in pairwise(members):
        if earlier["seed"] == later["seed"]:
            updates, episodes = (later[name] - earlier[name] for name in ("updates", "episodes"))
            assert updates == trainer.config.updates * episodes
    # What the recipe says is not said otherwise by the commands.
    beside = {"seed", "resume", "experiment", "collector.workers", "train.rivals"}
    for member in members:
        assert {text.split("=", 1)[0] for text in member["overrides"]} <= beside


def test_the_reward_decides_what_is_learned(tmp_path):
    """All but one trained the same policy once, and recorded another."""
    found = []
    for reward in ("final_score", "log_progress", "loss_change"):
        cli.meta_train(composed(*TINY, f"reward={reward}", "train.episodes=3"), tmp_path / reward)
        policy = LRPolicy.load(tmp_path / reward / "last")
        assert policy.record["reward"].startswith(reward.title().replace("_", ""))
        found.append(torch.cat([w.flatten() for w in policy.network.state_dict().values()]))
    assert not any(torch.equal(a, b) for a, b in pairwise([*found, found[0]]))


def test_classic_is_the_specified_recipe(tmp_path):
    trainer = cli.build_trainer(composed("experiment=classic"), tmp_path)
    assert trainer.spec.actions.multipliers == CLASSIC_MULTIPLIERS
    assert trainer.spec.features.names == CLASSIC
    assert trainer.spec.decay == "none"
    assert trainer.reward == LossChange(alpha_1=1.0, alpha_2=1.0, final_evaluation=False)
    dqn = trainer.agent.learner
    assert (dqn.double, dqn.loss, dqn.target_update) == (False, "mse", "hard")
    assert dqn.dueling is False
    collect = trainer.collect
    assert (collect.n_step, collect.discount, collect.epsilon_alpha) == (1, 0.99, 0.0)
    assert (collect.start, collect.circuit_breaker) == ("user", False)


def test_a_plain_installation_trains_to_the_end(finished):
    cwd, done = finished
    assert done.returncode == 0, done.stderr
    folder = cwd / "run"
    assert [int(row["episode"]) for row in rows(folder)] == list(range(1, 15))
    assert "No TensorBoard log" in done.stdout
    assert not (folder / "tensorboard").exists()
    assert (folder / ".hydra/config.yaml").is_file()
    assert [path.name for path in cwd.iterdir()] == ["run"]  # no second folder, no stray file


def test_the_table_ends_with_the_line_that_uses_the_policy(finished):
    cwd, done = finished
    best = cwd / "run/best"
    for part in ("teacher_mlps/validation/0", "regret mean", "regret median", str(best)):
        assert part in done.stdout
    use, beside = done.stdout.splitlines()[-2:]
    assert f'DQNLRCallback(policy="{best}")' in use
    assert beside.startswith("Beside the bundled policy, on these 1 tasks: score ")
    assert "episode 14/14" in done.stderr
    assert "time left" in done.stderr


def test_the_policy_records_the_command_that_made_it(finished):
    cwd, _ = finished
    for name in ("best", "last"):
        record = LRPolicy.load(cwd / "run" / name).record
        assert record["command"].startswith("dqnlr-train experiment=quick ")
        assert "train.episodes=14" in record["overrides"]
        assert record["versions"]["torch"] == str(torch.__version__)


def test_the_objective_of_a_sweep_is_the_best_score(tmp_path):
    overrides = ("train.episodes=2", "train.evaluate_every=1", "tensorboard=false")
    score = cli.meta_train(composed(*TINY, *overrides), tmp_path)
    assert isinstance(score, float)
    assert math.isfinite(score)
    record = json.loads((tmp_path / "best/policy.json").read_text())["record"]
    assert score == record["validation"]["score"]
    lowest = min(float(row["score"]) for row in rows(tmp_path))
    assert score == pytest.approx(lowest, rel=1e-5)  # the CSV has six digits


def test_a_run_that_the_time_limit_ended_says_so_and_how_to_go_on(tmp_path, capsys):
    cli.meta_train(composed(*TINY, "train.max_minutes=1e-9", "tensorboard=false"), tmp_path)
    shown = capsys.readouterr().out
    assert "train.max_minutes=1e-09 ended the run after 1 of 14 episodes." in shown
    assert f"resume=true folder={tmp_path}" in shown


ERRORS = {
    "a value out of range": (
        ["train.episodes=0"],
        "TrainConfig.episodes=0 must be an integer of at least 1",
    ),
    "a value of the wrong type": (["train.episodes=many"], "TrainConfig.episodes='many'"),
    "a wrong value deep in a group": (
        ["agent.learner.loss=l1"],
        "agent.learner: DQNConfig.loss='l1' must be",
    ),
    "no process": (["collector.workers=0"], "collector.workers=0 must be an integer of at least 1"),
    "a device that does not exist": (["device=tpu"], "device='tpu' must be cpu, cuda or auto"),
    "no threads": (["threads=0"], "threads=0 must be"),
    "an impossible reward": (["reward=loss_change", "reward.limit=0"], "reward: limit=0 must be"),
    "a reward that compares one replica with none": (
        ["env.collect.replicas=1"],
        "env.collect.replicas=1 leaves reward FinalScore(temperature=0.2, trip_penalty=0.02) "
        "nothing to compare; use at least 2 replicas, or reward=log_progress",
    ),
    "a reward's setting where it stood before": (
        ["+env.collect.credit=interval"],
        "env.collect.credit is a matter of the reward now; choose reward=final_score or",
    ),
}


@pytest.mark.parametrize("case", ERRORS)
def test_a_wrong_setting_is_one_line_and_exit_code_2(case, tmp_path, monkeypatch, capsys):
    overrides, message = ERRORS[case]
    monkeypatch.setattr(sys, "argv", ["dqnlr-train", f"folder={tmp_path}/run", *overrides])
    monkeypatch.setenv("HYDRA_FULL_ERROR", "0")  # train() sets it; this puts it back afterwards
    with pytest.raises(SystemExit) as stopped:
        cli.train()
    shown = capsys.readouterr()
    assert stopped.value.code == 2
    assert shown.err.startswith("dqnlr-train: error: ")
    assert message in shown.err
    assert len(shown.err.splitlines()) == 1
    assert shown.out == ""


def test_resuming_needs_the_folder_to_be_named(tmp_path, monkeypatch, capsys):
    """A new, empty folder named after the time of day is never what was meant."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["dqnlr-train", "resume=true"])
    monkeypatch.setenv("HYDRA_FULL_ERROR", "0")
    with pytest.raises(SystemExit):
        cli.train()
    assert "resume=true needs folder=" in capsys.readouterr().err


def test_tracebacks_come_back_on_demand(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["dqnlr-train", f"folder={tmp_path}/run", "threads=0"])
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    monkeypatch.setattr("lightning_dqnlr.cli.errors._TRACEBACKS_WANTED", True)
    with pytest.raises(ConfigurationError, match="threads=0"):
        cli.train()


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("not a folder")
    done = run_command(*TINY, "folder=file/run", cwd=tmp_path)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert "file/run" in line
    assert "choose another folder" in line


def test_a_finished_run_is_not_overwritten(finished, tmp_path):
    cwd, _ = finished
    before = (cwd / "run" / CHECKPOINT).read_bytes()
    with pytest.raises(ConfigurationError, match=r"holds a run already; add resume=true"):
        cli.meta_train(composed(*TINY), cwd / "run")
    assert (cwd / "run" / CHECKPOINT).read_bytes() == before


def test_help_lists_the_choices_without_starting_anything(tmp_path):
    done = run_command("--help", cwd=tmp_path)
    assert done.returncode == 0
    assert "experiment: ablation, classic, default, quick" in done.stdout
    assert len(done.stdout.splitlines()) <= 30
    assert list(tmp_path.iterdir()) == []


def test_the_configuration_can_be_shown(tmp_path):
    done = run_command("--cfg", "job", "experiment=classic", cwd=tmp_path)
    assert done.returncode == 0
    assert "_target_: lightning_dqnlr.rl.LossChange" in done.stdout
