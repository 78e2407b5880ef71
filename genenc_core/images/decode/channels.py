"""Decoding to channels other than 8-bit RGB: each channel's own values, chosen and scaled, as float32."""

from collections.abc import Sequence

import imagecodecs
import numpy as np
import torch

from genenc_core import spec
from genenc_core.images.decode import channel_names, decode, headers, heif, png, pnm, tiff_channels
from genenc_core.images.decode.decoded import Decoded, ImageUnreadable, Samples
from genenc_core.system import memory

_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_PALETTE = 3
_PNG_CHANNELS = {0: 1, 2: 3, _PALETTE: 3, 4: 2, 6: 4}
_GREY = 1
"""Components of a JPEG."""
_WIDE = (np.float64, np.int32, np.uint32, np.int64, np.uint64)
"""Types of which float32 does not hold every value."""
_NO_DATA = 1e37
"""Floats beyond are what tools write where there is no data; float32 ends at 3.4e38."""


def decode_channels(data: bytes | bytearray, wanted: spec.Channels, *, max_pixels: int = decode.MAX_PIXELS) -> Decoded:
    """Decode an image's bytes to float32 `[C, H, W]`, upright.

    Every sample of a TIFF is a channel, with its own bits, and so are those of a PNG without a palette, a PGM or a PPM;
    a grey JPEG has one channel; all else has the three of `decode.decode_image`.

    Raises:
        ImageUnreadable: as `decode.decode_image` and `selected`.
    """
    try:
        if wanted.value_range is not None and (bits := heif.bits(data)) > 8:
            raise ImageUnreadable(
                f"{heif.kind(data)} of {bits} bits per channel is read as one of 8, of which --value-range would be: "
                "save it as a PNG or TIFF of 16 bits"
            )
        found = _samples(data, max_pixels, named=wanted.names is not None)
        if found is not None:
            return selected(found[0], wanted, found[1])
        image = decode.decode_image(data, max_pixels=max_pixels)
        values = image.pixels.permute(1, 2, 0).numpy()
        samples = Samples.of(values[..., :1] if _is_grey_jpeg(data) else values)
        return selected(samples, wanted)._replace(orientation=image.orientation)  # its pixels are upright already
    except (ImageUnreadable, MemoryError):
        raise
    except Exception as error:  # codecs raise their own
        if memory.is_lacking(error):
            raise MemoryError(str(error)) from error
        raise ImageUnreadable(f"damaged or unsupported: {' '.join(str(error).split())[:200]}") from error


def selected(samples: Samples, wanted: spec.Channels, orientation: int = 1) -> Decoded:
    """Return the wanted channels, upright, in [0, 1]: (value - LOW) / (HIGH - LOW), also beyond a stated range.

    NaN, and the value that the file states for pixels without data, become LOW, thus 0.

    Raises:
        ImageUnreadable: another number of channels, values without a known range, infinite, or none but no-data.
    """
    at = chosen_of(samples.values.shape[2], wanted, samples.names)
    ranges = _ranges(samples, wanted)
    planes = np.empty((len(at), *samples.values.shape[:2]), np.float32)
    empty = True
    for plane, channel, (low, high) in zip(planes, at, ranges, strict=True):
        missing = _scale(samples, channel, low, high, out=plane)
        empty &= missing is not None and bool(missing.all())
    if empty:
        raise ImageUnreadable("none of its pixels has data (NaN, or the no-data value that it states)")
    if wanted.value_range is None:
        _check_range(planes, samples)
    pixels = decode.upright(torch.from_numpy(planes), orientation)
    return Decoded(pixels=pixels, orientation=orientation, size=(pixels.shape[1], pixels.shape[2]))


def chosen_of(count: int, wanted: spec.Channels, names: Sequence[str] = ()) -> Sequence[int]:
    """Return the channels to take of a file that has so many, of these names, () where it states none.

    Raises:
        ImageUnreadable: it has not those.
    """
    if wanted.names is not None:
        return channel_names.positions(wanted.names, names, count)
    has = f"the file has {count} channel{'' if count == 1 else 's'}"
    if wanted.chosen is not None:
        if max(wanted.chosen) >= count:
            raise ImageUnreadable(f"there is no channel {max(wanted.chosen)}: {has}, 0 to {count - 1}")
        return wanted.chosen
    if count != wanted.count:
        raise ImageUnreadable(
            f"{has}, but the model takes {wanted.count}: choose {wanted.count} with --channels (numbered from 0)"
        )
    return range(count)


def count_of(data: bytes | bytearray) -> tuple[int, tuple[str, ...]]:
    """Return how many channels an image has by its header, and their names; raises as `decode_channels`."""
    if data.startswith(_TIFF):
        layout = tiff_channels.Layout.of_bytes(data, named=True)
        return layout.channels, layout.names
    if data.startswith(headers.PNG_SIGNATURE):
        return _PNG_CHANNELS[png.parse(data).kind], ()
    if pnm.is_pnm(data):
        return pnm.count_of(data), ()
    return 1 if _is_grey_jpeg(data) else 3, ()


def _samples(data: bytes | bytearray, max_pixels: int, *, named: bool) -> tuple[Samples, int] | None:
    """Return an image's samples as stored, `named` with the names of its channels, and its EXIF orientation.

    None for kinds of files that have those of 8-bit RGB alone.
    """
    if data.startswith(_TIFF):
        return tiff_channels.read(data, max_pixels, named=named)
    if pnm.is_pnm(data):
        return pnm.read(data, max_pixels), 1
    if data.startswith(headers.PNG_SIGNATURE):
        parsed = png.parse(data)
        decode.check_size(parsed.height, parsed.width, max_pixels)
        if parsed.kind != _PALETTE:
            return _of_png(parsed), headers.exif_orientation(parsed.exif)
    return None


def _of_png(parsed: png.Png) -> Samples:
    parsed.check_pixels()
    values = np.asarray(imagecodecs.png_decode(parsed.without_transparency()))
    values = values.reshape(*values.shape[:2], -1)
    if parsed.bits >= 8:
        return Samples.of(values)
    largest = 2**parsed.bits - 1
    return Samples(values // (255 // largest), (0.0, float(largest)))  # the decoder expands them to 8 bits


def _is_grey_jpeg(data: bytes | bytearray) -> bool:
    """Return whether the data is a JPEG of one component."""
    header = headers.jpeg_header(data) if data.startswith(b"\xff\xd8\xff") else None
    return header is not None and header.components == _GREY


def _ranges(samples: Samples, wanted: spec.Channels) -> Sequence[tuple[float, float]]:
    if wanted.value_range is not None:
        return wanted.value_range * (wanted.count // len(wanted.value_range))
    if samples.known is None:
        raise ImageUnreadable(f"{samples.doubt}: give --value-range LOW,HIGH")
    return [samples.known] * wanted.count


def _scale(samples: Samples, channel: int, low: float, high: float, *, out: np.ndarray) -> np.ndarray | None:
    """Write a channel's scaled values to `out`; return which have no data, None if none could."""
    values = samples.values[..., channel]
    missing = np.isnan(values) if values.dtype.kind == "f" else None
    if samples.no_data is not None and not np.isnan(samples.no_data):
        stated = values == samples.no_data
        missing = stated if missing is None else missing | stated
    # Of these, float32 arithmetic would lose digits.
    exact = values.astype(np.float64) if values.dtype.newbyteorder("=") in _WIDE else values.astype(np.float32)
    if low != 0:
        exact -= low
    if high - low != 1:
        exact /= high - low
    out[:] = exact
    if missing is not None:
        out[missing] = 0.0
    if values.dtype.kind == "f":
        if not np.isfinite(out).all():
            raise ImageUnreadable(f"infinite values in channel {channel}")
        largest = np.abs(values if missing is None else values[~missing]).max(initial=0)
        if largest > _NO_DATA:
            raise ImageUnreadable(
                f"values of {largest:.3g} in channel {channel}, which stand for no data but are not those that it "
                "states: state them, or write NaN"
            )
    return missing


def _check_range(planes: np.ndarray, samples: Samples) -> None:
    """Reject values beyond the known range, of which none was stated by the user."""
    smallest, largest = planes.min(), planes.max()
    if smallest < 0 or largest > 1:
        low, high = samples.known or (0.0, 1.0)
        found = [float(value) * (high - low) + low for value in (smallest, largest)]
        raise ImageUnreadable(
            f"{samples.values.dtype} values in [{found[0]:g}, {found[1]:g}]; only [{low:g}, {high:g}] has a known "
            "scale: give --value-range LOW,HIGH"
        )
