from collections import Counter

import pytest
import torch
from lightning import Trainer
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_dqnlr.errors import ConfigurationError
from lightning_dqnlr.tasks import (
    DigitsCNNs,
    DigitsMLPs,
    Mixture,
    NoisyQuadratics,
    SplitTasks,
    TableMLPs,
    TeacherMLPs,
    TextTransformers,
)
from lightning_dqnlr.tasks.families.random_tasks import affordable_width
from lightning_dqnlr.tasks.networks.mlp_cnn import bounded_scale
from tests.tasks.every_family import FAMILIES, ORDINARY, TOKENS, every_family, parametrized

SPLITS = ("train", "validation", "test")

every_seed = pytest.mark.parametrize("seed", range(2))


def describe(task):
    weights = list(task.build(0).state_dict().values())
    plain = (task.name, task.batch_size, task.optimizer, task.horizon)
    return plain, task.known_horizon, task.gradient_clip, weights, task.train_data


def same(first, second):
    if isinstance(first, torch.Tensor):
        return torch.equal(first, second)
    if isinstance(first, tuple | list):
        return len(first) == len(second) and all(map(same, first, second))
    return first == second


@every_family
@every_seed
def test_the_same_seed_gives_the_same_task_and_another_seed_another(family, seed):
    task = family().sample(seed)
    assert same(describe(task), describe(family().sample(seed)))
    other = describe(family().sample(seed + 1000))
    assert not same(describe(task)[0][1:], other[0][1:])
    assert not same(describe(task)[3], other[3])


def test_every_family_has_a_stream_of_its_own():
    assert len({family.name for family in FAMILIES}) == len(FAMILIES)


@every_family
def test_no_task_of_one_split_is_drawn_again_in_another(family):
    # Clipping and weight decay are drawn from a continuum, so equal draws mean an equal stream.
    def drawn(task):
        spec = task.build.optimizer
        return spec, task.batch_size, task.horizon, task.known_horizon, task.gradient_clip

    tasks = {split: [family().sample(seed, split) for seed in range(6)] for split in SPLITS}
    fingerprints = [{drawn(task) for task in tasks[split]} for split in SPLITS]
    assert sum(map(len, fingerprints)) == len(set().union(*fingerprints)) == 18
    names = [{task.name for task in tasks[split]} for split in SPLITS]
    assert len(set().union(*names)) == 18


@every_family
@every_seed
def test_build_is_decided_by_its_seed_and_leaves_the_global_generator_alone(family, seed):
    torch.manual_seed(seed)
    before = torch.get_rng_state()
    task = family().sample(seed)
    first = list(task.build(1).parameters())
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(999)
    assert same(first, list(task.build(1).parameters()))
    assert not same(first, list(task.build(2).parameters()))


@every_family
@pytest.mark.parametrize("seed", range(8))
def test_loss_and_gradients_are_finite_at_the_initial_weights(family, seed):
    task = family().sample(seed)
    module = task.build(0).train()
    loss = module.training_step(tuple(t[: task.batch_size] for t in task.train_data), 0)
    loss.backward()
    assert torch.isfinite(loss)
    # Adam squares the gradient, so its square must be finite as well.
    assert all(torch.isfinite(p.grad.square()).all() for p in module.parameters())
    assert torch.isfinite(module.eval().validation_step(task.validation_data, 0))


@every_family
@every_seed
def test_thirty_steps_of_adam_lower_the_loss_at_ordinary_scales(family, seed):
    task = family(**ORDINARY).sample(seed)
    torch.manual_seed(0)
    module = task.build(0).train()
    optimizer = torch.optim.Adam(module.parameters(), lr=1e-2)
    before = module.training_step(task.train_data, 0).item()
    for _ in range(30):
        chosen = torch.randint(len(task.train_data[0]), (task.batch_size,))
        loss = module.training_step(tuple(t[chosen] for t in task.train_data), 0)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert module.training_step(task.train_data, 0).item() < before


@every_family
@pytest.mark.parametrize("seed", range(2))
@pytest.mark.filterwarnings("error:You are trying to `self.log")
def test_a_real_trainer_fits_every_module(family, seed, tmp_path):
    task = family(**ORDINARY).sample(seed)
    module = task.build(0)
    before = [parameter.detach().clone() for parameter in module.parameters()]
    trainer = Trainer(
        accelerator="cpu",
        max_steps=3,
        val_check_interval=1,
        limit_val_batches=2,
        default_root_dir=tmp_path,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        gradient_clip_val=task.gradient_clip,
    )
    loaders = (
        DataLoader(TensorDataset(*data), batch_size=task.batch_size)
        for data in (task.train_data, task.validation_data)
    )
    trainer.fit(module, *loaders)
    assert trainer.global_step == 3
    assert torch.isfinite(trainer.callback_metrics["train_loss"])
    assert torch.isfinite(trainer.callback_metrics["val_loss"])
    assert not same(before, list(module.parameters()))


@every_family
def test_fields_narrow_the_distribution(family):
    narrow = family(optimizers=["adam", "rmsprop"], min_horizon=20, max_horizon=30, batch_sizes=[4])
    tasks = [narrow.sample(seed) for seed in range(12)]
    assert {task.optimizer for task in tasks} == {"adam", "rmsprop"}
    assert {task.batch_size for task in tasks} == {4}
    assert min(task.horizon for task in tasks) >= 20
    assert max(task.horizon for task in tasks) <= 30


@parametrized([family for family in FAMILIES if family not in TOKENS])
def test_input_scale_reaches_training_and_validation_inputs_and_no_target(family):
    plain = family(**ORDINARY).sample(0)
    scaled = family(**{**ORDINARY, "input_scales": (8.0, 8.0)}).sample(0)
    torch.testing.assert_close(scaled.train_data[0], 8.0 * plain.train_data[0])
    torch.testing.assert_close(scaled.validation_data[0], 8.0 * plain.validation_data[0])
    assert same(scaled.train_data[1:], plain.train_data[1:])


@every_family
@pytest.mark.parametrize("field", ["initial_scales", "wide_initial_scales"])
def test_initial_scale_reaches_the_first_weights(family, field):
    wide = {"wide_probability": float(field == "wide_initial_scales")}
    plain = family(**{**ORDINARY, **wide, field: (1.0, 1.0)}).sample(0).build(0)
    scaled = family(**{**ORDINARY, **wide, field: (4.0, 4.0)}).sample(0).build(0)
    pairs = list(zip(scaled.parameters(), plain.parameters(), strict=True))
    changed = [(ours, theirs) for ours, theirs in pairs if not torch.equal(ours, theirs)]
    assert changed
    for ours, theirs in changed:
        torch.testing.assert_close(ours, 4.0 * theirs)


@parametrized(FAMILIES[4:])
def test_later_families_run_to_4000_steps_and_know_rmsprop(family):
    assert family().max_horizon == 4000
    assert "rmsprop" in family().optimizers


# Drawn by the code that the bundled policy was trained and measured with.
GOLDEN = (
    (NoisyQuadratics, "train", 7, "adamw", 32, 623, True, 188501.9, 68.26),
    (NoisyQuadratics, "validation", 3, "adamw", 8, 586, True, 26945.9, 214.54),
    (NoisyQuadratics, "test", 11, "adamw", 16, 313, True, 232179.9, 401.035),
    (DigitsMLPs, "train", 7, "adam", 32, 170, True, 94082.6, 820.459),
    (DigitsMLPs, "validation", 3, "adam", 32, 190, False, 21521.5, 384.512),
    (DigitsMLPs, "test", 11, "sgd", 64, 1489, True, 54358.0, 114.262),
    (TeacherMLPs, "train", 7, "adam", 16, 851, True, 56218.2, 2990.052),
    (TeacherMLPs, "validation", 3, "sgd", 16, 355, True, 7826.3, 58.528),
    (TeacherMLPs, "test", 11, "momentum", 8, 266, True, 1303.6, 1599.378),
    (DigitsCNNs, "train", 7, "adam", 32, 320, True, 9298.0, 312.584),
    (DigitsCNNs, "validation", 3, "nesterov", 8, 777, False, 153261.7, 42.354),
    (DigitsCNNs, "test", 11, "sgd", 8, 212, True, 16695.7, 44.877),
)


@pytest.mark.parametrize("golden", GOLDEN, ids=lambda golden: "-".join(map(str, golden[:3])))
def test_tasks_behind_the_published_figures_are_what_they_were(golden):
    family, split, seed, *fields, data, weights = golden
    task = family().sample(seed, split)
    assert [task.optimizer, task.batch_size, task.horizon, task.known_horizon] == fields
    total = sum(t.double().abs().sum().item() for t in task.train_data)
    assert total == pytest.approx(data, rel=1e-4)
    first = sum(p.double().abs().sum().item() for p in task.build(1).parameters())
    assert first == pytest.approx(weights, rel=1e-4)


def test_a_table_smaller_than_the_batch_is_taken_whole():
    tasks = [TableMLPs(batch_sizes=(256,)).sample(seed) for seed in range(10)]
    assert all(task.batch_size == min(256, len(task.train_data[0])) for task in tasks)
    assert min(task.batch_size for task in tasks) == 120  # iris


def test_default_distribution_covers_what_it_promises():
    tasks = [NoisyQuadratics().sample(seed) for seed in range(600)]
    share = Counter(task.optimizer for task in tasks)
    assert set(share) == {"sgd", "momentum", "nesterov", "adam", "adamw"}
    assert share["nesterov"] < min(share[name] for name in set(share) - {"nesterov"}) / 2
    assert {task.batch_size for task in tasks} == {8, 16, 32, 64}
    assert 0.8 < sum(task.known_horizon for task in tasks) / 600 < 0.9
    assert 0.75 < sum(task.gradient_clip is None for task in tasks) / 600 < 0.85
    assert 0.43 < sum(task.build.optimizer.weight_decay == 0.0 for task in tasks) / 600 < 0.57
    assert all(100 <= task.horizon <= 2000 for task in tasks)
    # Log-uniform on 100..2000 has its median at 447; uniform would have it at 1050.
    assert 350 < sorted(task.horizon for task in tasks)[300] < 560


def test_curvature_and_noise_of_the_quadratics_span_their_ranges():
    modules = [NoisyQuadratics().sample(seed).build(0) for seed in range(100)]
    conditions = [(m.curvature.max() / m.curvature.min()).item() for m in modules]
    assert min(conditions) < 10.0
    assert 1e3 < max(conditions) <= 1.001e4
    assert {m.rotation is None for m in modules} == {True, False}


@parametrized(FAMILIES[1:])
def test_networks_stay_small(family):
    networks = [family().sample(seed).build.network.build() for seed in range(20)]
    sizes = [sum(p.numel() for p in net.parameters()) for net in networks]
    assert min(sizes) >= 500
    assert max(sizes) <= (50_000 if family is TextTransformers else 32_000)


@pytest.mark.parametrize("family", [DigitsMLPs, TeacherMLPs, DigitsCNNs])
def test_networks_use_every_option(family):
    modules = [family().sample(seed).build(0) for seed in range(60)]
    kinds = {type(layer) for m in modules for layer in m.net}
    assert {nn.ReLU, nn.Tanh, nn.GELU, nn.SiLU, nn.LeakyReLU, nn.Dropout} <= kinds
    assert kinds & {nn.BatchNorm1d, nn.BatchNorm2d}
    assert kinds & {nn.LayerNorm, nn.GroupNorm}


def test_teacher_tasks_hold_both_regression_and_classification():
    losses = {TeacherMLPs().sample(seed).build(0).loss_kind for seed in range(20)}
    assert losses == {"mse", "cross_entropy"}


def test_label_noise_touches_some_digit_tasks_and_never_the_validation_labels():
    clean = DigitsCNNs().sample(0)
    tasks = [DigitsMLPs().sample(seed) for seed in range(30)]
    changed = [(t.train_data[1] != clean.train_data[1]).float().mean().item() for t in tasks]
    assert 5 <= sum(share > 0 for share in changed) <= 25
    assert max(changed) < 0.22
    assert all(torch.equal(t.validation_data[1], clean.validation_data[1]) for t in tasks)


def test_width_is_moved_only_as_far_as_the_weight_budget_asks():
    assert affordable_width(32, 64, 10, 2) == 32
    # 22 * (10 + 12 + 0) = 484 < 500 <= 23 * 22 = 506
    assert affordable_width(8, 10, 12, 1) == 23
    # Depth 4, 74 inputs and outputs: 89 * (74 + 3 * 89) = 30,349 > 30,000 >= 88 * 338 = 29,744
    assert affordable_width(96, 64, 10, 4) == 88


def test_scale_per_layer_keeps_the_whole_network_within_four_decades():
    assert bounded_scale(3.0, 2) == 3.0
    assert bounded_scale(1000.0, 2) == pytest.approx(100.0)
    assert bounded_scale(0.001, 4) == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"optimizers": ()}, "optimizers and batch_sizes must each hold"),
        ({"batch_sizes": ()}, "optimizers and batch_sizes must each hold"),
        ({"optimizers": ("sgd", "lion")}, "optimizers='lion' must be one of 'sgd', "),
        ({"batch_sizes": (8, 512)}, "batch_sizes=512 must be an integer from 2 to 256"),
        ({"min_horizon": 0}, "min_horizon and max_horizon"),
        ({"min_horizon": 200, "max_horizon": 100}, "min_horizon and max_horizon"),
        ({"initial_scales": (0.0, 1.0)}, r"initial_scales=0.0 must be a number in \(0, inf\)"),
        ({"input_scales": (1.0,)}, "input_scales must be"),
        ({"wide_probability": 1.5}, r"wide_probability=1.5 must be a number in \[0, 1\]"),
    ],
)
@every_family
def test_impossible_fields_are_refused_by_name(family, fields, message):
    with pytest.raises(ConfigurationError, match=message):
        family(**fields)


def test_mixture_draws_its_families_by_weight_and_returns_their_own_tasks():
    mixture = Mixture((NoisyQuadratics(), TeacherMLPs(), DigitsMLPs()), weights=(3.0, 1.0, 0.0))
    tasks = [mixture.sample(seed) for seed in range(200)]
    drawn = Counter(task.family for task in tasks)
    assert set(drawn) == {"noisy_quadratics", "teacher_mlps"}
    assert 125 < drawn["noisy_quadratics"] < 175
    member = {"noisy_quadratics": NoisyQuadratics(), "teacher_mlps": TeacherMLPs()}
    for task in tasks[:5]:
        assert same(describe(task), describe(member[task.family].sample(task.seed)))


def test_mixture_chooses_anew_in_each_split():
    mixture = Mixture([NoisyQuadratics(), TeacherMLPs()])
    chosen = {
        split: [mixture.sample(seed, split).family for seed in range(30)]
        for split in ("train", "validation", "test")
    }
    assert chosen["train"] != chosen["validation"]
    assert chosen["train"] != chosen["test"]
    assert chosen["validation"] != chosen["test"]


@pytest.mark.parametrize(
    ("families", "weights"),
    [
        ([], None),
        ([NoisyQuadratics()], [1.0, 2.0]),
        ([NoisyQuadratics()], [0.0]),
        ([NoisyQuadratics()], [-1.0]),
        ([NoisyQuadratics()], [float("inf")]),
    ],
)
def test_mixture_refuses_weights_that_do_not_fit(families, weights):
    with pytest.raises(
        ConfigurationError,
        match=r"families must|weights must|weights=-1.0 |weights=inf |sum\(weights\)=0.0 ",
    ):
        Mixture(families, weights)


def test_mixture_of_mixtures_is_refused_because_both_would_draw_the_same_number():
    with pytest.raises(ConfigurationError, match="families must not hold another Mixture"):
        Mixture([TeacherMLPs(), Mixture([NoisyQuadratics(), DigitsMLPs()])])


def test_mixture_holds_all_families_in_one_variant_before_the_next():
    named = {"a": NoisyQuadratics(max_horizon=300), "b": TeacherMLPs(batch_sizes=[8])}
    mixture = Mixture(named, [1, 0, 0, 2], [{"min_horizon": 100}, {"min_horizon": 200}])
    drawn = [(type(f), f.min_horizon, f.max_horizon, f.batch_sizes) for f in mixture.families]
    assert drawn == [
        (NoisyQuadratics, 100, 300, (8, 16, 32, 64)),
        (TeacherMLPs, 100, 2000, [8]),
        (NoisyQuadratics, 200, 300, (8, 16, 32, 64)),
        (TeacherMLPs, 200, 2000, [8]),
    ]
    assert {mixture.sample(seed).family for seed in range(20)} == {
        "noisy_quadratics",
        "teacher_mlps",
    }


def test_a_variant_with_a_field_that_no_family_has_is_refused():
    with pytest.raises(ConfigurationError, match=r"variants: NoisyQuadratics lacks .*'horizon'"):
        Mixture([NoisyQuadratics()], variants=[{"horizon": 5}])


def test_split_tasks_keep_training_and_held_out_distributions_apart():
    short = NoisyQuadratics(min_horizon=50, max_horizon=60)
    long = NoisyQuadratics(min_horizon=500, max_horizon=600)
    tasks = SplitTasks(short, long)
    assert tasks.sample(3, "train").horizon <= 60
    assert tasks.sample(3, "validation").horizon >= 500
    assert tasks.sample(3, "test").name == long.sample(3, "test").name
