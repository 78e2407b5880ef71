"""The image sizes that one artifact may take: which range a model allows, and that the model itself allows it."""

import math

import torch

from genenc_core import errors, spec
from genenc_core.models import sources, wording


def size_range(
    built: sources.BuiltEncoder, least: tuple[int, int] | None, most: tuple[int, int] | None
) -> spec.SizeRange:
    """Return the range of sizes (height, width) for an export; half to twice the model's own size unless told.

    Raises:
        InputError: bounds that are no multiples of the model's stride, do not hold its own size, or are one size.
    """
    own = (built.preprocessing.height, built.preprocessing.width)
    multiple = stride(built)
    if own[0] % multiple or own[1] % multiple:
        multiple = 1
    least = least or (_down(own[0] // 2, multiple), _down(own[1] // 2, multiple))
    most = most or (own[0] * 2, own[1] * 2)
    found = spec.SizeRange(min=least, max=most, multiple=multiple)
    if not (found.takes(*least) and found.takes(*most) and found.takes(*own)) or least == most:
        raise errors.InputError(
            f"the sizes {least[0]} x {least[1]} to {most[0]} x {most[1]} are invalid: both must be multiples of "
            f"{multiple} (the model's stride), differ, and have the model's own {own[0]} x {own[1]} between them. "
            "Change --size-min, --size-max or --image-size."
        )
    return found


def stride(built: sources.BuiltEncoder) -> int:
    """Return the number of pixels that every height and width is a multiple of; 1 where no map tells one."""
    size = built.preprocessing
    found = 1
    for slot in built.outputs:
        if len(slot.shape) == 3 and size.height % slot.shape[1] == 0 and size.width % slot.shape[2] == 0:
            steps = size.height // slot.shape[1], size.width // slot.shape[2]
            found = math.lcm(found, steps[0]) if steps[0] == steps[1] else found
    return found


def _down(side: int, multiple: int) -> int:
    """Return the nearest multiple that is not larger, and at least one."""
    return max(side // multiple, 1) * multiple


def further(found: spec.SizeRange, own: tuple[int, int]) -> tuple[tuple[int, int], ...]:
    """Return two sizes of the range to compare at, near both ends, the larger one not square where that can be.

    None has as many pixels as the model's own size: a transformer that is bound to a grid takes any other grid of as
    many patches for its own, and gives wrong numbers without a word.
    """
    (low, narrow), (high, wide) = found.min, found.max
    ends = ((low, narrow), (high, max(wide - found.multiple, narrow)), (high, wide), (low, wide), (high, narrow))
    other = [size for size in dict.fromkeys(ends) if size[0] * size[1] != own[0] * own[1]]
    return tuple(other[:2])


def require(built: sources.BuiltEncoder, found: spec.SizeRange) -> None:
    """Run the eager model at the range's two further sizes.

    Raises:
        ExportError: it refuses one of them, or gives maps that do not grow with the image; what it says is told.
    """
    own = (built.preprocessing.height, built.preprocessing.width)
    fixed = (
        f"{built.request.name!r} takes images of {own[0]} x {own[1]} pixels only, so --dynamic-size is not possible: "
    )
    remedy = "Leave --dynamic-size out, and export once per --image-size."
    for height, width in further(found, own):
        images = torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(0))
        try:
            with torch.inference_mode():
                outputs = built.module(images)
        except Exception as error:  # a model's own code
            raise errors.ExportError(
                f"{fixed}given {height} x {width} it says: {wording.reason(error)}. {remedy}"
            ) from error
        for slot, tensor in zip(built.outputs, outputs, strict=True):
            shape = tuple(tensor.shape[1:])
            if not _grown(slot.shape, shape, own, (height, width)):
                raise errors.ExportError(
                    f"{fixed}given {height} x {width}, its {slot.name!r} is {list(shape)}, and {list(slot.shape)} at "
                    f"its own size. {remedy}"
                )


def _grown(own: tuple[int, ...], other: tuple[int, ...], image: tuple[int, int], other_image: tuple[int, int]) -> bool:
    """Whether a slot's shape is its own one, its map grown with the image; vectors stay, tokens may change in number.

    A map of a net without padding lacks a border, so that it grows by one cell per stride and is not in proportion.
    """
    if len(own) != len(other):
        return False
    if len(own) != 3:
        return own[-1] == other[-1]
    sides = zip(own[1:], other[1:], image, other_image, strict=True)
    return own[0] == other[0] and all(_follows(*side) for side in sides)


def _follows(cells: int, other_cells: int, pixels: int, other_pixels: int) -> bool:
    """Whether a side in cells follows one in pixels: in proportion, or by one cell per whole stride."""
    if abs(other_cells - cells * other_pixels / pixels) < 1:
        return True
    more_cells, more_pixels = other_cells - cells, other_pixels - pixels
    if more_cells * more_pixels <= 0:
        return False
    stride = round(more_pixels / more_cells)
    # What the border takes is the same at both sizes, but for the rounding of one cell.
    return stride >= 1 and cells <= pixels / stride + 1 and abs(more_cells - more_pixels / stride) <= 1
