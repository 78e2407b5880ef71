"""The regions of a run's images, `regions.parquet`: one row per region, in the order of the images."""

import functools
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, BinaryIO, Final, Self

import numpy as np
import pyarrow as pa
from pyarrow import parquet

from genenc_core import errors
from genenc_core.images.labels import masks, matching, region_table
from genenc_core.images.labels.region_table import RegionTable
from genenc_core.images.labels.scale import PointsScale
from genenc_core.system import digests, files

VERSION: Final = "1"
BOX: Final = ("x_min", "y_min", "x_max", "y_max")
KINDS: Final = ("box", "mask", "crowd")
CHUNK_ROWS: Final = 256
_ROUNDED: Final = 64
_TEXTS: Final = ("name", "category", "individual", "kind", "mask")
_SCHEMA: Final = pa.schema(
    [
        pa.field("row", pa.int64(), nullable=False),
        *(pa.field(name, pa.large_string(), nullable=False) for name in _TEXTS),
        pa.field("mask_height", pa.int64(), nullable=False),
        pa.field("mask_width", pa.int64(), nullable=False),
        pa.field("score", pa.float64(), nullable=False),
        *(pa.field(name, pa.float64(), nullable=False) for name in BOX),
    ]
)
"""`mask`: COCO's compressed run lengths, "" for a box."""


@dataclass(frozen=True, eq=False)
class Regions:
    """Regions of consecutive images, ascending by row."""

    table: pa.Table
    scale: PointsScale
    """The scale that was applied to the coordinates of boxes."""
    digest: str
    """sha256 over all regions of the file and their scale."""
    labels: Mapping[str, Any]
    """Counts of `absent` images of the regions file and of `uncertain` regions left out."""
    frame_sizes: Mapping[int, tuple[int, int]] = field(default_factory=dict, repr=False)
    """Row -> width and height that the regions file states for its image; not recorded."""

    def __len__(self) -> int:
        return int(self.table.num_rows)

    @classmethod
    def open(cls, path: Path, *, rows: int, opener: Callable[[], BinaryIO] | None = None) -> Self:
        """Open the regions of a run of so many images; read whole.

        Raises:
            StoreError: missing or damaged.
        """
        try:
            with parquet.ParquetFile(opener() if opener else path) as file:
                stored = file.metadata.metadata or {}
                table = file.read()
            if stored.get(b"genenc.regions") != VERSION.encode() or not table.schema.equals(_SCHEMA):
                raise errors.StoreError(f"{path} is damaged: it is not of the form that genenc writes")
            described = json.loads(stored[b"genenc.labels"])
            found = made(table, described)
            _check(found, rows)
        except errors.UnsafeFileError as error:
            raise errors.StoreError(error.sentence) from error
        except (OSError, pa.ArrowException, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise errors.StoreError(f"{path} is missing or damaged: {errors.reason(error)}") from error
        return cls(found.table, found.scale, found.digest, found.labels)

    def of_rows(self, start: int, stop: int) -> "Regions":
        """Return the regions of the images from `start` up to `stop`, exclusive."""
        first, last = np.searchsorted(self.rows, [start, stop]).tolist()
        return Regions(self.table.slice(first, last - first), self.scale, self.digest, self.labels)

    @functools.cached_property
    def rows(self) -> np.ndarray:
        """Row of each region's image, int64 `[R]`, ascending."""
        return self._numbers("row")

    @functools.cached_property
    def boxes(self) -> np.ndarray:
        """x_min, y_min, x_max, y_max in pixels of the image, or in fractions if the scale is relative; `[R, 4]`."""
        return np.stack([self._numbers(name) for name in BOX], axis=-1).reshape(-1, 4)

    @functools.cached_property
    def scores(self) -> np.ndarray:
        """float64 `[R]`; NaN for none."""
        return self._numbers("score")

    @functools.cached_property
    def mask_sizes(self) -> np.ndarray:
        """(height, width) of the masks, int64 `[R, 2]`; 0 for boxes."""
        return np.stack([self._numbers("mask_height"), self._numbers("mask_width")], axis=-1).reshape(-1, 2)

    def of_images(self, rows: np.ndarray) -> pa.Table:
        """Return the regions of some images, ascending, as rows of the schema whose images are numbered anew."""
        kept = np.flatnonzero(np.isin(self.rows, rows))
        return renumbered(self.table.take(pa.array(kept)), np.searchsorted(rows, self.rows[kept]))

    def label_digests(self, rows: int) -> np.ndarray:
        """Return a number for the regions of each image, uint64 `[rows]`: 0 for none, whatever their order."""
        names = [field.name for field in _SCHEMA if field.name != "row"]
        texts = zip(*(self.texts(name) for name in names if name in _TEXTS), strict=True)
        # Bits of the numbers, so that NaN is itself.
        numbers = np.stack([self._numbers(name) for name in names if name not in _TEXTS], 1).astype("<f8")
        found = np.zeros(rows, np.uint64)
        hashed = np.empty(len(self), np.uint64)
        for at, (text, bits) in enumerate(zip(texts, numbers, strict=True)):
            data = digests.ROWS.hex("\0".join(text).encode() + bits.tobytes())
            hashed[at] = int(data[:16], 16)
        np.add.at(found, self.rows, hashed)
        return found

    @property
    def labels_of_scale(self) -> dict[str, Any]:
        """Of the labels' record, what other images have in common: the scale."""
        return {} if self.scale.text is None else {"scale": self.scale.text}

    def texts(self, name: str) -> list[str]:
        """Return a column of text: `name`, `category`, `individual` or `kind`."""
        found: list[str] = self.table.column(name).to_pylist()
        return found

    def mask(self, at: int) -> masks.Mask | None:
        """Return the mask of a region; None for a box."""
        text = self.table.column("mask")[at].as_py()
        height, width = self.mask_sizes[at].tolist()
        return masks.parsed(text, height, width) if height else None

    def per_image(self, rows: int) -> int:
        """Return how many regions an image has, of `rows` images on average, at least 1."""
        return max(-(-len(self) // max(rows, 1)), 1)

    def per_shard(self, rows: int, shard_rows: int) -> np.ndarray:
        """Return how many regions the shards of a run of `rows` images have, int64 `[shards]`."""
        return np.bincount(self.rows // shard_rows, minlength=-(-rows // shard_rows))

    def _numbers(self, name: str) -> np.ndarray:
        found: np.ndarray = self.table.column(name).combine_chunks().to_numpy(zero_copy_only=False)
        return found


def write(path: Path, table: RegionTable, placed: matching.Placement) -> Regions:
    """Write the regions of placed images, durably.

    Raises:
        InputError: the path is not writable.
    """
    order, rows = region_table.in_order(table, placed.rows)
    at = order.tolist()
    found = [table.masks[each] for each in at]
    columns: dict[str, Any] = {
        "row": rows,
        "name": [table.names[each] for each in at],
        "category": [table.categories[each] for each in at],
        "individual": [table.individuals[each] for each in at],
        "kind": [table.kinds[each] for each in at],
        "mask": ["" if mask is None else mask.text for mask in found],
        "mask_height": np.array([0 if mask is None else mask.size[0] for mask in found], np.int64),
        "mask_width": np.array([0 if mask is None else mask.size[1] for mask in found], np.int64),
        "score": table.scores[order],
        **{name: table.boxes[order, axis] for axis, name in enumerate(BOX)},
    }
    uncertain = sum(table.uncertain.get(each, 0) for each in placed.rows.values())
    labels = {
        "absent": len(placed.absent),
        "absent_first": list(placed.absent[:20]),
        **({"uncertain": uncertain} if uncertain else {}),
        **({} if table.scale.text is None else {"scale": table.scale.text}),
    }
    stated = {row: table.frame_sizes[at] for row, at in placed.rows.items() if at in table.frame_sizes}
    return replace(write_like(path, pa.table(columns, schema=_SCHEMA), labels), frame_sizes=stated)


def write_copy(path: Path, found: Regions) -> Regions:
    """Write the regions of another run of the same images; raises as `write`."""
    return write_like(path, found.table, found.labels)


def write_selection(path: Path, listed: Regions, rows: np.ndarray) -> Regions:
    """Write the regions of some images of a listing, ascending, numbered anew; raises as `write`."""
    stated = {at: listed.frame_sizes[row] for at, row in enumerate(rows.tolist()) if row in listed.frame_sizes}
    return replace(write_like(path, listed.of_images(rows), listed.labels), frame_sizes=stated)


def write_like(path: Path, table: pa.Table, labels: Mapping[str, Any]) -> Regions:
    """Write rows of the schema, durably, with the counts of their labels; raises as `write`."""

    def put(partial: Path) -> None:
        with partial.open("xb") as file:
            with parquet.ParquetWriter(file, _SCHEMA, compression="zstd") as writer:
                writer.write_table(table)
                writer.add_key_value_metadata({"genenc.regions": VERSION, "genenc.labels": json.dumps(labels)})
            file.flush()
            os.fsync(file.fileno())

    try:
        files.replace(path, put)
    except OSError as error:
        raise errors.InputError(
            f"cannot write the regions {str(path)!r}: {error.strerror or error}; choose another --out, or make this "
            "folder writable with enough free space"
        ) from error
    return made(table, labels)


def renumbered(table: pa.Table, rows: np.ndarray) -> pa.Table:
    """Return rows of the schema as those of other images, int64 `[R]`, ascending."""
    return table.set_column(0, _SCHEMA.field(0), pa.array(rows, pa.int64()))


def made(table: pa.Table, labels: Mapping[str, Any]) -> Regions:
    """Return regions of rows of the schema; raise `ValueError` for labels that genenc does not write."""
    scale = PointsScale.parse(labels.get("scale"))
    for name in ("absent", "uncertain"):
        if type(labels.get(name, 0)) is not int:
            raise ValueError(f"{name} is no count")
    return Regions(table, scale, _digest(table, scale), dict(labels))


def _digest(table: pa.Table, scale: PointsScale) -> str:
    columns: dict[str, str] = {}
    for column in _SCHEMA:
        values = table.column(column.name)
        hashed = digests.ROWS.new()
        if column.name in _TEXTS:
            for text in values.to_pylist():
                data = text.encode()
                hashed.update(len(data).to_bytes(8, "little") + data)
        else:
            kind = "<f8" if pa.types.is_floating(column.type) else "<i8"
            hashed.update(values.combine_chunks().to_numpy(zero_copy_only=False).astype(kind).tobytes())
        columns[column.name] = hashed.hexdigest()
    content = {"version": VERSION, "scale": scale.text, "columns": columns}
    return digests.ROWS.hex(json.dumps(content, sort_keys=True).encode())


def _check(found: Regions, rows: int) -> None:
    """Raise `ValueError` for regions that genenc does not write."""
    own = found.rows
    if len(own) and (own[0] < 0 or own[-1] >= rows or (np.diff(own) < 0).any()):
        raise ValueError("its rows are not those of the images, ascending")
    if not np.isfinite(found.boxes[:, :]).all() and not _only_empty_masks(found):
        raise ValueError("a box is not finite")
    if not {*found.texts("kind")} <= {*KINDS}:
        raise ValueError("a kind is unknown")
    sizes = found.mask_sizes
    if ((sizes < 0) | (sizes > masks.LARGEST_SIDE)).any():
        raise ValueError("a mask's size is out of range")


def _only_empty_masks(found: Regions) -> bool:
    """Return whether all boxes that are not finite are those of masks, which are NaN without a pixel."""
    return bool((found.mask_sizes[~np.isfinite(found.boxes).all(1)] > 0).all())


def positions(regions: Regions, rows: int, shard_rows: int) -> tuple[np.ndarray, int]:
    """Return the place of each region on the axis `region` of a run's arrays, and the places that a shard has.

    The regions of a shard lie together and begin at a multiple of that number, so that a shard is one object of an
    array; places that are left are no region.
    """
    counts = regions.per_shard(rows, shard_rows)
    most = max(int(counts.max(initial=0)), 1)
    if most > CHUNK_ROWS:  # so that chunks of about that size divide it
        most = -(-most // _ROUNDED) * _ROUNDED
    shards = regions.rows // shard_rows
    firsts = np.cumsum(counts) - counts
    return shards * most + np.arange(len(regions)) - firsts[shards], most


def spread(values: Sequence[Any] | np.ndarray, places: np.ndarray, length: int, empty: Any) -> np.ndarray:
    """Return values at their places of an axis, with `empty` elsewhere."""
    found = np.asarray(values, dtype=object) if isinstance(values, list) else np.asarray(values)
    out = np.full(length, empty, dtype=found.dtype if found.dtype != object else object)
    out[places] = found
    return out
