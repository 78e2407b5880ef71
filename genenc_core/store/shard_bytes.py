"""One shard's object written as Zarr bytes without a copy, for the codecs that this store chooses.

What zarr itself makes of them is the same, byte for byte: chunks in order, each `[bytes, zstd if asked, crc32c]`, then
for sharded arrays the index of offsets and lengths with its own checksum.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

import google_crc32c
import numpy as np
from numcodecs import zstd

from genenc_core.store.digests import Buffer

_LITTLE: Final = {"name": "bytes", "configuration": {"endian": "little"}}
_BYTES: Final = ({"name": "bytes"}, {"name": "bytes", "configuration": {}}, _LITTLE)
_CRC32C: Final = {"name": "crc32c"}
_ABSENT: Final = 2**64 - 1
"""Offset and length of a chunk that lies behind the array's end."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Format:
    """How an array's objects are encoded."""

    chunk_rows: int
    object_rows: int
    sharded: bool
    compressor: Mapping[str, Any] | None
    """Arguments of zstd."""
    fill: np.ndarray
    """One element, little-endian."""


def read_format(metadata: bytes, block: np.ndarray) -> Format | None:
    """Return the format that an array's `zarr.json` asks for; None when it is not one of those made here."""
    told: Mapping[str, Any] = json.loads(metadata)
    shape = told["chunk_grid"]["configuration"]["chunk_shape"]
    codecs, chunk, sharded = told["codecs"], shape, False
    if codecs[0]["name"] == "sharding_indexed":
        asked = codecs[0]["configuration"]
        if len(codecs) > 1 or asked["index_location"] != "end" or asked["index_codecs"] != [_LITTLE, _CRC32C]:
            return None
        codecs, chunk, sharded = asked["codecs"], asked["chunk_shape"], True
    fill = told["fill_value"]
    plain = codecs[0] == _LITTLE or (block.itemsize == 1 and codecs[0] in _BYTES)
    fits = [*chunk[1:]] == [*block.shape[1:]] and told["data_type"] == block.dtype.name
    if not plain or not fits or codecs[-1] != _CRC32C:
        return None
    compressor = codecs[1]["configuration"] if len(codecs) == 3 and codecs[1]["name"] == "zstd" else None
    if len(codecs) != (2 if compressor is None else 3) or (isinstance(fill, str) and fill.startswith("0x")):
        return None
    return Format(
        chunk_rows=chunk[0],
        object_rows=shape[0],
        sharded=sharded,
        compressor=compressor,
        fill=np.array(float(fill) if isinstance(fill, str) else fill).astype(_little(block.dtype)),
    )


def values(block: np.ndarray) -> np.ndarray:
    """Return an array's values little-endian, in C order; itself where it is that already."""
    return np.ascontiguousarray(block, dtype=_little(block.dtype))


def parts(form: Format, block: np.ndarray) -> list[Buffer]:
    """Return the object that holds `block` [at most the object's rows, ...], as `values` returned it, in parts."""
    found: list[Buffer] = []
    lengths: list[int] = []
    for chunk in _chunks(form, block):
        coded = chunk if form.compressor is None else _compressed(chunk, **form.compressor)
        found += [coded.data, _checksum(coded)]
        lengths.append(len(coded) + 4)
    return [*found, *_index(lengths, form.object_rows // form.chunk_rows)] if form.sharded else found


def _little(dtype: np.dtype[Any]) -> np.dtype[Any]:
    return dtype.newbyteorder("<")


def _chunks(form: Format, block: np.ndarray) -> Iterator[np.ndarray]:
    """Yield the bytes of every chunk; the last is filled up."""
    for start in range(0, len(block), form.chunk_rows):
        rows = block[start : start + form.chunk_rows]
        if len(rows) < form.chunk_rows:
            whole = np.full((form.chunk_rows, *block.shape[1:]), form.fill, dtype=form.fill.dtype)
            whole[: len(rows)] = rows
            rows = whole
        yield rows.reshape(-1).view(np.uint8)


def _compressed(chunk: np.ndarray, *, level: int, checksum: bool = False) -> np.ndarray:
    return np.frombuffer(zstd.compress(chunk, level, checksum), np.uint8)


def _checksum(data: np.ndarray) -> bytes:
    return int(google_crc32c.value(data)).to_bytes(4, "little")


def _index(lengths: list[int], count: int) -> Iterator[Buffer]:
    index = np.full((count, 2), _ABSENT, dtype="<u8")
    index[: len(lengths), 1] = lengths
    index[: len(lengths), 0] = np.cumsum([0, *lengths[:-1]])
    data = index.reshape(-1).view(np.uint8)
    yield data.data
    yield _checksum(data)
