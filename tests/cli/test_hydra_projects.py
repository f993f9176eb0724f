"""A Hydra project of somebody else, laid out as lightning-hydra-template is."""

from inspect import signature

import pytest
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from lightning.pytorch import Trainer

from lightning_dqnlr import DQNLRCallback
from tests.host.control_runs import Net, loader

SEARCH = "hydra.searchpath=[pkg://lightning_dqnlr.conf]"
TRAIN = """
defaults:
  - callbacks: default
  - trainer: default
  - _self_
"""
DEFAULT = """
early_stopping:
  _target_: lightning.pytorch.callbacks.EarlyStopping
  monitor: loss
  check_on_train_epoch_end: true
"""
# What the template's own callbacks/default.yaml does with its parts.
BOTH = """
defaults:
  - default
  - dqnlr
  - _self_

dqnlr:
  max_lr: 0.1
"""
TRAINER = """
_target_: lightning.pytorch.Trainer
max_steps: 12
accelerator: cpu
logger: false
enable_checkpointing: false
enable_progress_bar: false
enable_model_summary: false
"""


@pytest.fixture
def project(tmp_path):
    files = {
        "train.yaml": TRAIN,
        "callbacks/default.yaml": DEFAULT,
        "callbacks/both.yaml": BOTH,
        "trainer/default.yaml": TRAINER,
    }
    for name, text in files.items():
        path = tmp_path / "configs" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path


def callbacks_of(project, *overrides):
    """What the template's `instantiate_callbacks` does, and its Trainer."""
    with initialize_config_dir(str(project / "configs"), version_base="1.3"):
        config = compose("train", overrides=[SEARCH, *overrides])
    made = [instantiate(entry) for entry in config.callbacks.values()]
    return made, instantiate(config.trainer, callbacks=made, default_root_dir=str(project))


def test_the_callback_is_found_by_the_search_path_and_trains(project):
    (callback,), trainer = callbacks_of(project, "callbacks=dqnlr", "callbacks.dqnlr.seed=3")
    assert isinstance(callback, DQNLRCallback)
    assert callback.seed == 3
    assert isinstance(trainer, Trainer)
    trainer.fit(Net(), loader())
    assert callback.trace[-1]["step"] > 8


def test_it_joins_the_callbacks_that_the_project_has(project):
    made, _ = callbacks_of(project, "callbacks=both")
    assert [type(callback).__name__ for callback in made] == ["EarlyStopping", "DQNLRCallback"]
    assert made[1].max_lr == 0.1


def test_the_configuration_has_every_argument_with_its_default(project):
    with initialize_config_dir(str(project / "configs"), version_base="1.3"):
        config = compose("train", overrides=[SEARCH, "callbacks=dqnlr"])
    parameters = signature(DQNLRCallback.__init__).parameters
    defaults = {k: v.default for k, v in parameters.items() if k != "self"}
    listed = {k: v for k, v in config.callbacks.dqnlr.items() if k != "_target_"}
    assert listed == defaults
