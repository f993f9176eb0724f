"""What is wrong with a checkpoint, or with a tuned cosine that is kept, is said of that file."""

import io
import json
import random
from collections import OrderedDict

import pytest
import torch

from lightning_dqnlr.errors import ConfigurationError
from lightning_dqnlr.files import sealed
from lightning_dqnlr.meta.checkpoint import CHECKPOINT, read_checkpoint, write_checkpoint
from lightning_dqnlr.meta.failures import Failures, usable_tasks
from lightning_dqnlr.scoring.evaluate import Rivals, fingerprint
from tests.meta.test_meta_train import ignore, make_trainer, weights
from tests.meta.tiny_tasks import TinyTasks


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run of three episodes: the content of its checkpoint."""
    folder = tmp_path_factory.mktemp("run")
    make_trainer(folder, episodes=3).fit(ignore)
    return (folder / CHECKPOINT).read_bytes()


def resume(folder, **changes):
    trainer = make_trainer(folder, **changes)
    trainer.load_checkpoint()
    return trainer


def edited(content, change):
    """The checkpoint with its state changed and sealed again."""
    state = torch.load(io.BytesIO(content), weights_only=True)
    state = change(state) or state
    file = io.BytesIO()
    torch.save(state, file)
    return sealed(file.getvalue())


def without(*names):
    def change(state):
        for name in names[:-1]:
            state = state[name]
        del state[names[-1]]

    return change


def with_value(value, *names):
    def change(state):
        for name in names[:-1]:
            state = state[name]
        state[names[-1]] = value

    return change


WRONG = {
    "another type": lambda state: [1, 2, 3],
    "a number": lambda state: torch.tensor(3.0),
    "no field": without("episode"),
    "no replay": without("replay"),
    "no learner's field": without("learner", "online"),
    "no optimizer's field": without("learner", "optimizer", "param_groups"),
    "no moment": without("learner", "optimizer", "state", 0, "exp_avg"),
    "no transitions": without("replay", "reward"),
    "no random state": with_value(torch.zeros(3), "generator"),
    "an unknown field": with_value(3, "another"),
    "a network of another shape": with_value(OrderedDict(), "learner", "online"),
    "a moment of another shape": with_value(
        torch.zeros(3), "learner", "optimizer", "state", 0, "exp_avg"
    ),
    "transitions of another shape": with_value(torch.zeros(3, 3), "replay", "observation"),
    "another capacity": with_value(7, "replay", "capacity"),
    "another version": with_value(2, "format_version"),
    "a version that is none": with_value("new", "format_version"),
    "a negative episode": with_value(-1, "episode"),
    "a text for a number": with_value("long", "seconds"),
    "a score that is NaN": with_value(float("nan"), "best_score"),
    "failures that are none": with_value([], "failures"),
    "failures without texts": with_value({}, "failures"),
    "settings that are none": with_value(None, "settings"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_wrong_content_is_one_error_that_names_the_file(tmp_path, trained, kind):
    (tmp_path / CHECKPOINT).write_bytes(edited(trained, WRONG[kind]))
    with pytest.raises(ConfigurationError, match=str(tmp_path / CHECKPOINT)):
        resume(tmp_path)


@pytest.mark.parametrize(
    "content", [b"", b"no checkpoint", b"PK\x03\x04" + b"\0" * 90, b"\x80\x04N."]
)
def test_a_file_of_another_kind_is_one_error_that_names_the_file(tmp_path, content):
    (tmp_path / CHECKPOINT).write_bytes(content)
    with pytest.raises(ConfigurationError, match=rf"{tmp_path / CHECKPOINT} is damaged.*another"):
        resume(tmp_path)


def test_a_folder_in_its_place_is_named(tmp_path):
    (tmp_path / CHECKPOINT).mkdir()
    with pytest.raises(ConfigurationError, match=rf"{tmp_path / CHECKPOINT}.*no regular file"):
        resume(tmp_path)


def test_the_checkpoint_of_another_run_is_named(tmp_path, trained):
    (tmp_path / CHECKPOINT).write_bytes(trained)
    with pytest.raises(ConfigurationError, match=rf"^seed was 0.*{tmp_path / CHECKPOINT}"):
        resume(tmp_path, seed=1)


def test_flipped_bits_and_missing_ends_are_noticed(tmp_path, trained):
    """Of 500 flipped bits 493 went unnoticed without a checksum."""
    draw = random.Random(0)
    path = tmp_path / CHECKPOINT
    for _ in range(500):
        content = bytearray(trained)
        content[draw.randrange(len(content) - 100)] ^= 1 << draw.randrange(8)
        path.write_bytes(content)
        with pytest.raises(ConfigurationError, match="checksum differs"):
            read_checkpoint(tmp_path)
    for _ in range(20):
        path.write_bytes(trained[: draw.randrange(len(trained) - 100)])
        with pytest.raises(ConfigurationError, match="is damaged"):
            read_checkpoint(tmp_path)


def test_a_checkpoint_of_an_earlier_version_has_no_checksum_and_is_read(tmp_path, trained):
    state = torch.load(io.BytesIO(trained), weights_only=True)
    del state["format_version"]
    torch.save(state, tmp_path / CHECKPOINT)
    resumed = resume(tmp_path)
    assert resumed.episode == 3
    for name, weight in weights(resumed).items():
        assert torch.equal(weight, state["learner"]["online"][name])


def test_nothing_is_executed(tmp_path):
    class Runs:
        def __reduce__(self):
            return (open, (str(tmp_path / "ran"), "w"))

    write_checkpoint(tmp_path, {"episode": Runs()})
    with pytest.raises(ConfigurationError, match=r"checkpoint\.pt is damaged"):
        read_checkpoint(tmp_path)
    assert not (tmp_path / "ran").exists()


def kept(folder):
    """A task whose cosine is kept in the folder, and its file."""
    task = TinyTasks().sample(0, "validation")
    tuned = Rivals(folder)[task]
    return task, tuned, folder / f"{fingerprint(task)}.json"


def test_a_damaged_cosine_is_said_of_its_file_and_not_of_the_task(tmp_path):
    task, tuned, path = kept(tmp_path)
    content = path.read_text()
    assert Rivals(tmp_path)[task] == tuned
    values = json.loads(content)
    wrong = [
        *("", "[]", "{}", "nothing", content[: len(content) // 2], "[" * 5000, '{"peak": 1e400}'),
        content.replace(f'"peak": {values["peak"]}', '"peak": 123.0'),
        *(json.dumps({**values, name: "x"}) for name in values),
        *(json.dumps({k: v for k, v in values.items() if k != name}) for name in tuned._fields),
    ]
    unsealed = {name: value for name, value in values.items() if name != "sha256"}
    for name, value in (("peak", 0), ("train_losses", 3), ("train_losses", ["a"]), ("peak", True)):
        wrong.append(json.dumps({**unsealed, name: value}))
    for text in wrong:
        path.write_text(text)
        with pytest.raises(ConfigurationError, match=rf"{path} is damaged .*delete it"):
            usable_tasks(TinyTasks(), [0], Rivals(tmp_path), Failures())
    path.unlink()
    path.mkdir()
    with pytest.raises(ConfigurationError, match=rf"{path} is damaged .*no regular file"):
        Rivals(tmp_path)[task]


def test_a_flipped_bit_of_a_cosine_is_noticed_or_changes_nothing(tmp_path):
    task, tuned, path = kept(tmp_path)
    content = path.read_bytes()
    for bit in range(0, 8 * len(content), 5):
        changed = bytearray(content)
        changed[bit // 8] ^= 1 << bit % 8
        path.write_bytes(changed)
        try:
            found = Rivals(tmp_path)[task]
        except ConfigurationError as error:
            found = tuned if str(path) in str(error) else None
        assert found == tuned
