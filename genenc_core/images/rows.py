"""Blocks of manifest rows: from images to Arrow, with points beside them, and their digest."""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np
import pyarrow as pa

from genenc_core.images import listing

VERSION = "1"
GROUP_ROWS = 16384
"""Rows of a Parquet row group: what reading one shard's rows has to decode at least."""

TEXT_COLUMNS = ("image_id", "path")
NUMBER_COLUMNS = ("bytes", "mtime_ns")
POINT_COLUMNS = ("point_x", "point_y")


class Digest:
    """sha256 over the rows that pass by, independent of the block size; one hash per column."""

    def __init__(self, point_names: Sequence[str]) -> None:
        self._point_names = list(point_names)
        columns = (*TEXT_COLUMNS, *NUMBER_COLUMNS, *(POINT_COLUMNS if point_names else ()))
        self._hashes = {column: hashlib.sha256() for column in columns}

    def update(self, block: pa.RecordBatch) -> None:
        """Add the next rows."""
        texts: dict[str, bytes] = {}
        for column, column_hash in self._hashes.items():
            values = block.column(column)
            if column in TEXT_COLUMNS:
                same = next((other for other in texts if values.equals(block.column(other))), None)
                texts[column] = texts[same] if same else _joined(values)
                column_hash.update(texts[column])
            elif column in NUMBER_COLUMNS:
                column_hash.update(values.to_numpy().astype("<i8").tobytes())
            else:
                column_hash.update(flat_points(values).astype("<f8").tobytes())

    def hexdigest(self) -> str:
        """Return the digest of the rows so far."""
        content = {
            "version": VERSION,
            "point_names": self._point_names,
            "columns": {column: column_hash.hexdigest() for column, column_hash in self._hashes.items()},
        }
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _joined(values: pa.Array) -> bytes:
    """Return texts with a NUL behind each, in UTF-8."""
    texts = values.to_pylist()
    return ("\0".join(texts) + "\0").encode() if texts else b""


def schema(point_names: Sequence[str]) -> pa.Schema:
    """Return the columns of a manifest; points are lists of one value per name, in the order of the names."""
    fields = [
        pa.field("row", pa.int64(), nullable=False),
        *(pa.field(column, pa.string(), nullable=False) for column in TEXT_COLUMNS),
        *(pa.field(column, pa.int64(), nullable=False) for column in NUMBER_COLUMNS),
    ]
    if point_names:
        fields += [pa.field(column, pa.list_(pa.float64(), len(point_names))) for column in POINT_COLUMNS]
    return pa.schema(fields)


def blocks(listed: Iterable[listing.Block]) -> Iterator[pa.RecordBatch]:
    """Yield images as blocks of rows without points, numbered from 0."""
    start = 0
    for block in listed:
        ids = pa.array(block.image_ids, pa.string())
        yield pa.record_batch(
            [
                pa.array(np.arange(start, start + len(block))),
                ids,
                ids if block.paths == block.image_ids else pa.array(block.paths, pa.string()),
                pa.array(block.bytes, pa.int64()),
                pa.array(block.mtime_ns, pa.int64()),
            ],
            schema=schema(()),
        )
        start += len(block)


def with_points(block: pa.RecordBatch, placed: Mapping[int, int], xy: np.ndarray) -> pa.RecordBatch:
    """Return a block with the points of each row.

    Args:
        block: rows without points.
        placed: row -> index into `xy`; other rows get NaN.
        xy: float64 [images of the points file, K, 2].
    """
    values = np.full((block.num_rows, xy.shape[1], 2), np.nan)
    for at, row in enumerate(block.column("row").to_pylist()):
        if row in placed:
            values[at] = xy[placed[row]]
    values[np.isnan(values)] = np.nan  # one bit pattern for every NaN, for the digest
    points = [pa.FixedSizeListArray.from_arrays(pa.array(values[..., axis].ravel()), xy.shape[1]) for axis in (0, 1)]
    names = [str(index) for index in range(xy.shape[1])]
    return pa.record_batch([*block.columns, *points], schema=schema(names))


def flat_points(column: pa.Array | pa.ChunkedArray) -> np.ndarray:
    """Return a point column of n rows as a flat float64 array of n * K values."""
    chunked = column if isinstance(column, pa.ChunkedArray) else pa.chunked_array([column])
    return np.concatenate([np.empty(0), *(chunk.flatten().to_numpy() for chunk in chunked.chunks)])
