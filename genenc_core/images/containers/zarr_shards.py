"""Which chunks inside the shards of a Zarr array were written, by the index of each shard."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

_NONE = 2**64 - 1
"""Offset and length of a chunk that was not written."""
_CHECKSUM = 4


class ShardIndexes:
    """The indexes of an array's shards; those of the shards that were asked for last are kept."""

    def __init__(self, array: Any) -> None:
        self._codec: Any = array.metadata.codecs[0]
        self._sides = tuple(shard // chunk for shard, chunk in zip(array.shards, array.chunks, strict=True))
        """Chunks of a shard along each axis."""
        self._counts = tuple(-(-length // chunk) for length, chunk in zip(array.shape, array.chunks, strict=True))
        self._kept: dict[str, np.ndarray | None] = {}

    def are_written(self, shards: Mapping[str, Sequence[int]], chunks: Sequence[int | None]) -> bool:
        """Return whether all chunks that are asked for were written; True where that is not known.

        Args:
            shards: paths of shards, and where they are in the grid of shards.
            chunks: where the chunks are in the grid of chunks, along each axis; None for all there.
        """
        self._kept = {path: self._kept[path] if path in self._kept else self._read(path) for path in shards}
        for path, place in shards.items():
            written = self._kept[path]
            if written is None:
                continue
            asked = []
            for at, side, count, chunk in zip(place, self._sides, self._counts, chunks, strict=True):
                begin, end = (0, min(side, count - at * side)) if chunk is None else (chunk % side, chunk % side + 1)
                asked.append(slice(begin, end))
            if not written[tuple(asked)].all():
                return False
        return True

    def _read(self, path: str) -> np.ndarray | None:
        """Return which chunks of a shard were written, bool, or None where that is not known.

        A shard is damaged, or its index is encoded in a way of its own, which reading finds.
        """
        names = [type(each).__name__ for each in self._codec.index_codecs]
        if names not in (["BytesCodec"], ["BytesCodec", "Crc32cCodec"]):
            return None
        size = 16 * math.prod(self._sides)
        ending = _CHECKSUM * (len(names) - 1)
        with open(path, "rb") as file:  # noqa: PTH123 -- of millions
            if self._codec.index_location.value == "end":
                file.seek(0, 2)
                file.seek(max(file.tell() - size - ending, 0))
            data = file.read(size)
        if len(data) < size:
            return None
        big = getattr(self._codec.index_codecs[0].endian, "value", "little") == "big"
        entries = np.frombuffer(data, ">u8" if big else "<u8").reshape(*self._sides, 2)
        written: np.ndarray = (entries != _NONE).any(-1)
        return written
