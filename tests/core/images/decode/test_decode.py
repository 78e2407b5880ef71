"""Every kind of image file has one stated rule, and every bad one a reason."""

import io
import resource
import struct
import warnings
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from decoding import pixels_of, reason_of
from genenc_core.images.decode import decode, decoded, headers

Encode = Callable[..., bytes]


def exif_with(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif.tobytes()


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 0}, {"quality": 30}])
def test_jpeg_equals_pillow(photo: np.ndarray, encode: Encode, options: dict[str, object]) -> None:
    """The fast JPEG path gives the very pixels of Pillow."""
    data = encode(Image.fromarray(photo), "JPEG", **options)
    expected = np.asarray(Image.open(io.BytesIO(data)))
    np.testing.assert_array_equal(pixels_of(data), expected)


@pytest.mark.slow
@pytest.mark.parametrize("size", [(1500, 900), (900, 2331), (2**20 + 3, 2)])
def test_images_larger_than_a_band_come_back_whole(size: tuple[int, int], encode: Encode) -> None:
    """Pillow's pixels are taken over in bands of a megapixel; also where one row is longer than that."""
    noise = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    for extra in ({}, {"exif": exif_with(6)}):
        expected = noise if not extra else np.rot90(noise, 3)
        found = pixels_of(encode(Image.fromarray(noise), "PNG", compress_level=0, **extra))
        np.testing.assert_array_equal(found, expected)


def test_jpeg_is_channels_last(photo: np.ndarray, encode: Encode) -> None:
    """The resize's fast path needs the decoder's channels-last memory, also after a rotation."""
    for orientation in (1, 6):
        data = encode(Image.fromarray(photo), "JPEG", exif=exif_with(orientation))
        pixels = decode.decode_image(data).pixels
        assert pixels.permute(1, 2, 0).is_contiguous()


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "BMP", "PPM", "WEBP", "GIF"])
def test_grey_is_replicated(photo: np.ndarray, encode: Encode, kind: str) -> None:
    data = encode(Image.fromarray(photo[..., 0]), kind, **({"lossless": True} if kind == "WEBP" else {}))
    pixels = pixels_of(data)
    if kind != "JPEG":
        np.testing.assert_array_equal(pixels[..., 0], photo[..., 0])
    assert (pixels == pixels[..., :1]).all()
    assert len(np.unique(pixels)) > 50


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "BMP", "PPM", "WEBP"])
def test_rgb_is_kept(photo: np.ndarray, encode: Encode, kind: str) -> None:
    data = encode(Image.fromarray(photo), kind, **({"lossless": True} if kind == "WEBP" else {}))
    np.testing.assert_array_equal(pixels_of(data), photo)


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PPM"])
def test_one_bit_is_0_or_255(photo: np.ndarray, encode: Encode, kind: str) -> None:
    bits = photo[..., 0] > 120
    np.testing.assert_array_equal(
        pixels_of(encode(Image.fromarray(bits), kind)), np.repeat(bits[..., None], 3, 2) * 255
    )


@pytest.mark.parametrize("kind", ["GIF", "PNG"])
def test_palette_becomes_rgb(photo: np.ndarray, encode: Encode, kind: str) -> None:
    image = Image.fromarray(photo).quantize(32)
    np.testing.assert_array_equal(pixels_of(encode(image, kind)), np.asarray(image.convert("RGB")))


@pytest.mark.parametrize("kind", ["GIF", "PNG"])
def test_transparent_palette_entry_is_black(encode: Encode, kind: str) -> None:
    image = Image.fromarray(np.array([[0, 1, 2]], dtype=np.uint8), mode="P")
    image.putpalette([10, 20, 30, 200, 210, 220, 90, 80, 70])
    data = encode(image, kind, transparency=1)
    np.testing.assert_array_equal(pixels_of(data), [[[10, 20, 30], [0, 0, 0], [90, 80, 70]]])


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP"])
def test_alpha_is_composited_over_black(photo: np.ndarray, encode: Encode, kind: str) -> None:
    """round(colour * alpha / 255) in every channel, as compositing over black says."""
    alpha = np.linspace(0, 255, photo.shape[1]).astype(np.uint8)[None].repeat(len(photo), 0)
    rgba = np.dstack([photo, alpha])
    data = encode(Image.fromarray(rgba), kind, **({"lossless": True, "exact": True} if kind == "WEBP" else {}))
    expected = np.rint(photo * (alpha[..., None] / 255))
    np.testing.assert_allclose(pixels_of(data), expected, atol=0.5)


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP"])
def test_alpha_that_is_zero_everywhere_was_left_blank(photo: np.ndarray, encode: Encode, kind: str) -> None:
    """As of screen captures and depth cameras, whose fourth byte means nothing."""
    rgba = np.dstack([photo, np.zeros(photo.shape[:2], np.uint8)])
    data = encode(Image.fromarray(rgba), kind, **({"lossless": True, "exact": True} if kind == "WEBP" else {}))
    np.testing.assert_array_equal(pixels_of(data), photo)


def test_grey_alpha_and_transparent_colour(photo: np.ndarray, encode: Encode) -> None:
    grey_alpha = np.dstack([photo[..., 0], np.full(photo.shape[:2], 128, np.uint8)])
    expected = np.rint(photo[..., :1] * (128 / 255)).repeat(3, 2)
    np.testing.assert_allclose(pixels_of(encode(Image.fromarray(grey_alpha), "PNG")), expected, atol=0.5)
    key = tuple(int(value) for value in photo[3, 4])
    pixels = pixels_of(encode(Image.fromarray(photo), "PNG", transparency=key))
    assert tuple(pixels[3, 4]) == (0, 0, 0)
    np.testing.assert_array_equal(pixels[0], photo[0])


def test_cmyk_jpeg_by_adobe_marker(photo: np.ndarray, encode: Encode) -> None:
    """With an Adobe marker the inks are inverted (as Adobe and Pillow write them), without one they are not."""
    data = encode(Image.fromarray(photo).convert("CMYK"), "JPEG", quality=95)
    expected = np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).astype(int)
    np.testing.assert_array_equal(pixels_of(data), expected)
    assert np.abs(expected - photo).mean() < 12
    at = data.index(b"\xff\xee")
    plain = data[:at] + data[at + 2 + int.from_bytes(data[at + 2 : at + 4], "big") :]
    inks = 255 - np.asarray(Image.open(io.BytesIO(data))).astype(int)
    colour = (255 - inks[..., :3]) * (255 - inks[..., 3:]) / 255
    np.testing.assert_allclose(pixels_of(plain), colour, atol=1.5)


def test_ycck_jpeg(photo: np.ndarray, encode: Encode) -> None:
    """A four-component JPEG marked YCCK is turned to CMYK before RGB, as Pillow does."""
    data = bytearray(encode(Image.fromarray(photo).convert("CMYK"), "JPEG"))
    at = data.index(b"Adobe")
    data[at + 11] = 2
    expected = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    np.testing.assert_array_equal(pixels_of(bytes(data)), expected)


def test_every_16_bit_value_is_scaled_not_saturated(png16: Encode, encode: Encode) -> None:
    """round(v * 255 / 65535) for all 65536 grey values, in PNG, TIFF and PGM."""
    values = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    expected = np.rint(values * (255 / 65535))[..., None].repeat(3, 2)
    np.testing.assert_array_equal(pixels_of(png16(values[..., None])), expected)
    np.testing.assert_array_equal(pixels_of(encode(Image.fromarray(values), "TIFF")), expected)
    pgm = b"P5\n256 256\n65535\n" + values.astype(">u2").tobytes()
    np.testing.assert_array_equal(pixels_of(pgm), expected)


def test_big_endian_16_bit_tiff() -> None:
    values = np.array([[0, 257, 32768, 65535]], dtype=">u2")
    entries = [(256, 4, 4), (257, 4, 1), (258, 3, 16), (259, 3, 1), (262, 3, 1), (273, 4, 8), (277, 3, 1), (279, 4, 8)]
    ifd = struct.pack(">H", len(entries))
    for tag, kind, value in entries:
        ifd += struct.pack(">HHI", tag, kind, 1) + (
            struct.pack(">HH", value, 0) if kind == 3 else struct.pack(">I", value)
        )
    data = b"MM\0*" + struct.pack(">I", 16) + values.tobytes() + ifd + bytes(4)
    np.testing.assert_array_equal(pixels_of(data)[0, :, 0], [0, 1, 128, 255])


def test_16_bit_rgb_png(png16: Encode) -> None:
    values = np.random.default_rng(1).integers(0, 65536, (9, 11, 3), dtype=np.uint16)
    np.testing.assert_array_equal(pixels_of(png16(values)), np.rint(values * (255 / 65535)))


@pytest.mark.parametrize("channels", [2, 4])
def test_16_bit_png_with_alpha(png16: Encode, channels: int) -> None:
    values = np.random.default_rng(2).integers(0, 65536, (9, 11, channels), dtype=np.uint16)
    values[0, :, -1], values[1, :, -1] = 65535, 0
    exact = np.broadcast_to(values[..., :-1] * (values[..., -1:] / 65535) * (255 / 65535), (9, 11, 3))
    pixels = pixels_of(png16(values))
    np.testing.assert_allclose(pixels, exact, atol=0.51)
    np.testing.assert_array_equal(pixels[0], np.rint(exact[0]))
    assert not pixels[1].any()
    values[..., -1] = 0
    np.testing.assert_allclose(pixels_of(png16(values)), values[..., :-1] * (255 / 65535) * np.ones(3), atol=0.51)


def test_16_bit_png_transparent_colour(png16: Encode, png_chunk: Callable[[bytes, bytes], bytes]) -> None:
    grey = np.array([[[1000], [65535]]], dtype=np.uint16)
    pixels = pixels_of(png16(grey, extra=png_chunk(b"tRNS", struct.pack(">H", 65535))))
    np.testing.assert_array_equal(pixels[..., 0], [[4, 0]])
    colour = np.array([[[1000, 2000, 3000], [65535, 0, 0]]], dtype=np.uint16)
    pixels = pixels_of(png16(colour, extra=png_chunk(b"tRNS", struct.pack(">HHH", 65535, 0, 0))))
    np.testing.assert_array_equal(pixels, [[[4, 8, 12], [0, 0, 0]]])


def test_wide_pixels_need_a_known_range(encode: Encode) -> None:
    """32-bit integers count as 16-bit, floats as [0, 1]; others, and integers that may be 8-bit, are refused."""
    integers = np.array([[0, 256, 65535]], dtype=np.int32)
    np.testing.assert_array_equal(pixels_of(encode(Image.fromarray(integers), "TIFF"))[0, :, 0], [0, 1, 255])
    floats = np.array([[0.0, 0.5, 1.0]], dtype=np.float32)
    np.testing.assert_array_equal(pixels_of(encode(Image.fromarray(floats), "TIFF"))[0, :, 0], [0, 128, 255])
    for bad in (integers + 1, integers - 1, floats * 2, floats - 0.1, np.float32([[np.nan, 0.5]])):
        assert "known scale" in reason_of(encode(Image.fromarray(bad), "TIFF"))
    assert "white may be 255 or 65535" in reason_of(encode(Image.fromarray(np.int32([[0, 255]])), "TIFF"))


@pytest.mark.parametrize("kind", ["GIF", "TIFF", "PNG", "WEBP"])
def test_first_frame_is_taken(photo: np.ndarray, encode: Encode, kind: str) -> None:
    first, second = (Image.fromarray(array).convert("L") for array in (photo, 255 - photo))
    options = {"lossless": True} if kind == "WEBP" else {}
    data = encode(first, kind, save_all=True, append_images=[second], **options)
    np.testing.assert_array_equal(pixels_of(data)[..., 0], np.asarray(first))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "TIFF lzw"])
def test_exif_orientation_is_applied_once(photo: np.ndarray, encode: Encode, kind: str, orientation: int) -> None:
    options = {"TIFF lzw": {"compression": "tiff_lzw"}, "WEBP": {"lossless": True}}.get(kind, {})
    data = encode(Image.fromarray(photo), kind.split()[0], exif=exif_with(orientation), **options)
    decoded = decode.decode_image(data)
    assert decoded.orientation == orientation
    raw = encode(Image.fromarray(photo), kind.split()[0], **options)
    turned = Image.fromarray(pixels_of(raw))
    turned.getexif()[0x0112] = orientation
    expected = np.asarray(ImageOps.exif_transpose(turned))
    np.testing.assert_array_equal(decoded.pixels.permute(1, 2, 0).numpy(), expected)


@pytest.mark.parametrize("exif", [b"", b"junk", b"II*\0", b"II*\0\xff\xff\xff\xff", b"MM\0*\0\0\0\x08\0\x05\x01\x12"])
def test_damaged_exif_is_upright(photo: np.ndarray, encode: Encode, exif: bytes) -> None:
    data = encode(Image.fromarray(photo), "JPEG", exif=b"Exif\0\0" + exif)
    assert decode.decode_image(data).orientation == 1


def test_orientation_outside_1_to_8_counts_as_1() -> None:
    assert headers.exif_orientation(exif_with(9)) == 1
    assert headers.exif_orientation(exif_with(0)) == 1
    assert headers.exif_orientation(exif_with(8)) == 8


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "TIFF", "BMP", "WEBP", "PPM"])
def test_truncated_file_is_unreadable(photo: np.ndarray, encode: Encode, kind: str) -> None:
    """A file cut anywhere is refused, never filled with grey."""
    data = encode(Image.fromarray(photo), kind)
    for kept in (1, 3, 12, 30, len(data) // 3, len(data) // 2, len(data) * 3 // 4):
        reason_of(data[:kept])


def test_jpeg_without_its_end_is_unreadable(photo: np.ndarray, encode: Encode) -> None:
    data = encode(Image.fromarray(photo), "JPEG")
    assert "truncated" in reason_of(data[:-2])
    assert pixels_of(data + b"trailing junk").shape == photo.shape


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "empty"),
        (b"\n <!DOCTYPE html><html></html>", "HTML"),
        (b"<HTML><body>404</body></HTML>", "HTML"),
        (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS"),
        (b"%PDF-1.7", "PDF"),
        (b"\0\0\0\x1cftypheic\0\0\0\0", "HE"),
        (b"%!PS-Adobe-3.0 EPSF-3.0", "not a known image format"),
        (b"RIFF\x24\0\0\0WAVEfmt ", "not a known image format"),
        (bytes(100), "not a known image format"),
    ],
)
def test_what_is_no_image_says_so(data: bytes, words: str) -> None:
    assert words in reason_of(data)


def _bombs(encode: Encode, photo: np.ndarray, png_chunk: Callable[[bytes, bytes], bytes]) -> dict[str, bytes]:
    jpeg = bytearray(encode(Image.fromarray(photo), "JPEG"))
    at = jpeg.index(b"\xff\xc0")
    jpeg[at + 5 : at + 9] = struct.pack(">HH", 60000, 60000)
    gif = bytearray(encode(Image.fromarray(photo[..., 0]), "GIF"))
    gif[6:10] = struct.pack("<HH", 60000, 60000)
    bmp = bytearray(encode(Image.fromarray(photo), "BMP"))
    bmp[18:26] = struct.pack("<ii", 60000, 60000)
    png_header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0))
    return {
        "JPEG": bytes(jpeg),
        "CMYK JPEG": bytes(jpeg[: at + 9] + b"\x04" + jpeg[at + 10 :]),
        "GIF": bytes(gif),
        "BMP": bytes(bmp),
        "PNG": b"\x89PNG\r\n\x1a\n" + png_header + png_chunk(b"IDAT", b"x") + png_chunk(b"IEND", b""),
        "PPM": b"P6\n60000 60000\n255\n" + bytes(100),
    }


@pytest.mark.parametrize("kind", ["JPEG", "CMYK JPEG", "GIF", "BMP", "PNG", "PPM"])
def test_absurd_dimensions_are_refused_before_allocation(
    encode: Encode, photo: np.ndarray, png_chunk: Callable[[bytes, bytes], bytes], kind: str
) -> None:
    data = _bombs(encode, photo, png_chunk)[kind]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    reason = reason_of(data)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300_000  # KiB; the pixels would be 10 GB
    if kind != "CMYK JPEG":
        assert "60000 x 60000" in reason
        assert "400 megapixels" in reason


@pytest.mark.parametrize("kind", ["PNG", "BMP", "PPM", "GIF", "JPEG"])
def test_only_our_own_size_limit_counts(
    photo: np.ndarray, encode: Encode, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """An image above Pillow's warning and error limits, but below ours, is read without a word."""
    data = encode(Image.fromarray(photo).convert("CMYK" if kind == "JPEG" else "RGB"), kind)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", photo[..., 0].size // 3 if kind != "GIF" else photo[..., 0].size - 1)
    with pytest.warns(Image.DecompressionBombWarning) if kind == "GIF" else pytest.raises(Image.DecompressionBombError):
        Image.open(io.BytesIO(data))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert pixels_of(data).shape == photo.shape
    assert not caught


def test_no_word_on_the_console(
    photo: np.ndarray, png16: Encode, encode: Encode, capfd: pytest.CaptureFixture[str]
) -> None:
    """Codecs and Pillow stay silent about good files, truncated files and odd metadata."""
    palette = Image.fromarray(photo).quantize(8)
    tiff = encode(Image.fromarray(photo), "TIFF", compression="tiff_lzw", exif=exif_with(6))
    deep = png16(np.repeat(photo[..., None][..., 0].astype(np.uint16) * 257, 1, axis=2))
    icc = encode(Image.fromarray(photo), "PNG", icc_profile=b"not a profile")
    files = [tiff, deep, icc, encode(palette, "PNG", transparency=bytes([0, 50, 100, 255]))]
    files += [encode(Image.fromarray(photo), "JPEG", exif=b"Exif\0\0II*\0\x08\0\0\0\xff\xff")]
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        for data in files:
            decode.decode_image(data)
            for kept in (len(data) // 4, len(data) // 2):
                with pytest.raises(decoded.ImageUnreadable):
                    decode.decode_image(data[:kept])
    captured = capfd.readouterr()
    assert captured.err == ""
    assert captured.out == ""


@settings(max_examples=150, deadline=None)
@given(kind=st.sampled_from(["JPEG", "PNG", "GIF", "BMP", "WEBP", "PPM"]), data=st.data())
def test_damaged_bytes_are_read_or_refused(kind: str, data: st.DataObject) -> None:
    """Whatever bytes are changed behind the header, the answer is an image of the right size or ImageUnreadable."""
    buffer = io.BytesIO()
    Image.fromarray(np.arange(30 * 20 * 3, dtype=np.uint16).astype(np.uint8).reshape(20, 30, 3)).save(buffer, kind)
    damaged = bytearray(buffer.getvalue())
    for _ in range(data.draw(st.integers(1, 5))):
        damaged[data.draw(st.integers(min(60, len(damaged) - 1), len(damaged) - 1))] = data.draw(st.integers(0, 255))
    try:
        pixels = decode.decode_image(bytes(damaged)).pixels
    except decoded.ImageUnreadable:
        return
    assert pixels.dtype == torch.uint8
    assert pixels.shape[0] == 3


@settings(max_examples=100, deadline=None)
@given(
    st.binary(max_size=200),
    st.sampled_from([b"", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF89a", b"II*\0", b"MM\0*"]),
)
def test_random_bytes_are_refused(body: bytes, prefix: bytes) -> None:
    with pytest.raises(decoded.ImageUnreadable):
        decode.decode_image(prefix + body)
