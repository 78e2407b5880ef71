"""A run folder on S3, or a server that speaks it: conditional creation, server-side copies, timeouts."""

import contextlib
import errno
import io
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO, TypeVar

import obstore
from obstore import exceptions

from genenc_core import errors
from genenc_core.store import zarr_bytes
from genenc_core.store.backends import beneath
from genenc_core.system import digests
from genenc_core.system.digests import Buffer
from genenc_core.system.s3 import BULK, RETRY, describe_error, open_store

Answer = TypeVar("Answer")


class S3Objects:
    """The objects below a prefix; see `objects.Objects`. Credentials and endpoint come from the `AWS_*` environment."""

    def __init__(self, bucket: str, prefix: str) -> None:
        self.bucket = bucket
        self.prefix = prefix
        self._store = open_store(bucket, prefix)
        self._bulk = open_store(bucket, prefix, client=BULK)

    def __repr__(self) -> str:
        return f"S3Objects({self.bucket!r}, {self.prefix!r})"

    @property
    def name(self) -> str:
        """The address."""
        return f"s3://{self.bucket}/{self.prefix}"

    @property
    def largest(self) -> int:
        """Bytes of one PUT or one COPY; more take several requests, which have no single winner."""
        return 5 * 10**9

    def read(self, key: str, *, most: int | None = beneath.LARGEST_DOCUMENT) -> bytes:
        """Return an object's bytes: one GET."""

        def read() -> bytes:
            answer = obstore.get(self._bulk, key)
            size = int(answer.meta["size"])
            if most is not None and size > most:
                what = f"an object of {size:,} bytes, not one of genenc"
                raise errors.UnsafeFileError(errno.EFBIG, what, self._address(key))
            return bytes(answer.bytes())

        return self._whole(key, read)

    def open(self, key: str) -> BinaryIO:
        """Return a file whose reads are ranged GETs."""
        size = self.size(key)
        if size is None:
            raise FileNotFoundError(errno.ENOENT, "no such object", self._address(key))
        return io.BufferedReader(_RangeReader(self, key, size), buffer_size=2**20)

    def read_range(self, key: str, start: int, length: int) -> bytes:
        """Return a part of an object: one GET."""
        if start >= 0:
            return self._whole(key, lambda: bytes(obstore.get_range(self._bulk, key, start=start, length=length)))
        asked: Any = {"range": {"suffix": -start}}
        return self._whole(key, lambda: bytes(obstore.get(self._bulk, key, options=asked).bytes())[:length])

    def size(self, key: str) -> int | None:
        """Return an object's size: one HEAD."""
        try:
            with self._faults(key):
                return int(obstore.head(self._store, key)["size"])
        except FileNotFoundError:
            return None

    def kind(self, key: str) -> str | None:
        """Return what a key stands for: one HEAD."""
        return None if self.size(key) is None else beneath.FILE

    def digest(
        self, key: str, algorithm: str = digests.CREATED.algorithm, *, size: int | None = None
    ) -> tuple[int, str]:
        """Return an object's size and digest: one GET, in constant memory."""

        def read() -> tuple[int, str]:
            answer = obstore.get(self._bulk, key)
            if size not in (None, int(answer.meta["size"])):
                return int(answer.meta["size"]), ""
            hashed, found = digests.new(algorithm), 0
            for part in answer.stream(min_chunk_size=2**20):
                hashed.update(part)
                found += len(part)
            return found, str(hashed.hexdigest())

        return self._whole(key, read)

    def has_group(self, folder: str) -> bool:
        """Return whether the group's own metadata is there: its creator writes it last."""
        return self.size(f"{folder}/{zarr_bytes.METADATA}") is not None

    def names(self, folder: str, prefix: str = "") -> list[str]:
        """Return the names in a folder that begin with `prefix`: a LIST for every thousand of all its names."""
        found = self._whole(folder, lambda: obstore.list_with_delimiter(self._store, folder))
        keys = [*found["common_prefixes"], *(item["path"] for item in found["objects"])]
        names = (key.rstrip("/").rpartition("/")[2] for key in keys)
        return [name for name in names if name.startswith(prefix)]

    def walk(self, folder: str) -> Iterator[tuple[str, int]]:
        """Yield every object below a folder with its size: a LIST for every thousand."""
        for path, size in self._listed(folder):
            yield path.removeprefix(f"{folder}/"), size

    def specials(self, folder: str) -> Iterator[tuple[str, str]]:  # noqa: ARG002 (local file systems need it)
        """Yield nothing: there are objects only."""
        return iter(())

    def make_folder(self, folder: str) -> None:
        """Do nothing: there are no folders."""

    def write_new(self, key: str, *parts: Buffer) -> None:
        """Write an object: one PUT, whole or not at all."""
        self._put(key, parts[0] if len(parts) == 1 else b"".join(parts))

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
            obstore.copy(self._bulk, source, target)

    def take_away(self, source: str, target: str) -> None:
        """Copy an object on the server, then delete it, by one request that is not repeated."""
        self.move(source, target)
        try:
            with self._faults(source):
                obstore.delete(open_store(self.bucket, self.prefix, retry={**RETRY, "max_retries": 0}), source)
        except ConnectionError:
            if self.size(source) is not None:
                raise

    @contextlib.contextmanager
    def lock(self, key: str, note: bytes) -> Iterator[None]:
        """Hold an object that one process can create."""
        try:
            self.create(key, note, via="")
        except FileExistsError:
            if self.read(key) != note:  # ours, when the first answer was lost
                raise
        try:
            yield
        finally:
            self.remove(key)

    def remove(self, key: str) -> None:
        """Delete an object, if it is there."""
        with contextlib.suppress(FileNotFoundError), self._faults(key):
            obstore.delete(self._store, key)

    def remove_tree(self, folder: str) -> None:
        """Delete every object below a folder; like its local twin it leaves what it cannot delete."""
        with contextlib.suppress(OSError):
            keys = [key for key, _ in self._listed(folder)]
            if keys:
                with self._faults(folder):
                    obstore.delete(self._store, keys)

    def sync(self, *folders: str) -> None:
        """Do nothing: what was answered is durable."""

    def zarr_store(self, folder: str) -> Any:
        """Return a `zarr.storage.ObjectStore`."""
        from zarr.storage import ObjectStore

        return ObjectStore(open_store(self.bucket, f"{self.prefix}/{folder}"), read_only=True)

    def _listed(self, folder: str) -> list[tuple[str, int]]:
        """Return every object below a folder: its key and its size."""
        return self._whole(
            folder, lambda: [(i["path"], int(i["size"])) for page in obstore.list(self._store, folder) for i in page]
        )

    def _whole(self, key: str, read: Callable[[], Answer]) -> Answer:
        """Return what `read` returns; obstore asks again by itself, but not when the connection ends in an answer."""
        for _ in range(3):
            try:
                with self._faults(key):
                    return read()
            except ConnectionError as error:
                if "response body" not in str(error.strerror):
                    raise
                broken = error
        raise broken

    def _put(self, key: str, data: Buffer) -> None:
        with self._faults(key):
            obstore.put(self._bulk, key, data, use_multipart=False)

    def _address(self, key: str) -> str:
        return f"{self.name}/{key}"

    @contextlib.contextmanager
    def _faults(self, key: str) -> Iterator[None]:
        """Raise obstore's exceptions as `OSError`s; what says nothing of the object is a `ConnectionError`."""
        try:
            yield
        except exceptions.AlreadyExistsError as error:
            raise FileExistsError(errno.EEXIST, "the object exists", self._address(key)) from error
        except (exceptions.BaseError, FileNotFoundError) as error:
            missing = isinstance(error, exceptions.NotFoundError | FileNotFoundError)
            if missing and "NoSuchBucket" not in str(error):
                raise FileNotFoundError(errno.ENOENT, "no such object", self._address(key)) from error
            raise ConnectionError(errno.EIO, describe_error(error), self._address(key)) from error


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
