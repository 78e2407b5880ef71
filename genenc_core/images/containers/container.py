"""What every kind of file with images inside offers: its members in order, and one member's content."""

import os
import stat
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np

from genenc_core import spec
from genenc_core.images.containers.frames import Frames
from genenc_core.images.decode import decode
from genenc_core.images.decode.decoded import ImageUnreadable, Samples


class Mark(NamedTuple):
    """What shows that a member is still the planned one; of the file, or of the member's part of it."""

    size: int
    """Bytes."""
    mtime_ns: int
    """Last modification, in nanoseconds since 1970."""
    ctime_ns: int
    """When content, name or permissions last changed, in nanoseconds since 1970."""

    @classmethod
    def of(cls, status: os.stat_result) -> "Mark":
        """Return the mark of a file."""
        return cls(status.st_size, status.st_mtime_ns, status.st_ctime_ns)


class Member(NamedTuple):
    """One image of a container."""

    name: str
    """What its image_id adds to the container's: `/a/b.png`, `#17`."""
    at: str
    """Where it is, for `read`."""
    values: tuple[str, ...] = ()
    """Its texts in the container's `columns`."""

    @classmethod
    def frame(cls, index: int) -> "Member":
        """Return the frame of that number, the only thing known about it."""
        return cls(f"#{index}", str(index), (str(index),))


class Content(NamedTuple):
    """What was read of a member."""

    data: bytes | bytearray
    """An image file's bytes; empty with `pixels` or `samples`."""
    mark: Mark
    pixels: np.ndarray | None = None
    """uint8 RGB `[H, W, 3]`; None: decode `data`, or use `samples`."""
    values: bytes | bytearray | memoryview = b""
    """What `pixels` were made of, as stored in the container or, of a video or a TIFF, as decoded; this is hashed."""
    orientation: int = 1
    """EXIF orientation 1 to 8 of the pixels, not yet applied."""
    changed: str | None = None
    """How it differs from the planned one, where its mark does not show that."""
    samples: Samples | None = None
    """Instead of `pixels`, where channels are wanted."""


class Container(Protocol):
    """A file with images inside, open for reading."""

    frames: bool
    """Whether its members are numbered frames, of which some can be selected."""
    has_channels: bool = False
    """Whether it can give samples of channels instead of RGB."""
    columns: tuple[str, ...]
    """Names of what is known about each member."""
    _mark: Mark
    """That of the file."""

    @classmethod
    def open(cls, path: str, channels: spec.Channels | None = None) -> "Container":
        """Open it; a path may end in the name of an array inside.

        `channels` only where it `has_channels`.

        Raises:
            ImageUnreadable: it is damaged, or not of this kind; the reason.
            OSError: it cannot be read.
        """
        ...

    def members(self, frames: Frames) -> Iterator[Member]:
        """Yield the members in a fixed order; raises as `open`."""
        ...

    def leave_out(self, name: str) -> None:
        """Note a file inside that `members` passes over."""

    def mark(self, at: str) -> Mark:  # noqa: ARG002
        """Return a member's mark, which is usually that of the file; raises `OSError`."""
        return self._mark

    def expect(self, members: Sequence[str]) -> None:
        """Begin to read members that are read next, in this order."""

    def read(self, at: str, *, most_pixels: int = decode.MAX_PIXELS) -> Content:
        """Return a member's content, unless it has more than `most_pixels`; raises as `open`."""
        ...

    def close(self) -> None:
        """Close it."""
        ...


def file_mark(path: str) -> Mark:
    """Return the mark of a regular file.

    Raises:
        ImageUnreadable: it is a pipe or a device.
        OSError: it cannot be asked for.
    """
    status = Path(path).stat()
    if not stat.S_ISREG(status.st_mode):
        raise ImageUnreadable("not a regular file")
    return Mark.of(status)


def read_at(descriptor: int, size: int, start: int) -> bytearray:
    """Return `size` bytes of an open file from `start` on, fewer if it ends before; raises `OSError`."""
    data = bytearray(size)
    filled = 0
    while filled < size and (count := os.preadv(descriptor, [memoryview(data)[filled:]], start + filled)):
        filled += count
    return data if filled == size else data[:filled]


def name_inside(path: str, place: Path) -> str:
    """Return the name of an array that a path adds to its container's; "" if none."""
    return "" if Path(path) == place else Path(path).relative_to(place).as_posix()


class NeverWritten(UserWarning):
    """Parts of an array were never written, and read as its fill value."""


def warn_of_missing(path: str, missing: int, of: int, what: str) -> None:
    """Warn of parts of an array that were never written."""
    if missing > 0:
        warnings.warn(
            f"{path}: {missing} of {of} {what} were never written, and read as the array's fill value: if that is not "
            "meant, its writer did not finish, or the copy is not complete",
            NeverWritten,
            stacklevel=3,
        )


def one_line(error: Exception) -> str:
    """Return an exception's message in one short line."""
    return " ".join(str(error).split())[:200] or type(error).__name__


def index_of(at: str, count: int) -> int:
    """Return the number of a frame.

    Raises:
        ImageUnreadable: the container has fewer frames.
    """
    index = int(at)
    if not 0 <= index < count:
        raise ImageUnreadable(f"there is no frame {index}: it has {count}")
    return index
