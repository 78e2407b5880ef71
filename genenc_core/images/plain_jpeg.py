"""Grey and colour JPEGs of 8 bits to pixels: whole, at one of libjpeg's reductions, or resized."""

import io
import threading
import warnings
from collections.abc import Callable

import numpy as np
import torch
from PIL import JpegImagePlugin
from torchvision import io as tvio

from genenc_core.images import resizing

REDUCTIONS = (8, 4, 2)
_END = b"\xff\xd9"

_DecodeResized = Callable[[torch.Tensor, int, int, int, int, int, float | None, float | None, bool], torch.Tensor]
_PREPARING = threading.Lock()
_prepared: list[_DecodeResized | None] = []


def prepare() -> None:
    """Let this process decode and resize in one step from here on, where torch can; it takes about 0.1 s."""
    with _PREPARING:
        if not _prepared:
            # torch.jit is deprecated; without it there are two steps. `catch_warnings` would not be thread-safe.
            warnings.filterwarnings("ignore", message=r"`torch\.jit\.script", module=r"torch\.jit|genenc_core\.images")
            try:
                scripted = torch.jit.script(_decode_resized)
            except (RuntimeError, AttributeError, OSError):
                scripted = None
            # With PYTORCH_JIT=0 it is the function itself.
            _prepared.append(scripted if isinstance(scripted, torch.jit.ScriptFunction) else None)


def largest_reduction(height: int, width: int, needed: tuple[int, int]) -> int:
    """Return the largest of libjpeg's reductions (1/8, 1/4, 1/2; else 1) that leaves at least `needed` pixels."""
    return next((by for by in REDUCTIONS if height // by >= needed[0] and width // by >= needed[1]), 1)


def decode(data: bytes | bytearray, *, reduction: int = 1) -> torch.Tensor | None:
    """Return uint8 [3, H, W] in channels-last memory, or None where Pillow must decode or name the reason.

    That is when libjpeg refuses, and always with a torchvision that was built without its image codecs.

    Reduced, each side has a `reduction`-th of its pixels, rounded up: the inverse DCT gives that many of each block.
    """
    if not _has_end(data):
        return None
    return _reduced(data, reduction) if reduction > 1 else _whole(data)


def decode_resized(
    data: bytes | bytearray, size: tuple[int, int], target: resizing.Target, interpolation: resizing.Interpolation
) -> torch.Tensor | None:
    """Return what `resizing.resize` makes of what `decode` returns, bit for bit; None where it must be two steps.

    So it is until `prepare` was called.

    Each operator called from Python waits for the interpreter's lock afterwards, and with many threads these waits are
    what limits them; TorchScript runs all of them in one call, which holds no lock.

    Args:
        data: the file.
        size: (height, width) that its header says.
        target: what to resize to.
        interpolation: of the resize, with antialiasing.
    """
    scripted = _prepared[0] if _prepared else None
    alike = target.size != size and resizing.is_native(interpolation)
    if scripted is None or not alike or not isinstance(data, bytearray) or not _has_end(data):
        return None
    buffer = torch.frombuffer(data, dtype=torch.uint8)
    down, across = resizing.axes(size, target)
    pixels = down.pixels, across.pixels
    bicubic = interpolation == "bicubic"
    try:
        return scripted(buffer, tvio.ImageReadMode.RGB.value, *size, *pixels, down.scale, across.scale, bicubic)
    except (RuntimeError, torch.jit.Error):  # libjpeg refuses, or the size is another
        return None


def _has_end(data: bytes | bytearray) -> bool:
    """Return whether there is an end marker: without one torchvision decodes what there is, and then refuses it."""
    return data.rfind(_END) >= 0


def _decode_resized(
    data: torch.Tensor,
    mode: int,
    height: int,
    width: int,
    rows: int,
    columns: int,
    scale_y: float | None,
    scale_x: float | None,
    bicubic: bool,
) -> torch.Tensor:
    """Be the source of the TorchScript."""
    pixels = torch.ops.image.decode_jpeg(data, mode, False)
    assert list(pixels.size()) == [3, height, width], "not what the header says"
    strides = [3 * height * width, 1, 3 * width, 3]
    batch = pixels.permute([1, 2, 0]).contiguous().as_strided([1, 3, height, width], strides)
    if bicubic:
        batch = torch.ops.aten._upsample_bicubic2d_aa(batch, [rows, columns], False, scale_y, scale_x)
    else:
        batch = torch.ops.aten._upsample_bilinear2d_aa(batch, [rows, columns], False, scale_y, scale_x)
    resized: torch.Tensor = batch[0]
    return resized


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
