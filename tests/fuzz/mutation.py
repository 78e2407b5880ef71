"""Ways to damage a file: blind ones, and ones that know where a format keeps its lengths and checksums."""

import random
import struct
import zlib
from collections.abc import Callable, Sequence

_ODD_NUMBERS = (
    0,
    1,
    2,
    3,
    0x7F,
    0x80,
    0xFF,
    0x100,
    0x3FFF,
    0x7FFF,
    0x8000,
    0xFFFF,
    0x10000,
    2**24,
    2**31 - 1,
    2**31,
    2**32 - 1,
)


def mutated(source: random.Random, files: Sequence[bytes]) -> bytes:
    """Return one of the files with one to four mutations."""
    data = bytearray(source.choice(files))
    for _ in range(source.choice((1, 1, 1, 2, 2, 3, 4))):
        source.choice(_WAYS)(source, data, files)
    if data[:8] == b"\x89PNG\r\n\x1a\n" and source.random() < 0.7:
        data = _png_with_checksums(data)
    return bytes(data)


def _flip_bits(source: random.Random, data: bytearray, _files: Sequence[bytes]) -> None:
    for _ in range(source.choice((1, 1, 2, 8, 64))):
        if data:
            data[source.randrange(len(data))] ^= 1 << source.randrange(8)


def _set_bytes(source: random.Random, data: bytearray, _files: Sequence[bytes]) -> None:
    at = source.randrange(len(data) + 1)
    data[at : at + source.randrange(1, 9)] = source.randbytes(source.randrange(9))


def _edit_number(source: random.Random, data: bytearray, _files: Sequence[bytes]) -> None:
    """Write an odd number, mostly where headers are."""
    size, order = source.choice(((1, "B"), (2, ">H"), (2, "<H"), (4, ">I"), (4, "<I")))
    reach = min(len(data), source.choice((32, 64, 256, len(data))))
    at = source.randrange(max(reach - size, 0) + 1)
    number = source.choice(_ODD_NUMBERS) + source.choice((-1, 0, 0, 1))
    data[at : at + size] = struct.pack(order, number % 2 ** (8 * size))


def _truncate(source: random.Random, data: bytearray, _files: Sequence[bytes]) -> None:
    del data[source.randrange(len(data) + 1) :]


def _remove(source: random.Random, data: bytearray, _files: Sequence[bytes]) -> None:
    at = source.randrange(len(data) + 1)
    del data[at : at + source.choice((1, 2, 4, 12, 100))]


def _duplicate(source: random.Random, data: bytearray, _files: Sequence[bytes]) -> None:
    at = source.randrange(len(data) + 1)
    part = data[at : at + source.choice((1, 4, 12, 26, 200))]
    data[at:at] = part * source.choice((1, 1, 2, 50))


def _splice(source: random.Random, data: bytearray, files: Sequence[bytes]) -> None:
    other = source.choice(files)
    at = source.randrange(len(data) + 1)
    data[at:] = other[source.choice((at, source.randrange(len(other)))) :]


def _concatenate(source: random.Random, data: bytearray, files: Sequence[bytes]) -> None:
    data += source.choice(files)


def _blank(source: random.Random, data: bytearray, _files: Sequence[bytes]) -> None:
    at = source.randrange(len(data) + 1)
    length = min(source.choice((4, 32, 500)), len(data) - at)
    data[at : at + length] = source.choice((b"\0", b"\xff")) * length


def _shuffle_parts(source: random.Random, data: bytearray, _files: Sequence[bytes]) -> None:
    """Drop, repeat or move a part that the format itself delimits; nothing where it has none."""
    parts = _parts(bytes(data))
    if len(parts) < 3:
        return
    at, to = source.randrange(1, len(parts)), source.randrange(1, len(parts))
    way = source.randrange(3)
    if way == 0:
        del parts[at]
    elif way == 1:
        parts[to:to] = [parts[at]] * source.choice((1, 1, 40))
    else:
        parts[at], parts[to] = parts[to], parts[at]
    data[:] = b"".join(parts)


def _parts(data: bytes) -> list[bytes]:
    """Cut a PNG, RIFF or JPEG file into its chunks or segments."""
    if data.startswith(b"\x89PNG"):
        head, order, extra = 8, ">I", 8
    elif data.startswith(b"RIFF"):
        head, order, extra = 12, "<I", 0
    elif data.startswith(b"\xff\xd8"):
        return [b"\xff" + part for part in data.split(b"\xff")[1:]]
    else:
        return []
    parts, at = [data[:head]], head
    while at + 8 <= len(data):
        (length,) = struct.unpack_from(order, data, at if extra else at + 4)
        end = min(at + (12 + length if extra else 8 + length + length % 2), len(data))
        parts.append(data[at:end])
        at = end
    return [*parts, data[at:]]


def _png_with_checksums(data: bytearray) -> bytearray:
    """Return a PNG whose chunks have the right checksums, so that the damage gets past them."""
    parts = _parts(bytes(data))
    fixed = [part[:-4] + struct.pack(">I", zlib.crc32(part[4:-4])) if len(part) >= 12 else part for part in parts[1:]]
    return bytearray(b"".join([parts[0], *fixed]))


_WAYS: tuple[Callable[[random.Random, bytearray, Sequence[bytes]], None], ...] = (
    _flip_bits,
    _flip_bits,
    _set_bytes,
    _edit_number,
    _edit_number,
    _edit_number,
    _truncate,
    _remove,
    _duplicate,
    _splice,
    _concatenate,
    _blank,
    _shuffle_parts,
    _shuffle_parts,
)
