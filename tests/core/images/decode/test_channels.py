"""Channels other than 8-bit RGB: values as tifffile and Pillow read them, chosen, scaled, turned and fitted."""

import contextlib
import io
import struct
import sys
import zlib
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pytest
import tifffile
import torch
from PIL import Image

import forked
from genenc_core import spec
from genenc_core.images.decode import channels, decode, decoded, geometry

HEIGHT, WIDTH = 21, 34


def pixels(kind: str, count: int) -> np.ndarray:
    """Return `[count, H, W]` of a type, with its smallest and largest usual values."""
    drawn = np.random.default_rng(count).random((count, HEIGHT, WIDTH))
    drawn[:, 0, 0], drawn[:, -1, -1] = 0, 1
    if kind.startswith("float"):
        return drawn.astype(kind)
    return np.rint(drawn * np.iinfo(kind).max).astype(kind)


def tiff(values: np.ndarray, **options: Any) -> bytes:
    """Return a TIFF's bytes."""
    file = io.BytesIO()
    tifffile.imwrite(file, values, **options)
    return file.getvalue()


def read(data: bytes, count: int, **wanted: Any) -> np.ndarray:
    """Return float32 `[C, H, W]`."""
    found = channels.decode_channels(data, spec.Channels(count=count, **wanted))
    assert found.pixels.dtype == torch.float32
    return found.pixels.numpy()


LAYOUTS: dict[str, dict[str, Any]] = {
    "planar": {"photometric": "minisblack", "planarconfig": "separate"},
    "chunky": {"photometric": "minisblack", "planarconfig": "contig"},
    "tiled": {"photometric": "minisblack", "planarconfig": "separate", "tile": (16, 16), "compression": "deflate"},
    "pages": {"photometric": "minisblack", "metadata": None},
    "ome": {"photometric": "minisblack", "metadata": {"axes": "CYX"}, "ome": True},
    "big-endian": {"photometric": "minisblack", "planarconfig": "separate", "byteorder": ">", "bigtiff": True},
    "lzw": {"photometric": "minisblack", "planarconfig": "contig", "compression": "lzw", "predictor": False},
}


@pytest.mark.parametrize("kind", ["uint8", "uint16", "int16", "float32", "float64"])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("count", [2, 6])
def test_every_layout_and_type_of_a_tiff_gives_the_values_that_tifffile_reads(
    layout: str, kind: str, count: int
) -> None:
    values = pixels(kind, count)
    stored = values.transpose(1, 2, 0) if LAYOUTS[layout].get("planarconfig") == "contig" else values
    data = tiff(np.ascontiguousarray(stored), **LAYOUTS[layout])
    with tifffile.TiffFile(io.BytesIO(data)) as file:
        own = file.asarray()
    own = np.moveaxis(own, -1, 0) if own.shape[-1] == count else own
    white = np.iinfo(kind).max if np.issubdtype(values.dtype, np.integer) else 1
    assert np.array_equal(own, values)
    assert np.array_equal(read(data, count), (own.astype(np.float64) / white).astype(np.float32))


def test_an_imagej_file_and_the_first_time_of_an_ome_file_have_their_channels() -> None:
    values = pixels("uint16", 5)
    data = tiff(values, imagej=True, metadata={"axes": "CYX"})
    assert np.array_equal(read(data, 5), values.astype(np.float32) / 65535)
    twice = np.stack([values, values[::-1]])
    data = tiff(twice, ome=True, photometric="minisblack", metadata={"axes": "TCYX"})
    assert np.array_equal(read(data, 5), values.astype(np.float32) / 65535)
    deep = np.stack([values, values[::-1]], axis=1)
    data = tiff(deep, ome=True, photometric="minisblack", metadata={"axes": "CZYX"})
    assert np.array_equal(read(data, 5), values.astype(np.float32) / 65535)


def test_reduced_versions_behind_the_image_are_no_channels() -> None:
    values, file = pixels("uint16", 6), io.BytesIO()
    with tifffile.TiffWriter(file) as writer:
        options: dict[str, Any] = {"photometric": "minisblack", "planarconfig": "separate", "metadata": None}
        writer.write(values, subifds=0, **options)
        writer.write(values[:, ::2, ::2], subfiletype=1, **options)
    assert np.array_equal(read(file.getvalue(), 6), values.astype(np.float32) / 65535)


def test_channels_are_chosen_in_order_and_may_be_repeated() -> None:
    values = pixels("uint16", 6)
    data = tiff(values, **LAYOUTS["planar"])
    assert np.array_equal(read(data, 3, chosen=(3, 2, 1)), values[[3, 2, 1]].astype(np.float32) / 65535)
    assert np.array_equal(read(data, 3, chosen=(5, 5, 0)), values[[5, 5, 0]].astype(np.float32) / 65535)


def test_another_number_of_channels_is_refused_with_the_file_s_own() -> None:
    data = tiff(pixels("uint8", 4), **LAYOUTS["planar"])
    with pytest.raises(
        decoded.ImageUnreadable, match=r"has 4 channels, but the model takes 6: choose 6 with --channels"
    ):
        read(data, 6)
    with pytest.raises(decoded.ImageUnreadable, match=r"there is no channel 4: the file has 4 channels, 0 to 3"):
        read(data, 2, chosen=(0, 4))


def test_a_range_is_linear_also_beyond_it_and_may_differ_by_channel() -> None:
    values = np.array([[[0, 5000, 10000, 20000]], [[0, 100, 200, 400]]], np.uint16)
    data = tiff(values, photometric="minisblack", planarconfig="separate")
    assert read(data, 2, value_range=((0.0, 10000.0),))[0].tolist() == [[0, 0.5, 1, 2]]
    both = read(data, 2, value_range=((0.0, 10000.0), (100.0, 200.0)))
    assert both[1].tolist() == [[-1, 0, 1, 3]]


def test_a_range_of_0_to_1_takes_floats_as_they_are() -> None:
    values = pixels("float32", 3) * 8000 - 20
    data = tiff(values, photometric="minisblack", planarconfig="separate")
    assert np.array_equal(read(data, 3, value_range=((0.0, 1.0),)), values)


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        (np.full((2, 4, 5), -3, np.int16), r"only \[0, 32767\] has a known scale: give --value-range"),
        (np.full((2, 4, 5), 1.5, np.float32), r"only \[0, 1\] has a known scale: give --value-range"),
        (np.full((2, 4, 5), 7, np.int32), "32-bit integers have no known range: give --value-range"),
        (np.full((2, 4, 5), np.inf, np.float32), "infinite values in channel 0"),
        (np.full((2, 4, 5), np.nan, np.float32), "none of its pixels has data"),
        (np.full((2, 4, 5), 1j, np.complex64), "sample format"),
    ],
)
def test_values_without_a_known_range_are_refused(values: np.ndarray, reason: str) -> None:
    with pytest.raises(decoded.ImageUnreadable, match=reason):
        read(tiff(values, photometric="minisblack", planarconfig="separate"), 2)


def test_a_stated_12_bit_maximum_in_16_bits_needs_a_range() -> None:
    values = pixels("uint16", 2) >> 4
    data = tiff(values, extratags=[(281, "H", 2, (4095, 4095), True)], **LAYOUTS["planar"])
    with pytest.raises(decoded.ImageUnreadable, match="MaxSampleValue states a maximum of 4095: give --value-range"):
        read(data, 2)
    assert np.array_equal(read(data, 2, value_range=((0.0, 4095.0),)), values.astype(np.float32) / 4095)


@pytest.mark.parametrize("kind", ["int16", "float32"])
def test_pixels_without_data_become_0(kind: str) -> None:
    values = (pixels("float32", 2) * 900 + 100).astype(kind)
    expected = (values.astype(np.float32) - 100) / 900
    values[:, 3:6], expected[:, 3:6] = -9999, 0
    if kind == "float32":
        values[1, 7], expected[1, 7] = np.nan, 0
    data = tiff(values, extratags=[(42113, "s", 0, "-9999", True)], **LAYOUTS["planar"])
    assert np.array_equal(read(data, 2, value_range=((100.0, 1000.0),)), expected)


def test_orientation_turns_every_channel() -> None:
    values = pixels("uint16", 5)
    data = tiff(values, extratags=[(274, "H", 1, 6, True)], **LAYOUTS["planar"])
    found = channels.decode_channels(data, spec.Channels(count=5))
    assert found.orientation == 6
    assert found.size == (WIDTH, HEIGHT)
    assert np.array_equal(found.pixels.numpy(), np.rot90(values, -1, (1, 2)).astype(np.float32) / 65535)


def test_white_is_zero_is_inverted() -> None:
    values = pixels("uint16", 1)[0]
    data = tiff(values, photometric="miniswhite")
    assert np.array_equal(read(data, 1)[0], (65535 - values).astype(np.float32) / 65535)


def encoded(image: Image.Image, form: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def test_grey_files_of_other_formats_have_one_channel_of_their_own_depth() -> None:
    deep = pixels("uint16", 1)[0]
    assert np.array_equal(read(encoded(Image.fromarray(deep), "PNG"), 1)[0], deep.astype(np.float32) / 65535)
    grey = Image.fromarray(pixels("uint8", 1)[0])
    for form in ("PNG", "PPM"):
        assert np.array_equal(read(encoded(grey, form), 1)[0], np.asarray(grey, np.float32) / 255)
    jpeg = encoded(grey, "JPEG", quality=95)
    assert np.array_equal(read(jpeg, 1)[0], np.asarray(Image.open(io.BytesIO(jpeg)), np.float32) / 255)
    assert read(jpeg, 3, chosen=(0, 0, 0)).shape == (3, HEIGHT, WIDTH)


def test_colours_and_alpha_of_a_png_are_channels() -> None:
    colours = np.moveaxis(pixels("uint8", 4), 0, 2)
    data = encoded(Image.fromarray(colours, "RGBA"), "PNG")
    assert np.array_equal(read(data, 4), np.moveaxis(colours, 2, 0).astype(np.float32) / 255)
    assert channels.count_of(data)[0] == 4
    palette = Image.fromarray(colours[..., :3], "RGB").quantize(16)
    assert np.array_equal(
        read(encoded(palette, "PNG"), 3), np.moveaxis(np.asarray(palette.convert("RGB")), 2, 0) / np.float32(255)
    )


@pytest.mark.parametrize("layout", ["planar", "chunky", "pages", "ome", "tiled"])
def test_a_damaged_or_truncated_file_is_unreadable_and_never_anything_else(layout: str) -> None:
    values = pixels("uint16", 6)
    stored = values.transpose(1, 2, 0) if layout == "chunky" else values
    data = tiff(np.ascontiguousarray(stored), **LAYOUTS[layout])
    whole = read(data, 6)
    for kept in range(0, len(data), 97):
        with contextlib.suppress(decoded.ImageUnreadable):
            assert np.array_equal(read(data[:kept], 6), whole)
            assert kept > 6 * HEIGHT * WIDTH * 2  # only what follows the pixels is missing
    draw = np.random.default_rng(0)
    for _ in range(60):
        broken = bytearray(data)
        for at in draw.integers(0, len(data), 6):
            broken[at] = draw.integers(256)
        with contextlib.suppress(decoded.ImageUnreadable):
            assert read(bytes(broken), 6).shape[0] == 6


def test_pixels_above_the_limit_are_refused_before_they_are_read() -> None:
    data = tiff(pixels("uint8", 6), **LAYOUTS["planar"])
    with pytest.raises(decoded.ImageUnreadable, match="above the limit"):
        # Six channels count as two images of three.
        channels.decode_channels(data, spec.Channels(count=6), max_pixels=HEIGHT * WIDTH * 2 - 1)
    channels.decode_channels(data, spec.Channels(count=6), max_pixels=HEIGHT * WIDTH * 2)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("antialias", [True, False])
@pytest.mark.parametrize("fit", ["stretch", "crop", "pad"])
def test_channels_are_fitted_as_torch_resizes_floats(fit: Any, interpolation: Any, antialias: bool) -> None:
    values = pixels("uint16", 5)
    image = channels.decode_channels(tiff(values, **LAYOUTS["planar"]), spec.Channels(count=5))
    preprocessing = spec.Preprocessing(
        height=16, width=16, fit=fit, interpolation=interpolation, antialias=antialias, channels=spec.Channels(count=5)
    )
    found, affine = geometry.Fitter(preprocessing).fit(image)
    plan = geometry.plan_fit(HEIGHT, WIDTH, preprocessing)
    whole = torch.nn.functional.interpolate(
        image.pixels[None], plan.resized, mode=interpolation, antialias=antialias, align_corners=False
    )[0]
    expected = torch.zeros(5, 16, 16)
    part = whole[:, plan.crop_top : plan.crop_top + 16, plan.crop_left : plan.crop_left + 16]
    expected[:, plan.pad_top : plan.pad_top + part.shape[1], plan.pad_left : plan.pad_left + part.shape[2]] = part
    assert found.dtype == torch.float32
    assert found.is_contiguous()
    assert torch.allclose(found, expected, rtol=0, atol=1e-6)
    assert affine == plan.affine


def pnm(values: np.ndarray, largest: int, *, plain: bool) -> bytes:
    """Return a PGM of `[1, H, W]` or a PPM of `[3, H, W]`."""
    rows = values.transpose(1, 2, 0)
    kind = ("P2" if plain else "P5") if len(values) == 1 else ("P3" if plain else "P6")
    head = f"{kind}\n# by a camera\n{WIDTH} {HEIGHT}\n{largest}\n".encode()
    if plain:
        return head + b"# 1 2 3\n" + " ".join(map(str, rows.reshape(-1))).encode() + b"\n"
    return head + rows.astype(">u2" if largest > 255 else np.uint8).tobytes()


@pytest.mark.parametrize("plain", [True, False])
@pytest.mark.parametrize("largest", [7, 255, 4095, 65535])
@pytest.mark.parametrize("count", [1, 3])
def test_a_pgm_and_a_ppm_keep_their_values(count: int, largest: int, plain: bool) -> None:
    values = np.random.default_rng(1).integers(0, largest + 1, (count, HEIGHT, WIDTH))
    data = pnm(values, largest, plain=plain)
    np.testing.assert_array_equal(read(data, count, value_range=((0.0, 1.0),)), values)
    np.testing.assert_array_equal(read(data, count), (values / np.float32(largest)).astype(np.float32))
    assert channels.count_of(data) == (count, ())
    with pytest.raises(decoded.ImageUnreadable, match="truncated"):
        read(data[:-20], count)
    values[0, 3, 3] = largest + 1
    if largest not in (255, 65535) or plain:
        with pytest.raises(decoded.ImageUnreadable, match=f"exceed the maximum of {largest}"):
            read(pnm(values, largest, plain=plain), count)


@pytest.mark.parametrize("plain", [True, False])
def test_a_pbm_is_of_one_bit(plain: bool) -> None:
    black = np.random.default_rng(1).integers(0, 2, (HEIGHT, WIDTH))
    body = (
        "\n".join("".join(map(str, row)) for row in black).encode() if plain else np.packbits(black, axis=1).tobytes()
    )
    data = f"{'P1' if plain else 'P4'} {WIDTH} {HEIGHT}\n".encode() + body
    np.testing.assert_array_equal(read(data, 1, value_range=((0.0, 1.0),))[0], 1 - black)


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_a_grey_png_of_few_bits_keeps_its_values(bits: int) -> None:
    values = np.random.default_rng(1).integers(0, 2**bits, (HEIGHT, WIDTH), np.uint8)
    wide = np.zeros((HEIGHT, -(-WIDTH * bits // 8) * 8 // bits), np.uint8)
    wide[:, :WIDTH] = values
    shifts = np.arange(8 // bits)[::-1] * bits
    lines = (wide.reshape(HEIGHT, -1, 8 // bits) << shifts).sum(axis=2).astype(np.uint8)
    packed = zlib.compress(b"".join(b"\0" + line.tobytes() for line in lines))
    chunks = (
        (b"IHDR", struct.pack(">II5B", WIDTH, HEIGHT, bits, 0, 0, 0, 0)),
        (b"IDAT", packed),
        (b"IEND", b""),
    )
    data = b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body)) for name, body in chunks
    )
    np.testing.assert_array_equal(
        np.asarray(Image.open(io.BytesIO(data)).convert("L")), values * (255 // (2**bits - 1))
    )
    np.testing.assert_array_equal(read(data, 1, value_range=((0.0, 1.0),))[0], values)
    np.testing.assert_array_equal(read(data, 1)[0], (values / np.float32(2**bits - 1)).astype(np.float32))


def test_values_of_a_wide_avif_have_no_range_of_their_own() -> None:
    data = imagecodecs.avif_encode(np.full((16, 16, 3), 700, np.uint16), bitspersample=10)
    assert read(data, 3).shape == (3, 16, 16)
    with pytest.raises(decoded.ImageUnreadable, match="AVIF of 10 bits per channel is read as one of 8"):
        read(data, 3, value_range=((0.0, 1023.0),))


@pytest.mark.parametrize("stated", ["nan", "-3.40282e+38", ""])
def test_huge_values_that_are_not_the_stated_no_data_are_refused(stated: str) -> None:
    values = np.full((1, HEIGHT, WIDTH), 0.5, np.float32)
    values[0, 2] = -3.4e38
    extra = [(42113, "s", 0, stated, True)] if stated else []
    with pytest.raises(decoded.ImageUnreadable, match=r"values of 3\.4e\+38 in channel 0, which stand for no data"):
        read(tiff(values[0], extratags=extra), 1, value_range=((0.0, 1.0),))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "WEBP", "PNG", "TIFF"])
def test_the_orientation_is_applied_once_and_told(kind: str, orientation: int) -> None:
    drawn = Image.fromarray(pixels("uint8", 3).transpose(1, 2, 0))
    file, exif = io.BytesIO(), Image.Exif()
    exif[274] = orientation
    drawn.save(file, kind, exif=exif, **({"lossless": True} if kind == "WEBP" else {}))
    found = channels.decode_channels(file.getvalue(), spec.Channels(count=3, chosen=(2, 1, 0)))
    plain = decode.decode_image(file.getvalue())
    assert (found.orientation, found.size) == (orientation, plain.size)
    np.testing.assert_array_equal(np.rint(found.pixels.numpy() * 255), plain.pixels.numpy()[[2, 1, 0]])


def gdal(role: str, number: float) -> list[Any]:
    text = f'<GDALMetadata><Item name="{role.upper()}" sample="0" role="{role}">{number}</Item></GDALMetadata>'
    return [(42112, "s", 0, text, True)]


@pytest.mark.parametrize(("role", "number"), [("scale", 1e-4), ("offset", -0.1)])
def test_numbers_that_stand_for_others_by_gdal_are_refused(role: str, number: float) -> None:
    """As `scale_factor` of Zarr and HDF5 is."""
    values = pixels("uint16", 1)[0]
    data = tiff(values, extratags=gdal(role, number))
    with pytest.raises(decoded.ImageUnreadable, match=f"it states the {role} {number}: its numbers stand for others"):
        read(data, 1)
    with pytest.raises(decoded.ImageUnreadable, match=f"it states the {role} {number}"):
        decode.decode_image(data)
    np.testing.assert_array_equal(read(data, 1, value_range=((0.0, 1.0),))[0], values)
    without = tiff(values, extratags=gdal("scale", 1.0))
    np.testing.assert_array_equal(decode.decode_image(without).pixels[0], decode.decode_image(tiff(values)).pixels[0])


def test_tiles_that_were_never_written_are_told_from_truncation() -> None:
    data = tiff(pixels("uint8", 1)[0], rowsperstrip=7)
    with tifffile.TiffFile(io.BytesIO(data)) as file:
        offsets, counts = (file.pages[0].tags[name].valueoffset for name in ("StripOffsets", "StripByteCounts"))
        sizes = [file.pages[0].tags[name].dtype.value for name in ("StripOffsets", "StripByteCounts")]
    sparse = bytearray(data)
    for at, kind in zip((offsets, counts), sizes, strict=True):
        sparse[at : at + (2 if kind == 3 else 4)] = bytes(2 if kind == 3 else 4)
    with pytest.raises(decoded.ImageUnreadable, match=r"sparse TIFF: .* never written"):
        decode.decode_image(bytes(sparse))


def test_odd_tags_print_nothing(tmp_path: Path) -> None:
    """In a process of its own: pytest handles the records of all loggers."""
    written = tiff(pixels("float32", 1)[0], extratags=[(42113, "s", 0, "-3.4028234663852886e+38", True)])
    (tmp_path / "a.tif").write_bytes(written)
    program = f"""
from pathlib import Path
from genenc_core import spec
from genenc_core.images.decode import channels
channels.decode_channels(Path({str(tmp_path / "a.tif")!r}).read_bytes(), spec.Channels(count=1))
"""
    done = forked.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stderr == ""
