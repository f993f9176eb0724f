import os

import pytest

from lightning_dqnlr.errors import ConfigurationError
from lightning_dqnlr.files import write_atomically


def test_a_failed_write_leaves_the_previous_file_whole(tmp_path, monkeypatch):
    path = write_atomically(tmp_path / "a.bin", b"before")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ConfigurationError, match=r"No space left.*unchanged"):
        write_atomically(path, b"after")
    assert path.read_bytes() == b"before"
    assert [p.name for p in tmp_path.iterdir()] == ["a.bin"]


def test_missing_folders_are_made(tmp_path):
    assert write_atomically(tmp_path / "x" / "y.txt", b"1").read_bytes() == b"1"


def test_a_file_in_the_way_of_a_folder_is_named(tmp_path):
    (tmp_path / "x").write_text("")
    with pytest.raises(ConfigurationError, match=r"x/y.txt"):
        write_atomically(tmp_path / "x" / "y.txt", b"1")


def test_others_may_read_the_file(tmp_path):
    assert write_atomically(tmp_path / "a", b"1").stat().st_mode & 0o777 == 0o644
