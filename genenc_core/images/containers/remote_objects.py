"""Objects that addresses name, by one interface: of buckets (S3, Google Cloud Storage) and of web servers."""

import email.utils
import errno
import re
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Final, Generic, NamedTuple, NoReturn, Protocol, TypeVar

from genenc_core import errors
from genenc_core.images.containers.container import Mark
from genenc_core.images.decode.decoded import ImageUnreadable
from genenc_core.images.decode.limits import MAX_BYTES
from genenc_core.system import web

if TYPE_CHECKING:
    import datetime

AT_ONCE: Final = 16
"""Requests of one worker at a time."""
_ADDRESS = re.compile(r"(s3|gs)://([^/]+)(?:/(.*))?\Z", re.DOTALL)
_RANGE = re.compile(r"bytes \d+-\d+/(\d+)\Z")
_ASKED: Final = web.Patience(tries=3)
_T = TypeVar("_T")


class Found(NamedTuple):
    """What is known of an object."""

    mark: Mark
    tag: str
    """Its ETag; "" if it has none that stands for its bytes."""

    def changed(self, tag: str) -> str | None:
        """Describe that it has another ETag than the planned one; None if it has not."""
        other = bool(tag) and self.tag != tag
        return f"replaced since planned: its ETag was {tag}, is {self.tag}" if other else None


class Objects(Protocol):
    """Objects by their keys; all methods raise `FileNotFoundError` for one that is not there, else `OSError`."""

    def head(self, key: str) -> Found:
        """Ask for an object without reading it."""
        ...

    def get(self, key: str) -> tuple[bytes, Found]:
        """Read an object; raises `ImageUnreadable` if it is too large."""
        ...

    def get_range(self, key: str, start: int, size: int) -> tuple[bytes, Found]:
        """Read a part of an object."""
        ...

    def list(self) -> Iterator[tuple[str, Found]]:
        """Yield all keys in order."""
        ...


def split(address: str) -> tuple[str, str]:
    """Return what `open_objects` opens for an address, and the key in it.

    Raises:
        InputError: it is no address.
    """
    if web.is_address(address):
        return "https://", address
    found = _ADDRESS.match(address)
    if found is None:
        raise errors.InputError(f"{address!r} is no address of images: give s3://BUCKET/PREFIX")
    return f"{found[1]}://{found[2]}", found[3] or ""


def open_objects(place: str, prefix: str = "") -> Objects:
    """Return the objects below a prefix of a bucket, `s3://BUCKET` or `gs://BUCKET`, or those of all web servers.

    Raises:
        InputError: obstore is not installed, or the bucket or the server is no name or address.
    """
    if web.is_address(place):
        return WebObjects()
    scheme, _, bucket = place.partition("://")
    try:
        from genenc_core.system import gs, s3
    except ImportError as error:
        raise errors.InputError(f"{place!r}: buckets need obstore: pip install 'genenc[s3]'") from error
    store = s3.open_store(bucket, prefix) if scheme == "s3" else gs.open_store(bucket, prefix)
    return BucketObjects(f"{place}/{prefix}".rstrip("/"), store)


class BucketObjects(Objects):
    """Objects of a bucket."""

    def __init__(self, place: str, store: Any) -> None:
        self._place = place
        self._store = store

    def head(self, key: str) -> Found:
        """Ask for an object."""
        import obstore
        from obstore import exceptions

        try:
            return _found(obstore.head(self._store, key))
        except (exceptions.BaseError, OSError) as error:  # the latter where an object is missing
            _raise(error, f"{self._place}/{key}")

    def get(self, key: str) -> tuple[bytes, Found]:
        """Read an object."""
        import obstore
        from obstore import exceptions

        try:
            answer = obstore.get(self._store, key)
            if answer.meta["size"] > MAX_BYTES:
                raise ImageUnreadable(f"{answer.meta['size']} bytes, above the limit of {MAX_BYTES} bytes per file")
            return bytes(answer.bytes()), _found(answer.meta)
        except (exceptions.BaseError, OSError) as error:
            _raise(error, f"{self._place}/{key}")

    def get_range(self, key: str, start: int, size: int) -> tuple[bytes, Found]:
        """Read a part of an object."""
        import obstore
        from obstore import exceptions

        try:
            answer = obstore.get(self._store, key, options={"range": (start, start + size)})
            return bytes(answer.bytes()), _found(answer.meta)
        except (exceptions.BaseError, OSError) as error:
            _raise(error, f"{self._place}/{key}")

    def list(self) -> Iterator[tuple[str, Found]]:
        """Yield all keys."""
        import obstore
        from obstore import exceptions

        try:
            for page in obstore.list(self._store):
                for item in page:
                    yield item["path"], _found(item)
        except (exceptions.BaseError, OSError) as error:
            _raise(error, self._place)


class WebObjects(Objects):
    """Files of web servers; keys are their addresses."""

    def __init__(self) -> None:
        self._web = web.Web()
        self._asking = web.Web(_ASKED)

    def head(self, key: str) -> Found:
        """Ask for a file; where a server does not say its size, read it."""
        try:
            answer = self._asking.request("HEAD", key)
        except web.WebError as error:
            if error.status not in (403, 405, 501):  # signed for GET alone, or not known to the server
                _raise_web(error)
            return self.get(key)[1]
        size = answer.headers.get("Content-Length", "")
        return _web_found(answer, int(size)) if size.isdecimal() else self.get(key)[1]

    def get(self, key: str) -> tuple[bytes, Found]:
        """Read a file."""
        try:
            answer = self._web.request("GET", key, most=MAX_BYTES)
        except web.TooLarge as error:
            raise ImageUnreadable(f"above the limit of {MAX_BYTES} bytes per file") from error
        except web.WebError as error:
            _raise_web(error)
        return answer.body, _web_found(answer, len(answer.body))

    def get_range(self, key: str, start: int, size: int) -> tuple[bytes, Found]:
        """Read a part of a file; raises `ImageUnreadable` if its server gives no parts."""
        try:
            answer = self._web.request("GET", key, headers={"Range": f"bytes={start}-{start + size - 1}"}, most=size)
        except web.TooLarge as error:
            raise ImageUnreadable("its server gives whole files only, no parts of them: download it") from error
        except web.WebError as error:
            _raise_web(error)
        whole = _RANGE.match(answer.headers.get("Content-Range", ""))
        return answer.body, _web_found(answer, int(whole[1]) if whole else -1)

    def list(self) -> Iterator[tuple[str, Found]]:
        """Refuse: the web has no lists."""
        raise errors.InputError("the files of a web server cannot be listed: give a list of their addresses")


class ReadAhead(Generic[_T]):
    """Reads what is read next in threads, a few at a time."""

    def __init__(self, get: Callable[[str], _T]) -> None:
        self._get = get
        self._begun: OrderedDict[str, Future[_T]] = OrderedDict()
        self._next: list[str] = []
        self._pool: ThreadPoolExecutor | None = None

    def expect(self, members: Sequence[str]) -> None:
        """Begin to read members, at most `AT_ONCE` at a time."""
        self._next = list(members)[::-1]
        self._begin()

    def _begin(self) -> None:
        self._pool = self._pool or ThreadPoolExecutor(AT_ONCE, thread_name_prefix="genenc-remote")
        while self._next and len(self._begun) < AT_ONCE:
            at = self._next.pop()
            self._begun[at] = self._pool.submit(self._get, at)

    def read(self, at: str) -> _T:
        """Return what was read, or read it now."""
        begun = self._begun.pop(at, None)
        if begun is not None:
            self._begin()
        return self._get(at) if begun is None else begun.result()

    def close(self) -> None:
        """Stop reading."""
        if self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)


def _found(item: Mapping[str, Any]) -> Found:
    """Return what a bucket says of an object, whose time has whole seconds."""
    modified: datetime.datetime = item["last_modified"]
    time = int(modified.timestamp()) * 10**9
    return Found(Mark(int(item["size"]), time, time), item.get("e_tag") or "")


def _web_found(answer: web.Answer, size: int) -> Found:
    """Return what a server says of a file; without a time it has none, and weak ETags do not stand for bytes."""
    tag = answer.headers.get("ETag", "")
    try:
        time = int(email.utils.parsedate_to_datetime(answer.headers.get("Last-Modified", "")).timestamp()) * 10**9
    except (TypeError, ValueError):
        time = 0
    return Found(Mark(size, time, time), "" if tag.startswith("W/") else tag)


def _raise(error: Exception, place: str) -> NoReturn:
    """Raise a fault of the network, or that an object is missing, as `OSError`."""
    from genenc_core.system import s3

    if isinstance(error, FileNotFoundError) and "NoSuchBucket" not in str(error):
        raise FileNotFoundError(errno.ENOENT, "there is no such object", place) from error
    raise OSError(errno.EREMOTEIO, s3.describe_error(error), place) from error


def _raise_web(error: web.WebError) -> NoReturn:
    if 400 <= error.status < 500 and error.status not in (401, *web.AGAIN):
        raise FileNotFoundError(errno.ENOENT, error.reason) from error
    raise OSError(errno.EREMOTEIO, str(error)) from error
