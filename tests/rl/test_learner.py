import itertools

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from lightning_dqnlr.errors import ConfigurationError
from lightning_dqnlr.policy.network import QNetwork
from lightning_dqnlr.rl.dqn import DQNConfig, DQNLearner
from lightning_dqnlr.rl.replay import ReplayBuffer, Transitions

GAMMA = 0.9
STATES = 5


class Tabular(nn.Module):
    """Q-values of one-hot observations, one free number each."""

    def __init__(self, rows: list[list[float]]) -> None:
        super().__init__()
        self.q = nn.Parameter(torch.tensor(rows))

    def forward(self, observation: Tensor) -> Tensor:
        return observation @ self.q


class CalledOperators(TorchDispatchMode):
    """Notes the operators that are called; reading a number back is `_local_scalar_dense`."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.add(func.name().partition(".")[0])
        return func(*args, **(kwargs or {}))


def one_transition(reward: float = 1.0, discount: float = 0.5) -> Transitions:
    """State 0, action 0, to state 1."""
    return Transitions(
        torch.tensor([[1.0, 0.0]]),
        torch.tensor([0]),
        torch.tensor([reward]),
        torch.tensor([[0.0, 1.0]]),
        torch.tensor([discount]),
    )


def random_batch(generator: torch.Generator, rows: int = 16) -> Transitions:
    return Transitions(
        torch.randn(rows, 3, generator=generator),
        torch.randint(4, (rows,), generator=generator),
        torch.randn(rows, generator=generator),
        torch.randn(rows, 3, generator=generator),
        torch.randint(2, (rows,), generator=generator).float(),
    )


def test_update_returns_the_double_q_loss_when_the_networks_disagree():
    learner = DQNLearner(Tabular([[0.0, 0.0], [1.0, 0.0]]), DQNConfig(loss="mse"))
    with torch.no_grad():
        learner.target.q.copy_(torch.tensor([[0.0, 0.0], [2.0, 8.0]]))
    # online selects action 0, target says 2: (1 + 0.5 * 2 - 0)^2; plain DQN: (1 + 0.5 * 8)^2
    found = learner.update(one_transition())
    torch.testing.assert_close(found.loss, torch.tensor(4.0))
    torch.testing.assert_close(found.errors, torch.tensor([2.0]))


def test_update_returns_the_plain_dqn_loss_when_asked():
    config = DQNConfig(double=False, loss="mse")
    learner = DQNLearner(Tabular([[0.0, 0.0], [1.0, 0.0]]), config)
    with torch.no_grad():
        learner.target.q.copy_(torch.tensor([[0.0, 0.0], [2.0, 8.0]]))
    torch.testing.assert_close(learner.update(one_transition()).loss, torch.tensor(25.0))


def test_the_configured_loss_is_used():
    learner = DQNLearner(Tabular([[0.0, 0.0], [0.0, 0.0]]), DQNConfig(loss="huber"))
    loss = learner.update(one_transition(reward=3.0)).loss
    torch.testing.assert_close(loss, torch.tensor(2.5))


def test_weights_scale_the_losses_but_not_the_errors():
    learner = DQNLearner(Tabular([[0.0, 0.0], [0.0, 0.0]]), DQNConfig(loss="mse"))
    rows = [one_transition(reward=reward, discount=0.0) for reward in (1.0, 2.0)]
    batch = Transitions(*(torch.cat(field) for field in zip(*rows, strict=True)))
    found = learner.update(batch, torch.tensor([1.0, 0.5]))
    torch.testing.assert_close(found.loss, torch.tensor((1.0 * 1.0 + 0.5 * 4.0) / 2))
    assert found.errors.tolist() == [1.0, 2.0]


def test_one_update_moves_only_the_taken_action_and_by_adams_first_step():
    learner = DQNLearner(
        Tabular([[0.0, 0.0], [1.0, 0.0]]), DQNConfig(learning_rate=0.25, weight_decay=0.0)
    )
    learner.update(one_transition())
    torch.testing.assert_close(learner.online.q.detach(), torch.tensor([[0.25, 0.0], [1.0, 0.0]]))


def test_hard_target_is_copied_at_the_period_and_not_before():
    config = DQNConfig(target_update="hard", target_period=3, learning_rate=0.1)
    learner = DQNLearner(Tabular([[0.0, 0.0], [1.0, 0.0]]), config)
    weights = [learner.online.q.detach().clone()]
    for _ in range(7):
        learner.update(one_transition())
        weights.append(learner.online.q.detach().clone())
        latest_copy = {0: 0, 1: 3, 2: 6}[learner.updates // 3]
        assert torch.equal(learner.target.q, weights[latest_copy]), learner.updates


def test_soft_target_moves_by_tau_at_every_update():
    config = DQNConfig(target_tau=0.1, learning_rate=0.25)
    learner = DQNLearner(Tabular([[0.0, 0.0], [1.0, 0.0]]), config)
    learner.update(one_transition())
    first = learner.online.q[0, 0].item()
    assert learner.target.q[0, 0].item() == pytest.approx(0.1 * first)
    learner.update(one_transition())
    second = learner.online.q[0, 0].item()
    assert learner.target.q[0, 0].item() == pytest.approx(0.09 * first + 0.1 * second)


def test_average_warms_up_and_then_keeps_its_decay():
    config = DQNConfig(average_decay=0.2, learning_rate=0.25)
    learner = DQNLearner(Tabular([[0.0, 0.0], [1.0, 0.0]]), config)
    learner.update(one_transition())
    first = learner.online.q[0, 0].item()
    # decay min(0.2, 2/11) = 2/11, then min(0.2, 3/12) = 0.2
    assert learner.average.q[0, 0].item() == pytest.approx(9 / 11 * first)
    learner.update(one_transition())
    second = learner.online.q[0, 0].item()
    expected = 0.2 * 9 / 11 * first + 0.8 * second
    assert learner.average.q[0, 0].item() == pytest.approx(expected)


def test_the_gradient_is_clipped_to_its_norm():
    # Adam's step is blind to one clipping but not to a change of it: compare second moments.
    config = DQNConfig(loss="mse", max_grad_norm=0.5)
    learner = DQNLearner(Tabular([[0.0, 0.0], [0.0, 0.0]]), config)
    learner.update(one_transition(reward=100.0))
    assert learner.online.q.grad.norm().item() == pytest.approx(0.5, rel=1e-4)


def test_weight_decay_shrinks_weights_without_gradient():
    config = DQNConfig(weight_decay=0.5, learning_rate=0.1)
    learner = DQNLearner(Tabular([[0.0, 0.0], [1.0, 0.0]]), config)
    learner.update(one_transition())
    assert learner.online.q[1, 0].item() == pytest.approx(0.95)


def test_a_lost_runs_terminal_does_not_poison_the_weights():
    learner = DQNLearner(QNetwork(2, 2, hidden=(4,)), DQNConfig())
    batch = one_transition(discount=0.0)
    batch = batch._replace(next_observation=torch.full((1, 2), float("nan")))
    learner.update(batch)
    assert all(weights.isfinite().all() for weights in learner.online.parameters())


def test_target_and_average_receive_no_gradients():
    learner = DQNLearner(QNetwork(3, 4, hidden=(4,)), DQNConfig())
    learner.update(random_batch(torch.Generator().manual_seed(0)))
    followers = itertools.chain(learner.target.parameters(), learner.average.parameters())
    assert all(weights.grad is None and not weights.requires_grad for weights in followers)


def test_an_update_never_reads_a_number_back_from_the_device():
    generator = torch.Generator().manual_seed(0)
    learner = DQNLearner(QNetwork(3, 4, hidden=(8, 8)), DQNConfig())
    buffer = ReplayBuffer(32, 3)
    buffer.extend(random_batch(generator))
    with CalledOperators() as called:
        learner.update(buffer.sample(8, generator).transitions)
    assert "aten::gather" in called.names
    assert not called.names & {"aten::_local_scalar_dense", "aten::nonzero", "aten::equal"}


@pytest.mark.parametrize("target_update", ["hard", "soft"])
def test_a_resumed_learner_equals_the_uninterrupted_one_bit_by_bit(tmp_path, target_update):
    config = DQNConfig(target_update=target_update, target_period=5, target_tau=0.1, batch_size=8)

    def fresh(seed: int) -> tuple[DQNLearner, ReplayBuffer]:
        torch.manual_seed(seed)
        return DQNLearner(QNetwork(3, 4, hidden=(8, 8)), config), ReplayBuffer(40, 3)

    def run(learner: DQNLearner, buffer: ReplayBuffer, draws: torch.Generator, n: int) -> None:
        for _ in range(n):
            buffer.extend(random_batch(draws, rows=6))
            learner.update(buffer.sample(config.batch_size, draws).transitions)

    learner, buffer = fresh(seed=0)
    draws = torch.Generator().manual_seed(1)
    run(learner, buffer, draws, 8)  # between two hard copies, and with the ring gone round
    saved = {"learner": learner.state_dict(), "buffer": buffer.state_dict()}
    torch.save({**saved, "draws": draws.get_state()}, tmp_path / "state.pt")
    run(learner, buffer, draws, 9)

    state = torch.load(tmp_path / "state.pt", weights_only=True)
    resumed, resumed_buffer = fresh(seed=99)
    resumed.load_state_dict(state["learner"])
    resumed_buffer.load_state_dict(state["buffer"])
    resumed_draws = torch.Generator()
    resumed_draws.set_state(state["draws"])
    run(resumed, resumed_buffer, resumed_draws, 9)

    assert resumed.updates == 17
    for name in ("online", "target", "average"):
        expected = getattr(learner, name).state_dict()
        for key, weights in getattr(resumed, name).state_dict().items():
            assert torch.equal(weights, expected[key]), (name, key)


def test_a_snapshot_is_not_changed_by_further_updates_on_either_side():
    generator = torch.Generator().manual_seed(0)
    learner = DQNLearner(QNetwork(3, 4, hidden=(4,)), DQNConfig(learning_rate=0.1))
    learner.update(random_batch(generator))
    state = learner.state_dict()
    weights = state["online"]["value.0.weight"].clone()
    moment = state["optimizer"]["state"][0]["exp_avg"].clone()
    other = DQNLearner(QNetwork(3, 4, hidden=(4,)), DQNConfig(learning_rate=0.1))
    other.load_state_dict(state)
    for one in (learner, other):
        one.update(random_batch(generator))
    assert torch.equal(state["online"]["value.0.weight"], weights)
    assert torch.equal(state["optimizer"]["state"][0]["exp_avg"], moment)


def test_an_incomplete_state_is_refused_by_name():
    learner = DQNLearner(QNetwork(3, 4, hidden=(4,)), DQNConfig())
    state = learner.state_dict()
    del state["average"]
    with pytest.raises(ConfigurationError, match="average"):
        learner.load_state_dict(state)


def chain() -> Transitions:
    """Every transition of a chain: right to the end earns 1; staying at the start, 0.05 a time."""
    rows = []
    for state in range(STATES):
        left = (state, 0, 0.05 if state == 0 else 0.0, max(state - 1, 0), GAMMA)
        ends = state == STATES - 1
        right = (state, 1, float(ends), 0 if ends else state + 1, 0.0 if ends else GAMMA)
        rows += [left, right]
    state, action, reward, successor, discount = zip(*rows, strict=True)
    eye = torch.eye(STATES)
    return Transitions(
        eye[list(state)],
        torch.tensor(action),
        torch.tensor(reward),
        eye[list(successor)],
        torch.tensor(discount),
    )


def chain_values() -> Tensor:
    """Optimal values by hand: right from s earns 0.9^(4 - s); left leads to the best of s - 1."""
    right = [GAMMA ** (STATES - 1 - state) for state in range(STATES)]
    left = [0.05 + GAMMA * right[0], *(GAMMA * value for value in right[:-1])]
    return torch.tensor([left, right]).T


@pytest.mark.parametrize(
    "config",
    [
        DQNConfig(learning_rate=3e-3, target_tau=0.05),
        DQNConfig(False, "mse", 3e-3, target_update="hard", target_period=20),
    ],
    ids=["double, huber, soft", "classic"],
)
def test_the_learner_solves_a_chain(config):
    torch.manual_seed(0)
    learner = DQNLearner(QNetwork(STATES, 2, hidden=(32,)), config)
    batch = chain()
    for _ in range(800):
        learner.update(batch)
    q_values = learner.average(torch.eye(STATES))
    # All rewards positive: the greedy choice is right everywhere, though left pays at once.
    assert q_values.argmax(dim=1).tolist() == [1] * STATES
    torch.testing.assert_close(q_values, chain_values(), atol=0.03, rtol=0)
