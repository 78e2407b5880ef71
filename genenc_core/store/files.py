"""The few file operations of the protocol; each says what is durable when it returns."""

import errno
import hashlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from genenc_core import errors
from genenc_core.store import digests
from genenc_core.store.digests import Buffer

_NO_HARD_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)


def write_new(path: Path, *parts: Buffer) -> None:
    """Write a file that must not exist and fsync it; its name is durable after `sync_folder` on its folder."""
    with path.open("xb") as file:
        file.writelines(parts)
        file.flush()
        os.fsync(file.fileno())


def sync_folder(path: Path) -> None:
    """Make the names in a folder durable: what was created, linked or renamed there before."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_folder(path: Path) -> None:
    """Create a folder and its missing parents; each new name is durable, also one that another process just made."""
    if not path.parent.is_dir():
        make_folder(path.parent)
    path.mkdir(exist_ok=True)
    sync_folder(path.parent)


def sync_tree(root: Path) -> None:
    """Fsync every file and folder below `root`, and `root`, children before parents."""
    for folder, _, names in os.walk(root, topdown=False):
        for name in names:
            descriptor = os.open(os.path.join(folder, name), os.O_RDONLY)  # noqa: PTH118 (half the cost of Path)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        sync_folder(Path(folder))


def link_exclusive(source: Path, target: Path) -> None:
    """Give a file a second name if nothing has it; durable after `sync_folder` on the target's folder.

    Raises:
        FileExistsError: the name is taken (over a network also when our own link won and the answer was lost).
        StoreError: the file system has no hard links.
    """
    try:
        os.link(source, target)
    except OSError as error:
        if error.errno in _NO_HARD_LINKS:
            raise errors.StoreError(
                f"cannot make a hard link at {str(target)!r} ({error.strerror}), and commits need them to have one "
                "winner; choose a folder on a file system that has them (ext4, xfs, btrfs, NFS)"
            ) from error
        raise


def remove_tree(path: Path) -> None:
    """Delete a folder, also while another process deletes it; not durable."""
    shutil.rmtree(path, ignore_errors=True)


def sha256(data: bytes | memoryview) -> str:
    """Return the sha256 of bytes."""
    return hashlib.sha256(data).hexdigest()


def digest(path: Path, algorithm: str = digests.SHA256) -> tuple[int, str]:
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
