"""Real Trainers of transformers, with a tiny model of random weights."""

import importlib
import logging
import sys

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from lightning_dqnlr import DQNLRScheduler
from lightning_dqnlr.errors import MissingPackageError, UnsupportedTrainingError

from .control_runs import constant_policy, random_policy

transformers = pytest.importorskip("transformers")
pytest.importorskip("accelerate")

from lightning_dqnlr import DQNLRTrainerCallback  # noqa: E402

from .other_homes import Model, logged, make  # noqa: E402

KEEP = 3


def test_it_decides_as_a_plain_loop_over_whole_windows_and_unclipped_gradients(tmp_path):
    callback = DQNLRTrainerCallback(random_policy())
    settings = {"gradient_accumulation_steps": 2, "max_grad_norm": 0.05, "max_steps": 40}
    trainer = make(tmp_path, callback, **settings, weight_decay=0.0)
    switch_dropout_off(trainer.model)
    trainer.train()
    model = switch_dropout_off(Model())
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-5, weight_decay=0.0)
    scheduler = DQNLRScheduler(optimizer, random_policy(), horizon=40, module=model)
    for first, second in zip(*[iter(trainer.model.batches)] * 2, strict=True):
        items = first.numel() + second.numel()  # the Trainer counts the first tokens too
        losses = [model(b, labels=b, num_items_in_batch=items).loss for b in (first, second)]
        sum(losses).backward()
        scheduler.look()
        nn.utils.clip_grad_norm_(model.parameters(), 0.05)
        optimizer.step()
        scheduler.step(sum(losses))
        optimizer.zero_grad()
    assert len(callback.trace) == len(scheduler.trace) > 10
    for ours, theirs in zip(callback.trace, scheduler.trace, strict=True):
        assert ours["action"] == theirs["action"]
        assert ours["lr"] == pytest.approx(theirs["lr"], rel=1e-4)
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-4)


def switch_dropout_off(model):
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return model


def test_a_resumed_run_in_bf16_with_accumulation_ends_with_the_same_bits(tmp_path):
    settings = {"bf16": True, "gradient_accumulation_steps": 2, "max_steps": 30}
    settings |= {"save_strategy": "steps", "save_steps": 13, "lr_scheduler_type": "cosine"}
    whole = make(tmp_path, DQNLRTrainerCallback(random_policy(), epsilon=0.3), **settings)
    whole.train()
    resumed = make(tmp_path, DQNLRTrainerCallback(random_policy(), epsilon=0.3), **settings)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-13"))
    assert len(resumed.model.batches) == 2 * 17
    assert logged(resumed, "learning_rate") == logged(whole, "learning_rate")
    assert len(set(logged(whole, "learning_rate")[13:])) > 3
    for ours, theirs in zip(resumed.model.parameters(), whole.model.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_what_the_trainer_logs_is_the_rate_used_and_the_loss_that_is_followed(tmp_path):
    callback = DQNLRTrainerCallback(constant_policy(KEEP + 1))
    trainer = make(tmp_path, callback, max_steps=12, gradient_accumulation_steps=3)
    trainer.train()
    rates, losses = logged(trainer, "learning_rate"), logged(trainer, "loss")
    begun = 0
    for record in callback.trace:
        assert rates[begun : record["step"]] == [record["lr"]] * (record["step"] - begun)
        mean = sum(losses[begun : record["step"]]) / (record["step"] - begun)
        assert record["loss"] == pytest.approx(mean, rel=1e-3)
        begun = record["step"]
    assert begun > 8


def test_a_given_scheduler_is_replaced_and_named_and_groups_keep_their_ratio(tmp_path, caplog):
    model = Model()
    head, body = [model.lm_head.weight], list(model.transformer.h.parameters())
    optimizer = torch.optim.SGD([{"params": body, "lr": 1e-3}, {"params": head, "lr": 1e-2}])
    warm_up = transformers.get_linear_schedule_with_warmup(optimizer, 10, 20)
    assert optimizer.param_groups[1]["lr"] == 0
    callback = DQNLRTrainerCallback(random_policy())
    with caplog.at_level(logging.WARNING, "lightning_dqnlr"):
        trainer = make(tmp_path, callback, model, (optimizer, warm_up), max_steps=20)
        trainer.train()
    assert caplog.text.count("in place of LambdaLR") == 1
    first, second = (group["lr"] for group in optimizer.param_groups)
    assert first == pytest.approx(second / 10)
    assert second == callback.trace[-1]["next_lr"] > 0


def test_a_scheduler_that_the_arguments_name_is_said_in_one_line_and_a_second_run_begins_anew(
    tmp_path, caplog
):
    callback = DQNLRTrainerCallback(random_policy())
    trainer = make(tmp_path, callback, max_steps=10, lr_scheduler_type="linear", warmup_steps=5)
    with caplog.at_level(logging.WARNING, "lightning_dqnlr"):
        trainer.train()
    said = [r.getMessage() for r in caplog.records if r.name == "lightning_dqnlr"]
    assert said == ["DQNLRTrainerCallback sets the learning rate in place of "
                    "lr_scheduler_type='linear'."]  # fmt: skip
    first = callback.scheduler
    trainer.train()
    assert callback.scheduler is not first
    assert callback.scheduler.base_lrs == first.base_lrs == [5e-5, 5e-5]
    assert not callback.scheduler.optimizer._optimizer_step_post_hooks


def test_a_loss_that_the_trainer_makes_itself_is_followed_too(tmp_path):
    def doubled(outputs, labels, num_items_in_batch=None):
        return 2 * nn.functional.cross_entropy(outputs.logits.flatten(0, 1), labels.flatten())

    callback = DQNLRTrainerCallback(constant_policy(KEEP))
    trainer = make(tmp_path, callback, max_steps=3)
    trainer.compute_loss_func = doubled
    trainer.train()
    assert callback.trace[0]["loss"] == pytest.approx(logged(trainer, "loss")[0], rel=1e-3)
    assert callback.trace[0]["loss"] > 5  # log(16) is 2.77


def test_a_ruined_model_is_restored_before_it_is_saved(tmp_path):
    model = Model()
    model.spoilt = (24,)  # whose loss is finite, so that only the weights tell
    callback = DQNLRTrainerCallback(constant_policy(KEEP), horizon=4000)  # of longer intervals
    settings = {"save_strategy": "steps", "save_steps": 25, "eval_strategy": "steps"}
    trainer = make(tmp_path, callback, model, max_steps=40, eval_steps=25, **settings)
    trainer.train()
    assert [record["step"] for record in callback.trace if record["tripped"]] == [25]
    saved = load_file(tmp_path / "checkpoint-25" / "model.safetensors")
    assert all(tensor.isfinite().all() for tensor in saved.values())
    assert all(loss == loss for loss in logged(trainer, "eval_loss"))
    assert all(parameter.isfinite().all() for parameter in model.parameters())


@pytest.mark.parametrize("optim", ["adamw_torch", "adamw_torch_fused"])
def test_steps_that_a_gradient_scaler_skips_do_not_count_and_scaled_gradients_are_unscaled(
    tmp_path, optim
):
    rates = []
    for scale in (None, 1024.0):
        callback = DQNLRTrainerCallback(random_policy(), horizon=30)
        trainer = make(tmp_path, callback, max_steps=14, max_grad_norm=0.0, optim=optim)
        switch_dropout_off(trainer.model)
        if scale:
            trainer.accelerator.scaler = torch.amp.GradScaler("cpu", scale, growth_interval=99)
            trainer.model.poison = {6: float("inf")}
        trainer.train()
        steps = 13 if scale else 14
        assert callback.scheduler.last_epoch == steps
        losses = [record["loss"] for record in callback.trace]
        assert len(set(losses)) == len(losses) == steps  # none stands in for one that is not finite
        rates.append([record["lr"] for record in callback.trace][:3])
    assert rates[1] == pytest.approx(rates[0], rel=1e-4)


def test_a_trainer_that_was_made_before_is_refused_before_its_first_step(tmp_path):
    trainer = make(tmp_path, transformers.TrainerCallback(), max_steps=4)
    trainer.add_callback(DQNLRTrainerCallback(random_policy()))
    with pytest.raises(UnsupportedTrainingError, match=r"callbacks=\[DQNLRTrainerCallback"):
        trainer.train()
    assert trainer.model.batches == []


def test_without_the_extra_the_error_names_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    monkeypatch.delitem(sys.modules, "lightning_dqnlr.host.hf_trainer")
    with pytest.raises(MissingPackageError, match=r"lightning-dqnlr\[hf\]"):
        importlib.import_module("lightning_dqnlr.host.hf_trainer")
