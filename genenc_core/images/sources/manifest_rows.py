"""Manifest rows as Arrow batches: schema, points, digest, and the difference between two manifests."""

import functools
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TypedDict

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from genenc_core.images.sources.block import Block
from genenc_core.system import digests

VERSION = "1"
GROUP_ROWS = 16384
"""Rows per Parquet row group, the least that reading one shard's rows decodes."""

TEXT_COLUMNS = ("image_id", "path")
MEMBER_COLUMN = "member"
"""Where an image is in its file; only in manifests of images inside files."""
COLUMN = "column:"
"""Before the names of further columns of a list."""
NUMBER_COLUMNS = ("bytes", "mtime_ns")
POINT_COLUMNS = ("point_x", "point_y")
LIKELIHOOD_COLUMN = "point_likelihood"
"""Only in manifests of labels that have likelihoods."""
_SHOWN = 3


class Form(TypedDict):
    """Which of the columns that not every manifest has are there."""

    members: bool
    columns: Sequence[str]
    likelihood: bool


class Digest:
    """Incremental sha256 over manifest rows, one hash per column, independent of the block size."""

    def __init__(
        self,
        point_names: Sequence[str],
        *,
        members: bool = False,
        columns: Sequence[str] = (),
        likelihood: bool = False,
    ) -> None:
        self._point_names = list(point_names)
        hashed = content_columns(point_names, members=members, columns=columns, likelihood=likelihood)
        self._hashes = {column: digests.ROWS.new() for column in hashed}

    def update(self, block: pa.RecordBatch) -> None:
        """Add the next rows."""
        texts: dict[str, bytes] = {}
        for column, column_hash in self._hashes.items():
            values = block.column(column)
            if column in (*TEXT_COLUMNS, MEMBER_COLUMN) or column.startswith(COLUMN):
                same = next((other for other in texts if values.equals(block.column(other))), None)
                texts[column] = texts[same] if same else _joined(values)
                column_hash.update(texts[column])
            elif column in NUMBER_COLUMNS:
                column_hash.update(numbers(values).astype("<i8").tobytes())
            else:
                column_hash.update(flat_points(values).astype("<f8").tobytes())

    def hexdigest(self) -> str:
        """Return the digest of the rows so far."""
        content = {
            "version": VERSION,
            "point_names": self._point_names,
            "columns": {column: column_hash.hexdigest() for column, column_hash in self._hashes.items()},
        }
        return digests.ROWS.hex(json.dumps(content, sort_keys=True).encode())


def _joined(values: pa.Array) -> bytes:
    """Return texts in UTF-8, each terminated by a NUL.

    Raises:
        ValueError: a text is missing, or is not UTF-8.
    """
    if values.null_count:
        raise ValueError("a text is missing")
    values.validate(full=True)
    _, offsets, content = values.buffers()
    if not len(values) or offsets is None:
        return b""
    ends = np.frombuffer(offsets, np.int32, len(values) + 1, values.offset * np.dtype(np.int32).itemsize)
    texts = np.frombuffer(content or b"", np.uint8)[ends[0] : ends[-1]]
    joined = np.zeros(len(texts) + len(values), np.uint8)
    is_text = np.ones(len(joined), bool)
    is_text[ends[1:] - ends[0] + np.arange(len(values))] = False
    joined[is_text] = texts
    return joined.tobytes()


def content_columns(
    point_names: Sequence[str], *, members: bool, columns: Sequence[str] = (), likelihood: bool = False
) -> tuple[str, ...]:
    """Return the columns of a manifest but for the row; `columns` are the further ones of a list."""
    return (
        *TEXT_COLUMNS,
        *((MEMBER_COLUMN,) if members else ()),
        *(COLUMN + name for name in columns),
        *NUMBER_COLUMNS,
        *(POINT_COLUMNS if point_names else ()),
        *((LIKELIHOOD_COLUMN,) if point_names and likelihood else ()),
    )


def schema(
    point_names: Sequence[str], *, members: bool = False, columns: Sequence[str] = (), likelihood: bool = False
) -> pa.Schema:
    """Return the schema of a manifest; point columns are lists of one value per name, in that order."""
    fields = [
        pa.field("row", pa.int64(), nullable=False),
        *(pa.field(column, pa.string(), nullable=False) for column in TEXT_COLUMNS),
        *((pa.field(MEMBER_COLUMN, pa.string(), nullable=False),) if members else ()),
        *(pa.field(COLUMN + name, pa.string(), nullable=False) for name in columns),
        *(pa.field(column, pa.int64(), nullable=False) for column in NUMBER_COLUMNS),
    ]
    if point_names:
        of_points = (*POINT_COLUMNS, *((LIKELIHOOD_COLUMN,) if likelihood else ()))
        fields += [pa.field(column, pa.list_(pa.float64(), len(point_names))) for column in of_points]
    return pa.schema(fields)


def blocks(listed: Iterable[Block]) -> Iterator[pa.RecordBatch]:
    """Convert listed images to record batches without points, with rows numbered from 0."""
    start = 0
    for block in listed:
        ids = _texts(block.image_ids)
        members = () if block.members is None else (_texts(block.members),)
        yield pa.record_batch(
            [
                _numbers(np.arange(start, start + len(block))),
                ids,
                ids if block.paths == block.image_ids else _texts(block.paths),
                *members,
                *map(_texts, block.columns.values()),
                _numbers(block.bytes),
                _numbers(block.mtime_ns),
            ],
            schema=schema((), members=bool(members), columns=list(block.columns)),
        )
        start += len(block)


def _texts(values: Sequence[str]) -> pa.Array:
    """Return texts as an Arrow array; `pa.array` would import pandas if installed, a tenth of the startup time."""
    joined = "".join(values)
    sizes = map(len, values) if joined.isascii() else (len(value.encode()) for value in values)
    ends = np.cumsum([0, *sizes], dtype=np.int32)
    return pa.Array.from_buffers(pa.string(), len(values), [None, pa.py_buffer(ends), pa.py_buffer(joined.encode())])


def _numbers(values: Sequence[int] | np.ndarray) -> pa.Array:
    """Return int64 numbers as an Arrow array, again without importing pandas."""
    return pa.Array.from_buffers(pa.int64(), len(values), [None, pa.py_buffer(np.array(values, np.int64))])


def with_points(
    block: pa.RecordBatch, placed: Mapping[int, int], xy: np.ndarray, likelihood: np.ndarray | None = None
) -> pa.RecordBatch:
    """Return a block with the points of each row added.

    Args:
        block: rows without points.
        placed: row -> index into `xy`; other rows get NaN.
        xy: float64 `[images of the points file, K, 2]`.
        likelihood: float64 `[images of the points file, K]`; None if it is not recorded.
    """
    known = xy if likelihood is None else np.concatenate([xy, likelihood[..., None]], axis=-1)
    values = np.full((block.num_rows, *known.shape[1:]), np.nan)
    for at, row in enumerate(block.column("row").to_pylist()):
        if row in placed:
            values[at] = known[placed[row]]
    values[np.isnan(values)] = np.nan  # one bit pattern for every NaN, for the digest
    points = [
        pa.FixedSizeListArray.from_arrays(pa.array(values[..., axis].ravel()), xy.shape[1])
        for axis in range(values.shape[-1])
    ]
    names = [str(index) for index in range(xy.shape[1])]
    like = schema(
        names,
        members=MEMBER_COLUMN in block.schema.names,
        columns=further_columns(block.schema),
        likelihood=likelihood is not None,
    )
    return pa.record_batch([*block.columns, *points], schema=like)


def further_columns(stored: pa.Schema) -> list[str]:
    """Return the further columns of a list that a manifest has."""
    return [name.removeprefix(COLUMN) for name in stored.names if name.startswith(COLUMN)]


def regrouped(blocks: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """Return rows in blocks of `GROUP_ROWS`, with rows numbered from 0."""
    start, held = 0, []
    for block in blocks:
        held.append(block)
        if sum(item.num_rows for item in held) >= GROUP_ROWS:
            whole = pa.Table.from_batches(held)
            yield _renumbered(whole.slice(0, GROUP_ROWS), start)
            start, held = start + GROUP_ROWS, whole.slice(GROUP_ROWS).to_batches()
    if sum(item.num_rows for item in held):
        yield _renumbered(pa.Table.from_batches(held), start)


def _renumbered(table: pa.Table, start: int) -> pa.RecordBatch:
    (batch,) = table.combine_chunks().to_batches()
    return batch.set_column(0, batch.schema.field("row"), _numbers(np.arange(start, start + batch.num_rows)))


def labelled(block: pa.RecordBatch) -> int:
    """Return how many rows of a block have a point."""
    if "point_x" not in block.schema.names:
        return 0
    xy = [flat_points(block.column(name)).reshape(block.num_rows, -1) for name in POINT_COLUMNS]
    return int((np.isfinite(xy[0]) & np.isfinite(xy[1])).any(axis=1).sum())


def numbers(column: pa.Array | pa.ChunkedArray) -> np.ndarray:
    """Return an int64 Arrow column as a NumPy array; its `to_numpy` would import pandas.

    Raises:
        ValueError: a value is missing.
    """
    if column.null_count:
        raise ValueError("a number is missing")
    chunks = column.chunks if isinstance(column, pa.ChunkedArray) else [column]
    return np.concatenate([np.empty(0, np.int64), *map(np.from_dlpack, chunks)])


def flat_points(column: pa.Array | pa.ChunkedArray) -> np.ndarray:
    """Return a point column of n rows as a flat float64 array of n * K values."""
    chunked = column if isinstance(column, pa.ChunkedArray) else pa.chunked_array([column])
    return np.concatenate([np.empty(0), *(chunk.flatten().to_numpy() for chunk in chunked.chunks)])


def describe(old: pa.Table, new: pa.Table, *, point_names: tuple[Sequence[str], Sequence[str]]) -> str:
    """Describe in one line which images were added, removed, changed on disk or reordered, and whose points differ.

    Args:
        old: image_id, path, bytes, mtime_ns and, with points, point_x and point_y.
        new: the same columns of the new manifest.
        point_names: those of the old and the new manifest.
    """
    at = pc.index_in(new["image_id"], value_set=old["image_id"].combine_chunks())
    known = pc.is_valid(at)
    position = at.drop_null().to_numpy()
    kept_new, kept_old = new.filter(known), old.take(position)
    gone = np.ones(old.num_rows, dtype=bool)
    gone[position] = False
    changed, details = _changed(kept_old, kept_new)
    added = new["image_id"].filter(pc.invert(known)).to_pylist()
    removed = old["image_id"].filter(pa.array(gone)).to_pylist()
    parts: list[str] = []
    for count, what, names in (
        (len(added), "added", added),
        (len(removed), "removed", removed),
        (changed, "changed on disk", details),
    ):
        if count:
            noun = "" if parts else " image" if count == 1 else " images"
            more = ", ..." if count > _SHOWN else ""
            parts.append(f"{count}{noun} {what} ({', '.join(names[:_SHOWN])}{more})")
    if (np.diff(position) < 0).any():
        parts.append("the order of the images differs")
    parts += _columns(kept_old, kept_new)
    parts += _points(kept_old, kept_new, point_names)
    return ", ".join(parts) or "no difference"


def _changed(old: pa.Table, new: pa.Table) -> tuple[int, list[str]]:
    """Return how many images in both tables changed, and a description of the first few."""
    compared = ("bytes", "mtime_ns", "path", *({MEMBER_COLUMN} & {*old.column_names} & {*new.column_names}))
    differ = functools.reduce(pc.or_, (pc.not_equal(old[name], new[name]) for name in compared))
    before, after = old.filter(differ), new.filter(differ)
    pairs = zip(before.slice(0, _SHOWN).to_pylist(), after.slice(0, _SHOWN).to_pylist(), strict=True)
    return after.num_rows, [_detail(*pair) for pair in pairs]


def _detail(old: dict[str, object], new: dict[str, object]) -> str:
    name = new["image_id"]
    if old["path"] != new["path"]:
        return f"{name}: was {old['path']}, is {new['path']}"
    if old["bytes"] != new["bytes"]:
        return f"{name}: {old['bytes']} -> {new['bytes']} bytes"
    return f"{name}: same size, different time"


def _columns(old: pa.Table, new: pa.Table) -> list[str]:
    """Describe which further columns of a list differ."""
    before, after = further_columns(old.schema), further_columns(new.schema)
    parts = [f"column {name!r} was {what}" for name in (*before, *after) for what in _changes(name, before, after)]
    both = [name for name in before if name in after and not old[COLUMN + name].equals(new[COLUMN + name])]
    return list(dict.fromkeys(parts)) + [f"column {name!r} has other values" for name in both]


def _changes(name: str, before: Sequence[str], after: Sequence[str]) -> Iterator[str]:
    if name not in after:
        yield "removed"
    if name not in before:
        yield "added"


def _points(old: pa.Table, new: pa.Table, names: tuple[Sequence[str], Sequence[str]]) -> list[str]:
    if list(names[0]) != list(names[1]):
        return [f"point names differ ({', '.join(names[0]) or 'none'} -> {', '.join(names[1]) or 'none'})"]
    if not names[0] or not old.num_rows:
        return []
    differ = np.zeros(old.num_rows, dtype=bool)
    for column in POINT_COLUMNS:
        pair = [flat_points(table[column]).reshape(old.num_rows, -1) for table in (old, new)]
        differ |= ~((pair[0] == pair[1]) | (np.isnan(pair[0]) & np.isnan(pair[1]))).all(axis=1)
    words = [f"points differ in {differ.sum()} image{'s' if differ.sum() > 1 else ''}"] if differ.any() else []
    have = [LIKELIHOOD_COLUMN in table.column_names for table in (old, new)]
    if have[0] != have[1] or (have[0] and not _same_likelihoods(old, new)):
        words.append("likelihoods of points differ")
    return words


def _same_likelihoods(old: pa.Table, new: pa.Table) -> bool:
    before, after = (flat_points(table[LIKELIHOOD_COLUMN]) for table in (old, new))
    return np.array_equal(before, after, equal_nan=True)
