"""Channels of a TIFF: its samples as stored, and pages that are channels by its axes."""

import io
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from genenc_core.images.decode import channel_names, decode, headers, tiff
from genenc_core.images.decode.decoded import ImageUnreadable, Samples

_GDAL_NODATA = 42113
_RAW = (tiff.WHITE_IS_ZERO, tiff.BLACK_IS_ZERO, tiff.RGB)
"""Photometric interpretations whose samples are channels; others are converted to red, green and blue."""
_INSIDE = "YXS"
_UNMARKED = "IQ"
"""Axes of pages of which the file does not say what they are."""


class Layout:
    """Which pages of a TIFF are channels of which frame.

    An axis C (of OME-TIFF, ImageJ) is that of the channels, beside the samples of each page. Pages of one sample that
    the file says nothing about are channels too, unless `pages_are_frames`.
    """

    def __init__(self, file: Any, *, pages_are_frames: bool, named: bool) -> None:
        self.pages: np.ndarray = np.zeros((1, 1), np.int64)
        """Numbers of pages, `[frames, pages of a frame]`."""
        first = file.pages[0]
        self.samples = int(first.samplesperpixel) if int(first.photometric) in _RAW else 3
        if len(file.pages) > 1 or tiff.has_planes_behind(file):
            self.pages = _arranged(file, self.samples, pages_are_frames=pages_are_frames)
        self.names = channel_names.of_tiff(file, self.channels) if named else ()
        """Of the channels, where the file states them."""

    @classmethod
    def of(cls, file: Any, *, pages_are_frames: bool = False, named: bool = False) -> "Layout":
        """Return the layout of an open `tifffile.TiffFile`; `named`: with the names of its channels.

        Raises:
            ImageUnreadable: damaged, or pages in no order that is known.
        """
        try:
            return cls(file, pages_are_frames=pages_are_frames, named=named)
        except ImageUnreadable:
            raise
        except Exception as error:  # the parser may raise anything for damaged data
            raise ImageUnreadable(f"damaged TIFF: {tiff.reason(error)}") from error

    @classmethod
    def of_bytes(cls, data: bytes | bytearray, *, named: bool = False) -> "Layout":
        """Return the layout of a file's bytes; arguments and errors as for `of`."""
        return cls.of(opened(data), named=named)

    @property
    def channels(self) -> int:
        """Channels of each frame."""
        return int(self.pages.shape[1]) * self.samples

    @property
    def frames(self) -> int:
        """Number of frames."""
        return len(self.pages)


def read(data: bytes | bytearray, max_pixels: int, *, named: bool = False) -> tuple[Samples, int]:
    """Return the samples of the first frame, `named` with the names of its channels, and the EXIF orientation.

    Raises:
        ImageUnreadable: damaged, too large, or of a kind that is refused.
    """
    layout = Layout.of_bytes(data, named=named)
    return read_frame(opened(data), layout, 0, max_pixels)


def read_frame(file: Any, layout: Layout, frame: int, max_pixels: int) -> tuple[Samples, int]:
    """Return the samples of a frame of an open file, and the EXIF orientation; raises as `read`.

    `file` must not be the one that the layout was taken of: finding the axes loads pages without their tags.
    """
    parts: list[Samples] = []
    pages = [tiff.Page(file, int(index)) for index in layout.pages[frame]]
    first = pages[0]
    # A megapixel of one image is one of three channels.
    decode.check_size(first.height, first.width * -(-layout.channels // 3), max_pixels)
    for page in pages:
        if (page.height, page.width) != (first.height, first.width):
            raise ImageUnreadable(
                f"its pages have different sizes: {first.width} x {first.height}, {page.width} x {page.height}"
            )
        parts.append(_samples(page))
    return _joined(parts)._replace(names=layout.names), headers.valid_orientation(first.orientation)


def _joined(parts: Sequence[Samples]) -> Samples:
    if len(parts) == 1:
        return parts[0]
    kinds = {part.values.dtype for part in parts}
    if len(kinds) > 1:
        raise ImageUnreadable(f"its channels have different types: {', '.join(sorted(map(str, kinds)))}")
    unknown = next((part for part in parts if part.known is None), None)
    same = len({part.known for part in parts}) == 1
    return Samples(
        np.concatenate([part.values for part in parts], axis=2),
        None if unknown else parts[0].known if same else None,
        unknown.doubt if unknown else "its channels state different ranges",
        parts[0].no_data,
    )


def _samples(page: tiff.Page) -> Samples:
    if page.photometric not in _RAW:
        return Samples.of(page.rgb())
    values = page.stored()
    if page.photometric == tiff.WHITE_IS_ZERO:
        if values.dtype.kind not in "ub":
            raise ImageUnreadable(f"unsupported WhiteIsZero TIFF of {values.dtype}: convert it to BlackIsZero")
        values = ((1 << page.bits) - 1 - values).astype(values.dtype)
    known, doubt = page.known_range(values)
    if scale := page.stated_scale():
        known, doubt = None, f"it states {scale}: its numbers stand for others"
    return Samples(values, known, doubt, _no_data(page.tag(_GDAL_NODATA)))


def _no_data(stated: object) -> float | None:
    """Return the value that GDAL writes for pixels without data; None if there is none."""
    try:
        return float(str(stated).strip("\0 ")) if stated is not None else None
    except ValueError:
        return None


def opened(data: bytes | bytearray) -> Any:
    """Return a file's bytes as an open `tifffile.TiffFile`; raises `ImageUnreadable`."""
    import tifffile

    try:
        return tifffile.TiffFile(io.BytesIO(data))
    except Exception as error:
        raise ImageUnreadable(f"damaged TIFF: {tiff.reason(error)}") from error


def _arranged(file: Any, samples: int, *, pages_are_frames: bool) -> np.ndarray:
    """Return the numbers of pages, `[frames, pages of a frame]`, by the axes of the file's first series."""
    series = file.series[0]
    pages = [None if page is None else int(page.index) for page in series.pages]
    axes, shape = series.get_axes(squeeze=False), series.get_shape(squeeze=False)
    leading = [(axis, size) for axis, size in zip(axes, shape, strict=True) if axis not in _INSIDE]
    if None in pages or math.prod(size for _, size in leading) != len(pages) or len(set(pages)) < len(pages):
        raise ImageUnreadable(
            "some of its planes are missing, or lie behind its pages (ImageJ): save one page per plane"
        )
    numbers = np.array(pages, np.int64).reshape([size for _, size in leading])
    own = [at for at, (axis, _) in enumerate(leading) if axis == "C"]
    longer = [(at, axis) for at, (axis, size) in enumerate(leading) if size > 1]
    if not own and not pages_are_frames and samples == 1 and len(longer) == 1 and longer[0][1] in _UNMARKED:
        own = [longer[0][0]]
    channels = math.prod(leading[at][1] for at in own)
    return np.moveaxis(numbers, own, range(-len(own), 0)).reshape(-1, channels) if own else numbers.reshape(-1, 1)
