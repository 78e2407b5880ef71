"""Ranges of image sizes for dynamic artifacts, and checks that a model supports them."""

import math

import torch

from genenc_core import errors, spec
from genenc_core.encoding.cells import Cells
from genenc_core.models import resolve


def size_range(
    built: resolve.BuiltEncoder, smallest: tuple[int, int] | None, largest: tuple[int, int] | None
) -> spec.SizeRange:
    """Return the range of sizes (height, width) for an export, by default half to twice the model's own size.

    Raises:
        InputError: the bounds are equal, not multiples of the model's stride, or exclude its own size.
    """
    own = (built.preprocessing.height, built.preprocessing.width)
    multiple = stride(built)
    if own[0] % multiple or own[1] % multiple:
        multiple = 1
    smallest = smallest or (_round_down(own[0] // 2, multiple), _round_down(own[1] // 2, multiple))
    largest = largest or (own[0] * 2, own[1] * 2)
    sizes = spec.SizeRange(min=smallest, max=largest, multiple=multiple)
    if not (sizes.takes(*smallest) and sizes.takes(*largest) and sizes.takes(*own)) or smallest == largest:
        raise errors.InputError(
            f"the sizes {smallest[0]} x {smallest[1]} to {largest[0]} x {largest[1]} are invalid: both must be "
            f"multiples of {multiple} (the model's stride), differ, and include the model's own {own[0]} x {own[1]}. "
            "Change --size-min, --size-max or --image-size."
        )
    return sizes


def stride(built: resolve.BuiltEncoder) -> int:
    """Return the least common stride of the model's maps in pixels; 1 if no map has one."""
    size = built.preprocessing
    common = 1
    for slot in built.outputs:
        if len(slot.shape) == 3:
            down, across = Cells.regular(slot.shape[1:], (size.height, size.width)).stride
            common = math.lcm(common, int(down)) if down == across and down.is_integer() else common
    return common


def _round_down(side: int, multiple: int) -> int:
    """Round down to a multiple, at least to the first."""
    return max(side // multiple, 1) * multiple


def other_sizes(sizes: spec.SizeRange, own: tuple[int, int]) -> tuple[tuple[int, int], ...]:
    """Return two or three sizes in the range to compare at: near both ends, in portrait and landscape if possible.

    None has as many pixels as the model's own size, because a transformer with a fixed grid silently accepts any grid
    of as many patches, with wrong results.
    """
    (low, narrow), (high, wide), step = sizes.min, sizes.max, sizes.multiple
    ends = ((low, narrow), (high, max(wide - step, narrow)), (high, wide), (low, wide), (high, narrow))
    near = ((max(high - step, low), wide), (min(low + step, high), wide), (high, min(narrow + step, wide)))
    far, close = (
        [size for size in dict.fromkeys(candidates) if size[0] * size[1] != own[0] * own[1]]
        for candidates in (ends, near)
    )
    covered = {0, *map(_orientation, (own, *far[:2]))}
    turned = [size for size in far[2:] + close if _orientation(size) not in covered]
    return tuple(far[:2] + turned[:1])


def _orientation(size: tuple[int, int]) -> int:
    """Return 1 for landscape, -1 for portrait, 0 for a square."""
    return (size[1] > size[0]) - (size[1] < size[0])


def require(built: resolve.BuiltEncoder, sizes: spec.SizeRange) -> None:
    """Check that the eager model supports the range, by running it at `other_sizes`.

    Raises:
        ExportError: it fails at one of them, or its maps do not scale with the image; with the reason.
    """
    own = (built.preprocessing.height, built.preprocessing.width)
    fixed = f"--dynamic-size is not possible, because {built.request.name!r} only supports {own[0]} x {own[1]} pixels: "
    remedy = "Omit --dynamic-size, and export once per --image-size."
    for height, width in other_sizes(sizes, own):
        images = torch.rand(
            1, built.preprocessing.channel_count, height, width, generator=torch.Generator().manual_seed(0)
        )
        try:
            with torch.inference_mode():
                outputs = built.module(images)
        except Exception as error:  # a model's own code
            raise errors.ExportError(
                f"{fixed}at {height} x {width} it fails with: {errors.reason(error)}. {remedy}"
            ) from error
        for slot, tensor in zip(built.outputs, outputs, strict=True):
            shape = tuple(tensor.shape[1:])
            if not _scales(slot.shape, shape, own, (height, width)):
                raise errors.ExportError(
                    f"{fixed}at {height} x {width} its {slot.name!r} is {list(shape)}, but {list(slot.shape)} at its "
                    f"own size. {remedy}"
                )


def _scales(own: tuple[int, ...], other: tuple[int, ...], image: tuple[int, int], other_image: tuple[int, int]) -> bool:
    """Return whether a slot's shape scales with the image; vectors are constant, tokens may change in number.

    Without padding a map lacks a border, so it grows by one cell per stride instead of in proportion.
    """
    if len(own) != len(other):
        return False
    if len(own) != 3:
        return own[-1] == other[-1]
    sides = zip(own[1:], other[1:], image, other_image, strict=True)
    return own[0] == other[0] and all(_follows(*side) for side in sides)


def _follows(cells: int, other_cells: int, pixels: int, other_pixels: int) -> bool:
    """Return whether a side in cells follows one in pixels: in proportion, or by one cell per whole stride."""
    if abs(other_cells - cells * other_pixels / pixels) < 1:
        return True
    more_cells, more_pixels = other_cells - cells, other_pixels - pixels
    if more_cells * more_pixels <= 0:
        return False
    stride = round(more_pixels / more_cells)
    # The missing border is the same at both sizes, to within one cell.
    return stride >= 1 and cells <= pixels / stride + 1 and abs(more_cells - more_pixels / stride) <= 1
