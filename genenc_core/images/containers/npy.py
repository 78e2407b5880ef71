"""NumPy's `.npy` files: one array, of which single frames are read in place."""

import os
from collections.abc import Iterator
from io import FileIO
from math import prod

import numpy as np

from genenc_core import spec
from genenc_core.images.containers import arrays
from genenc_core.images.containers.container import Container, Content, Mark, Member, index_of, one_line, read_at
from genenc_core.images.containers.frames import Frames
from genenc_core.images.decode import decode
from genenc_core.images.decode.decoded import ImageUnreadable

_LARGEST_HEADER = 10_000


class Npy(Container):
    """An array of frames; `arrays` has the rules."""

    frames = True
    columns = ("frame",)

    has_channels = True

    def __init__(self, file: FileIO, channels: spec.Channels | None) -> None:
        self._file = file
        self._channels = channels
        status = os.fstat(file.fileno())
        self._mark = Mark.of(status)
        try:
            version = np.lib.format.read_magic(file)
            read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}[version]
            shape, fortran, self._kind = read(file, max_header_size=_LARGEST_HEADER)
        except Exception as error:  # the header is parsed as Python
            raise ImageUnreadable(f"damaged or unsupported npy: {one_line(error)}") from error
        if fortran and len(shape) > 1:
            raise ImageUnreadable("its array is in Fortran order: save numpy.ascontiguousarray(array)")
        arrays.check_type(self._kind, channels)
        self._axes = arrays.Axes.for_images(shape, channels)
        self._whole = shape
        self._shape = shape[1:] if self._axes.stacked else shape
        self._start, self._bytes = file.tell(), prod(self._shape) * self._kind.itemsize
        if self._start + self._axes.frames * self._bytes > status.st_size:
            raise ImageUnreadable(f"truncated npy: {list(shape)} values of {self._kind} need more bytes than it has")

    @classmethod
    def open(cls, path: str, channels: spec.Channels | None = None) -> "Npy":
        """Open it; raises as `Container.open`."""
        file = FileIO(os.open(path, os.O_RDONLY | os.O_NONBLOCK))
        try:
            return cls(file, channels)
        except BaseException:
            file.close()
            raise

    def members(self, frames: Frames) -> Iterator[Member]:
        """Yield the frames."""
        for index in frames.of(self._axes.frames):
            yield Member.frame(index)

    def read(self, at: str, *, most_pixels: int = decode.MAX_PIXELS) -> Content:
        """Return a frame; raises as `Container.read`."""
        index = index_of(at, self._axes.frames)
        arrays.check_shape(self._whole, self._axes, most_pixels)
        data = read_at(self._file.fileno(), self._bytes, self._start + index * self._bytes)
        if len(data) < self._bytes:
            raise ImageUnreadable("truncated npy: it ends before this frame")
        frame = np.frombuffer(data, self._kind).reshape(self._shape)
        mark = Mark.of(os.fstat(self._file.fileno()))
        if self._channels is not None:
            return Content(b"", mark, values=data, samples=self._axes.samples(frame))
        return Content(b"", mark, arrays.rgb(frame, channels_first=self._axes.channels_first), data)

    def close(self) -> None:
        """Close it."""
        self._file.close()
