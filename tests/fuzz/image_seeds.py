"""Small images of every format and kind that the product reads, drawn, as the fuzzer's starting points."""

import io
import struct
import zlib
from collections.abc import Iterator

import numpy as np
from PIL import Image


def seeds() -> dict[str, list[bytes]]:
    """Return the files of each format."""
    generator = np.random.default_rng(0)
    coarse = Image.fromarray(generator.integers(0, 256, (6, 7, 4), dtype=np.uint8), "RGBA")
    rgba = coarse.resize((53, 41), Image.Resampling.BICUBIC)
    rgb = rgba.convert("RGB")
    grey16 = Image.fromarray(np.asarray(rgb.convert("L")).astype(np.uint16) * 257)
    return {
        "jpeg": list(_jpegs(rgb)),
        "png": list(_pngs(rgba, grey16)),
        "tiff": list(_tiffs(rgba, grey16)),
        "webp": list(_webps(rgba)),
        "gif": list(_gifs(rgb)),
        "bmp": list(_bmps(rgba)),
        "ppm": list(_ppms(rgb)),
    }


def png_chunk(name: bytes, body: bytes) -> bytes:
    """Return a chunk with its checksum."""
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def _saved(image: Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def _jpegs(rgb: Image.Image) -> Iterator[bytes]:
    exif = Image.Exif()
    exif[0x0112] = 6
    exif[0x010E] = "drawn"
    yield _saved(rgb, "JPEG", quality=90)
    yield _saved(rgb, "JPEG", quality=30, progressive=True, subsampling="4:4:4")
    yield _saved(rgb.convert("L"), "JPEG", restart_marker_rows=1)
    yield _saved(rgb.convert("CMYK"), "JPEG", progressive=True)
    yield _saved(rgb, "JPEG", exif=exif, icc_profile=bytes(200), comment=b"drawn", optimize=True)


def _pngs(rgba: Image.Image, grey16: Image.Image) -> Iterator[bytes]:
    rgb = rgba.convert("RGB")
    exif = Image.Exif()
    exif[0x0112] = 8
    yield _saved(rgb, "PNG", exif=exif)
    yield _saved(rgba, "PNG")
    yield _saved(rgba.convert("LA"), "PNG", icc_profile=bytes(100))
    yield _saved(rgb.quantize(17), "PNG", transparency=3, bits=8)
    yield _saved(rgb.convert("1"), "PNG")
    yield _saved(grey16, "PNG")
    yield _saved(rgb, "PNG", save_all=True, append_images=[rgb.rotate(90)])
    deep = np.asarray(rgb).astype(">u2") * 257
    lines = b"".join(b"\0" + row.tobytes() for row in deep)
    for interlaced in (0, 1):
        header = struct.pack(">IIBBBBB", 53, 41, 16, 2, 0, 0, interlaced)
        body = png_chunk(b"IHDR", header) + png_chunk(b"tRNS", bytes(6)) + png_chunk(b"IDAT", zlib.compress(lines))
        yield b"\x89PNG\r\n\x1a\n" + body + png_chunk(b"IEND", b"")


def _tiffs(rgba: Image.Image, grey16: Image.Image) -> Iterator[bytes]:
    rgb = rgba.convert("RGB")
    for compression in (None, "tiff_lzw", "tiff_adobe_deflate", "jpeg", "packbits"):
        yield _saved(rgb, "TIFF", compression=compression)
    yield _saved(rgb.convert("1"), "TIFF", compression="group4")
    yield _saved(grey16, "TIFF", compression="tiff_lzw")
    yield _saved(rgba, "TIFF", tiffinfo={274: 5})
    yield _saved(rgb.convert("CMYK"), "TIFF", compression="tiff_deflate")
    yield _saved(rgb.convert("F"), "TIFF")
    yield _saved(rgb.convert("L"), "TIFF", big_tiff=True)
    yield _saved(rgb.quantize(9), "TIFF", save_all=True, append_images=[rgb, rgb.convert("L")])


def _webps(rgba: Image.Image) -> Iterator[bytes]:
    rgb = rgba.convert("RGB")
    exif = Image.Exif()
    exif[0x0112] = 3
    yield _saved(rgb, "WEBP", quality=60)
    yield _saved(rgba, "WEBP", lossless=True)
    yield _saved(rgba, "WEBP", quality=40, exif=exif, icc_profile=bytes(100))
    yield _saved(rgb, "WEBP", save_all=True, append_images=[rgba, rgb.rotate(180)], duration=10)


def _gifs(rgb: Image.Image) -> Iterator[bytes]:
    palette = rgb.quantize(31)
    yield _saved(palette, "GIF")
    yield _saved(palette, "GIF", interlace=True, transparency=4)
    yield _saved(palette, "GIF", save_all=True, append_images=[palette.rotate(90), palette], comment=b"drawn")
    yield _saved(rgb.convert("L"), "GIF")


def _bmps(rgba: Image.Image) -> Iterator[bytes]:
    rgb = rgba.convert("RGB")
    for image in (rgb, rgba, rgb.convert("L"), rgb.quantize(16), rgb.convert("1")):
        yield _saved(image, "BMP")
    run_lengths = b"".join(bytes((53, row)) + b"\0\0" for row in range(41)) + b"\0\1"
    data = bytearray(_saved(rgb.convert("L"), "BMP"))
    start = int.from_bytes(data[10:14], "little")
    data[30:38] = struct.pack("<II", 1, len(run_lengths))
    yield bytes(data[:start]) + run_lengths


def _ppms(rgb: Image.Image) -> Iterator[bytes]:
    for image in (rgb, rgb.convert("L"), rgb.convert("1")):
        yield _saved(image, "PPM")
    values = np.asarray(rgb)
    text = " ".join(map(str, values.ravel())).encode()
    yield b"P3\n# drawn\n53 41\n255\n" + text
    yield b"P2 53 41 65535\n" + " ".join(str(int(value) * 257) for value in values[..., 0].ravel()).encode()
    yield b"P1 53 41\n" + b" ".join(b"01"[bit : bit + 1] for bit in (values[..., 0].ravel() > 127).astype(int))
    yield b"P6 53 41 65535\n" + (values.astype(">u2") * 257).tobytes()
