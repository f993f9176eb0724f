"""What real loggers hold after a run: scalars at decisions, the policy, the picture."""

import csv
from pathlib import Path

import lightning.pytorch
import pytest
import pytorch_lightning
from lightning.pytorch.callbacks import LearningRateMonitor
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger

from lightning_dqnlr import DQNLRCallback, __version__
from lightning_dqnlr.errors import ConfigurationError
from lightning_dqnlr.host.logged import GRADIENTS, PICTURE

from .control_runs import Net, OldNet, loader, random_policy, trainer

SCALARS = {"lr", "multiplier", "confidence", "update_ratio", "trips"}


class Poisoned(Net):
    """One loss is NaN, so that one interval is undone."""

    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        return loss * float("nan") if self.global_step == 20 else loss


def fit(folder, logger, module=None, beside=(), **arguments):
    callback = DQNLRCallback(random_policy(), **arguments)
    settings = {"max_epochs": 3, "log_every_n_steps": 100, "more_callbacks": beside}
    run = trainer(callback, folder, logger=logger, **settings)
    module = module or Poisoned()
    run.fit(module, loader())
    return callback, module


def rows_of(logger):
    with open(Path(logger.log_dir) / "metrics.csv") as file:
        return list(csv.DictReader(file))


def test_csv_has_every_decision_at_its_step_though_the_trainer_logs_rarely(tmp_path):
    logger = CSVLogger(tmp_path)
    callback, module = fit(tmp_path, logger)
    rows = [row for row in rows_of(logger) if row["dqnlr/multiplier"]]
    assert [int(row["step"]) for row in rows] == [r["step"] - 1 for r in callback.trace]
    trips = 0
    for row, record in zip(rows, callback.trace, strict=True):
        first, second, *_ = sorted(record["q_values"], reverse=True)
        trips += record["tripped"]
        assert float(row["dqnlr/lr"]) == module.rates[record["step"] - 1][0]
        assert float(row["dqnlr/multiplier"]) == record["multiplier"]
        assert float(row["dqnlr/confidence"]) == pytest.approx(first - second)
        assert float(row["dqnlr/trips"]) == trips
        if "not finite" not in record["reason"]:
            assert float(row["dqnlr/update_ratio"]) == record["update_ratio"]
    assert trips >= 1
    assert {name for name in rows[0] if name.startswith("dqnlr")} == {f"dqnlr/{n}" for n in SCALARS}


def test_gradients_are_logged_on_request_and_not_without_a_log(tmp_path):
    logger = CSVLogger(tmp_path)
    callback, _ = fit(tmp_path, logger, log_gradients=True)
    rows = [row for row in rows_of(logger) if row["dqnlr/gradient_norm"]]
    assert len(rows) == len(callback.trace) - 1, "all but the interval that was not finite"
    assert all(float(row["dqnlr/gradient_norm"]) > 0 for row in rows)
    assert all(-1.001 < float(row["dqnlr/cos_gradient_update"]) < 1.001 for row in rows)
    assert {f"dqnlr/{name}" for name in GRADIENTS} <= set(rows[0])
    with pytest.raises(ConfigurationError, match="log_gradients=True needs log=True"):
        DQNLRCallback(log=False, log_gradients=True)


def test_logging_changes_no_rate(tmp_path):
    silent, told = Net(), Net()
    fit(tmp_path, False, silent, log=False)
    fit(tmp_path, [CSVLogger(tmp_path), TensorBoardLogger(tmp_path)], told, log_gradients=True)
    assert silent.rates == told.rates
    assert silent.losses == told.losses


def test_a_resumed_run_does_not_tell_of_the_same_decisions_again(tmp_path):
    first = DQNLRCallback(random_policy())
    trainer(first, tmp_path, max_epochs=1).fit(Poisoned(), loader())
    second, logger = DQNLRCallback(random_policy()), CSVLogger(tmp_path)
    second.load_state_dict(first.state_dict())
    trainer(second, tmp_path, max_epochs=1, logger=logger).fit(Net(), loader())
    rows = [row for row in rows_of(logger) if row["dqnlr/multiplier"]]
    assert len(rows) == len(second.trace) - len(first.trace)


@pytest.mark.parametrize("library", [lightning.pytorch, pytorch_lightning])
def test_tensorboard_has_scalars_policy_and_the_picture(tmp_path, library):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    logger = library.loggers.TensorBoardLogger(tmp_path)
    net = Net() if library is lightning.pytorch else OldNet()
    callback = DQNLRCallback(random_policy())
    trainer(callback, tmp_path, library, logger=logger, max_epochs=2).fit(net, loader())
    events = EventAccumulator(logger.log_dir)
    events.Reload()
    for name in SCALARS:
        logged = events.Scalars(f"dqnlr/{name}")
        assert [event.step for event in logged] == [r["step"] - 1 for r in callback.trace]
    (image,) = events.Images(PICTURE)
    assert image.encoded_image_string.startswith(b"\x89PNG")
    assert image.width > 600
    assert logger.hparams["dqnlr/policy_version"] == __version__


class Broken(CSVLogger):
    """Takes images, and then does not."""

    def log_image(self, key, images, step=None):
        raise OSError("no room")


def test_a_logger_that_fails_at_the_picture_costs_nobody_a_finished_run(tmp_path, caplog):
    _, module = fit(tmp_path, Broken(tmp_path))
    assert len(module.losses) == 36
    assert any("did not get to Broken: no room" in record.getMessage() for record in caplog.records)


@pytest.mark.parametrize("first", ["monitor", "control"])
def test_lightnings_monitor_shows_the_first_rate_although_it_looks_before_there_is_one(
    tmp_path, first
):
    logger = CSVLogger(tmp_path)
    monitor, control = LearningRateMonitor("step"), DQNLRCallback(random_policy())
    one, other = (monitor, control) if first == "monitor" else (control, monitor)
    module = Net()
    arguments = {"max_epochs": 1, "log_every_n_steps": 1, "accumulate_grad_batches": 2}
    trainer(one, tmp_path, more_callbacks=[other], logger=logger, **arguments).fit(module, loader())
    shown = {int(row["step"]): float(row["lr-Adam"]) for row in rows_of(logger) if row["lr-Adam"]}
    assert shown[0] == module.rates[0][0] != 10.0
    assert shown == {step: rate for step, (rate,) in enumerate(module.rates)}
    assert "on_train_batch_start" not in vars(monitor), "its hooks are its own again"


def test_weights_and_biases_offline_has_scalars_policy_and_the_picture(tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb", reason="wandb is not installed")
    from lightning.pytorch.loggers import WandbLogger

    monkeypatch.setenv("WANDB_SILENT", "true")
    logger = WandbLogger(save_dir=tmp_path, offline=True, project="dqnlr")
    callback, _ = fit(tmp_path, logger)
    assert logger.experiment.config["dqnlr/policy_version"] == __version__
    summary = dict(logger.experiment.summary)
    trips = sum(record["tripped"] for record in callback.trace)
    assert summary["dqnlr/trips"] == trips
    assert {f"dqnlr/{name}" for name in SCALARS} <= set(summary)
    wandb.finish()
    (folder,) = (tmp_path / "wandb").glob("offline-run-*")
    assert list((folder / "files" / "media" / "images" / "dqnlr").glob("run_*.png"))


def test_mlflow_has_scalars_policy_and_the_picture(tmp_path, monkeypatch):
    pytest.importorskip("mlflow", reason="mlflow is not installed")
    from lightning.pytorch.loggers import MLFlowLogger

    place = f"sqlite:///{tmp_path / 'mlflow.db'}"
    logger = MLFlowLogger("dqnlr", tracking_uri=place, artifact_location=str(tmp_path / "kept"))
    callback, _ = fit(tmp_path, logger)
    run = logger.experiment.get_run(logger.run_id)
    assert run.data.params["dqnlr/policy_version"] == __version__
    told = logger.experiment.get_metric_history(logger.run_id, "dqnlr/multiplier")
    assert [point.value for point in told] == [r["multiplier"] for r in callback.trace]
    assert {f"dqnlr/{name}" for name in SCALARS} <= set(run.data.metrics)
    assert list((tmp_path / "kept").rglob(f"{PICTURE}.png"))
