"""Controllers some way into a run, and actions by what they do."""

import torch

from lightning_dqnlr.control.controller import LRController
from lightning_dqnlr.control.spec import ControllerSpec

from .test_features import stats

KEEP, DOUBLE, QUADRUPLE, QUARTER = 3, 5, 6, 0


def started(lr=0.1, horizon=None, lead=(), **arguments):
    controller = LRController(ControllerSpec(), horizon=horizon, lead=lead, **arguments)
    controller.start(torch.full(lead, lr))
    return controller


def settled(lead=(), **arguments):
    """A controller some healthy intervals into a run of loss about 1."""
    controller = started(lead=lead, **arguments)
    ones = torch.ones(*lead, 1)
    for i in range(40):
        losses = (1.0 + 0.01 * (-1) ** i) * ones.expand(*lead, 4)
        controller.observe(stats(losses, lead=lead))
        controller.apply(torch.full(lead, KEEP))
    return controller
