"""16-bit colour PNGs reach libpng only if it will not object: torchvision's decoder crashes where it does."""

import struct
import zlib
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image

from genenc_core.images import decode, decoded, png16

Chunk = Callable[[bytes, bytes], bytes]


def png(chunk: Chunk, packed: bytes, *, width: int = 5, height: int = 4, interlaced: int = 0) -> bytes:
    head = struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, interlaced)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", packed) + chunk(b"IEND", b"")


LINES = b"".join(bytes((row % 5,)) + bytes(range(30)) for row in range(4))


def test_whole_files_pass_unchanged_but_for_what_is_not_pixels(png_chunk: Chunk) -> None:
    good = png(png_chunk, zlib.compress(LINES))
    assert png16.essential(good[:33] + png_chunk(b"tEXt", b"a\0b") + good[33:]) == good
    assert decode.decode_image(good).pixels.shape == (3, 4, 5)


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        (LINES[:-1], "fewer pixels"),
        (LINES[:-31], "fewer pixels"),
        (LINES + b"\0", "more pixel data"),
        (LINES[:62] + b"\x05" + LINES[63:], "unknown filter"),
    ],
)
def test_what_libpng_would_object_to_is_refused_before(png_chunk: Chunk, lines: bytes, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        png16.essential(png(png_chunk, zlib.compress(lines)))
    with pytest.raises(ValueError, match=r"fewer pixels .* or more behind"):
        png16.essential(png(png_chunk, zlib.compress(LINES) + b"more"))
    with pytest.raises(ValueError, match="fewer pixels"):
        png16.essential(png(png_chunk, zlib.compress(LINES)[:-2]))
    two = png(png_chunk, zlib.compress(LINES))
    with pytest.raises(ValueError, match="no single header"):
        png16.essential(two[:33] + two[8:])


def test_more_rows_announced_than_there_are_is_a_reason(png_chunk: Chunk, photo: np.ndarray) -> None:
    """The file that a fuzzer found: Pillow takes it, and torchvision's decoder died of it with a segmentation fault."""
    lines = b"".join(b"\0" + row.astype(">u2").tobytes() for row in photo)
    with pytest.raises(decoded.ImageUnreadable, match="PNG"):
        decode.decode_image(png(png_chunk, zlib.compress(lines), width=60, height=65536))


@pytest.mark.parametrize(("width", "height"), [(1, 1), (2, 3), (5, 4), (8, 8), (9, 17), (33, 1), (1, 33)])
def test_interlaced_files_of_every_shape_are_read(png_chunk: Chunk, width: int, height: int) -> None:
    """Seven passes, of which small images have fewer; each pixel is where Pillow finds its upper byte."""
    values = np.random.default_rng(0).integers(0, 65536, (height, width, 3)).astype(">u2")
    steps = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
    passes = [values[top::down, left::across] for left, top, across, down in steps]
    lines = b"".join(b"\0" + row.tobytes() for part in passes if part.size for row in part)
    data = png(png_chunk, zlib.compress(lines), width=width, height=height, interlaced=1)
    found = decode.decode_image(data).pixels.permute(1, 2, 0).numpy()
    np.testing.assert_array_equal(found, np.rint(values.astype(float) * 255 / 65535))
    assert Image.fromarray(found).size == (width, height)
