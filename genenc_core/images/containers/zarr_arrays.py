"""Stacks in Zarr arrays, also of OME-Zarr images, in local folders."""

import itertools
import json
import math
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from genenc_core import spec
from genenc_core.images.containers import arrays, zarr_shards
from genenc_core.images.containers.container import (
    Container,
    Content,
    Mark,
    Member,
    index_of,
    one_line,
    warn_of_missing,
)
from genenc_core.images.containers.frames import Frames
from genenc_core.images.decode import decode
from genenc_core.images.decode.decoded import ImageUnreadable

_PLANE = ("y", "x")
_KEPT = 256 * 2**20
"""Bytes of a chunk that is kept."""


class ZarrArray(Container):
    """An array of frames, or the first resolution of an OME-Zarr image, whose frames are its planes in order.

    A frame's mark is that of the files of its chunks and of the metadata: the sum of their sizes and the latest times.
    """

    frames = True
    columns = ("frame",)

    has_channels = True

    def __init__(
        self,
        path: Path,
        array: Any,
        axes: arrays.Axes,
        planes: tuple[int, ...] | None,
        channels: spec.Channels | None,
        channel_axis: int | None = None,
        names: tuple[str, ...] = (),
    ) -> None:
        self._path = path
        self._channels = channels
        self._names = names
        """Of the channels, where they are stated."""
        self._channel_axis = channel_axis
        """Of OME-Zarr: the axis of channels, which is none of `planes`; None if there is none."""
        self._metadata = str(path / _metadata_of(path))
        self._array = array
        self._missing = arrays.missing_value(array.attrs, array.dtype, array.fill_value)
        self._axes = axes
        self._kept: tuple[tuple[int, ...], np.ndarray] = ((), np.empty(0))
        """Index of the first frame of the chunk that was read last, and its frames."""
        self._planes = planes
        """Of OME-Zarr: sizes of the axes of frames before y and x; None for other arrays."""

    @classmethod
    def open(cls, path: str, channels: spec.Channels | None = None) -> "ZarrArray":
        """Open it; raises as `Container.open`."""
        import zarr

        place, names = _ome_image(Path(path), channels)
        try:
            found: Any = zarr.open(str(place), mode="r")
        except OSError as error:
            if error.errno is not None:
                raise
            raise ImageUnreadable(f"damaged or unsupported Zarr: {one_line(error)}") from error
        except Exception as error:  # codecs and parsers raise their own
            raise ImageUnreadable(f"damaged or unsupported Zarr: {one_line(error)}") from error
        if not isinstance(found, zarr.Array):
            inside = ", ".join(sorted(each.name for each in place.iterdir() if each.is_dir())[:8])
            raise ImageUnreadable(f"it is a Zarr group: name an array in it, as {place.name}/NAME; it has {inside}")
        arrays.check_type(found.dtype, channels)
        arrays.check_scale(found.attrs, channels)
        if names:
            *planes, height, width = found.shape
            arrays.Axes.of((height, width))
            own = names.index("c") if channels is not None and "c" in names else None
            if own is not None:
                del planes[own]
            axes = arrays.Axes(math.prod(planes), stacked=bool(planes), channels_first=own is not None)
            labels = () if own is None else _ome_labels(Path(path), found.shape[own])
            return cls(place, found, axes, tuple(planes), channels, own, labels)
        dimensions: Any = getattr(found.metadata, "dimension_names", None) or found.attrs.get("_ARRAY_DIMENSIONS")
        axes = arrays.Axes.for_images(found.shape, channels, dimensions)
        labels = () if channels is None else _coordinate(place, dimensions, found.shape, axes)
        return cls(place, found, axes, None, channels, names=labels)

    def members(self, frames: Frames) -> Iterator[Member]:
        """Yield the frames."""
        listed = missing = 0
        indexes = None if self._array.shards is None else zarr_shards.ShardIndexes(self._array)
        for index in frames.of(self._axes.frames):
            listed, missing = listed + 1, missing + (not self._is_written(str(index), indexes))
            yield Member.frame(index)
        warn_of_missing(str(self._path), missing, listed, "frames")

    def _before(self, at: str) -> tuple[int, ...]:
        """Return the indices of a frame on the axes before its own."""
        index = index_of(at, self._axes.frames)
        if self._planes is not None:
            return tuple(map(int, np.unravel_index(index, self._planes)))
        return (index,) if self._axes.stacked else ()

    def mark(self, at: str) -> Mark:
        """Return the mark of a frame's chunks and of what says how to read them."""
        marks = [Mark.of(os.stat(path)) for path in (self._metadata, *self._chunks(at)) if os.path.exists(path)]  # noqa: PTH110, PTH116
        sizes, *times = zip(*marks, strict=True)
        return Mark(sum(sizes), *map(max, times))

    def _chunks(self, at: str) -> Iterator[str]:
        """Yield the paths of a frame's chunks, or shards; those of fill values only need not be there."""
        sides = self._array.shards or self._array.chunks
        for place in itertools.product(*self._grid(at, sides)):
            yield self._path_of(place)

    def _path_of(self, place: tuple[int, ...]) -> str:
        return os.path.join(self._path, self._array.metadata.encode_chunk_key(place))  # noqa: PTH118

    def _grid(self, at: str, sides: Sequence[int]) -> list[Sequence[int]]:
        """Return where a frame's chunks of these sides are in their grid, along each axis."""
        before: list[int | None] = list(self._before(at))
        if self._channel_axis is not None:
            before.insert(self._channel_axis, None)
        found: list[Sequence[int]] = []
        for axis, (length, side) in enumerate(zip(self._array.shape, sides, strict=True)):
            own = before[axis] if axis < len(before) else None
            found.append(range(-(-length // side)) if own is None else (own // side,))
        return found

    def _is_written(self, at: str, indexes: zarr_shards.ShardIndexes | None) -> bool:
        """Return whether all of a frame's chunks were written, as far as files and the indexes of shards say."""
        if not all(map(os.path.exists, self._chunks(at))):
            return False
        if indexes is None:
            return True
        places = itertools.product(*self._grid(at, self._array.shards))
        chunks = self._grid(at, self._array.chunks)
        return indexes.are_written(
            {self._path_of(place): place for place in places},
            [each[0] if isinstance(each, tuple) else None for each in chunks],
        )

    def read(self, at: str, *, most_pixels: int = decode.MAX_PIXELS) -> Content:
        """Return a frame; raises as `Container.read`."""
        before = self._before(at)
        arrays.check_shape(self._frame_shape(), self._axes._replace(stacked=False), most_pixels)
        mark = self.mark(at)
        try:
            frame = np.ascontiguousarray(self._channels_of(before))
        except OSError as error:
            if error.errno is not None:
                raise
            raise ImageUnreadable(f"damaged Zarr: {one_line(error)}") from error
        except Exception as error:  # codecs raise their own
            raise ImageUnreadable(f"damaged Zarr: {one_line(error)}") from error
        if self.mark(at) != mark:
            raise ImageUnreadable("modified while it was read")
        if self._channels is not None:
            samples = self._axes.samples(frame, self._names, self._missing)
            return Content(b"", mark, values=frame.data.cast("B"), samples=samples)
        arrays.refuse_missing(frame, self._missing)
        pixels = arrays.rgb(frame, channels_first=self._axes.channels_first)
        return Content(b"", mark, pixels, frame.data.cast("B"))

    def _frame_shape(self) -> tuple[int, ...]:
        """Return the shape of one frame."""
        shape: tuple[int, ...] = self._array.shape
        if self._planes is None:
            return shape[1:] if self._axes.stacked else shape
        return shape[-2:] if self._channel_axis is None else (shape[self._channel_axis], *shape[-2:])

    def _channels_of(self, before: tuple[int, ...]) -> np.ndarray:
        """Return a frame, with the channels of OME-Zarr first."""
        own = self._channel_axis
        if own is None:
            return self._frame(before)
        places = ((*before[:own], channel, *before[own:]) for channel in range(self._array.shape[own]))
        return np.stack([self._frame(place) for place in places])

    def _frame(self, before: tuple[int, ...]) -> np.ndarray:
        """Return a frame; of a chunk of several frames all are read at once, and kept for those that follow."""
        array = self._array
        if not before:
            whole: np.ndarray = np.asarray(array[...])
            return whole
        together = array.chunks[len(before) - 1]
        if together * math.prod(array.shape[len(before) :]) * array.dtype.itemsize > _KEPT:
            one: np.ndarray = np.asarray(array[before])
            return one
        first = before[-1] // together * together
        place = (*before[:-1], first)
        if self._kept[0] != place:
            self._kept = (place, np.asarray(array[(*before[:-1], slice(first, first + together))]))
        frame: np.ndarray = self._kept[1][before[-1] - first]
        return frame

    def close(self) -> None:
        """Do nothing: no file stays open."""


def _ome_image(path: Path, channels: spec.Channels | None) -> tuple[Path, list[str]]:
    """Return the array of an OME-Zarr image's first resolution and its axes, or the path itself and [].

    Raises:
        ImageUnreadable: the image has several channels, or axes in another order.
    """
    scales = _attributes(path).get("multiscales")
    if not isinstance(scales, list) or not scales:
        return path, []
    try:
        names = [axis if isinstance(axis, str) else axis["name"] for axis in scales[0].get("axes", "tczyx")]
        place = path / str(scales[0]["datasets"][0]["path"])
        shape = json.loads((place / _metadata_of(place)).read_bytes())["shape"]
    except (OSError, KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
        raise ImageUnreadable(f"damaged OME-Zarr: {one_line(error)}") from error
    if tuple(names[-2:]) != _PLANE or len(names) != len(shape):
        raise ImageUnreadable(f"OME-Zarr with axes {', '.join(names)} is not supported: y and x must be the last")
    count = shape[names.index("c")] if "c" in names else 1
    if count != 1 and channels is None:
        raise ImageUnreadable(
            f"an OME-Zarr image of {count} channels: choose some for the model with --channels (numbered from 0), or "
            "write the three to take for red, green and blue as an array of its own"
        )
    if not place.resolve().is_relative_to(path.resolve()):
        raise ImageUnreadable("the OME-Zarr's array is outside its folder, which is not followed")
    return place, names


def _ome_labels(path: Path, count: int) -> tuple[str, ...]:
    """Return the labels of an OME-Zarr image's channels; () if there are none, or not as many."""
    stated = _attributes(path).get("omero")
    found = stated.get("channels") if isinstance(stated, dict) else None
    if not isinstance(found, list) or len(found) != count:
        return ()
    labels = tuple(str(each.get("label", "")) if isinstance(each, dict) else "" for each in found)
    return labels if any(labels) else ()


def _coordinate(place: Path, dimensions: Any, shape: Sequence[int], axes: arrays.Axes) -> tuple[str, ...]:
    """Return the values of the array beside this one that is named as its axis of channels, if they are text."""
    import zarr

    at = axes.of_channels_in_array
    name = dimensions[at] if isinstance(dimensions, list | tuple) and len(dimensions) == len(shape) else None
    beside = place.parent / str(name)
    if (
        not isinstance(name, str)
        or name in ("", ".", "..")
        or "/" in name
        or not (beside / _metadata_of(beside)).is_file()
    ):
        return ()
    try:
        found: Any = zarr.open_array(str(beside), mode="r")
        is_text = found.shape == (shape[at],) and found.dtype.kind in "UOT"
        return tuple(map(str, np.asarray(found[:]).tolist())) if is_text else ()
    except Exception:  # codecs and parsers raise their own: no names then
        return ()


def _attributes(path: Path) -> dict[str, Any]:
    """Return the attributes of a group; {} if it has none."""
    try:
        if (path / "zarr.json").is_file():
            attributes = json.loads((path / "zarr.json").read_bytes()).get("attributes", {})
            attributes = attributes.get("ome", attributes)
        else:
            attributes = json.loads((path / ".zattrs").read_bytes())
    except (OSError, ValueError, AttributeError):
        return {}
    return attributes if isinstance(attributes, dict) else {}


def _metadata_of(place: Path) -> str:
    return "zarr.json" if (place / "zarr.json").is_file() else ".zarray"
