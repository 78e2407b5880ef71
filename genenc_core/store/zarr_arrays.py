"""The Zarr side of the store: the empty group with its coordinates, and one shard's object to and from bytes."""

from collections.abc import Iterable, Iterator, Mapping, MutableMapping
from pathlib import Path
from typing import Any, Final

import numpy as np
import zarr
from zarr.abc.buffer import Buffer as AnyBuffer
from zarr.buffer.cpu import Buffer as ZarrBuffer
from zarr.codecs import BytesCodec, Crc32cCodec, ZstdCodec
from zarr.storage import LocalStore, MemoryStore

from genenc_core import errors
from genenc_core.store import digests, layout, shard_bytes
from genenc_core.store.digests import Buffer

METADATA: Final = "zarr.json"
COORDINATE_ROWS: Final = 65536
COORDINATE_BYTES: Final = 4 * 2**20
_FILLS: Final[Mapping[str, float | int]] = {"f": float("nan"), "i": -1, "u": 0, "b": 0}


_Objects = MutableMapping[str, AnyBuffer]


def create_group(path: Path, plan: layout.StorePlan, coordinates: Iterable[layout.CoordinatePlan]) -> None:
    """Write the group: every planned array empty, `status` empty, every coordinate whole; nothing is fsynced.

    Raises:
        StoreError: a coordinate does not fit the plan.
    """
    store = LocalStore(path)
    zarr.create_group(store, attributes=_json(plan.attributes), zarr_format=3)
    for array in plan.all_arrays:
        _create_array(store, array, shard_rows=plan.shard_rows)
    taken = {array.name for array in plan.arrays}
    for coordinate in coordinates:
        found = [*layout.name_problems(coordinate.name), *_coordinate_problems(coordinate, taken)]
        if found:
            raise errors.StoreError(f"coordinate {coordinate.name!r}: " + "; ".join(found))
        taken.add(coordinate.name)
        _write_coordinate(store, coordinate, rows=plan.rows)


def encode(metadata: bytes, key: str, start: int, block: np.ndarray) -> list[Buffer]:
    """Return the object of rows [start, start + len(block)) of an array, one whole shard, in parts.

    Args:
        metadata: the array's own `zarr.json`.
        key: the object's place relative to the array, e.g. `c.3.0`.
        start: first row; a multiple of the shard's rows.
        block: the shard's rows; the parts look at them when they are what `shard_bytes.values` returned.

    Raises:
        StoreError: zarr made another object than `key`.
    """
    form = shard_bytes.read_format(metadata, block)
    if form is None or start % form.object_rows or f"{key}.".split(".")[1] != str(start // form.object_rows):
        return [encode_by_zarr(metadata, key, start, block)]
    return shard_bytes.parts(form, shard_bytes.values(block))


def start() -> None:
    """Start zarr's own thread. Call it before several threads use zarr: all would wait for ever for one that fails."""
    zarr.create_group(MemoryStore(), zarr_format=3)


def encode_by_zarr(metadata: bytes, key: str, start: int, block: np.ndarray) -> memoryview:
    """Return the bytes that zarr itself stores for the rows, whatever the array's codecs; arguments as in `encode`.

    Raises:
        StoreError: zarr made another object than `key`.
    """
    objects: _Objects = {METADATA: ZarrBuffer.from_bytes(metadata)}
    array: Any = zarr.open_array(MemoryStore(objects), mode="r+")
    # Without it a shard of nothing but fill values would be no object at all, and nothing to check. open_array's own
    # `config` argument does not reach an existing array (zarr 3.1.6).
    array = array.with_config({"write_empty_chunks": True})
    array[start : start + len(block)] = block
    del objects[METADATA]
    if list(objects) != [key]:
        raise errors.StoreError(f"zarr {zarr.__version__} encoded a shard as {sorted(objects)}, expected {key!r}")
    return np.asarray(objects[key].as_numpy_array()).data


def decode(metadata: bytes, key: str, data: bytes, rows: tuple[int, int]) -> np.ndarray:
    """Return rows [start, stop) of an array from the bytes of the one object that holds them, by zarr itself."""
    objects: _Objects = {METADATA: ZarrBuffer.from_bytes(metadata), key: ZarrBuffer.from_bytes(data)}
    array: Any = zarr.open_array(MemoryStore(objects), mode="r")
    return np.asarray(array[rows[0] : rows[1]])


def content_digest(block: np.ndarray, algorithm: str = digests.BLAKE3) -> str:
    """Return the digest of an array's values, little-endian, C order."""
    return digests.of([shard_bytes.values(block).reshape(-1).view(np.uint8).data], algorithm)


def _create_array(store: LocalStore, array: layout.ArrayPlan, *, shard_rows: int) -> None:
    rest = array.shape[1:]
    # A zero-length file of a sharded array reads as fill values without an error, so the array that says which rows
    # are final is not sharded.
    sharded = array.name != layout.STATUS
    zarr.create_array(
        store,
        name=array.name,
        shape=array.shape,
        chunks=(array.chunk_rows, *rest) if sharded else (shard_rows, *rest),
        shards=(shard_rows, *rest) if sharded else None,
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
        yield "the name is used twice"
    if not coordinate.dims:
        yield "it needs at least one dim"
    if coordinate.kind == "string":
        return
    try:
        kind: str = np.dtype(coordinate.kind).kind
    except TypeError:
        kind = "?"
    if kind not in _FILLS:
        yield f"kind must be 'string' or a numeric numpy name, got {coordinate.kind!r}"


def _write_coordinate(store: LocalStore, coordinate: layout.CoordinatePlan, *, rows: int) -> None:
    """Write a coordinate block by block, so that memory does not grow with the rows of `image`."""
    blocks = _blocks(coordinate)
    if coordinate.dims[0] != "image":
        parts = list(blocks)
        rows = sum(len(part) for part in parts)
        blocks = iter(parts)
    first = next(blocks, None)
    if first is None or rows < 1:
        raise errors.StoreError(f"coordinate {coordinate.name!r} has no values; leave it out or give it some")
    found = list(layout.dims_problems(coordinate.dims, rank=first.ndim))
    if found:
        raise errors.StoreError(f"coordinate {coordinate.name!r}: " + "; ".join(found))
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
    """Cut blocks of any length into blocks of `rows`, the last one shorter: each chunk is written once, whole."""
    held = first
    for block in others:
        whole = len(held) // rows * rows
        yield from (held[at : at + rows] for at in range(0, whole, rows))
        held = np.concatenate([held[whole:], block])
    yield from (held[at : at + rows] for at in range(0, len(held), rows))
