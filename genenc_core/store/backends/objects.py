"""The files of a run folder by key, wherever the folder lies: what the protocol needs of a file system or of S3."""

import re
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from genenc_core import errors, text
from genenc_core.store.backends.beneath import LARGEST_DOCUMENT
from genenc_core.system import digests
from genenc_core.system.digests import Buffer

Root = Path | str
"""A run folder: a local path, or `s3://bucket/prefix`."""

# pathlib folds the two slashes of an address into one.
_S3 = re.compile(r"s3:/{1,2}(?P<bucket>[^/]+)(?:/(?P<prefix>.*))?")


class Objects(Protocol):
    """One run folder's files. Keys are POSIX paths relative to the folder, such as `_txn/store.json`.

    All faults are `OSError`s: `FileNotFoundError` for a key that is not there, `FileExistsError` for a taken name,
    `UnsafeFileError` for what is not a regular file of a possible size, or is behind a symbolic link: it is left alone.
    A call that failed for another reason may have happened all the same.
    """

    @property
    def name(self) -> str:
        """The folder as a person names it."""

    @property
    def largest(self) -> int:
        """Bytes that a file can have."""

    def read(self, key: str, *, most: int | None = LARGEST_DOCUMENT) -> bytes:
        """Return a file's bytes; one of more than `most` is refused before it is read."""

    def read_range(self, key: str, start: int, length: int) -> bytes:
        """Return a part of a file: `length` bytes from `start`, which counts from the end when it is negative."""

    def open(self, key: str) -> BinaryIO:
        """Return a file to read parts of."""

    def size(self, key: str) -> int | None:
        """Return a file's size in bytes, None when nothing has that name."""

    def kind(self, key: str) -> str | None:
        """Return what a name stands for (`beneath.FILE`, `a symbolic link`, ...), None when nothing has it."""

    def digest(
        self, key: str, algorithm: str = digests.CREATED.algorithm, *, size: int | None = None
    ) -> tuple[int, str]:
        """Return a file's size in bytes and its digest in hexadecimal, in constant memory.

        A file of another `size` than the one expected is not read; its digest is "".
        """

    def has_group(self, folder: str) -> bool:
        """Return whether a Zarr group stands there, finished by its creator."""

    def names(self, folder: str, prefix: str = "") -> list[str]:
        """Return the names in a folder that begin with `prefix`, of files and folders."""

    def walk(self, folder: str) -> Iterator[tuple[str, int]]:
        """Yield every file below a folder: its key relative to the folder, its size in bytes."""

    def specials(self, folder: str) -> Iterator[tuple[str, str]]:
        """Yield every name below a folder that is neither a file nor a folder, with what it is; none on S3."""

    def make_folder(self, folder: str) -> None:
        """Make a folder and its parents, durable; also where it is."""

    def write_new(self, key: str, *parts: Buffer) -> None:
        """Write a file, given in parts, under a name that only the caller uses; durable after `sync` of its folder."""

    def create(self, key: str, data: bytes, *, via: str) -> None:
        """Give a file a name that nothing has, whole; durable after `sync` of its folder.

        Args:
            key: the name that one caller gets.
            data: its bytes.
            via: a name that only the caller uses, in a folder that is there; only a kill leaves a file under it.

        Raises:
            FileExistsError: the name is taken (over a network also by our own call, when its answer was lost).
        """

    def replace(self, key: str, data: bytes) -> None:
        """Write a file, whole old or whole new at any instant, durable."""

    def move(self, source: str, target: str, *, size: int | None = None) -> None:
        """Put a file in another place, replacing what is there; durable after `sync` of the target's folder.

        On S3 the source stays. Doing it again, or by several at once, is harmless.

        Raises:
            StoreError: the file system kept fewer bytes than `size`.
        """

    def take_away(self, source: str, target: str) -> None:
        """Move a file to a free name, and leave nothing at its old one; durable after `sync` of both folders.

        One step on a local file system. On S3 a copy and a deletion, so one caller at a time, and the deletion is asked
        for once only: a repeated one could meet what was created meanwhile.
        """

    def lock(self, key: str, note: bytes) -> AbstractContextManager[None]:
        """Be the only one in the block, of all that give this key; the note tells who.

        On a local file system the lock ends with the process. On S3 it is an object, which a kill leaves.

        Raises:
            FileExistsError: another is in its block, or was killed there.
        """

    def remove(self, key: str) -> None:
        """Delete a file, if it is there."""

    def remove_tree(self, folder: str) -> None:
        """Delete a folder, also while another process deletes it; not durable."""

    def sync(self, *folders: str) -> None:
        """Make the names in these folders durable."""

    def zarr_store(self, folder: str) -> Any:
        """Return a Zarr store of a folder, to read."""


def is_remote(root: Root) -> bool:
    """Return whether a run folder lies on S3."""
    return isinstance(root, str) and _S3.fullmatch(root) is not None


def to_root(place: str) -> Root:
    """Return the root that a user's text names."""
    return place if is_remote(place) else Path(place)


def open_objects(root: Root) -> Objects:
    """Return the files of a run folder; nothing is looked at yet.

    Raises:
        InputError: an `s3://` address without a prefix or with credentials, or S3 support is not installed.
    """
    if is_remote(root) and text.holds_credentials(str(root)):
        raise errors.InputError(
            f"{str(root)!r} holds credentials: leave them out, and give them in AWS_ACCESS_KEY_ID and "
            "AWS_SECRET_ACCESS_KEY or a profile"
        )
    match = _S3.fullmatch(str(root))
    if match is None:
        from genenc_core.store.backends import local

        if re.match(r"[a-z][a-z0-9+.-]+://", str(root)):
            raise errors.InputError(f"{str(root)!r}: a run folder is a local folder or s3://bucket/prefix")
        return local.LocalObjects(Path(root))
    prefix = (match["prefix"] or "").strip("/")
    if not prefix or "//" in prefix or any(part in (".", "..") for part in prefix.split("/")):
        raise errors.InputError(
            f"{str(root)!r} is not a place for a run: give s3://BUCKET/PREFIX, with a prefix of the run's own"
        )
    try:
        from genenc_core.store.backends import s3_objects
    except ImportError as error:
        raise errors.InputError("a run folder on S3 needs the package obstore: pip install 'genenc[s3]'") from error
    return s3_objects.S3Objects(match["bucket"], prefix)


def join(root: Root, key: str) -> str:
    """Return the path or address of a file in a run folder, as a person names it."""
    return f"{str(root).rstrip('/')}/{key}"
