"""What a few bytes announce or unfold to is refused before it costs memory or time; what is only large is read."""

import os
import resource
import struct
import subprocess
import sys
import time
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from genenc_core.images.decode import decode, decoded, headers

Encode = Callable[..., bytes]


def huge_header(encode: Encode, kind: str) -> bytes:
    """Return a small file of the kind whose header announces 65000 x 65000 pixels."""
    data = bytearray(encode(Image.new("RGB", (8, 8)), kind))
    side = 65000
    if kind == "JPEG":
        at = data.index(b"\xff\xc0")
        data[at + 5 : at + 9] = struct.pack(">HH", side, side)
    elif kind == "PNG":
        data[16:24] = struct.pack(">II", side, side)
        data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    elif kind == "BMP":
        data[18:26] = struct.pack("<ii", side, side)
    elif kind == "GIF":
        data[6:10] = struct.pack("<HH", side, side)
    elif kind == "PPM":
        data[:6] = b"P6\n65000 65000"
    else:
        for tag in (256, 257):
            at = data.index(struct.pack("<H", tag), int.from_bytes(data[4:8], "little"))
            data[at : at + 12] = struct.pack("<HHII", tag, 4, 1, side)
    return bytes(data)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "BMP", "GIF", "PPM", "TIFF"])
def test_absurd_dimensions_are_refused_before_they_are_allocated(encode: Encode, kind: str) -> None:
    data = huge_header(encode, kind)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(decoded.ImageUnreadable, match=r"65000 x 65000 pixels, above the limit of 400 megapixels"):
        decode.decode_image(data)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000


def test_a_webp_of_more_than_pillow_decodes(encode: Encode) -> None:
    """An animation's canvas is what its decoder would allocate."""
    still = encode(Image.new("RGB", (80, 64)), "WEBP", lossless=True)[12:]
    size = (16383).to_bytes(3, "little")
    frame = bytes(6) + (79).to_bytes(3, "little") + (63).to_bytes(3, "little") + b"\1\0\0\0" + still
    chunks = {b"VP8X": b"\x02\0\0\0" + size * 2, b"ANIM": bytes(6), b"ANMF": frame}
    body = b"WEBP" + b"".join(name + struct.pack("<I", len(chunk)) + chunk for name, chunk in chunks.items())
    with pytest.raises(decoded.ImageUnreadable, match=r"179 megapixels\).*PNG"):
        decode.decode_image(b"RIFF" + struct.pack("<I", len(body)) + body)


def test_the_limit_is_what_the_caller_says(encode: Encode) -> None:
    data = encode(Image.new("RGB", (100, 50)), "PNG")
    assert decode.decode_image(data, max_pixels=5000).pixels.shape == (3, 50, 100)
    with pytest.raises(decoded.ImageUnreadable, match=r"100 x 50 .* 0\.004999 megapixels; .* --max-megapixels"):
        decode.decode_image(data, max_pixels=4999)


@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
def test_a_jpeg_of_thousands_of_scans_is_refused_at_once(encode: Encode, mode: str) -> None:
    """Each scan of 50 bytes is a pass over all pixels: this one would take minutes."""
    data = encode(Image.new(mode, (3000, 3000)), "JPEG", progressive=True)
    end = data.rindex(b"\xff\xd9")
    scan = data[data.rindex(b"\xff\xc4", 0, data.rindex(b"\xff\xda")) : end]
    began = time.process_time()
    with pytest.raises(decoded.ImageUnreadable, match=r"JPEG with \d+ scans, above the limit of 500"):
        decode.decode_image(data[:end] + scan * 5000 + data[end:])
    assert time.process_time() - began < 1
    assert decode.decode_image(data).pixels.shape == (3, 3000, 3000)


def test_a_frame_hidden_behind_a_marker_without_a_length(encode: Encode) -> None:
    """To libjpeg the first frame counts; a parser that skips the marker by a length sees only the second, small one."""
    data = encode(Image.new("RGB", (80, 64)), "JPEG")
    at = data.index(b"\xff\xc0")
    frame = bytearray(data[at : at + 2 + int.from_bytes(data[at + 2 : at + 4], "big")])
    small, frame[5:9] = bytes(frame), struct.pack(">HH", 60000, 60000)
    head = data[:at] + b"\xff\xd0" + frame
    missing = at + 2 + 0xFFC0 - len(head)
    filler = b"".join(b"\xff\xe5" + struct.pack(">H", size - 2) + bytes(size - 4) for size in (missing - 60000, 60000))
    hidden = head + filler + small + data[at + len(small) :]
    assert headers.jpeg_header(hidden) is None
    with pytest.raises(decoded.ImageUnreadable):
        decode.decode_image(hidden)
    assert headers.jpeg_header(data[: at + len(small)] + data[at:]) is None, "two frames"


@pytest.mark.slow
@pytest.mark.parametrize("name", [b"zTXt", b"iTXt", b"iCCP"])
def test_large_texts_and_profiles_cost_an_image_nothing(
    photo: np.ndarray, encode: Encode, png_chunk: Callable[[bytes, bytes], bytes], name: bytes
) -> None:
    """Pillow refuses the whole image for a megabyte of XMP; a bomb of 300 MiB is not unfolded."""
    data = encode(Image.fromarray(photo), "PNG")
    packer = zlib.compressobj(1)
    text = b"".join(packer.compress(bytes(2**20)) for _ in range(300)) + packer.flush()
    body = b"XML:com.adobe.xmp\0" + (b"\1\0\0\0" if name == b"iTXt" else b"\0") + text
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    pixels = decode.decode_image(data[:33] + png_chunk(name, body) + data[33:]).pixels
    np.testing.assert_array_equal(pixels.permute(1, 2, 0).numpy(), photo)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000


def test_a_damaged_text_chunk_is_no_damage_to_the_pixels(
    photo: np.ndarray, encode: Encode, png_chunk: Callable[[bytes, bytes], bytes]
) -> None:
    data = encode(Image.fromarray(photo), "PNG")
    damaged = bytearray(png_chunk(b"tEXt", b"Comment\0made by hand"))
    damaged[-1] ^= 1
    pixels = decode.decode_image(data[:33] + bytes(damaged) + data[33:]).pixels
    np.testing.assert_array_equal(pixels.permute(1, 2, 0).numpy(), photo)
    cut = data[: data.index(b"IDAT") + 20]
    with pytest.raises(decoded.ImageUnreadable, match="truncated PNG"):
        decode.decode_image(cut)


@pytest.mark.slow
def test_memory_of_a_large_image() -> None:
    """Bytes a pixel at the peak, in a process of its own; tests/fuzz/images.md has those of 20,000 x 20,000."""
    program = Path(__file__).parents[3] / "fuzz" / "large_image.py"
    done = subprocess.run(
        [sys.executable, str(program), "PNG", "RGB", "3000"],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )
    height, width, per_pixel, _seconds = done.stdout.split()
    assert (height, width) == ("3000", "3000")
    assert float(per_pixel) < 8
