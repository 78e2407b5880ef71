"""Where the tiles of a canvas lie, and what each of them counts for in the stitched maps."""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from genenc_core import choices, errors, spec

Blend = choices.Blend
Size = tuple[int, int]

DEFAULT_OVERLAP = 1 / 8


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class TilePlan:
    """How a canvas is cut into tiles and put together again; sizes are (height, width) in pixels.

    `overlap` is what neighbouring tiles share (the last ones, aligned to the border, share more). `trim` is the border
    of each tile's map that is thrown away where another tile covers it; at the canvas border nothing is.
    """

    canvas: Size
    tile: Size
    overlap: int
    trim: int = 0
    blend: Blend = "cosine"

    @property
    def offsets(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Top edges and left edges of the tiles; every pairing of the two is a tile."""
        rows, columns = (
            _offsets(whole, tile, tile - self.overlap) for whole, tile in zip(self.canvas, self.tile, strict=True)
        )
        return rows, columns

    @property
    def count(self) -> int:
        """Tiles per canvas."""
        rows, columns = self.offsets
        return len(rows) * len(columns)

    def strides(self, shape: Sequence[int]) -> Size:
        """Return the pixels per cell, (y, x), of a map `[C, h, w]` of one tile."""
        return self.tile[0] // shape[1], self.tile[1] // shape[2]

    def segments(self, shape: Sequence[int]) -> tuple[tuple["Segment", ...], tuple["Segment", ...]]:
        """Return what each row and each column of tiles fills of the stitched map of a slot `[C, h, w]`."""
        rows, columns = (
            _segments(offsets, tile=tile, stride=stride, trim=self.trim, blend=self.blend)
            for offsets, tile, stride in zip(self.offsets, self.tile, self.strides(shape), strict=True)
        )
        return rows, columns

    def stitched(self, slot: spec.SlotSpec) -> spec.SlotSpec:
        """Return the slot as it is for the whole canvas: `[C, h, w]` grows with it, `[C]` becomes a mean over tiles."""
        if len(slot.shape) != 3:
            return slot.model_copy(update={"description": f"mean over {self.count} tiles"})
        stride = self.strides(slot.shape)
        shape = (slot.shape[0], self.canvas[0] // stride[0], self.canvas[1] // stride[1])
        return slot.model_copy(update={"shape": shape, "description": f"feature map stitched from {self.count} tiles"})

    def identity(self) -> dict[str, object]:
        """Return what a run means by it, as JSON; the canvas stands in the run's preprocessing."""
        return {"size": list(self.tile), "overlap": self.overlap, "trim": self.trim, "blend": self.blend}

    def describe(self) -> str:
        """Return the plan in words, e.g. `3 x 3 of 224 x 224, overlap 32, trim 0, blend cosine`."""
        rows, columns = (len(axis) for axis in self.offsets)
        sizes = f"{rows} x {columns} of {self.tile[0]} x {self.tile[1]}"
        return f"{sizes}, overlap {self.overlap}, trim {self.trim}, blend {self.blend}"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    """What one tile fills on one axis: canvas cells `start` to `stop`, from its own cell `first` on.

    `weights` float32 `[stop - start]` are positive and over all tiles add up to 1 in every cell.
    """

    start: int
    stop: int
    first: int
    weights: np.ndarray


def make_plan(
    slots: Sequence[spec.SlotSpec],
    *,
    canvas: Size,
    tile: Size,
    overlap: int | None = None,
    trim: int = 0,
    blend: Blend = "cosine",
) -> TilePlan:
    """Return the plan for an encoder of input size `tile` whose output slots `slots` are wanted of the whole canvas.

    Everything lies on the grid of the maps, so that no cell is interpolated: offsets, overlap and trim are multiples
    of their strides (of the lowest common multiple, for several). `overlap` None is an eighth of the tile, rounded up
    to that.

    Raises:
        InputError: a size or a slot that cannot be tiled; what would do is told.
    """
    if canvas[0] < tile[0] or canvas[1] < tile[1]:
        raise errors.InputError(
            f"the canvas of {_text(canvas)} pixels is smaller than the model's input of {_text(tile)}: leave --canvas "
            "out, give a larger one, or a smaller --image-size"
        )
    grid = _grid(slots, tile)
    _check_canvas(canvas, tile, grid)
    unit = math.lcm(*grid)
    most = (min(tile) - 1) // unit * unit
    if overlap is None:
        overlap = min(math.ceil(min(tile) * DEFAULT_OVERLAP / unit) * unit, most)
    _check_shared("--tile-overlap", overlap, unit, f"0 to {most}", ok=overlap <= most)
    _check_shared("--tile-trim", trim, unit, f"0 to half the overlap of {overlap}", ok=2 * trim <= overlap)
    return TilePlan(canvas=canvas, tile=tile, overlap=overlap, trim=trim, blend=blend)


def _text(size: Size) -> str:
    return f"{size[0]} x {size[1]}"


def _grid(slots: Sequence[spec.SlotSpec], tile: Size) -> Size:
    """Return the smallest step, (y, x) in pixels, that is a whole number of cells in every map."""
    grid = (1, 1)
    for slot in slots:
        if len(slot.shape) == 1:
            continue
        if len(slot.shape) != 3:
            raise errors.InputError(
                f"output slot {slot.name!r} has shape {list(slot.shape)}, and what its tokens are for a canvas of "
                "several tiles is not known: only maps [C, h, w] and vectors [C] are supported with --canvas"
            )
        height, width = slot.shape[1:]
        if tile[0] % height or tile[1] % width:
            raise errors.InputError(
                f"output slot {slot.name!r} is a map of {height} x {width} cells of {_text(tile)} pixels, which is no "
                "whole number of pixels per cell, so its tiles do not fit together: try another --image-size, "
                "or another model"
            )
        grid = (math.lcm(grid[0], tile[0] // height), math.lcm(grid[1], tile[1] // width))
    return grid


def _check_canvas(canvas: Size, tile: Size, grid: Size) -> None:
    if canvas[0] % grid[0] == 0 and canvas[1] % grid[1] == 0:
        return
    below, above = (
        tuple(max(step(whole / unit) * unit, least) for whole, unit, least in zip(canvas, grid, tile, strict=True))
        for step in (math.floor, math.ceil)
    )
    offers = dict.fromkeys(f"{height}x{width}" for height, width in (below, above))
    raise errors.InputError(
        f"--canvas {canvas[0]}x{canvas[1]} is not a whole number of the map's cells of {_text(grid)} pixels: "
        f"give {' or '.join(offers)}"
    )


def _check_shared(option: str, value: int, unit: int, span: str, *, ok: bool) -> None:
    if value < 0 or not ok:
        raise errors.InputError(f"{option} {value} is out of range: it can be {span} pixels")
    if value % unit:
        below = value // unit * unit
        raise errors.InputError(
            f"{option} {value} is not a whole number of the maps' cells of {unit} pixels: "
            f"give {below} or {below + unit}"
        )


def _offsets(whole: int, tile: int, step: int) -> tuple[int, ...]:
    return (*range(0, whole - tile, step), whole - tile)


def _segments(offsets: Sequence[int], *, tile: int, stride: int, trim: int, blend: Blend) -> tuple[Segment, ...]:
    """Return the tiles' segments on one axis, weights normalised, cells of no weight left out."""
    last = len(offsets) - 1
    spans = [
        ((offset + (trim if at > 0 else 0)) // stride, (offset + tile - (trim if at < last else 0)) // stride)
        for at, offset in enumerate(offsets)
    ]
    length = (offsets[-1] + tile) // stride
    weights = np.zeros((len(offsets), length))
    for at, (start, stop) in enumerate(spans):
        before = spans[at - 1][1] - start if at > 0 else 0
        after = stop - spans[at + 1][0] if at < last else 0
        weights[at, start:stop] = _MEASURES[blend](stop - start, before, after)
    if blend == "none":
        weights = (np.arange(len(offsets))[:, None] == weights.argmax(0)).astype(np.float64)
    weights /= weights.sum(0)
    return tuple(_segment(row, offset // stride) for offset, row in zip(offsets, weights, strict=True))


def _segment(weights: np.ndarray, origin: int) -> Segment:
    """Return the segment of a tile that begins at cell `origin`, from its weights over the whole axis."""
    cells = np.flatnonzero(weights)
    # With `none`, a tile between two that nearly cover it may have no cell of its own.
    start, stop = (int(cells[0]), int(cells[-1]) + 1) if len(cells) else (origin, origin)
    return Segment(start=start, stop=stop, first=start - origin, weights=weights[start:stop].astype(np.float32))


def _ramps(length: int, before: int, after: int) -> np.ndarray:
    """Return sin^2 ramps over the cells shared with the tile before and after: two that meet add up to 1."""
    weights = np.ones(length)
    for shared, along in ((before, weights), (after, weights[::-1])):
        if shared > 0:
            along[:shared] *= np.sin(np.pi / 2 * (np.arange(shared) + 0.5) / shared) ** 2
    return weights


def _depths(length: int, before: int, after: int) -> np.ndarray:
    """Return how far each cell lies from the nearest edge that has a neighbour, at least 1."""
    cells = np.arange(length, dtype=np.float64)
    from_start = cells + 1 if before > 0 else np.full(length, np.inf)
    from_stop = length - cells if after > 0 else np.full(length, np.inf)
    nearest: np.ndarray = np.minimum(from_start, from_stop)
    return nearest


_MEASURES = {
    "cosine": _ramps,
    "average": lambda length, _before, _after: np.ones(length),
    "none": _depths,
}
