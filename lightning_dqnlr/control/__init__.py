"""What the training shows, turned into a learning rate (torch only)."""

from lightning_dqnlr.control.controller import LRController
from lightning_dqnlr.control.features import FeatureSpec
from lightning_dqnlr.control.spec import ActionSpec, ControllerSpec, TrialSpec

__all__ = ["ActionSpec", "ControllerSpec", "FeatureSpec", "LRController", "TrialSpec"]
