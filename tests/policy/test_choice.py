import pytest
import torch

from lightning_dqnlr.control.spec import ControllerSpec
from lightning_dqnlr.policy.choice import ScriptedPolicy

SPEC = ControllerSpec()


def test_a_scripted_policy_takes_its_functions_actions_and_explores_like_any_other():
    policy = ScriptedPolicy(lambda seen: torch.full(seen.shape[:-1], 2), SPEC)
    observation = torch.zeros(4000, len(SPEC.features))
    choice = policy.choose(observation)
    assert choice.action.eq(2).all()
    assert choice.q_values.argmax(-1).equal(choice.action)
    other = policy.choose(observation, 0.7, torch.Generator().manual_seed(0)).action != 2
    assert other.float().mean().item() == pytest.approx(0.7 * 6 / 7, abs=0.03)
