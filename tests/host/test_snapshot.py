import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from lightning_dqnlr.host.snapshot import Snapshot

from .control_runs import Loop, constant_policy

KEEP = 3


def state_of(optimizer, net):
    flat = {f"{i}.{k}": v for i, s in optimizer.state_dict()["state"].items() for k, v in s.items()}
    flat |= dict(net.state_dict())
    return {k: v.clone() if isinstance(v, torch.Tensor) else v for k, v in flat.items()}


@pytest.mark.parametrize(
    "optimizer",
    [torch.optim.Adam, torch.optim.RMSprop, torch.optim.Adagrad, torch.optim.NAdam],
)
def test_a_snapshot_restores_the_state_of_any_optimizer(optimizer):
    loop = Loop(optimizer, constant_policy(KEEP), circuit_breaker=False)
    loop.run(4)
    snapshot = Snapshot(loop.optimizer, loop.net)
    snapshot.take(4)
    loop.run(2)
    snapshot.take(6)  # the memory of the third is that of the first
    expected = state_of(loop.optimizer, loop.net)
    loop.run(1)
    snapshot.take(7)
    loop.run(3)
    assert snapshot.restore() == 6
    now = state_of(loop.optimizer, loop.net)
    assert expected.keys() == now.keys()
    assert all(torch.equal(torch.as_tensor(expected[k]), torch.as_tensor(now[k])) for k in now)
    loop.run(1)  # and is a copy: going on must not change it
    snapshot.restore()
    assert torch.equal(loop.net[0].weight, expected["0.weight"])


def test_a_copy_whose_loss_nobody_has_seen_is_never_gone_back_to():
    loop = Loop(torch.optim.SGD, constant_policy(KEEP), circuit_breaker=False)
    snapshot = Snapshot(loop.optimizer, loop.net)
    taken = []
    for step in (1, 2, 3):
        loop.run(1)
        snapshot.take(step)
        taken.append(loop.net[0].weight.detach().clone())
    assert snapshot.restore() == 2
    assert torch.equal(loop.net[0].weight, taken[1])
    assert snapshot.restore() == 2  # nothing healthy since: the same once more
    loop.run(1)
    snapshot.take(4)  # follows 2, not the destroyed 3
    assert snapshot.restore() == 2
    assert torch.equal(loop.net[0].weight, taken[1])


def test_two_copies_are_kept_however_often_one_is_taken():
    loop = Loop(torch.optim.Adam, constant_policy(KEEP), circuit_breaker=False)
    snapshot = Snapshot(loop.optimizer, loop.net)
    addresses = set()
    for step in range(6):
        loop.run(1)
        snapshot.take(step)
        addresses.add(snapshot._copies[-1].saved["weight/0"].data_ptr())
        if step == 3:
            snapshot.restore()
    assert len(addresses) == 2


class Buffered(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(2))
        self.register_buffer("view", torch.zeros(1).expand(3))
        self.late = nn.Module()
        self.register_buffer("count", torch.tensor(1.0))
        self.last = nn.Module()
        self.last.register_buffer("mean", torch.tensor(2.0))


def taken(module, optimizer=None, **arguments):
    optimizer = optimizer or torch.optim.SGD([module.weight], lr=0.1)
    snapshot = Snapshot(optimizer, module, **arguments)
    snapshot.take(0)
    return snapshot


def test_buffers_that_cannot_be_written_to_or_come_later_do_no_harm():
    module = Buffered()
    snapshot = taken(module)
    module.late.register_buffer("new", torch.tensor(7.0))  # before the others in their order
    module.count.fill_(-1.0)
    module.last.mean.fill_(-2.0)
    snapshot.restore()
    assert (module.count.item(), module.last.mean.item(), module.late.new.item()) == (1, 2, 7)
    assert module.view.tolist() == [0, 0, 0]


def test_a_copy_of_a_module_serves_its_compiled_form_and_back():
    module, compiled = Buffered(), torch.compile(Buffered())
    for source, target in ((module, compiled), (compiled, module)):
        saved = taken(source).state_dict()
        target.last.mean.fill_(-2.0)
        snapshot = taken(target)
        snapshot.load_state_dict(saved)
        snapshot.restore()
        assert target.last.mean.item() == 2.0


def kept_of(snapshot):
    """Names in the latest copy, without the kind."""
    saved = snapshot.state_dict()["copies"][-1]["saved"]
    return {name.partition("/")[2] for name in saved if name.startswith(("module", "average"))}


@pytest.mark.parametrize("held", [False, True])
def test_a_target_network_goes_back_beside_a_larger_frozen_backbone_that_costs_nothing(held):
    net = nn.ModuleDict({"online": nn.Linear(3, 2), "target": nn.Linear(3, 2)})
    net["target"].requires_grad_(False)
    net["backbone"] = nn.Linear(3, 100).requires_grad_(False)
    trained = net if held else net["online"]  # optimizers are often given frozen parameters too
    before = net["target"].weight.detach().clone()
    snapshot = taken(net, torch.optim.SGD(trained.parameters(), lr=0.1))
    assert kept_of(snapshot) == {"target.weight", "target.bias"}
    net["target"].weight.data.fill_(float("nan"))
    net["online"].requires_grad_(False)  # what is in the copy comes back, whatever is trained now
    snapshot.restore()
    assert torch.equal(net["target"].weight, before)


def test_a_backbone_of_layers_like_the_trained_one_is_not_a_target_network():
    net = nn.Sequential(*[nn.Linear(4, 4) for _ in range(6)])
    net[:5].requires_grad_(False)
    assert not kept_of(taken(net, torch.optim.SGD(net.parameters(), lr=0.1)))


def test_an_average_is_kept_but_for_what_is_frozen_in_it():
    net = nn.ModuleDict({"base": nn.Linear(3, 50).requires_grad_(False), "head": nn.Linear(3, 2)})
    average = AveragedModel(net)
    before = average.module["head"].weight.detach().clone()
    optimizer = torch.optim.SGD(net["head"].parameters(), lr=0.1)
    snapshot = taken(net, optimizer, averages=[average])
    named = {"module.head.weight", "module.head.bias", "n_averaged"}
    assert kept_of(snapshot) == {f"0/{name}" for name in named}
    average.module["head"].weight.data.fill_(float("nan"))
    snapshot.restore()
    assert torch.equal(average.module["head"].weight, before)


def test_an_average_that_came_after_the_copy_is_taken_in_before_the_next_step():
    net = nn.Linear(3, 2)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    saved = taken(net, optimizer).state_dict()
    average = AveragedModel(net)
    snapshot = Snapshot(optimizer, net, [average])
    snapshot.load_state_dict(saved)
    snapshot.adopt()
    average.module.weight.data.fill_(float("nan"))
    snapshot.restore()
    assert torch.equal(average.module.weight, net.weight)


def test_weights_that_are_unfrozen_go_back_to_what_they_were_and_frozen_ones_too():
    first, second = nn.Linear(2, 2), nn.Linear(2, 2)
    second.requires_grad_(False)
    optimizer = torch.optim.SGD([*first.parameters(), *second.parameters()], lr=0.1)
    before = [layer.weight.detach().clone() for layer in (first, second)]
    snapshot = taken(nn.Sequential(first, second), optimizer)
    first.requires_grad_(False)
    second.requires_grad_(True)
    snapshot.adopt()
    for layer in (first, second):
        layer.weight.data.fill_(9.0)
    snapshot.adopt()  # once only: what it has is older and right
    snapshot.restore()
    assert torch.equal(first.weight, before[0])
    assert torch.equal(second.weight, before[1])
