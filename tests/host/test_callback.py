import csv
import logging
import pickle
import re
from itertools import pairwise

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger
from torch import nn
from torch.utils.data import DataLoader, IterableDataset

from lightning_dqnlr import DQNLRCallback
from lightning_dqnlr.errors import (
    CallOrderError,
    ConfigurationError,
    NonFiniteLossError,
    PolicyFileError,
    UnsupportedTrainingError,
)

from .control_runs import (
    Net,
    constant_policy,
    examples,
    loader,
    random_policy,
    trainer,
    trying_policy,
)

KEEP, RAISE, QUADRUPLE = 3, 4, 6


def fit(tmp_path, callback, module=None, data=None, **arguments):
    module = module or Net()
    run = trainer(callback, tmp_path, **arguments)
    run.fit(module, data if data is not None else loader())
    return module, run


class Endless(IterableDataset):
    def __iter__(self):
        while True:
            yield from zip(*examples(), strict=True)


def test_a_policy_is_used_as_it_was_trained_unless_told_otherwise(tmp_path):
    policy = random_policy()
    policy.record = {"start": "optimizer", "circuit_breaker": False}
    callback = DQNLRCallback(policy)
    fit(tmp_path, callback, Net(lr=0.25), max_steps=3)
    assert callback.trace[0]["lr"] == pytest.approx(0.25, rel=0.1)  # the decay has begun
    assert not callback.controller.circuit_breaker
    told = DQNLRCallback(policy, start="auto", circuit_breaker=True)
    fit(tmp_path, told, Net(lr=0.25), max_steps=3)
    assert told.trace[0]["lr"] < 0.01
    assert told.controller.circuit_breaker


def test_a_learning_rate_of_ten_is_replaced_by_a_safe_one_before_the_first_step(tmp_path):
    callback = DQNLRCallback(constant_policy(KEEP))
    module, _ = fit(tmp_path, callback, max_steps=3)
    assert 0 < module.rates[0][0] < 1e-2
    assert callback.trace[0]["lr"] == module.rates[0][0]


def test_the_optimizers_own_learning_rate_is_the_start_if_asked_for(tmp_path):
    callback = DQNLRCallback(constant_policy(KEEP), start="optimizer", horizon=10_000)
    module, _ = fit(tmp_path, callback, Net(lr=0.01), max_steps=3)
    assert module.rates[0][0] == pytest.approx(0.01, rel=1e-3)


def test_every_decision_acts_on_the_very_next_step_and_not_on_the_one_before(tmp_path):
    callback = DQNLRCallback(random_policy())
    module, _ = fit(tmp_path, callback, max_epochs=5)
    used = [rate for (rate,) in module.rates]
    for record in callback.trace[:-1]:
        assert used[record["step"] - 1] == record["lr"]
        assert used[record["step"]] == record["next_lr"]


def test_decisions_tile_the_whole_run(tmp_path):
    callback = DQNLRCallback(constant_policy(KEEP))
    fit(tmp_path, callback, max_epochs=10)
    steps = [record["step"] for record in callback.trace]
    assert steps[:3] == [1, 2, 3]
    assert steps[-1] == 120
    assert steps == sorted(set(steps))


@pytest.mark.parametrize(
    ("arguments", "horizon"),
    [
        ({"max_epochs": 4}, 48),
        ({"max_steps": 30}, 30),
        ({"max_epochs": 4, "accumulate_grad_batches": 5}, 12),
        ({"max_epochs": 4, "max_time": "00:01:00:00"}, 48),
        ({"max_epochs": 4, "more_callbacks": "accumulation"}, 12 + 12 + 4 + 4),
    ],
)
def test_the_horizon_is_read_from_the_trainer(tmp_path, arguments, horizon):
    if arguments.get("more_callbacks"):
        varying = pl.callbacks.GradientAccumulationScheduler({0: 1, 2: 3})
        arguments = {**arguments, "more_callbacks": [varying]}
    callback = DQNLRCallback(constant_policy(KEEP))
    fit(tmp_path, callback, **arguments)
    assert callback.state_dict()["driver"]["controller"]["horizon"] == horizon


def test_a_given_horizon_overrules_the_trainers(tmp_path):
    callback = DQNLRCallback(constant_policy(KEEP), horizon=1000)
    fit(tmp_path, callback, max_epochs=1)
    assert callback.state_dict()["driver"]["controller"]["horizon"] == 1000


class StopAfter(pl.Callback):
    def __init__(self, steps):
        self.steps = steps

    def on_train_batch_end(self, trainer, *_):
        trainer.should_stop = trainer.global_step >= self.steps


@pytest.mark.parametrize("data", [loader(), DataLoader(Endless(), batch_size=8)])
def test_a_run_without_a_known_end_is_controlled_and_has_no_decay(tmp_path, data):
    callback = DQNLRCallback(constant_policy(KEEP))
    module, _ = fit(
        tmp_path,
        callback,
        data=data,
        max_epochs=-1,
        max_steps=-1,
        more_callbacks=[StopAfter(40)],
    )
    assert callback.trace[-1]["step"] >= 35
    assert callback.state_dict()["driver"]["controller"]["horizon"] is None
    # From the second step on (the first update corrects the start) nothing moves the rate.
    assert len({rate for (rate,) in module.rates[1:]}) == 1


def test_an_accumulation_window_is_one_step_whose_loss_is_the_mean_of_its_batches(tmp_path):
    callback = DQNLRCallback(constant_policy(KEEP), circuit_breaker=False)
    module, run = fit(
        tmp_path, callback, data=loader(batch_size=12), max_epochs=3, accumulate_grad_batches=3
    )
    assert run.global_step == 9  # eight batches an epoch: windows of 3, 3 and 2
    windows = [
        module.losses[a:b] for e in (0, 8, 16) for a, b in pairwise((e, e + 3, e + 6, e + 8))
    ]
    recorded = [record["loss"] for record in callback.trace]
    assert [record["step"] for record in callback.trace][:4] == [1, 2, 3, 4]
    assert recorded[:4] == pytest.approx([sum(w) / len(w) for w in windows[:4]], rel=1e-5)
    assert callback.trace[-1]["step"] == 9


def test_gradients_are_seen_before_they_are_clipped(tmp_path):
    def gradient_norm(clip):
        callback = DQNLRCallback(constant_policy(KEEP), start="optimizer")
        fit(tmp_path, callback, Net(torch.optim.SGD, lr=1e-12), max_steps=2, gradient_clip_val=clip)
        return float(callback.state_dict()["driver"]["controller"]["history"]["log_gradient"])

    assert gradient_norm(1e-4) == pytest.approx(gradient_norm(None), rel=1e-6)


class TwoGroups(Net):
    def configure_optimizers(self):
        slow, fast = self.net[0].parameters(), self.net[3].parameters()
        rate = torch.tensor(3.0) if self.options else 3.0
        groups = [{"params": slow, "lr": rate / 10}, {"params": fast, "lr": rate}]
        return torch.optim.AdamW(groups)


@pytest.mark.parametrize("tensor_rates", [False, True])
def test_parameter_groups_keep_the_ratio_of_their_learning_rates(tmp_path, tensor_rates):
    callback = DQNLRCallback(random_policy())
    module = TwoGroups(tensors=True) if tensor_rates else TwoGroups()
    _, run = fit(tmp_path, callback, module, max_epochs=3)
    slow, fast = zip(*module.rates, strict=True)
    assert [s / f for s, f in module.rates] == pytest.approx([0.1] * len(slow), rel=1e-6)
    assert len(set(fast)) > 5
    assert fast[0] < 1e-2
    rates = [group["lr"] for group in run.optimizers[0].param_groups]
    assert all(isinstance(rate, torch.Tensor) == tensor_rates for rate in rates)


def test_learning_rates_stay_within_the_bounds_and_come_back_from_them_at_once(tmp_path):
    climb = DQNLRCallback(constant_policy(QUADRUPLE), max_lr=2e-3, min_lr=1e-3)
    module, _ = fit(tmp_path, climb, max_epochs=4)
    assert all(0.999e-3 <= rate <= 2.001e-3 for (rate,) in module.rates)
    assert "held at max_lr" in climb.trace[3]["reason"]
    scale = climb.state_dict()["driver"]["controller"]["history"]["log_scale"].exp()
    assert scale * 1e-3 < 2e-3 * 100  # not run on to 4 ** 40


def test_the_logged_learning_rate_is_the_one_used_by_the_step(tmp_path):
    logger = CSVLogger(tmp_path, name="", version="run")
    callback = DQNLRCallback(random_policy())
    module, _ = fit(tmp_path, callback, logger=logger, max_epochs=3, log_every_n_steps=2)
    with open(tmp_path / "run" / "metrics.csv") as file:
        rows = [row for row in csv.DictReader(file) if row["dqnlr/lr"]]
    logged = [int(row["step"]) for row in rows]
    decided = {record["step"] - 1 for record in callback.trace}
    assert sorted(logged) == sorted(decided | set(range(1, 36, 2))), "each once"
    used = [module.rates[step][0] for step in logged]
    assert [float(row["dqnlr/lr"]) for row in rows] == pytest.approx(used, rel=1e-5)


def test_nothing_is_logged_if_not_asked_for(tmp_path):
    logger = CSVLogger(tmp_path, name="", version="run")
    _, run = fit(
        tmp_path,
        DQNLRCallback(random_policy(), log=False),
        logger=logger,
        max_epochs=1,
        log_every_n_steps=1,
    )
    assert not [name for name in run.callback_metrics if name.startswith("dqnlr")]


class Monitored(Net):
    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        self.log("shifted", loss + 100.0)
        return loss


def test_a_monitored_metric_replaces_the_loss(tmp_path):
    callback = DQNLRCallback(constant_policy(KEEP), monitor="shifted")
    module, _ = fit(tmp_path, callback, Monitored(), max_steps=4)
    recorded = [record["loss"] for record in callback.trace]
    assert recorded == pytest.approx([loss + 100 for loss in module.losses], rel=1e-5)


class Gains(Net):
    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        self.log("gain", -loss)
        return loss


def test_a_metric_that_is_to_rise_is_followed_by_its_negative_value(tmp_path):
    callback = DQNLRCallback(constant_policy(KEEP), monitor="gain", mode="max")
    module, _ = fit(tmp_path, callback, Gains(), max_steps=4)
    recorded = [record["loss"] for record in callback.trace]
    assert recorded == pytest.approx(module.losses, rel=1e-5)


def test_a_monitor_that_is_not_logged_is_answered_with_the_names_there_are(tmp_path):
    with pytest.raises(ConfigurationError, match="needs monitor"):
        DQNLRCallback(constant_policy(KEEP), mode="max")
    with pytest.raises(ConfigurationError, match=r"monitor='shiftd'.*\['shifted'\]"):
        fit(tmp_path, DQNLRCallback(constant_policy(KEEP), monitor="shiftd"), Monitored())


class NoLoss(Net):
    def training_step(self, batch, batch_idx):
        return None if batch_idx % 3 == 1 else super().training_step(batch, batch_idx)


def test_batches_without_a_loss_do_not_count(tmp_path):
    callback = DQNLRCallback(constant_policy(KEEP), horizon=100)
    fit(tmp_path, callback, NoLoss(), max_epochs=1)
    telemetry = callback.state_dict()["driver"]["telemetry"]
    assert telemetry["counters"][1] == 8  # of twelve batches, four have no loss


class Fails(Net):
    def training_step(self, batch, batch_idx):
        if len(self.losses) == 5:
            raise RuntimeError("data loader died")
        return super().training_step(batch, batch_idx)


def test_no_hook_is_left_on_the_optimizer_after_an_end_or_a_crash(tmp_path):
    _, run = fit(tmp_path, DQNLRCallback(constant_policy(KEEP)), max_epochs=1)
    assert not run.optimizers[0]._optimizer_step_post_hooks
    run = trainer(DQNLRCallback(constant_policy(KEEP)), tmp_path, max_epochs=1)
    with pytest.raises(RuntimeError, match="data loader died"):
        run.fit(Fails(), loader())
    assert not run.optimizers[0]._optimizer_step_post_hooks


def test_fitting_twice_starts_anew_and_counts_the_steps_that_are_left(tmp_path):
    callback = DQNLRCallback(random_policy())
    module, run = fit(tmp_path, callback, max_epochs=2)
    first = callback.trace
    run.fit_loop.max_epochs = 5
    run.fit(module, loader())
    assert callback.state_dict()["driver"]["controller"]["horizon"] == 36
    assert callback.trace is not first
    assert callback.trace[-1]["step"] == 36


def test_the_learning_rate_tuner_does_not_disturb(tmp_path):
    callback = DQNLRCallback(constant_policy(KEEP))
    run = trainer(callback, tmp_path, max_epochs=2)
    module = Net(lr=1e-3)
    pl.tuner.Tuner(run).lr_find(module, loader(), num_training=10)
    assert callback.trace == []
    run.fit(module, loader())
    assert callback.trace[-1]["step"] == 24


def test_a_callback_that_has_been_used_pickles_small_and_keeps_its_trace(tmp_path):
    callback = DQNLRCallback(constant_policy(KEEP))
    fit(tmp_path, callback, max_epochs=1)
    untouched = len(pickle.dumps(DQNLRCallback(constant_policy(KEEP))))
    content = pickle.dumps(callback)
    assert len(content) < untouched + 20_000
    copy = pickle.loads(content)
    assert copy.trace == callback.trace
    assert not {"log", "log_dict"} & set(vars(copy)), "bound to the module, whole with its weights"


class Unfreezes(pl.callbacks.BaseFinetuning):
    def freeze_before_training(self, pl_module):
        self.freeze(pl_module.net[0])

    def finetune_function(self, pl_module, epoch, optimizer):
        if epoch == 1:
            self.unfreeze_and_add_param_group(pl_module.net[0], optimizer, initial_denom_lr=10.0)


class Thawing(Net):
    def configure_optimizers(self):
        return torch.optim.Adam([p for p in self.parameters() if p.requires_grad], lr=self.lr)


def test_a_group_that_is_unfrozen_later_follows_at_its_own_ratio(tmp_path):
    callback = DQNLRCallback(random_policy())
    module, _ = fit(tmp_path, callback, Thawing(), max_epochs=3, more_callbacks=[Unfreezes()])
    later = [rates for rates in module.rates if len(rates) == 2]
    assert len(later) == 24
    assert [b / a for a, b in later] == pytest.approx([0.1] * 24, rel=1e-5)


class NoOptimizer(Net):
    def configure_optimizers(self):
        return None


class AllZero(Net):
    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.0)


@pytest.mark.parametrize(
    ("module", "error", "words"),
    [
        (NoOptimizer(), UnsupportedTrainingError, "configure_optimizers gives no optimizer"),
        (Net(torch.optim.LBFGS), UnsupportedTrainingError, "LBFGS"),
        (Net(torch.optim.Rprop), UnsupportedTrainingError, "Rprop"),
        (AllZero(), ConfigurationError, r"learning rates \[0.0\]"),
    ],
)
@pytest.mark.filterwarnings("ignore:.*configure_optimizers.*returned.*None.*")
def test_training_that_cannot_be_controlled_is_refused_by_name(tmp_path, module, error, words):
    with pytest.raises(error, match=words):
        fit(tmp_path, DQNLRCallback(constant_policy(KEEP)), module, max_epochs=1)


def test_weight_averaging_is_refused_by_name(tmp_path):
    swa = pl.callbacks.StochasticWeightAveraging(swa_lrs=0.1)
    with pytest.raises(UnsupportedTrainingError, match="StochasticWeightAveraging"):
        fit(tmp_path, DQNLRCallback(constant_policy(KEEP)), max_epochs=3, more_callbacks=[swa])


@pytest.mark.parametrize(
    "arguments",
    [
        {"start": "warm"},
        {"horizon": 0},
        {"horizon": -5},
        {"horizon": 10.5},
        {"min_lr": 1.0, "max_lr": 0.1},
        {"min_lr": 0.0},
        {"max_lr": float("nan")},
        {"epsilon": 1.5},
    ],
)
def test_an_argument_out_of_range_is_named_before_training(arguments):
    with pytest.raises(ConfigurationError, match=next(iter(arguments))):
        DQNLRCallback(constant_policy(KEEP), **arguments)


def test_a_policy_that_is_missing_is_named_before_training(tmp_path):
    with pytest.raises(PolicyFileError, match="nowhere"):
        DQNLRCallback(tmp_path / "nowhere")


def test_a_policy_is_loaded_from_its_folder(tmp_path):
    policy = random_policy()
    runs = []
    for given in (policy, str(policy.save(tmp_path / "policy")), tmp_path / "policy"):
        module, _ = fit(tmp_path, DQNLRCallback(given), max_epochs=2)
        runs.append(module.rates)
    assert runs[0] == runs[1] == runs[2]


def test_exploration_is_reproducible_and_said_so(tmp_path):
    def run(seed):
        callback = DQNLRCallback(constant_policy(KEEP), epsilon=0.5, seed=seed)
        fit(tmp_path, callback, max_epochs=2)
        return callback.trace

    assert run(1) == run(1)
    assert [r["action"] for r in run(1)] != [r["action"] for r in run(2)]
    explored = [r for r in run(1) if r["action"] != KEEP]
    assert explored
    assert all(r["reason"].startswith("exploring") for r in explored)


class Poisoned(Net):
    """Its loss is multiplied by `factor` at the steps in `bad`."""

    def __init__(self, factor, bad, **options):
        super().__init__(**options)
        self.factor, self.bad = factor, bad

    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        return loss * self.factor if len(self.losses) in self.bad else loss


class StateAt(pl.Callback):
    """Copies weights, buffers and optimizer state; runs after the other callback."""

    def __init__(self):
        self.states = {}

    def on_train_batch_end(self, trainer, pl_module, *_):
        optimizer = trainer.optimizers[0].state_dict()["state"]
        flat = {f"{i}.{k}": v.clone() for i, s in optimizer.items() for k, v in s.items()}
        flat |= {k: v.clone() for k, v in pl_module.state_dict().items()}
        self.states[trainer.global_step] = flat


@pytest.mark.parametrize("factor", [float("nan"), float("inf"), 1e6])
@pytest.mark.parametrize("optimizer", [torch.optim.Adam, torch.optim.SGD])
def test_an_interval_that_blows_up_is_undone_to_the_last_bit(tmp_path, factor, optimizer, caplog):
    options = {"momentum": 0.9} if optimizer is torch.optim.SGD else {}
    states, callback = StateAt(), DQNLRCallback(constant_policy(KEEP))
    module = Poisoned(factor, range(30, 40), optimizer=optimizer, **options)
    with caplog.at_level(logging.WARNING, "lightning_dqnlr"):
        fit(tmp_path, callback, module, max_epochs=20, more_callbacks=[states])
    tripped = [record for record in callback.trace if record["tripped"]]
    assert tripped
    assert 30 <= tripped[0]["step"] <= 33
    # Not the state one decision before: of its weights no loss had been seen.
    before = callback.trace[callback.trace.index(tripped[0]) - 2]
    good, now = states.states[before["step"]], states.states[tripped[0]["step"]]
    assert good.keys() == now.keys()
    assert all(torch.equal(good[name], now[name]) for name in good)
    # A batch that turns the loss NaN at once, at a proven rate, says nothing about the rate.
    cut = 4 if factor == 1e6 else 1
    assert tripped[0]["next_lr"] == pytest.approx(tripped[0]["lr"] / cut)
    assert f"restored step {before['step']}" in tripped[0]["reason"]
    assert ("LR cut to a quarter" in tripped[0]["reason"]) == (factor == 1e6)
    warnings = [r for r in caplog.records if "restored" in r.getMessage()]
    assert len(warnings) == len(tripped)
    assert all(torch.isfinite(p).all() for p in module.parameters())


def test_a_suspicious_state_is_kept_in_training_but_never_gone_back_to(tmp_path):
    class Worsens(Net):
        def training_step(self, batch, batch_idx):
            loss = super().training_step(batch, batch_idx)
            step = len(self.losses)
            return loss * (float("nan") if step == 39 else 3.0 if step > 30 else 1.0)

    callback = DQNLRCallback(constant_policy(KEEP))
    fit(tmp_path, callback, Worsens(), max_epochs=20)
    tripped = next(record for record in callback.trace if record["tripped"])
    assert 39 <= tripped["step"] <= 40, "this is meant to trip on the NaN only"
    restored = int(tripped["reason"].split("restored step ")[1].split(",")[0])
    assert 24 <= restored <= 30


def test_one_poisoned_step_costs_one_interval_and_no_more(tmp_path):
    callback = DQNLRCallback(constant_policy(KEEP))
    fit(tmp_path, callback, Poisoned(float("nan"), [4]), max_epochs=10)
    assert [r["step"] for r in callback.trace if r["tripped"]] == [4]


def test_a_poisoned_first_gradient_is_undone_to_the_initial_weights(tmp_path):
    class BadGradient(Net):
        def training_step(self, batch, batch_idx):
            loss = super().training_step(batch, batch_idx)
            if len(self.losses) == 1:
                loss.register_hook(lambda gradient: gradient * float("nan"))
            return loss

    module = BadGradient()
    initial = {k: v.detach().clone() for k, v in module.named_parameters()}
    states, callback = StateAt(), DQNLRCallback(constant_policy(KEEP))
    fit(tmp_path, callback, module, max_steps=3, more_callbacks=[states])
    assert callback.trace[0]["tripped"]
    assert all(torch.equal(states.states[1][name], initial[name]) for name in initial)
    assert not any(key.endswith("exp_avg") for key in states.states[1])


def test_a_first_loss_that_is_not_finite_is_an_error_with_a_remedy(tmp_path):
    with pytest.raises(NonFiniteLossError, match=r"first step is nan.*inputs"):
        fit(tmp_path, DQNLRCallback(constant_policy(KEEP)), Poisoned(float("nan"), [1]))


def test_without_the_breaker_nothing_is_copied_or_restored_but_it_is_said_once(tmp_path, caplog):
    callback = DQNLRCallback(constant_policy(KEEP), circuit_breaker=False)
    with caplog.at_level(logging.WARNING, "lightning_dqnlr"):
        fit(tmp_path, callback, Poisoned(float("nan"), [20]), max_epochs=4)
    assert not any(record["tripped"] for record in callback.trace)
    assert callback.state_dict()["driver"]["snapshot"] is None
    assert [r.getMessage() for r in caplog.records] == [
        next(
            f"step {r['step']}: {r['reason']}"
            for r in callback.trace
            if "loss not finite, circuit breaker off" in r["reason"]
        )
    ]


def test_a_loss_that_never_recovers_warns_and_does_not_stop_the_run(tmp_path, caplog):
    with caplog.at_level(logging.WARNING, "lightning_dqnlr"):
        _, run = fit(
            tmp_path,
            DQNLRCallback(constant_policy(KEEP)),
            Poisoned(float("nan"), range(10, 1000)),
            max_epochs=20,
        )
    assert run.global_step == 240
    assert any("20 intervals in a row" in record.getMessage() for record in caplog.records)


def test_the_reasons_name_climb_and_limits(tmp_path):
    callback = DQNLRCallback(constant_policy(QUADRUPLE))
    fit(tmp_path, callback, max_epochs=10)
    reasons = [record["reason"] for record in callback.trace]
    assert reasons[0].startswith("climbing from the safe start: raise x4: Q +1 over keep")
    assert any("limited by the update cap" in reason for reason in reasons)


def test_trials_are_told_in_the_reasons_the_table_and_the_picture(tmp_path):
    callback = DQNLRCallback(trying_policy())
    fit(tmp_path, callback, max_epochs=12)
    shown = {record["trial"]: record["reason"] for record in callback.trace}
    assert shown["begun"] == "tries x2"
    assert shown["going on"].startswith("tries x2, interval ")
    assert re.fullmatch(r"x2 undone: loss (rises|falls.*)", shown["undone"])
    assert re.fullmatch(r"x2 kept: loss falls.*; tries x2 again", shown["kept, begun"])
    with open(callback.save_trace(tmp_path / "trace.csv")) as file:
        assert [row["trial"] for row in csv.DictReader(file)] == [
            record["trial"] for record in callback.trace
        ]
    picture = callback.plot(tmp_path / "curves.svg").read_text()
    assert ("#2f8f4e" in picture, "#9a9a9a" in picture) == (True, True)


def test_trace_files_are_written_whole(tmp_path):
    callback = DQNLRCallback(random_policy())
    for write in (callback.plot, callback.save_trace):
        with pytest.raises(CallOrderError, match="no trace yet"):
            write(tmp_path / "early.png")
    fit(tmp_path, callback, max_epochs=3)
    with open(callback.save_trace(tmp_path / "new" / "trace.csv")) as file:
        rows = list(csv.DictReader(file))
    assert [int(row["step"]) for row in rows] == [r["step"] for r in callback.trace]
    assert [float(row["lr"]) for row in rows] == [r["lr"] for r in callback.trace]
    assert callback.plot(tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert callback.plot(str(tmp_path / "curves.svg")).read_text().startswith("<?xml")
    with pytest.raises(ConfigurationError, match="xyz"):
        callback.plot(tmp_path / "curves.xyz")
    assert sorted(p.name for p in tmp_path.glob("*.*")) == ["curves.png", "curves.svg"]
    kinds = {type(value) for record in callback.trace for value in record.values()}
    assert kinds <= {int, float, bool, str, list}


def test_the_bundled_policy_needs_no_argument(tmp_path):
    module, _ = fit(tmp_path, DQNLRCallback(), max_epochs=20)

    def loss(net):
        inputs, labels = examples()
        return nn.functional.cross_entropy(net.eval()(inputs), labels).item()

    assert loss(module.net) < 0.5 * loss(Net().net)


class Lazy(Net):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.LazyLinear(4), nn.Tanh(), nn.LazyLinear(2))


def test_lazy_layers_get_their_shape_in_time(tmp_path):
    callback = DQNLRCallback(constant_policy(RAISE))
    fit(tmp_path, callback, Lazy(), max_epochs=2)
    assert callback.trace[-1]["step"] == 24
