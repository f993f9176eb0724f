"""The examples in the docstrings of `lightning_dqnlr.tasks` do what they say."""

import doctest

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

import lightning_dqnlr.tasks
from lightning_dqnlr.tasks import OptimizerSpec, SupervisedModule


def user_module():
    return SupervisedModule(torch.nn.Linear(3, 10), "cross_entropy", OptimizerSpec("sgd"))


# The names that a user's script would have.
SCRIPT = {
    **{name: getattr(lightning_dqnlr.tasks, name) for name in lightning_dqnlr.tasks.__all__},
    "net": torch.nn.Linear(3, 10),
    "DigitClassifier": user_module,
    "loader": DataLoader(TensorDataset(torch.zeros(20, 3), torch.arange(20) % 10), batch_size=4),
}


@pytest.mark.parametrize("name", lightning_dqnlr.tasks.__all__)
def test_an_example_of_a_public_name_runs_and_shows_what_is_returned(name):
    finder = doctest.DocTestFinder(recurse=False)
    report = []
    for example in finder.find(SCRIPT[name], name, globs=dict(SCRIPT)):
        doctest.DocTestRunner(verbose=False).run(example, out=report.append)
    assert not report, "".join(report)
