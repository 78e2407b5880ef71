"""Every kind of PNG against the values that were written and other readers, and one rule for damaged ones."""

import itertools
import struct
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path

import imagecodecs as codecs
import numpy as np
import pytest
from PIL import Image

from decoding import pixels_of, reason_of
from genenc_core.images.decode import decode, png

GREY, RGB, PALETTE, GREY_ALPHA, RGBA = 0, 2, 3, 4, 6
CHANNELS = {GREY: 1, RGB: 3, PALETTE: 1, GREY_ALPHA: 2, RGBA: 4}
BITS = {GREY: (1, 2, 4, 8, 16), RGB: (8, 16), PALETTE: (1, 2, 4, 8), GREY_ALPHA: (8, 16), RGBA: (8, 16)}
KINDS = [(kind, bits) for kind, all_bits in BITS.items() for bits in all_bits]
ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
Chunk = tuple[bytes, bytes]


def chunk(name: bytes, body: bytes, *, damaged: bool = False) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body) ^ int(damaged))


def header(kind: int, bits: int, size: tuple[int, int], *, interlaced: bool = False) -> Chunk:
    return b"IHDR", struct.pack(">IIBBBBB", size[1], size[0], bits, kind, 0, 0, interlaced)


def file(*chunks: Chunk, damaged: bytes = b"") -> bytes:
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(name, body, damaged=name == damaged) for name, body in chunks)


def lines(values: np.ndarray, bits: int) -> bytes:
    out = b""
    for row in values.reshape(len(values), -1):
        if bits == 16:
            out += b"\0" + row.astype(">u2").tobytes()
        else:
            out += b"\0" + np.packbits(np.unpackbits(row.astype(np.uint8)[:, None], axis=1)[:, 8 - bits :]).tobytes()
    return out


def packed(values: np.ndarray, bits: int, *, interlaced: bool = False) -> bytes:
    parts = [values]
    if interlaced:
        parts = [values[top::down, left::across] for left, top, across, down in ADAM7]
    return zlib.compress(b"".join(lines(part, bits) for part in parts if part.size))


def written(
    values: np.ndarray, kind: int, bits: int, *, interlaced: bool = False, extra: Sequence[Chunk] = ()
) -> bytes:
    head = header(kind, bits, values.shape[:2], interlaced=interlaced)
    return file(head, *extra, (b"IDAT", packed(values, bits, interlaced=interlaced)), (b"IEND", b""))


def over_black(samples: np.ndarray, largest: int) -> np.ndarray:
    """Samples of 1 to 4 channels, the last of 2 or 4 alpha, as exact RGB in 0 to 255."""
    values = samples / largest
    alpha = values[..., -1:] if values.shape[2] in (2, 4) else 1.0
    colour = values[..., : 1 if values.shape[2] < 3 else 3]
    exact: np.ndarray = np.broadcast_to(colour * alpha * 255, (*samples.shape[:2], 3))
    return exact


def libpng(data: bytes) -> np.ndarray:
    """What libpng makes of it by another way, with transparency as alpha."""
    found: np.ndarray = codecs.png_decode(data)
    return over_black(found.reshape(*found.shape[:2], -1), int(np.iinfo(found.dtype).max))


@pytest.mark.parametrize("colours", [1, 3, 10, 255])
def test_indices_beyond_the_palette_are_refused(colours: int) -> None:
    palette = np.random.default_rng(colours).integers(0, 256, (colours, 3), dtype=np.uint8)
    for alphas, interlaced in itertools.product((0, 1, 3), (False, True)):
        alpha = np.full(colours, 255)
        alpha[:alphas] = 100
        extra: list[Chunk] = [(b"PLTE", palette.tobytes())]
        if alphas:
            extra.append((b"tRNS", alpha[:alphas].astype(np.uint8).tobytes()))
        values = np.zeros((9, 13, 1), dtype=np.uint8)
        for bits in (bits for bits in (1, 2, 4, 8) if 2**bits > colours):
            values[5, 7] = colours - 1
            expected = over_black(np.concatenate([palette, alpha[:, None]], axis=1)[values[..., 0]], 255)
            data = written(values, PALETTE, bits, interlaced=interlaced, extra=extra)
            assert np.abs(pixels_of(data) - expected).max() <= 1
            for index in {colours, 2**bits - 1}:
                values[5, 7] = index
                data = written(values, PALETTE, bits, interlaced=interlaced, extra=extra)
                assert f"has index {index} in a palette of {colours} colours" in reason_of(data)


@pytest.mark.parametrize(
    ("kind", "bits", "transparent"),
    [(*one, clear) for one in KINDS for clear in (False, True) if not clear or one[0] not in (GREY_ALPHA, RGBA)],
)
def test_every_kind(kind: int, bits: int, transparent: bool) -> None:
    """Grey and RGB with a transparent colour compare it in the file's own bits; a palette has an alpha per entry."""
    draw = np.random.default_rng(bits)
    for size, interlaced in itertools.product([(9, 13), (1, 1), (1, 9), (17, 2)], (False, True)):
        values = draw.integers(0, 2**bits, (*size, CHANNELS[kind]))
        palette = draw.integers(0, 256, (2**bits, 3))
        extra: list[Chunk] = [(b"PLTE", palette.astype(np.uint8).tobytes())] if kind == PALETTE else []
        expected = over_black(values, 2**bits - 1)
        if kind == PALETTE:
            alpha = np.full(2**bits, 255)
            alpha[: 2**bits - 1] = draw.integers(0, 256, 2**bits - 1) if transparent else 255
            expected = over_black(np.concatenate([palette, alpha[:, None]], axis=1)[values[..., 0]], 255)
            if transparent:
                extra.append((b"tRNS", alpha[:-1].astype(np.uint8).tobytes()))
        elif transparent:
            one = values[size[0] // 2, size[1] // 2]
            values[0, 0] = one ^ 1  # in its lowest bits another colour
            expected = over_black(values, 2**bits - 1) * (values != one).any(axis=2, keepdims=True)
            extra.append((b"tRNS", one.astype(">u2").tobytes()))
        data = written(values, kind, bits, interlaced=interlaced, extra=extra)
        tolerance = 1 if kind in (GREY_ALPHA, RGBA) or transparent else 0.5
        assert np.abs(pixels_of(data) - expected).max() <= tolerance, (size, interlaced)
        assert np.abs(libpng(data) - expected).max() < 1e-6


@pytest.mark.parametrize("bits", [1, 2, 4, 8, 16])
def test_each_grey_value_is_transparent_alone(bits: int) -> None:
    values = np.arange(min(2**bits, 256))[None, :, None] * (257 if bits == 16 else 1)
    for value in values[0, :, 0]:
        data = written(values, GREY, bits, extra=[(b"tRNS", struct.pack(">H", value))])
        expected = np.rint(over_black(values, 2**bits - 1)) * (values != value)
        np.testing.assert_array_equal(pixels_of(data), expected)


PHOTO_LIKE = np.random.default_rng(0).integers(0, 256, (6, 5, 3))
WIDE = PHOTO_LIKE * 257
CASES = {"8 bits": (PHOTO_LIKE, 8), "16 bits": (WIDE, 16)}
TEXT, GAMMA, PROFILE = (b"tEXt", b"a\0b"), (b"gAMA", struct.pack(">I", 45455)), (b"iCCP", b"x\0\0not packed")
EXIF = b"MM\0*\0\0\0\x08\0\1\x01\x12\0\3\0\0\0\1\0\6\0\0\0\0\0\0"


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", [b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"eXIf", b"IEND"])
def test_a_chunk_that_decides_pixels_must_have_its_checksum(case: str, name: bytes) -> None:
    values, bits = CASES[case]
    chunks = [
        header(RGB, bits, (6, 5)),
        (b"PLTE", bytes(6)),
        (b"tRNS", bytes(6)),
        (b"IDAT", packed(values, bits)),
        (b"eXIf", EXIF),
        (b"IEND", b""),
    ]
    np.testing.assert_array_equal(pixels_of(file(*chunks)), np.rot90(PHOTO_LIKE, 3))
    assert f"{name.decode()} has a wrong checksum" in reason_of(file(*chunks, damaged=name))


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("other", [TEXT, GAMMA, PROFILE, (b"tIME", b""), (b"sBIT", b"\1\1\1"), (b"zTXt", b"a\0\0zzz")])
def test_other_chunks_are_not_read(case: str, other: Chunk) -> None:
    """Texts, gamma and colour profiles change nothing, damaged or whole, before the pixels or behind them."""
    values, bits = CASES[case]
    head, body, end = header(RGB, bits, (6, 5)), (b"IDAT", packed(values, bits)), (b"IEND", b"")
    for damaged in (b"", other[0]):
        np.testing.assert_array_equal(pixels_of(file(head, other, body, end, damaged=damaged)), PHOTO_LIKE)
        np.testing.assert_array_equal(pixels_of(file(head, body, other, end, damaged=damaged)), PHOTO_LIKE)
    assert png.parse(file(head, other, body, end)).essential == file(head, body, end)


@pytest.mark.parametrize("case", CASES)
def test_chunks_out_of_order_are_refused(case: str) -> None:
    values, bits = CASES[case]
    head, body, end = header(RGB, bits, (6, 5)), (b"IDAT", packed(values, bits)), (b"IEND", b"")
    transparent = (b"tRNS", bytes(6))
    for chunks in (
        (body, head, end),
        (head, head, body, end),
        (head, end),
        (head, body, transparent, end),
        (head, transparent, transparent, body, end),
        (head, transparent, (b"PLTE", bytes(3)), body, end),
        (body, end),
    ):
        assert "missing or out of order" in reason_of(file(*chunks))
    assert "unknown critical chunk" in reason_of(file(head, (b"CgBI", bytes(4)), body, end))
    assert "without a palette" in reason_of(file(header(PALETTE, 8, (6, 5)), body, end))
    assert "invalid header" in reason_of(file(header(RGB, 4, (6, 5)), body, end))
    assert "2 bytes" in reason_of(file(head, (b"tRNS", b"\0\0"), body, end))
    np.testing.assert_array_equal(pixels_of(file(head, body, end) + b"more behind"), PHOTO_LIKE)


@pytest.mark.parametrize("case", CASES)
def test_a_png_that_is_cut_off_is_refused(case: str) -> None:
    values, bits = CASES[case]
    data = written(values, RGB, bits)
    for end in range(8, len(data)):
        assert "PNG" in reason_of(data[:end])


@pytest.mark.parametrize("interlaced", [False, True])
@pytest.mark.parametrize(("kind", "bits"), KINDS)
def test_pixels_that_contradict_the_header_are_refused(kind: int, bits: int, interlaced: bool) -> None:
    """Whole rows that are missing at the end of a stream that is itself whole too; more than announced is ignored."""
    values = np.random.default_rng(3).integers(0, 2**bits, (8, 11, CHANNELS[kind]))
    head, end = header(kind, bits, (8, 11), interlaced=interlaced), (b"IEND", b"")
    start = [head, (b"PLTE", bytes(range(3)) * 2**bits)] if kind == PALETTE else [head]
    body = zlib.decompress(packed(values, bits, interlaced=interlaced))
    line = 1 + (bits * CHANNELS[kind] * 11 + 7) // 8
    wrong = bytearray(zlib.compress(body))
    wrong[-1] ^= 1
    for stream in (
        zlib.compress(body[:-1]),
        *(zlib.compress(body[: -rows * line]) for rows in (1, 2, 4)),
        zlib.compress(b"\5" + body[1:]),
        zlib.compress(body)[: len(body) // 2],
        bytes(wrong),
    ):
        assert "PNG" in reason_of(file(*start, (b"IDAT", stream), end))
    whole = pixels_of(file(*start, (b"IDAT", zlib.compress(body)), end))
    for more in (zlib.compress(body + body), zlib.compress(body) + b"more"):
        np.testing.assert_array_equal(pixels_of(file(*start, (b"IDAT", more), end)), whole)


def test_more_rows_announced_than_there_are_is_a_reason(photo: np.ndarray) -> None:
    """The file that a fuzzer found: Pillow takes it, and torchvision's decoder died of it with a segmentation fault."""
    data = file(header(RGB, 16, (65536, 60)), (b"IDAT", packed(photo.astype(int), 16)), (b"IEND", b""))
    assert "fewer pixels" in reason_of(data)


@pytest.mark.parametrize("bits", [8, 16])
def test_of_an_animation_the_still_image_is_read(bits: int) -> None:
    """The image that viewers without animations show, whether it is the first frame or not."""
    values = np.random.default_rng(1).integers(0, 2**bits, (6, 5, 3))
    other = np.random.default_rng(2).integers(0, 2**bits, (6, 5, 3))
    control = struct.pack(">IIIIIHHBB", 0, 5, 6, 0, 0, 1, 10, 0, 0)
    frame = (b"fdAT", struct.pack(">I", 1) + packed(other, bits))
    still = (b"IDAT", packed(values, bits))
    head, animated = header(RGB, bits, (6, 5)), (b"acTL", struct.pack(">II", 1, 0))
    for chunks in itertools.chain(
        [(head, animated, still, (b"fcTL", control), frame, (b"IEND", b""))],
        [(head, animated, (b"fcTL", control), still, (b"IEND", b""))],
    ):
        np.testing.assert_array_equal(pixels_of(file(*chunks)), np.rint(over_black(values, 2**bits - 1)))


def test_pillow_agrees(photo: np.ndarray, encode: Callable[..., bytes]) -> None:
    for mode in ("1", "L", "P", "RGB", "LA", "RGBA"):
        image = Image.fromarray(photo).convert(mode)
        expected = np.asarray(image.convert("RGB"))  # alpha is full
        np.testing.assert_array_equal(pixels_of(encode(image, "PNG")), expected)


@pytest.mark.parametrize("blank", [True, False])
def test_a_palette_whose_alpha_was_left_blank_keeps_its_colours(tmp_path: Path, blank: bool) -> None:
    """As PNG optimisers write an RGBA image of few colours; an index that no pixel has does not count."""
    indices = np.random.default_rng(0).integers(0, 6, (20, 30), np.uint8)
    image = Image.fromarray(indices).convert("P")
    image.putpalette([value for index in range(8) for value in (index * 30, 200 - index * 20, 7)])
    image.save(tmp_path / "p.png", transparency=bytes([0] * 6 + [255] * 2) if blank else bytes([0] * 5 + [255] * 3))
    pixels = decode.decode_image((tmp_path / "p.png").read_bytes()).pixels.permute(1, 2, 0).numpy()
    expected = np.stack([indices * 30, 200 - indices * 20, np.full_like(indices, 7)], axis=-1)
    if not blank:
        expected[indices < 5] = 0
    np.testing.assert_array_equal(pixels, expected)
