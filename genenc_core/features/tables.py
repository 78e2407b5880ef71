"""What an export holds: a table of images, with a vector for each; and one of points, for each product of points.

Rows are those of the run or version, in order; blocks are of bounded memory.
"""

import functools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from genenc_core import statuses, stored_arrays
from genenc_core.features import identities, regions
from genenc_core.features.regions import RegionRows
from genenc_core.stored import rows as stored_rows
from genenc_core.stored.arrays import Array
from genenc_core.stored.rows import Stored
from genenc_core.system import digests

IMAGES = "images"
"""Name of the table of images."""
ROW = "row"
_OWN = (stored_arrays.STATUS, "image_height", "image_width", "image_orientation", "image_affine")
_OF_POINTS = ("point_x", "point_y", stored_arrays.LIKELIHOOD, stored_arrays.POINT_STATUS)
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
    of_regions: bool = False
    """Whether it has a row for each region, which its columns describe."""


class Features:
    """The rows to export."""

    def __init__(self, stored: Stored, products: Sequence[str], *, only_ok: bool, license: str | None = None) -> None:
        self.stored = stored
        self.license = license
        self.regions = RegionRows(stored) if regions.are_in(stored) else None
        """The regions of the images, if they have some."""
        of_regions = [] if self.regions is None else self.regions.products
        known = [name for name in stored.products if name in stored.arrays]
        chosen = list(dict.fromkeys(products or (*known, *of_regions)))
        self.products = [stored.product(name) for name in chosen if name not in of_regions]
        self.of_regions = [self.regions.arrays[name] for name in chosen if self.regions and name in of_regions]
        """Products of regions."""
        status = stored.status
        self.rows = np.flatnonzero(status == statuses.OK) if only_ok else np.arange(len(stored))
        """Positions of the rows that are exported, int64."""
        self.left_out = stored_rows.counts_left_out(status) if only_ok else {}
        """Rows without features that are not exported, by state."""
        self.kept = {} if only_ok else stored_rows.counts_left_out(status)
        """Rows without features that are, by state."""
        self.only_ok = only_ok

    def tables(self) -> list[Table]:
        """Return the tables: that of images first."""
        arrays = self.stored.arrays
        own = [arrays[name] for name in _OWN if name in arrays]
        known = {*_OWN, *_OF_POINTS, *self.stored.products, *self.stored.scales, "image_id", "path"}
        columns = [array for name, array in arrays.items() if name not in known and not array.shape]
        plain = [each for each in self.products if not each.of_points]
        found = [Table(IMAGES, (*own, *columns, *plain))]
        of_points = [arrays[name] for name in _OF_POINTS if name in arrays]
        found += [
            Table(each.name, (*of_points, each), self.stored.points, self.stored.individuals)
            for each in self.products
            if each.of_points
        ]
        if self.regions is not None:
            about = self.regions.described_by
            found += [Table(each.name, (*about, each), of_regions=True) for each in self.of_regions]
        return found

    def entries(self, table: Table) -> np.ndarray:
        """Return the positions of the images, or the numbers of the regions, of a table, int64, ascending."""
        return self.region_numbers if table.of_regions else self.rows

    @functools.cached_property
    def region_numbers(self) -> np.ndarray:
        """Numbers of the regions that are exported, those of the exported images, int64."""
        if self.regions is None:
            return np.empty(0, np.int64)
        kept = np.isin(self.regions.image, self.rows)
        return np.flatnonzero(kept & (self.regions.status == statuses.REGION_OK) if self.only_ok else kept)

    def take_regions(self, name: str, numbers: np.ndarray) -> np.ndarray:
        """Return values of some regions, ascending; raises as `RegionRows.take`."""
        assert self.regions is not None
        if not len(numbers):
            return self.regions.take(name, 0, 0)
        first = int(numbers[0])
        found: np.ndarray = self.regions.take(name, first, int(numbers[-1]) + 1)[numbers - first]
        return found

    def block_rows(self, table: Table, memory: int) -> int:
        """Return the images, or regions, of a block of at most this many bytes, at least one."""
        row_bytes = sum(array.row_bytes for array in table.arrays) + 512
        return max(memory // (2 * row_bytes), 1)

    def blocks(self, memory: int, table: Table) -> Iterator[np.ndarray]:
        """Yield the entries of each block of a table, ascending."""
        count, entries = self.block_rows(table, memory), self.entries(table)
        for start in range(0, len(entries), count):
            yield entries[start : start + count]

    def batch(self, table: Table, positions: np.ndarray) -> pa.RecordBatch:
        """Return a block of a table, given by its entries, by column."""
        if table.of_regions:
            return self._batch_of_regions(table, positions)
        names = self.stored.images.table.take(pa.array(positions))
        texts = {name: names.column(name).cast(pa.string()).combine_chunks() for name in ("image_id", "path")}
        if not table.points:
            found: dict[str, Any] = {ROW: pa.array(positions, pa.int64()), **texts}
            for array in table.arrays:
                name = f"{ROW}_column" if array.name == ROW else array.name  # of the list
                found[name] = _column(self.stored.take(array.name, positions), array, array.shape)
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

    def _batch_of_regions(self, table: Table, numbers: np.ndarray) -> pa.RecordBatch:
        assert self.regions is not None
        images = self.regions.image[numbers]
        names = self.stored.images.table.column("image_id").take(pa.array(images)).cast(pa.string())
        found: dict[str, Any] = {
            ROW: pa.array(images, pa.int64()),
            "image_id": pa.chunked_array(names).combine_chunks(),
        }
        for array in table.arrays:
            found[array.name] = _column(self.take_regions(array.name, numbers), array, array.shape)
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
            }
            | {
                each.name: {
                    "shape": list(each.shape),
                    "dims": list(each.dims),
                    "dtype": str(each.dtype),
                    "of": "region",
                }
                for each in self.of_regions
            },
            "points": list(stored.points),
            **(
                {
                    "regions": len(self.region_numbers),
                    "region_status": {each.name: each.value for each in statuses.REGIONS},
                }
                if self.of_regions
                else {}
            ),
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
