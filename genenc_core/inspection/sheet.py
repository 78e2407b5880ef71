"""Contact sheet of images as the model sees them, with points and regions at their places in its input."""

import math
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Final

import numpy as np
from PIL import Image, ImageDraw, ImageFont

TILE: Final = 224
"""Longest side of an image on the sheet, in pixels."""
COLUMNS: Final = 6
_GAP: Final = 8
_LINE: Final = 18
_COLOURS: Final = ("#e6194b", "#3cb44b", "#ffe119", "#4363d8", "#f58231", "#911eb4", "#42d4f4", "#f032e6", "#bfef45")
_STRETCHED: Final = (2, 98)
"""Percentiles that are black and white of channels."""
_LEGEND: Final = 12
"""Names in a legend."""
Line = tuple[tuple[float, float], tuple[float, float]]


def draw(
    title: str,
    pixels: Mapping[str, np.ndarray],
    points: Mapping[str, np.ndarray],
    names: Sequence[str],
    regions: Mapping[str, Sequence[tuple[int, Sequence[Line]]]] = MappingProxyType({}),
    categories: Sequence[str] = (),
) -> Image.Image:
    """Return the sheet.

    Args:
        title: its first line.
        pixels: name of an image -> uint8 `[3, H, W]`, all of one size.
        points: name of an image -> float64 `[K, 2]` in pixels of that, NaN = not drawn.
        names: of the K points.
        regions: name of an image -> its regions: index of the category, and outlines in the same pixels.
        categories: of the regions.
    """
    shape = next(iter(pixels.values())).shape
    scale = min(1.0, TILE / max(shape[1:]))
    height, width = (max(round(side * scale), 1) for side in shape[1:])
    columns = min(COLUMNS, len(pixels))
    rows = math.ceil(len(pixels) / columns)
    shown = [category for category in categories if category]
    top = _GAP + _LINE * (1 + bool(names) + bool(shown)) + _GAP
    sheet = Image.new(
        "RGB",
        (max(columns * (width + _GAP) + _GAP, 480), top + rows * (height + _LINE + _GAP)),
        "white",
    )
    canvas, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=12)
    canvas.text((_GAP, _GAP), title, fill="black", font=font)
    _legend(canvas, names, font, _mark, _GAP + _LINE)
    if shown:
        _legend(canvas, [category or "no category" for category in categories], font, _frame, top - _GAP - _LINE)
    for at, (name, image) in enumerate(pixels.items()):
        left, upper = _GAP + at % columns * (width + _GAP), top + at // columns * (height + _LINE + _GAP)
        drawn = Image.fromarray(np.ascontiguousarray(image.transpose(1, 2, 0)))
        sheet.paste(drawn.resize((width, height), Image.Resampling.BOX), (left, upper))
        for number, lines in regions.get(name, ()):
            for line in lines:
                ends = [(left + x * scale, upper + y * scale) for x, y in line]
                canvas.line(ends, fill=_COLOURS[number % len(_COLOURS)], width=2)
        for number, (x, y) in enumerate(points.get(name, np.empty((0, 2))) * scale):
            if np.isfinite(x) and np.isfinite(y):
                _mark(canvas, left + float(x), upper + float(y), _COLOURS[number % len(_COLOURS)])
        canvas.text((left, upper + height + 2), _shortened(name, width, font), fill="black", font=font)
    return sheet


def in_colours(pixels: Mapping[int, np.ndarray]) -> dict[int, np.ndarray]:
    """Return float32 channels `[C, H, W]` as uint8 `[3, H, W]`: the first three as red, green and blue, one as grey.

    Each is stretched from the 2nd to the 98th percentile of all images.
    """
    count = min(next(iter(pixels.values())).shape[0], 3)
    shown: dict[int, list[np.ndarray]] = {row: [] for row in pixels}
    for channel in range(count):
        low, high = np.percentile(np.concatenate([image[channel].ravel() for image in pixels.values()]), _STRETCHED)
        for row, image in pixels.items():
            part = np.clip((image[channel] - low) / max(high - low, 1e-12), 0, 1)
            shown[row].append(np.rint(part * 255).astype(np.uint8))
    for planes in shown.values():
        # Two are red and green.
        planes += planes * 2 if count == 1 else [np.zeros_like(planes[0])] * (3 - count)
    return {row: np.stack(planes) for row, planes in shown.items()}


def what_is_shown(channels: Sequence[int | str]) -> str:
    """Return what `in_colours` makes of these channels of the files."""
    if len(channels) == 1:
        return f"channel {channels[0]} as grey, stretched"
    colours = ("red", "green", "blue")[: len(channels)]
    named = ", ".join(f"{channel} {colour}" for channel, colour in zip(channels, colours, strict=False))
    return f"shown: channels {named}; stretched"


def _mark(canvas: ImageDraw.ImageDraw, x: float, y: float, colour: str) -> None:
    canvas.ellipse((x - 4, y - 4, x + 4, y + 4), outline="black", width=3)
    canvas.ellipse((x - 4, y - 4, x + 4, y + 4), outline=colour, width=2)
    canvas.point((x, y), fill=colour)


def _frame(canvas: ImageDraw.ImageDraw, x: float, y: float, colour: str) -> None:
    canvas.rectangle((x - 4, y - 4, x + 4, y + 4), outline=colour, width=2)


def _legend(
    canvas: ImageDraw.ImageDraw,
    names: Sequence[str],
    font: ImageFont.ImageFont | ImageFont.FreeTypeFont,
    mark: Callable[[ImageDraw.ImageDraw, float, float, str], None],
    top: float,
) -> None:
    left = float(_GAP)
    for number, name in enumerate(names[:_LEGEND]):
        mark(canvas, left + 5, top + 8, _COLOURS[number % len(_COLOURS)])
        shown = name if len(name) <= 24 else f"{name[:21]}..."
        canvas.text((left + 14, top), shown, fill="black", font=font)
        left += 14 + canvas.textlength(shown, font=font) + 14
    if len(names) > _LEGEND:
        canvas.text((left, top), f"and {len(names) - _LEGEND} more", fill="black", font=font)


def _shortened(name: str, width: int, font: ImageFont.ImageFont | ImageFont.FreeTypeFont) -> str:
    """Return the end of a name, as much as fits."""
    if font.getlength(name) <= width:
        return name
    while len(name) > 1 and font.getlength(f"...{name}") > width:
        name = name[1:]
    return f"...{name}"
