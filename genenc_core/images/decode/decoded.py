"""Input and output types of decoders: the resize hint, decoded pixels, and the error for unreadable images."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch

from genenc_core.images.decode import resize

BAND_PIXELS = 2**20


def bands(height: int, width: int) -> Iterator[slice]:
    """Yield slices of rows of about a megapixel each, for computations that should need little memory."""
    rows = max(1, BAND_PIXELS // width)
    for top in range(0, height, rows):
        yield slice(top, min(top + rows, height))


class ImageUnreadable(Exception):
    """The data is not a readable image; the message is the reason, one short line."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ResizeHint:
    """What the pixels will be resized to, for decoders that can decode at a reduced size."""

    target: Callable[[int, int], resize.Target]
    """Maps the (height, width) of the upright source to its resize target."""
    reduce: bool = False
    """Whether a JPEG may be decoded at a reduction that still has at least as many pixels."""


class Decoded(NamedTuple):
    """One image, upright."""

    pixels: torch.Tensor
    """uint8 RGB `[3, H, W]`; the memory is usually channels-last."""
    orientation: int
    """EXIF orientation 1 to 8 of the file; already applied to `pixels`."""
    size: tuple[int, int]
    """(height, width) of the upright source in pixels."""
    reduction: int = 1
    """Source pixels per pixel and axis: 1, 2, 4 or 8."""
    overhang: tuple[int, int] = (0, 0)
    """Source pixels by which the first row and column extend beyond the source; the rest is at the last ones.

    A reduced JPEG has its incomplete pixels at the bottom and right; turning it upright may move them to the front.
    """
