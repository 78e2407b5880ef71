"""Grey and colour JPEGs of 8 bits to pixels: whole, at one of libjpeg's reductions, or several at once, resized."""

import io
import threading
import warnings
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from PIL import ImageFile, JpegImagePlugin
from torchvision import io as tvio

from genenc_core.images import resizing

REDUCTIONS = (8, 4, 2)
_END = b"\xff\xd9"

_DecodeResized = Callable[
    [
        int,
        Sequence[torch.Tensor],
        Sequence[torch.Tensor],
        Sequence[tuple[int, int]],
        Sequence[tuple[int, int]],
        Sequence[tuple[float | None, float | None]],
        int,
        bool,
    ],
    int,
]
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


class Source(NamedTuple):
    """A file that `decode_resized` takes."""

    buffer: torch.Tensor
    """uint8 [bytes], in the memory of the bytearray that was given."""
    size: tuple[int, int]
    """(height, width) that its header says."""
    pixels: tuple[int, int]
    """Rows and columns that are made."""
    scales: tuple[float | None, float | None]
    """Of both axes, as `resizing.Axis` has them."""
    interpolation: resizing.Interpolation


def source(
    data: bytes | bytearray, size: tuple[int, int], target: resizing.Target, interpolation: resizing.Interpolation
) -> Source | None:
    """Return a file as `decode_resized` takes it; None where there must be two steps.

    So it is until `prepare` was called.

    Args:
        data: the file.
        size: (height, width) that its header says.
        target: what to resize to.
        interpolation: of the resize, with antialiasing.
    """
    alike = target.size != size and resizing.is_native(interpolation)
    if _script() is None or not alike or not isinstance(data, bytearray) or not _has_end(data):
        return None
    down, across = resizing.axes(size, target)
    buffer = torch.frombuffer(data, dtype=torch.uint8)
    return Source(buffer, size, (down.pixels, across.pixels), (down.scale, across.scale), interpolation)


def decode_resized(sources: Sequence[Source]) -> list[torch.Tensor | None]:
    """Return what `resizing.resize` makes of what `decode` returns, bit for bit; None where that must be two steps.

    That is what libjpeg refuses, or has another size than the header says. All have the same interpolation.

    Each operator called from Python waits for the interpreter's lock afterwards, and with many threads these waits are
    what limits them; TorchScript runs all of them in one call, which holds no lock. And what Python does for one image
    costs several times as much just after the pixels of another went through the core's caches.
    """
    scripted = _script()
    made = [torch.empty(0, dtype=torch.uint8) for _ in sources]
    if scripted is None:
        return [None for _ in sources]
    buffers, sizes, pixels, scales, interpolations = zip(*sources, strict=True)
    mode, bicubic = tvio.ImageReadMode.RGB.value, interpolations[0] == "bicubic"
    begun = 0
    while begun < len(sources):
        try:
            begun = scripted(begun, buffers, made, sizes, pixels, scales, mode, bicubic)
        except (RuntimeError, torch.jit.Error):  # at the first that is missing
            begun = next(at for at in range(begun, len(sources)) if not made[at].numel()) + 1
    return [each if each.numel() else None for each in made]


def _script() -> _DecodeResized | None:
    return _prepared[0] if _prepared else None


def _has_end(data: bytes | bytearray) -> bool:
    """Return whether there is an end marker: without one torchvision decodes what there is, and then refuses it."""
    return data.rfind(_END) >= 0


def _decode_resized(
    begin: int,
    buffers: list[torch.Tensor],
    made: list[torch.Tensor],
    sizes: list[tuple[int, int]],
    pixels: list[tuple[int, int]],
    scales: list[tuple[float | None, float | None]],
    mode: int,
    bicubic: bool,
) -> int:
    """Be the source of the TorchScript: fill `made` from `begin` on, and return its length."""
    for at in range(begin, len(buffers)):
        height, width = sizes[at]
        rows, columns = pixels[at]
        scale_y, scale_x = scales[at]
        decoded = torch.ops.image.decode_jpeg(buffers[at], mode, False)
        assert list(decoded.size()) == [3, height, width], "not what the header says"
        strides = [3 * height * width, 1, 3 * width, 3]
        batch = decoded.permute([1, 2, 0]).contiguous().as_strided([1, 3, height, width], strides)
        if bicubic:
            batch = torch.ops.aten._upsample_bicubic2d_aa(batch, [rows, columns], False, scale_y, scale_x)
        else:
            batch = torch.ops.aten._upsample_bilinear2d_aa(batch, [rows, columns], False, scale_y, scale_x)
        made[at].set_(batch[0])  # a list that is returned would be lost with the first file that is refused
    return len(buffers)


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
    ImageFile.LOAD_TRUNCATED_IMAGES = False  # as in decode
    try:
        with JpegImagePlugin.JpegImageFile(io.BytesIO(data)) as image:
            image.draft(None, (image.width // reduction, image.height // reduction))
            image.load()
            pixels = np.array(image if image.mode == "RGB" else image.convert("RGB"))
    except Exception:  # hostile bytes make Pillow raise nearly anything
        return None
    return torch.from_numpy(pixels).permute(2, 0, 1)
