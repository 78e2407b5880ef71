"""Encoding and decoding of Zarr groups, coordinates and shard objects."""

import functools
import json
import math
from collections.abc import Iterable, Iterator, Mapping, MutableMapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import google_crc32c
import numpy as np
import zarr
from numcodecs import zstd
from zarr.abc.buffer import Buffer as AnyBuffer
from zarr.buffer.cpu import Buffer as ZarrBuffer
from zarr.codecs import BytesCodec, Crc32cCodec, ZstdCodec
from zarr.storage import LocalStore, MemoryStore

from genenc_core import errors
from genenc_core.store import layout
from genenc_core.system import digests
from genenc_core.system.digests import Buffer

_LITTLE: Final = {"name": "bytes", "configuration": {"endian": "little"}}
_BYTES: Final = ({"name": "bytes"}, {"name": "bytes", "configuration": {}}, _LITTLE)
_CRC32C: Final = {"name": "crc32c"}
_ABSENT: Final = 2**64 - 1
"""Offset and length of a chunk beyond the end of the array."""
METADATA: Final = "zarr.json"
COORDINATE_ROWS: Final = 65536
COORDINATE_BYTES: Final = 4 * 2**20
_FILLS: Final[Mapping[str, float | int]] = {"f": float("nan"), "i": -1, "u": 0, "b": 0}


_Objects = MutableMapping[str, AnyBuffer]


@dataclass(frozen=True, slots=True, kw_only=True)
class Format:
    """Encoding of an array's objects."""

    chunk_rows: int
    object_rows: int
    chunk_tail: tuple[int, ...]
    """Lengths of a chunk along the axes after the first; those of the block, unless they are divided."""
    grid: tuple[int, ...]
    """Chunks of an object along these axes."""
    sharded: bool
    compressor: Mapping[str, Any] | None
    """zstd arguments; None without compression."""
    fill: np.ndarray
    """One element, little-endian."""

    @property
    def count(self) -> int:
        """Chunks of an object."""
        return self.object_rows // self.chunk_rows * math.prod(self.grid)


def read_format(metadata: bytes, block: np.ndarray) -> Format | None:
    """Return the format that an array's `zarr.json` specifies, or None if only zarr itself can encode it."""
    return _format(metadata, block.shape[1:], block.dtype)


@functools.lru_cache(maxsize=64)
def _format(metadata: bytes, row_shape: tuple[int, ...], dtype: np.dtype[Any]) -> Format | None:
    document: Mapping[str, Any] = json.loads(metadata)
    shape = document["chunk_grid"]["configuration"]["chunk_shape"]
    codecs, chunk, sharded = document["codecs"], shape, False
    if codecs[0]["name"] == "sharding_indexed":
        sharding = codecs[0]["configuration"]
        if len(codecs) > 1 or sharding["index_location"] != "end" or sharding["index_codecs"] != [_LITTLE, _CRC32C]:
            return None
        codecs, chunk, sharded = sharding["codecs"], sharding["chunk_shape"], True
    fill = document["fill_value"]
    if len(chunk) != len(row_shape) + 1:
        return None
    plain = codecs[0] == _LITTLE or (dtype.itemsize == 1 and codecs[0] in _BYTES)
    grid = tuple(-(-size // of) for size, of in zip(row_shape, chunk[1:], strict=True))
    divided = sharded and [*shape[1:]] == [count * of for count, of in zip(grid, chunk[1:], strict=True)]
    fits = ([*chunk[1:]] == [*row_shape] or divided) and document["data_type"] == dtype.name
    if not plain or not fits or codecs[-1] != _CRC32C:
        return None
    compressor = codecs[1]["configuration"] if len(codecs) == 3 and codecs[1]["name"] == "zstd" else None
    if len(codecs) != (2 if compressor is None else 3) or (isinstance(fill, str) and fill.startswith("0x")):
        return None
    return Format(
        chunk_rows=chunk[0],
        object_rows=shape[0],
        chunk_tail=tuple(chunk[1:]),
        grid=grid,
        sharded=sharded,
        compressor=compressor,
        fill=np.array(float(fill) if isinstance(fill, str) else fill).astype(_little(dtype)),
    )


def chunk_values(block: np.ndarray) -> np.ndarray:
    """Return an array little-endian and in C order, without a copy if it already is."""
    return np.ascontiguousarray(block, dtype=_little(block.dtype))


def shard_parts(form: Format, block: np.ndarray) -> list[Buffer]:
    """Encode `block` [at most object_rows, ...], as `chunk_values` returns it, to one object in parts."""
    parts: list[Buffer] = []
    places: dict[int, tuple[int, int]] = {}
    end = 0
    for at, chunk in _chunks(form, block):
        coded = chunk if form.compressor is None else _compressed(chunk, **form.compressor)
        parts += [coded.data, _checksum(coded)]
        places[at] = end, len(coded) + 4
        end += len(coded) + 4
    return [*parts, *_index(places, form.count)] if form.sharded else parts


def _little(dtype: np.dtype[Any]) -> np.dtype[Any]:
    return dtype.newbyteorder("<")


def _chunks(form: Format, block: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """Yield the number and the bytes of every chunk; those at the ends are padded with the fill value."""
    for at, place in _chunk_places(form, len(block)):
        values = block[place]
        if values.shape != (form.chunk_rows, *form.chunk_tail):
            whole = np.full((form.chunk_rows, *form.chunk_tail), form.fill, dtype=form.fill.dtype)
            whole[tuple(map(slice, values.shape))] = values
            values = whole
        yield at, np.ascontiguousarray(values).reshape(-1).view(np.uint8)


def _chunk_places(form: Format, rows: int) -> Iterator[tuple[int, tuple[slice, ...]]]:
    """Yield the number of each chunk of `rows` rows, in C order, and where it lies in them.

    Chunks of the same channels come one after the other, so that a reader of some channels reads one range.
    """
    columns = math.prod(form.grid)
    for column, at in enumerate(np.ndindex(form.grid)):
        tail = [slice(index * size, (index + 1) * size) for index, size in zip(at, form.chunk_tail, strict=True)]
        for row, start in enumerate(range(0, rows, form.chunk_rows)):
            yield row * columns + column, (slice(start, start + form.chunk_rows), *tail)


def _compressed(chunk: np.ndarray, *, level: int, checksum: bool = False) -> np.ndarray:
    return np.frombuffer(zstd.compress(chunk, level, checksum), np.uint8)


def _checksum(data: np.ndarray) -> bytes:
    return int(google_crc32c.value(data)).to_bytes(4, "little")


def _index(places: Mapping[int, tuple[int, int]], count: int) -> Iterator[Buffer]:
    index = np.full((count, 2), _ABSENT, dtype="<u8")
    index[list(places)] = list(places.values())
    data = index.reshape(-1).view(np.uint8)
    yield data.data
    yield _checksum(data)


def create_group(path: Path, plan: layout.StorePlan, coordinates: Iterable[layout.CoordinatePlan]) -> None:
    """Write the group without fsync: planned arrays and `status` empty, coordinates in full.

    Raises:
        StoreError: a coordinate does not fit the plan.
    """
    store = LocalStore(path)
    zarr.create_group(store, attributes=_json(plan.attributes), zarr_format=3)
    for array in plan.all_arrays:
        _create_array(store, array, shard_rows=layout.object_rows(plan, array))
    taken = {array.name for array in plan.arrays}
    for coordinate in coordinates:
        problems = [*layout.name_problems(coordinate.name), *_coordinate_problems(coordinate, taken)]
        if problems:
            raise errors.StoreError(f"coordinate {coordinate.name!r}: " + "; ".join(problems))
        taken.add(coordinate.name)
        _write_coordinate(store, coordinate, rows=plan.rows)
    _consolidate(path)


def _consolidate(path: Path) -> None:
    """Repeat the metadata of all arrays in the group's: readers need one object, and xarray warns of none.

    No array's metadata changes after creation, so the copies stay right.
    """
    arrays = {file.parent.name: json.loads(file.read_bytes()) for file in sorted(path.glob(f"*/{METADATA}"))}
    group = json.loads((path / METADATA).read_bytes())
    group["consolidated_metadata"] = {"kind": "inline", "must_understand": False, "metadata": arrays}
    (path / METADATA).write_text(json.dumps(group, indent=2), encoding="utf-8")


def encode(metadata: bytes, key: str, start: int, block: np.ndarray) -> list[Buffer]:
    """Encode rows [start, start + len(block)) of an array, one whole shard, to an object in parts.

    Args:
        metadata: the array's own `zarr.json`.
        key: path of the object relative to the array, e.g. `c.3.0`.
        start: first row; a multiple of the shard's rows.
        block: the shard's rows; if `chunk_values` returned them, uncompressed parts are views of them, unless their
            channels are divided.

    Raises:
        StoreError: zarr made another object than `key`.
    """
    form = read_format(metadata, block)
    if form is None or start % form.object_rows or f"{key}.".split(".")[1] != str(start // form.object_rows):
        return [encode_by_zarr(metadata, key, start, block)]
    return shard_parts(form, chunk_values(block))


def start() -> None:
    """Start zarr's event loop thread; call it before threads use zarr, which deadlock if that thread cannot start."""
    zarr.create_group(MemoryStore(), zarr_format=3)


def encode_by_zarr(metadata: bytes, key: str, start: int, block: np.ndarray) -> memoryview:
    """Encode rows with zarr itself, for any codecs; arguments as in `encode`.

    Raises:
        StoreError: zarr made another object than `key`.
    """
    objects: _Objects = {METADATA: ZarrBuffer.from_bytes(metadata)}
    array: Any = zarr.open_array(MemoryStore(objects), mode="r+")
    # Otherwise zarr writes no object for a shard of fill values only, and there is nothing to check. open_array's own
    # `config` argument has no effect on an existing array (zarr 3.1.6).
    array = array.with_config({"write_empty_chunks": True})
    array[start : start + len(block)] = block
    del objects[METADATA]
    if list(objects) != [key]:
        raise errors.StoreError(f"zarr {zarr.__version__} encoded a shard as {sorted(objects)}, expected {key!r}")
    return np.asarray(objects[key].as_numpy_array()).data


def decode(metadata: bytes, key: str, data: bytes, rows: tuple[int, int]) -> np.ndarray:
    """Decode rows [start, stop) of an array with zarr itself, from the one object that holds them."""
    objects: _Objects = {METADATA: ZarrBuffer.from_bytes(metadata), key: ZarrBuffer.from_bytes(data)}
    array: Any = zarr.open_array(MemoryStore(objects), mode="r")
    return np.asarray(array[rows[0] : rows[1]])


def decode_rows(metadata: bytes, key: str, data: bytes, rows: tuple[int, int]) -> np.ndarray:
    """Decode rows [start, stop) as `decode` does, several times faster where genenc's own formats allow it.

    Raises:
        StoreError: a checksum or the index is wrong.
    """
    form = _own_format(metadata)
    start, stop = rows
    if form is None or start % form.object_rows or stop - start > form.object_rows:
        return decode(metadata, key, data, rows)
    shape = json.loads(metadata)["shape"][1:]
    buffer = np.frombuffer(data, np.uint8)
    places = _index_of(form, buffer) if form.sharded else [(0, len(buffer))]
    block = np.empty((stop - start, *shape), form.fill.dtype)
    for at, place in _chunk_places(form, len(block)):
        part, (offset, length) = block[place], places[at]
        chunk = buffer[offset : offset + length - 4]
        if length < 4 or _checksum(chunk) != buffer[offset + length - 4 : offset + length].tobytes():
            raise errors.StoreError(f"{key!r}: the checksum of a chunk is wrong")
        plain = chunk if form.compressor is None else np.frombuffer(zstd.decompress(chunk), np.uint8)
        if len(plain) < part.nbytes:
            raise errors.StoreError(f"{key!r}: a chunk is too short")
        if math.prod(form.grid) == 1:
            part.reshape(-1).view(np.uint8)[:] = plain[: part.nbytes]
        else:
            values = plain.view(block.dtype).reshape(form.chunk_rows, *form.chunk_tail)
            part[...] = values[tuple(map(slice, part.shape))]
    return block


@functools.lru_cache(maxsize=64)
def _own_format(metadata: bytes) -> Format | None:
    document: Mapping[str, Any] = json.loads(metadata)
    try:
        dtype = np.dtype(document["data_type"])
    except TypeError:
        return None
    return _format(metadata, tuple(document["shape"][1:]), dtype)


def _index_of(form: Format, buffer: np.ndarray) -> list[tuple[int, int]]:
    """Return offset and length of the chunks of a shard, from the index at its end."""
    count = form.count
    size = 16 * count
    index = buffer[len(buffer) - size - 4 : len(buffer) - 4]
    if len(index) != size or _checksum(index) != buffer[len(buffer) - 4 :].tobytes():
        raise errors.StoreError("the index of a shard is damaged")
    return [(offset, length) for offset, length in index.view("<u8").reshape(count, 2).tolist()]


def content_digest(block: np.ndarray, algorithm: str = digests.VALUES.algorithm) -> str:
    """Return the digest of an array's values, little-endian, C order."""
    return digests.of([chunk_values(block).reshape(-1).view(np.uint8).data], algorithm)


def _create_array(store: LocalStore, array: layout.ArrayPlan, *, shard_rows: int) -> None:
    # A zero-length file of a sharded array reads as fill values without an error, so the array that marks final rows
    # is not sharded.
    sharded = array.name != layout.STATUS
    zarr.create_array(
        store,
        name=array.name,
        shape=array.shape,
        chunks=array.chunk_shape if sharded else (shard_rows, *array.shape[1:]),
        shards=(shard_rows, *array.object_tail) if sharded else None,
        dtype=array.dtype,
        fill_value=array.fill,
        serializer=BytesCodec(endian="little"),
        compressors=[ZstdCodec(level=1), Crc32cCodec()] if array.compress else [Crc32cCodec()],
        dimension_names=array.dims,
        attributes=_json(array.attributes),
        chunk_key_encoding={"name": "default", "separator": "."},
        zarr_format=3,
    )


def _json(attributes: Mapping[str, object]) -> dict[str, Any]:
    return dict(attributes)


def _coordinate_problems(coordinate: layout.CoordinatePlan, taken: set[str]) -> Iterator[str]:
    if coordinate.name in taken:
        yield "the name is already used"
    if not coordinate.dims:
        yield "it needs at least one dim"
    if coordinate.kind == "string":
        return
    try:
        kind: str = np.dtype(coordinate.kind).kind
    except TypeError:
        kind = "?"
    if kind not in _FILLS:
        yield f"kind must be 'string' or a numeric NumPy name, got {coordinate.kind!r}"


def _write_coordinate(store: LocalStore, coordinate: layout.CoordinatePlan, *, rows: int) -> None:
    """Write a coordinate block by block, in memory independent of the number of images."""
    blocks = _blocks(coordinate)
    if coordinate.dims[0] != "image":
        parts = list(blocks)
        rows = sum(len(part) for part in parts)
        blocks = iter(parts)
    first = next(blocks, None)
    if first is None or rows < 1:
        raise errors.StoreError(f"coordinate {coordinate.name!r} has no values; omit it or add some")
    problems = list(layout.dims_problems(coordinate.dims, rank=first.ndim))
    if problems:
        raise errors.StoreError(f"coordinate {coordinate.name!r}: " + "; ".join(problems))
    chunk_rows = min(rows, _chunk_rows(first))
    array = _create_coordinate(store, coordinate, shape=(rows, *first.shape[1:]), chunk_rows=chunk_rows)
    written = 0
    for block in _aligned(first, blocks, chunk_rows):
        if written + len(block) <= rows:
            array[written : written + len(block)] = block
        written += len(block)
    if written != rows:
        raise errors.StoreError(f"coordinate {coordinate.name!r} has {written} rows, the plan has {rows}")


def _create_coordinate(
    store: LocalStore, coordinate: layout.CoordinatePlan, *, shape: tuple[int, ...], chunk_rows: int
) -> Any:
    string = coordinate.kind == "string"
    return zarr.create_array(
        store,
        name=coordinate.name,
        shape=shape,
        chunks=(chunk_rows, *shape[1:]),
        dtype=coordinate.kind,
        fill_value="" if string else _FILLS[np.dtype(coordinate.kind).kind],
        serializer="auto" if string else BytesCodec(endian="little"),
        compressors=[ZstdCodec(level=1), Crc32cCodec()],
        dimension_names=coordinate.dims,
        attributes=_json(coordinate.attributes),
        chunk_key_encoding={"name": "default", "separator": "."},
        config={"write_empty_chunks": True},
        zarr_format=3,
    )


def _blocks(coordinate: layout.CoordinatePlan) -> Iterator[np.ndarray]:
    values = coordinate.values
    whole = isinstance(values, np.ndarray) or (
        isinstance(values, list | tuple) and bool(values) and not isinstance(values[0], list | tuple | np.ndarray)
    )
    for block in [values] if whole else values:
        if coordinate.kind == "string":
            yield np.asarray(block, dtype=object)
            continue
        try:
            yield np.asarray(block).astype(coordinate.kind, casting="same_kind", copy=False)
        except TypeError as error:
            raise errors.StoreError(f"coordinate {coordinate.name!r}: {error}") from error


def _chunk_rows(block: np.ndarray) -> int:
    row_bytes = max(1, int(np.prod(block.shape[1:], dtype=np.int64)) * block.dtype.itemsize)
    return max(1, min(COORDINATE_ROWS, COORDINATE_BYTES // row_bytes))


def _aligned(first: np.ndarray, others: Iterator[np.ndarray], rows: int) -> Iterator[np.ndarray]:
    """Rechunk blocks of any length to blocks of `rows` (the last may be shorter), so each chunk is written once."""
    held = first
    for block in others:
        whole = len(held) // rows * rows
        yield from (held[at : at + rows] for at in range(0, whole, rows))
        held = np.concatenate([held[whole:], block])
    yield from (held[at : at + rows] for at in range(0, len(held), rows))
