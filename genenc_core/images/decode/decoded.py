"""Input and output types of decoders: the resize hint, decoded pixels, and the error for unreadable images."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
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


class Samples(NamedTuple):
    """Values of an image's channels as stored."""

    values: np.ndarray
    """Integers, floats or bool, `[H, W, C]`; not yet upright."""
    known: tuple[float, float] | None
    """Values that stand for 0 and 1 where the user does not say; None: unknown."""
    doubt: str = ""
    """Why they are not known."""
    no_data: float | None = None
    """Value of pixels without data, besides NaN; None: there is none."""
    names: tuple[str, ...] = ()
    """Of the channels, where they were asked for and the file states them; "" for one without."""

    @classmethod
    def of(cls, values: np.ndarray) -> "Samples":
        """Return values with the range of their type: integers to its largest value, floats from 0 to 1."""
        kind = values.dtype
        if kind.kind in "bf":
            return cls(values, (0.0, 1.0))
        if kind.kind in "ui" and kind.itemsize <= 2:
            return cls(values, (0.0, float(np.iinfo(kind).max)))
        return cls(values, None, f"values of type {kind} have no known range")


class Decoded(NamedTuple):
    """One image, upright."""

    pixels: torch.Tensor
    """uint8 RGB `[3, H, W]`, in memory that is usually channels-last; or float32 `[C, H, W]` of other channels."""
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
