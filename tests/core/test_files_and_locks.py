"""Files replaced whole and locks of names: what another process sees, and what is left after a failure."""

import os
from pathlib import Path

import pytest

from genenc_core.system import files, locks


def write(path: Path) -> None:
    files.write_new(path, b"new")


def test_a_file_that_cannot_be_written_stays_as_it_was(tmp_path: Path) -> None:
    target = tmp_path / "file"
    target.write_bytes(b"old")

    def half(path: Path) -> None:
        path.write_bytes(b"ne")
        raise OSError("no space")

    with pytest.raises(OSError, match="no space"):
        files.replace(target, half)
    assert target.read_bytes() == b"old"
    files.replace(target, write)
    assert target.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [target]


def test_a_file_swept_on_its_way_is_written_again(tmp_path: Path) -> None:
    seen: list[Path] = []

    def swept_once(path: Path) -> None:
        write(path)
        seen.append(path)
        if len(seen) == 1:
            path.unlink()

    files.replace(tmp_path / "file", swept_once)
    assert (tmp_path / "file").read_bytes() == b"new"
    assert len(seen) == 2
    assert seen[0].name.startswith(".file.")


def test_a_name_that_is_taken_is_not_created_again(tmp_path: Path) -> None:
    files.create(tmp_path / "file", b"one", via=tmp_path / "private")
    with pytest.raises(FileExistsError):
        files.create(tmp_path / "file", b"two", via=tmp_path / "private")
    assert (tmp_path / "file").read_bytes() == b"one"
    assert not (tmp_path / "private").exists()


def test_a_lock_is_of_the_file_that_has_the_name(tmp_path: Path) -> None:
    """The first one that is opened loses its name before it is locked, as when its holder takes it away."""
    path, opened = tmp_path / "lock", []

    def open_it() -> int:
        opened.append(os.open(path, os.O_RDWR | os.O_CREAT))
        if len(opened) == 1:
            path.unlink()
        return opened[-1]

    held = locks.acquire(open_it, path.stat)
    assert len(opened) == 2
    assert os.path.samestat(os.fstat(held), path.stat())
    with pytest.raises(BlockingIOError):
        locks.acquire(lambda: os.open(path, os.O_RDWR), path.stat, wait=False)
    os.close(held)
    os.close(locks.acquire(lambda: os.open(path, os.O_RDWR), path.stat, wait=False))
