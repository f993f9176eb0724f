import warnings

import pytest
import torch
from lightning import Trainer
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_dqnlr.tasks.modules import QuadraticModule, SupervisedBuilder, SupervisedModule
from lightning_dqnlr.tasks.networks.mlp_cnn import CNNSpec, MLPSpec
from lightning_dqnlr.tasks.optimizers import OptimizerSpec

SGD = OptimizerSpec("sgd")


def quadratic(rotation=None):
    return QuadraticModule(torch.tensor([1.0, 2.0]), torch.tensor([4.0, 0.5]), rotation, SGD)


def test_quadratic_loss_and_gradient_match_the_hand_computed_values():
    centres = torch.tensor([[0.0, 0.0], [3.0, 0.0]])
    module = quadratic()
    # Offsets (1, 2) and (-2, 2): 0.5 * (4 * 1 + 0.5 * 4) = 3 and 0.5 * (4 * 4 + 0.5 * 4) = 9.
    loss = module.training_step((centres,), 0)
    assert loss.item() == pytest.approx(6.0)
    loss.backward()
    # h * (theta - mean centre) = (4 * -0.5, 0.5 * 2)
    torch.testing.assert_close(module.theta.grad, torch.tensor([-2.0, 1.0]))


def test_quadratic_rotation_holds_the_eigenvectors_in_its_columns():
    # The columns are (0.6, 0.8) and (-0.8, 0.6). The offset (1, 2) has components 2.2 and 0.4 along
    # them, so the loss is 0.5 * (4 * 4.84 + 0.5 * 0.16) = 9.72.
    # With the rows it would be 0.5 * (4 * 1 + 0.5 * 4) = 3.
    rotation = torch.tensor([[0.6, -0.8], [0.8, 0.6]])
    loss = quadratic(rotation).training_step((torch.zeros(1, 2),), 0)
    assert loss.item() == pytest.approx(9.72)


def linear_module(loss):
    net = nn.Linear(2, 2)
    with torch.no_grad():
        net.weight.copy_(torch.eye(2))
        net.bias.zero_()
    return SupervisedModule(net, loss, SGD)


def test_mean_squared_error_averages_over_examples_and_outputs():
    batch = torch.tensor([[1.0, 0.0], [0.0, 3.0]]), torch.tensor([[0.0, 0.0], [0.0, 0.0]])
    assert linear_module("mse").training_step(batch, 0).item() == pytest.approx(2.5)


def test_cross_entropy_reads_labels_against_logits():
    batch = torch.tensor([[1.0, 0.0], [0.0, 3.0]]), torch.tensor([0, 0])
    # log(1 + e^-1) = 0.313262 and log(1 + e^3) = 3.048587
    loss = linear_module("cross_entropy").training_step(batch, 0)
    assert loss.item() == pytest.approx((0.313262 + 3.048587) / 2, abs=1e-5)


def test_optimizer_uses_the_modules_current_learning_rate():
    module = linear_module("mse")
    module.lr = 0.125
    assert module.configure_optimizers().param_groups[0]["lr"] == 0.125


@pytest.mark.parametrize("spec", [MLPSpec(6, 3, 16, depth=3), CNNSpec((4, 8), outputs=3)])
def test_initial_scale_multiplies_weights_and_leaves_biases(spec):
    def weights(scale):
        scaled = type(spec)(**{**vars(spec), "initial_scale": scale})
        return dict(SupervisedBuilder("t", scaled, "mse", SGD)(0).named_parameters())

    plain, scaled = weights(1.0), weights(5.0)
    for name, value in plain.items():
        factor = 1.0 if name.endswith("bias") else 5.0
        torch.testing.assert_close(scaled[name], value * factor)


def test_initial_scale_leaves_normalisation_layers_alone():
    net = MLPSpec(6, 3, 16, norm="layer", initial_scale=9.0).build()
    norms = [layer for layer in net if isinstance(layer, nn.LayerNorm)]
    assert norms
    assert all(torch.equal(layer.weight, torch.ones(16)) for layer in norms)


@pytest.mark.parametrize("depth", [1, 4])
@pytest.mark.parametrize("activation", ["relu", "tanh", "gelu", "silu", "leaky_relu"])
def test_mlp_has_depth_hidden_layers_each_followed_by_its_activation(depth, activation):
    net = MLPSpec(6, 3, 16, depth=depth, activation=activation, norm="batch", dropout=0.1).build()
    kinds = [type(layer).__name__.lower().replace("leakyrelu", "leaky_relu") for layer in net]
    assert kinds == ["linear", "batchnorm1d", activation, "dropout"] * depth + ["linear"]
    assert net(torch.ones(5, 6)).shape == (5, 3)


@pytest.mark.parametrize("downsample", ["stride", "pool"])
@pytest.mark.parametrize("channels", [(4, 8), (6, 12, 16)])
@pytest.mark.parametrize("norm", ["none", "batch", "group", "layer"])
def test_cnn_reads_8x8_images_with_any_of_its_options(downsample, channels, norm):
    net = CNNSpec(channels, norm=norm, downsample=downsample, dropout=0.1).build()
    assert sum(isinstance(layer, nn.Conv2d) for layer in net) == len(channels)
    assert net(torch.ones(5, 1, 8, 8)).shape == (5, 10)


def fit(module, tensors, **options):
    loader = DataLoader(TensorDataset(*tensors), batch_size=4)
    trainer = Trainer(
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **options,
    )
    trainer.fit(module, loader, loader)
    return trainer


def test_accuracy_is_logged_in_validation_and_averaged_over_unequal_batches():
    # Six examples in batches of four and two, of which only the first is right: 1/6, where
    # averaging the two batches' accuracies would give 1/8.
    inputs = torch.tensor([[5.0, 0.0]] * 6)
    labels = torch.tensor([0, 1, 1, 1, 1, 1])
    module = linear_module("cross_entropy")
    module.lr = 1e-9
    metrics = fit(module, (inputs, labels), max_epochs=1).callback_metrics
    assert metrics["val_accuracy"].item() == pytest.approx(1 / 6)
    assert {"train_loss", "val_loss", "val_accuracy"} == set(metrics)


def test_regression_logs_no_accuracy():
    module = linear_module("mse")
    metrics = fit(module, (torch.ones(8, 2), torch.zeros(8, 2)), max_epochs=1).callback_metrics
    assert set(metrics) == {"train_loss", "val_loss"}


@pytest.mark.parametrize("kind", ["supervised", "quadratic"])
def test_steps_outside_a_trainer_are_silent_before_and_after_a_fit(kind):
    module = quadratic() if kind == "quadratic" else linear_module("mse")
    tensors = (torch.ones(8, 2),) if kind == "quadratic" else (torch.ones(8, 2),) * 2
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        module.training_step(tensors, 0)
        module.validation_step(tensors, 0)
    assert not caught
    fit(module, tensors, max_steps=2)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        module.training_step(tensors, 0)
        module.validation_step(tensors, 0)
    assert not caught


@pytest.mark.parametrize("kind", ["supervised", "quadratic"])
def test_a_hook_called_by_another_loop_does_not_start_the_logging(kind):
    module = quadratic() if kind == "quadratic" else linear_module("mse")
    logged = []
    module.__dict__["log"] = lambda name, *_, **__: logged.append(name)
    batch = (torch.ones(8, 2),) * (1 if kind == "quadratic" else 2)
    module.setup("fit")
    module.training_step(batch, 0)
    assert logged == []
    module.on_fit_start()  # what only a Trainer calls: the same step logs then
    module.training_step(batch, 0)
    assert logged == ["train_loss"]


@pytest.mark.parametrize("kind", ["supervised", "quadratic"])
def test_trainer_validate_logs_without_a_fit(kind):
    module = quadratic() if kind == "quadratic" else linear_module("mse")
    tensors = (torch.ones(8, 2),) * (1 if kind == "quadratic" else 2)
    trainer = Trainer(accelerator="cpu", logger=False, enable_progress_bar=False)
    loader = DataLoader(TensorDataset(*tensors), batch_size=4)
    (metrics,) = trainer.validate(module, loader, verbose=False)
    assert set(metrics) == {"val_loss"}


def test_huber_loss_is_quadratic_up_to_an_error_of_one_and_linear_beyond():
    batch = torch.tensor([[0.5, 0.0], [0.0, 3.0]]), torch.zeros(2, 2)
    # 0.5 * 0.5^2 = 0.125 and 3 - 0.5 = 2.5, over four outputs
    assert linear_module("huber").training_step(batch, 0).item() == pytest.approx(2.625 / 4)


def test_cross_entropy_of_sequences_averages_over_examples_and_steps():
    logits = torch.tensor([[[1.0, 0.0], [0.0, 3.0]]])
    module = SupervisedModule(nn.Identity(), "cross_entropy", SGD)
    # As above: log(1 + e^-1) and log(1 + e^3)
    loss = module.training_step((logits, torch.tensor([[0, 0]])), 0)
    assert loss.item() == pytest.approx((0.313262 + 3.048587) / 2, abs=1e-5)
