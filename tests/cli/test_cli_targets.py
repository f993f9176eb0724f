"""Configurations of earlier versions: their classes have moved, and are still found."""

from pkgutil import resolve_name

import pytest
from omegaconf import OmegaConf

from lightning_dqnlr.cli import policies as cli
from lightning_dqnlr.cli.targets import present_target, with_present_targets
from lightning_dqnlr.cli.train import build_trainer
from lightning_dqnlr.envs import VectorEngine
from lightning_dqnlr.tasks import NoisyQuadratics
from tests.cli.test_cli import composed

# All that configurations named before classes were named by the faces of their rooms.
OLD = """
bench.suite.Suite control.actions.ActionSpec control.features.FeatureSpec
control.spec.ControllerSpec envs.trainer.TrainerEngine envs.vector.VectorEngine
meta.collect.CollectConfig meta.ray_collector.RayWorkers meta.train.TrainConfig
meta.workers.LocalWorkers rl.dqn.DQNConfig rl.prioritised.PrioritisedReplayConfig
rl.q_table.TabularConfig rl.quantile.QuantileConfig rl.replay.UniformReplayConfig
rl.rewards.LogProgress rl.rewards.LossChange tasks.families.DigitsCNNs tasks.families.DigitsMLPs
tasks.families.NoisyQuadratics tasks.families.TeacherMLPs tasks.finetuning.FineTunedDigits
tasks.images.Autoencoders tasks.images.CoordinateNetworks tasks.images.PhotoCNNs
tasks.images.PhotoDenoisers tasks.mixtures.Mixture tasks.mixtures.SplitTasks tasks.own.OwnTasks
tasks.sequences.SyntheticRNNs tasks.sequences.TextRNNs tasks.sequences.TextTransformers
tasks.tables.EmbeddingClassifiers tasks.tables.ImbalancedMLPs tasks.tables.MatrixFactorizations
tasks.tables.NoisyLabelMLPs tasks.tables.TableMLPs tasks.task.Task.from_lightning
"""


@pytest.mark.parametrize("old", OLD.split())
def test_what_a_configuration_named_is_still_found(old):
    found = resolve_name(present_target(f"lightning_dqnlr.{old}"))
    names = [name for name in old.split(".") if name[0].isupper() or name == "from_lightning"]
    assert found.__qualname__ == ".".join(names)


@pytest.mark.parametrize("own", ["my_project.nets.Net", "lightning_dqnlr.rl.NoSuchThing"])
def test_what_is_no_class_of_ours_is_left_as_it_was_written(own):
    assert present_target(own) == own


# `.hydra/config.yaml` of a sweep's run, as commit 7154b4c wrote it, without what is not read.
RECORDED = """
env:
  engine:
    _target_: lightning_dqnlr.envs.vector.VectorEngine
    _partial_: true
  collect:
    _target_: lightning_dqnlr.meta.collect.CollectConfig
    n_step: ${agent.n_step}
    credit: final_score
    temperature: 0.2
    final_evaluation: true
    trip_penalty: 0.02
agent:
  n_step: 32
tasks:
  _target_: lightning_dqnlr.tasks.mixtures.SplitTasks
  _convert_: all
  train:
    _target_: lightning_dqnlr.tasks.mixtures.Mixture
    families:
    - _target_: lightning_dqnlr.tasks.families.NoisyQuadratics
      max_horizon: 200
    weights:
    - 1.0
  held_out:
    _target_: lightning_dqnlr.tasks.families.NoisyQuadratics
    min_horizon: 77
    max_horizon: 77
"""


def test_the_tasks_of_an_old_sweep_can_still_be_promoted_on(tmp_path):
    (tmp_path / "0/.hydra").mkdir(parents=True)
    (tmp_path / "0/.hydra/config.yaml").write_text(RECORDED)
    family, engine = cli._recorded(None, [tmp_path / "0/best"])
    assert family.sample(0, "validation").horizon == 77
    assert engine("cpu") == VectorEngine("cpu")


def test_a_user_s_own_configuration_with_old_names_still_trains(tmp_path):
    config = composed("experiment=quick", "train.episodes=1")
    config.tasks = {"_target_": "lightning_dqnlr.tasks.families.NoisyQuadratics"}
    assert build_trainer(config, tmp_path).tasks == NoisyQuadratics()


def test_interpolations_and_lists_survive():
    config = OmegaConf.create(
        {"a": {"_target_": "lightning_dqnlr.rl.dqn.DQNConfig", "b": "${c}"}, "c": 3, "d": [{}, 1]}
    )
    found = with_present_targets(config)
    assert found.a.b == 3
    assert found.d == [{}, 1]
