"""Tile positions on a canvas, and their weights in the stitched maps."""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from genenc_core import choices, errors, spec
from genenc_core.encoding.cells import Cells

Blend = choices.Blend
Size = tuple[int, int]

DEFAULT_OVERLAP = 1 / 8


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class TilePlan:
    """How to cut a canvas into tiles and stitch their maps; sizes are (height, width) in pixels.

    `overlap` is shared by neighbouring tiles (the last ones, aligned to the border, share more). `trim` is the border
    of each tile's map that is discarded where another tile covers it, but not at the canvas border.
    """

    canvas: Size
    tile: Size
    overlap: int
    trim: int = 0
    blend: Blend = "cosine"

    @property
    def offsets(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Top and left edges of the tiles; every combination is a tile."""
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
        """Return the pixels per cell, (y, x), of a tile's map `[C, h, w]`."""
        down, across = Cells.regular(shape[1:], self.tile).stride
        return int(down), int(across)

    def segments(self, shape: Sequence[int]) -> tuple[tuple["Segment", ...], tuple["Segment", ...]]:
        """Return the part of a slot's stitched map that each row and column of tiles covers; slot shape `[C, h, w]`."""
        rows, columns = (
            _segments(offsets, tile=tile, stride=stride, trim=self.trim, blend=self.blend)
            for offsets, tile, stride in zip(self.offsets, self.tile, self.strides(shape), strict=True)
        )
        return rows, columns

    def stitched(self, slot: spec.SlotSpec) -> spec.SlotSpec:
        """Return the slot for the whole canvas: `[C, h, w]` grows with it, `[C]` becomes a mean over tiles."""
        if len(slot.shape) != 3:
            return slot.model_copy(update={"description": f"mean over {self.count} tiles"})
        stride = self.strides(slot.shape)
        shape = (slot.shape[0], self.canvas[0] // stride[0], self.canvas[1] // stride[1])
        return slot.model_copy(update={"shape": shape, "description": f"feature map stitched from {self.count} tiles"})

    def identity(self) -> dict[str, object]:
        """Return the JSON form that identifies it in a run; the canvas is in the run's preprocessing."""
        return {"size": list(self.tile), "overlap": self.overlap, "trim": self.trim, "blend": self.blend}

    def describe(self) -> str:
        """Return a description, e.g. `3 x 3 of 224 x 224, overlap 32, trim 0, blend cosine`."""
        rows, columns = (len(axis) for axis in self.offsets)
        sizes = f"{rows} x {columns} of {self.tile[0]} x {self.tile[1]}"
        return f"{sizes}, overlap {self.overlap}, trim {self.trim}, blend {self.blend}"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    """The part of an axis that one tile covers: canvas cells `start` to `stop`, from its own cell `first` on.

    `weights` float32 `[stop - start]` are positive and add up to 1 over all tiles in every cell.
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
    """Plan the tiles for an encoder of input size `tile` and the output slots to stitch for the whole canvas.

    Everything is aligned to the grid of the maps, so that no cell is interpolated: offsets, overlap and trim are
    multiples of the stride (or of the least common multiple of several). `overlap` None means an eighth of the tile,
    rounded up to such a multiple.

    Raises:
        InputError: a size or a slot that cannot be tiled; the message suggests valid values.
    """
    if canvas[0] < tile[0] or canvas[1] < tile[1]:
        raise errors.InputError(
            f"the canvas of {_text(canvas)} pixels is smaller than the model's input of {_text(tile)}: remove "
            "--canvas, or use a larger one or a smaller --image-size"
        )
    grid = _grid(slots, tile)
    _check_canvas(canvas, tile, grid)
    unit = math.lcm(*grid)
    max_overlap = (min(tile) - 1) // unit * unit
    if overlap is None:
        overlap = min(math.ceil(min(tile) * DEFAULT_OVERLAP / unit) * unit, max_overlap)
    _check_shared("--tile-overlap", overlap, unit, f"0 to {max_overlap}", ok=overlap <= max_overlap)
    _check_shared("--tile-trim", trim, unit, f"0 to half the overlap of {overlap}", ok=2 * trim <= overlap)
    return TilePlan(canvas=canvas, tile=tile, overlap=overlap, trim=trim, blend=blend)


def _text(size: Size) -> str:
    return f"{size[0]} x {size[1]}"


def _grid(slots: Sequence[spec.SlotSpec], tile: Size) -> Size:
    """Return the smallest step, (y, x) in pixels, that is an integer number of cells in every map."""
    grid = (1, 1)
    for slot in slots:
        if len(slot.shape) == 1:
            continue
        if len(slot.shape) != 3:
            raise errors.InputError(
                f"output slot {slot.name!r} has shape {list(slot.shape)}, and tokens cannot be combined over several "
                "tiles: --canvas supports only maps [C, h, w] and vectors [C]"
            )
        down, across = Cells.regular(slot.shape[1:], tile).stride
        if not (down.is_integer() and across.is_integer()):
            raise errors.InputError(
                f"output slot {slot.name!r} is a map of {slot.shape[1]} x {slot.shape[2]} cells for {_text(tile)} "
                "pixels, which is not an integer number of pixels per cell, so its tiles cannot be stitched: try "
                "another --image-size or model"
            )
        grid = (math.lcm(grid[0], int(down)), math.lcm(grid[1], int(across)))
    return grid


def _check_canvas(canvas: Size, tile: Size, grid: Size) -> None:
    if canvas[0] % grid[0] == 0 and canvas[1] % grid[1] == 0:
        return
    below, above = (
        tuple(max(step(whole / unit) * unit, minimum) for whole, unit, minimum in zip(canvas, grid, tile, strict=True))
        for step in (math.floor, math.ceil)
    )
    offers = dict.fromkeys(f"{height}x{width}" for height, width in (below, above))
    raise errors.InputError(
        f"--canvas {canvas[0]}x{canvas[1]} is not a multiple of the map's cells of {_text(grid)} pixels: use "
        f"{' or '.join(offers)}"
    )


def _check_shared(option: str, value: int, unit: int, span: str, *, ok: bool) -> None:
    if value < 0 or not ok:
        raise errors.InputError(f"{option} {value} is out of range: it must be {span} pixels")
    if value % unit:
        below = value // unit * unit
        raise errors.InputError(
            f"{option} {value} is not a multiple of the maps' cells of {unit} pixels: use {below} or {below + unit}"
        )


def _offsets(whole: int, tile: int, step: int) -> tuple[int, ...]:
    return (*range(0, whole - tile, step), whole - tile)


def _segments(offsets: Sequence[int], *, tile: int, stride: int, trim: int, blend: Blend) -> tuple[Segment, ...]:
    """Return the tiles' segments on one axis, with normalised weights and without cells of zero weight."""
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
        weights[at, start:stop] = _WEIGHTS[blend](stop - start, before, after)
    if blend == "none":
        weights = (np.arange(len(offsets))[:, None] == weights.argmax(0)).astype(np.float64)
    weights /= weights.sum(0)
    return tuple(_segment(row, offset // stride) for offset, row in zip(offsets, weights, strict=True))


def _segment(weights: np.ndarray, origin: int) -> Segment:
    """Return the segment of a tile that starts at cell `origin`, from its weights over the whole axis."""
    cells = np.flatnonzero(weights)
    # With `none`, a tile may have no cells if its neighbours nearly cover it.
    start, stop = (int(cells[0]), int(cells[-1]) + 1) if len(cells) else (origin, origin)
    return Segment(start=start, stop=stop, first=start - origin, weights=weights[start:stop].astype(np.float32))


def _ramps(length: int, before: int, after: int) -> np.ndarray:
    """Return sin^2 ramps over the cells shared with the previous and next tile; overlapping ramps add up to 1."""
    weights = np.ones(length)
    for shared, along in ((before, weights), (after, weights[::-1])):
        if shared > 0:
            along[:shared] *= np.sin(np.pi / 2 * (np.arange(shared) + 0.5) / shared) ** 2
    return weights


def _depths(length: int, before: int, after: int) -> np.ndarray:
    """Return the distance of each cell, at least 1, from the nearest edge that has a neighbour."""
    cells = np.arange(length, dtype=np.float64)
    from_start = cells + 1 if before > 0 else np.full(length, np.inf)
    from_stop = length - cells if after > 0 else np.full(length, np.inf)
    nearest: np.ndarray = np.minimum(from_start, from_stop)
    return nearest


_WEIGHTS = {
    "cosine": _ramps,
    "average": lambda length, _before, _after: np.ones(length),
    "none": _depths,
}
