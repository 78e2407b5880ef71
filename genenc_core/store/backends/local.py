"""A run folder on a local file system, or on one that is mounted: hard links, atomic renames, fsync.

Whatever is done to a file reaches it through descriptors of its folders (`beneath`), so a symbolic link in a run folder
leads nowhere.
"""

import contextlib
import errno
import functools
import os
import stat
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from genenc_core import errors
from genenc_core.store.backends import beneath
from genenc_core.system import digests, files, locks
from genenc_core.system.digests import Buffer


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
        """Return a file's path, to show it: what opens it follows links."""
        return self.root / key

    def read(self, key: str, *, most: int | None = beneath.LARGEST_DOCUMENT) -> bytes:
        """Return a file's bytes."""
        with self.open(key, most=most) as file:
            return file.read()

    def read_range(self, key: str, start: int, length: int) -> bytes:
        """Return a part of a file; less where it ends."""
        with self.open(key) as file:
            file.seek(start if start >= 0 else max(os.fstat(file.fileno()).st_size + start, 0))
            return file.read(length)

    def open(self, key: str, *, most: int | None = None) -> BinaryIO:
        """Return the opened file."""
        return os.fdopen(beneath.opened(self.root, key, most=most), "rb")

    def size(self, key: str) -> int | None:
        """Return the size of a file, a link or a folder itself; None when nothing has that name."""
        about = self._about(key)
        return None if about is None else about.st_size

    def kind(self, key: str) -> str | None:
        """Return what a name stands for, None when nothing has it."""
        about = self._about(key)
        return None if about is None else beneath.kind(about.st_mode)

    def digest(
        self, key: str, algorithm: str = digests.CREATED.algorithm, *, size: int | None = None
    ) -> tuple[int, str]:
        """Return a file's size in bytes and its digest; "" for a file of another size than the one expected."""
        with self.open(key) as file:
            found = os.fstat(file.fileno()).st_size
            return (found, "") if size not in (None, found) else digests.of_file(file, algorithm)

    def has_group(self, folder: str) -> bool:
        """Return whether the folder is there: creation renames it into place whole."""
        about = self._about(folder)
        if about is not None and stat.S_ISLNK(about.st_mode):
            raise errors.UnsafeFileError(errno.ELOOP, beneath.kind(about.st_mode), str(self.path(folder)))
        return about is not None and stat.S_ISDIR(about.st_mode)

    def names(self, folder: str, prefix: str = "") -> list[str]:
        """Return the names in a folder that begin with `prefix`."""
        with beneath.folder(self.root, folder) as path, os.scandir(path) as entries:
            return [entry.name for entry in entries if entry.name.startswith(prefix)]

    def stamps(self, folder: str) -> Iterator[tuple[str, tuple[int, int]]]:
        """Yield the names in a folder, with the bytes of each and when it was last changed, in nanoseconds."""
        with beneath.folder(self.root, folder) as path, os.scandir(path) as entries:
            for entry in entries:
                try:
                    status = entry.stat(follow_symlinks=False)
                except FileNotFoundError:  # a repair took it away meanwhile
                    continue
                yield entry.name, (status.st_size, status.st_mtime_ns)

    def stamp(self, key: str) -> tuple[int, int]:
        """Return the bytes of a file and when it was last changed, in nanoseconds."""
        with beneath.name(self.root, key) as path:
            status = os.lstat(path)
        return status.st_size, status.st_mtime_ns

    def walk(self, folder: str) -> Iterator[tuple[str, int]]:
        """Yield every file below a folder with its size."""
        for name, entry in self._entries(folder):
            yield name, entry.stat(follow_symlinks=False).st_size

    def specials(self, folder: str) -> Iterator[tuple[str, str]]:
        """Yield every name below a folder that is neither a file nor a folder, with what it is."""
        for name, entry in self._entries(folder):
            if not entry.is_file(follow_symlinks=False):
                yield name, beneath.kind(entry.stat(follow_symlinks=False).st_mode)

    def _entries(self, folder: str) -> Iterator[tuple[str, "os.DirEntry[str]"]]:
        """Yield all that is no folder below a folder, by its path relative to it."""
        pending = [""]
        while pending:
            below = pending.pop()
            key = f"{folder}/{below}".strip("/")
            with beneath.folder(self.root, key) as path, os.scandir(path) as entries:
                for entry in entries:
                    if entry.is_dir(follow_symlinks=False):
                        pending.append(f"{below}{entry.name}/")
                    else:
                        yield below + entry.name, entry

    def make_folder(self, folder: str) -> None:
        """Make a folder and its parents, but not the root: a run that was moved away does not come back."""
        parent = folder.rpartition("/")[0]
        if parent and not self._is_folder(parent):
            self.make_folder(parent)
        with beneath.name(self.root, folder) as path:
            with contextlib.suppress(FileExistsError):
                path.mkdir()
            files.sync_folder(path.parent)
        with beneath.folder(self.root, folder):  # what was there is a folder, and no link to one
            pass

    def write_new(self, key: str, *parts: Buffer) -> None:
        """Write and fsync a file that must not exist, in a folder that does."""
        with beneath.name(self.root, key) as path:
            files.write_new(path, *parts)

    def create(self, key: str, data: bytes, *, via: str) -> None:
        """Write and fsync the file under the private name, then link it to its own."""
        with beneath.name(self.root, via) as source, beneath.name(self.root, key) as target:
            files.create(target, data, via=source)

    def replace(self, key: str, data: bytes) -> None:
        """Write and fsync a file beside the name, then rename it."""
        folder = key.rpartition("/")[0]
        if folder and not self._is_folder(folder):
            self.make_folder(folder)
        with beneath.name(self.root, key) as target:
            files.replace(target, lambda partial: files.write_new(partial, data))

    def move(self, source: str, target: str, *, size: int | None = None) -> None:
        """Rename a file; a file system that lost some of its bytes is found out first."""
        with beneath.name(self.root, source) as staged, beneath.name(self.root, target) as place:
            about = os.lstat(staged)
            if not stat.S_ISREG(about.st_mode):
                raise errors.UnsafeFileError(errno.ELOOP, beneath.kind(about.st_mode), str(self.path(source)))
            if size is not None and about.st_size != size:
                raise errors.StoreError(
                    f"staged object {str(self.path(source))!r} has {about.st_size} bytes, its record says {size}: it "
                    "changed, or the file system lost committed data. genenc verify --repair makes the shard pending"
                )
            staged.replace(place)

    def take_away(self, source: str, target: str) -> None:
        """Rename a file, a folder, or a link itself."""
        with beneath.name(self.root, source) as old, beneath.name(self.root, target) as new:
            old.rename(new)

    @contextlib.contextmanager
    def lock(self, key: str, note: bytes) -> Iterator[None]:
        """Hold the kernel's lock of a file, which is gone afterwards."""
        lock = self._locked(key)
        try:
            os.truncate(lock, 0)
            os.write(lock, note)
            yield
        finally:
            self.remove(key)
            os.close(lock)

    def _locked(self, key: str) -> int:
        opened = functools.partial(beneath.opened, self.root, key, os.O_RDWR | os.O_CREAT)
        try:
            return locks.acquire(opened, lambda: self._about(key), wait=False)
        except BlockingIOError as error:
            raise FileExistsError(errno.EEXIST, "another process works on it", str(self.path(key))) from error

    def append(self, key: str, data: bytes) -> None:
        """Add bytes to the end of a file by one write, not durable; the file is made where there is none."""
        descriptor = beneath.opened(self.root, key, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        try:
            os.write(descriptor, data)
        finally:
            os.close(descriptor)

    def remove(self, key: str) -> None:
        """Delete a file, if it is there."""
        with contextlib.suppress(FileNotFoundError), beneath.name(self.root, key) as path:
            path.unlink()

    def remove_tree(self, folder: str) -> None:
        """Delete a folder; a link to one stays."""
        with contextlib.suppress(OSError), beneath.name(self.root, folder) as path:
            files.remove_tree(path)

    def sync(self, *folders: str) -> None:
        """Fsync folders."""
        for folder in folders:
            with beneath.folder(self.root, folder) as path:
                files.sync_folder(path)

    def zarr_store(self, folder: str) -> Any:
        """Return a `zarr.storage.LocalStore`, which reads by path: refused where a link is below the folder.

        Raises:
            UnsafeFileError: a file of it is none.
        """
        from zarr.storage import LocalStore

        self.refuse_specials(folder)
        return LocalStore(self.path(folder), read_only=True)

    def refuse_specials(self, folder: str) -> None:
        """Raise `UnsafeFileError` when a name below a folder is neither a file nor a folder."""
        for name, what in self.specials(folder):
            raise errors.UnsafeFileError(errno.ELOOP, what, str(self.path(f"{folder}/{name}")))

    def _about(self, key: str) -> os.stat_result | None:
        try:
            with beneath.name(self.root, key) as path:
                return os.lstat(path)
        except (FileNotFoundError, NotADirectoryError):
            return None

    def _is_folder(self, key: str) -> bool:
        try:
            with beneath.folder(self.root, key):
                return True
        except FileNotFoundError:
            return False
