"""Which rows a process is decoding, kept outside it, so that its successor knows what it died of.

Every loader has one small file: a few row numbers per thread, -1 for none, written with `pwrite` before the thread
decodes them and when it has nothing more to do. The process holds a kernel lock on it, so a file without a lock is a
dead process's, and the rows in it are suspects. What survives a crash of the process need not survive one of the
machine: nothing is synced.
"""

import contextlib
import fcntl
import os
import secrets
import stat
import struct
import threading
from collections.abc import Sequence
from pathlib import Path

MOST_ROWS = 8
"""That a thread may have noted at once."""
_NONE = struct.pack("<q", -1)
_SUFFIX = ".rows"
_LARGEST = 2**24
"""Bytes of such a file; a larger one is none."""


class Journal:
    """This process's file and those that dead processes left; `None` as the folder keeps nothing. For all threads."""

    def __init__(self, folder: Path | None, slots: int) -> None:
        self._folder = folder
        self._path: Path | None = None
        self._descriptor = -1
        self._left: dict[Path, set[int]] = {}
        self._looking = threading.Lock()
        """Held while what others left is read and changed: not by threads that decode, for other folders are slow."""
        self._writing = threading.Lock()
        if folder is not None:
            with contextlib.suppress(OSError):  # a file system that cannot lock or is full: work goes on without it
                self._create(folder, slots)

    def begin(self, slot: int, rows: Sequence[int]) -> None:
        """Note what a thread begins with, in place of what it had noted: `MOST_ROWS` rows at most."""
        noted = struct.pack(f"<{len(rows)}q", *rows) + _NONE * (MOST_ROWS - len(rows))
        with self._writing:
            self._put(slot * MOST_ROWS, noted)

    def end(self, slot: int) -> None:
        """Note that a thread is idle."""
        self.begin(slot, ())

    def suspects(self) -> set[int]:
        """Return the rows that dead processes had in work, and that are not settled."""
        with self._looking:
            with contextlib.suppress(OSError):
                self._look()
            return set().union(*self._left.values())

    def settle(self, start: int, stop: int) -> None:
        """Forget the rows from `start` up to `stop`: they are stored."""
        done = range(start, stop)
        with self._looking, contextlib.suppress(OSError):
            for path, rows in list(self._left.items()):
                rows.difference_update(done)
                if not rows:
                    path.unlink(missing_ok=True)
                    del self._left[path]
        # Else a thread could note its next rows in the place of one that was read and is being removed.
        with self._writing:
            if self._descriptor >= 0:
                for place, row in enumerate(_rows(self._descriptor)):
                    if row in done:
                        self._put(place, _NONE)

    def close(self, *, hung: bool = False) -> None:
        """Remove this process's file and let go of it.

        With threads that hang it stays open, for they may still note that they ended, and the file stays where it is
        while a row in it is not settled.
        """
        if self._descriptor < 0 or self._path is None:
            return
        idle = all(row < 0 for row in _rows(self._descriptor))
        if not hung:
            os.close(self._descriptor)
            self._descriptor = -1
        if idle or not hung:
            with contextlib.suppress(OSError):
                self._path.unlink(missing_ok=True)
                self._path.parent.rmdir()

    def _create(self, folder: Path, slots: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        name = f"{os.getpid()}-{secrets.token_hex(4)}"
        partial, path = folder / f".{name}.partial", folder / f"{name}{_SUFFIX}"
        descriptor = os.open(partial, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.pwrite(descriptor, _NONE * MOST_ROWS * slots, 0)
            partial.rename(path)
        except OSError:
            os.close(descriptor)
            partial.unlink(missing_ok=True)
            raise
        self._descriptor, self._path = descriptor, path

    def _put(self, place: int, rows: bytes) -> None:
        if self._descriptor >= 0:
            with contextlib.suppress(OSError):
                os.pwrite(self._descriptor, rows, place * len(_NONE))

    def _look(self) -> None:
        """Take in the files of dead processes that were not seen yet."""
        if self._folder is None:
            return
        for path in self._folder.glob(f"*{_SUFFIX}"):
            if path == self._path or path in self._left:
                continue
            rows = _left_behind(path)
            if rows:
                self._left[path] = rows
            elif rows is not None:
                path.unlink(missing_ok=True)


def sweep(folder: Path) -> None:
    """Remove what dead processes left in a folder, for a run in which every row is stored: none is a suspect."""
    with contextlib.suppress(OSError):
        for path in [*folder.glob(f"*{_SUFFIX}"), *folder.glob(".*.partial")]:
            if _left_behind(path) is not None:
                path.unlink(missing_ok=True)
        folder.rmdir()


def _left_behind(path: Path) -> set[int] | None:
    """Return the rows that a dead process had in work; None when the process lives, or another one was faster."""
    try:
        # A pipe would keep the opener waiting; a link is nobody's notes.
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return None
    try:
        # Shared, so that two that look at once do not take each other for the owner.
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return {row for row in _rows(descriptor) if row >= 0}
    except BlockingIOError:
        return None
    finally:
        os.close(descriptor)


def _rows(descriptor: int) -> list[int]:
    about = os.fstat(descriptor)
    if not stat.S_ISREG(about.st_mode) or about.st_size > _LARGEST:
        return []
    content = os.pread(descriptor, about.st_size, 0)
    return [row for (row,) in struct.iter_unpack("<q", content[: len(content) // 8 * 8])]
