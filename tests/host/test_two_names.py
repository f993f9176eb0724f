"""`pytorch_lightning` has all classes of `lightning.pytorch` again: all works under both names."""

import subprocess
import sys
from copy import deepcopy

import lightning.pytorch
import pytest
import pytorch_lightning
import torch

from lightning_dqnlr import DQNLRCallback
from lightning_dqnlr.errors import NonFiniteLossError, UnsupportedTrainingError

from .control_runs import (
    SAFELY,
    Net,
    OldNet,
    averaging,
    constant_policy,
    finder_gives_back,
    loader,
    random_policy,
    trainer,
)

KEEP = 3
NEW, OLD = lightning.pytorch, pytorch_lightning
both = pytest.mark.parametrize("library", [NEW, OLD], ids=["lightning.pytorch", "older name"])


def net(library, *mixins, **options):
    base = Net if library is NEW else OldNet
    return type("Mixed", (*mixins, base), {})(**options)


def fit(folder, library, callback, module=None, **arguments):
    module = module or net(library)
    data = arguments.pop("data", None) or loader()
    path = arguments.pop("ckpt_path", None)
    run = trainer(callback, folder, library, **{"max_epochs": 4, **arguments})
    run.fit(module, data, ckpt_path=path, **SAFELY)
    return module


class Monitored:
    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        self.log("shifted", loss + 1.0)
        return loss


class BlowsUp:
    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        return loss * (float("nan") if len(self.losses) == 30 else 1.0)


class NoLoss:
    def training_step(self, batch, batch_idx):
        return None if batch_idx % 3 == 1 else super().training_step(batch, batch_idx)


class Scheduled:
    def configure_optimizers(self):
        optimizer = super().configure_optimizers()
        plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=0)
        warm_up = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, step / 5))
        return [optimizer], [
            {"scheduler": warm_up, "interval": "step"},
            {"scheduler": plateau, "monitor": "train"},
        ]

    def on_train_epoch_end(self):
        self.log("train", 1.0)


def timer(library):
    return {"more_callbacks": [library.callbacks.Timer("00:01:00:00")]}


def accumulation(library):
    return {"more_callbacks": [library.callbacks.GradientAccumulationScheduler({0: 1, 1: 3})]}


def average(library):
    return {"more_callbacks": [averaging(library, "EMAWeightAveraging")(decay=0.9)]}


def mixed(library):
    precision = library.plugins.precision.MixedPrecision
    return {"plugins": precision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=64.0))}


@pytest.mark.parametrize(
    ("mixins", "control", "arguments"),
    [
        ((), {}, None),
        ((), {}, {"accumulate_grad_batches": 5}),
        ((), {}, {"gradient_clip_val": 0.1}),
        ((), {}, {"reload_dataloaders_every_n_epochs": 1}),
        ((Monitored,), {"monitor": "shifted"}, None),
        ((BlowsUp,), {}, None),
        ((BlowsUp,), {}, average),
        ((NoLoss,), {}, None),
        ((Scheduled,), {}, None),
        ((Scheduled,), {"on_scheduler": "scale"}, None),
        ((), {}, timer),
        ((), {}, accumulation),
        ((), {}, mixed),
    ],
    ids=lambda value: getattr(value, "__name__", str(value)),
)
@pytest.mark.filterwarnings("ignore:.*training_step.*returned.*None.*")
def test_a_run_is_the_same_under_both_names(tmp_path, mixins, control, arguments):
    traces, used, weights = [], [], []
    for library in (NEW, OLD):
        callback = DQNLRCallback(random_policy(), epsilon=0.2, **control)
        module = net(library, *mixins)
        given = arguments(library) if callable(arguments) else arguments or {}
        fit(tmp_path, library, callback, module, **given)
        traces.append(str(callback.trace))
        used.append(module.rates)
        weights.append([p.tolist() for p in module.parameters()])
    assert "'step': 1," in traces[0]
    assert traces[0] == traces[1]
    assert used[0] == used[1]
    assert weights[0] == weights[1]


@both
def test_a_single_callback_needs_no_list(tmp_path, library):
    callback = DQNLRCallback(random_policy())
    run = library.Trainer(
        callbacks=callback,
        max_epochs=2,
        logger=False,
        enable_checkpointing=False,
        accelerator="cpu",
        default_root_dir=tmp_path,
    )
    run.fit(net(library), loader())
    assert callback.trace[-1]["step"] == 24


@both
def test_a_resumed_run_is_exact_under_both_names(tmp_path, library):
    def saver(folder):
        checkpoint = library.callbacks.ModelCheckpoint
        return checkpoint(folder, filename="{epoch}", save_top_k=-1)

    def control():
        return DQNLRCallback(random_policy(), epsilon=0.2, save_snapshot=True)

    whole, expected = net(library, BlowsUp), control()
    arguments = {"enable_checkpointing": True, "more_callbacks": [saver(tmp_path)]}
    fit(tmp_path, library, expected, whole, **arguments)
    resumed, callback = net(library), control()
    arguments["more_callbacks"] = [saver(tmp_path / "on")]
    path = tmp_path / "epoch=2.ckpt"
    fit(tmp_path, library, callback, resumed, ckpt_path=path, **arguments)
    assert resumed.rates == whole.rates[36:]
    assert str(callback.trace) == str(expected.trace)


class NoOptimizer:
    def configure_optimizers(self):
        return None


@both
@pytest.mark.parametrize(
    ("mixins", "error", "words"),
    [
        ((NoOptimizer,), UnsupportedTrainingError, "gives no optimizer"),
    ],
)
@pytest.mark.filterwarnings("ignore:.*configure_optimizers.*returned.*None.*")
def test_what_cannot_be_controlled_is_refused_under_both_names(
    tmp_path, library, mixins, error, words
):
    with pytest.raises(error, match=words):
        fit(tmp_path, library, DQNLRCallback(constant_policy(KEEP)), net(library, *mixins))


@both
def test_what_sets_the_rate_itself_is_refused_under_both_names(tmp_path, library):
    swa = library.callbacks.StochasticWeightAveraging(swa_lrs=0.1)
    with pytest.raises(UnsupportedTrainingError, match=r"StochasticWeightAveraging.*EMAWeight"):
        fit(tmp_path, library, DQNLRCallback(constant_policy(KEEP)), more_callbacks=[swa])
    module = net(library, Scheduled)
    with pytest.raises(UnsupportedTrainingError, match="LambdaLR, ReduceLROnPlateau sets"):
        fit(tmp_path, library, DQNLRCallback(constant_policy(KEEP), on_scheduler="error"), module)


class FirstLossIsNaN:
    def training_step(self, batch, batch_idx):
        return super().training_step(batch, batch_idx) * float("nan")


@both
def test_a_first_loss_of_nan_is_an_error_under_both_names(tmp_path, library):
    with pytest.raises(NonFiniteLossError):
        fit(tmp_path, library, DQNLRCallback(constant_policy(KEEP)), net(library, FirstLossIsNaN))


@finder_gives_back
@both
def test_the_finder_of_rates_does_not_disturb_under_both_names(tmp_path, library):
    finder = library.callbacks.LearningRateFinder(num_training_steps=5, update_attr=False)
    callback, module = DQNLRCallback(random_policy()), net(library, Scheduled)
    fit(tmp_path, library, callback, module, more_callbacks=[finder])
    expected = net(library)
    fit(tmp_path, library, DQNLRCallback(random_policy()), expected)
    assert torch.allclose(torch.tensor(module.rates[-48:]), torch.tensor(expected.rates))


@both
def test_the_run_of_a_copy_is_found_by_the_original(tmp_path, library):
    original = DQNLRCallback(random_policy())
    copy = deepcopy(original)
    fit(tmp_path, library, copy)
    assert original.trace == copy.trace
    assert original.trace[-1]["step"] == 48
    assert original.plot(tmp_path / "lr.png").exists()
    assert original.facts is copy.facts
    assert original.facts.horizon == 48
    assert original.save_trace(tmp_path / "lr.csv").read_text().count("\n") == 1 + len(copy.trace)
    fit(tmp_path, library, original, max_epochs=2)
    assert original.trace[-1]["step"] == 24, "its own run comes first"
    assert copy.trace[-1]["step"] == 48


def test_the_trace_comes_back_from_spawned_processes(tmp_path):
    arguments = {"strategy": "ddp_spawn", "devices": 2, "max_steps": 6}
    callback = DQNLRCallback(constant_policy(KEEP), memory=tmp_path / "memory")
    fit(tmp_path, NEW, callback, Net(), **arguments)
    assert [record["step"] for record in callback.trace][:3] == [1, 2, 3]
    assert callback.trace[-1]["step"] == 6
    assert callback.trace == callback.trace, "the file has been read, and is not needed again"
    assert callback.save_trace(tmp_path / "lr.csv").exists()
    assert callback.facts.seconds["batches"] > 0
    assert len(callback.facts.remembered) == 1, "the run itself"
    assert "A run of Net" in callback.report(tmp_path / "lr.html").read_text()


def test_lightnings_messages_stay_with_the_logger_that_a_user_has_silenced():
    code = (
        "import lightning.pytorch; from lightning.fabric.utilities.rank_zero import "
        "rank_zero_module as messages; before = messages.log; "
        "from lightning_dqnlr import DQNLRCallback; assert messages.log is before"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
