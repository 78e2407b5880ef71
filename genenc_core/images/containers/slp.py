"""Frames inside a SLEAP package (`.pkg.slp`), which SLEAP puts there with their labels; needs h5py."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from genenc_core import spec
from genenc_core.images.containers import arrays, slp_videos
from genenc_core.images.containers.container import Container, Content, Member, file_mark, one_line
from genenc_core.images.containers.frames import Frames
from genenc_core.images.decode import decode
from genenc_core.images.decode.decoded import ImageUnreadable

_RAW = "hdf5"


class SlpPackage(Container):
    """Frames of all videos of a package, by video and frame; their names are those that its labels have."""

    frames = False
    columns = ("frame", "video")
    """`frame`: its number in the video that it was taken from."""

    def __init__(self, path: str, file: Any) -> None:
        self._path = path
        self._file = file
        self._mark = file_mark(path)
        try:
            self._form = slp_videos.format_of(file)
            self._videos = slp_videos.videos(file)
        except Exception as error:  # damage may raise anything
            raise ImageUnreadable(f"damaged SLEAP project: {one_line(error)}") from error

    @classmethod
    def open(cls, path: str, channels: spec.Channels | None = None) -> "SlpPackage":  # noqa: ARG003
        """Open it; raises as `Container.open`."""
        try:
            import h5py
        except ImportError as error:
            raise ImageUnreadable("a SLEAP package is HDF5, which needs h5py: pip install 'genenc[hdf5]'") from error
        file_mark(path)
        try:
            file = h5py.File(path, "r", locking=False)
        except OSError as error:
            if error.errno is not None:
                raise
            raise ImageUnreadable(f"damaged SLEAP project: {one_line(error)}") from error
        try:
            return cls(path, file)
        except BaseException:
            file.close()
            raise

    def members(self, frames: Frames) -> Iterator[Member]:  # noqa: ARG002 -- they were selected by who made it
        """Yield the frames."""
        inside = [video for video in self._videos if video.group]
        if not inside:
            files = [name for video in self._videos for name in video.files]
            where = f", which are in {files[0]!r}{' and others' if len(files) > 1 else ''}" if files else ""
            raise ImageUnreadable(
                f"it is a SLEAP project without its images{where}: give these as images and it as --points, or save a "
                "package with them (in SLEAP: Export Labels Package)"
            )
        for video in inside:
            data = self._data(video.group)
            numbers = self._numbers(video.group, len(data))
            origin = video.files[0] if video.files and not video.is_sequence else ""
            for at, frame in enumerate(numbers):
                name = video.frame_name(frame, "")
                yield Member(f"/{name}", f"{video.group}:{at}", (str(frame), origin))

    def _data(self, group: str) -> Any:
        import h5py

        try:
            data = self._file[group]["video"]
            link = self._file.get(f"{group}/video", getlink=True)
        except Exception as error:  # damage may raise anything
            raise ImageUnreadable(f"damaged SLEAP project: {one_line(error)}") from error
        if not isinstance(data, h5py.Dataset) or not isinstance(link, h5py.HardLink):
            raise ImageUnreadable(f"damaged SLEAP project: {group!r} holds no images")
        if data.external or data.is_virtual:
            raise ImageUnreadable(f"the values of {group!r} are in other files, which are not followed")
        return data

    def _numbers(self, group: str, count: int) -> list[int]:
        """Return the numbers of a video's frames in the one that they were taken from."""
        try:
            stored = self._file[group].get("frame_numbers")
            numbers = list(range(count)) if stored is None else [int(each) for each in stored[()]]
        except Exception as error:
            raise ImageUnreadable(f"damaged SLEAP project: {one_line(error)}") from error
        if len(numbers) != count or len({*numbers}) < count:
            raise ImageUnreadable(f"damaged SLEAP project: {count} images of {group!r} have the frames {numbers[:5]}")
        return numbers

    def read(self, at: str, *, most_pixels: int = decode.MAX_PIXELS) -> Content:
        """Return an image; raises as `Container.read`."""
        group, _, number = at.rpartition(":")
        data = self._data(group)
        if int(number) >= len(data):
            raise ImageUnreadable(f"there is no image {number}: {group} has {len(data)}")
        try:
            cell = np.ascontiguousarray(data[int(number)])
            form, order = (data.attrs.get(name) for name in ("format", "channel_order"))
        except (OSError, RuntimeError, ValueError) as error:
            raise ImageUnreadable(f"damaged SLEAP project: {one_line(error)}") from error
        mark = file_mark(self._path)
        if form == _RAW or cell.ndim > 1:
            arrays.check_shape(cell.shape, arrays.Axes(1, stacked=False, channels_first=False), most_pixels)
            return Content(b"", mark, arrays.rgb(cell), cell.data.cast("B"))
        encoded = cell.tobytes().rstrip(b"\0")
        if order is None:
            order = "RGB" if self._form >= slp_videos.RGB_INSIDE else "BGR"
        if order != "BGR":
            return Content(encoded, mark)
        image = decode.decode_image(encoded, max_pixels=most_pixels)
        # OpenCV wrote the colours of an RGB image as if they were in its own order.
        pixels = np.ascontiguousarray(image.pixels.permute(1, 2, 0).numpy()[..., ::-1])
        return Content(b"", mark, pixels, encoded)

    def close(self) -> None:
        """Close it."""
        self._file.close()
