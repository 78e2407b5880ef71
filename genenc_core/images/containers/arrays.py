"""Rules by which arrays become images: which axis is which, and what range values have."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from genenc_core import spec
from genenc_core.images.decode import decode
from genenc_core.images.decode.decoded import ImageUnreadable, Samples, bands

_COLOURS = (1, 3, 4)
_CHANNEL_RULE = (
    "write [N, H, W, C] or [N, C, H, W], or one image as [H, W, C] or [C, H, W], with fewer channels than pixels on a "
    "side"
)
_RULE = "write frames as [N, H, W], [N, H, W, 3] or [N, 3, H, W], or one image as [H, W] or [H, W, 3]"


class Axes(NamedTuple):
    """How an array holds frames."""

    frames: int
    """Their number."""
    stacked: bool
    """Whether the first axis is that of the frames; otherwise the array is one image."""
    channels_first: bool
    """Whether a frame is `[C, H, W]`, not `[H, W]` or `[H, W, C]`."""

    @classmethod
    def of(cls, shape: Sequence[int]) -> "Axes":
        """Take the axes of an array by its shape.

        Two axes are one grey image; three are one image if the last has 3 or 4 entries, else grey frames; four are
        frames with 1, 3 or 4 channels last, else first.

        Raises:
            ImageUnreadable: another shape.
        """
        if min(shape, default=0) >= 1:
            if len(shape) == 2 or (len(shape) == 3 and shape[2] in _COLOURS[1:]):
                return cls(1, stacked=False, channels_first=False)
            if len(shape) == 3:
                return cls(shape[0], stacked=True, channels_first=False)
            if len(shape) == 4 and shape[3] in _COLOURS:
                return cls(shape[0], stacked=True, channels_first=False)
            if len(shape) == 4 and shape[1] in _COLOURS:
                return cls(shape[0], stacked=True, channels_first=True)
        raise ImageUnreadable(f"an array of shape {list(shape)} is not a stack of images: {_RULE}")

    @classmethod
    def of_channels(cls, shape: Sequence[int], channels: spec.Channels) -> "Axes":
        """Take the axes of an array whose images have other channels than RGB.

        Two axes are one image of one channel. Three are frames of one channel where one is all that is wanted, without
        a choice of it; else one image, whose channels are the shorter of the first and the last axis. Four are frames;
        1, 3 or 4 channels are last, else first, and other numbers are the shorter axis.

        Raises:
            ImageUnreadable: another shape, or axes of equal length of which either may be that of the channels.
        """
        if min(shape, default=0) >= 1 and len(shape) in (2, 3, 4):
            if len(shape) == 2:
                return cls(1, stacked=False, channels_first=False)
            if len(shape) == 3 and channels.count == 1 and channels.chosen is None:
                return cls(shape[0], stacked=True, channels_first=False)
            stacked = len(shape) == 4
            first, last = shape[1] if stacked else shape[0], shape[-1]
            if stacked and {first, last} & set(_COLOURS):
                return cls(shape[0], stacked=True, channels_first=last not in _COLOURS)
            if first != last:
                return cls(shape[0] if stacked else 1, stacked=stacked, channels_first=first < last)
        raise ImageUnreadable(f"an array of shape {list(shape)} is not one of images with channels: {_CHANNEL_RULE}")

    @classmethod
    def for_images(cls, shape: Sequence[int], channels: spec.Channels | None) -> "Axes":
        """Take the axes of an array, of RGB or grey without `channels`; raises as these."""
        return cls.of(shape) if channels is None else cls.of_channels(shape, channels)

    def samples(self, frame: np.ndarray) -> Samples:
        """Return a frame, `[H, W]`, `[H, W, C]` or `[C, H, W]`, as samples `[H, W, C]`."""
        values = np.moveaxis(frame, 0, 2) if self.channels_first else frame
        return Samples.of(values[..., None] if values.ndim == 2 else values)


def check_type(kind: "np.dtype[Any]", channels: spec.Channels | None = None) -> None:
    """Check that values of a type have a known range; with `channels` that they are numbers.

    Raises:
        ImageUnreadable: they have none.
    """
    if channels is not None:
        if kind.kind not in "buif":
            raise ImageUnreadable(f"values of type {kind} are no real numbers")
        return
    if kind.kind not in "bf" and kind.newbyteorder("=") not in (np.uint8, np.uint16):
        raise ImageUnreadable(
            f"values of type {kind} have no known range: write uint8, uint16 (white is 65535), bool, or floats in "
            "[0, 1]"
        )


def check_shape(shape: Sequence[int], axes: Axes, most_pixels: int) -> None:
    """Check that a frame of an array has at most so many pixels, of three channels; raises `ImageUnreadable`."""
    frame = shape[1:] if axes.stacked else shape
    height, width = frame[1:] if axes.channels_first else frame[:2]
    channels = 1 if len(frame) == 2 else frame[0] if axes.channels_first else frame[2]
    decode.check_size(height, width * max(-(-channels // 3), 1) if channels > 4 else width, most_pixels)


def rgb(frame: np.ndarray, *, channels_first: bool = False) -> np.ndarray:
    """Return a frame, `[H, W]`, `[H, W, C]` or `[C, H, W]`, as uint8 `[H, W, 3]`.

    uint16 is scaled by its range, round(v * 255 / 65535); floats from [0, 1]; bool becomes 0 and 255. Grey is
    replicated; the fourth channel is taken for alpha over black, unless it is zero everywhere: left blank.

    Raises:
        ImageUnreadable: values outside their range, or without a known one.
    """
    check_type(frame.dtype)
    if channels_first:
        frame = np.moveaxis(frame, 0, 2)
    if frame.ndim == 2:
        frame = frame[..., None]
    if frame.shape[2] == 4 and not frame[..., 3].any():
        frame = frame[..., :3]
    _check_range(frame)
    pixels = np.empty((*frame.shape[:2], 3), np.uint8)
    for rows in bands(*frame.shape[:2]):
        pixels[rows] = _scaled(frame[rows])
    return pixels


def _check_range(frame: np.ndarray) -> None:
    if frame.dtype.kind == "f":
        low, high = frame.min(), frame.max()
        if not (low >= 0 and high <= 1):  # also true for NaN
            raise ImageUnreadable(f"floating-point values in [{low:g}, {high:g}]; only [0, 1] has a known scale")


def _scaled(part: np.ndarray) -> np.ndarray:
    """Return a part of a frame `[h, W, C]` as uint8 `[h, W, 1 or 3]`."""
    with_alpha = part.shape[2] == 4
    if part.dtype == np.uint8 and not with_alpha:
        return part
    white = 1.0 if part.dtype.kind in "bf" else float(np.iinfo(part.dtype).max)
    values = part.astype(np.float64) / white
    if with_alpha:
        values = values[..., :3] * values[..., 3:]
    scaled: np.ndarray = np.rint(values * 255).astype(np.uint8)
    return scaled
