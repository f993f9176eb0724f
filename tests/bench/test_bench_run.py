import json
import signal
from dataclasses import fields, replace
from functools import partial

import pytest
import torch
from lightning import LightningModule
from torch.optim import SGD, Adam

from lightning_dqnlr.bench.methods import METHODS
from lightning_dqnlr.bench.methods.feedback import Hypergradient
from lightning_dqnlr.bench.methods.packages import Prodigy, ScheduleFree, _decoupled
from lightning_dqnlr.bench.methods.policies import LearnedPolicy
from lightning_dqnlr.bench.methods.schedules import ScheduledLR, constant
from lightning_dqnlr.bench.runs.evaluation import PART, Evaluation
from lightning_dqnlr.bench.runs.record import Record, diverged
from lightning_dqnlr.bench.tasks.sequences import Lion
from lightning_dqnlr.bench.tasks.task import BenchModule, cross_entropy, squared_error
from lightning_dqnlr.envs.environment import Losses
from lightning_dqnlr.envs.trainer import TrainerEngine
from lightning_dqnlr.envs.trainer_data import task_loader
from lightning_dqnlr.errors import RecordError
from lightning_dqnlr.scoring import task_content as fingerprint
from lightning_dqnlr.scoring.cosine import cosine
from lightning_dqnlr.scoring.task_content import meaning, task_content
from lightning_dqnlr.tasks.families.basic import NoisyQuadratics
from lightning_dqnlr.tasks.task import Task
from lightning_dqnlr.tasks.user import ModuleBuilder
from tests.bench.watched_tasks import Failing, Spiked, noisy_net, plain_net, planned_run, run, task
from tests.envs.user_modules import OlderName, rows
from tests.host.control_runs import constant_policy, random_policy

CONSTANT, COSINE = ScheduledLR("constant", constant), ScheduledLR("cosine", cosine)


def small_tasks():
    return [NoisyQuadratics(min_horizon=20, max_horizon=20).sample(0)]


def cheap(method):
    """The method, with less to study where it studies its policy."""
    return replace(method, tasks=small_tasks) if hasattr(method, "tasks") else method


@pytest.fixture(scope="module")
def records():
    """One run of every method on one task and seed, with the module it trained."""
    found = {}
    for method in map(cheap, METHODS):
        job = task()
        found[method.name] = (run(method, job, 0.05, seed=4), job.build.trained)
    return found


def test_no_method_fails(records):
    assert {name: record.failure for name, (record, _) in records.items()} == dict.fromkeys(records)
    assert all(record.final_train is not None for record, _ in records.values())


def test_a_module_of_the_older_name_of_lightning_is_run_by_every_method():
    """Those that bring an optimizer of their own, and Lightning's finder, too."""
    for method in map(cheap, METHODS):
        job = Task.from_lightning(OlderName, rows(), horizon=8, name="older")
        assert run(method, job, 0.05).failure is None, method.name


def test_all_methods_share_initial_losses_and_the_first_batchs_loss(records):
    shared = {
        (record.initial_train, record.initial_validation, module.losses[0])
        for record, module in records.values()
    }
    assert len(shared) == 1


def test_all_methods_keep_the_same_books(records):
    by_name = {method.name: method for method in METHODS}
    for name, (record, module) in records.items():
        assert (record.method, record.split, record.lr, record.seed) == (name, "your own", 0.05, 4)
        assert (record.horizon, record.batch_size, record.parameters) == (20, 8, 65)
        assert record.curve["step"] == list(range(21))
        assert len(module.losses) >= 20
        assert record.curve["train"][0] == record.initial_train
        assert record.curve["validation"][-1] == record.final_validation
        assert record.seconds > 0
        assert (record.policy is not None) == isinstance(by_name[name], LearnedPolicy)


def test_records_survive_their_file(records):
    for record, _ in records.values():
        assert Record.from_json(record.to_json()) == record


@pytest.mark.parametrize("name", ["cosine", "hypergradient", "schedule-free", "dqnlr", "lr-finder"])
def test_the_same_seed_gives_the_same_record_to_the_bit(records, name):
    method = next(method for method in METHODS if method.name == name)
    torch.manual_seed(99)  # whatever else has drawn
    again = run(method, task(), 0.05, seed=4)
    assert replace(again, seconds=0.0) == replace(records[name][0], seconds=0.0)
    other = run(method, task(), 0.05, seed=5)
    assert other.initial_train != again.initial_train


@pytest.mark.parametrize(
    "method", [COSINE, ScheduleFree(), Hypergradient(), Prodigy(), LearnedPolicy()]
)
def test_evaluations_do_not_change_the_training(method):
    ends = []
    for evaluations in (2, 20):
        job = task(noisy_net)
        torch.manual_seed(1)
        record = run(method, job, 0.2, evaluations=evaluations)
        assert len(record.curve["step"]) == evaluations + 1
        ends.append((record, job.build.trained))
    (few, one), (many, two) = ends
    assert one.rates == two.rates
    for name, tensor in one.state_dict().items():
        assert torch.equal(tensor, two.state_dict()[name]), name
    tracked = int(one.net[1].num_batches_tracked)
    # A circuit breaker that undoes an interval takes its batches back, too.
    assert 0 < tracked <= 20 if isinstance(method, LearnedPolicy) else tracked == 20
    assert (few.final_train, few.final_validation) == (many.final_train, many.final_validation)


def test_the_curve_has_the_rates_of_the_steps_just_made():
    job = task(horizon=20)
    record = run(COSINE, job, 0.4, evaluations=5)
    assert record.curve["step"] == [0, 4, 8, 12, 16, 20]
    wanted = [0.4 * cosine(step, 20) for step in (0, 3, 7, 11, 15, 19)]
    assert record.curve["lr"] == pytest.approx(wanted)


def test_a_tuned_cosine_ends_where_the_engine_that_tunes_it_ends():
    job = task(noisy_net)
    record = run(COSINE, job, 0.2, seed=3)
    wanted: Losses = TrainerEngine().follow(
        job, [3], lambda step: torch.tensor([0.2], dtype=torch.float64) * cosine(step, 20)
    )
    assert (record.final_train, record.final_validation) == (
        wanted.train.item(),
        wanted.validation.item(),
    )


def test_a_diverging_run_is_a_record_with_nulls():
    record = run(CONSTANT, task(plain_net, horizon=400), 1e6)
    assert (record.final_train, record.final_validation, record.failure) == (None, None, None)
    assert diverged(record)
    assert record.initial_train > 0
    plain = json.loads(record.to_json(), parse_constant=pytest.fail)
    assert plain["final_train"] is None
    assert plain["curve"]["train"][-1] is None
    # Weights that are not finite stay so: the rest of the run is not made.
    assert record.curve["step"][-1] < 400


def test_only_a_policy_that_can_go_back_is_given_the_time_to(tmp_path):
    def spoiled(method):
        job = task(partial(Spiked, 195), horizon=220)
        return run(method, job, 0.01, evaluations=220)

    folder = str(constant_policy(3).save(tmp_path))
    saved, lost = spoiled(LearnedPolicy("mine", folder)), spoiled(CONSTANT)
    assert None not in saved.curve["train"], "it goes back before anybody looks"
    assert saved.curve["step"][-1] == 220
    assert not diverged(saved)
    assert lost.curve["step"][-1] == 196
    assert diverged(lost)


def test_a_run_that_raises_is_a_record_with_the_reason():
    job = task(partial(Failing, ValueError("no such word")))
    record = run(CONSTANT, job, 0.1)
    assert record.failure == "ValueError: no such word"
    assert (record.final_train, record.final_validation) == (None, None)
    assert record.curve["step"] == [0, 1, 2, 3]
    assert record.initial_train > 0
    assert diverged(record)


def test_a_module_without_a_single_optimizer_is_a_record_with_the_reason():
    job = task(plain_net, lambda parameters: [SGD([p], lr=0.1) for p in parameters])
    assert "exactly one optimizer" in run(CONSTANT, job, 0.1).failure


def test_an_interrupt_ends_everything_and_the_next_one_is_heard():
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            run(CONSTANT, task(partial(Failing, KeyboardInterrupt())), 0.1)
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)


def test_an_interrupt_that_lightning_cannot_clear_up_after_is_no_failed_run(monkeypatch):
    """It came before the first batch: Lightning then asks a loader not yet begun for its length."""

    def interrupted(loader):
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        monkeypatch.setattr(torch.utils.data.DataLoader, "__iter__", interrupted)
        with pytest.raises(KeyboardInterrupt) as caught:
            run(CONSTANT, task(plain_net), 0.1)
        assert isinstance(caught.value.__cause__, RuntimeError)
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)


def test_schedule_free_is_evaluated_at_its_average():
    import schedulefree

    job = task(plain_net)
    record = run(ScheduleFree(), job, 0.3, seed=1)
    module = job.build(1)
    optimizer = schedulefree.SGDScheduleFree(module.parameters(), lr=0.3, warmup_steps=1)
    optimizer.train()
    batches = [batch for _ in range(4) for batch in _epoch(job, 1, _)][:20]
    for inputs, targets in batches:
        optimizer.zero_grad()
        torch.nn.functional.mse_loss(module.net(inputs), targets).backward()
        optimizer.step()
    losses = []
    for mode in (optimizer.eval, optimizer.train):
        mode()
        with torch.no_grad():
            inputs, targets = job.train_data
            losses.append(torch.nn.functional.mse_loss(module.net(inputs), targets).item())
    average, iterate = losses
    assert record.final_train == pytest.approx(average, rel=1e-5)
    assert abs(average - iterate) > 1e-3 * average


def _epoch(job, seed, index):
    loader = job.__dict__.setdefault("_loader", task_loader(job, seed))
    return list(loader)


def test_batch_statistics_are_those_of_the_averaged_weights():
    job = task(noisy_net, horizon=10)
    record = run(ScheduleFree(), job, 1.0)
    module = job.build.trained
    optimizer = module.trained_with
    optimizer.eval()
    module.train()
    with torch.no_grad():  # until nothing of the old statistics is left
        for start in list(range(0, 48, 8)) * 20:
            module.net(job.train_data[0][start : start + 8])
        module.eval()
        inputs, targets = job.train_data
        wanted = torch.nn.functional.mse_loss(module.net(inputs), targets).item()
    assert record.final_train == pytest.approx(wanted, rel=0.02)


def test_before_the_first_step_all_methods_are_evaluated_with_the_same_statistics():
    starts = {
        run(m, task(noisy_net, horizon=2), 0.1).initial_train for m in (COSINE, ScheduleFree())
    }
    assert len(starts) == 1


def test_of_large_sets_a_fixed_random_part_is_evaluated():
    job = task(plain_net, examples=PART + 952)
    module = job.build(0)
    optimizer = module.configure_optimizers()
    first = Evaluation(job)(module, optimizer).train.item()
    assert Evaluation(job)(module, optimizer).train.item() == first
    with torch.no_grad():
        squares = (module.net(job.train_data[0]) - job.train_data[1]).square()
    assert first == pytest.approx(squares.mean().item(), rel=0.1)
    assert first != pytest.approx(squares[:PART].mean().item(), rel=1e-6)
    assert first != pytest.approx(squares.mean().item(), rel=1e-6)


def test_memory_beyond_a_plain_run_is_counted(records):
    weights = 65 * 4
    extra = {name: record.extra_bytes for name, (record, _) in records.items()}
    for name in ("constant", "cosine", "onecycle", "plateau", "greedy", "lr-finder"):
        assert extra[name] == 0
    assert extra["hypergradient"] == extra["schedule-free"] == weights
    # Two moments, the start and the weighted sum; of the eight biases that start at 0 a single 0.
    assert extra["prodigy"] == 4 * weights - 7 * 4
    assert extra["dqnlr"] > weights  # a copy to go back to, and the network


def test_schedule_free_needs_less_than_adam():
    # z and a second moment instead of two moments and a step counter per tensor.
    record = run(ScheduleFree(), task(plain_net, partial(Adam, lr=0.1)), 0.1)
    assert record.extra_bytes == -4 * 4


def run_key(*what):
    return planned_run(*what).key


def test_the_key_is_known_before_the_run():
    assert run_key(COSINE, task(), 0.1, 2) == run(COSINE, task(), 0.1, 2).key


def test_the_key_changes_with_what_the_result_depends_on(tmp_path):
    up = LearnedPolicy("mine", str(constant_policy(5).save(tmp_path / "up")))
    other = LearnedPolicy("mine", str(random_policy().save(tmp_path / "other")))
    moved = LearnedPolicy("mine", str(constant_policy(5).save(tmp_path / "moved")))
    more = task(examples=56)
    keys = [
        run_key(COSINE, task(), 0.1, 0),
        run_key(COSINE, task(), 0.2, 0),
        run_key(COSINE, task(), 0.1, 1),
        run_key(CONSTANT, task(), 0.1, 0),
        run_key(COSINE, more, 0.1, 0),
        run_key(COSINE, task(horizon=21), 0.1, 0),
        run_key(COSINE, task(optimizer=partial(SGD, lr=0.1, momentum=0.5)), 0.1, 0),
        run_key(COSINE, replace(task(), validation_data=more.validation_data), 0.1, 0),
        run_key(Hypergradient(beta=0.1), task(), 0.1, 0),
        run_key(Hypergradient(), task(), 0.1, 0),
        run_key(up, task(), 0.1, 0),
        run_key(other, task(), 0.1, 0),
    ]
    assert len(set(keys)) == len(keys)
    assert run_key(COSINE, task(), 0.1, 0) == keys[0]
    assert run_key(moved, task(), 0.1, 0) == run_key(up, task(), 0.1, 0)


class Smoothed(LightningModule):
    def __init__(self, smoothing: float) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(2, 2)
        self.loss = torch.nn.CrossEntropyLoss(label_smoothing=smoothing)

    def configure_optimizers(self) -> SGD:
        return SGD(self.parameters(), lr=0.1)


class Doubled(Smoothed):
    pass


def test_what_the_printed_form_of_a_module_leaves_out_changes_its_content(monkeypatch):
    """Settings of a loss, the class that it is of, and helpers in the user's file."""

    def content(kind: type[Smoothed], smoothing: float = 0.0) -> bytes:
        def build(seed: int) -> Smoothed:
            torch.manual_seed(seed)
            return kind(smoothing)

        return task_content(replace(task(), build=build))

    assert content(Smoothed) == content(Smoothed)
    assert len({content(Smoothed), content(Smoothed, 0.5), content(Doubled)}) == 3
    before = content(Smoothed)
    monkeypatch.setattr(fingerprint, "_module_source", lambda name: f"edited {name}")
    monkeypatch.setattr(fingerprint, "_kind_source", fingerprint._kind_source.__wrapped__)
    assert content(Smoothed) != before


def test_the_code_of_a_function_that_a_module_holds_belongs_to_its_content():
    def content(loss) -> bytes:
        build = partial(BenchModule, partial(torch.nn.Linear, 2, 2), loss, partial(SGD, lr=0.1))
        return task_content(replace(task(), build=ModuleBuilder(build, "linear")))

    assert content(cross_entropy) == content(cross_entropy)
    assert content(cross_entropy) != content(squared_error)


def test_rivals_take_over_that_lion_decouples_its_weight_decay():
    assert _decoupled(Lion([torch.nn.Parameter(torch.ones(1))]))
    assert not _decoupled(Adam([torch.nn.Parameter(torch.ones(1))]))


def test_code_without_its_words_is_the_same_code():
    one = '"""Doc."""\n\ndef f(x):\n    """More."""\n    return x  # why\n'
    two = "def f( x ):\n    return x\n"
    assert meaning(one) == meaning(two)
    assert meaning(two) != meaning(two.replace("return x", "return -x"))


RECORD = Record(
    "t", "", "sgd", "m", None, 0, 2, 1, 3, 1.0, 1.0, 0.5, None,
    {"step": [0], "train": [1.0], "validation": [None], "lr": [0.1]}, 1.0, 0, 1, None, "c", None,
)  # fmt: skip


def test_records_hold_only_strict_json():
    record = replace(RECORD, initial_train=float("nan"), curve={**RECORD.curve, "lr": [1e999]})
    text = record.to_json()
    assert "NaN" not in text
    assert "Infinity" not in text
    again = Record.from_json(text)
    assert again.initial_train != again.initial_train
    assert again.curve["lr"] == [None]


@pytest.mark.parametrize("damage", [
    lambda text: text[:-20],
    lambda text: "[]",
    lambda text: text.replace('"seed"', '"sead"'),
    lambda text: text.replace('"horizon": 2', '"horizon": "2"'),
    lambda text: text.replace('"tries": 1', '"tries": null'),
    lambda text: text.replace('"seed": 0', '"seed": true'),
    lambda text: text.replace('"lr": null', '"lr": "high"'),
    lambda text: text.replace('"step": [\n   0\n  ]', '"step": []'),
    lambda text: text.replace('"validation": [', '"held_out": ['),
])  # fmt: skip
def test_damaged_records_are_refused(damage):
    text = RECORD.to_json()
    assert damage(text) != text
    with pytest.raises(RecordError, match="delete the file"):
        Record.from_json(damage(text))


def test_a_records_key_holds_what_tells_runs_apart():
    assert RECORD.key == ("t", "m", None, 0, "c", None)
    changed = {"task": "u", "method": "n", "lr": 0.1, "seed": 1, "version": "w", "policy": "p"}
    assert all(replace(RECORD, **{k: v}).key != RECORD.key for k, v in changed.items())
    assert len(fields(Record)) == 20


def test_a_run_that_raised_counts_as_diverged_whatever_it_left():
    finished = replace(RECORD, final_validation=0.5)
    assert not diverged(finished)
    assert diverged(replace(finished, failure="ValueError: late"))
