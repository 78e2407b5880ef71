"""What an export holds: a table of images, with a vector for each; and one of points, for each product of points.

Rows are those of the run or version, in order; blocks are of bounded memory.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from genenc_core import statuses, stored_arrays
from genenc_core.features import identities
from genenc_core.stored import rows as stored_rows
from genenc_core.stored.arrays import Array
from genenc_core.stored.rows import Stored
from genenc_core.system import digests

IMAGES = "images"
"""Name of the table of images."""
ROW = "row"
_OWN = (stored_arrays.STATUS, "image_height", "image_width", "image_orientation", "image_affine")
_OF_POINTS = ("point_x", "point_y", stored_arrays.POINT_STATUS)
SCHEMA = "genenc.features/1"


@dataclass(frozen=True, slots=True)
class Table:
    """One table."""

    name: str
    arrays: tuple[Array, ...]
    """Its columns of numbers or text, but for the names of images and points."""
    points: tuple[str, ...] = ()
    """Of a table with a row for each image and point."""
    individuals: tuple[str, ...] = field(default=())


class Features:
    """The rows to export."""

    def __init__(self, stored: Stored, products: Sequence[str], *, only_ok: bool, license: str | None = None) -> None:
        self.stored = stored
        self.license = license
        known = [name for name in stored.products if name in stored.arrays]
        self.products = [stored.product(name) for name in dict.fromkeys(products or known)]
        status = stored.status
        self.rows = np.flatnonzero(status == statuses.OK) if only_ok else np.arange(len(stored))
        """Positions of the rows that are exported, int64."""
        self.left_out = stored_rows.counts_left_out(status) if only_ok else {}
        """Rows without features that are not exported, by state."""
        self.kept = {} if only_ok else stored_rows.counts_left_out(status)
        """Rows without features that are, by state."""

    def tables(self) -> list[Table]:
        """Return the tables: that of images first."""
        arrays = self.stored.arrays
        own = [arrays[name] for name in _OWN if name in arrays]
        known = {*_OWN, *_OF_POINTS, *self.stored.products, "image_id", "path"}
        columns = [array for name, array in arrays.items() if name not in known and not array.shape]
        plain = [each for each in self.products if not each.of_points]
        found = [Table(IMAGES, (*own, *columns, *plain))]
        of_points = [arrays[name] for name in _OF_POINTS if name in arrays]
        found += [
            Table(each.name, (*of_points, each), self.stored.points, self.stored.individuals)
            for each in self.products
            if each.of_points
        ]
        return found

    def block_rows(self, table: Table, memory: int) -> int:
        """Return the images of a block of at most this many bytes, at least one."""
        row_bytes = sum(array.row_bytes for array in table.arrays) + 512
        return max(memory // (2 * row_bytes), 1)

    def blocks(self, memory: int, table: Table) -> Iterator[np.ndarray]:
        """Yield the positions of each block of a table, ascending."""
        count = self.block_rows(table, memory)
        for start in range(0, len(self.rows), count):
            yield self.rows[start : start + count]

    def batch(self, table: Table, positions: np.ndarray) -> pa.RecordBatch:
        """Return a block of a table, by column."""
        names = self.stored.images.table.take(pa.array(positions))
        texts = {name: names.column(name).cast(pa.string()).combine_chunks() for name in ("image_id", "path")}
        if not table.points:
            found: dict[str, Any] = {ROW: pa.array(positions, pa.int64()), **texts}
            for array in table.arrays:
                found[array.name] = _column(self.stored.take(array.name, positions), array, array.shape)
            return pa.record_batch(found)
        count = len(table.points)
        repeat = pa.array(np.repeat(np.arange(len(positions)), count))
        found = {ROW: pa.array(np.repeat(positions, count), pa.int64()), "image_id": texts["image_id"].take(repeat)}
        found["point"] = pa.array(list(table.points) * len(positions), pa.string())
        if table.individuals:
            found["individual"] = pa.array(list(table.individuals) * len(positions), pa.string())
        for array in table.arrays:
            values = self.stored.take(array.name, positions)
            found[array.name] = _column(values.reshape(-1, *array.shape[1:]), array, array.shape[1:])
        return pa.record_batch(found)

    def schema(self, table: Table) -> pa.Schema:
        """Return the types of a table's columns, with the shape of those that have several axes."""
        empty = self.batch(table, np.empty(0, np.int64)).schema
        return empty.with_metadata({"genenc": digests.canonical_json(self.metadata())})

    def metadata(self) -> Mapping[str, Any]:
        """Return what the features are: model, weights, preprocessing, products, where they come from."""
        stored = self.stored
        return {
            "schema": SCHEMA,
            "source": stored.place,
            "version": stored.version,
            "rows": len(self.rows),
            "left_out": self.left_out,
            "without_features": self.kept,
            "products": {
                each.name: {"shape": list(each.shape), "dims": list(each.dims), "dtype": str(each.dtype)}
                for each in self.products
            },
            "points": list(stored.points),
            "status": {each.name: each.value for each in statuses.ROWS},
            "point_status": {each.name: each.value for each in statuses.POINTS},
            "identity": dict(stored.identity),
            "made_with": identities.made_with(stored.model_run),
        }


def _column(values: np.ndarray, array: Array, shape: Sequence[int]) -> pa.Array:
    """Return values `[n, *shape]` as a column: of numbers, text, or fixed-size lists of all values of a row."""
    if array.dtype.kind == "O":
        return pa.array([str(each) for each in values], pa.string())
    flat = pa.array(np.ascontiguousarray(values).reshape(-1))
    if not shape:
        return flat
    return pa.FixedSizeListArray.from_arrays(flat, int(np.prod(shape)))
