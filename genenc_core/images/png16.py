"""PNG files of 16 bits per channel, made safe for a decoder that may crash where libpng reports an error."""

import struct
import zlib
from collections.abc import Iterator

import numpy as np

from genenc_core.images import headers

_CHANNELS = {2: 3, 4: 2, 6: 4}
_ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
_LAST_FILTER = 4
_PIECE = 2**20


def essential(data: bytes | bytearray) -> bytes:
    """Return a colour PNG with only its header, pixels and end, once it is sure that libpng has nothing to object to.

    Raises:
        ValueError: a chunk is cut off, has a wrong checksum, or the pixels are fewer, more or other than announced.
        zlib.error: the pixels cannot be unpacked.
    """
    chunks = list(_chunks(data))
    head = [body for name, body in chunks if name == b"IHDR"]
    if len(head) != 1 or chunks[0][0] != b"IHDR" or len(head[0]) != 13:
        raise ValueError("the PNG has no single header of 13 bytes at its beginning")
    pixels = b"".join(body for name, body in chunks if name == b"IDAT")
    _check_pixels(head[0], pixels)
    return b"".join(
        [headers.PNG_SIGNATURE, _chunk(b"IHDR", head[0]), *_split(pixels), _chunk(b"IEND", b"")],
    )


def _chunks(data: bytes | bytearray) -> Iterator[tuple[bytes, bytes]]:
    at = len(headers.PNG_SIGNATURE)
    while at < len(data):
        length, name = int.from_bytes(data[at : at + 4], "big"), bytes(data[at + 4 : at + 8])
        if name in (b"IHDR", b"IDAT"):
            body, checksum = bytes(data[at + 8 : at + 8 + length]), data[at + 8 + length : at + 12 + length]
            if len(checksum) < 4 or zlib.crc32(name + body) != int.from_bytes(checksum, "big"):
                raise ValueError(f"the PNG chunk {name.decode()} is cut off or damaged")
            yield name, body
        at += 12 + length


def _check_pixels(head: bytes, packed: bytes) -> None:
    width, height, bits, kind, compression, filtering, interlaced = struct.unpack(">IIBBBBB", head)
    if not width or not height or bits != 16 or kind not in _CHANNELS or compression or filtering or interlaced > 1:
        raise ValueError(f"the PNG header {head.hex()} announces no 16-bit colour image")
    passes = _passes(width, height, interlaced=bool(interlaced))
    lines = [(1 + 2 * _CHANNELS[kind] * columns, rows) for columns, rows in passes]
    unpacker = zlib.decompressobj()
    at = 0
    waiting = packed
    while not unpacker.eof:
        piece = unpacker.decompress(waiting, _PIECE)
        waiting = unpacker.unconsumed_tail
        if not piece and not waiting:
            break
        while piece:
            if not lines:
                raise ValueError("the PNG has more pixel data than its header announces")
            length, rows = lines[0]
            part, piece = piece[: length * rows - at], piece[length * rows - at :]
            if (np.frombuffer(part, dtype=np.uint8)[-at % length :: length] > _LAST_FILTER).any():
                raise ValueError("the PNG has a line with an unknown filter")
            at += len(part)
            if at == length * rows:
                del lines[0]
                at = 0
    if lines or not unpacker.eof or unpacker.unused_data:
        raise ValueError("the PNG has fewer pixels than its header announces, or more behind them")


def _passes(width: int, height: int, *, interlaced: bool) -> list[tuple[int, int]]:
    """Return (columns, rows) of each pass over an image."""
    if not interlaced:
        return [(width, height)]
    sizes = (
        ((width - left + across - 1) // across, (height - top + down - 1) // down) for left, top, across, down in _ADAM7
    )
    return [(columns, rows) for columns, rows in sizes if columns and rows]


def _split(pixels: bytes) -> Iterator[bytes]:
    for at in range(0, len(pixels), 2**30):
        yield _chunk(b"IDAT", pixels[at : at + 2**30])


def _chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
