"""Resize of pixels, bit-identical to torchvision, without its Python overhead or pixels cropped later; or by Pillow."""

import functools
from typing import Literal, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch.nn import functional

Interpolation = Literal["bilinear", "bicubic"]


class Target(NamedTuple):
    """The size an image is resized to, and the part of it that is used; (height, width) each."""

    size: tuple[int, int]
    used: tuple[int, int]
    """Rows and columns from the top left to the last one that is used; the others need not be computed."""


class Axis(NamedTuple):
    """Output pixels to compute along an axis."""

    pixels: int
    scale: float | None
    """Output per source pixel; None for the ratio of the two sizes."""


def resize(pixels: torch.Tensor, target: Target, *, interpolation: Interpolation, antialias: bool) -> torch.Tensor:
    """Resize uint8 RGB `[3, H, W]` to the target's size, or to a top-left part of it that contains what is used.

    float32 `[C, H, W]` is resized to the target's size.
    """
    height, width = pixels.shape[1:]
    if target.size == (height, width):
        return pixels
    if pixels.dtype == torch.float32:
        # Channel by channel, so that memory is that of one, and its numbers do not depend on the others.
        return torch.cat([_resized(each[None, None], target, interpolation, antialias)[0] for each in pixels])
    # On channels-last memory, as decoders return it, the resize is 1.6 times faster; planar to 1 x 1 even fails.
    interleaved = (1, 3 * width, 3)
    rows = pixels if pixels.stride() == interleaved else pixels.permute(1, 2, 0).contiguous().permute(2, 0, 1)
    if not is_native(interpolation):
        exact = functional.interpolate(rows[None].float(), target.size, mode=interpolation, antialias=antialias)
        return exact.round_().to(torch.uint8)[0]
    # Explicit strides, since torch's own are ambiguous with planar memory if a side is 1.
    batch = rows.as_strided((1, 3, height, width), (3 * height * width, *interleaved))
    if not antialias:
        return functional.interpolate(batch, target.size, mode=interpolation, align_corners=False)[0]
    upsample = torch.ops.aten._upsample_bilinear2d_aa
    if interpolation == "bicubic":
        upsample = torch.ops.aten._upsample_bicubic2d_aa
    down, across = axes((height, width), target)
    made: torch.Tensor = upsample(batch, [down.pixels, across.pixels], False, down.scale, across.scale)[0]
    return made


def by_pillow(pixels: torch.Tensor, size: tuple[int, int], *, interpolation: Interpolation) -> torch.Tensor:
    """Resize uint8 RGB `[3, H, W]` to (height, width) by Pillow, antialiased as it always is."""
    if size == tuple(pixels.shape[1:]):
        return pixels
    method = Image.Resampling.BICUBIC if interpolation == "bicubic" else Image.Resampling.BILINEAR
    image = Image.fromarray(np.ascontiguousarray(pixels.permute(1, 2, 0).numpy()))
    # A copy, since the memory of Pillow's array is read-only.
    return torch.from_numpy(np.array(image.resize(size[::-1], method))).permute(2, 0, 1)


def _resized(plane: torch.Tensor, target: Target, interpolation: Interpolation, antialias: bool) -> torch.Tensor:
    """Resize float32 `[1, 1, H, W]` to the target's size."""
    return functional.interpolate(
        plane.contiguous(), target.size, mode=interpolation, antialias=antialias, align_corners=False
    )


def axes(size: tuple[int, int], target: Target) -> tuple[Axis, Axis]:
    """Return how much of both axes to compute for an image of `size` (height, width).

    torch takes the reciprocal of a scale, whose last bit may be off; its 16-bit weights are the same. Their precision
    depends on the largest weight, which may be at either end, so an axis that is less than half used is computed in
    full. torch also skips an axis whose number of pixels does not change, so that number is computed only if it is the
    full size.
    """
    down, across = (
        Axis(whole, None)
        if used == whole or 2 * used < whole or source in (used, whole)
        else Axis(used, whole / source)
        for source, whole, used in zip(size, target.size, target.used, strict=True)
    )
    return down, across


@functools.cache
def is_native(interpolation: Interpolation) -> bool:
    """Return whether torch resizes uint8 natively on this CPU, as torchvision then does too."""
    return interpolation == "bicubic" or torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512")
