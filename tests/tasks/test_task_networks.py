import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lightning_dqnlr.tasks.families.finetuning import FineTunedDigits
from lightning_dqnlr.tasks.networks.image_to_image import (
    ConvAutoencoderSpec,
    CoordinateSpec,
    DenoiserSpec,
    FourierFeatures,
    MLPAutoencoderSpec,
    Sine,
)
from lightning_dqnlr.tasks.networks.mlp_cnn import MLPSpec, image_norm, scale_weights
from lightning_dqnlr.tasks.networks.sequences import (
    BagSpec,
    CausalAttention,
    Factorization,
    GatedLayer,
    RecurrentSpec,
    TransformerSpec,
)


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


@pytest.mark.parametrize(("cell", "reference"), [("gru", nn.GRU), ("lstm", nn.LSTM)])
def test_gated_layer_equals_torchs_own_with_the_same_weights(cell, reference):
    ours, theirs = GatedLayer(3, 5, cell), reference(3, 5, batch_first=True)
    theirs.weight_ih_l0.data, theirs.bias_ih_l0.data = (
        p.data for p in ours.from_input.parameters()
    )
    theirs.weight_hh_l0.data, theirs.bias_hh_l0.data = (
        p.data for p in ours.from_hidden.parameters()
    )
    inputs = torch.randn(4, 7, 3)
    torch.testing.assert_close(ours(inputs), theirs(inputs)[0])
    assert max(p.abs().max() for p in ours.parameters()) <= 5**-0.5


@pytest.mark.parametrize("heads", [1, 2])
def test_attention_equals_torchs_own(heads):
    layer, inputs = CausalAttention(6, heads), torch.randn(2, 5, 6)
    query, key, value = layer.queries_keys_values(inputs).chunk(3, 2)
    split = [t.view(2, 5, heads, -1).transpose(1, 2) for t in (query, key, value)]
    mixed = F.scaled_dot_product_attention(*split, is_causal=True).transpose(1, 2).flatten(2)
    torch.testing.assert_close(layer(inputs), layer.out(mixed))


@pytest.mark.parametrize("norm_first", [True, False])
def test_transformer_never_sees_the_characters_it_has_to_predict(norm_first):
    net = TransformerSpec(20, 8, 12, depth=2, heads=2, norm_first=norm_first).build().eval()
    tokens = torch.randint(20, (3, 8))
    changed = tokens.clone()
    changed[:, 5] = (tokens[:, 5] + 1) % 20
    difference = (net(tokens) - net(changed)).abs().amax((0, 2))
    assert (difference[:5] < 1e-6).all()
    assert (difference[5:] > 1e-6).all()


def test_transformer_knows_the_order_of_what_it_saw():
    net = TransformerSpec(20, 4, 12).build().eval()
    there, back = net(torch.tensor([[1, 2, 3]])), net(torch.tensor([[2, 1, 3]]))
    assert not torch.allclose(there[0, 2], back[0, 2], atol=1e-4)


@pytest.mark.parametrize("tokens", [True, False])
def test_recurrent_network_reads_out_every_step_or_the_last(tokens):
    inputs = torch.randint(6, (3, 5)) if tokens else torch.randn(3, 5, 6)
    torch.manual_seed(1)
    every = RecurrentSpec(6, 2, 8, layers=2, tokens=tokens, every_step=True).build()
    torch.manual_seed(1)
    last = RecurrentSpec(6, 2, 8, layers=2, tokens=tokens).build()
    assert every(inputs).shape == (3, 5, 2)
    torch.testing.assert_close(last(inputs), every(inputs)[:, -1])


def test_factorization_is_a_product_and_two_biases():
    model = Factorization(2, 2, 2)
    model.rows.weight.data = torch.tensor([[1.0, 2.0], [9.0, 9.0]])
    model.columns.weight.data = torch.tensor([[9.0, 9.0], [3.0, 5.0]])
    model.row_bias.weight.data = torch.tensor([[0.25], [9.0]])
    model.column_bias.weight.data = torch.tensor([[9.0], [0.5]])
    # 1 * 3 + 2 * 5 + 0.25 + 0.5
    assert model(torch.tensor([[0, 1]])).tolist() == [[13.75]]


def test_bag_of_tokens_ignores_their_order_and_not_their_number():
    net = BagSpec(10, MLPSpec(4, 3, 8)).build()
    bag = net(torch.tensor([[1, 2, 2]]))
    torch.testing.assert_close(bag, net(torch.tensor([[2, 1, 2]])))
    assert not torch.allclose(bag, net(torch.tensor([[1, 1, 2]])))


def test_layer_norm_of_images_normalises_each_example_over_channels_and_positions():
    (layer,) = image_norm("layer", 3)
    images = torch.randn(4, 3, 5, 5) * 7.0 + 2.0
    torch.testing.assert_close(layer(images), F.layer_norm(images, (3, 5, 5)))


@pytest.mark.parametrize("norm", ["none", "batch", "layer"])
@pytest.mark.parametrize("channels", [1, 3])
def test_autoencoders_and_denoisers_give_images_of_the_size_they_get(channels, norm):
    images = torch.randn(5, channels, 8, 8)
    for spec in (
        MLPAutoencoderSpec((channels, 8, 8), 12, 3, norm=norm),
        ConvAutoencoderSpec(channels, (4, 8), 3, norm=norm),
        DenoiserSpec(channels, 6, norm=norm),
        DenoiserSpec(channels, 6, norm=norm, residual=True),
    ):
        assert spec.build()(images).shape == images.shape


@pytest.mark.parametrize("kind", ["linear", "convolutional"])
def test_everything_passes_through_the_code(kind):
    spec = (
        MLPAutoencoderSpec((1, 8, 8), 16, 2, activation="tanh")
        if kind == "linear"
        else ConvAutoencoderSpec(1, (4, 8), 2, activation="tanh")
    )
    outputs = spec.build().double()(torch.randn(40, 1, 8, 8).double())
    # Two numbers per image: the Jacobian with respect to the image has rank 2.
    jacobian = torch.func.jacrev(spec.build().double())(torch.randn(1, 1, 8, 8).double())
    assert outputs.shape == (40, 1, 8, 8)
    assert torch.linalg.matrix_rank(jacobian.view(64, 64), rtol=1e-9) == 2


def test_residual_denoiser_adds_to_its_input():
    torch.manual_seed(1)
    plain = DenoiserSpec(3, 6).build()
    torch.manual_seed(1)
    residual = DenoiserSpec(3, 6, residual=True).build()
    images = torch.randn(2, 3, 8, 8)
    torch.testing.assert_close(residual(images), images + plain(images))


def test_fourier_features_are_cosines_and_sines_in_periods():
    layer = FourierFeatures(1, 1.0)
    layer.directions.copy_(torch.tensor([[0.25], [0.0]]))
    # A quarter of a period per unit along the first coordinate.
    torch.testing.assert_close(layer(torch.tensor([[1.0, 5.0]])), torch.tensor([[0.0, 1.0]]))


def test_fourier_directions_have_the_stated_spread_and_are_not_trained():
    net = CoordinateSpec(8, 1, features=4000, frequency=3.0).build()
    assert net[0].directions.std() == pytest.approx(3.0, rel=0.05)
    assert "0.directions" not in dict(net.named_parameters())


def test_sine_network_feeds_every_sine_with_about_a_radian():
    net = CoordinateSpec(256, 4, features=0, frequency=30.0).build()
    values, spreads = 2.0 * torch.rand(500, 2) - 1.0, []
    for layer in net[:-1]:
        if isinstance(layer, Sine):
            spreads.append(30.0 * values.std().item())
        values = layer(values)
    # The first one sees many periods of the position; later weights give 1, and their biases 1.1.
    assert spreads[0] > 5.0
    assert spreads[1:] == pytest.approx([1.5] * 3, rel=0.3)


def test_every_kind_of_weight_is_scaled_and_nothing_else():
    layers = (nn.Linear(2, 2), nn.Conv2d(1, 2, 3), nn.ConvTranspose2d(1, 2, 3), nn.Embedding(3, 2))
    net = nn.Sequential(*layers, nn.Sequential(nn.Linear(2, 2)), nn.LayerNorm(2), nn.BatchNorm1d(2))
    before = {name: value.clone() for name, value in net.state_dict().items()}
    scale_weights(net, 3.0)
    scaled = {
        name for name, value in net.state_dict().items() if not torch.equal(value, before[name])
    }
    assert scaled == {"0.weight", "1.weight", "2.weight", "3.weight", "4.0.weight"}
    torch.testing.assert_close(net[1].weight.data, 3.0 * before["1.weight"])


def fine_tuned(seed):
    return FineTunedDigits(input_scales=(1.0, 1.0)).sample(seed)


@pytest.mark.parametrize("seed", range(3))
def test_replicas_share_the_pretrained_weights_and_differ_in_their_heads(seed):
    build = fine_tuned(seed).build
    first, second = build(0).net.state_dict(), build(1).net.state_dict()
    differing = {name for name in first if not torch.equal(first[name], second[name])}
    *names, weight, bias = first
    assert differing == {weight, bias}
    assert names


@pytest.mark.parametrize("seed", range(3))
def test_pretraining_taught_the_old_classes_and_the_task_holds_the_others(seed):
    task = fine_tuned(seed)
    build, (images, labels) = task.build, task.train_data
    inputs, old_labels = build.pretrain
    net = build.network.build().train()
    untaught = F.cross_entropy(net(inputs), old_labels)
    net.load_state_dict(build._pretrained)
    assert F.cross_entropy(net.eval()(inputs), old_labels) < 0.7 * untaught
    assert set(labels.tolist()) == set(old_labels.tolist()) == set(range(5))
    ours = set(map(tuple, images.flatten(1).tolist()))
    assert not ours & set(map(tuple, inputs.flatten(1).tolist()))


def test_pretraining_happens_once_per_task_and_equally_in_another_process_state():
    task = fine_tuned(0)
    task.build(0)
    remembered = task.build._pretrained
    task.build(1)
    assert task.build._pretrained is remembered
    torch.manual_seed(123)
    again = fine_tuned(0).build._pretrained
    assert all(torch.equal(remembered[name], again[name]) for name in again)


def test_training_does_not_reach_the_remembered_weights():
    task = fine_tuned(1)
    module = task.build(0)
    first = {name: value.clone() for name, value in module.net.state_dict().items()}
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.zero_()
    again = task.build(0).net.state_dict()
    assert all(torch.equal(first[name], again[name]) for name in first)
