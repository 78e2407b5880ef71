"""Stacks in HDF5 files; needs h5py."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from genenc_core import spec
from genenc_core.images.containers import arrays, kinds
from genenc_core.images.containers.container import (
    Container,
    Content,
    Member,
    file_mark,
    index_of,
    name_inside,
    one_line,
    warn_of_missing,
)
from genenc_core.images.containers.frames import Frames
from genenc_core.images.decode import decode
from genenc_core.images.decode.decoded import ImageUnreadable

_CACHE = 64 * 2**20
"""Bytes of chunks that are kept: of one that holds many frames, each would decompress it again."""
_SHOWN = 8


class Hdf5(Container):
    """A dataset of frames: the only one in the file that may be one, or the one that the path names."""

    frames = True
    columns = ("frame",)

    has_channels = True

    def __init__(self, path: Path, file: Any, name: str, channels: spec.Channels | None) -> None:
        self._file = file
        self._channels = channels
        self._path = path
        self._mark = file_mark(str(path))
        self._data = self._dataset(name) if name else self._only_dataset()
        arrays.check_type(_kind(self._data), channels)
        arrays.check_scale(self._data.attrs, channels)
        self._missing = arrays.missing_value(self._data.attrs, _kind(self._data), self._data.fillvalue)
        self._axes = arrays.Axes.for_images(self._data.shape, channels, _names(self._data))
        self._names = () if channels is None else _scale_of(self._data, self._axes.of_channels_in_array)

    @classmethod
    def open(cls, path: str, channels: spec.Channels | None = None) -> "Hdf5":
        """Open it; raises as `Container.open`."""
        try:
            import h5py
        except ImportError as error:
            raise ImageUnreadable("HDF5 needs h5py: pip install 'genenc[hdf5]'") from error
        at = Path(kinds.file_of(path) or path)
        file_mark(str(at))
        try:
            file = h5py.File(at, "r", locking=False, rdcc_nbytes=_CACHE)
        except OSError as error:
            if error.errno is not None:
                raise
            raise ImageUnreadable(f"damaged or unsupported HDF5: {one_line(error)}") from error
        try:
            return cls(at, file, name_inside(path, at), channels)
        except BaseException:
            file.close()
            raise

    def _dataset(self, name: str) -> Any:
        import h5py

        try:
            link = self._file.get(name, getlink=True)
            data = self._file[name] if isinstance(link, h5py.HardLink) else None
        except (KeyError, OSError, RuntimeError, ValueError) as error:
            raise ImageUnreadable(f"it has no dataset {name!r}: it has {self._described()}") from error
        if not isinstance(data, h5py.Dataset):
            raise ImageUnreadable(f"{name!r} is no dataset in this file: it has {self._described()}")
        if data.shape is None:
            raise ImageUnreadable(f"the dataset {name!r} is empty")
        if data.external or data.is_virtual or data.file.filename != self._file.filename:
            raise ImageUnreadable(f"the values of {name!r} are in other files, which are not followed")
        return data

    def _only_dataset(self) -> Any:
        found = [name for name, data in self._datasets().items() if _may_be_frames(data, self._channels)]
        if len(found) != 1:
            what = "several datasets that may be frames" if found else "no dataset of frames"
            raise ImageUnreadable(f"it has {what}: name one, as {self._path.name}/NAME; it has {self._described()}")
        return self._dataset(found[0])

    def _datasets(self) -> dict[str, Any]:
        import h5py

        found: dict[str, Any] = {}

        def visit(name: str, item: Any) -> None:  # hard links only
            if isinstance(item, h5py.Dataset):
                found[name] = item

        try:
            self._file.visititems(visit)
        except (OSError, RuntimeError, ValueError) as error:
            raise ImageUnreadable(f"damaged HDF5: {one_line(error)}") from error
        return found

    def _described(self) -> str:
        found = [f"{name} {list(data.shape or ())} {_kind(data)}" for name, data in self._datasets().items()]
        return (", ".join(found[:_SHOWN]) or "none") + (", ..." if len(found) > _SHOWN else "")

    def members(self, frames: Frames) -> Iterator[Member]:
        """Yield the frames."""
        self._warn_of_missing()
        for index in frames.of(self._axes.frames):
            yield Member.frame(index)

    def _warn_of_missing(self) -> None:
        if self._data.chunks is None:  # space is taken as the first value is written
            count = 0 if self._data.id.get_storage_size() else self._axes.frames
            warn_of_missing(str(self._path), count, count, "frames")
            return
        wanted = math.prod(-(-side // chunk) for side, chunk in zip(self._data.shape, self._data.chunks, strict=True))
        warn_of_missing(str(self._path), wanted - self._data.id.get_num_chunks(), wanted, "chunks")

    def read(self, at: str, *, most_pixels: int = decode.MAX_PIXELS) -> Content:
        """Return a frame; raises as `Container.read`."""
        index = index_of(at, self._axes.frames)
        arrays.check_shape(self._data.shape, self._axes, most_pixels)
        try:
            frame = np.ascontiguousarray(self._data[index] if self._axes.stacked else self._data[()])
        except (OSError, RuntimeError, ValueError) as error:
            raise ImageUnreadable(f"damaged HDF5: {one_line(error)}") from error
        mark, values = file_mark(str(self._path)), frame.data.cast("B")
        if self._channels is not None:
            samples = self._axes.samples(frame, self._names, self._missing)
            return Content(b"", mark, values=values, samples=samples)
        arrays.refuse_missing(frame, self._missing)
        return Content(b"", mark, arrays.rgb(frame, channels_first=self._axes.channels_first), values)

    def close(self) -> None:
        """Close it."""
        self._file.close()


def _scale_of(data: Any, axis: int) -> tuple[str, ...]:
    """Return the values of the dimension scale of an axis, if they are text; () if there is none."""
    try:
        scales = data.dims[axis % len(data.shape)].values()
        for scale in scales:
            if scale.shape == (data.shape[axis],) and scale.dtype.kind in "OS":
                return tuple(each.decode() if isinstance(each, bytes) else str(each) for each in scale[:].tolist())
    except (OSError, RuntimeError, ValueError, KeyError, TypeError):
        return ()
    return ()


def _may_be_frames(data: Any, channels: spec.Channels | None) -> bool:
    if data.shape is None:
        return False
    try:
        arrays.check_type(_kind(data), channels)
        return len(data.shape) > 2 and bool(arrays.Axes.for_images(data.shape, channels))
    except ImageUnreadable:
        return False


def _names(data: Any) -> list[str]:
    """Return the labels of a dataset's dimensions."""
    return [each.label for each in data.dims]


def _kind(data: Any) -> np.dtype[Any]:
    """Return the type of a dataset's values; that of bytes for one that NumPy does not have."""
    try:
        kind: np.dtype[Any] = data.dtype
    except TypeError:
        kind = np.dtype("V1")
    return kind
