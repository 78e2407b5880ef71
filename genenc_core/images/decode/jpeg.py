"""Decoding of 8-bit grey and colour JPEGs, in full or at one of libjpeg's reductions."""

import io

import imagecodecs
import numpy as np
import torch
from PIL import ImageFile, JpegImagePlugin

REDUCTIONS = (8, 4, 2)
_END = b"\xff\xd9"
_PADDING = b"\xff\xc8" * 2**15
"""Appended to a file: more markers of a kind that libjpeg rejects than fit in a segment. Without them it takes the end
of the data for the end of the image, and missing pixels become grey."""


def largest_reduction(height: int, width: int, needed: tuple[int, int]) -> int:
    """Return the largest of libjpeg's reductions (1/8, 1/4, 1/2; else 1) that leaves at least `needed` pixels."""
    return next((by for by in REDUCTIONS if height // by >= needed[0] and width // by >= needed[1]), 1)


def decode(data: bytes | bytearray, *, reduction: int = 1) -> torch.Tensor | None:
    """Return uint8 `[3, H, W]` in channels-last memory, or None if Pillow has to decode it or report the error.

    With a reduction, each side is divided by it and rounded up: the inverse DCT yields that many pixels per block.
    """
    if data.rfind(_END) < 0:
        return None
    return _reduced(data, reduction) if reduction > 1 else _whole(data)


def _whole(data: bytes | bytearray) -> torch.Tensor | None:
    try:
        pixels = imagecodecs.jpeg8_decode(b"".join((data, _PADDING)), outcolorspace="RGB")
    except imagecodecs.Jpeg8Error:
        return None
    return torch.from_numpy(pixels).permute(2, 0, 1)


def _reduced(data: bytes | bytearray, reduction: int) -> torch.Tensor | None:
    ImageFile.LOAD_TRUNCATED_IMAGES = False  # as in decode
    try:
        with JpegImagePlugin.JpegImageFile(io.BytesIO(data)) as image:
            image.draft(None, (image.width // reduction, image.height // reduction))
            image.load()
            pixels = np.array(image if image.mode == "RGB" else image.convert("RGB"))
    except Exception:  # Pillow may raise anything for damaged data
        return None
    return torch.from_numpy(pixels).permute(2, 0, 1)
