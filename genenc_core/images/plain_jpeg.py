"""Grey and colour JPEGs of 8 bits to pixels, whole or at one of libjpeg's reductions."""

import io

import numpy as np
import torch
from PIL import JpegImagePlugin
from torchvision import io as tvio

REDUCTIONS = (8, 4, 2)
_END = b"\xff\xd9"


def largest_reduction(height: int, width: int, needed: tuple[int, int]) -> int:
    """Return the largest of libjpeg's reductions (1/8, 1/4, 1/2; else 1) that leaves at least `needed` pixels."""
    return next((by for by in REDUCTIONS if height // by >= needed[0] and width // by >= needed[1]), 1)


def decode(data: bytes | bytearray, *, reduction: int = 1) -> torch.Tensor | None:
    """Return uint8 [3, H, W] in channels-last memory, or None where Pillow must decode or name the reason.

    That is when libjpeg refuses, and always with a torchvision that was built without its image codecs.

    Reduced, each side has a `reduction`-th of its pixels, rounded up: the inverse DCT gives that many of each block.
    """
    if data.rfind(_END) < 0:  # torchvision would decode what there is, and then refuse it
        return None
    return _reduced(data, reduction) if reduction > 1 else _whole(data)


def _whole(data: bytes | bytearray) -> torch.Tensor | None:
    # torch warns about read-only memory, so bytes are copied; the loader hands in a bytearray.
    buffer = data if isinstance(data, bytearray) else bytearray(data)
    try:
        # What torchvision.io.decode_jpeg calls; by itself a tenth of the time goes into its checks and warnings.
        pixels: torch.Tensor = torch.ops.image.decode_jpeg(
            torch.frombuffer(buffer, dtype=torch.uint8), tvio.ImageReadMode.RGB.value, False
        )
    except (RuntimeError, AttributeError):  # refused; no such operator
        return None
    return pixels


def _reduced(data: bytes | bytearray, reduction: int) -> torch.Tensor | None:
    try:
        with JpegImagePlugin.JpegImageFile(io.BytesIO(data)) as image:
            image.draft(None, (image.width // reduction, image.height // reduction))
            image.load()
            pixels = np.array(image if image.mode == "RGB" else image.convert("RGB"))
    except Exception:  # hostile bytes make Pillow raise nearly anything
        return None
    return torch.from_numpy(pixels).permute(2, 0, 1)
