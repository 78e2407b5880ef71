"""Resize of 8-bit pixels, bit for bit torchvision's, without what its Python costs and what is cut off afterwards."""

import functools
from typing import Literal, NamedTuple

import torch
from torch.nn import functional

Interpolation = Literal["bilinear", "bicubic"]


class Target(NamedTuple):
    """What an image is resized to, and how much of that is used; (height, width) each."""

    size: tuple[int, int]
    used: tuple[int, int]
    """The rows and columns from the top left to the last one that is used; the others need not be made."""


class Axis(NamedTuple):
    """How much of an axis is made."""

    pixels: int
    scale: float | None
    """Made per source pixel, where it is not what the two numbers of pixels say."""


def resize(pixels: torch.Tensor, target: Target, *, interpolation: Interpolation, antialias: bool) -> torch.Tensor:
    """Return uint8 [3, H, W] at the target's size, or the part of it at the top left that holds what is used."""
    height, width = pixels.shape[1:]
    if target.size == (height, width):
        return pixels
    # On channels-last memory, as decoders give it, the resize is 1.6 times faster; planar to 1 x 1 it even fails.
    interleaved = (1, 3 * width, 3)
    rows = pixels if pixels.stride() == interleaved else pixels.permute(1, 2, 0).contiguous().permute(2, 0, 1)
    if not is_native(interpolation):
        exact = functional.interpolate(rows[None].float(), target.size, mode=interpolation, antialias=antialias)
        return exact.round_().to(torch.uint8)[0]
    # The strides are written out, for where a side is 1 those that torch works out fit planar memory as well.
    batch = rows.as_strided((1, 3, height, width), (3 * height * width, *interleaved))
    if not antialias:
        return functional.interpolate(batch, target.size, mode=interpolation, align_corners=False)[0]
    upsample = torch.ops.aten._upsample_bilinear2d_aa
    if interpolation == "bicubic":
        upsample = torch.ops.aten._upsample_bicubic2d_aa
    down, across = axes((height, width), target)
    made: torch.Tensor = upsample(batch, [down.pixels, across.pixels], False, down.scale, across.scale)[0]
    return made


def axes(size: tuple[int, int], target: Target) -> tuple[Axis, Axis]:
    """Return how much of both axes is made of an image of `size` (height, width).

    torch takes the reciprocal of a scale, which may be off by its last bit; its weights have 16 bits, and are the same.
    The largest weight decides how fine they are, and that may be at either end: of an axis of which less than half is
    used all is made. It leaves an axis alone that keeps its number of pixels, so that number is made only where it is
    the whole.
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
    """Return whether torch resizes bytes as bytes on this CPU; torchvision then calls it as `resize` does."""
    return interpolation == "bicubic" or torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512")
