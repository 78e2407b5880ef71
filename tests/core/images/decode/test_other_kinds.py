"""PNM, GIF and WebP against the values that were written; kinds that no reader takes are refused with a reason."""

import io
import struct
from collections.abc import Callable

import imagecodecs
import numpy as np
import pytest
from PIL import Image

import decoding
from genenc_core.images.decode import decode, decoded

HEIGHT, WIDTH = 5, 13


def pixels_of(data: bytes) -> np.ndarray:
    return decoding.pixels_of(data).astype(float)


@pytest.mark.parametrize("largest", [1, 3, 15, 100, 254, 255, 256, 1000, 1023, 4095, 65534, 65535])
@pytest.mark.parametrize("kind", [b"P2", b"P3", b"P5", b"P6"])
def test_pnm_of_every_range(kind: bytes, largest: int) -> None:
    """Samples of more than 8 bits have their upper byte first."""
    channels = 3 if kind in (b"P3", b"P6") else 1
    values = np.random.default_rng(largest).integers(0, largest + 1, (HEIGHT, WIDTH, channels))
    values[0, 0], values[0, 1] = 0, largest
    body = values.astype(">u2" if largest > 255 else "u1").tobytes()
    if kind in (b"P2", b"P3"):
        body = " ".join(map(str, values.ravel())).encode()
    data = b"%s\n# a comment\n%d %d\n%d\n" % (kind, WIDTH, HEIGHT, largest) + body
    assert np.abs(pixels_of(data) - values / largest * 255).max() <= 1
    with pytest.raises(decoded.ImageUnreadable):
        decode.decode_image(data[: len(data) // 2])


@pytest.mark.parametrize("largest", [1, 200, 254, 256, 4095, 65534])
@pytest.mark.parametrize("kind", [b"P2", b"P3", b"P5", b"P6"])
def test_pnm_samples_above_the_stated_largest_are_refused(kind: bytes, largest: int) -> None:
    values = np.zeros((HEIGHT, WIDTH, 3 if kind in (b"P3", b"P6") else 1), dtype=int)
    values[-1, -1, -1] = largest + 1
    body = values.astype(">u2" if largest > 255 else "u1").tobytes()
    if kind in (b"P2", b"P3"):
        body = " ".join(map(str, values.ravel())).encode()
    with pytest.raises(decoded.ImageUnreadable, match=str(largest + 1)):
        decode.decode_image(b"%s %d %d %d\n" % (kind, WIDTH, HEIGHT, largest) + body)


@pytest.mark.parametrize("transparent", [False, True])
def test_gif_indices_beyond_the_palette_are_refused(transparent: bool) -> None:
    """But for a transparent one, which is black whatever its colour is."""
    palette = np.random.default_rng(3).integers(1, 256, (256, 3), dtype=np.uint8)
    image = Image.fromarray(np.full((HEIGHT, WIDTH), 3, dtype=np.uint8), mode="P")
    image.putpixel((2, 1), 77)
    image.putpalette(palette.tobytes())
    buffer = io.BytesIO()
    image.save(buffer, "GIF", optimize=False, **({"transparency": 77} if transparent else {}))
    data = buffer.getvalue()
    table = palette.tobytes()
    assert data[13:].startswith(table)
    cut = data[:10] + bytes([data[10] & 0xF8 | 1]) + data[11:13] + table[:12] + data[13 + len(table) :]
    if transparent:
        expected = np.tile(palette[3].astype(float), (HEIGHT, WIDTH, 1))
        expected[1, 2] = 0
        np.testing.assert_array_equal(pixels_of(cut), expected)
    else:
        with pytest.raises(decoded.ImageUnreadable, match="index 77 in a palette of 4"):
            decode.decode_image(cut)


@pytest.mark.parametrize("kind", [b"P1", b"P4"])
def test_pnm_of_one_bit(kind: bytes) -> None:
    """A set bit is black."""
    bits = np.random.default_rng(0).integers(0, 2, (HEIGHT, WIDTH))
    body = np.packbits(bits, axis=1).tobytes() if kind == b"P4" else " ".join(map(str, bits.ravel())).encode()
    found = pixels_of(b"%s %d %d\n" % (kind, WIDTH, HEIGHT) + body)
    np.testing.assert_array_equal(found, np.repeat((1 - bits)[..., None] * 255.0, 3, axis=2))


PALETTE = np.stack([np.arange(256), 255 - np.arange(256), np.arange(256) // 2], axis=1)


def gif(indices: np.ndarray, *, frame: tuple[int, int] = (0, 0), transparent: int | None = None, cut: int = 0) -> bytes:
    """A GIF of 20 x 30 pixels whose one frame lies at `frame` (top, left), in codes of 9 bits."""
    codes: list[int] = []
    for at, index in enumerate(indices.ravel()[: indices.size - cut]):
        codes += [256, int(index)] if at % 200 == 0 else [int(index)]
    bits = "".join(format(code, "09b") for code in [*codes, 257][::-1])
    packed = int(bits, 2).to_bytes((len(bits) + 7) // 8, "little")
    blocks = b"".join(bytes((len(part),)) + part for part in (packed[i : i + 255] for i in range(0, len(packed), 255)))
    control = b"" if transparent is None else b"!\xf9\x04\x01\0\0" + bytes((transparent, 0))
    place = struct.pack("<HHHHB", frame[1], frame[0], indices.shape[1], indices.shape[0], 0)
    head = b"GIF89a" + struct.pack("<HHBBB", 30, 20, 0xF7, 9, 0) + PALETTE.astype(np.uint8).tobytes()
    return head + control + b"," + place + b"\x08" + blocks + b"\0;"


@pytest.mark.parametrize("transparent", [None, 7])
@pytest.mark.parametrize(("shape", "frame"), [((20, 30), (0, 0)), ((10, 12), (5, 6)), ((1, 30), (19, 0))])
def test_gif(shape: tuple[int, int], frame: tuple[int, int], transparent: int | None) -> None:
    """What the first frame leaves uncovered is transparent, as in browsers: black."""
    indices = np.random.default_rng(0).integers(0, 256, shape)
    indices[0, :3] = 7
    colours = PALETTE[indices] * (1 if transparent is None else (indices != transparent)[..., None])
    expected = np.zeros((20, 30, 3))
    expected[frame[0] : frame[0] + shape[0], frame[1] : frame[1] + shape[1]] = colours
    np.testing.assert_array_equal(pixels_of(gif(indices, frame=frame, transparent=transparent)), expected)
    with pytest.raises(decoded.ImageUnreadable):
        decode.decode_image(gif(indices, frame=frame, cut=2))


def test_webp(photo: np.ndarray) -> None:
    """Alpha is composited over black, an animation's first frame counts, and a file that is cut off is refused."""
    alpha = np.linspace(0, 255, photo.shape[1]).astype(np.uint8)[None].repeat(len(photo), axis=0)
    image = Image.fromarray(np.dstack([photo, alpha]))
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", lossless=True, exact=True)
    assert np.abs(pixels_of(buffer.getvalue()) - photo * (alpha[..., None] / 255)).max() <= 1
    buffer = io.BytesIO()
    frames = [Image.fromarray(photo), Image.fromarray(255 - photo)]
    frames[0].save(buffer, "WEBP", save_all=True, append_images=frames[1:], lossless=True)
    np.testing.assert_array_equal(pixels_of(buffer.getvalue()), photo)
    for cut in (1, 20, 200):
        with pytest.raises(decoded.ImageUnreadable):
            decode.decode_image(buffer.getvalue()[:-cut])


def codecs_jpeg(values: np.ndarray, **options: object) -> bytes:
    return bytes(imagecodecs.jpeg_encode(values, **options))


def test_jpegs_of_other_processes(photo: np.ndarray) -> None:
    """A lossless one gives its very values; one of 12 or 16 bits is refused, never read as 8."""
    np.testing.assert_array_equal(pixels_of(codecs_jpeg(photo, lossless=True)), photo)
    for channels in (photo, photo[..., 0]):
        with pytest.raises(decoded.ImageUnreadable, match="12-bit"):
            decode.decode_image(codecs_jpeg(np.ascontiguousarray(channels).astype(np.uint16) * 16, bitspersample=12))


@pytest.mark.parametrize("kind", ["jpeg2k", "jpegls", "jpegxl", "jpegxr"])
def test_kinds_without_a_reader_are_refused(photo: np.ndarray, kind: str) -> None:
    if not getattr(imagecodecs, kind.upper()).available:
        pytest.skip(f"this imagecodecs writes no {kind}")
    encode: Callable[[np.ndarray], bytes] = getattr(imagecodecs, f"{kind}_encode")
    with pytest.raises(decoded.ImageUnreadable):
        decode.decode_image(bytes(encode(photo)))
    buffer = io.BytesIO()
    Image.fromarray(photo).save(buffer, "ICO")
    with pytest.raises(decoded.ImageUnreadable):
        decode.decode_image(buffer.getvalue())


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP"])
def test_a_colour_profile_changes_nothing(photo: np.ndarray, kind: str) -> None:
    from PIL import ImageCms

    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    plain, tagged = io.BytesIO(), io.BytesIO()
    options = {"lossless": True} if kind == "WEBP" else {}
    Image.fromarray(photo).save(plain, kind, **options)
    Image.fromarray(photo).save(tagged, kind, icc_profile=profile, **options)
    assert len(tagged.getvalue()) > len(plain.getvalue())
    np.testing.assert_array_equal(pixels_of(tagged.getvalue()), pixels_of(plain.getvalue()))
