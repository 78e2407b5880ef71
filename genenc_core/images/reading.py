"""One image file to model-sized pixels, or to the reason why there are none."""

import contextlib
import datetime
import errno
import hashlib
import os
import stat
from dataclasses import dataclass
from typing import Final, Literal, NamedTuple

import numpy as np
import torch

from genenc_core.images import decode, decoded, geometry, stamps
from genenc_core.images.limits import Limits

MAX_BYTES = 4 * 2**30
REMEDY: Final = "put the original back, or store it as it is with --accept-changed"
"""For a file that is not the one that was planned."""
Cause = Literal["image", "file", "changed"]
"""Why a row has no pixels: what the file holds; that it could not be read, in time, with the memory there is; that it
is not the file that was planned. Where it is one of the last two for most of a shard, it is not an image's fault."""
_NOT_THE_IMAGES_FAULT: Final = frozenset(
    (
        *(errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EAGAIN, errno.ENOSPC, errno.EDQUOT, errno.EROFS),
        *(errno.ESTALE, errno.ETIMEDOUT, errno.ENOTCONN, errno.ENODEV, errno.ECONNRESET, errno.ECONNABORTED),
        *(errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.ENETDOWN, errno.ENETUNREACH, errno.ESHUTDOWN, errno.EREMOTEIO),
    )
)


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedImage:
    """One row: its pixels and geometry, or why there are none."""

    row: int
    pixels: torch.Tensor | None
    """uint8 contiguous [3, model height, model width]; None when the image is unreadable."""
    height: int
    """Of the upright source in pixels; -1 when unreadable."""
    width: int
    """Of the upright source in pixels; -1 when unreadable."""
    affine: geometry.Affine | None
    """Source to model pixels; None when unreadable."""
    orientation: int
    """EXIF orientation 1 to 8, already applied; 0 when unreadable."""
    sha256: str
    """Of the file's bytes; empty when they could not be read."""
    failure: str | None
    """Why the image is unreadable, one short line; None when it is not."""
    changed: str | None
    """How the file differs from the one that was planned; None when it does not. Pixels are then those of the file
    that was found, and `sha256` says which one."""
    cause: Cause = "image"
    """Why it is unreadable."""
    stamp: stamps.Stamp | None = None
    """Of a file of the planned size; None where there is none."""


class Request(NamedTuple):
    """One row to load: its file, and what the manifest has of it."""

    row: int
    path: str
    planned_bytes: int
    """-1: there was no file."""
    planned_mtime_ns: int | None = None
    """When it had last been changed; None: any time will do."""


class _Changed(decoded.ImageUnreadable):
    """A file that is not the one that was planned."""


class _File(NamedTuple):
    """What is known of a file that was read."""

    request: Request
    sha256: str
    changed: str | None
    stamp: stamps.Stamp | None = None


class Reader:
    """Reads, decodes and fits images."""

    def __init__(self, fitter: geometry.Fitter, limits: Limits) -> None:
        self._fitter = fitter
        self._limits = limits

    def load(self, request: Request, *, into: np.ndarray | None = None) -> LoadedImage:
        """Read one image; a broken one is a `LoadedImage` with a failure.

        Args:
            request: the file.
            into: uint8 [3, model height, model width] that its pixels are written to; None: new memory.

        Raises:
            OSError: a fault of the process or the volume that says nothing of the image.
        """
        file = _File(request, "", None)
        try:
            data, status = read(request.path)
            stamp = _stamp(request, status)
            file = file._replace(stamp=stamp)
            changed = change(request, len(data), status.st_mtime_ns)
            if changed is not None and request.planned_bytes >= 0 and not self._limits.accept_changed:
                raise _Changed(changed)
            file = _File(request, hashlib.sha256(data).hexdigest(), changed, stamp)
            image = decode.decode_image(data, max_pixels=self._limits.pixels, goal=self._fitter.goal)
            pixels, affine = self._fitter.fit(image, into=into)
        except Exception as error:
            return self._failed(file, error)
        return LoadedImage(
            row=request.row,
            pixels=pixels,
            height=image.size[0],
            width=image.size[1],
            affine=affine,
            orientation=image.orientation,
            sha256=file.sha256,
            failure=None,
            changed=changed,
            stamp=stamp,
        )

    def _failed(self, file: _File, error: Exception) -> LoadedImage:
        """Return a row without pixels, for one image must never end the others; raise what is no fault of the image."""
        if isinstance(error, OSError):
            if error.errno in _NOT_THE_IMAGES_FAULT:
                raise error
            if file.request.planned_bytes >= 0 and not self._limits.accept_changed:
                _require_folder(file.request.path, error)
        return unreadable(
            file.request.row,
            _reason(error),
            sha256=file.sha256,
            changed=file.changed,
            cause=_cause(file.request, error),
            stamp=file.stamp,
        )


def _cause(request: Request, error: Exception) -> Cause:
    if isinstance(error, _Changed):
        return "changed"
    # What was missing when the run was planned is so since then.
    late = isinstance(error, OSError) and request.planned_bytes >= 0
    return "file" if late or isinstance(error, MemoryError) else "image"


def _require_folder(path: str, error: OSError) -> None:
    """Raise when a file cannot be read because its folder is gone, closed or empty: so looks a volume that is gone."""
    folder = os.path.dirname(path)  # noqa: PTH120
    found = "it is empty"
    try:
        with os.scandir(folder) as entries:
            if next(entries, None) is not None:
                return
    except OSError as fault:
        # A folder can be closed to those who list it and open to those who know the names in it.
        if isinstance(fault, PermissionError) and os.access(folder, os.X_OK):
            return
        found = fault.strerror or str(fault)
    raise FileNotFoundError(
        error.errno,
        f"{os.path.basename(path)!r} cannot be read, and its folder neither ({found}): mount its volume or put the "  # noqa: PTH119
        "folder back, then resume the run; if its images are gone for good, --accept-changed records that",
        folder,
    ) from error


def unreadable(
    row: int,
    failure: str,
    *,
    sha256: str = "",
    changed: str | None = None,
    cause: Cause = "image",
    stamp: stamps.Stamp | None = None,
) -> LoadedImage:
    """Return a row without pixels, and why."""
    return LoadedImage(
        row=row,
        pixels=None,
        height=-1,
        width=-1,
        affine=None,
        orientation=0,
        sha256=sha256,
        failure=failure,
        changed=changed,
        cause=cause,
        stamp=stamp,
    )


def _stamp(request: Request, status: os.stat_result) -> stamps.Stamp | None:
    if request.planned_mtime_ns is None or status.st_size != request.planned_bytes:
        return None
    return stamps.Stamp(status.st_size, request.planned_mtime_ns, status.st_mtime_ns, status.st_ctime_ns)


def read(path: str) -> tuple[bytearray, os.stat_result]:
    """Return a regular file's bytes and what its file system said of it before.

    Raises:
        ImageUnreadable: no regular file, or too large.
        OSError: it cannot be opened or read.
    """
    # Asked before it is opened: opening alone can act on a device.
    if not stat.S_ISREG(os.stat(path).st_mode):  # noqa: PTH116
        raise decoded.ImageUnreadable("not a regular file")
    # Without O_NONBLOCK, opening a FIFO that came in between would wait for its writer for ever.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise decoded.ImageUnreadable("not a regular file")
        if status.st_size > MAX_BYTES:
            raise decoded.ImageUnreadable(f"file of {status.st_size} bytes, above the limit of {MAX_BYTES}")
        data = bytearray(status.st_size)
        filled = 0
        while filled < len(data):
            count = os.readv(descriptor, [memoryview(data)[filled:]])
            if not count:
                raise decoded.ImageUnreadable(f"ended after {filled} of {len(data)} bytes while it was read")
            filled += count
        after = os.fstat(descriptor)
        if (after.st_size, after.st_mtime_ns) != (status.st_size, status.st_mtime_ns):
            raise decoded.ImageUnreadable("it was written to while it was read")
    finally:
        os.close(descriptor)
    return data, status


def change(request: Request, found_bytes: int, mtime_ns: int) -> str | None:
    """Return how a file differs from the one that was planned, in size or time; None when it does not."""
    planned = request.planned_mtime_ns
    if request.planned_bytes < 0:
        return f"was missing when the run was planned, {found_bytes} bytes when it was read"
    if found_bytes != request.planned_bytes:
        return f"changed since planned: was {request.planned_bytes} bytes, is {found_bytes} bytes"
    if planned is None or stamps.same_time(planned, mtime_ns):
        return None
    return f"changed since planned: same size, written {_utc(mtime_ns)} instead of {_utc(planned)}"


def _utc(mtime_ns: int) -> str:
    with contextlib.suppress(ValueError, OverflowError, OSError):  # a year that no calendar has
        return datetime.datetime.fromtimestamp(mtime_ns // 10**9, datetime.UTC).strftime("%Y-%m-%d %H:%M:%S")
    return f"{mtime_ns // 10**9} s"


def _reason(error: Exception) -> str:
    if isinstance(error, _Changed):
        return f"{error}; {REMEDY}"
    if isinstance(error, decoded.ImageUnreadable):
        return str(error)
    if isinstance(error, MemoryError):
        return "not enough memory for this image"
    if isinstance(error, OSError) and error.strerror:
        return f"cannot be read: {error.strerror}"
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:200]
