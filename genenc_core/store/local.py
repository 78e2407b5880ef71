"""A run folder on a local file system, or on one that is mounted: hard links, atomic renames, fsync."""

import contextlib
import errno
import fcntl
import os
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from genenc_core import errors
from genenc_core.store import digests, files
from genenc_core.store.digests import Buffer


class LocalObjects:
    """The files below a folder; see `objects.Objects`."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def __repr__(self) -> str:
        return f"LocalObjects({str(self.root)!r})"

    @property
    def name(self) -> str:
        """The folder's path."""
        return str(self.root)

    @property
    def largest(self) -> int:
        """What the file system allows is not known: as good as no limit."""
        return sys.maxsize

    def path(self, key: str) -> Path:
        """Return a file's path."""
        return self.root / key

    def read(self, key: str) -> bytes:
        """Return a file's bytes."""
        return self.path(key).read_bytes()

    def open(self, key: str) -> BinaryIO:
        """Return the opened file."""
        return self.path(key).open("rb")

    def size(self, key: str) -> int | None:
        """Return the size of a file, a link or a folder itself; None when nothing has that name."""
        try:
            return os.lstat(self.path(key)).st_size
        except (FileNotFoundError, NotADirectoryError):
            return None

    def digest(self, key: str, algorithm: str = digests.SHA256) -> tuple[int, str]:
        """Return a file's size in bytes and its digest."""
        return files.digest(self.path(key), algorithm)

    def has_group(self, folder: str) -> bool:
        """Return whether the folder is there: creation renames it into place whole."""
        return self.path(folder).is_dir()

    def names(self, folder: str, prefix: str = "") -> list[str]:
        """Return the names in a folder that begin with `prefix`."""
        with os.scandir(self.path(folder)) as entries:
            return [entry.name for entry in entries if entry.name.startswith(prefix)]

    def stamps(self, folder: str) -> Iterator[tuple[str, tuple[int, int]]]:
        """Yield the names in a folder, with the bytes of each and when it was last changed, in nanoseconds."""
        with os.scandir(self.path(folder)) as entries:
            for entry in entries:
                try:
                    status = entry.stat(follow_symlinks=False)
                except FileNotFoundError:  # a repair took it away meanwhile
                    continue
                yield entry.name, (status.st_size, status.st_mtime_ns)

    def walk(self, folder: str) -> Iterator[tuple[str, int]]:
        """Yield every file below a folder with its size."""
        return files.walk(self.path(folder))

    def make_folder(self, folder: str) -> None:
        """Make a folder and its parents, but not the root: a run that was moved away does not come back."""
        self.root.stat()
        files.make_folder(self.path(folder))

    def write_new(self, key: str, *parts: Buffer) -> None:
        """Write and fsync a file that must not exist, in a folder that does."""
        files.write_new(self.path(key), *parts)

    def create(self, key: str, data: bytes, *, via: str) -> None:
        """Write and fsync the file under the private name, then link it to its own."""
        self.write_new(via, data)
        try:
            self._link(via, key, data)
        finally:
            self.remove(via)

    def _link(self, via: str, key: str, data: bytes) -> None:
        try:
            files.link_exclusive(self.path(via), self.path(key))
        except FileNotFoundError:
            if self.size(via) is not None:
                raise
            # A command that swept the folder took our file for a dead process's.
            self.write_new(via, data)
            files.link_exclusive(self.path(via), self.path(key))

    def replace(self, key: str, data: bytes) -> None:
        """Write and fsync a file beside the name, then rename it."""
        path = self.path(key)
        # The dot keeps it out of sight if a kill leaves it.
        partial = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.partial")
        try:
            self.root.stat()  # one that was moved away does not come back
            path.parent.mkdir(parents=True, exist_ok=True)
            files.write_new(partial, data)
            try:
                partial.replace(path)
            except FileNotFoundError:
                # A command that swept the folder took our file for a dead process's.
                files.write_new(partial, data)
                partial.replace(path)
        except OSError:
            with contextlib.suppress(OSError):
                partial.unlink()
            raise
        files.sync_folder(path.parent)

    def move(self, source: str, target: str, *, size: int | None = None) -> None:
        """Rename a file; a file system that lost some of its bytes is found out first."""
        staged = self.path(source)
        found = os.lstat(staged).st_size
        if size is not None and found != size:
            raise errors.StoreError(
                f"staged object {str(staged)!r} has {found} bytes, its record says {size}; the file system lost "
                "committed data, make the run again with another --out"
            )
        staged.replace(self.path(target))

    def take_away(self, source: str, target: str) -> None:
        """Rename a file."""
        self.path(source).rename(self.path(target))

    @contextlib.contextmanager
    def alone(self, key: str, note: bytes) -> Iterator[None]:
        """Hold the kernel's lock of a file, which is gone afterwards."""
        path = self.path(key)
        lock = self._locked(path)
        try:
            os.truncate(lock, 0)
            os.write(lock, note)
            yield
        finally:
            path.unlink(missing_ok=True)
            os.close(lock)

    def _locked(self, path: Path) -> int:
        while True:
            lock = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if os.path.samestat(os.fstat(lock), path.stat()):
                    return lock
            except BlockingIOError as error:
                os.close(lock)
                raise FileExistsError(errno.EEXIST, "another process works on it", str(path)) from error
            except FileNotFoundError:
                os.close(lock)  # the holder before us took the name away: make it anew
                continue
            os.close(lock)

    def remove(self, key: str) -> None:
        """Delete a file, if it is there."""
        self.path(key).unlink(missing_ok=True)

    def remove_tree(self, folder: str) -> None:
        """Delete a folder."""
        files.remove_tree(self.path(folder))

    def sync(self, *folders: str) -> None:
        """Fsync folders."""
        for folder in folders:
            files.sync_folder(self.path(folder))

    def zarr_store(self, folder: str) -> Any:
        """Return a `zarr.storage.LocalStore`."""
        from zarr.storage import LocalStore

        return LocalStore(self.path(folder), read_only=True)
