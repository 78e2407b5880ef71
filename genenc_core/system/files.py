"""Durable file operations; each docstring states what is durable on return."""

import contextlib
import errno
import os
import shutil
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

from genenc_core import errors
from genenc_core.system import digests
from genenc_core.system.digests import Buffer

_NO_HARD_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)


def write_new(path: Path, *parts: Buffer) -> None:
    """Create a file and fsync it; it must not exist. Its name is durable after `sync_folder` on its folder."""
    with path.open("xb") as file:
        file.writelines(parts)
        file.flush()
        os.fsync(file.fileno())


def sync_folder(path: Path) -> None:
    """Make names in a folder durable that were created, linked or renamed before."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_folder(path: Path) -> None:
    """Create a folder and its missing parents durably, including those another process has just created."""
    if not path.parent.is_dir():
        make_folder(path.parent)
    path.mkdir(exist_ok=True)
    sync_folder(path.parent)


def sync_tree(root: Path) -> None:
    """Fsync every file and folder below `root`, and `root`, children before parents."""
    for folder, _, names in os.walk(root, topdown=False):
        for name in names:
            sync(os.path.join(folder, name))  # noqa: PTH118 (half the cost of Path)
        sync_folder(Path(folder))


def link_exclusive(source: Path, target: Path) -> None:
    """Hard-link a file to a name that must be free; durable after `sync_folder` on the target's folder.

    Raises:
        FileExistsError: the name is taken (on a network also if our own link succeeded but the reply was lost).
        StoreError: the file system has no hard links.
    """
    try:
        os.link(source, target)
    except OSError as error:
        if error.errno in _NO_HARD_LINKS:
            raise errors.StoreError(
                f"cannot create a hard link at {str(target)!r} ({error.strerror}), which commits require; choose a "
                "folder on a file system with hard links (ext4, xfs, btrfs, NFS)"
            ) from error
        raise


def create(target: Path, *parts: Buffer, via: Path) -> None:
    """Create a complete file at a free name via a private one; durable after `sync_folder` on its folder.

    Raises:
        FileExistsError, StoreError: as `link_exclusive`.
    """
    write_new(via, *parts)
    try:
        try:
            link_exclusive(via, target)
        except FileNotFoundError:
            if via.exists():
                raise
            # Another command swept our file as that of a dead process.
            write_new(via, *parts)
            link_exclusive(via, target)
    finally:
        via.unlink(missing_ok=True)


def private_name(name: str, kind: str = "partial") -> str:
    """Return a temporary name for writing `name`; the dot hides it if a kill leaves it behind."""
    return f".{name}.{uuid.uuid4().hex[:8]}.{kind}"


def replace(target: Path, write: Callable[[Path], None]) -> None:
    """Atomically and durably replace a file by the one that `write` creates and fsyncs.

    `write` gets a private name beside `target`, left behind only after a kill. It is called again if another command
    swept that file as a dead process's.
    """
    partial = target.with_name(private_name(target.name))
    try:
        write(partial)
        try:
            partial.replace(target)
        except FileNotFoundError:
            write(partial)
            partial.replace(target)
        sync_folder(target.parent)
    except BaseException:
        with contextlib.suppress(OSError):
            partial.unlink()
        raise


def copy(source: Path, target: Path) -> None:
    """Copy a file and fsync the copy; its name is durable after `sync_folder` on its folder."""
    shutil.copyfile(source, target)
    sync(target)


def link_or_copy(source: Path, target: Path) -> None:
    """Hard-link a file that is never written again, or copy and fsync it where the file system has no such links."""
    try:
        os.link(source, target)
    except OSError:  # another file system, too many links of one file, ...: a copy tells what else is wrong
        copy(source, target)


def sync(path: Path | str) -> None:
    """Fsync a file."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove_tree(path: Path) -> None:
    """Delete a folder, even while another process deletes it; not durable."""
    shutil.rmtree(path, ignore_errors=True)


def digest(path: Path, algorithm: str = digests.CREATED.algorithm) -> tuple[int, str]:
    """Return a file's size in bytes and the digest of its bytes in hexadecimal, in constant memory."""
    with path.open("rb") as file:
        return digests.of_file(file, algorithm)


def walk(root: Path) -> Iterator[tuple[str, int]]:
    """Yield every file below `root` as its POSIX path relative to it and its size in bytes."""
    pending = [""]
    while pending:
        folder = pending.pop()
        with os.scandir(root / folder) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    pending.append(f"{folder}{entry.name}/")
                else:
                    yield folder + entry.name, entry.stat(follow_symlinks=False).st_size
