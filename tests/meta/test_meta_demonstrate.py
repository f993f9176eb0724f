import pytest
import torch

from lightning_dqnlr.control.spec import ControllerSpec
from lightning_dqnlr.envs.environment import Terms
from lightning_dqnlr.envs.vector import VectorLREnv
from lightning_dqnlr.meta.demonstrate import Demonstrators
from lightning_dqnlr.tasks.families.basic import TeacherMLPs

TARGETS = torch.tensor([0.002, 0.01, 0.05])


def demonstrated(task, epsilon=0.0, drift=0.0):
    env = VectorLREnv(task, ControllerSpec(), [7, 7, 7], Terms())
    rule = Demonstrators(TARGETS, torch.ones(3, dtype=torch.bool), epsilon, torch.full((3,), drift))
    generator, actions, ratios = torch.Generator().manual_seed(0), [], []
    env.reset()
    while not env.finished:
        actions.append(rule.act(env, generator))
        env.step(actions[-1])
        ratios.append(env.controller.update_ratio)
    return torch.stack(actions), torch.stack(ratios)


def test_each_demonstrator_climbs_to_its_own_update_ratio_and_then_keeps():
    family = TeacherMLPs(
        min_horizon=300,
        max_horizon=300,
        optimizers=("adam",),
        known_horizon_probability=1.0,
        wide_probability=0.0,
        initial_scales=(1.0, 1.0),
    )
    actions, ratios = demonstrated(family.sample(3))
    reached = ratios[8:11].log().mean(0).exp()
    assert (reached / TARGETS).log().abs().max() < 1.0
    assert (actions[20:] == 3).all()


def test_without_a_known_horizon_the_demonstration_still_anneals():
    family = TeacherMLPs(
        min_horizon=300, max_horizon=300, optimizers=("sgd",), known_horizon_probability=0.0
    )
    _, ratios = demonstrated(family.sample(1))
    assert (ratios[-1] < 0.3 * ratios[10:20].mean(0)).all()


def test_random_actions_come_as_often_as_asked():
    family = TeacherMLPs(min_horizon=200, max_horizon=200, known_horizon_probability=1.0)
    actions, _ = demonstrated(family.sample(0), epsilon=0.5)
    share = (actions[20:] != 3).float().mean().item()
    assert share == pytest.approx(0.5 * 6 / 7, abs=0.12)


@pytest.mark.parametrize("drift", [0.5, -0.25])
def test_a_drifting_demonstrator_follows_the_power_of_the_step_until_the_decay(drift):
    family = TeacherMLPs(min_horizon=400, max_horizon=400, known_horizon_probability=1.0)
    spec = ControllerSpec()
    actions, _ = demonstrated(family.sample(0), drift=drift)
    change = spec.actions.log_multiplier(actions).cumsum(0)
    # The climb takes 12 decisions or a sixteenth of the run, whichever is later.
    env = VectorLREnv(family.sample(0), spec, [7], Terms())
    env.reset()
    steps = [env.controller.step]
    while not env.finished:
        env.step(torch.tensor([spec.actions.keep]))
        steps.append(env.controller.step)
    climbed = next(i for i, s in enumerate(steps) if i >= 12 and s >= 400 / 16)
    held = next(i for i, s in enumerate(steps) if s >= 400 * (1 - spec.decay_share))
    expected = drift * torch.tensor(steps[held - 1] / steps[climbed - 1]).log()
    drifted = change[held - 1] - change[climbed - 1]
    torch.testing.assert_close(drifted, expected.expand(3), rtol=0, atol=0.35)
    assert (actions[held:] == spec.actions.keep).all()
