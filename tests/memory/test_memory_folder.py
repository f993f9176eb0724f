"""A folder of runs loses none, and takes nothing on trust."""

import json
import logging
import os
import signal
import subprocess
import sys
import time

import pytest

from lightning_dqnlr.errors import ConfigurationError, RecordError
from lightning_dqnlr.memory import Memory, RememberedRun

from .remembered import run

WRITER = """
import sys, torch
from lightning_dqnlr.memory import Memory
from tests.memory.remembered import run
memory = Memory(sys.argv[1])
print("ready", flush=True)
for k in range(int(sys.argv[2])):
    memory.add(run(k + 0.5, why=sys.argv[3]))
    print(k, flush=True)
"""


def test_eight_writers_and_a_kill_lose_no_run_that_was_written(tmp_path):
    def writer(name, count):
        command = [sys.executable, "-c", WRITER, str(tmp_path), str(count), name]
        return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)

    killed = writer("killed", 10**6)
    others = [writer(str(k), 20) for k in range(8)]
    for other in others:
        assert other.wait(120) == 0
    while sum(r.why == "killed" for r in Memory(tmp_path).runs().values()) < 3:
        time.sleep(0.05)
    os.kill(killed.pid, signal.SIGKILL)
    said = killed.communicate()[0].split()
    whys = [r.why for r in Memory(tmp_path).runs().values()]
    for k in range(8):
        assert whys.count(str(k)) == 20
    assert whys.count("killed") >= len(said) - 1  # "ready" is one of the words
    assert not list(tmp_path.glob("*.damaged"))


def test_two_folders_are_merged_by_copying_files(tmp_path):
    here, there = Memory(tmp_path / "a"), Memory(tmp_path / "b")
    here.add(run(2.0, date="2026-01-02T00:00:00"))
    copied = there.add(run(1.0))
    copied.rename(here.folder / copied.name)
    assert [r.value for r in here.runs().values()] == [1.0, 2.0]  # by date


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b'{"format": 1}', b"\xff\xfe", b"1e999"],
)
def test_a_damaged_file_is_named_set_aside_and_kept(tmp_path, caplog, content):
    memory = Memory(tmp_path)
    memory.add(run(1.0))
    bad = memory.add(run(2.0))
    bad.write_bytes(content)
    with caplog.at_level(logging.WARNING, "lightning_dqnlr"):
        assert len(memory.runs()) == 1
    assert bad.name in caplog.text
    assert bad.with_name(f"{bad.name}.damaged").read_bytes() == content
    caplog.clear()
    assert len(memory.runs()) == 1
    assert not caplog.records


def test_files_of_others_and_of_later_versions_stay_where_they_are(tmp_path, caplog):
    memory = Memory(tmp_path)
    later = memory.add(run(1.0))
    later.write_text('{"format": 2}')
    own = tmp_path / "package.json"
    own.write_text('{"name": "mine"}')
    (tmp_path / "folder.json").mkdir()
    copied = memory.add(run(1.0)).rename(tmp_path / "renamed.json")
    before = sorted(tmp_path.iterdir())
    assert list(memory.runs()) == [copied]
    assert sorted(tmp_path.iterdir()) == before
    assert caplog.text.count("stays where it is") == 3
    with pytest.raises(ConfigurationError, match="no run"):
        memory.forget("package.json")
    assert own.exists()


@pytest.mark.parametrize("folder", [True, 5, "", b"runs", None])
def test_what_is_no_folder_is_refused_by_name(folder):
    with pytest.raises(ConfigurationError, match="memory="):
        Memory(folder)


def test_a_name_that_is_no_text_is_refused(tmp_path):
    with pytest.raises(ConfigurationError, match="name=5"):
        Memory(tmp_path, name=5)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("held", -1.0), ("held", "0.1"), ("value", "low"), ("ended", "well"), ("steps", -1),
        ("mode", "most"), ("peak", None), ("why", 3), ("policy", []), ("extra", 1),
    ],
)  # fmt: skip
def test_a_field_out_of_its_range_is_refused_by_name(field, value):
    data = {**run(1.0).to_dict(), field: value}
    with pytest.raises(ConfigurationError, match=field):
        RememberedRun.from_dict(data)


def test_a_later_format_is_refused_and_a_run_comes_back_whole():
    data = run(1.0, held=0.1, error=0.01).to_dict()
    again = RememberedRun.from_dict(json.loads(json.dumps(data)))
    assert again == run(1.0, held=0.1, error=0.01)
    with pytest.raises(RecordError, match="format"):
        RememberedRun.from_dict({**data, "format": 2})


def test_a_forgotten_run_is_gone_and_nothing_else_can_be_deleted(tmp_path):
    memory = Memory(tmp_path / "memory")
    path = memory.add(run(1.0))
    outside = tmp_path / "mine.json"
    outside.write_text("{}")
    for name in ("../mine.json", "no.json", ".."):
        with pytest.raises(ConfigurationError, match="no run"):
            memory.forget(name)
    memory.forget(path.name)
    assert memory.runs() == {}
    assert outside.exists()


def test_a_file_in_the_place_of_the_folder_is_refused(tmp_path):
    path = tmp_path / "file"
    path.write_text("")
    with pytest.raises(ConfigurationError, match="is a file"):
        Memory(path)
