"""Decoding of image bytes to upright RGB pixels, with documented rules for every format."""

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

from genenc_core.images.decode import bmp, headers, heif, jpeg, png, tiff
from genenc_core.images.decode.decoded import BAND_PIXELS, Decoded, ImageUnreadable, ResizeHint, bands
from genenc_core.system import memory

MAX_PIXELS = 400_000_000
MAX_SCANS = 500
"""Per JPEG; encoders write about ten, and each costs a pass over all pixels, even if it has few bytes."""

_DECODER_MODULES = r"PIL\."

# Explicit list: some Pillow formats run other programs (EPS), and Image.open() would apply its own size limit.
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
    hint: ResizeHint | None = None,
) -> Decoded:
    """Decode JPEG, PNG, GIF, TIFF, BMP, WebP, PPM, AVIF or HEIC bytes; thread-safe, the codecs release the GIL.

    Grey is replicated; 1 bit becomes 0 or 255; a palette becomes RGB; alpha and transparent colours are composited
    over black (for BMP, alpha that has a mask and is not zero everywhere); 16 bits per channel are scaled by their
    range, `round(v * 255 / 65535)` (colour TIFF and PPM: `v >> 8`, at most 1 less); wider integers within [0, 65535]
    count as 16-bit, but are rejected if none is above 255 (unless all are 0); floats within [0, 1] are scaled by 255;
    others are rejected, as is a TIFF whose tags state fewer bits than its samples have. CMYK and YCCK become RGB, with
    inverted inks if there is an Adobe marker. Colour profiles and gamma are ignored. Only the first of several frames
    or pages is decoded, and the still image of an animated PNG. The EXIF orientation is applied.

    With a `hint`, a grey or colour JPEG may be decoded at the largest of libjpeg's reductions (1/2, 1/4, 1/8) that
    still has at least the target's pixels; without one, at full size.

    Raises:
        ImageUnreadable: empty, truncated, not an image, more than `max_pixels` (checked before allocation), a JPEG of
            more than 500 scans, or a rejected mode.
    """
    if not data:
        raise ImageUnreadable("empty file (0 bytes)")
    plugin = _plugin_for(data)
    if plugin is JpegImagePlugin.JpegImageFile:
        header = headers.jpeg_header(data)
        if header is None or header.many_scans:
            _check_scans(data)
        if header is not None and header.plain:
            check_size(header.height, header.width, max_pixels)
            image = _decode_plain_jpeg(data, header, hint)
            if image is not None:
                return image
    return _decode_or_explain(data, plugin, max_pixels)


def size_and_orientation(data: bytes | bytearray) -> tuple[tuple[int, int], int]:
    """Return the upright (width, height) and EXIF orientation from the header, without decoding pixels.

    Raises:
        ImageUnreadable: not a supported image.
        Exception: anything Pillow raises for a damaged header.
    """
    plugin = _plugin_for(data)
    if plugin is TiffImagePlugin.TiffImageFile:
        page = tiff.Page.first(data)
        size, orientation = (page.width, page.height), headers.valid_orientation(page.orientation)
    elif plugin is PngImagePlugin.PngImageFile:  # Pillow stops before the pixels, but EXIF may follow them
        parsed = png.parse(data)
        size, orientation = (parsed.width, parsed.height), headers.exif_orientation(parsed.exif)
    else:
        _silence_decoders()
        with plugin(io.BytesIO(data)) as image:
            size = image.size
            is_jpeg = isinstance(image, JpegImagePlugin.JpegImageFile)
            exif = image.info.get("exif") or b""
        orientation = headers.jpeg_orientation(data) if is_jpeg else headers.exif_orientation(exif)
    return ((size[1], size[0]) if orientation >= 5 else size), orientation


def upright(pixels: torch.Tensor, orientation: int) -> torch.Tensor:
    """Apply an EXIF orientation to pixels `[3, H, W]`; the result is in channels-last memory."""
    if orientation == 1:
        return pixels
    rows = pixels.permute(1, 2, 0)
    if orientation >= 5:
        rows = rows.transpose(0, 1)
    return rows.flip(_FLIPPED_DIMS[orientation]).contiguous().permute(2, 0, 1)


def _decode_or_explain(data: bytes | bytearray, plugin: type[ImageFile.ImageFile], max_pixels: int) -> Decoded:
    """Decode with Pillow, and convert anything it raises for damaged data to `ImageUnreadable`."""
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
            f"more pixels than Pillow's limit for {plugin.format} (179 megapixels): convert it to PNG, TIFF or JPEG"
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
            raise ImageUnreadable(heif.not_installed(kind))
        if heif.is_truncated(data):
            raise ImageUnreadable(f"truncated {kind}: it ends before its pixels do")
        if kind == "AVIF" and heif.is_cropped(data):  # the HEIC decoder applies it
            raise ImageUnreadable("unsupported AVIF with a clean aperture (clap): crop it and save the file again")
        return heif.plugin(kind)
    if plugin is None or (plugin is WebPImagePlugin.WebPImageFile and data[8:12] != b"WEBP"):
        raise ImageUnreadable(headers.describe_unknown(data))
    return plugin


def check_size(height: int, width: int, max_pixels: int) -> None:
    """Check that an image has at most `max_pixels`; raises `ImageUnreadable`."""
    if height * width > max_pixels:
        limit = f"{max_pixels / 1e6:g} megapixels"
        raise ImageUnreadable(f"{width} x {height} pixels, above the limit of {limit}; raise it with --max-megapixels")


def _check_scans(data: bytes | bytearray) -> None:
    scans = data.count(b"\xff\xda")
    if scans > MAX_SCANS:
        raise ImageUnreadable(f"JPEG with {scans} scans, above the limit of {MAX_SCANS}: save the file again")


def _decode_plain_jpeg(data: bytes | bytearray, header: headers.JpegHeader, hint: ResizeHint | None) -> Decoded | None:
    """Decode with libjpeg; return None if it refuses."""
    size = header.upright_size
    reduction = 1
    if hint is not None and hint.reduce:
        reduction = jpeg.largest_reduction(*size, hint.target(*size).size)
    if reduction > 1:
        _silence_decoders()  # Pillow decodes it
    pixels = jpeg.decode(data, reduction=reduction)
    if pixels is None:
        return None
    turned = upright(pixels, header.orientation)
    if reduction == 1:
        return _whole(turned, header.orientation)
    flipped = _FLIPPED_DIMS.get(header.orientation, ())
    top, left = (-size[axis] % reduction if axis in flipped else 0 for axis in (0, 1))
    return Decoded(pixels=turned, orientation=header.orientation, size=size, reduction=reduction, overhang=(top, left))


def _decode_with_pillow(data: bytes | bytearray, plugin: type[ImageFile.ImageFile], max_pixels: int) -> Decoded:
    ImageFile.LOAD_TRUNCATED_IMAGES = False  # user code may have set it, which turns missing rows grey
    with plugin(io.BytesIO(data)) as image:
        check_size(image.height, image.width, max_pixels)
        tiff_orientation = image.tag_v2.get(274) if isinstance(image, TiffImagePlugin.TiffImageFile) else None
        covered = image.tile[0][1] if image.tile else None
        if isinstance(image, PpmImagePlugin.PpmImageFile):
            _check_samples(image, data)
        image.info.pop("xmp", None)  # Pillow uses an orientation in it for some kinds of TIFF only
        image.load()  # also applies the orientation of a TIFF
        rgb = _rgb_array(image)
        if isinstance(image, GifImagePlugin.GifImageFile) and covered is not None:
            rgb = _cleared_outside(covered, rgb)
        pixels = torch.from_numpy(rgb).permute(2, 0, 1)
        if isinstance(image, TiffImagePlugin.TiffImageFile):
            return _whole(pixels, headers.valid_orientation(tiff_orientation))
        if plugin is JpegImagePlugin.JpegImageFile:
            orientation = headers.jpeg_orientation(data)
        else:
            orientation = headers.exif_orientation(image.info.get("exif") or b"")
    return _whole(upright(pixels, orientation), orientation)


def _check_samples(image: PpmImagePlugin.PpmImageFile, data: bytes | bytearray) -> None:
    """Reject binary samples above the maximum in the header, which Pillow would turn white."""
    codec, _, offset, args = image.tile[0]
    if codec != "ppm" or not isinstance(args, tuple):  # other codecs reject them, or there are none
        return
    limit = int(args[1])
    kind = np.dtype(np.uint8 if limit < 256 else ">u2")
    count = min(image.height * image.width * len(image.getbands()), (len(data) - offset) // kind.itemsize)
    largest = int(np.frombuffer(data, dtype=kind, count=count, offset=offset).max(initial=0))
    if largest > limit:
        raise ImageUnreadable(f"sample {largest} exceeds the maximum of {limit} in the header: correct the header")


def _decode_tiff(data: bytes | bytearray, max_pixels: int) -> Decoded:
    """Decode the first page, with Pillow or tifffile depending on its tags."""
    page = tiff.Page.first(data)
    check_size(page.height, page.width, max_pixels)
    if page.pillow_reads:
        return _decode_with_pillow(data, TiffImagePlugin.TiffImageFile, max_pixels)
    orientation = headers.valid_orientation(page.orientation)
    return _whole(upright(torch.from_numpy(page.rgb()).permute(2, 0, 1), orientation), orientation)


def _decode_png(data: bytes | bytearray, max_pixels: int) -> Decoded:
    parsed = png.parse(data)
    check_size(parsed.height, parsed.width, max_pixels)
    if parsed.is_wide_colour:
        rgb = _rgb_from_wide(parsed)
    else:
        with PngImagePlugin.PngImageFile(io.BytesIO(parsed.essential)) as image:
            image.load()
            last_row = image.crop((0, image.height - 1, image.width, image.height))
            if parsed.interlaced or not np.asarray(last_row).any():  # Pillow does not detect missing rows
                parsed.check_pixels()
            if parsed.transparent is not None:  # Pillow does not scale it with the pixels
                image.info["transparency"] = parsed.transparent
            rgb = _rgb_array(image)
    orientation = headers.exif_orientation(parsed.exif)
    return _whole(upright(torch.from_numpy(rgb).permute(2, 0, 1), orientation), orientation)


def _whole(pixels: torch.Tensor, orientation: int) -> Decoded:
    return Decoded(pixels=pixels, orientation=orientation, size=(pixels.shape[1], pixels.shape[2]))


def _silence_decoders() -> None:
    """Ignore Pillow's warnings about odd metadata, which name no file.

    `warnings.catch_warnings` is not thread-safe before Python 3.14, so a filter for its modules is added once.
    """
    if not any(getattr(entry[3], "pattern", None) == _DECODER_MODULES for entry in warnings.filters):
        warnings.filterwarnings("ignore", module=_DECODER_MODULES)


def _rgb_array(image: ImageFile.ImageFile) -> np.ndarray:
    """Return a loaded image as uint8 `[H, W, 3]`."""
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        return _rgb_from_grey(np.array(image), image.info.get("transparency"))
    if image.mode == "CMYK" and isinstance(image, JpegImagePlugin.JpegImageFile) and "adobe" not in image.info:
        # Pillow assumes inverted inks in every CMYK JPEG; according to libjpeg's notes only Adobe inverts them.
        return np.array(ImageChops.invert(image).convert("RGB"))
    if image.mode == "P":
        _check_indices(image)
    if image.mode in ("RGBA", "LA") and image.getchannel("A").getextrema()[1] == 0:
        image.putalpha(255)  # the alpha channel was left blank
    if image.mode == "P" and isinstance(alpha := image.info.get("transparency"), bytes):
        used = np.flatnonzero(image.histogram()[: len(alpha)])
        if sum(image.histogram()[len(alpha) :]) == 0 and not np.frombuffer(alpha, np.uint8)[used].any():
            del image.info["transparency"]  # likewise, by index
    if image.mode in ("RGBa", "La") or image.has_transparency_data:
        return _over_black(image)
    return _interleaved(image if image.mode == "RGB" else image.convert("RGB"))


def _check_indices(image: ImageFile.ImageFile) -> None:
    """Reject indices beyond the palette, which Pillow maps to black; a transparent one becomes black anyway."""
    colours = len(image.getpalette() or ()) // 3
    histogram = np.array(image.histogram())
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):
        histogram[transparent : transparent + 1] = 0
    invalid = np.flatnonzero(histogram[colours:])
    if invalid.size:
        raise ImageUnreadable(
            f"damaged {image.format}: a pixel has index {colours + invalid[-1]} in a palette of {colours} colours"
        )


def _cleared_outside(covered: tuple[int, int, int, int], rgb: np.ndarray) -> np.ndarray:
    """Return a GIF's first frame over black; Pillow fills the uncovered part with the palette's first colour."""
    left, top, right, bottom = covered
    framed = np.zeros_like(rgb)
    framed[top:bottom, left:right] = rgb[top:bottom, left:right]
    return framed


def _interleaved(image: Image.Image) -> np.ndarray:
    """Return an RGB image as `[H, W, 3]`, in bands because Pillow makes two temporary copies of a whole image."""
    if image.height * image.width <= BAND_PIXELS:
        return np.array(image)
    pixels = np.empty((image.height, image.width, 3), dtype=np.uint8)
    for band in bands(image.height, image.width):
        pixels[band] = np.asarray(image.crop((0, band.start, image.width, band.stop)))
    return pixels


def _over_black(image: Image.Image) -> np.ndarray:
    """Return an image with transparency as `[H, W, 3]`: premultiplied colour is the composite over black."""
    pixels = np.empty((image.height, image.width, 3), dtype=np.uint8)
    for rows in bands(image.height, image.width):
        band = image.crop((0, rows.start, image.width, rows.stop))
        premultiplied = band if band.mode == "RGBa" else band.convert("RGBA").convert("RGBa")
        pixels[rows] = np.asarray(premultiplied)[..., :3]
    return pixels


def _rgb_from_grey(values: np.ndarray, transparent: object) -> np.ndarray:
    """Return grey values `[H, W]` of more than 8 bits as uint8 `[H, W, 3]`.

    Raises:
        ImageUnreadable: 32-bit values with an unknown range.
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
    """Return round(v * 255 / 65535) of values `[H, W]` in [0, 65535], computed exactly with a shift."""
    scaled = np.empty(values.shape, dtype=np.uint8)
    for rows in bands(*values.shape):
        scaled[rows] = (values[rows].astype(np.uint32) * 255 + 32895) >> 16
    return scaled


def _rgb_from_wide(image: png.Png) -> np.ndarray:
    """Return a 16-bit RGB, grey + alpha or RGBA PNG as uint8 `[H, W, 3]`; Pillow would drop the low bytes."""
    image.check_pixels()
    channels = np.moveaxis(imagecodecs.png_decode(image.without_transparency()), 2, 0)
    if len(channels) in (2, 4) and not channels[-1].any():  # blank alpha
        channels = channels[:-1]
    rgb = np.empty((*channels.shape[1:], 3), dtype=np.uint8)
    for rows in bands(*channels.shape[1:]):
        band = channels[:, rows].astype(np.uint32)
        colour = band if len(band) in (1, 3) else band[:-1] * band[-1:] // 65535
        rgb[rows] = np.moveaxis((colour * 255 + 32895) >> 16, 0, 2)
        if isinstance(image.transparent, tuple):
            rgb[rows][(band == np.array(image.transparent, dtype=np.uint32)[:, None, None]).all(axis=0)] = 0
    return rgb
