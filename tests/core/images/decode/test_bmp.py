"""Every kind of BMP against the values that were written."""

import io
import itertools
import struct
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from decoding import pixels_of, reason_of
from genenc_core.images.decode import decode, decoded

HEIGHT, WIDTH = 5, 13
CORE, INFO, V2, V3, V4, V5 = 12, 40, 52, 56, 108, 124
BITFIELDS = 3
Masks = tuple[int, int, int, int]
BGRA: Masks = (0xFF0000, 0xFF00, 0xFF, 0xFF000000)


def bmp(
    body: bytes,
    *,
    bits: int,
    header: int = INFO,
    compression: int = 0,
    masks: Masks = (0, 0, 0, 0),
    palette: np.ndarray | None = None,
    top_down: bool = False,
) -> bytes:
    if header == CORE:
        head = struct.pack("<IHHHH", header, WIDTH, HEIGHT, 1, bits)
    else:
        height = -HEIGHT if top_down else HEIGHT
        colours = 0 if palette is None else len(palette)
        head = struct.pack("<IiiHHIIiiII", header, WIDTH, height, 1, bits, compression, len(body), 0, 0, colours, 0)
        fields = struct.pack("<4I", *masks)
        head += fields[:12] if header == INFO and compression == BITFIELDS else fields[: header - INFO]
        head += bytes(max(0, header - len(head)))
    entry = 3 if header == CORE else 4
    table = b"" if palette is None else np.pad(palette[:, ::-1], ((0, 0), (0, entry - 3))).astype(np.uint8).tobytes()
    start = 14 + len(head) + len(table)
    return struct.pack("<2sIHHI", b"BM", start + len(body), 0, 0, start) + head + table + body


def rows(lines: Sequence[bytes], *, top_down: bool) -> bytes:
    return b"".join(line + bytes(-len(line) % 4) for line in (lines if top_down else lines[::-1]))


def packed(indices: np.ndarray, bits: int) -> list[bytes]:
    unpacked = np.unpackbits(indices.astype(np.uint8)[..., None], axis=2)[..., 8 - bits :]
    return [np.packbits(line.ravel()).tobytes() for line in unpacked]


def words(samples: np.ndarray, masks: Sequence[int], bits: int) -> list[bytes]:
    """Samples [H, W, channels], each within what its mask holds."""
    values = np.zeros(samples.shape[:2], dtype=np.uint32)
    for channel, mask in enumerate(masks):
        if mask:
            values |= samples[..., channel].astype(np.uint32) << ((mask & -mask).bit_length() - 1)
    return [line.astype(f"<u{bits // 8}").tobytes() for line in values]


def palettes(size: int) -> dict[str, np.ndarray]:
    ramp = np.repeat(np.arange(size)[:, None], 3, axis=1)
    return {
        "colours": np.random.default_rng(size).integers(0, 256, (size, 3)),
        "indices": ramp,
        "grey": ramp * 255 // (size - 1),
        "reversed": 255 - ramp * 255 // (size - 1),
        "black and white": np.array([[0] * 3, [255] * 3]),
        "two greys": np.array([[0] * 3, [1] * 3]),
    }


@pytest.mark.parametrize("header", [CORE, INFO, V4, V5])
@pytest.mark.parametrize("bits", [1, 4, 8])
def test_indices_are_looked_up(bits: int, header: int) -> None:
    """A palette of two greys or a grey ramp does not change how many bits an index has."""
    for palette, top_down in itertools.product(palettes(2**bits).values(), (False, True)):
        if header == CORE and (top_down or len(palette) != 2**bits):
            continue  # the first header says neither
        indices = np.random.default_rng(1).integers(0, len(palette), (HEIGHT, WIDTH))
        body = rows(packed(indices, bits), top_down=top_down)
        data = bmp(body, bits=bits, header=header, palette=palette, top_down=top_down)
        np.testing.assert_array_equal(pixels_of(data), palette[indices], err_msg=f"{palette[:3]}, {top_down=}")


@pytest.mark.parametrize(("bits", "colours"), [(1, 1), (4, 1), (4, 2), (4, 9), (8, 1), (8, 2), (8, 16), (8, 200)])
def test_indices_beyond_the_palette_are_refused(bits: int, colours: int) -> None:
    for kind, header in itertools.product(("colours", "grey", "indices"), (INFO, V5)):
        palette = palettes(2 if colours == 2 else 256)[kind][:colours]
        indices = np.zeros((HEIGHT, WIDTH), dtype=int)
        for last in (colours - 1, colours, 2**bits - 1):
            indices[1, 2] = last
            data = bmp(rows(packed(indices, bits), top_down=False), bits=bits, header=header, palette=palette)
            if last < colours:
                np.testing.assert_array_equal(pixels_of(data), palette[indices])
            else:
                assert f"has index {last} in a palette of {colours} colours" in reason_of(data)


@pytest.mark.parametrize(
    ("bits", "compression", "masks"),
    [
        (16, 0, (0x7C00, 0x3E0, 0x1F, 0)),
        (16, BITFIELDS, (0x7C00, 0x3E0, 0x1F, 0)),
        (16, BITFIELDS, (0xF800, 0x7E0, 0x1F, 0)),
        (24, 0, (0xFF0000, 0xFF00, 0xFF, 0)),
        (32, 0, (0xFF0000, 0xFF00, 0xFF, 0)),
        (32, BITFIELDS, (0xFF0000, 0xFF00, 0xFF, 0)),
        (32, BITFIELDS, (0xFF000000, 0xFF0000, 0xFF00, 0)),
    ],
)
def test_true_colours(bits: int, compression: int, masks: Masks) -> None:
    limits = np.array([mask >> ((mask & -mask).bit_length() - 1) for mask in masks[:3]])
    samples = np.random.default_rng(2).integers(0, limits + 1, (HEIGHT, WIDTH, 3))
    lines = (
        [line[:, ::-1].astype(np.uint8).tobytes() for line in samples] if bits == 24 else words(samples, masks, bits)
    )
    for header, top_down in itertools.product((INFO, V2, V3, V4, V5), (False, True)):
        data = bmp(
            rows(lines, top_down=top_down),
            bits=bits,
            header=header,
            compression=compression,
            masks=masks if compression else (0, 0, 0, 0),
            top_down=top_down,
        )
        np.testing.assert_array_equal(pixels_of(data), samples * 255 // limits, err_msg=f"{header=} {top_down=}")


@pytest.mark.parametrize("header", [V3, V4, V5])
def test_16_bits_with_alpha_are_refused(header: int) -> None:
    """Pillow would show transparent pixels. Without BITFIELDS masks mean nothing."""
    masks = (0x7C00, 0x3E0, 0x1F, 0x8000)
    samples = np.random.default_rng(2).integers(0, 32, (HEIGHT, WIDTH, 3))
    body = rows(words(samples, (*masks[:3], 0), 16), top_down=False)
    assert "16 bits with alpha" in reason_of(bmp(body, bits=16, header=header, compression=BITFIELDS, masks=masks))
    np.testing.assert_array_equal(pixels_of(bmp(body, bits=16, header=header, masks=masks)), samples * 255 // 31)


@pytest.mark.parametrize("header", [INFO, V3, V4, V5])
@pytest.mark.parametrize("masks", [BGRA, (0xFF, 0xFF00, 0xFF0000, 0xFF000000), (0xFF000000, 0xFF0000, 0xFF00, 0xFF)])
@pytest.mark.parametrize("alpha", ["blank", "some", "full", "no mask", "not read"])
def test_alpha_of_32_bits(alpha: str, masks: Masks, header: int) -> None:
    """Alpha counts where a mask names it and one pixel at least has some; else it was left blank."""
    if header == INFO and alpha not in ("no mask", "not read"):
        pytest.skip("a header without a mask for alpha")
    samples = np.random.default_rng(3).integers(0, 256, (HEIGHT, WIDTH, 4))
    if alpha in ("blank", "full"):
        samples[..., 3] = 255 if alpha == "full" else 0
    if alpha == "not read":  # without BITFIELDS masks mean nothing
        masks = BGRA
    stated = (*masks[:3], 0 if alpha == "no mask" else masks[3])
    if alpha == "no mask" and masks[0] == 0xFF:
        stated = (0, 0, 0, 0)  # seen in the wild, for the usual order
        masks = BGRA
    data = bmp(
        rows(words(samples, masks, 32), top_down=False),
        bits=32,
        header=header,
        compression=0 if alpha == "not read" else BITFIELDS,
        masks=stated,
    )
    if alpha != "some":
        np.testing.assert_array_equal(pixels_of(data), samples[..., :3])
    else:
        exact = samples[..., :3] * samples[..., 3:] / 255
        assert np.abs(pixels_of(data) - exact).max() <= 1


def run_lengths(indices: np.ndarray, bits: int, draw: np.random.Generator) -> bytes:
    """Rows from the bottom, as runs, literal pixels, skipped zeros and rows that are empty when they are all 0."""
    out = b""
    for line in indices[::-1]:
        x = 0
        while line[x:].any():
            zeros = int(np.argmax(line[x:] != 0))
            if zeros and draw.random() < 0.5:
                out += bytes((0, 2, zeros, 0))
                x += zeros
                continue
            count = int(draw.integers(1, WIDTH - x + 1))
            piece = line[x : x + count]
            if count >= 3 and draw.random() < 0.5:
                literal = piece.astype(np.uint8).tobytes() if bits == 8 else packed(piece[None], 4)[0]
                out += bytes((0, count)) + literal + bytes(len(literal) % 2)
            else:
                count = 1 + int(np.argmax(np.append(piece[1:] != piece[0], True)))
                value = int(piece[0])
                out += bytes((count, value if bits == 8 else value << 4 | value))
            x += count
        out += b"\0\0"
    return out[:-2] + b"\0\1"


@pytest.mark.parametrize("kind", palettes(2))
@pytest.mark.parametrize("bits", [4, 8])
@given(seed=st.integers(0, 2**16))
@settings(max_examples=20, deadline=None)
def test_run_lengths(bits: int, kind: str, seed: int) -> None:
    palette = palettes(2**bits)[kind]
    draw = np.random.default_rng(seed)
    indices = draw.integers(0, len(palette), (HEIGHT, WIDTH)) * (draw.random((HEIGHT, WIDTH)) < draw.random())
    indices[int(draw.integers(HEIGHT))] = 0
    data = bmp(run_lengths(indices, bits, draw), bits=bits, compression=1 if bits == 8 else 2, palette=palette)
    np.testing.assert_array_equal(pixels_of(data), palette[indices])


@pytest.mark.parametrize("kind", ["rows", "run lengths"])
def test_a_bmp_that_is_cut_off_is_refused(kind: str) -> None:
    palette = palettes(256)["colours"]
    indices = np.random.default_rng(4).integers(1, 256, (HEIGHT, WIDTH))
    if kind == "rows":
        data = bmp(rows(packed(indices, 8), top_down=False), bits=8, palette=palette)
    else:
        body = run_lengths(indices, 8, np.random.default_rng(0))
        data = bmp(body, bits=8, compression=1, palette=palette)
    for end in range(20, len(data) - 4, 7):
        with pytest.raises(decoded.ImageUnreadable):
            decode.decode_image(data[:end])


def test_a_layout_without_a_reader_is_refused() -> None:
    body = rows(words(np.zeros((HEIGHT, WIDTH, 3)), (0xF00, 0xF0, 0xF), 16), top_down=False)
    with pytest.raises(decoded.ImageUnreadable, match="bitfields"):
        decode.decode_image(bmp(body, bits=16, compression=BITFIELDS, masks=(0xF00, 0xF0, 0xF, 0)))


def test_what_pillow_writes_is_read(photo: np.ndarray) -> None:
    for mode in ("1", "L", "P", "RGB"):
        image = Image.fromarray(photo).convert(mode)
        buffer = io.BytesIO()
        image.save(buffer, "BMP")
        np.testing.assert_array_equal(pixels_of(buffer.getvalue()), np.asarray(image.convert("RGB")))
