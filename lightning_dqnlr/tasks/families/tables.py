"""Tables and bad labels with MLPs; documents and ratings with embeddings."""

from abc import abstractmethod

from torch import Tensor

from lightning_dqnlr.tasks.data.examples import corrupt_labels, imbalance
from lightning_dqnlr.tasks.data.scikit_learn import DIGITS_CLASSES, TABLE_NAMES, digits, table
from lightning_dqnlr.tasks.data.synthetic import documents, ratings, teacher_data
from lightning_dqnlr.tasks.data.text import file_of_window
from lightning_dqnlr.tasks.families.random_tasks import MLP_NORMS, Problem, RandomTasks, supervised
from lightning_dqnlr.tasks.modules import Loss
from lightning_dqnlr.tasks.networks.mlp_cnn import ACTIVATIONS, MLPSpec, bounded_scale
from lightning_dqnlr.tasks.networks.sequences import BagSpec, FactorizationSpec
from lightning_dqnlr.tasks.sampling import Draws, Split

REGRESSIONS: tuple[Loss, ...] = ("mse", "huber")
Train = tuple[Tensor, Tensor]


class TableMLPs(RandomTasks):
    """Random MLPs on scikit-learn's tables; some classifications have up to 20% random labels.

    >>> TableMLPs(min_horizon=500, max_horizon=500).sample(seed=0).horizon
    500
    """

    name = "table_mlps"

    def problem(self, split: Split, draws: Draws) -> Problem:
        which = draws.choice(TABLE_NAMES)
        data = table(which, draws)
        targets = data.targets.train
        regression = which == "diabetes"
        outputs = 1 if regression else int(targets.max()) + 1
        fraction = draws.chance(0.3) * draws.uniform(0.0, 0.2)
        if fraction and not regression:
            targets = corrupt_labels(targets, fraction, outputs, draws)
        data = data.with_targets(targets).scaled(self.draw_input_scale(draws))
        network = self.draw_mlp(data.inputs.train.shape[1], outputs, draws)
        loss = draws.choice(REGRESSIONS) if regression else "cross_entropy"
        return supervised(network, loss, data)


class SpoiltLabels(RandomTasks):
    """Random MLPs on digits or on a teacher's classes, with something wrong in the training set."""

    @abstractmethod
    def spoil(self, inputs: Tensor, labels: Tensor, classes: int, draws: Draws) -> Train:
        """What to train on instead of these inputs (N, D) and labels (N,)."""

    def problem(self, split: Split, draws: Draws) -> Problem:
        scale = self.draw_input_scale(draws)
        if draws.choice(("digits", "teacher")) == "digits":
            classes = DIGITS_CLASSES
            data = digits(scale)
        else:
            classes = draws.integer(2, 10)
            data = teacher_data(
                "classification",
                dimension=draws.log_integer(4, 64),
                examples=8 * draws.log_integer(128, 256),
                outputs=classes,
                noise=0.0,
                draws=draws,
            ).scaled(scale)
        train = self.spoil(data.inputs.train, data.targets.train, classes, draws)
        network = self.draw_mlp(data.inputs.train.shape[1], classes, draws)
        return supervised(network, "cross_entropy", data._replace(train=train))


class ImbalancedMLPs(SpoiltLabels):
    """Random MLPs on digits or on a teacher's classes, the rarest 5 to 100 times as rare.

    share of class k = ratio^(-k / (C - 1)); validation examples are as frequent as they were
    """

    name = "imbalanced_mlps"

    def spoil(self, inputs: Tensor, labels: Tensor, classes: int, draws: Draws) -> Train:
        kept = imbalance(labels, draws.log_uniform(5.0, 100.0), classes, draws)
        return inputs[kept], labels[kept]


class NoisyLabelMLPs(SpoiltLabels):
    """Random MLPs on digits or on a teacher's classes, of which 20% to 60% were drawn anew.

    Validation labels are clean.

    >>> NoisyLabelMLPs().sample(seed=0).known_horizon
    True
    """

    name = "noisy_label_mlps"

    def spoil(self, inputs: Tensor, labels: Tensor, classes: int, draws: Draws) -> Train:
        return inputs, corrupt_labels(labels, draws.uniform(0.2, 0.6), classes, draws)


class EmbeddingClassifiers(RandomTasks):
    """Embeddings of bags of words: generated documents, or windows of the standard library's files.

    logits = MLP(mean of the words' embeddings). Most words are rare, so that most rows of the
    embedding rarely have a gradient.
    """

    name = "embedding_classifiers"

    def problem(self, split: Split, draws: Draws) -> Problem:
        real = draws.chance(0.5)
        classes = draws.integer(2, 6)
        length = draws.choice((16, 32, 64))
        vocabulary = draws.log_integer(64, 512)
        width = draws.log_integer(8, 32)
        examples = self.draw_examples(draws)
        norm = draws.choice(MLP_NORMS)
        scale = self.draw_initial_scale(draws)
        mlp = MLPSpec(
            inputs=width,
            outputs=classes,
            depth=draws.integer(1, 2),
            width=draws.log_integer(8, 64),
            activation=draws.choice(ACTIVATIONS),
            norm=norm,
        )
        network = BagSpec(vocabulary, mlp, initial_scale=bounded_scale(scale, mlp.depth + 2, norm))
        if real:
            data = file_of_window(split, classes, length, vocabulary, examples, draws)
        else:
            data = documents(classes, vocabulary, length, examples, draws)
        return supervised(network, "cross_entropy", data)


class MatrixFactorizations(RandomTasks):
    """Completes a noisy low-rank matrix, by a product of a rank that may be too small or large.

    entry_ij = u_i . v_j + a_i + b_j
    """

    name = "matrix_factorizations"

    def problem(self, split: Split, draws: Draws) -> Problem:
        users = draws.log_integer(48, 256)
        items = draws.log_integer(48, 256)
        rank = draws.log_integer(4, 16)
        true_rank = draws.log_integer(2, 16)
        noise = draws.log_uniform(0.01, 0.5)
        examples = self.draw_examples(draws)
        scale = self.draw_scale(draws, 2)
        network = FactorizationSpec(users, items, rank, initial_scale=scale)
        loss = draws.choice(REGRESSIONS)
        return supervised(network, loss, ratings(users, items, true_rank, noise, examples, draws))
