"""Images below a prefix of an S3 bucket, each an object, read over the network by decode workers."""

import errno
import re
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Final, NoReturn

from genenc_core import errors, spec
from genenc_core.images.containers import kinds
from genenc_core.images.containers.container import Container, Content, Mark, Member
from genenc_core.images.containers.frames import Frames
from genenc_core.images.decode import decode
from genenc_core.images.decode.decoded import ImageUnreadable
from genenc_core.images.decode.limits import MAX_BYTES
from genenc_core.images.sources import image_source

if TYPE_CHECKING:
    import datetime

AT_ONCE: Final = 16
"""Requests of one worker at a time."""
_ADDRESS = re.compile(r"s3://([^/]+)(?:/(.*))?\Z", re.DOTALL)


class Remote(Container):
    """Objects with an image extension below a prefix, in the order of their keys; a glob chooses among them.

    A member's place is its key and its ETag, by which an object that was replaced is noticed.
    """

    frames = False
    columns = ()

    def __init__(self, address: str) -> None:
        from genenc_core.system import s3

        found = _ADDRESS.match(address)
        if found is None:
            raise errors.InputError(f"{address!r} is no address of images: give s3://BUCKET/PREFIX")
        self._place = kinds.without_pattern(address)
        self._pattern = address.removeprefix(self._place).strip("/")
        prefix = self._place.removeprefix(f"s3://{found[1]}").strip("/")
        self._store = s3.open_store(found[1], prefix)
        self._mark = Mark(-1, -1, -1)
        """That of the object that was listed last."""
        self._begun: OrderedDict[str, Future[Content]] = OrderedDict()
        self._next: list[str] = []
        self._pool: ThreadPoolExecutor | None = None

    @classmethod
    def open(cls, path: str, channels: spec.Channels | None = None) -> "Remote":  # noqa: ARG003
        """Take an address; nothing is asked yet.

        Raises:
            InputError: it is none, or obstore is not installed.
        """
        try:
            return cls(path)
        except ImportError as error:
            raise errors.InputError(f"{path!r}: S3 needs obstore: pip install 'genenc[s3]'") from error

    def members(self, frames: Frames) -> Iterator[Member]:  # noqa: ARG002 -- has none
        """Yield the objects; raises `OSError`."""
        import obstore
        from obstore import exceptions

        matches = re.compile(_as_regex(self._pattern)).match if self._pattern else None
        try:
            for page in obstore.list(self._store):
                for item in page:
                    key = item["path"]
                    if matches is not None and not matches(key):
                        continue
                    if any(part.startswith(".") for part in key.split("/")) or not image_source.has_image_extension(
                        key
                    ):
                        self.leave_out(key)
                        continue
                    self._mark = _mark(item)
                    yield Member(key, f"{item.get('e_tag') or ''}:{key}")
        except (exceptions.BaseError, OSError) as error:  # the latter where an object is missing
            _raise(error, self._place)

    def expect(self, members: Sequence[str]) -> None:
        """Begin to read members, at most `AT_ONCE` at a time."""
        self._next = list(members)[::-1]
        self._begin()

    def _begin(self) -> None:
        self._pool = self._pool or ThreadPoolExecutor(AT_ONCE, thread_name_prefix="genenc-remote")
        while self._next and len(self._begun) < AT_ONCE:
            at = self._next.pop()
            self._begun[at] = self._pool.submit(self._get, at)

    def read(self, at: str, *, most_pixels: int = decode.MAX_PIXELS) -> Content:  # noqa: ARG002 -- decoded later
        """Return an object's bytes; raises as `Container.read`."""
        begun = self._begun.pop(at, None)
        if begun is not None:
            self._begin()
        return self._get(at) if begun is None else begun.result()

    def _get(self, at: str) -> Content:
        import obstore
        from obstore import exceptions

        tag, _, key = at.partition(":")
        try:
            answer = obstore.get(self._store, key)
            if answer.meta["size"] > MAX_BYTES:
                raise ImageUnreadable(f"{answer.meta['size']} bytes, above the limit of {MAX_BYTES} bytes per file")
            data = bytes(answer.bytes())
        except (exceptions.BaseError, OSError) as error:  # the latter where an object is missing
            _raise(error, f"{self._place}/{key}")
        found = answer.meta.get("e_tag") or ""
        other = f"replaced since planned: its ETag was {tag}, is {found}" if tag and found != tag else None
        return Content(data, _mark(answer.meta), changed=other)

    def close(self) -> None:
        """Stop reading."""
        if self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)


def _mark(item: Mapping[str, Any]) -> Mark:
    """Return the mark of an object, whose time has whole seconds."""
    modified: datetime.datetime = item["last_modified"]
    time = int(modified.timestamp()) * 10**9
    return Mark(int(item["size"]), time, time)


def _raise(error: Exception, place: str) -> NoReturn:
    """Raise a fault of the network, or that an object is missing, as `OSError`."""
    from genenc_core.system import s3

    if isinstance(error, FileNotFoundError) and "NoSuchBucket" not in str(error):
        raise FileNotFoundError(errno.ENOENT, "there is no such object", place) from error
    raise OSError(errno.EREMOTEIO, s3.describe_error(error), place) from error


def _as_regex(pattern: str) -> str:
    """Return a regular expression for a pattern of `*`, `?`, `[...]`, which stay in a folder, and `**`."""
    found = re.findall(r"\*\*/|\*\*\Z|\*|\?|\[!?[^]]+\]|.", pattern, re.DOTALL)
    words = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    return "".join(words.get(part, _class_or_text(part)) for part in found) + r"\Z"


def _class_or_text(part: str) -> str:
    if len(part) == 1:
        return re.escape(part)
    return (
        "["
        + ("^" if part[1] == "!" else "")
        + re.escape(part[2 if part[1] == "!" else 1 : -1]).replace(r"\-", "-")
        + "]"
    )
