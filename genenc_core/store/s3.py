"""A run folder on S3, or on a server that speaks it: conditional creation, server-side copies, nothing to fsync.

Needed of the server: a PUT is whole or not at all, `If-None-Match: *` has one winner, and what was written is read.
"""

import contextlib
import errno
import hashlib
import io
import os
import re
from collections.abc import Iterator
from datetime import timedelta
from typing import Any, BinaryIO, Final

from genenc_core import errors
from genenc_core.store import zarr_arrays

try:
    import obstore
    from obstore import exceptions
    from obstore.store import S3Store
except ImportError as error:
    raise errors.InputError("a run folder on S3 needs the package obstore: pip install 'genenc[s3]'") from error

LARGEST_OBJECT: Final = 5 * 10**9
"""Bytes of one PUT or one COPY; larger ones need several requests, which have no single winner."""
_RETRY: Final = {"max_retries": 8, "retry_timeout": timedelta(seconds=120)}
_CLIENT: Final = {"timeout": timedelta(seconds=120), "connect_timeout": timedelta(seconds=10)}


class S3Objects:
    """The objects below a prefix; see `objects.Objects`. Credentials and endpoint come from the `AWS_*` environment."""

    def __init__(self, bucket: str, prefix: str) -> None:
        self.bucket = bucket
        self.prefix = prefix
        with self._faults(prefix):
            self._store = _opened(bucket, prefix)

    def __repr__(self) -> str:
        return f"S3Objects({self.bucket!r}, {self.prefix!r})"

    @property
    def name(self) -> str:
        """The address."""
        return f"s3://{self.bucket}/{self.prefix}"

    def read(self, key: str) -> bytes:
        """Return an object's bytes: one GET."""
        with self._faults(key):
            return bytes(obstore.get(self._store, key).bytes())

    def open(self, key: str) -> BinaryIO:
        """Return a file whose reads are ranged GETs."""
        size = self.size(key)
        if size is None:
            raise FileNotFoundError(errno.ENOENT, "no such object", self._address(key))
        return io.BufferedReader(_RangeReader(self, key, size), buffer_size=2**20)

    def read_range(self, key: str, start: int, length: int) -> bytes:
        """Return a part of an object: one GET."""
        with self._faults(key):
            return bytes(obstore.get_range(self._store, key, start=start, length=length))

    def size(self, key: str) -> int | None:
        """Return an object's size: one HEAD."""
        try:
            with self._faults(key):
                return int(obstore.head(self._store, key)["size"])
        except FileNotFoundError:
            return None

    def digest(self, key: str) -> tuple[int, str]:
        """Return an object's size and sha256: one GET, in parts of memory."""
        hashed, size = hashlib.sha256(), 0
        with self._faults(key):
            for part in obstore.get(self._store, key).stream(min_chunk_size=2**20):
                hashed.update(part)
                size += len(part)
        return size, hashed.hexdigest()

    def has_group(self, folder: str) -> bool:
        """Return whether the group's own metadata is there: its creator writes it last."""
        return self.size(f"{folder}/{zarr_arrays.METADATA}") is not None

    def names(self, folder: str, prefix: str = "") -> list[str]:
        """Return the names in a folder that begin with `prefix`: a LIST for every thousand of all its names."""
        with self._faults(folder):
            found = obstore.list_with_delimiter(self._store, folder)
            keys = [*found["common_prefixes"], *(item["path"] for item in found["objects"])]
        names = (key.rstrip("/").rpartition("/")[2] for key in keys)
        return [name for name in names if name.startswith(prefix)]

    def walk(self, folder: str) -> Iterator[tuple[str, int]]:
        """Yield every object below a folder with its size: a LIST for every thousand."""
        with self._faults(folder):
            for page in obstore.list(self._store, folder):
                yield from ((item["path"].removeprefix(f"{folder}/"), int(item["size"])) for item in page)

    def make_folder(self, folder: str) -> None:
        """Do nothing: there are no folders."""

    def write_new(self, key: str, data: bytes | memoryview) -> None:
        """Write an object: one PUT, whole or not at all."""
        self._put(key, data)

    def create(self, key: str, data: bytes, *, via: str) -> None:  # noqa: ARG002 (local file systems need it)
        """Write an object unless there is one: one PUT with `If-None-Match: *`, never in several parts."""
        with self._faults(key):
            obstore.put(self._store, key, data, mode="create", use_multipart=False)

    def replace(self, key: str, data: bytes) -> None:
        """Write an object: one PUT."""
        self._put(key, data)

    def move(self, source: str, target: str, *, size: int | None = None) -> None:  # noqa: ARG002 (a PUT is whole)
        """Copy an object on the server; the source stays for whoever does the same."""
        with self._faults(source):
            obstore.copy(self._store, source, target)

    def take_away(self, source: str, target: str) -> None:
        """Copy an object on the server, then delete it."""
        self.move(source, target)
        self.remove(source)

    def remove(self, key: str) -> None:
        """Delete an object, if it is there."""
        with contextlib.suppress(FileNotFoundError), self._faults(key):
            obstore.delete(self._store, key)

    def remove_tree(self, folder: str) -> None:
        """Delete every object below a folder; like its local twin it leaves what it cannot delete."""
        with contextlib.suppress(OSError), self._faults(folder):
            keys = [item["path"] for page in obstore.list(self._store, folder) for item in page]
            if keys:
                obstore.delete(self._store, keys)

    def sync(self, *folders: str) -> None:
        """Do nothing: what was answered is durable."""

    def zarr_store(self, folder: str) -> Any:
        """Return a `zarr.storage.ObjectStore`."""
        from zarr.storage import ObjectStore

        return ObjectStore(_opened(self.bucket, f"{self.prefix}/{folder}"), read_only=True)

    def _put(self, key: str, data: bytes | memoryview) -> None:
        with self._faults(key):
            obstore.put(self._store, key, data, use_multipart=False)

    def _address(self, key: str) -> str:
        return f"{self.name}/{key}"

    @contextlib.contextmanager
    def _faults(self, key: str) -> Iterator[None]:
        """Raise obstore's exceptions as the `OSError`s that file systems raise."""
        try:
            yield
        except (exceptions.NotFoundError, FileNotFoundError) as error:
            raise FileNotFoundError(errno.ENOENT, "no such object", self._address(key)) from error
        except exceptions.AlreadyExistsError as error:
            raise FileExistsError(errno.EEXIST, "the object exists", self._address(key)) from error
        except (exceptions.PermissionDeniedError, exceptions.UnauthenticatedError) as error:
            raise PermissionError(errno.EACCES, _words(error), self._address(key)) from error
        except exceptions.BaseError as error:
            raise OSError(errno.EIO, _words(error), self._address(key)) from error


class _RangeReader(io.RawIOBase):
    """An object as a seekable file."""

    def __init__(self, objects: S3Objects, key: str, size: int) -> None:
        super().__init__()
        self._objects = objects
        self._key = key
        self._size = size
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        self._at = max(0, start + offset)
        return self._at

    def readinto(self, buffer: Any) -> int:
        length = min(len(buffer), self._size - self._at)
        if length <= 0:
            return 0
        buffer[:length] = self._objects.read_range(self._key, self._at, length)
        self._at += length
        return length


def _opened(bucket: str, prefix: str) -> S3Store:
    endpoints = (os.environ.get(name, "") for name in ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT"))
    plain = next(filter(None, endpoints), "").startswith("http://")
    client: Any = {**_CLIENT, "allow_http": plain}
    retry: Any = _RETRY
    return S3Store(bucket, prefix=prefix, client_options=client, retry_config=retry)


def _words(error: Exception) -> str:
    """Return what the server or the client said, in one line, without the client's dump of itself."""
    text = str(error).partition("Debug source:")[0]
    code = re.search(r"<Code>(\w+)</Code>", text)
    text = " ".join(text.partition("<?xml")[0].split()).rstrip(": ")
    if code:
        text = f"{text}: {code[1]}"
    return text if len(text) < 300 else text[:300] + "..."
