"""Samples of PBM, PGM and PPM files as stored, with the maximum in their header."""

import io
import re

import numpy as np
from PIL import PpmImagePlugin

from genenc_core.images.decode import decode
from genenc_core.images.decode.decoded import ImageUnreadable, Samples

_COMMENT = re.compile(rb"#[^\r\n]*")


def is_pnm(data: bytes | bytearray) -> bool:
    """Return whether the data begins as a PBM, PGM or PPM, plain or binary."""
    return re.match(rb"P[1-6]\s", data[:3]) is not None


def count_of(data: bytes | bytearray) -> int:
    """Return the number of channels: three of a PPM, else one."""
    return 3 if data[1:2] in b"36" else 1


def read(data: bytes | bytearray, max_pixels: int) -> Samples:
    """Return the samples `[H, W, C]`, from 0 to the header's maximum; of a PBM 1 for white.

    Raises:
        ImageUnreadable: too large, truncated, or samples above the maximum.
        Exception: anything Pillow raises for a damaged header.
    """
    with PpmImagePlugin.PpmImageFile(io.BytesIO(data)) as image:
        shape = (image.height, image.width, len(image.getbands()))
        codec, _, offset, arguments = image.tile[0]
    decode.check_size(shape[0], shape[1], max_pixels)
    if image.mode == "1":
        pixels = decode.decode_image(data, max_pixels=max_pixels).pixels
        return Samples(pixels[:1].permute(1, 2, 0).numpy() // 255, (0.0, 1.0))
    largest = int(arguments[1]) if isinstance(arguments, tuple) else 65535 if arguments == "I;16B" else 255
    if codec == "ppm_plain":
        values = _plain(data[offset:])
    else:
        values = np.frombuffer(data, np.uint8 if largest < 256 else ">u2", offset=offset)
    count = shape[0] * shape[1] * shape[2]
    if len(values) < count:
        raise ImageUnreadable(f"truncated PPM: it has {len(values)} of {count} samples")
    values = values[:count].reshape(shape)
    if values.max() > largest or values.min() < 0:
        raise ImageUnreadable(
            f"samples in [{values.min()}, {values.max()}] exceed the maximum of {largest} in the header: correct the "
            "header"
        )
    return Samples(values.astype(np.uint8 if largest < 256 else np.uint16), (0.0, float(largest)))


def _plain(text: bytes | bytearray) -> np.ndarray:
    return np.array([int(word) for word in _COMMENT.sub(b"", text).split()], np.int64)
