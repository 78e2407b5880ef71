"""TIFF files of several pages, each a frame."""

import struct
from collections.abc import Iterator
from typing import Any

import numpy as np

from genenc_core import spec
from genenc_core.images.containers.container import Container, Content, Member, file_mark, index_of, one_line
from genenc_core.images.containers.frames import Frames
from genenc_core.images.decode import decode, headers, tiff, tiff_channels
from genenc_core.images.decode.decoded import ImageUnreadable


class TiffStack(Container):
    """Pages of full resolution, by the same rules as the first page of a TIFF that is one image."""

    frames = True
    columns = ("frame",)

    has_channels = True

    def __init__(self, path: str, file: Any, layout: tiff_channels.Layout | None) -> None:
        self._path = path
        self._file = file
        self._layout = layout
        """Of channels; None: pages are RGB or grey."""
        self._mark = file_mark(path)

    @classmethod
    def open(cls, path: str, channels: spec.Channels | None = None) -> "TiffStack":
        """Open it; raises as `Container.open`."""
        import tifffile

        file_mark(path)
        try:
            if channels is None:
                return cls(path, tifffile.TiffFile(path), None)
            with tifffile.TiffFile(path, _multifile=False) as axes:
                named = channels.names is not None
                layout = tiff_channels.Layout.of(axes, pages_are_frames=True, named=named)
            return cls(path, tifffile.TiffFile(path, _multifile=False), layout)
        except (OSError, ImageUnreadable):
            raise
        except Exception as error:  # the parser may raise anything for damaged data
            raise ImageUnreadable(f"damaged TIFF: {one_line(error)}") from error

    def members(self, frames: Frames) -> Iterator[Member]:
        """Yield the pages; their numbers count all pages of the file, or of channels all frames."""
        if self._layout is not None:
            self._pages()
            for index in frames.of(self._layout.frames):
                yield Member.frame(index)
            return
        try:
            count = self._pages()
            full = [index for index, page in enumerate(self._file.pages) if not page.is_reduced and not page.is_mask]
            if len(self._file.pages) < count:
                raise ImageUnreadable("damaged TIFF: some of its pages cannot be read")
            if tiff.planes(self._file) > tiff.planes_of_pages(self._file):
                raise ImageUnreadable("its frames lie behind its pages (ImageJ): save one page per frame")
        except ImageUnreadable:
            raise
        except Exception as error:
            raise ImageUnreadable(f"damaged TIFF: {one_line(error)}") from error
        for index in frames.of(len(full)):
            yield Member.frame(full[index])

    def _pages(self) -> int:
        """Return the number of pages by the file's own chain of them; raises `ImageUnreadable` if it is broken."""
        file, form = self._file.filehandle, self._file.tiff
        seen: set[int] = set()
        file.seek(form.offsetsize if form.is_bigtiff else 4)
        while offset := struct.unpack(form.offsetformat, file.read(form.offsetsize))[0]:
            if offset in seen:
                raise ImageUnreadable("damaged TIFF: its pages form a loop")
            if offset + form.tagnosize > file.size:
                raise ImageUnreadable("truncated TIFF: some of its pages are missing")
            seen.add(offset)
            file.seek(offset)
            (tags,) = struct.unpack(form.tagnoformat, file.read(form.tagnosize))
            file.seek(offset + form.tagnosize + tags * form.tagsize)
        return len(seen)

    def read(self, at: str, *, most_pixels: int = decode.MAX_PIXELS) -> Content:
        """Return a page; raises as `Container.read`."""
        if self._layout is not None:
            index = index_of(at, self._layout.frames)
            samples, orientation = tiff_channels.read_frame(self._file, self._layout, index, most_pixels)
            data = np.ascontiguousarray(samples.values).data.cast("B")
            return Content(b"", file_mark(self._path), values=data, samples=samples, orientation=orientation)
        try:
            index = index_of(at, len(self._file.pages))
        except ImageUnreadable:
            raise
        except Exception as error:
            raise ImageUnreadable(f"damaged TIFF: {one_line(error)}") from error
        page = tiff.Page(self._file, index)
        decode.check_size(page.height, page.width, most_pixels)
        pixels = np.ascontiguousarray(page.rgb())
        orientation = headers.valid_orientation(page.orientation)
        return Content(b"", file_mark(self._path), pixels, pixels.data.cast("B"), orientation)

    def close(self) -> None:
        """Close it."""
        self._file.close()
