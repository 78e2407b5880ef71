"""Files below a run folder, reached one component after the other: no symbolic link is followed on the way.

The run folder itself may be a link or be reached through links; whoever wrote what is below it may be a stranger. A
file is opened only when it is a regular one: a named pipe would keep its reader waiting, a device may do anything.
"""

import contextlib
import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from genenc_core.errors import UnsafeFileError

LARGEST_DOCUMENT: Final = 2**28
"""Bytes of a record or a tally that are read at once."""

_FOLDER: Final = os.O_RDONLY | os.O_DIRECTORY
_KINDS: Final = {
    stat.S_IFREG: "a file",
    stat.S_IFDIR: "a folder",
    stat.S_IFLNK: "a symbolic link",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFBLK: "a device",
    stat.S_IFCHR: "a device",
}
FILE: Final = _KINDS[stat.S_IFREG]
FOLDER: Final = _KINDS[stat.S_IFDIR]


def kind(mode: int) -> str:
    """Return what a name stands for, by its `st_mode`: `a file`, `a folder`, `a symbolic link`, ..."""
    return _KINDS.get(stat.S_IFMT(mode), "of an unknown kind")


@contextlib.contextmanager
def folder(root: Path, key: str) -> Iterator[Path]:
    """Give a path to the folder `key` below `root` that stays this folder, whatever happens to its name.

    The path goes through a descriptor, so nothing before its last component is looked up by name any more.

    Raises:
        UnsafeFileError: a component is a symbolic link.
        OSError: there is no such folder.
    """
    with _held(root, key) as held:
        yield Path(held)


@contextlib.contextmanager
def name(root: Path, key: str) -> Iterator[Path]:
    """Give a path to what `key` names below `root`; only its last component is looked up, by what uses the path."""
    parent, _, last = key.rpartition("/")
    with _held(root, parent) as held:
        yield Path(f"{held}/{last}")


def opened(root: Path, key: str, flags: int = os.O_RDONLY, *, most: int | None = None) -> int:
    """Return the descriptor of a regular file.

    Args:
        root: the run folder.
        key: the file.
        flags: of `open(2)`; a file that is to be changed in place must have no second name.
        most: bytes that it may have.

    Raises:
        UnsafeFileError: a link, a pipe, a socket, a device, larger than `most`, or another name of a file elsewhere.
        OSError: it cannot be opened.
    """
    parent, _, last = key.rpartition("/")
    with _held(root, parent) as held:
        path = f"{held}/{last}"
        try:
            _require_file(os.lstat(path), root, key)  # opening a pipe or a device does something already
        except FileNotFoundError:
            if not flags & os.O_CREAT:
                raise
        try:
            descriptor = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)
        except OSError as error:
            if error.errno == errno.ELOOP:
                raise UnsafeFileError(errno.ELOOP, kind(stat.S_IFLNK), str(root / key)) from error
            raise
    try:
        about = os.fstat(descriptor)
        _require_file(about, root, key)
        if most is not None and about.st_size > most:
            raise UnsafeFileError(errno.EFBIG, f"a file of {about.st_size:,} bytes, not one of genenc", str(root / key))
        if flags & (os.O_RDWR | os.O_WRONLY) and about.st_nlink > 1:
            raise UnsafeFileError(errno.EMLINK, "a file with a second name elsewhere (a hard link)", str(root / key))
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


@contextlib.contextmanager
def _held(root: Path, key: str) -> Iterator[str]:
    """Give the path of a folder's descriptor; errors of the block name the folder itself."""
    descriptor = _opened(root, key)
    held = f"/proc/self/fd/{descriptor}"
    try:
        yield held
    except OSError as error:
        where = str(root / key)
        for name in ("filename", "filename2"):
            path = getattr(error, name)
            path = os.fsdecode(path) if isinstance(path, bytes | str | os.PathLike) else ""
            if path == held or path.startswith(f"{held}/"):
                setattr(error, name, where + path.removeprefix(held))
        raise
    finally:
        os.close(descriptor)


def _opened(root: Path, key: str) -> int:
    """Return the descriptor of a folder."""
    at = os.open(root, _FOLDER)
    for part in key.split("/") if key else ():
        try:
            below = os.open(part, _FOLDER | os.O_NOFOLLOW, dir_fd=at)
        except OSError as error:
            if _is_link(part, at):
                raise UnsafeFileError(errno.ELOOP, kind(stat.S_IFLNK), _path(root, key, part)) from error
            error.filename = _path(root, key, part)
            raise
        finally:
            os.close(at)
        at = below
    return at


def _path(root: Path, key: str, part: str) -> str:
    parts = key.split("/")
    return str(root.joinpath(*parts[: parts.index(part) + 1]))


def _is_link(part: str, at: int) -> bool:
    try:
        return stat.S_ISLNK(os.lstat(part, dir_fd=at).st_mode)
    except OSError:
        return False


def _require_file(about: os.stat_result, root: Path, key: str) -> None:
    if stat.S_ISREG(about.st_mode):
        return
    if stat.S_ISDIR(about.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(root / key))
    number = errno.ELOOP if stat.S_ISLNK(about.st_mode) else errno.ENXIO
    raise UnsafeFileError(number, kind(about.st_mode), str(root / key))
