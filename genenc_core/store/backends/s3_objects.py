"""A run folder on S3, or a server that speaks it: conditional creation, server-side copies, timeouts."""

import contextlib
import errno
import io
import os
import re
from collections.abc import Callable, Iterator, Mapping
from datetime import timedelta
from typing import Any, BinaryIO, Final, TypeVar

import obstore
from obstore import exceptions
from obstore.store import S3Store

from genenc_core import errors
from genenc_core.store import zarr_bytes
from genenc_core.store.backends import beneath
from genenc_core.system import digests
from genenc_core.system.digests import Buffer

RETRY: Final = {
    "max_retries": 7,
    "retry_timeout": timedelta(seconds=60),
    # Half a minute in all; obstore's own values give up after two seconds.
    "backoff": {"init_backoff": timedelta(seconds=0.2), "max_backoff": timedelta(seconds=8), "base": 4},
}
CLIENT: Final = {"timeout": timedelta(seconds=30), "connect_timeout": timedelta(seconds=5)}
BULK: Final = {"timeout": timedelta(minutes=15), "connect_timeout": timedelta(seconds=5)}
"""Of requests that move an object's bytes, which may be many."""
_ENDPOINTS: Final = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT")
_HINTS: Final = {
    "InvalidAccessKeyId": "the server does not know this AWS_ACCESS_KEY_ID",
    "SignatureDoesNotMatch": "AWS_SECRET_ACCESS_KEY is not the one of this AWS_ACCESS_KEY_ID",
    "AccessDenied": "the key needs the rights to list the bucket, and to get, put and delete objects",
    "NoSuchBucket": "there is no such bucket",
    "ExpiredToken": "AWS_SESSION_TOKEN has expired",
    "InvalidToken": "AWS_SESSION_TOKEN is not valid",
    "AuthorizationHeaderMalformed": "AWS_REGION is not the bucket's region",
    "PermanentRedirect": "AWS_REGION is not the bucket's region",
    "IllegalLocationConstraintException": "AWS_REGION is not the bucket's region",
    "RequestTimeTooSkewed": "this machine's clock is wrong",
    "169.254.169.254": "no AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY are set; files in ~/.aws are not read",
    "Generic HTTP client error": "no answer from the server: check the endpoint and the network",
    "error sending request": "no answer from the server: check the endpoint and the network",
}
"""What an error code, or a part of a message, means for the user."""
_PROCESSES: Final[set[int]] = set()
"""This process, once it used S3, and those that it was forked from."""
Answer = TypeVar("Answer")


def open_store(
    bucket: str, prefix: str, *, client: Mapping[str, Any] = CLIENT, retry: Mapping[str, Any] = RETRY
) -> S3Store:
    """Return the objects below a prefix of a bucket; nothing is asked yet.

    Raises:
        InputError: the bucket or the endpoint is no name or address, or the process was forked.
    """
    endpoint = next(filter(None, (os.environ.get(name, "") for name in _ENDPOINTS)), "")
    # obstore panics at these.
    if endpoint and not re.fullmatch(r"https?://([\w.-]+|\[[0-9a-fA-F:.]+\])(:\d{1,5})?/?", endpoint, re.ASCII):
        raise errors.InputError(
            "the endpoint in AWS_ENDPOINT_URL is not an address: give http://HOST:PORT or https://HOST:PORT, with the "
            "credentials in AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
        )
    if not re.fullmatch(r"[\w.-]{3,255}", bucket, re.ASCII):
        raise errors.InputError(f"{bucket!r} is not a bucket's name: it has 3 to 63 letters, digits, dots or dashes")
    if _PROCESSES and os.getpid() not in _PROCESSES:
        raise errors.InputError(
            "this process was forked from one that had used S3, and its connections do not live on: start processes "
            "with multiprocessing's 'spawn' or 'forkserver'"
        )
    _PROCESSES.add(os.getpid())
    options: Any = {**client, "allow_http": endpoint.startswith("http://")}
    patience: Any = retry
    try:
        return S3Store(bucket, prefix=prefix, client_options=options, retry_config=patience)
    except (exceptions.BaseError, ValueError) as error:
        raise errors.InputError(f"'s3://{bucket}/{prefix}' cannot be opened: {describe_error(error)}") from error


def describe_error(error: Exception) -> str:
    """Return what the server or the client said, in one line, without the client's dump of itself."""
    text = str(error).partition("Debug source:")[0]
    hint = next((meaning for sign, meaning in _HINTS.items() if sign in text), "")
    code = re.search(r"<Code>(\w+)</Code>", text)
    text = " ".join(text.partition("<?xml")[0].split()).rstrip(": ")
    status = re.search(r"non-2xx status code: (\d+[\w ]*)", text)
    tries = re.search(r"after (\d+) retries", text)
    said = f"S3 answered {status[1].strip()}" if status else text if len(text) < 300 else text[:300] + "..."
    said = ": ".join([said, *([code[1]] if code else [])])
    if tries and status:
        said += f", also when asked {tries[1]} times more"
    return f"{hint} ({said})" if hint else said


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
