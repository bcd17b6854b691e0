import os
import stat

import pytest

from wagle_trainer.utils.atomic_files import write_atomically


def test_writes_replaces_and_leaves_nothing_beside(tmp_path):
    file = tmp_path / "file.bin"
    for content in (b"one", b"", b"\x00three"):
        write_atomically(file, content)
        assert file.read_bytes() == content
    assert list(tmp_path.iterdir()) == [file]


@pytest.mark.skipif(os.name == "nt", reason="POSIX modes")
def test_others_may_read_as_the_umask_says(tmp_path):
    before = os.umask(0o027)
    try:
        write_atomically(tmp_path / "file", b"content")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o640


def test_a_failure_leaves_the_old_content(tmp_path, monkeypatch):
    file = tmp_path / "file"
    write_atomically(file, b"old")

    def refuse(*_):
        raise OSError("Read-only file system")

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(OSError, match="Read-only"):
        write_atomically(file, b"new")
    assert file.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [file]


def test_what_a_killed_process_left_is_removed(tmp_path):
    file = tmp_path / "file"
    left, under_way = (tmp_path / f".file.{digit * 16}" for digit in "ab")
    others = [tmp_path / ".file.backup", tmp_path / f".other.{'c' * 16}"]
    for path in (left, under_way, *others):
        path.write_bytes(b"half")
    for path in (left, *others):
        os.utime(path, (0, 0))
    write_atomically(file, b"new")
    assert sorted(tmp_path.iterdir()) == sorted([file, under_way, *others])
