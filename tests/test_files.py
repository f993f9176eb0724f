import os
from contextlib import suppress

import pytest

from lightning_dqnlr.errors import ConfigurationError
from lightning_dqnlr.files import (
    check_writable,
    parse_json,
    read_regular,
    sealed,
    unsealed,
    write_atomically,
)


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


def test_a_folder_is_tried_before_work_and_not_made(tmp_path):
    check_writable("into", tmp_path / "x" / "y")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "y"):
        with pytest.raises(ConfigurationError, match=r"^into=.*cannot be written"):
            check_writable("into", path)


def test_others_may_read_the_file(tmp_path):
    assert write_atomically(tmp_path / "a", b"1").stat().st_mode & 0o777 == 0o644


@pytest.mark.parametrize("text", ["NaN", "[1e400]", "-Infinity", "9" * 30, "9" * 5000, "[" * 99999])
def test_json_that_is_not_finite_or_too_deep_is_refused(text):
    with pytest.raises(ValueError, match=r"64 bits|32 levels"):
        parse_json(text)


def test_json_of_the_allowed_depth_is_read():
    assert parse_json("[" * 32 + "]" * 32)
    with pytest.raises(ValueError, match="32 levels"):
        parse_json("[" * 33 + "]" * 33)


def test_only_regular_files_of_a_size_are_read(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(b"12345")
    assert read_regular(path, 5) == b"12345"
    with pytest.raises(OSError, match="5 bytes are more than 4"):
        read_regular(path, 4)
    with pytest.raises(OSError, match="no regular file"):
        read_regular(tmp_path, 5)


@pytest.mark.skipif(not os.access("/proc/kmsg", os.R_OK), reason="for root on Linux")
def test_a_regular_file_that_has_nothing_to_say_yet_is_not_waited_for():
    """It is empty, or it has grown while it was read where the kernel has something to say."""
    with suppress(OSError):
        assert len(read_regular("/proc/kmsg", 10)) <= 1


def test_a_file_that_becomes_a_fifo_is_not_waited_for(tmp_path, monkeypatch):
    """Between the look at it and its opening."""
    path = tmp_path / "a"
    os.mkfifo(path)
    seen = iter([os.stat(__file__)])
    monkeypatch.setattr(os, "stat", lambda _: next(seen))
    with pytest.raises(OSError, match="no regular file"):
        read_regular(path, 10**6)


def test_each_bit_of_sealed_content_matters():
    content = sealed(b"some content")
    assert unsealed(content) == b"some content"
    assert unsealed(b"without a seal") == b"without a seal"
    for i in range(8 * len(b"some content")):
        changed = bytearray(content)
        changed[i // 8] ^= 1 << i % 8
        with pytest.raises(ValueError, match="checksum"):
            unsealed(bytes(changed))
