"""Rules by which arrays become images: which axis is which, and what range values have."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from genenc_core import spec
from genenc_core.images.decode import decode
from genenc_core.images.decode.decoded import ImageUnreadable, Samples, bands

_COLOURS = (1, 3, 4)
_ROLES = {
    **dict.fromkeys(("y", "row", "rows", "height", "lat", "latitude"), "y"),
    **dict.fromkeys(("x", "column", "columns", "col", "cols", "width", "lon", "longitude"), "x"),
    **dict.fromkeys(("c", "channel", "channels", "band", "bands", "rgb"), "c"),
    **dict.fromkeys(("t", "time", "times", "z", "depth", "n", "frame", "frames", "image", "images", "sample"), "frame"),
}
"""Names of dimensions, in lower case."""
_CHANNEL_RULE = (
    "write [N, H, W, C] or [N, C, H, W], or one image as [H, W, C] or [C, H, W], with at most half as many channels as "
    "pixels on a side, or name the dimensions (band, y, x), where the format has names"
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
    def of_channels(
        cls, shape: Sequence[int], channels: spec.Channels, names: Sequence[object] | None = None
    ) -> "Axes":
        """Take the axes of an array whose images have other channels than RGB.

        Two axes are one image of one channel. Three are frames of one channel where the name of the first says so, or
        where its name does not say otherwise and no more than one channel is wanted, or the first alone is chosen; else
        one image. Four are frames. Which axis of an image is that of its channels: `_channels_are_first`.

        Raises:
            ImageUnreadable: another shape, or either axis may be that of the channels.
        """
        if min(shape, default=0) >= 1 and len(shape) in (2, 3, 4):
            if len(shape) == 2:
                return cls(1, stacked=False, channels_first=False)
            roles = [_ROLES.get(str(name).lower()) for name in names or ()]
            roles = roles if len(roles) == len(shape) else [None] * len(shape)
            unknown = roles[0] is None and roles[-1] != "c"
            if len(shape) == 3 and (roles[0] == "frame" or (unknown and _is_grey(channels))):
                return cls(shape[0], stacked=True, channels_first=False)
            stacked = len(shape) == 4
            first = _channels_are_first(shape[-3:], roles[-3:], channels, colours=stacked)
            if first is not None:
                return cls(shape[0] if stacked else 1, stacked=stacked, channels_first=first)
        raise ImageUnreadable(f"an array of shape {list(shape)} is not one of images with channels: {_CHANNEL_RULE}")

    @classmethod
    def for_images(
        cls, shape: Sequence[int], channels: spec.Channels | None, names: Sequence[object] | None = None
    ) -> "Axes":
        """Take the axes of an array, of RGB or grey without `channels`, by its shape and the names of its dimensions.

        Raises:
            ImageUnreadable: as these, and where the names do not agree with what is taken.
        """
        axes = cls.of(shape) if channels is None else cls.of_channels(shape, channels, names)
        _check_names(names, shape, axes)
        return axes

    @property
    def of_channels_in_array(self) -> int:
        """Position of the axis of the channels, if there is one, among those of the array."""
        return int(self.stacked) if self.channels_first else -1

    def samples(self, frame: np.ndarray, names: tuple[str, ...] = (), missing: float | None = None) -> Samples:
        """Return a frame, `[H, W]`, `[H, W, C]` or `[C, H, W]`, as samples `[H, W, C]` of channels of these names.

        `missing` stands for no data.
        """
        values = np.moveaxis(frame, 0, 2) if self.channels_first else frame
        return Samples.of(values[..., None] if values.ndim == 2 else values)._replace(names=names, no_data=missing)


def _is_grey(channels: spec.Channels) -> bool:
    """Return whether one channel is all that is wanted, or the first alone is chosen."""
    if channels.names is not None:
        return False
    return channels.count == 1 if channels.chosen is None else max(channels.chosen) == 0


def _channels_are_first(
    shape: Sequence[int], roles: Sequence[str | None], channels: spec.Channels, *, colours: bool
) -> bool | None:
    """Return whether the channels are the first axis of an image, not the last; None: either may be.

    In this order: its name; 1, 3 or 4 channels of `colours`, last if they may be; the axis beside two of equal length;
    the one that has as many as are wanted; the shorter, if it has at most half of the other's.
    """
    first, middle, last = shape
    if "c" in (roles[0], roles[2]) and roles[0] != roles[2]:
        return roles[0] == "c"
    if colours and {first, last} & set(_COLOURS):
        return last not in _COLOURS
    if first == last:
        return None
    if middle in (first, last):
        return middle == last
    wanted = channels.count if channels.chosen is None and channels.names is None else None
    if wanted in (first, last):
        return wanted == first
    return first < last if 2 * min(first, last) <= max(first, last) else None


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


def check_scale(attributes: Mapping[str, Any], channels: spec.Channels | None) -> None:
    """Check that an array does not state that its values stand for others, as CF's `scale_factor` and `add_offset` do.

    With a range of values of the user's own it may.

    Raises:
        ImageUnreadable: it does.
    """
    factor, offset = _number(attributes, "scale_factor", 1.0), _number(attributes, "add_offset", 0.0)
    if (factor, offset) != (1.0, 0.0) and (channels is None or channels.value_range is None):
        raise ImageUnreadable(
            f"it states scale_factor {factor:g} and add_offset {offset:g}: its numbers stand for others. Write these, "
            "as floats in [0, 1], or give --channels with the --value-range of the numbers that are stored"
        )


def missing_value(attributes: Mapping[str, Any], kind: "np.dtype[Any]", unwritten: object = None) -> float | None:
    """Return the finite value that stands for none by an array's attributes, or by its value for what was not written.

    None for none, and for 0, which is black. What was not written counts if it is below 0, which no camera gives.
    """
    if kind.kind not in "iuf":
        return None
    found = [_number(attributes, name, 0.0) for name in ("_FillValue", "missing_value")]
    found.append(min(_number({"": unwritten}, "", 0.0), 0.0))
    return next((value for value in found if value and (kind.kind == "f" or value == int(value))), None)


def refuse_missing(frame: np.ndarray, missing: float | None) -> None:
    """Check that no pixel of a frame has the value that stands for none; raises `ImageUnreadable`."""
    count = 0 if missing is None else int((frame == missing).sum())
    if count:
        raise ImageUnreadable(
            f"{count} of {frame.size} values are {missing:g}, its _FillValue, that is no value: write 0 for black"
        )


def _number(attributes: Mapping[str, Any], name: str, default: float) -> float:
    try:
        value = np.asarray(attributes.get(name, default), np.float64)
    except (TypeError, ValueError):  # text, as xarray writes NaN
        return default
    return float(value.reshape(-1)[0]) if value.size == 1 and np.isfinite(value).all() else default


def _check_names(names: Sequence[object] | None, shape: Sequence[int], axes: Axes) -> None:
    """Check that the names of an array's dimensions agree with what is taken for its rows, columns and channels.

    Raises:
        ImageUnreadable: they do not.
    """
    named = [_ROLES.get(str(name).lower()) for name in names or ()]
    frame = len(shape) - axes.stacked
    roles = ["y", "x"] if frame == 2 else ["c", "y", "x"] if axes.channels_first else ["y", "x", "c"]
    taken = ["frame", *roles] if axes.stacked else roles
    if len(named) == len(taken) and any(one not in (None, other) for one, other in zip(named, taken, strict=True)):
        raise ImageUnreadable(
            f"its dimensions {', '.join(map(str, names or ()))} of {list(shape)} would be taken for "
            f"{', '.join(taken)}: {_RULE}, or choose channels with --channels"
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
