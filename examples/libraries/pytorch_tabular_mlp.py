"""pytorch-tabular: its embedding MLP on 6,366 answers of Redbook's readers, from statsmodels.

The model has its defaults: Adam at 1e-3, batches of 64, at most 10 epochs, EarlyStopping with a
patience of 3, the best checkpoint. Does a reader have an affair? It is judged by the log loss on a
quarter of the readers.
"""

from __future__ import annotations

from pytorch_tabular import TabularModel
from pytorch_tabular.config import DataConfig, OptimizerConfig, TrainerConfig
from pytorch_tabular.models import CategoryEmbeddingModelConfig
from runs import Arm, main
from sklearn.model_selection import train_test_split
from statsmodels.datasets import fair

CATEGORIES = ["occupation", "occupation_husb", "religious"]


def fit(arm: Arm) -> dict[str, float]:
    """Log loss and share of wrong answers on the test readers."""
    table = fair.load_pandas().data
    table["affairs"] = (table["affairs"] > 0).astype(int)
    numbers = [name for name in table if name not in [*CATEGORIES, "affairs"]]
    own, tested = train_test_split(table, random_state=0)
    model = TabularModel(
        data_config=DataConfig(
            target=["affairs"], continuous_cols=numbers, categorical_cols=CATEGORIES
        ),
        model_config=CategoryEmbeddingModelConfig(
            task="classification", learning_rate=1e-3 * arm.factor
        ),
        optimizer_config=OptimizerConfig(),
        trainer_config=TrainerConfig(accelerator="cpu", progress_bar="none", seed=arm.seed),
        verbose=False,
    )
    model.fit(train=own, seed=arm.seed, callbacks=arm.callbacks)
    scores = model.evaluate(tested, verbose=False)[0]
    return {
        "test log loss": float(scores["test_loss_0"]),
        "test error": 1 - float(scores["test_accuracy"]),
    }


if __name__ == "__main__":
    main(fit)
