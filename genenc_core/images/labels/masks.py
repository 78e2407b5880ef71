"""Masks as runs of pixels: from pixels, COCO's run lengths (plain and compressed), and polygons, as COCO fills them.

Pixels are counted down the columns, as in COCO: pixel (x, y) of an image of height H is number x * H + y.
"""

import dataclasses
import functools
import math
from collections.abc import Iterable, Sequence
from typing import Self

import numpy as np

_UPSAMPLED = 5.0
"""Points per pixel at which COCO follows a polygon's edges."""
_LONGEST_NUMBER = 10
"""Characters, of 5 bits."""
LARGEST_SIDE = 2**17
"""Pixels of an image."""


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Mask:
    """Pixels `[starts, stops)` of an image of `size` (height, width), ascending, not touching each other; int64."""

    size: tuple[int, int]
    starts: np.ndarray
    stops: np.ndarray

    @property
    def area(self) -> int:
        """Number of pixels."""
        return int((self.stops - self.starts).sum())

    @property
    def box(self) -> tuple[float, float, float, float]:
        """x_min, y_min, x_max, y_max of the pixels, by their edges; NaN for none."""
        if not len(self.starts):
            return (math.nan,) * 4
        columns, tops, bottoms = self.pieces()
        return float(columns[0]), float(tops.min()), float(columns[-1] + 1), float(bottoms.max())

    @classmethod
    def from_counts(cls, counts: Sequence[int] | np.ndarray, size: tuple[int, int]) -> Self:
        """Return the mask of COCO's run lengths: of pixels outside, inside, outside, ...

        Raises:
            ValueError: a negative length, or lengths that do not add up to the size.
        """
        lengths = np.asarray(counts, dtype=np.int64).reshape(-1)
        if (lengths < 0).any() or lengths.sum() != size[0] * size[1]:
            raise ValueError(
                f"its run lengths add up to {lengths.sum()} pixels, not to the {size[0] * size[1]} of {size[1]} x "
                f"{size[0]} (width x height)"
            )
        ends = np.cumsum(lengths)
        return cls.from_intervals(ends[0::2][: len(lengths) // 2], ends[1::2], size)

    @classmethod
    def from_text(cls, text: str | bytes, size: tuple[int, int]) -> Self:
        """Return the mask of COCO's compressed run lengths.

        Raises:
            ValueError: not of this form, or as `from_counts`.
        """
        data = np.frombuffer(text if isinstance(text, bytes) else text.encode(), np.uint8).astype(np.int64) - 48
        if ((data < 0) | (data > 63)).any():
            raise ValueError("its compressed run lengths have characters that are none of COCO's")
        last = np.flatnonzero((data & 32) == 0)
        if len(data) and (not len(last) or last[-1] != len(data) - 1):
            raise ValueError("its compressed run lengths end in the middle of one")
        firsts = np.r_[0, last[:-1] + 1][: len(last)]
        lengths = last + 1 - firsts
        if lengths.max(initial=0) > _LONGEST_NUMBER:
            raise ValueError("its compressed run lengths have a number that is too large")
        places = np.arange(len(data)) - np.repeat(firsts, lengths)
        counts = np.add.reduceat((data & 31) << (5 * places), firsts) if len(last) else np.zeros(0, np.int64)
        counts -= np.where(data[last] & 16, 1 << (5 * lengths), 0)
        # From the fourth on, each is the difference to the one before the last.
        for start in (1, 2):
            counts[start::2] = np.cumsum(counts[start::2])
        return cls.from_counts(counts, size)

    @classmethod
    def from_pixels(cls, inside: np.ndarray) -> Self:
        """Return the mask of the true pixels of bool `[H, W]`."""
        flat = np.concatenate([[False], np.asarray(inside, bool).T.reshape(-1), [False]])
        edges = np.flatnonzero(flat[1:] != flat[:-1])
        return cls((int(inside.shape[0]), int(inside.shape[1])), edges[0::2], edges[1::2])

    @classmethod
    def from_polygons(cls, polygons: Iterable[np.ndarray], size: tuple[int, int]) -> Self:
        """Return the pixels in any of some polygons, float64 `[k, 2]` of x and y, as COCO rasterises them."""
        found = [_polygon(polygon, size) for polygon in polygons]
        starts = np.concatenate([each.starts for each in found]) if found else np.zeros(0, np.int64)
        stops = np.concatenate([each.stops for each in found]) if found else np.zeros(0, np.int64)
        return cls.from_intervals(starts, stops, size)

    @classmethod
    def from_intervals(cls, starts: np.ndarray, stops: np.ndarray, size: tuple[int, int]) -> Self:
        """Return the union of intervals of pixels, in any order."""
        kept = stops > starts
        starts, stops = starts[kept], stops[kept]
        order = np.argsort(starts, kind="stable")
        starts, reach = starts[order], np.maximum.accumulate(stops[order]) if len(stops) else stops
        begins = np.r_[True, starts[1:] > reach[:-1]] if len(starts) else np.zeros(0, bool)
        ends = np.r_[begins[1:], True] if len(starts) else begins
        return cls(size, starts[begins].astype(np.int64), reach[ends].astype(np.int64))

    @property
    def counts(self) -> list[int]:
        """COCO's run lengths."""
        edges = np.stack([self.starts, self.stops], 1).reshape(-1)
        total = self.size[0] * self.size[1]
        lengths: list[int] = np.diff(np.r_[0, edges, total]).tolist()
        return lengths[:-1] if lengths[-1] == 0 and len(lengths) > 1 else lengths

    @property
    def text(self) -> str:
        """COCO's compressed run lengths."""
        counts, said = self.counts, bytearray()
        for at, count in enumerate(counts):
            value, more = count - counts[at - 2] if at > 2 else count, True
            while more:
                group, value = value & 31, value >> 5
                more = value != -1 if group & 16 else value != 0
                said.append((group | (32 if more else 0)) + 48)
        return said.decode()

    def pixels(self) -> np.ndarray:
        """Return which pixels are inside, bool `[H, W]`."""
        height, width = self.size
        marks = np.zeros(height * width + 1, np.int8)
        marks[self.starts] += 1
        marks[self.stops] -= 1
        return np.cumsum(marks[:-1], dtype=np.int8).reshape(width, height).T.astype(bool)

    def pieces(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return the runs cut at the edges of columns: column, first row, row after the last; int64 `[n]` each."""
        height = self.size[0]
        first, last = self.starts // height, (self.stops - 1) // height
        spans = last - first + 1
        run = np.repeat(np.arange(len(spans)), spans)
        columns = np.arange(int(spans.sum())) - np.repeat(np.cumsum(spans) - spans, spans) + first[run]
        tops = np.maximum(self.starts[run] - columns * height, 0)
        bottoms = np.minimum(self.stops[run] - columns * height, height)
        return columns, tops, bottoms

    def outline(self) -> list[tuple[tuple[int, int], tuple[int, int]]]:
        """Return the edges between pixels inside and outside, as pairs of (x, y), for drawing."""
        inside = np.pad(self.pixels(), 1)
        across = np.argwhere(inside[1:, 1:-1] != inside[:-1, 1:-1]).tolist()
        down = np.argwhere(inside[1:-1, 1:] != inside[1:-1, :-1]).tolist()
        return [((x, y), (x + 1, y)) for y, x in across] + [((x, y), (x, y + 1)) for y, x in down]


@functools.lru_cache(maxsize=256)
def parsed(text: str, height: int, width: int) -> Mask:
    """Return the mask of compressed run lengths, as `Mask.from_text`; the last ones are kept."""
    return Mask.from_text(text, (height, width))


def _polygon(corners: np.ndarray, size: tuple[int, int]) -> Mask:
    """Return the pixels in one polygon, by the rule of `rleFrPoly` in COCO's maskApi.c.

    It follows the edges at five points per pixel; where they cross the middle of a column, a run begins or ends.
    """
    height, width = size
    # C truncates towards zero.
    at = np.trunc(_UPSAMPLED * np.asarray(corners, np.float64).reshape(-1, 2) + 0.5).astype(np.int64)
    u, v = _boundary(np.vstack([at, at[:1]]))
    moved = np.flatnonzero(u[1:] != u[:-1]) + 1
    before, after = u[moved - 1], u[moved]
    x = (np.where(after < before, after, after - 1) + 0.5) / _UPSAMPLED - 0.5
    y = (np.minimum(v[moved], v[moved - 1]) + 0.5) / _UPSAMPLED - 0.5
    kept = (np.floor(x) == x) & (x >= 0) & (x <= width - 1)
    x, y = x[kept].astype(np.int64), np.ceil(np.clip(y[kept], 0, height)).astype(np.int64)
    edges = np.sort(x * height + y)
    edges = edges if len(edges) % 2 == 0 else np.r_[edges, height * width]
    return Mask.from_intervals(edges[0::2], edges[1::2], size)


def _boundary(at: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the points along the edges of a closed polygon of whole coordinates, x and y."""
    us, vs = [], []
    for (xs, ys), (xe, ye) in zip(at[:-1].tolist(), at[1:].tolist(), strict=True):
        dx, dy = abs(xe - xs), abs(ys - ye)
        flip = (dx >= dy and xs > xe) or (dx < dy and ys > ye)
        x0, y0, x1, y1 = (xe, ye, xs, ys) if flip else (xs, ys, xe, ye)
        steps = np.arange(max(dx, dy) + 1)
        steps = steps[::-1] if flip else steps
        if dx >= dy:
            slope = (y1 - y0) / dx if dx else 0.0
            us.append(steps + x0)
            vs.append(np.trunc(y0 + slope * steps + 0.5).astype(np.int64))
        else:
            vs.append(steps + y0)
            us.append(np.trunc(x0 + (x1 - x0) / dy * steps + 0.5).astype(np.int64))
    return np.concatenate(us), np.concatenate(vs)
