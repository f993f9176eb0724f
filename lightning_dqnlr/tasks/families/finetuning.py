"""Fine-tuning: networks that know some of the digits learn to tell the others apart."""

from dataclasses import dataclass, replace
from functools import cached_property, partial

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_dqnlr.tasks.data.examples import Examples, Labelled, multiple_of_eight
from lightning_dqnlr.tasks.data.scikit_learn import DIGITS_CLASSES, digits
from lightning_dqnlr.tasks.families.random_tasks import CNN_NORMS, BatchSizes, Problem, RandomTasks
from lightning_dqnlr.tasks.modules import SupervisedBuilder, SupervisedModule
from lightning_dqnlr.tasks.networks.mlp_cnn import ACTIVATIONS, CNNSpec, NetworkSpec, scale_weights
from lightning_dqnlr.tasks.optimizers import OptimizerSpec
from lightning_dqnlr.tasks.sampling import Draws, Split
from lightning_dqnlr.tasks.user import seeded_weights

PRETRAIN_BATCH = 32
PRETRAIN_LR = 3e-3
PRETRAIN_SEED = -1  # a seed that no replica has


@dataclass(frozen=True, eq=False)
class PretrainedBuilder:
    """Builds modules that start from the same pretrained weights, each with a new last layer.

    The pretraining runs at the first build, within about a second, by Adam on the CPU. It leaves
    the global random state alone, and its weights are kept as long as this object lives.

    Attributes:
        network: the last layer is the head, which is replaced.
        pretrain: inputs (N, ...) and labels (N,) to pretrain on.
        head_scale: factor on the initial weights of the new head.
        optimizer: of the fine-tuning.
    """

    task: str
    network: NetworkSpec
    pretrain: tuple[Tensor, ...]
    pretrain_steps: int
    head_scale: float
    optimizer: OptimizerSpec

    def __call__(self, seed: int) -> SupervisedModule:
        fresh = SupervisedBuilder(self.task, self.network, "cross_entropy", self.optimizer)
        module = fresh(seed)
        *_, head = module.net.children()
        scale_weights(head, self.head_scale)
        new_head = {name: value.clone() for name, value in head.state_dict().items()}
        module.net.load_state_dict(self._pretrained)
        head.load_state_dict(new_head)
        return module

    @cached_property
    def _pretrained(self) -> dict[str, Tensor]:
        shown = Labelled(*self.pretrain)
        with seeded_weights(self.task, PRETRAIN_SEED), torch.enable_grad():
            net = self.network.build().train()
            optimizer = torch.optim.Adam(net.parameters(), lr=PRETRAIN_LR)
            for _ in range(self.pretrain_steps):
                chosen = torch.randint(len(shown.inputs), (PRETRAIN_BATCH,))
                optimizer.zero_grad()
                F.cross_entropy(net(shown.inputs[chosen]), shown.targets[chosen]).backward()
                optimizer.step()
        return net.state_dict()


@dataclass(frozen=True)
class FineTunedDigits(RandomTasks):
    """MLPs and CNNs that were pretrained on half of the digits' classes, trained on the others.

    The initial scale is that of the new head; the other weights are as pretraining left them.

    >>> sorted(FineTunedDigits().sample(seed=0).train_data[1].unique().tolist())
    [0, 1, 2, 3, 4]
    """

    batch_sizes: BatchSizes = (8, 16, 32)
    name = "fine_tuned_digits"

    def problem(self, split: Split, draws: Draws) -> Problem:
        convolutional = draws.chance(0.5)
        steps = draws.log_integer(30, 120)
        shape = (1, 8, 8) if convolutional else (64,)
        data = digits(self.draw_input_scale(draws), shape)
        order = torch.randperm(DIGITS_CLASSES, generator=draws.generator)
        known, new = order.chunk(2)
        network = self._draw_network(convolutional, len(new), draws)
        builder = partial(
            PretrainedBuilder,
            network=network,
            pretrain=tuple(_only(known, *data.train)),
            pretrain_steps=steps,
            head_scale=self.draw_initial_scale(draws),
        )
        fresh = _only(new, *data.train)
        # Fine-tuning often has few examples.
        count = multiple_of_eight(min(draws.log_integer(64, 1024), len(fresh.inputs)))
        few = fresh.inputs[:count], fresh.targets[:count]
        return Problem(builder, Examples(few, tuple(_only(new, *data.validation))))

    def _draw_network(self, convolutional: bool, outputs: int, draws: Draws) -> NetworkSpec:
        mlp = replace(self.draw_mlp(64, outputs, draws), initial_scale=1.0)
        norm = draws.choice(CNN_NORMS)
        channels = draws.choice((4, 6, 8)), draws.choice((8, 12, 16))
        cnn = CNNSpec(channels, outputs, activation=draws.choice(ACTIVATIONS), norm=norm)
        return cnn if convolutional else mlp


def _only(classes: Tensor, inputs: Tensor, labels: Tensor) -> Labelled:
    """The examples of the given classes, which are numbered anew in their order."""
    matches = labels.unsqueeze(1) == classes
    kept = matches.any(1)
    return Labelled(inputs[kept], matches[kept].int().argmax(1))
