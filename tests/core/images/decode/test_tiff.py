"""TIFF over a matrix of its tags: the written values come back, as two other readers give them, or a reason does."""

import io
import itertools
import struct
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pytest
import tifffile
from PIL import Image

import pictures
from decoding import pixels_of, reason_of
from genenc_core.images.decode import decode, decoded, headers

HEIGHT, WIDTH = 37, 53
COMPRESSIONS = (None, "deflate", "lzw", "packbits", "zstd")
GENERATOR = np.random.default_rng(0)


def written(values: np.ndarray, **options: Any) -> bytes:
    buffer = io.BytesIO()
    bigtiff = options.pop("bigtiff", False)
    byteorder = options.pop("byteorder", "<")
    with tifffile.TiffWriter(buffer, bigtiff=bigtiff, byteorder=byteorder) as writer:
        writer.write(values, metadata=None, **options)
    return buffer.getvalue()


def drawn(channels: int, dtype: str) -> np.ndarray:
    """Values over the whole range of an unsigned type, [H, W, channels], both ends included."""
    most = np.iinfo(dtype).max
    values = GENERATOR.integers(0, most, (HEIGHT, WIDTH, channels), dtype=dtype, endpoint=True)
    values[0, 0], values[0, 1] = 0, most
    return values


def expected(values: np.ndarray, photometric: str) -> np.ndarray:
    """The picture [H, W, 3] as float, 0 to 255, of unsigned samples [H, W, channels] by TIFF 6.0."""
    scaled = values.astype(np.float64) / np.iinfo(values.dtype).max
    if photometric == "miniswhite":
        scaled = 1 - scaled
    return np.broadcast_to(scaled[..., :3] * 255, (HEIGHT, WIDTH, 3))


def by_libtiff(data: bytes) -> np.ndarray | None:
    """What libtiff's own conversion to RGB gives, uint8 [H, W, 3]; None when it refuses."""
    try:
        return np.asarray(imagecodecs.tiff_decode(data, asrgb=True))[..., :3]
    except imagecodecs.TiffError:
        return None


@pytest.mark.parametrize("compression", COMPRESSIONS)
@pytest.mark.parametrize("photometric", ["minisblack", "miniswhite", "rgb"])
@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
def test_every_layout_gives_the_values_written(dtype: str, photometric: str, compression: str | None) -> None:
    """Both byte orders, classic and BigTIFF, contiguous and planar, strips and tiles, with and without prediction.

    tifffile reads back what was written; libtiff agrees wherever it converts the file at all.
    """
    channels = 3 if photometric == "rgb" else 1
    values = drawn(channels, dtype)
    picture = expected(values, photometric)
    agreed = 0
    layouts = itertools.product("<>", (False, True), (False, True), (None, (32, 48)), (False, True))
    for byteorder, bigtiff, planar, tile, predictor in layouts:
        if (planar and channels == 1) or (predictor and compression in (None, "packbits")):
            continue
        options: dict[str, Any] = {"photometric": photometric, "compression": compression, "tile": tile}
        options |= {"byteorder": byteorder, "bigtiff": bigtiff, "predictor": predictor or None}
        options["planarconfig"] = "separate" if planar else "contig"
        source = np.moveaxis(values, 2, 0) if planar else values if channels == 3 else values[..., 0]
        data = written(source, **{key: value for key, value in options.items() if value is not None})
        np.testing.assert_array_equal(tifffile.imread(io.BytesIO(data)), source)
        found = pixels_of(data)
        assert np.abs(found - picture).max() <= 1, options
        other = by_libtiff(data)
        if other is not None:
            agreed += 1
            # libtiff misplaces 16-bit grey in tiles that reach beyond the picture: the whole tile is compared.
            part = slice(None), slice(None)
            if tile and channels == 1 and dtype == "uint16":
                part = slice(tile[0]), slice(tile[1])
            assert np.abs(found[part].astype(int) - other[part]).max() <= 1, options
    assert agreed >= 4


@pytest.mark.parametrize("bits", [2, 4, 10, 12, 14])
@pytest.mark.parametrize("white_is_zero", [False, True])
@pytest.mark.parametrize("byteorder", ["<", ">"])
def test_packed_samples_are_scaled_by_their_own_range(bits: int, white_is_zero: bool, byteorder: str) -> None:
    values = GENERATOR.integers(0, 2**bits, (HEIGHT, WIDTH), dtype=np.uint16)
    values[0, :2] = 0, 2**bits - 1
    data = grey_file(packed(values, bits), bits=bits, photometric=0 if white_is_zero else 1, byteorder=byteorder)
    np.testing.assert_array_equal(tifffile.imread(io.BytesIO(data)), values)
    scaled = np.rint((2**bits - 1 - values if white_is_zero else values) * (255 / (2**bits - 1)))
    assert np.abs(pixels_of(data)[..., 0] - scaled).max() <= 1


def packed(values: np.ndarray, bits: int) -> bytes:
    """Rows of samples without gaps, each row from a whole byte on."""
    each = (values[..., None] >> np.arange(bits - 1, -1, -1)) & 1
    return np.packbits(each.reshape(len(values), -1).astype(np.uint8), axis=1).tobytes()


def grey_file(
    strip: bytes,
    *,
    bits: int,
    photometric: int = 1,
    byteorder: str = "<",
    more: dict[int, tuple[int, int]] | None = None,
) -> bytes:
    """A TIFF of one strip; `more` has tags as {tag: (type, value)}."""
    tags = {256: (4, WIDTH), 257: (4, HEIGHT), 258: (3, bits), 259: (3, 1), 262: (3, photometric), 273: (4, 8)}
    tags |= {277: (3, 1), 278: (4, HEIGHT), 279: (4, len(strip)), **(more or {})}
    start = 8 + len(strip) + len(strip) % 2
    head = (b"II*\0" if byteorder == "<" else b"MM\0*") + struct.pack(byteorder + "I", start)
    entries = b"".join(
        struct.pack(byteorder + "HHI", tag, kind, 1)
        + (struct.pack(byteorder + "HH", value, 0) if kind == 3 else struct.pack(byteorder + "I", value))
        for tag, (kind, value) in sorted(tags.items())
    )
    return head + strip.ljust(start - 8, b"\0") + struct.pack(byteorder + "H", len(tags)) + entries + bytes(4)


@pytest.mark.parametrize("white_is_zero", [False, True])
@pytest.mark.parametrize("fill_order", [1, 2])
def test_one_bit(white_is_zero: bool, fill_order: int) -> None:
    values = GENERATOR.integers(0, 2, (HEIGHT, WIDTH), dtype=np.uint16)
    strip = packed(values, 1)
    if fill_order == 2:
        strip = bytes(int(f"{byte:08b}"[::-1], 2) for byte in strip)
    data = grey_file(strip, bits=1, photometric=0 if white_is_zero else 1, more={266: (3, fill_order)})
    np.testing.assert_array_equal(pixels_of(data)[..., 0], (values ^ white_is_zero) * 255)
    np.testing.assert_array_equal(pixels_of(data)[..., 0], by_libtiff(data)[..., 0])


@pytest.mark.parametrize("wide", [True, False], ids=["16-bit map", "8-bit map"])
@pytest.mark.parametrize("bits", [4, 8])
def test_palettes(wide: bool, bits: int) -> None:
    """The colour map has 16 bits; one without a value above 255 was written with 8, as libtiff takes it."""
    colours = GENERATOR.integers(0, 256, (3, 2**bits), dtype=np.uint16)
    colours[:, 0] = 0, 128, 255
    indices = GENERATOR.integers(0, 2**bits, (HEIGHT, WIDTH), dtype=np.uint8)
    data = (
        written(indices, photometric="palette", colormap=colours * 257 if wide else colours, bitspersample=bits)
        if (bits == 8)
        else palette_file(indices, colours * 257 if wide else colours)
    )
    np.testing.assert_array_equal(pixels_of(data), colours.T[indices])


def palette_file(indices: np.ndarray, colours: np.ndarray) -> bytes:
    """A palette TIFF of 4 bits, which tifffile does not write."""
    strip = packed(indices.astype(np.uint16), 4)
    data = grey_file(strip, bits=4, photometric=3, more={320: (3, 0)})
    stored = colours.astype("<u2").tobytes()
    entry = struct.pack("<HHIHH", 320, 3, 1, 0, 0)
    return data.replace(entry, struct.pack("<HHII", 320, 3, colours.size, len(data))) + stored


@pytest.mark.parametrize("dtype", ["int8", "int16"])
def test_signed_samples_go_from_0_to_their_largest(dtype: str) -> None:
    most = np.iinfo(dtype).max
    values = GENERATOR.integers(0, most, (HEIGHT, WIDTH), dtype=dtype, endpoint=True)
    values[0, :2] = 0, most
    found = pixels_of(written(values, photometric="minisblack"))[..., 0]
    np.testing.assert_array_equal(found, np.rint(values.astype(float) * 255 / most))
    values[3, 3] = -1
    assert "only [0, " in reason_of(written(values, photometric="minisblack"))


WIDE = ["int32", "uint32", "int64", "uint64"]


@pytest.mark.parametrize("dtype", WIDE)
@pytest.mark.parametrize("photometric", ["minisblack", "miniswhite", "rgb"])
@pytest.mark.parametrize("layout", ["strips", "tiles", "planar", "lzw", "big"])
def test_wide_integers_that_may_be_of_8_bits_are_refused(dtype: str, photometric: str, layout: str) -> None:
    """Scaled by 65535 they would be nearly black; above 255 they count as 16-bit ones, and zeros are black anyhow."""
    channels = 3 if photometric == "rgb" else 1
    options: dict[str, Any] = {"photometric": photometric, "bigtiff": layout == "big"}
    options |= {"tiles": {"tile": (32, 48)}, "lzw": {"compression": "lzw"}}.get(layout, {})
    options["planarconfig"] = "separate" if layout == "planar" else "contig"

    def file_of(values: np.ndarray) -> bytes:
        source = values.astype(dtype) if channels == 3 else values.astype(dtype)[..., 0]
        return written(np.moveaxis(source, 2, 0) if layout == "planar" and channels == 3 else source, **options)

    values = drawn(channels, "uint8")
    for most in (255, 1):
        reason = reason_of(file_of(np.minimum(values, most)))
        assert f"{np.dtype(dtype).itemsize * 8}-bit integers of at most {most}" in reason
        assert "save them as 8 or 16 bits" in reason
    wide = drawn(channels, "uint16")
    assert np.abs(pixels_of(file_of(wide)) - expected(wide, photometric)).max() <= 0.51
    zeros = np.zeros_like(wide)
    np.testing.assert_array_equal(pixels_of(file_of(zeros)), expected(zeros, photometric))
    zeros[5, 7] = 256
    assert np.abs(pixels_of(file_of(zeros)) - expected(zeros, photometric)).max() <= 0.51


@pytest.mark.parametrize("tag", [281, 341], ids=["MaxSampleValue", "SMaxSampleValue"])
@pytest.mark.parametrize("dtype", ["uint16", "int16", *WIDE])
@pytest.mark.parametrize("kind", ["minisblack", "miniswhite", "rgb"])
def test_samples_that_use_fewer_bits_by_a_tag_are_refused(dtype: str, kind: str, tag: int) -> None:
    channels = 3 if kind == "rgb" else 1
    white = min(np.iinfo(dtype).max, 65535)

    def file_of(values: np.ndarray, stated: int) -> bytes:
        source = values if channels == 3 else values[..., 0]
        ends = [(tag, "H" if tag == 281 else "d", channels, (stated,) * channels, True)]
        return written(source, photometric=kind, extratags=ends)

    def picture(values: np.ndarray) -> np.ndarray:
        scaled = np.broadcast_to(values / white, (HEIGHT, WIDTH, 3))
        return 255 * (1 - scaled if kind == "miniswhite" else scaled)

    for bits in (10, 12, 14):
        stated = 2**bits - 1
        values = (drawn(channels, "uint16") >> (16 - bits)).astype(dtype)
        assert f"states a maximum of {stated}: scale them to {white}" in reason_of(file_of(values, stated))
        # The whole range, the largest value of this very image, nonsense, or one that the samples exceed.
        for other in (white, int(values.max()) - 3, 0, 2 ** (bits - 1) - 1):
            assert np.abs(pixels_of(file_of(values, other)) - picture(values)).max() <= 1, other
        zeros = np.zeros_like(values)
        assert np.abs(pixels_of(file_of(zeros, stated)) - picture(zeros)).max() == 0


@pytest.mark.parametrize("stated", [0, 1, 63, 127, 200, 255])
def test_the_largest_value_that_a_tag_states_of_8_bits_means_nothing(stated: int) -> None:
    values = drawn(3, "uint8") // 4
    data = written(values, photometric="rgb", extratags=[(281, "H", 3, (stated,) * 3, True)])
    np.testing.assert_array_equal(pixels_of(data), values)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("channels", [1, 3])
def test_floats_are_scaled_by_the_range_that_tags_state_else_from_0_to_1(dtype: str, channels: int) -> None:
    values = GENERATOR.random((HEIGHT, WIDTH, channels)).astype(dtype)
    kind = "rgb" if channels == 3 else "minisblack"
    source = values if channels == 3 else values[..., 0]
    found = pixels_of(written(source, photometric=kind))
    assert np.abs(found - values.astype(float) * 255).max() <= 0.51
    assert "only [0, 1] has a known scale" in reason_of(written(source * 300, photometric=kind))
    assert "only [0, 1]" in reason_of(written(np.where(source > 0.9, np.nan, source), photometric=kind))
    ranged = written(
        (source.astype(float) * 300 - 100).astype(dtype),
        photometric=kind,
        extratags=[(340, "f", channels, (-100.0,) * channels, True), (341, "f", channels, (200.0,) * channels, True)],
    )
    if dtype != "float16":
        assert np.abs(pixels_of(ranged) - values.astype(float) * 255).max() <= 0.51


@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
@pytest.mark.parametrize("extra", ["assocalpha", "unassalpha", "unspecified"])
@pytest.mark.parametrize("planar", [False, True])
def test_alpha_is_composited_over_black(dtype: str, extra: str, planar: bool) -> None:
    values = drawn(4, dtype)
    if extra == "assocalpha":
        values[..., :3] = np.minimum(values[..., :3], values[..., 3:])
    most = np.iinfo(dtype).max
    source = np.moveaxis(values, 2, 0) if planar else values
    layout = "separate" if planar else "contig"
    found = pixels_of(written(source, photometric="rgb", extrasamples=[extra], planarconfig=layout))
    scaled = values.astype(float) / most
    picture = scaled[..., :3] * (scaled[..., 3:] if extra == "unassalpha" else 1)
    assert np.abs(found - picture * 255).max() <= 1
    values[..., 3] = 0  # left blank by whoever wrote it
    blank = pixels_of(
        written(
            np.moveaxis(values, 2, 0) if planar else values,
            photometric="rgb",
            extrasamples=[extra],
            planarconfig=layout,
        )
    )
    assert np.abs(blank - scaled[..., :3] * 255).max() <= 1


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
@pytest.mark.parametrize("extra", ["assocalpha", "unassalpha", "unspecified"])
@pytest.mark.parametrize("planar", [False, True])
def test_a_channel_beside_grey_is_alpha_or_refused(dtype: str, extra: str, planar: bool) -> None:
    """Radar of two polarisations, fluorescence of two channels: one of them is not the picture."""
    values = drawn(2, dtype) if dtype != "float32" else (drawn(2, "uint8") / 255).astype(dtype)
    source = np.moveaxis(values, 2, 0) if planar else values
    layout = "separate" if planar else "contig"
    data = written(source, photometric="minisblack", extrasamples=[extra], planarconfig=layout)
    if extra == "unspecified":
        with pytest.raises(decoded.ImageUnreadable, match="2 channels where 1 are expected"):
            decode.decode_image(data)
        return
    assert decode.decode_image(data).size == values.shape[:2]


@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
@pytest.mark.parametrize("planar", [False, True])
def test_cmyk(dtype: str, planar: bool) -> None:
    values = drawn(4, dtype)
    source = np.moveaxis(values, 2, 0) if planar else values
    found = pixels_of(written(source, photometric="separated", planarconfig="separate" if planar else "contig"))
    scaled = 1 - values.astype(float) / np.iinfo(dtype).max
    assert np.abs(found - scaled[..., :3] * scaled[..., 3:] * 255).max() <= 1


@pytest.mark.parametrize("subsampling", [(1, 1), (2, 1), (2, 2)])
@pytest.mark.parametrize("tile", [None, (16, 32)])
def test_a_jpeg_in_a_bigtiff_is_that_in_a_tiff(subsampling: tuple[int, int], tile: tuple[int, int] | None) -> None:
    """Pillow reads the one, tifffile the other."""
    image = np.rint(expected(pictures.texture(WIDTH, HEIGHT, 5), "rgb")).astype(np.uint8)
    for kind in ("rgb", "minisblack"):
        source = image if kind == "rgb" else image[..., 0]
        how: dict[str, Any] = {"photometric": kind, "compression": "jpeg", "tile": tile, "subsampling": subsampling}
        small, big = (pixels_of(written(source, bigtiff=bigtiff, **how)).astype(int) for bigtiff in (False, True))
        assert np.abs(small - big).max() <= 1
        assert np.abs((big if kind == "rgb" else big[..., 0]) - source).mean() < 10
        assert tifffile.TiffFile(io.BytesIO(written(source, **how))).pages[0].photometric == (6 if kind == "rgb" else 1)


@pytest.mark.parametrize("compression", ["webp", "jpeg2000", "png", "jpegxr", "lerc", "jpegxl"])
@pytest.mark.parametrize("kind", ["rgb", "minisblack"])
def test_compressions_that_pillow_may_lack_are_read(compression: str, kind: str) -> None:
    values = drawn(3, "uint8") if kind == "rgb" else drawn(1, "uint8")[..., 0]
    if compression == "webp" and kind != "rgb":
        pytest.skip("no grey in WebP")
    lossless = {"compressionargs": {"lossless": True}} if compression in ("webp", "jpegxl") else {}
    data = written(values, photometric=kind, compression=compression, **lossless)
    by_tifffile = tifffile.imread(io.BytesIO(data))
    np.testing.assert_array_equal(pixels_of(data), by_tifffile if kind == "rgb" else np.dstack([by_tifffile] * 3))
    assert np.abs(by_tifffile.astype(int) - values).mean() < 6


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
def test_the_orientation_is_applied_by_either_reader(orientation: int, dtype: str) -> None:
    values = drawn(3, dtype)
    source = np.moveaxis(values, 2, 0)
    data = written(source, photometric="rgb", planarconfig="separate", extratags=[(274, "H", 1, orientation, True)])
    found = decode.decode_image(data)
    upright = np.rint(expected(values, "rgb")).astype(np.uint8)
    turned = Image.fromarray(upright)
    exif = Image.Exif()
    exif[274] = orientation
    turned.info["exif"] = exif.tobytes()
    from PIL import ImageOps

    other = np.asarray(ImageOps.exif_transpose(turned)).astype(int)
    assert np.abs(found.pixels.permute(1, 2, 0).numpy() - other).max() <= 1
    assert found.orientation == orientation
    assert headers.valid_orientation(orientation) == orientation


@pytest.mark.parametrize(
    ("photometric", "bits", "words"),
    [
        (4, 1, "a transparency mask"),
        (8, 8, "CIE L"),
        (32803, 8, "colour filter array"),
        (32845, 16, "LogLuv"),
        (6, 8, "YCbCr TIFF that is not 8-bit JPEG"),
        (99, 8, "of unknown kind"),
        (2, 8, "with 1 channels where 3 are expected"),
    ],
)
def test_what_has_no_meaning_in_red_green_and_blue_is_refused(photometric: int, bits: int, words: str) -> None:
    strip = bytes(HEIGHT * -(-WIDTH * bits // 8))
    assert words in reason_of(grey_file(strip, bits=bits, photometric=photometric))


def test_a_jpeg_2000_of_ycbcr_is_refused_though_its_tags_say_rgb() -> None:
    data = written(drawn(3, "uint8"), photometric="rgb", compression="aperio_jp2000_ycbc")
    assert "YCbCr TIFF that is not 8-bit JPEG (compression 33003)" in reason_of(data)


@pytest.mark.slow
def test_more_channels_than_colours_are_refused() -> None:
    values = GENERATOR.integers(0, 255, (HEIGHT, WIDTH, 6), dtype=np.uint8)
    data = written(values, photometric="minisblack", planarconfig="contig")
    assert "with 6 channels where 1" in reason_of(data)


def test_missing_and_cut_off_strips_are_refused_whichever_reader_would_take_them() -> None:
    for dtype in ("uint8", "uint16"):
        values = drawn(3, dtype)
        whole = written(np.moveaxis(values, 2, 0), photometric="rgb", planarconfig="separate", rowsperstrip=8)
        assert pixels_of(whole).shape == (HEIGHT, WIDTH, 3)
        for end in (len(whole) - 7, len(whole) // 2):
            assert "trunc" in reason_of(whole[:end]) or "damaged" in reason_of(whole[:end])
    strip = bytes(HEIGHT * WIDTH)
    assert "some of its pixels are missing" in reason_of(grey_file(strip, bits=8, more={279: (4, 0)}))


def test_of_several_pages_the_first_counts_whatever_the_others_are() -> None:
    first, second = drawn(3, "uint16"), drawn(1, "uint8")
    buffer = io.BytesIO()
    with tifffile.TiffWriter(buffer) as writer:
        writer.write(np.moveaxis(first, 2, 0), photometric="rgb", planarconfig="separate", metadata=None)
        writer.write(second[..., 0], photometric="miniswhite", metadata=None)
    assert np.abs(pixels_of(buffer.getvalue()) - expected(first, "rgb")).max() <= 1


@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
@pytest.mark.parametrize("tile", [None, (16, 16)])
def test_planes_in_one_image_are_refused(dtype: str, tile: tuple[int, int] | None) -> None:
    planes = np.stack([drawn(1, dtype)[..., 0]] * 3)
    how = {"tile": (1, *tile)} if tile else {}
    assert "3 planes (ImageDepth)" in reason_of(written(planes, photometric="minisblack", volumetric=True, **how))


@pytest.mark.parametrize(("channels", "inks"), [(4, 1), (4, 2), (5, 2)])
def test_inks_that_are_not_cmyk_are_refused(channels: int, inks: int) -> None:
    values = np.dstack([drawn(1, "uint8")] * channels)
    data = written(values, photometric="separated", extratags=[(332, "H", 1, inks, True)])
    if (channels, inks) == (4, 1):
        assert pixels_of(data).shape == (HEIGHT, WIDTH, 3)
    else:
        assert "inks other than CMYK" in reason_of(data)


def test_a_range_of_each_channel_is_refused() -> None:
    ends = [(340, "f", 3, (0.0, 0.0, 0.0), True), (341, "f", 3, (4.0, 2.0, 1.0), True)]
    values = GENERATOR.random((HEIGHT, WIDTH, 3)).astype("float32")
    assert "different ranges" in reason_of(written(values, photometric="rgb", extratags=ends))


@pytest.mark.parametrize(("alone", "subfiletype"), [(True, 1), (False, 0), (False, 1)])
def test_a_thumbnail_before_its_image_is_refused(alone: bool, subfiletype: int) -> None:
    image = drawn(3, "uint8")
    buffer = io.BytesIO()
    with tifffile.TiffWriter(buffer) as writer:
        writer.write(image, photometric="rgb", subfiletype=subfiletype, metadata=None)
        if not alone:
            writer.write(np.repeat(image, 4, 0), photometric="rgb", metadata=None)
    if subfiletype and not alone:
        assert "reduced version of another" in reason_of(buffer.getvalue())
    else:
        assert np.abs(pixels_of(buffer.getvalue()) - expected(image, "rgb")).max() <= 1


def test_an_announced_size_is_refused_before_memory_is_taken() -> None:
    data = grey_file(b"\0" * 64, bits=12, more={256: (4, 60000), 257: (4, 60000), 279: (4, 64)})
    assert "above the limit" in reason_of(data)


@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
@pytest.mark.parametrize("planar", ["contig", "separate"])
@pytest.mark.parametrize("extra", [None, 0, 1])
def test_only_a_fourth_channel_that_is_no_associated_alpha_darkens(dtype: str, planar: str, extra: int | None) -> None:
    """OpenCV tags no extra channel; ITK tags each as associated alpha, and writes colours as they are."""
    values = drawn(4, dtype)
    source = np.moveaxis(values, 2, 0) if planar == "separate" else values
    data = written(source, photometric="rgb", planarconfig=planar, extrasamples=(extra or 0,))
    if extra is None:  # tifffile always writes the tag
        at = data.index(struct.pack("<HHI", 338, 3, 1))
        data = data[:at] + struct.pack("<H", 65000) + data[at + 2 :]
        assert tifffile.TiffFile(io.BytesIO(data)).pages[0].extrasamples == ()
    assert np.abs(pixels_of(data) - expected(values[..., :3], "rgb")).max() <= 1


@pytest.mark.parametrize("compression", ["zlib", "packbits", "zstd"])
@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
def test_strips_with_a_tail_of_zeros_are_refused(compression: str, dtype: str) -> None:
    """As of copies that broke off after the file got its size."""
    values = np.tile(np.arange(WIDTH, dtype=dtype), (HEIGHT, 1))
    data = written(values, photometric="minisblack", compression=compression, rowsperstrip=HEIGHT)
    page = tifffile.TiffFile(io.BytesIO(data)).pages[0]
    start, size = page.dataoffsets[0], page.databytecounts[0]
    broken = data[: start + size // 2] + bytes(size - size // 2) + data[start + size :]
    np.testing.assert_array_equal(pixels_of(data)[..., 0], pixels_of(data)[..., 1])
    assert "TIFF" in reason_of(broken)


def test_alpha_of_a_palette_is_composited_over_black() -> None:
    colours = GENERATOR.integers(0, 256, (256, 3), dtype=np.uint8)
    indices, alpha = drawn(1, "uint8")[..., 0], drawn(1, "uint8")[..., 0]
    image = Image.fromarray(indices, "P")
    image.putpalette(colours.tobytes())
    image = image.convert("PA")
    image.putalpha(Image.fromarray(alpha))
    buffer = io.BytesIO()
    image.save(buffer, "TIFF")
    over_black = colours[indices] * (alpha[..., None] / 255)
    assert np.abs(pixels_of(buffer.getvalue()) - over_black).max() <= 1


@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
def test_one_channel_in_a_plane_of_its_own(dtype: str) -> None:
    values = drawn(1, dtype)[..., 0]
    data = grey_file(values.tobytes(), bits=values.itemsize * 8, photometric=1, more={284: (3, 2)})
    scaled = np.rint(values / np.iinfo(dtype).max * 255)
    assert np.abs(pixels_of(data)[..., 0].astype(float) - scaled).max() <= 1


@pytest.mark.parametrize("compression", ["group3", "group4", "tiff_ccitt"])
@pytest.mark.parametrize("drawing", ["black", "white", "noise"])
def test_fax_lines_that_end_in_zeros_are_refused(tmp_path: Path, compression: str, drawing: str) -> None:
    """A copy that broke off in a file of the whole size: libtiff would make white lines of it."""
    noise = np.random.default_rng(0).integers(0, 2, (200, 300)).astype(bool)
    values = {"black": np.zeros_like(noise), "white": np.ones_like(noise), "noise": noise}[drawing]
    path = tmp_path / "fax.tif"
    Image.fromarray(values).save(path, compression=compression)
    data = bytearray(path.read_bytes())
    assert np.array_equal(decode.decode_image(bytes(data)).pixels[0].numpy() > 0, values)
    if drawing != "noise":
        return
    with tifffile.TiffFile(path) as tiff:
        at, size = tiff.pages[0].dataoffsets[-1], tiff.pages[0].databytecounts[-1]  # type: ignore[union-attr]
    data[at + size // 2 : at + size] = bytes(size - size // 2)
    with pytest.raises(decoded.ImageUnreadable, match="truncated TIFF"):
        decode.decode_image(bytes(data))
