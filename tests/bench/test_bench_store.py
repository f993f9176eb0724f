"""The store of benchmark runs: keys, damage, concurrent writers."""

import multiprocessing
from dataclasses import replace

import pytest

from lightning_dqnlr.bench.runs.archive import Store
from lightning_dqnlr.bench.runs.record import Record
from lightning_dqnlr.errors import ConfigurationError

RECORD = Record(
    task="digits MLP",
    split="new seeds",
    optimizer="adam",
    method="cosine",
    lr=1e-3,
    seed=0,
    horizon=10,
    batch_size=8,
    parameters=30,
    initial_train=2.0,
    initial_validation=2.1,
    final_train=1.0,
    final_validation=None,
    curve={"step": [0, 10], "train": [2.0, 1.0], "validation": [2.1, None], "lr": [1e-3, 0.0]},
    seconds=0.5,
    extra_bytes=0,
    tries=1,
    failure=None,
    version="v0",
    policy=None,
)
OTHERS = {
    "task": "digits-MLP",  # the same but for what a file name cannot hold
    "method": "cosine ",
    "lr": 1.0000001e-3,
    "seed": 1,
    "version": "v1",
    "policy": "p",
}


def put_many(folder, first):
    store = Store(folder)
    for seed in range(first, first + 100):
        store.put(replace(RECORD, seed=seed % 50))  # half of them are another process's, too


def test_what_was_put_comes_back_whole(tmp_path):
    Store(tmp_path).put(RECORD)
    again = Store(tmp_path)
    assert again.get(RECORD.key)
    assert again.get(RECORD.key) == RECORD
    assert list(again.records()) == [RECORD]


@pytest.mark.parametrize("field", OTHERS)
def test_a_run_that_differs_in_any_field_of_the_key_is_another_run(field, tmp_path):
    store, other = Store(tmp_path), replace(RECORD, **{field: OTHERS[field]})
    store.put(RECORD)
    assert not store.get(other.key)
    store.put(other)
    assert store.get(RECORD.key) == RECORD
    assert store.get(other.key) == other


def test_no_learning_rate_is_not_the_rate_zero(tmp_path):
    store = Store(tmp_path)
    store.put(replace(RECORD, lr=None))
    assert not store.get(replace(RECORD, lr=0.0).key)


@pytest.mark.parametrize("length", [0, 1, 200, -3])
def test_a_truncated_file_counts_as_missing_and_is_replaced(length, tmp_path):
    store = Store(tmp_path)
    path = store.put(RECORD)
    path.write_bytes(path.read_bytes()[:length])
    assert not store.get(RECORD.key)
    assert list(store.records()) == []
    store.put(RECORD)
    assert store.get(RECORD.key) == RECORD


@pytest.mark.parametrize("content", [b"\xff\xfe\x00", b"[]", b'{"task": "digits MLP"}', b"null"])
def test_a_file_of_something_else_is_not_fatal(content, tmp_path):
    store = Store(tmp_path)
    store.path(RECORD.key).parent.mkdir(parents=True)
    store.path(RECORD.key).write_bytes(content)
    assert not store.get(RECORD.key)
    assert list(store.records()) == []


def test_a_file_under_a_wrong_name_is_not_taken_for_the_run(tmp_path):
    store, other = Store(tmp_path), replace(RECORD, seed=7)
    store.put(RECORD).rename(store.path(other.key))
    assert not store.get(other.key)


def test_what_a_kill_left_half_written_is_no_record(tmp_path):
    store = Store(tmp_path)
    path = store.put(RECORD)
    path.with_name(f".{path.name}.abc.partial").write_bytes(path.read_bytes()[:50])
    assert list(store.records()) == [RECORD]


def test_several_processes_may_write_at_once(tmp_path):
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=put_many, args=(tmp_path, i)) for i in (0, 25)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
        assert writer.exitcode == 0
    assert sorted(record.seed for record in Store(tmp_path).records()) == list(range(50))
    assert len([path for path in tmp_path.rglob("*") if path.is_file()]) == 50


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    store = Store(tmp_path / "file")
    assert not store.get(RECORD.key)
    with pytest.raises(ConfigurationError, match="choose another folder"):
        store.put(RECORD)
