"""One image file to model-sized pixels, or to the reason why there are none."""

import errno
import hashlib
import os
import stat
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch

from genenc_core.images import decode, decoded, geometry, plain_jpeg
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


class _File(NamedTuple):
    """A file that was read."""

    request: Request
    data: bytearray
    sha256: str
    changed: str | None
    seconds: float

    def after(self, started: float) -> "_File":
        """Return it with the CPU time of this thread since `started` added."""
        return self._replace(seconds=self.seconds + time.thread_time() - started)


class Begun(NamedTuple):
    """An image that was read, and can be decoded together with others."""

    file: _File
    source: plain_jpeg.Source


class Reader:
    """Reads, decodes and fits images in two steps: the second takes less per image when it is done for several."""

    def __init__(self, fitter: geometry.Fitter, limits: Limits) -> None:
        self._fitter = fitter
        self._limits = limits

    def load(self, request: Request) -> LoadedImage:
        """Load one image alone; raises as `begin`."""
        found = self.begin(request)
        return self.finish([found])[0] if isinstance(found, Begun) else found

    def begin(self, request: Request) -> LoadedImage | Begun:
        """Read an image, and load it unless it is a small one that can be decoded with others.

        A broken one is a `LoadedImage` with a failure.

        Raises:
            OSError: a fault of the process or the volume that says nothing of the image.
        """
        started = time.thread_time()
        file = _File(request, bytearray(), "", None, 0.0)
        try:
            data = _read(request.path)
            changed = None if len(data) == request.planned_bytes else _change(request.planned_bytes, len(data))
            file = _File(request, data, hashlib.sha256(data).hexdigest(), changed, 0.0)
            source = decode.small_jpeg(data, max_pixels=self._limits.pixels, goal=self._fitter.goal)
        except Exception as error:
            return _failed(file.after(started), error)
        file = file.after(started)
        return self._loaded(file) if source is None else Begun(file, source)

    def finish(self, begun: Sequence[Begun]) -> list[LoadedImage]:
        """Decode and fit images; what `decode_resized` cannot is decoded alone."""
        started = time.thread_time()
        resized: Sequence[torch.Tensor | None]
        try:
            resized = plain_jpeg.decode_resized([each.source for each in begun])
        except Exception:  # whose fault it is tells each alone
            resized = [None] * len(begun)
        share = (time.thread_time() - started) / len(begun)
        return [
            self._loaded(
                each.file._replace(seconds=each.file.seconds + share),
                None if pixels is None else decode.resized_jpeg(pixels, each.source),
            )
            for each, pixels in zip(begun, resized, strict=True)
        ]

    def _loaded(self, file: _File, image: decoded.Decoded | None = None) -> LoadedImage:
        """Fit an image, and decode it unless it is; raises as `begin`."""
        started = time.thread_time()
        try:
            image = image or decode.decode_image(file.data, max_pixels=self._limits.pixels, goal=self._fitter.goal)
            pixels, affine = self._fitter.fit(image)
        except Exception as error:
            return _failed(file.after(started), error)
        return LoadedImage(
            row=file.request.row,
            pixels=pixels,
            height=image.size[0],
            width=image.size[1],
            affine=affine,
            orientation=image.orientation,
            sha256=file.sha256,
            failure=None,
            changed=file.changed,
            seconds=file.after(started).seconds,
        )


def _failed(file: _File, error: Exception) -> LoadedImage:
    """Return a row without pixels, for one image must never end the others; raise what is no fault of the image."""
    if isinstance(error, OSError) and error.errno in _NOT_THE_IMAGES_FAULT:
        raise error
    reason = _reason(error)
    return unreadable(file.request.row, reason, sha256=file.sha256, changed=file.changed, seconds=file.seconds)


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
    finally:
        os.close(descriptor)
    return data


def _change(planned_bytes: int, found_bytes: int) -> str:
    was = "missing" if planned_bytes < 0 else f"{planned_bytes} bytes"
    return f"was {was} when the run was planned, {found_bytes} bytes when it was read"


def _reason(error: Exception) -> str:
    if isinstance(error, decoded.ImageUnreadable):
        return str(error)
    if isinstance(error, MemoryError):
        return "not enough memory for this image"
    if isinstance(error, OSError) and error.strerror:
        return f"cannot be read: {error.strerror}"
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:200]
