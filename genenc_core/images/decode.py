"""Image bytes to upright RGB pixels, with one stated rule for every kind of file."""

import io
import warnings
from collections.abc import Mapping

import imagecodecs
import numpy as np
import torch
from PIL import (
    GifImagePlugin,
    Image,
    ImageChops,
    ImageFile,
    JpegImagePlugin,
    PngImagePlugin,
    PpmImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)

from genenc_core import memory
from genenc_core.images import bmp, headers, heif, plain_jpeg, png, tiff
from genenc_core.images.decoded import BAND_PIXELS, Decoded, Goal, ImageUnreadable, bands

MAX_PIXELS = 400_000_000
MAX_SCANS = 500
"""Of one JPEG; encoders write about ten, and each costs a pass over all pixels, however few bytes it has."""

_DECODER_MODULES = r"PIL\."

# A closed list: Pillow knows formats that run other programs (EPS), and Image.open() would apply its own size limit.
_PLUGINS: Mapping[bytes, type[ImageFile.ImageFile]] = {
    b"\xff\xd8\xff": JpegImagePlugin.JpegImageFile,
    headers.PNG_SIGNATURE: PngImagePlugin.PngImageFile,
    b"GIF8": GifImagePlugin.GifImageFile,
    b"BM": bmp.BmpImage,
    b"RIFF": WebPImagePlugin.WebPImageFile,
    **dict.fromkeys((b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"), TiffImagePlugin.TiffImageFile),
    **dict.fromkeys((b"P1", b"P2", b"P3", b"P4", b"P5", b"P6"), PpmImagePlugin.PpmImageFile),
}
_FLIPPED_DIMS: Mapping[int, tuple[int, ...]] = {2: (1,), 3: (0, 1), 4: (0,), 5: (), 6: (1,), 7: (0, 1), 8: (0,)}


def decode_image(
    data: bytes | bytearray,
    *,
    max_pixels: int = MAX_PIXELS,
    goal: Goal | None = None,
) -> Decoded:
    """Decode JPEG, PNG, GIF, TIFF, BMP, WebP, PPM, AVIF or HEIC bytes; thread-safe, the codecs release the GIL.

    Grey is replicated; 1 bit becomes 0 or 255; a palette becomes RGB; alpha and transparent colours are composited
    over black, that of a BMP where a mask names it and it is not zero everywhere; 16 bits per channel are scaled by
    their range, `round(v * 255 / 65535)` (colour TIFF and PPM: `v >> 8`, at most 1 less); wider integers within
    [0, 65535] count as 16-bit, but are refused if none is above 255 (unless all are 0); floats within [0, 1] are scaled
    by 255; others are refused, as is a TIFF whose tags state fewer bits than its samples have. CMYK and YCCK become
    RGB, with inverted inks where an Adobe marker says so. Colour profiles and gamma are ignored. Of several frames or
    pages the first is taken, of an animated PNG the still image. The EXIF orientation is applied.

    With a `goal` a grey or colour JPEG may come at the largest of libjpeg's reductions (1/2, 1/4, 1/8) that keeps as
    many pixels. None: whole, as it is.

    Raises:
        ImageUnreadable: empty, truncated, no image, more than `max_pixels` (before they are allocated), a JPEG of more
            than 500 scans, a refused mode.
    """
    if not data:
        raise ImageUnreadable("empty file (0 bytes)")
    plugin = _plugin_for(data)
    if plugin is JpegImagePlugin.JpegImageFile:
        header = headers.jpeg_header(data)
        if header is None or header.many_scans:
            _check_scans(data)
        if header is not None and header.plain:
            _check_size(header.height, header.width, max_pixels)
            found = _decode_plain_jpeg(data, header, goal)
            if found is not None:
                return found
    return _decode_in_words(data, plugin, max_pixels)


def upright_size(data: bytes | bytearray) -> tuple[int, int]:
    """Return (width, height) as the header says, after the orientation in it; no pixel is decoded.

    Raises:
        ImageUnreadable: no image that is read here.
        Exception: whatever Pillow raises for a damaged header.
    """
    plugin = _plugin_for(data)
    if plugin is TiffImagePlugin.TiffImageFile:
        page = tiff.Page(data)
        size, orientation = (page.width, page.height), headers.valid_orientation(page.orientation)
    else:
        _silence_decoders()
        with plugin(io.BytesIO(data)) as image:
            size = image.size
            is_jpeg = isinstance(image, JpegImagePlugin.JpegImageFile)
            exif = image.info.get("exif") or b""
        orientation = headers.jpeg_orientation(data) if is_jpeg else headers.exif_orientation(exif)
    return (size[1], size[0]) if orientation >= 5 else size


def _decode_in_words(data: bytes | bytearray, plugin: type[ImageFile.ImageFile], max_pixels: int) -> Decoded:
    """Decode with Pillow; whatever it raises for hostile bytes, which is nearly anything, becomes a reason."""
    _silence_decoders()
    try:
        if plugin is TiffImagePlugin.TiffImageFile:
            return _decode_tiff(data, max_pixels)
        if plugin is PngImagePlugin.PngImageFile:
            return _decode_png(data, max_pixels)
        return _decode_with_pillow(data, plugin, max_pixels)
    except (ImageUnreadable, MemoryError):
        raise
    except Image.DecompressionBombError as error:
        raise ImageUnreadable(
            f"more pixels than Pillow decodes of a {plugin.format} (179 megapixels): write it as PNG, TIFF or JPEG"
        ) from error
    except Exception as error:
        if memory.is_lacking(error):
            raise MemoryError(str(error)) from error
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ImageUnreadable(f"damaged or unsupported {plugin.format}: {reason[:200]}") from error


def _plugin_for(data: bytes | bytearray) -> type[ImageFile.ImageFile]:
    plugin = next((plugin for prefix, plugin in _PLUGINS.items() if data.startswith(prefix)), None)
    kind = heif.kind(data)
    if kind is not None:
        if not heif.is_installed(kind):
            raise ImageUnreadable(heif.remedy(kind))
        return heif.plugin(kind)
    if plugin is None or (plugin is WebPImagePlugin.WebPImageFile and data[8:12] != b"WEBP"):
        raise ImageUnreadable(headers.what_instead(data))
    return plugin


def _check_size(height: int, width: int, max_pixels: int) -> None:
    if height * width > max_pixels:
        limit = f"{max_pixels / 1e6:g} megapixels"
        raise ImageUnreadable(f"{width} x {height} pixels, above the limit of {limit}; --max-megapixels allows more")


def _check_scans(data: bytes | bytearray) -> None:
    scans = data.count(b"\xff\xda")
    if scans > MAX_SCANS:
        raise ImageUnreadable(f"a JPEG of {scans} scans, above the limit of {MAX_SCANS}: save the file again")


def _decode_plain_jpeg(data: bytes | bytearray, header: headers.JpegHeader, goal: Goal | None) -> Decoded | None:
    """Return None when libjpeg refuses."""
    size = (header.width, header.height) if header.orientation >= 5 else (header.height, header.width)
    reduction = 1
    if goal is not None and goal.reduce:
        reduction = plain_jpeg.largest_reduction(*size, goal.target(*size).size)
    if reduction > 1:
        _silence_decoders()  # Pillow decodes it
    pixels = plain_jpeg.decode(data, reduction=reduction)
    if pixels is None:
        return None
    upright = _upright(pixels, header.orientation)
    if reduction == 1:
        return _whole(upright, header.orientation)
    flipped = _FLIPPED_DIMS.get(header.orientation, ())
    top, left = (-size[axis] % reduction if axis in flipped else 0 for axis in (0, 1))
    return Decoded(pixels=upright, orientation=header.orientation, size=size, reduction=reduction, beyond=(top, left))


def _decode_with_pillow(data: bytes | bytearray, plugin: type[ImageFile.ImageFile], max_pixels: int) -> Decoded:
    ImageFile.LOAD_TRUNCATED_IMAGES = False  # somebody's model may have set it: missing rows would be grey
    with plugin(io.BytesIO(data)) as image:
        _check_size(image.height, image.width, max_pixels)
        tiff_orientation = image.tag_v2.get(274) if isinstance(image, TiffImagePlugin.TiffImageFile) else None
        covered = image.tile[0][1] if image.tile else None
        if isinstance(image, PpmImagePlugin.PpmImageFile):
            _check_samples(image, data)
        image.load()  # turns a TIFF upright by itself
        rgb = _rgb_array(image)
        if isinstance(image, GifImagePlugin.GifImageFile) and covered is not None:
            rgb = _only(covered, rgb)
        pixels = torch.from_numpy(rgb).permute(2, 0, 1)
        if isinstance(image, TiffImagePlugin.TiffImageFile):
            return _whole(pixels, headers.valid_orientation(tiff_orientation))
        if plugin is JpegImagePlugin.JpegImageFile:
            orientation = headers.jpeg_orientation(data)
        else:
            orientation = headers.exif_orientation(image.info.get("exif") or b"")
    return _whole(_upright(pixels, orientation), orientation)


def _check_samples(image: PpmImagePlugin.PpmImageFile, data: bytes | bytearray) -> None:
    """Refuse binary samples above the largest value that the header states; Pillow would make them white."""
    codec, _, offset, args = image.tile[0]
    if codec != "ppm" or not isinstance(args, tuple):  # another codec refuses them itself, or there are none
        return
    most = int(args[1])
    kind = np.dtype(np.uint8 if most < 256 else ">u2")
    count = min(image.height * image.width * len(image.getbands()), (len(data) - offset) // kind.itemsize)
    found = int(np.frombuffer(data, dtype=kind, count=count, offset=offset).max(initial=0))
    if found > most:
        raise ImageUnreadable(f"a sample of {found} in a file whose header states at most {most}: correct its header")


def _decode_tiff(data: bytes | bytearray, max_pixels: int) -> Decoded:
    """Decode the first page with the reader that its tags ask for."""
    page = tiff.Page(data)
    _check_size(page.height, page.width, max_pixels)
    if page.pillow_reads:
        return _decode_with_pillow(data, TiffImagePlugin.TiffImageFile, max_pixels)
    orientation = headers.valid_orientation(page.orientation)
    return _whole(_upright(torch.from_numpy(page.rgb()).permute(2, 0, 1), orientation), orientation)


def _decode_png(data: bytes | bytearray, max_pixels: int) -> Decoded:
    found = png.parse(data)
    _check_size(found.height, found.width, max_pixels)
    if found.is_wide_colour:
        rgb = _rgb_from_wide(found)
    else:
        with PngImagePlugin.PngImageFile(io.BytesIO(found.essential)) as image:
            image.load()
            last_row = image.crop((0, image.height - 1, image.width, image.height))
            if found.interlaced or not np.asarray(last_row).any():  # Pillow does not notice rows that are missing
                found.check_pixels()
            if found.transparent is not None:  # Pillow leaves it in the file's own bits where it scales the pixels
                image.info["transparency"] = found.transparent
            rgb = _rgb_array(image)
    orientation = headers.exif_orientation(found.exif)
    return _whole(_upright(torch.from_numpy(rgb).permute(2, 0, 1), orientation), orientation)


def _whole(upright: torch.Tensor, orientation: int) -> Decoded:
    return Decoded(pixels=upright, orientation=orientation, size=(upright.shape[1], upright.shape[2]))


def _silence_decoders() -> None:
    """Ignore the decoders' own warnings: Pillow's on odd metadata, which name no file.

    `warnings.catch_warnings` is not thread-safe before Python 3.14, so one filter for their modules is added once.
    """
    if not any(getattr(entry[3], "pattern", None) == _DECODER_MODULES for entry in warnings.filters):
        warnings.filterwarnings("ignore", module=_DECODER_MODULES)


def _rgb_array(image: ImageFile.ImageFile) -> np.ndarray:
    """Return a loaded image as uint8 [H, W, 3]."""
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        return _rgb_from_grey(np.array(image), image.info.get("transparency"))
    if image.mode == "CMYK" and isinstance(image, JpegImagePlugin.JpegImageFile) and "adobe" not in image.info:
        # Pillow takes the inks of every CMYK JPEG as inverted; libjpeg's notes say that only Adobe inverts them.
        return np.array(ImageChops.invert(image).convert("RGB"))
    if image.mode == "P":
        _check_indices(image)
    if bmp.has_blank_alpha(image):
        image.putalpha(255)
    if image.mode in ("RGBa", "La") or image.has_transparency_data:
        return _over_black(image)
    return _interleaved(image if image.mode == "RGB" else image.convert("RGB"))


def _check_indices(image: ImageFile.ImageFile) -> None:
    """Refuse indices beyond the palette, which Pillow takes for black; one that is transparent is black anyhow."""
    colours = len(image.getpalette() or ()) // 3
    histogram = np.array(image.histogram())
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):
        histogram[transparent : transparent + 1] = 0
    beyond = np.flatnonzero(histogram[colours:])
    if beyond.size:
        raise ImageUnreadable(
            f"damaged {image.format}: a pixel has colour number {colours + beyond[-1]} of a palette of {colours}, "
            "counted from 0"
        )


def _only(covered: tuple[int, int, int, int], rgb: np.ndarray) -> np.ndarray:
    """Return a GIF's first frame over black; Pillow gives what it leaves uncovered the palette's first colour."""
    left, top, right, bottom = covered
    framed = np.zeros_like(rgb)
    framed[top:bottom, left:right] = rgb[top:bottom, left:right]
    return framed


def _interleaved(image: Image.Image) -> np.ndarray:
    """Return an RGB image as [H, W, 3]; in bands, because of a whole image Pillow makes two more copies at once."""
    if image.height * image.width <= BAND_PIXELS:
        return np.array(image)
    pixels = np.empty((image.height, image.width, 3), dtype=np.uint8)
    for band in bands(image.height, image.width):
        pixels[band] = np.asarray(image.crop((0, band.start, image.width, band.stop)))
    return pixels


def _over_black(image: Image.Image) -> np.ndarray:
    """Return an image with transparency as [H, W, 3]: premultiplied colour is the composite over black."""
    pixels = np.empty((image.height, image.width, 3), dtype=np.uint8)
    for rows in bands(image.height, image.width):
        band = image.crop((0, rows.start, image.width, rows.stop))
        premultiplied = band if band.mode == "RGBa" else band.convert("RGBA").convert("RGBa")
        pixels[rows] = np.asarray(premultiplied)[..., :3]
    return pixels


def _rgb_from_grey(values: np.ndarray, transparent: object) -> np.ndarray:
    """Return grey values [H, W] of more than 8 bits as uint8 [H, W, 3].

    Raises:
        ImageUnreadable: 32-bit values whose range is not known.
    """
    low, high = values.min(), values.max()
    is_float = values.dtype.kind == "f"
    limit = 1 if is_float else 65535
    if not (low >= 0 and high <= limit):  # also true for NaN
        raise ImageUnreadable(f"32-bit pixels in [{low:g}, {high:g}]; only [0, {limit}] has a known scale")
    grey = np.rint(values * 255).astype(np.uint8) if is_float else _scaled_to_8_bit(values)
    if isinstance(transparent, int):
        grey[values == transparent] = 0
    return np.repeat(grey[..., None], 3, axis=2)


def _scaled_to_8_bit(values: np.ndarray) -> np.ndarray:
    """Return round(v * 255 / 65535) of values [H, W] in [0, 65535]; a shift instead of the division, exact."""
    scaled = np.empty(values.shape, dtype=np.uint8)
    for rows in bands(*values.shape):
        scaled[rows] = (values[rows].astype(np.uint32) * 255 + 32895) >> 16
    return scaled


def _rgb_from_wide(image: png.Png) -> np.ndarray:
    """Return a 16-bit RGB, grey + alpha or RGBA PNG as uint8 [H, W, 3]; Pillow would drop the low bytes."""
    image.check_pixels()
    channels = np.moveaxis(imagecodecs.png_decode(image.without_transparency()), 2, 0)
    rgb = np.empty((*channels.shape[1:], 3), dtype=np.uint8)
    for rows in bands(*channels.shape[1:]):
        band = channels[:, rows].astype(np.uint32)
        colour = band if len(band) == 3 else band[:-1] * band[-1:] // 65535
        rgb[rows] = np.moveaxis((colour * 255 + 32895) >> 16, 0, 2)
        if isinstance(image.transparent, tuple):
            rgb[rows][(band == np.array(image.transparent, dtype=np.uint32)[:, None, None]).all(axis=0)] = 0
    return rgb


def _upright(pixels: torch.Tensor, orientation: int) -> torch.Tensor:
    """Return [3, H, W] turned as its EXIF orientation says, in channels-last memory."""
    if orientation == 1:
        return pixels
    rows = pixels.permute(1, 2, 0)
    if orientation >= 5:
        rows = rows.transpose(0, 1)
    return rows.flip(_FLIPPED_DIMS[orientation]).contiguous().permute(2, 0, 1)
