"""Feature maps as pictures: cells coloured and laid over the model's input, to the pixel.

A pixel shows the cell that holds its centre, by the run's recorded cells; bars around an image show none.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np
import torch
from PIL import Image, ImageDraw

from genenc_core import errors, stored_arrays
from genenc_core.encoding.cells import Cells
from genenc_core.images.decode import geometry
from genenc_core.statuses import POINT_OK
from genenc_core.stored.arrays import Array
from genenc_core.stored.rows import Stored

SIDE: Final = 224
"""Longest side of a picture, in pixels; smaller inputs are enlarged by a whole number."""
_VIRIDIS: Final = np.array(
    [
        (68, 1, 84),
        (72, 40, 120),
        (62, 73, 137),
        (49, 104, 142),
        (38, 130, 142),
        (31, 158, 137),
        (53, 183, 121),
        (110, 206, 88),
        (181, 222, 43),
        (253, 231, 37),
    ],
    dtype=np.float64,
)
"""Told apart by colour-blind readers too, and in grey."""
_MOST_CELLS: Final = 20_000
_EDGE: Final = "#000000"
_INK: Final = ("#ff5050", "#46c8ff", "#ffd23c", "#7dff7d", "#ff8cf0", "#ffffff")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Geometry:
    """Where the cells of a map lie on the model's input; `size` is (height, width) of that, in pixels."""

    cells: Cells
    grid: tuple[int, int]
    """(h, w) of the map."""
    size: tuple[int, int]

    @classmethod
    def of(cls, source: Stored, product: Array) -> "Geometry":
        """Return the geometry of a stored map, from what the run records of its slot."""
        size = source.model_run.preprocessing.height, source.model_run.preprocessing.width
        grid = int(product.shape[1]), int(product.shape[2])
        known = source.model_run.cells.get(product.slot)
        return cls(cells=known or Cells.regular(grid, size), grid=grid, size=size)

    def shown_size(self, most: int = SIDE) -> tuple[int, int]:
        """Return (height, width) of pictures."""
        longest = max(self.size)
        if longest <= most:
            return self.size[0] * (most // longest), self.size[1] * (most // longest)
        height, width = (max(round(side * most / longest), 1) for side in self.size)
        return height, width

    def index(self, shown: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
        """Return the row of cells that each row of a picture shows, and the column of each column, int64."""
        centres = [(np.arange(pixels) + 0.5) * side / pixels for pixels, side in zip(shown, self.size, strict=True)]
        rows, columns = (
            np.clip(np.floor((line - first) / stride + 0.5), 0, count - 1).astype(np.int64)
            for line, first, stride, count in zip(centres, self.cells.first, self.cells.stride, self.grid, strict=True)
        )
        return rows, columns

    def spread(self, cells: np.ndarray, shown: tuple[int, int]) -> np.ndarray:
        """Return a picture `[height, width, ...]` of values `[h, w, ...]` of cells."""
        rows, columns = self.index(shown)
        found: np.ndarray = cells[rows[:, None], columns[None, :]]
        return found

    def covered(self, view: np.ndarray, shown: tuple[int, int]) -> np.ndarray:
        """Return which pixels of a picture have their centre in a view of `Placed`, bool `[height, width]`."""
        y, x = ((np.arange(pixels) + 0.5) * side / pixels for pixels, side in zip(shown, self.size, strict=True))
        left, top, right, bottom = view.tolist()
        found: np.ndarray = ((y >= top) & (y <= bottom))[:, None] & ((x >= left) & (x <= right))[None, :]
        return found

    def cell_of(self, xy: np.ndarray) -> tuple[int, int]:
        """Return the (row, column) of the cell that holds a point, x and y in pixels of the model's input."""
        column, row = self.cells.index(torch.from_numpy(np.asarray(xy, np.float64))).add(0.5).floor().tolist()
        return min(max(int(row), 0), self.grid[0] - 1), min(max(int(column), 0), self.grid[1] - 1)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Placed:
    """Where images and points of some rows lie on the model's input."""

    views: np.ndarray
    """float64 `[n, 4]`: left, top, right, bottom of the image."""
    points: np.ndarray
    """float64 `[n, K, 2]`, NaN where there is none in view."""


def place(source: Stored, rows: np.ndarray) -> Placed:
    """Place images and points as the encoder did, from what the run stores of each row."""
    affines = source.read("image_affine", rows)
    sizes = np.stack([source.read("image_height", rows), source.read("image_width", rows)], axis=1).astype(np.int64)
    views = geometry.views(affines, sizes, source.model_run.preprocessing)
    if not source.points:
        return Placed(views=views, points=np.empty((len(rows), 0, 2)))
    xy = np.stack([source.read("point_x", rows), source.read("point_y", rows)], axis=-1)
    if source.model_run.points_scale.relative:
        xy = xy * sizes[:, None, ::-1]
    points, _ = geometry.map_points(xy, affines, sizes, source.model_run.preprocessing)
    there = source.read(stored_arrays.POINT_STATUS, rows) == POINT_OK
    return Placed(views=views, points=np.where(there[..., None], points, np.nan))


def in_view(where: Geometry, views: np.ndarray) -> np.ndarray:
    """Return which cells have their centre on the image, bool `[n, h, w]`; the others are of bars."""
    found: np.ndarray = where.cells.inside(torch.from_numpy(np.ascontiguousarray(views)), where.grid).numpy()
    return found


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Colours:
    """Three principal components of cells as red, green and blue."""

    mean: np.ndarray
    axes: np.ndarray
    """float64 `[3, C]`."""
    low: np.ndarray
    high: np.ndarray
    explained: tuple[float, ...]
    """Share of the variance of each."""

    @classmethod
    def of(cls, cells: np.ndarray, seed: int = 0) -> "Colours":
        """Fit the colours to the vectors of cells, `[n, C]`."""
        cells = cells.astype(np.float64)
        cells = cells[np.isfinite(cells).all(axis=1)]
        if len(cells) > _MOST_CELLS:
            cells = cells[np.random.default_rng(seed).choice(len(cells), _MOST_CELLS, replace=False)]
        if not len(cells):
            cells = np.zeros((1, cells.shape[1]))
        mean = cells.mean(0)
        axes, variances, total = principal_axes(cells - mean, 3)
        along = (cells - mean) @ axes.T
        low, high = np.quantile(along, (0.01, 0.99), axis=0)
        shares = tuple(float(each / total) if total > 0 else 0.0 for each in variances)
        return cls(mean=mean, axes=axes, low=low, high=high, explained=shares)

    def rgb(self, cells: np.ndarray) -> np.ndarray:
        """Return uint8 `[..., 3]` of vectors `[..., C]`."""
        along = (np.nan_to_num(cells.astype(np.float64)) - self.mean) @ self.axes.T
        span = np.where(self.high > self.low, self.high - self.low, 1.0)
        shown = np.where(self.high > self.low, (along - self.low) / span, 0.5)
        return np.round(255 * np.clip(shown, 0, 1)).astype(np.uint8)


def principal_axes(centred: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray, float]:
    """Return the first principal axes `[count, C]` of centred vectors `[n, C]`, their variances, and that of all.

    Signs are such that the largest entry of an axis is positive; missing axes are 0.
    """
    rows, columns = centred.shape
    if columns <= rows:
        values, vectors = np.linalg.eigh(centred.T @ centred)
        axes = vectors[:, ::-1].T[:count]
    else:
        values, vectors = np.linalg.eigh(centred @ centred.T)
        axes = vectors[:, ::-1].T[:count] @ centred
        length = np.linalg.norm(axes, axis=1, keepdims=True)
        axes = np.divide(axes, length, out=np.zeros_like(axes), where=length > 0)
    values = np.maximum(values[::-1][:count], 0)
    signs = np.sign(axes[np.arange(len(axes)), np.abs(axes).argmax(1)])
    axes = axes * np.where(signs == 0, 1, signs)[:, None]
    missing = count - len(axes)
    total = float((centred * centred).sum())
    return np.pad(axes, ((0, missing), (0, 0))), np.pad(values, (0, missing)), total


def cosine(probe: np.ndarray, cells: np.ndarray) -> np.ndarray:
    """Return the cosine similarity of a vector `[C]` with those of cells, float64 `[..., C]`, 0 for vectors of 0."""
    one, others = probe.astype(np.float64), cells.astype(np.float64)
    lengths = np.linalg.norm(one) * np.linalg.norm(others, axis=-1)
    found: np.ndarray = np.divide(others @ one, lengths, out=np.zeros(lengths.shape), where=lengths > 0)
    return found


def viridis(values: np.ndarray, low: float, high: float) -> np.ndarray:
    """Return uint8 `[..., 3]` of values between two bounds; grey where they are not finite."""
    span = high - low if high > low else 1.0
    at = np.clip((np.nan_to_num(values.astype(np.float64)) - low) / span, 0, 1) * (len(_VIRIDIS) - 1)
    steps = np.arange(len(_VIRIDIS))
    shown = np.stack([np.interp(at, steps, _VIRIDIS[:, axis]) for axis in range(3)], axis=-1)
    shown[~np.isfinite(values)] = 128
    return np.round(shown).astype(np.uint8)


def shown_image(pixels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Return the model's input `[height, width, 3]` at the size (height, width) of a picture."""
    image = Image.fromarray(pixels)
    larger = size[0] >= pixels.shape[0]
    how = Image.Resampling.NEAREST if larger else Image.Resampling.BOX
    return np.asarray(image.resize((size[1], size[0]), how))


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """The map of one image, and the picture below it."""

    where: Geometry
    cells: np.ndarray
    """`[h, w, C]`."""
    valid: np.ndarray
    """bool `[h, w]`: on the image and finite."""
    view: np.ndarray
    """float64 `[4]`, as in `Placed`."""
    base: np.ndarray | None
    """The model's input at the size of the picture; None if it cannot be shown."""

    def over(self, colours: np.ndarray, share: float = 0.6) -> np.ndarray:
        """Lay the colours of cells, uint8 `[h, w, 3]`, over the picture, or show them alone, on grey, without one."""
        return self.alone(colours) if self.base is None else self._mixed(self.base, colours, share)

    def alone(self, colours: np.ndarray) -> np.ndarray:
        """Show the colours of cells alone, on grey."""
        shown = self.where.shown_size() if self.base is None else (self.base.shape[0], self.base.shape[1])
        return self._mixed(np.full((*shown, 3), 128, np.uint8), colours, 1.0)

    def _mixed(self, below: np.ndarray, colours: np.ndarray, share: float) -> np.ndarray:
        shown = (below.shape[0], below.shape[1])
        # Grey below the colours, so that they are those of the cells alone.
        grey = below.astype(np.float64).mean(axis=2, keepdims=True).repeat(3, axis=2)
        mixed = (1 - share) * grey + share * self.where.spread(colours, shown)
        there = self.where.spread(self.valid, shown) & self.where.covered(self.view, shown)
        return np.where(there[..., None], np.round(mixed), below).astype(np.uint8)


def marked(picture: np.ndarray, points: Sequence[tuple[float, float]], where: Geometry, first: int = 0) -> Image.Image:
    """Draw rings around points, x and y in pixels of the model's input, each in a colour of its own from `first` on."""
    image = Image.fromarray(np.ascontiguousarray(picture))
    draw = ImageDraw.Draw(image)
    across, down = image.width / where.size[1], image.height / where.size[0]
    for number, (x, y) in enumerate(points):
        if np.isfinite(x) and np.isfinite(y):
            box = (x * across - 5, y * down - 5, x * across + 5, y * down + 5)
            draw.ellipse(box, outline=_EDGE, width=4)
            draw.ellipse((box[0] + 1, box[1] + 1, box[2] - 1, box[3] - 1), outline=ink(first + number), width=2)
    return image


def ink(number: int) -> str:
    """Return the colour of the rings around a point."""
    return _INK[number % len(_INK)]


def channels_last(maps: np.ndarray) -> np.ndarray:
    """Return maps `[n, C, h, w]` as `[n, h, w, C]`."""
    return np.moveaxis(maps, 1, -1)


def lively_channels(cells: np.ndarray, count: int) -> np.ndarray:
    """Return the channels of cells `[n, C]` that vary most, by standard deviation, the first most."""
    values = cells.astype(np.float64)
    values = values[np.isfinite(values).all(axis=1)]
    spread = values.std(axis=0) if len(values) else np.zeros(cells.shape[1])
    return np.argsort(-spread, kind="stable")[:count]


def points_in_view(placed: Placed, names: Sequence[str]) -> Mapping[int, list[int]]:
    """Return the images, by position, in which each point, by number, is in view."""
    there = np.isfinite(placed.points).all(axis=2)
    return {number: np.flatnonzero(there[:, number]).tolist() for number in range(len(names))}


def require_map(source: Stored, slot: str | None = None) -> Array:
    """Return the stored map of a slot, or the first one.

    Raises:
        InputError: none is stored.
    """
    found = [product for product in source.product_arrays if product.is_map and slot in (None, product.name)]
    if not found:
        stored = ", ".join(product.name for product in source.product_arrays)
        what = "no feature map is stored" if slot is None else f"no feature map {slot!r} is stored"
        raise errors.InputError(
            f"{what} in {source.place!r} (stored: {stored}): make a run with --maps, or --product 'maps=none'"
        )
    return found[0]
