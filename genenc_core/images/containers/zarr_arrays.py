"""Stacks in Zarr arrays, also of OME-Zarr images, in local folders."""

import itertools
import json
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from genenc_core.images.containers import arrays
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


class ZarrArray(Container):
    """An array of frames, or the first resolution of an OME-Zarr image, whose frames are its planes in order.

    A frame's mark is that of the files of its chunks: the sum of their sizes and the latest of their times.
    """

    frames = True
    columns = ("frame",)

    def __init__(self, path: Path, array: Any, axes: arrays.Axes, planes: tuple[int, ...] | None) -> None:
        self._path = path
        self._array = array
        self._axes = axes
        self._planes = planes
        """Of OME-Zarr: sizes of the axes before y and x; None for other arrays."""

    @classmethod
    def open(cls, path: str) -> "ZarrArray":
        """Open it; raises as `Container.open`."""
        import zarr

        place, planar = _ome_image(Path(path))
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
        arrays.check_type(found.dtype)
        if planar:
            *planes, height, width = found.shape
            arrays.Axes.of((height, width))
            axes = arrays.Axes(math.prod(planes), stacked=bool(planes), channels_first=False)
            return cls(place, found, axes, tuple(planes))
        return cls(place, found, arrays.Axes.of(found.shape), None)

    def members(self, frames: Frames) -> Iterator[Member]:
        """Yield the frames."""
        listed = missing = 0
        for index in frames.of(self._axes.frames):
            listed, missing = listed + 1, missing + (not self.mark(str(index)).size)
            yield Member(f"#{index}", str(index), (str(index),))
        warn_of_missing(str(self._path), missing, listed, "frames")

    def _before(self, at: str) -> tuple[int, ...]:
        """Return the indices of a frame on the axes before its own."""
        index = index_of(at, self._axes.frames)
        if self._planes is not None:
            return tuple(map(int, np.unravel_index(index, self._planes)))
        return (index,) if self._axes.stacked else ()

    def mark(self, at: str) -> Mark:
        """Return the mark of a frame's chunks."""
        before = self._before(at)
        sides = self._array.shards or self._array.chunks
        known = [(each // side,) for each, side in zip(before, sides, strict=False)]
        rest = [range(-(-length // side)) for length, side in zip(self._array.shape, sides, strict=True)][len(known) :]
        size, mtime, ctime = 0, 0, 0
        for place in itertools.product(*known, *rest):
            try:
                status = os.stat(os.path.join(self._path, self._array.metadata.encode_chunk_key(place)))  # noqa: PTH116, PTH118
            except FileNotFoundError:  # a chunk of fill values
                continue
            size, mtime = size + status.st_size, max(mtime, status.st_mtime_ns)
            ctime = max(ctime, status.st_ctime_ns)
        return Mark(size, mtime, ctime)

    def read(self, at: str, *, most_pixels: int = decode.MAX_PIXELS) -> Content:
        """Return a frame; raises as `Container.read`."""
        before = self._before(at)
        shape = self._array.shape if not self._planes else (1, *self._array.shape[-2:])
        arrays.check_shape(shape, self._axes, most_pixels)
        mark = self.mark(at)
        try:
            frame = np.ascontiguousarray(self._array[before if before else ...])
        except OSError as error:
            if error.errno is not None:
                raise
            raise ImageUnreadable(f"damaged Zarr: {one_line(error)}") from error
        except Exception as error:  # codecs raise their own
            raise ImageUnreadable(f"damaged Zarr: {one_line(error)}") from error
        pixels = arrays.rgb(frame, channels_first=self._axes.channels_first)
        return Content(b"", mark, pixels, frame.data.cast("B"))

    def close(self) -> None:
        """Do nothing: no file stays open."""


def _ome_image(path: Path) -> tuple[Path, bool]:
    """Return the array of an OME-Zarr image's first resolution and True, or the path itself and False.

    Raises:
        ImageUnreadable: the image has several channels, or axes in another order.
    """
    scales = _attributes(path).get("multiscales")
    if not isinstance(scales, list) or not scales:
        return path, False
    try:
        names = [axis if isinstance(axis, str) else axis["name"] for axis in scales[0].get("axes", "tczyx")]
        place = path / str(scales[0]["datasets"][0]["path"])
        shape = json.loads((place / _metadata_of(place)).read_bytes())["shape"]
    except (OSError, KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
        raise ImageUnreadable(f"damaged OME-Zarr: {one_line(error)}") from error
    if tuple(names[-2:]) != _PLANE or len(names) != len(shape):
        raise ImageUnreadable(f"OME-Zarr with axes {', '.join(names)} is not supported: y and x must be the last")
    channels = shape[names.index("c")] if "c" in names else 1
    if channels != 1:
        raise ImageUnreadable(
            f"an OME-Zarr image of {channels} channels: write the one to encode, or the three to take for red, green "
            "and blue, as an array of its own"
        )
    if not place.resolve().is_relative_to(path.resolve()):
        raise ImageUnreadable("the OME-Zarr's array is outside its folder, which is not followed")
    return place, True


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
