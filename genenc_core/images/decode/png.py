"""Strict PNG parsing: chunks that affect the pixels must be intact, and no others reach a decoder."""

import re
import struct
import zlib
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from genenc_core.images.decode import headers
from genenc_core.images.decode.decoded import ImageUnreadable

_PIXEL_CHUNKS = frozenset((b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND"))
_ORDER = re.compile(rb"IHDR(PLTE)?(tRNS)?(IDAT)+IEND")
_EXIF = b"eXIf"
_HEADER = struct.Struct(">II5B")
_GREY, _RGB, _PALETTE = 0, 2, 3
_BITS = {_GREY: (1, 2, 4, 8, 16), _RGB: (8, 16), _PALETTE: (1, 2, 4, 8), 4: (8, 16), 6: (8, 16)}
_CHANNELS = {_GREY: 1, _RGB: 3, _PALETTE: 1, 4: 2, 6: 4}
_ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
_LAST_FILTER = 4
_PIECE = 2**20


class Png(NamedTuple):
    """A PNG with intact chunks."""

    height: int
    width: int
    bits: int
    kind: int
    """Colour type: grey 0, RGB 2, palette 3, grey and alpha 4, RGBA 6."""
    interlaced: bool
    transparent: int | tuple[int, ...] | None
    """The transparent grey value or colour; less than 8 bits are scaled to 8, as decoders scale the pixels."""
    exif: bytes
    """Empty if there is none."""
    essential: bytes | bytearray
    """The file without chunks unrelated to its pixels, which may be large or damaged."""

    @property
    def is_wide_colour(self) -> bool:
        """Whether it has 16 bits per channel and more than one channel."""
        return self.bits == 16 and self.kind != _GREY

    def without_transparency(self) -> bytes:
        """Return the file without its palette and transparency."""
        view = memoryview(self.essential)
        kept = (view[at:end] for name, at, end in _chunks(self.essential) if name not in (b"PLTE", b"tRNS"))
        return b"".join([headers.PNG_SIGNATURE, *kept])

    def check_pixels(self) -> None:
        """Decompress the pixels to check them, for decoders that miss or crash on missing ones.

        Raises:
            ImageUnreadable: they cannot be decompressed, or are fewer than or not as the header states.
        """
        bits = self.bits * _CHANNELS[self.kind]
        passes = _passes(self.width, self.height, interlaced=self.interlaced)
        lines = [(1 + (bits * columns + 7) // 8, rows) for columns, rows in passes]
        view = memoryview(self.essential)
        packed = b"".join(view[at + 8 : end - 4] for name, at, end in _chunks(self.essential) if name == b"IDAT")
        try:
            _check_lines(packed, lines)
        except zlib.error as error:
            raise ImageUnreadable(f"damaged PNG: {error}") from error


def parse(data: bytes | bytearray) -> Png:
    """Parse a PNG and check the chunks that affect its pixels or their orientation.

    Raises:
        ImageUnreadable: a chunk is truncated, missing, unknown or out of place, or has a wrong checksum.
    """
    kept: list[slice] = []
    names: list[bytes] = []
    bodies: dict[bytes, bytes] = {}
    for name, at, end in _chunks(data):
        if name in _PIXEL_CHUNKS or name == _EXIF:
            (checksum,) = struct.unpack_from(">I", data, end - 4)
            if zlib.crc32(memoryview(data)[at + 4 : end - 4]) != checksum:
                raise ImageUnreadable(f"damaged PNG: chunk {name.decode()} has a wrong checksum")
            if name != b"IDAT":
                bodies.setdefault(name, bytes(data[at + 8 : end - 4]))
        elif not name[0] & 0x20:
            raise ImageUnreadable(f"unsupported PNG: unknown critical chunk {_printed(name)}")
        if name in _PIXEL_CHUNKS:
            names.append(name)
            kept.append(slice(at, end))
    if not _ORDER.fullmatch(b"".join(names)) or len(bodies[b"IHDR"]) != _HEADER.size:
        raise ImageUnreadable("damaged PNG: chunks are missing or out of order")
    width, height, bits, kind, interlaced = _checked_header(bodies[b"IHDR"])
    if kind == _PALETTE and b"PLTE" not in bodies:
        raise ImageUnreadable("damaged PNG: a palette image without a palette")
    length = len(headers.PNG_SIGNATURE) + sum(piece.stop - piece.start for piece in kept)
    if length < len(data):
        data = b"".join([headers.PNG_SIGNATURE, *(memoryview(data)[piece] for piece in kept)])
    transparent = _transparent(bodies[b"tRNS"], bits, kind) if b"tRNS" in bodies else None
    return Png(height, width, bits, kind, interlaced, transparent, bodies.get(_EXIF, b""), data)


def _checked_header(head: bytes) -> tuple[int, int, int, int, bool]:
    width, height, bits, kind, compression, filtering, interlaced = _HEADER.unpack(head)
    possible = bits in _BITS.get(kind, ()) and not compression and not filtering and interlaced <= 1
    if not width or not height or not possible:
        raise ImageUnreadable(f"damaged PNG: invalid header {head.hex()}")
    return width, height, bits, kind, bool(interlaced)


def _transparent(body: bytes, bits: int, kind: int) -> int | tuple[int, ...] | None:
    """Return the transparent value in the tRNS chunk of a grey or RGB image; None for other kinds."""
    channels = {_GREY: 1, _RGB: 3}.get(kind)
    if channels is None:
        return None
    if len(body) != 2 * channels:
        raise ImageUnreadable(f"damaged PNG: its transparent colour has {len(body)} bytes")
    largest = 2**bits - 1
    values = tuple((value & largest) * max(1, 255 // largest) for value in struct.unpack(f">{channels}H", body))
    return values if channels > 1 else values[0]


def _chunks(data: bytes | bytearray) -> Iterator[tuple[bytes, int, int]]:
    """Yield (name, start, end) of the chunks up to the end of the image.

    Raises:
        ImageUnreadable: the file is truncated.
    """
    at = len(headers.PNG_SIGNATURE)
    name = b""
    while name != b"IEND":
        end = at + 12 + int.from_bytes(data[at : at + 4], "big")
        name = bytes(data[at + 4 : at + 8])
        if at + 8 > len(data) or end > len(data):
            raise ImageUnreadable(f"truncated PNG: it ends within chunk {_printed(name)}")
        yield name, at, end
        at = end


def _printed(name: bytes) -> str:
    return repr(name.decode("ascii", "backslashreplace"))


def _check_lines(packed: bytes, lines: list[tuple[int, int]]) -> None:
    """Check that compressed pixels have the lines of each pass, (bytes per line, count), with known filters."""
    unpacker = zlib.decompressobj()
    at = 0
    waiting = packed
    while not unpacker.eof:
        piece = unpacker.decompress(waiting, _PIECE)
        waiting = unpacker.unconsumed_tail
        if not piece and not waiting:
            break
        while piece and lines:  # ignore excess data
            length, rows = lines[0]
            part, piece = piece[: length * rows - at], piece[length * rows - at :]
            if (np.frombuffer(part, dtype=np.uint8)[-at % length :: length] > _LAST_FILTER).any():
                raise ImageUnreadable("damaged PNG: a line has an unknown filter")
            at += len(part)
            if at == length * rows:
                del lines[0]
                at = 0
    if lines or not unpacker.eof:
        raise ImageUnreadable("damaged PNG: it has fewer pixels than its header states")


def _passes(width: int, height: int, *, interlaced: bool) -> list[tuple[int, int]]:
    """Return (columns, rows) of each interlacing pass."""
    if not interlaced:
        return [(width, height)]
    sizes = (
        ((width - left + across - 1) // across, (height - top + down - 1) // down) for left, top, across, down in _ADAM7
    )
    return [(columns, rows) for columns, rows in sizes if columns and rows]
