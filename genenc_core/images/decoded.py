"""What a decoder is asked for, and what it gives: pixels, or the reason why there are none."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch

from genenc_core.images import resizing

BAND_PIXELS = 2**20


def bands(height: int, width: int) -> Iterator[slice]:
    """Yield slices of rows, of about a megapixel each: what is worked out in them needs little memory at once."""
    rows = max(1, BAND_PIXELS // width)
    for top in range(0, height, rows):
        yield slice(top, min(top + rows, height))


class ImageUnreadable(Exception):
    """Bytes that are no readable image; the text is the reason, one short line."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Goal:
    """What becomes of the pixels, for a decoder that can do more in one go."""

    target: Callable[[int, int], resizing.Target]
    """Takes the (height, width) of the upright source and returns what it is resized to."""
    reduce: bool = False
    """Whether a JPEG may be decoded at a reduction that keeps as many pixels."""


class Decoded(NamedTuple):
    """One image, upright."""

    pixels: torch.Tensor
    """uint8 RGB [3, H, W]; the memory is usually channels-last."""
    orientation: int
    """EXIF orientation 1 to 8 as found in the file; already applied to `pixels`."""
    size: tuple[int, int]
    """(height, width) of the upright source in pixels."""
    reduction: int = 1
    """Source pixels per pixel and axis: 1, 2, 4 or 8."""
    beyond: tuple[int, int] = (0, 0)
    """How many source pixels the first row and column reach beyond the source; what is left over is at the last ones.

    A reduced JPEG has its incomplete pixels at the bottom and right; turning it upright may bring them to the front.
    """
