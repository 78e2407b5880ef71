"""Loading of one image file: read, hash, decode and fit it, or record why that failed."""

import contextlib
import datetime
import errno
import io
import os
import stat
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal, NamedTuple

import numpy as np
import torch

from genenc_core import spec
from genenc_core.images.containers import kinds
from genenc_core.images.containers.container import Content, Mark
from genenc_core.images.containers.reader import ContainerReader
from genenc_core.images.decode import channels, decode, decoded, further, geometry
from genenc_core.images.decode.limits import MAX_BYTES, Limits
from genenc_core.images.sources import file_stamps
from genenc_core.system import digests

REMEDY: Final = "restore the original, or accept the file as it is with --accept-changed"
"""For a file that is not the planned one."""
Cause = Literal["image", "file", "changed"]
"""Why a row has no pixels: its content; it could not be read in time or with the available memory; it is not the
planned file. If the last two affect most of a shard, the images are not at fault."""
_SYSTEM_FAULTS: Final = frozenset(
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
    """Contiguous `[C, model height, model width]`, uint8 RGB or float32 channels; None if unreadable."""
    height: int
    """Height of the upright source in pixels; -1 if unreadable."""
    width: int
    """Width of the upright source in pixels; -1 if unreadable."""
    affine: geometry.Affine | None
    """Map from source to model pixels; None if unreadable."""
    orientation: int
    """EXIF orientation 1 to 8, already applied; 0 if unreadable."""
    sha256: str
    """Digest of the file's bytes; empty if they could not be read."""
    failure: str | None
    """Why the image is unreadable, one short line; None if it is not."""
    changed: str | None
    """How the file differs from the planned one, or None. The pixels and `sha256` are those of the actual file."""
    cause: Cause = "image"
    """Category of the failure."""
    stamp: file_stamps.Stamp | None = None
    """Times of a file of the planned size, else None."""
    has_more: bool = False
    """Whether the file holds further frames or pages, which are not in the pixels."""


class Request(NamedTuple):
    """One row to load: its file, and the size and time in the manifest."""

    row: int
    path: str
    planned_bytes: int
    """-1 if the file was missing."""
    planned_mtime_ns: int | None = None
    """Modification time; None accepts any."""
    member: str = ""
    """Where the image is in the file, as in `containers.container.Member.at`; "": the file is the image."""


class _Changed(decoded.ImageUnreadable):
    """The file is not the planned one."""


class ReadFile(NamedTuple):
    """The content of a file, or the error from reading it."""

    request: Request
    data: bytes | bytearray = b""
    sha256: str = ""
    changed: str | None = None
    stamp: file_stamps.Stamp | None = None
    error: Exception | None = None
    image: decoded.Decoded | None = None
    """Of a container of pixels; otherwise `data` are to be decoded."""

    @property
    def size(self) -> int:
        """Bytes that it takes in memory."""
        return len(self.data) if self.image is None else self.image.pixels.nbytes


class Reader:
    """Reads, decodes and fits images."""

    def __init__(self, fitter: geometry.Fitter, limits: Limits) -> None:
        self._fitter = fitter
        self._limits = limits
        self._channels = fitter.channels
        self._containers = ContainerReader(self._channels)
        self.seconds = 0.0
        """Total time spent reading files so far."""

    def expect(self, paths: Sequence[str], members: Sequence[str]) -> None:
        """Begin to read what is read next, where that is of use."""
        if members:
            self._containers.expect(paths, members)

    def read(self, request: Request) -> ReadFile:
        """Read and hash the file of one image; errors are returned as `error`, which `decode` raises or records."""
        stamp = None
        try:
            content = self._timed_read(request)
            stamp = _stamp(request, content.mark)
            changed = change(request, content.mark.size, content.mark.mtime_ns) or content.changed
            image = _decoded(content, self._channels)
            if changed is not None and request.planned_bytes >= 0 and not self._limits.accept_changed:
                raise _Changed(changed)
        except Exception as error:
            return ReadFile(request, stamp=stamp, error=self._explained(request, error))
        digest = digests.IMAGE_FILE.hex(content.data if image is None else content.values)
        return ReadFile(request, content.data, digest, changed, stamp, image=image)

    def decode(
        self, file: ReadFile, *, into: np.ndarray | None = None, image: decoded.Decoded | None = None
    ) -> LoadedImage:
        """Decode and fit an image that was read, or only fit `image` if another decoder already decoded it.

        Raises:
            OSError: a fault of the process or the volume.
        """
        try:
            if file.error is not None:
                raise file.error
            image = image or file.image
            if image is None and self._channels is not None:
                image = channels.decode_channels(file.data, self._channels, max_pixels=self._limits.pixels)
            elif image is None:
                image = decode.decode_image(file.data, max_pixels=self._limits.pixels, hint=self._fitter.hint)
            pixels, affine = self._fitter.fit(image, into=into)
        except Exception as error:
            return self._failed(file, error)
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
            stamp=file.stamp,
            has_more=further.has_more(io.BytesIO(file.data), self._channels),
        )

    def _explained(self, request: Request, error: Exception) -> Exception:
        """Return that a container changed, where this may be why a member of it is unreadable."""
        place = kinds.place_of(request.path)
        if not request.member or not isinstance(error, decoded.ImageUnreadable) or not os.path.isfile(place):  # noqa: PTH113
            return error
        status = os.stat(place)  # noqa: PTH116
        changed = change(request, status.st_size, status.st_mtime_ns)
        return error if changed is None or self._limits.accept_changed else _Changed(changed)

    def _timed_read(self, request: Request) -> Content:
        began = time.perf_counter()
        try:
            if request.member:
                return self._containers.read(request.path, request.member, most_pixels=self._limits.pixels)
            data, status = read(request.path)
            return Content(data, Mark.of(status))
        finally:
            self.seconds += time.perf_counter() - began

    def _failed(self, file: ReadFile, error: Exception) -> LoadedImage:
        """Return a failed row, so that one image never stops the others; re-raise errors unrelated to the image."""
        if isinstance(error, OSError):
            # A web server that did not answer when the run was planned is no new fault.
            unknown = error.errno == errno.EREMOTEIO and file.request.planned_bytes < 0
            if error.errno in _SYSTEM_FAULTS and not unknown:
                raise error
            if file.request.planned_bytes >= 0 and not self._limits.accept_changed:
                _require_folder(file.request, error)
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
    # A file that was already missing when the run was planned is not a new fault.
    new = isinstance(error, OSError) and request.planned_bytes >= 0
    return "file" if new or isinstance(error, MemoryError) else "image"


def _require_folder(request: Request, error: OSError) -> None:
    """Raise if a file's folder is missing, unreadable or empty, as it is if its volume is not mounted."""
    path = kinds.place_of(request.path) if request.member else request.path
    if kinds.is_remote(path):
        return
    folder = os.path.dirname(path)  # noqa: PTH120
    reason = "it is empty"
    try:
        with os.scandir(folder) as entries:
            if next(entries, None) is not None:
                return
    except OSError as fault:
        # A folder may deny listing but still allow access to known names in it.
        if isinstance(fault, PermissionError) and os.access(folder, os.X_OK):
            return
        reason = fault.strerror or str(fault)
    raise FileNotFoundError(
        error.errno,
        f"cannot read {os.path.basename(path)!r} or its folder ({reason}): mount the volume or restore the folder, "  # noqa: PTH119
        "then resume the run; if the images are permanently gone, --accept-changed records that",
        folder,
    ) from error


def unreadable(
    row: int,
    failure: str,
    *,
    sha256: str = "",
    changed: str | None = None,
    cause: Cause = "image",
    stamp: file_stamps.Stamp | None = None,
) -> LoadedImage:
    """Return a row without pixels, with the reason."""
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


def _decoded(content: Content, wanted: spec.Channels | None) -> decoded.Decoded | None:
    """Return the pixels of a container of pixels; None if it holds image files."""
    if wanted is not None and content.samples is not None:
        return channels.selected(content.samples, wanted, content.orientation)
    if content.pixels is None:
        return None
    if wanted is not None:
        return channels.selected(decoded.Samples.of(content.pixels), wanted, content.orientation)
    pixels = decode.upright(torch.from_numpy(content.pixels).permute(2, 0, 1), content.orientation)
    return decoded.Decoded(pixels=pixels, orientation=content.orientation, size=(pixels.shape[1], pixels.shape[2]))


def _stamp(request: Request, mark: Mark) -> file_stamps.Stamp | None:
    if request.planned_mtime_ns is None or mark.size != request.planned_bytes:
        return None
    touched = mark.ctime_ns
    if os.path.islink(request.path):  # noqa: PTH114
        touched = max(touched, file_stamps.last_renamed(request.path, {}))
    return file_stamps.Stamp(mark.size, request.planned_mtime_ns, mark.mtime_ns, touched)


def read(path: str) -> tuple[bytearray, os.stat_result]:
    """Return a regular file's bytes and its status before they were read.

    Raises:
        ImageUnreadable: not a regular file, too large, or modified while it was read.
        OSError: it cannot be opened or read.
    """
    # Checked before opening, which may already act on a device.
    if not stat.S_ISREG(os.stat(path).st_mode):  # noqa: PTH116
        raise decoded.ImageUnreadable("not a regular file")
    # Without O_NONBLOCK, opening a FIFO created in between would wait for its writer forever.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise decoded.ImageUnreadable("not a regular file")
        if status.st_size > MAX_BYTES:
            raise decoded.ImageUnreadable(f"{status.st_size} bytes, above the limit of {MAX_BYTES} bytes per file")
        data = bytearray(status.st_size)
        filled = 0
        while filled < len(data):
            count = os.readv(descriptor, [memoryview(data)[filled:]])
            if not count:
                raise decoded.ImageUnreadable(f"ended after {filled} of {len(data)} bytes while it was read")
            filled += count
        after = os.fstat(descriptor)
        if (after.st_size, after.st_mtime_ns) != (status.st_size, status.st_mtime_ns):
            raise decoded.ImageUnreadable("modified while it was read")
    finally:
        os.close(descriptor)
    return data, status


def change(request: Request, found_bytes: int, mtime_ns: int) -> str | None:
    """Describe how a file differs from the planned one in size or time; None if it does not."""
    planned = request.planned_mtime_ns
    if request.planned_bytes < 0:
        return f"was missing when the run was planned, is {found_bytes} bytes now"
    if found_bytes != request.planned_bytes:
        return f"changed since planned: was {request.planned_bytes} bytes, is {found_bytes} bytes"
    if planned is None or file_stamps.same_time(planned, mtime_ns):
        return None
    return f"changed since planned: same size, written {_utc(mtime_ns)} instead of {_utc(planned)}"


def _utc(mtime_ns: int) -> str:
    with contextlib.suppress(ValueError, OverflowError, OSError):  # a year out of range
        return datetime.datetime.fromtimestamp(mtime_ns // 10**9, datetime.UTC).strftime("%Y-%m-%d %H:%M:%S")
    return f"{mtime_ns // 10**9} s"


def _reason(error: Exception) -> str:
    if isinstance(error, _Changed):
        return f"{error}; {REMEDY}"
    if isinstance(error, decoded.ImageUnreadable):
        return str(error)
    if isinstance(error, MemoryError):
        return "not enough memory to decode this image"
    if isinstance(error, OSError) and error.strerror:
        return f"cannot be read: {error.strerror}"
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:200]
