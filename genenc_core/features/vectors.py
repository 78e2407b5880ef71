"""Vectors of a product, in blocks of bounded memory: one per row, or one per row and point."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from genenc_core import errors, statuses
from genenc_core.stored import rows as stored_rows
from genenc_core.stored.rows import Stored

MEBIBYTE = 2**20


@dataclass(frozen=True, slots=True)
class Block:
    """Vectors of consecutive rows."""

    start: int
    """Position of the first row."""
    values: np.ndarray
    """As stored, `[rows, points, channels]`."""
    usable: np.ndarray
    """Which of them can be used: the row is stored, and all values are finite; bool `[rows, points]`."""


@dataclass(slots=True)
class Left:
    """Counts of what was left out."""

    rows: dict[str, int] = field(default_factory=dict)
    """Rows without features, by state: `not_written`, `unreadable`."""
    not_finite: int = 0
    """Vectors of stored rows with a value that is not finite: of points outside the image, or from a model."""

    def as_json(self) -> dict[str, int]:
        """Return the counts, without zeros."""
        found = {**self.rows, "not_finite": self.not_finite}
        return {name: count for name, count in found.items() if count}


class Vectors:
    """The vectors of a product, at some points if it has any; other axes are flattened."""

    def __init__(self, stored: Stored, product: str, points: Sequence[int] | None = None) -> None:
        self.stored = stored
        self.array = stored.product(product)
        self.with_points = self.array.of_points
        self.points = [0] if not self.with_points else list(range(len(stored.points)) if points is None else points)
        """Indices of the points; 0 where the product has none."""
        self.channels = int(np.prod(self.array.shape[1:] if self.with_points else self.array.shape, dtype=np.int64))
        self.left = Left(rows=stored_rows.counts_left_out(stored.status))

    @property
    def count(self) -> int:
        """Vectors of a row."""
        return len(self.points) if self.with_points else 1

    def block_rows(self, memory: int) -> int:
        """Return the rows of a block of at most this many bytes; whole chunks if they fit, at least one row."""
        rows = max(memory // max(self.array.row_bytes, 1), 1)
        return max(rows // self.array.chunk_rows * self.array.chunk_rows, 1) if rows > self.array.chunk_rows else rows

    def blocks(self, memory: int) -> Iterator[Block]:
        """Yield all rows in order; counts vectors that are not finite in `left`."""
        self.left.not_finite = 0
        rows = self.block_rows(memory)
        for start in range(0, len(self.stored), rows):
            positions = np.arange(start, min(start + rows, len(self.stored)))
            stored = self.stored.status[positions] == statuses.OK
            if not stored.any():
                continue
            values = self.at(positions)
            finite = np.isfinite(values).all(axis=2)
            self.left.not_finite += int((stored[:, None] & ~finite).sum())
            yield Block(start, values, stored[:, None] & finite)

    def at(self, positions: np.ndarray) -> np.ndarray:
        """Return the vectors of some rows, ascending: `[rows, points, channels]`, as stored."""
        found = self.stored.take(self.array.name, positions)
        if not self.with_points:
            return found.reshape(len(positions), 1, self.channels)
        found = found.reshape(len(positions), len(self.stored.points), self.channels)
        return found if self.points == list(range(len(self.stored.points))) else found[:, self.points]


def choose_product(stored: Stored, asked: str, *, with_points: bool) -> str:
    """Return the product that is meant: the one asked for, else the first of vectors, of points if `with_points`.

    Raises:
        InputError: there is none.
    """
    if asked:
        found = stored.product(asked)
        if with_points and not found.of_points:
            raise errors.InputError(
                f"the product {asked!r} has one vector for each image, not for each point: leave the point out, or "
                f"give one of {', '.join(_of_points(stored)) or 'a run with points'}"
            )
        return asked
    known = [stored.arrays[name] for name in stored.products if name in stored.arrays]
    wanted = [each.name for each in known if each.of_points == with_points]
    # A vector before a map.
    wanted.sort(key=lambda name: len(stored.arrays[name].shape) > 1 + with_points)
    if not wanted:
        kind = "vectors of points" if with_points else "vectors of images"
        raise errors.InputError(f"{stored.title!r} stores no {kind}: it has {', '.join(stored.products) or 'nothing'}")
    return wanted[0]


def _of_points(stored: Stored) -> list[str]:
    return [name for name in stored.products if name in stored.arrays and stored.arrays[name].of_points]
