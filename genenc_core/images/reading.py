"""One image file to model-sized pixels, or to the reason why there are none."""

import errno
import hashlib
import os
import stat
import time
from dataclasses import dataclass
from typing import NamedTuple

import torch

from genenc_core.images import decode, geometry
from genenc_core.images.limits import Limits

MAX_BYTES = 4 * 2**30
_NOT_THE_IMAGES_FAULT = frozenset((errno.EMFILE, errno.ENFILE, errno.ESTALE, errno.ETIMEDOUT, errno.ENOTCONN))


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
    """How the file's size differs from the manifest's; None when it does not. What was read is what `sha256` says."""
    seconds: float
    """CPU time of its thread for reading, decoding and fitting."""


class Request(NamedTuple):
    """One row to load: its file, and the size that the manifest has of it (-1: there was no file)."""

    row: int
    path: str
    planned_bytes: int


def load(request: Request, fitter: geometry.Fitter, limits: Limits) -> LoadedImage:
    """Read, decode and fit one image; a broken one is a `LoadedImage` with a failure.

    Raises:
        OSError: a fault of the process or the volume that says nothing of the image.
    """
    begin = time.thread_time()
    digest, changed = "", None
    try:
        data = _read(request.path)
        changed = None if len(data) == request.planned_bytes else _change(request.planned_bytes, len(data))
        digest = hashlib.sha256(data).hexdigest()
        image = decode.decode_image(data, max_pixels=limits.pixels, goal=fitter.goal)
        pixels, affine = fitter.fit(image)
    except Exception as error:
        if isinstance(error, OSError) and error.errno in _NOT_THE_IMAGES_FAULT:
            raise
        # one image must never end the others; the reason is kept with its row
        spent = time.thread_time() - begin
        return unreadable(request.row, _reason(error), sha256=digest, changed=changed, seconds=spent)
    return LoadedImage(
        row=request.row,
        pixels=pixels,
        height=image.size[0],
        width=image.size[1],
        affine=affine,
        orientation=image.orientation,
        sha256=digest,
        failure=None,
        changed=changed,
        seconds=time.thread_time() - begin,
    )


def unreadable(
    row: int, failure: str, *, sha256: str = "", changed: str | None = None, seconds: float = 0.0
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
        seconds=seconds,
    )


def _read(path: str) -> bytearray:
    """Return a regular file's bytes.

    Raises:
        ImageUnreadable: no regular file, or too large.
        OSError: it cannot be opened or read.
    """
    # Asked before it is opened: opening alone can act on a device.
    if not stat.S_ISREG(os.stat(path).st_mode):  # noqa: PTH116
        raise decode.ImageUnreadable("not a regular file")
    # Without O_NONBLOCK, opening a FIFO that came in between would wait for its writer for ever.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise decode.ImageUnreadable("not a regular file")
        if status.st_size > MAX_BYTES:
            raise decode.ImageUnreadable(f"file of {status.st_size} bytes, above the limit of {MAX_BYTES}")
        data = bytearray(status.st_size)
        filled = 0
        while filled < len(data):
            count = os.readv(descriptor, [memoryview(data)[filled:]])
            if not count:
                raise decode.ImageUnreadable(f"ended after {filled} of {len(data)} bytes while it was read")
            filled += count
    finally:
        os.close(descriptor)
    return data


def _change(planned_bytes: int, found_bytes: int) -> str:
    was = "missing" if planned_bytes < 0 else f"{planned_bytes} bytes"
    return f"was {was} when the run was planned, {found_bytes} bytes when it was read"


def _reason(error: Exception) -> str:
    if isinstance(error, decode.ImageUnreadable):
        return str(error)
    if isinstance(error, MemoryError):
        return "not enough memory for this image"
    if isinstance(error, OSError) and error.strerror:
        return f"cannot be read: {error.strerror}"
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:200]
