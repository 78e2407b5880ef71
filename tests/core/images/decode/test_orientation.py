"""The orientation of a JPEG is that of its first EXIF block with a TIFF header, wherever other readers look, too."""

import io
import struct
import zlib
from collections.abc import Callable

import numpy as np
import pytest
import tifffile
from PIL import Image, ImageOps

from genenc_core.images.decode import decode, headers

SHORT, LONG, BYTE, SSHORT, SLONG = 3, 4, 1, 8, 9


def tiff(orientation: int | None, *, order: str = "<", kind: int = SHORT, count: int = 1, padding: int = 0) -> bytes:
    """Return a TIFF block whose only entry is the orientation, or one without it."""
    entries = b""
    if orientation is not None:
        code = {SHORT: "H", LONG: "I", BYTE: "B", SSHORT: "h", SLONG: "i"}[kind]
        value = struct.pack(order + code, orientation).ljust(4, b"\0")
        entries = struct.pack(order + "HHI", headers._ORIENTATION_TAG, kind, count) + value
    mark = b"II*\0" if order == "<" else b"MM\0*"
    start = struct.pack(order + "I", 8 + padding)
    return mark + start + bytes(padding) + struct.pack(order + "H", len(entries) // 12) + entries + bytes(4)


def app1(body: bytes, mark: bytes = b"Exif\0\0") -> bytes:
    return b"\xff\xe1" + struct.pack(">H", 2 + len(mark) + len(body)) + mark + body


IN_THE_THUMBNAIL = tiff(None)[:-4] + struct.pack("<I", 14) + tiff(6)[8:]
XMP = app1(b'<x tiff:Orientation="6"/>', mark=b"http://ns.adobe.com/xap/1.0/\0")
LONG_BLOCK = tiff(6, padding=70_000)
CASES: dict[str, tuple[bytes, int]] = {
    "none": (b"", 1),
    "one": (app1(tiff(6)), 6),
    "big-endian": (app1(tiff(8, order=">")), 8),
    "then a block without orientation": (app1(tiff(6)) + app1(tiff(None)), 6),
    "then a continuation": (app1(tiff(6)) + app1(bytes(300)), 6),
    "then another orientation": (app1(tiff(6)) + app1(tiff(3)), 6),
    "behind a block without orientation": (app1(tiff(None)) + app1(tiff(6)), 1),
    "behind a block that is none": (app1(b"junk" * 9) + app1(tiff(6)), 6),
    "behind XMP": (XMP + app1(tiff(3)), 3),
    "in XMP alone": (XMP, 1),
    "longer than a segment": (app1(LONG_BLOCK[:60_000]) + app1(LONG_BLOCK[60_000:]), 6),
    "behind fill bytes": (b"\xff\xff\xff" + app1(tiff(6)), 6),
    "as LONG": (app1(tiff(6, kind=LONG)), 6),
    "as LONG, big-endian": (app1(tiff(6, kind=LONG, order=">")), 6),
    "two of them": (app1(tiff(6, count=2)), 6),
    "as SSHORT": (app1(tiff(6, kind=SSHORT)), 6),
    "as SSHORT, big-endian": (app1(tiff(6, kind=SSHORT, order=">")), 6),
    "as SLONG": (app1(tiff(6, kind=SLONG)), 6),
    "as SLONG, negative": (app1(tiff(-6, kind=SLONG)), 1),
    "none of it": (app1(tiff(6, count=0)), 1),
    "0": (app1(tiff(0)), 1),
    "9": (app1(tiff(9)), 1),
    "of the thumbnail": (app1(IN_THE_THUMBNAIL), 1),
    "behind a comment": (b"\xff\xfe\0\x06abcd" + app1(tiff(6)), 6),
    "not a TIFF header": (app1(b"II+\0" + tiff(6)[4:]), 1),
}
PILLOW_DIFFERS = {"in XMP alone", "behind a block that is none", "two of them", "as LONG, big-endian"}


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("name", CASES)
def test_jpeg(photo: np.ndarray, encode: Callable[..., bytes], name: str, mode: str) -> None:
    """Whichever decoder takes the file: the plain path takes grey and colour, Pillow CMYK."""
    segments, orientation = CASES[name]
    plain = encode(Image.fromarray(photo).convert(mode), "JPEG")
    data = plain[:2] + segments + plain[2:]
    found = decode.decode_image(data)
    assert found.orientation == orientation
    turned = orientation >= 5
    assert found.size == (photo.shape[1::-1] if turned else photo.shape[:2])
    if name not in PILLOW_DIFFERS:
        expected = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
        assert expected is not None
        np.testing.assert_array_equal(found.pixels.permute(1, 2, 0).numpy(), np.asarray(expected.convert("RGB")))


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_texts_of_other_files_say_nothing(photo: np.ndarray, encode: Callable[..., bytes], kind: str) -> None:
    """XMP, and the raw profile that ImageMagick writes into a PNG's texts, are not read; eXIf is."""
    from PIL import PngImagePlugin

    options: dict[str, object] = {"xmp": b'<x tiff:Orientation="6"/>'} if kind == "WEBP" else {}
    if kind == "PNG":
        texts = PngImagePlugin.PngInfo()
        profile = (b"Exif\0\0" + tiff(6)).hex()
        texts.add_text("Raw profile type exif", f"\nexif\n{len(profile) // 2:8d}\n{profile}\n")
        texts.add_itxt("XML:com.adobe.xmp", '<x tiff:Orientation="6"/>')
        options = {"pnginfo": texts}
    data = encode(Image.fromarray(photo), kind, **options)
    assert decode.decode_image(data).orientation == 1
    options["exif"] = tiff(6) if kind == "PNG" else b"Exif\0\0" + tiff(6)
    assert decode.decode_image(encode(Image.fromarray(photo), kind, **options)).orientation == 6


def test_the_upright_size_of_a_png_whose_exif_stands_behind_its_pixels(photo: np.ndarray) -> None:
    file = io.BytesIO()
    Image.fromarray(photo).save(file, "PNG")
    whole = file.getvalue()
    chunk = b"eXIf" + tiff(6)
    exif = (len(chunk) - 4).to_bytes(4, "big") + chunk + zlib.crc32(chunk).to_bytes(4, "big")
    data = whole[:-12] + exif + whole[-12:]  # before IEND
    assert decode.decode_image(data).size == photo.shape[1::-1]
    assert decode.size_and_orientation(data)[0] == photo.shape[:2]


@pytest.mark.parametrize("kind", ["rgb8", "rgb16", "grey8", "grey16"])
def test_xmp_of_a_tiff_says_nothing(photo: np.ndarray, kind: str) -> None:
    """The tag does, where it is there."""
    pixels = photo if kind.startswith("rgb") else photo[..., 0]
    pixels = pixels.astype(np.uint16) * 257 if kind.endswith("16") else pixels
    xmp = b'<x:xmpmeta><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
    tags: list[tuple[int, int, int, object, bool]] = [(700, 1, len(xmp), xmp, True)]
    for orientation, shape in ((1, photo.shape[:2]), (8, photo.shape[1::-1])):
        file = io.BytesIO()
        photometric = "rgb" if kind.startswith("rgb") else "minisblack"
        more = [(274, 3, 1, orientation, True)] if orientation > 1 else []
        tifffile.imwrite(file, pixels, photometric=photometric, extratags=[*more, *tags], metadata=None)
        found = decode.decode_image(file.getvalue())
        assert (found.orientation, found.size) == (orientation, shape)
        assert decode.size_and_orientation(file.getvalue())[0] == shape[::-1]
