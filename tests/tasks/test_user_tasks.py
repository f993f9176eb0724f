"""`Task.from_lightning` and `OwnTasks`: a user's module and data, no subclass of ours."""

from functools import partial

import pytest
import torch
from lightning import LightningModule
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from lightning_dqnlr.errors import ConfigurationError
from lightning_dqnlr.tasks.families.mixtures import OwnTasks
from lightning_dqnlr.tasks.task import Task


class Line(LightningModule):
    def __init__(self, size=3):
        super().__init__()
        self.layer = nn.Linear(size, 1)

    def training_step(self, batch, batch_idx):
        return self.layer(batch[0]).square().mean()

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=0.1)


def numbers(count=20):
    return torch.arange(3.0 * count).view(count, 3)


def loader(count=20, **arguments):
    arguments = {"batch_size": 6, "shuffle": True, **arguments}
    return DataLoader(TensorDataset(numbers(count)), **arguments)


def weights(module):
    return nn.utils.parameters_to_vector(module.parameters()).detach()


def test_a_class_gives_fresh_weights_per_seed_and_a_module_always_its_own():
    fresh = Task.from_lightning(Line, loader(), horizon=5)
    assert torch.equal(weights(fresh.build(1)), weights(fresh.build(1)))
    assert not torch.equal(weights(fresh.build(1)), weights(fresh.build(2)))
    module = Line()
    tuned = Task.from_lightning(module, loader(), horizon=5)
    assert torch.equal(weights(tuned.build(1)), weights(module))
    copied = tuned.build(2)
    with torch.no_grad():
        copied.layer.weight.zero_()
    assert weights(module).abs().sum() > 0.1


def test_building_leaves_the_global_random_state_alone():
    task = Task.from_lightning(Line, loader(), horizon=5)
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    task.build(1)
    assert torch.equal(torch.rand(2), expected)


def test_without_validation_data_a_tenth_is_held_out_and_nothing_is_lost_or_shared():
    task = Task.from_lightning(Line, loader(20), horizon=5)
    (train,), (held_out,) = task.train_data, task.validation_data
    assert (len(train), len(held_out)) == (18, 2)
    everything = torch.cat([train, held_out])
    assert torch.equal(everything[everything[:, 0].argsort()], numbers(20))


def test_given_validation_data_is_used_and_the_training_data_stays_whole():
    task = Task.from_lightning(Line, loader(20), validation=loader(4), horizon=5)
    assert torch.equal(task.train_data[0], numbers(20))
    assert torch.equal(task.validation_data[0], numbers(4))


def test_batch_size_order_and_names_are_the_loaders_and_the_modules():
    task = Task.from_lightning(Line, loader(shuffle=False), horizon=9, gradient_clip=2.0)
    assert (task.batch_size, task.shuffle, task.horizon) == (6, False, 9)
    assert (task.name, task.optimizer, task.gradient_clip) == ("Line", "adam", 2.0)
    assert Task.from_lightning(Line, loader(), horizon=9).shuffle


def test_batches_may_be_dicts():
    class Dicts(torch.utils.data.Dataset):
        def __len__(self):
            return 10

        def __getitem__(self, index):
            return {"x": torch.tensor([1.0, index]), "y": index}

    task = Task.from_lightning(Line, DataLoader(Dicts(), batch_size=2), horizon=3)
    assert task.train_data["x"].shape == (9, 2)
    assert torch.equal(task.train_data["x"][:, 1].long(), task.train_data["y"])


class Stream(IterableDataset):
    def __init__(self, count):
        self.count = count

    def __iter__(self):
        return (torch.ones(3) for _ in range(self.count))


def test_a_stream_that_ends_is_read_and_an_endless_one_refused():
    task = Task.from_lightning(Line, DataLoader(Stream(30), batch_size=5), horizon=3)
    assert task.examples == 27
    with pytest.raises(ConfigurationError, match=r"more than 20 examples.*max_examples"):
        Task.from_lightning(Line, DataLoader(Stream(10**9), 5), horizon=3, max_examples=20)


@pytest.mark.parametrize(
    ("examples", "message"),
    [
        (["some", "words", "here"], "one is str"),
        ([], "no examples"),
        ([torch.ones(2)], "single example"),
    ],
)
def test_data_that_cannot_be_held_as_tensors_is_refused(examples, message):
    data = DataLoader(examples, batch_size=1)
    with pytest.raises(ConfigurationError, match=message):
        Task.from_lightning(Line, data, horizon=3)


def test_a_loader_without_a_batch_size_is_refused():
    with pytest.raises(ConfigurationError, match="batch_size"):
        Task.from_lightning(Line, loader(batch_size=None, shuffle=False), horizon=3)


@pytest.mark.parametrize("module", [nn.Linear(2, 2), lambda: nn.Linear(2, 2), 3])
def test_what_is_no_lightning_module_is_refused(module):
    with pytest.raises(ConfigurationError, match="LightningModule"):
        Task.from_lightning(module, loader(), horizon=3)


def own(**arguments):
    tasks = [
        Task.from_lightning(Line, loader(), horizon=50, name="small"),
        Task.from_lightning(partial(Line, 3), loader(40), horizon=70, name="large"),
    ]
    return OwnTasks(tasks, **arguments)


def test_own_tasks_meet_every_task_with_fresh_weights_in_every_split():
    family = own()
    runs = [family.sample(seed, split) for seed in range(8) for split in ("train", "validation")]
    assert {run.family for run in runs} == {"small", "large"}
    starts = {tuple(weights(run.build(0)).tolist()) for run in runs}
    assert len(starts) == len(runs)
    assert family.sample(3).name == "small/train/3" or family.sample(3).name == "large/train/3"
    assert torch.equal(weights(family.sample(3).build(0)), weights(own().sample(3).build(0)))


def test_own_horizons_are_drawn_within_their_bounds():
    lengths = [own(horizons=(10, 1000)).sample(seed).horizon for seed in range(60)]
    assert min(lengths) >= 10
    assert max(lengths) <= 1000
    # Log-uniform: the median is the geometric mean, 100.
    assert 50 < sorted(lengths)[30] < 200
    assert {own().sample(seed).horizon for seed in range(10)} == {50, 70}


def test_own_known_horizons_follow_their_probability():
    known = [own(known_horizon_probability=0.25).sample(seed).known_horizon for seed in range(80)]
    assert 8 < sum(known) < 32
    assert all(own().sample(seed).known_horizon for seed in range(10))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"tasks": []}, "tasks"),
        ({"horizons": (10, 5)}, "horizons"),
        ({"horizons": (0, 5)}, r"horizons=0 must be a number in \[1, inf\)"),
        ({"known_horizon_probability": 1.5}, "known_horizon_probability"),
    ],
)
def test_own_tasks_name_what_is_wrong(arguments, message):
    tasks = [Task.from_lightning(Line, loader(), horizon=50)]
    with pytest.raises(ConfigurationError, match=message):
        OwnTasks(**{"tasks": tasks, **arguments})


def test_own_tasks_of_one_name_are_refused():
    tasks = [Task.from_lightning(Line, loader(), horizon=50)] * 2
    with pytest.raises(ConfigurationError, match="name"):
        OwnTasks(tasks)


@pytest.mark.parametrize("argument", ["dataloader", "validation"])
def test_a_function_in_the_place_of_a_loader_is_refused_by_name(argument):
    arguments = {"dataloader": loader(), argument: loader}
    with pytest.raises(ConfigurationError, match=rf"^{argument}=<function .*DataLoader; call it"):
        Task.from_lightning(Line, **arguments, horizon=3)
