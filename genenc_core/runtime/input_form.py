"""Input formats of files without a spec: candidates from what a file declares, and messages if none is accepted."""

import itertools
from collections.abc import Iterator, Sequence

import torch

from genenc_core import errors, spec
from genenc_core.runtime.formats import interface

_SIDES = (32, 48, 64, 96, 100, 112, 128, 160, 192, 224, 240, 256, 288, 299, 300, 320, 384, 416, 448, 480, 512, 518, 640)
COMMON_SIZES = (*((side, side) for side in _SIDES), (256, 192), (384, 288), (256, 128), (480, 640))
"""(height, width)"""
_SUPPORTED = frozenset({"float32", "float16", "bfloat16", "float64", "uint8"})
_OTHERWISE = "Export it again for images [B, 3, H, W] in float32, or wrap it and give package.module:factory."


def size_for(
    declared: interface.Declared | None, wanted: tuple[int, int], *, name: str, any_size: bool
) -> tuple[int, int]:
    """Return the height and width to try: `wanted`, or with `any_size` the fixed size that the file declares.

    Raises:
        InputError: the file has another fixed size.
    """
    shape = declared.shape if declared else None
    if shape is None or len(shape) != 4:
        return wanted
    last = _is_last(shape)
    own = shape[1:3] if last else shape[2:]
    best = tuple(mine or other for mine, other in zip(own, wanted, strict=True))
    if best != wanted and not any_size:
        raise errors.InputError(
            f"the artifact {name!r} takes images of {' x '.join(str(side or 'any') for side in own)} pixels, not of "
            f"{wanted[0]} x {wanted[1]}. Give --image-size {best[0]}x{best[1]}, or omit it."
        )
    return best[0], best[1]


def candidates(
    declared: interface.Declared | None, *, name: str, numpy: bool, channels: int | None = None
) -> Iterator[spec.ArtifactInput]:
    """Yield the forms that a file may accept, most likely first; `numpy`: it takes NumPy arrays, without bfloat16.

    `channels` of the images; None: RGB, of which grey can be made.

    Raises:
        InputError: it declares an input that images cannot be converted to.
    """
    dtypes = ["float32"]
    if declared is not None:
        known = declared.dtype in _SUPPORTED and not (numpy and declared.dtype == "bfloat16")
        if not known and not declared.hint:
            raise errors.InputError(
                f"the artifact {name!r} takes {declared.dtype}, but images can only be float32, float16, float64 or "
                f"uint8{'' if numpy else ' or bfloat16'}. {_OTHERWISE}"
            )
        if known:
            dtypes = [*dtypes, declared.dtype] if declared.hint else [declared.dtype]
    if declared is None or declared.hint:
        # A script may assert uint8. Last, since a file that accepts both usually expects values in [0, 1].
        dtypes.append("uint8")
    layouts = _layouts(declared.shape if declared else None, name, channels)
    for dtype, (layout, channels) in itertools.product(dict.fromkeys(dtypes), layouts):
        yield spec.ArtifactInput.model_validate({"dtype": dtype, "layout": layout, "channels": channels})


def _layouts(shape: tuple[int | None, ...] | None, name: str, wanted: int | None) -> list[tuple[str, int]]:
    """Return the layouts and channels to try.

    Raises:
        InputError: the file declares a shape that is not a batch of images.
    """
    counts = (3, 1) if wanted is None else (wanted,)
    layouts = [(layout, count) for count in counts for layout in ("NCHW", "NHWC")]
    if shape is None:
        return layouts
    if len(shape) != 4:
        raise errors.InputError(
            f"the artifact {name!r} takes {_words(shape)}, which is not a batch of images. {_OTHERWISE}"
        )
    places = {"NCHW": shape[1], "NHWC": shape[3]}
    fits = [(layout, channels) for layout, channels in layouts if places[layout] in (channels, None)]
    # Fixed channel sizes take precedence over dynamic ones.
    fixed = [item for item in fits if places[item[0]] is not None]
    if not fits:
        channels = shape[3] if _is_last(shape) else shape[1]
        raise errors.InputError(
            f"the artifact {name!r} takes images of {channels} channels ({_words(shape)}), not "
            f"{'RGB or grey' if wanted is None else wanted}: choose {channels} channels of the images with --channels."
        )
    return fixed or fits


def _is_last(shape: tuple[int | None, ...]) -> bool:
    """Return whether a declared shape has channels last, because its last size is the small one."""
    first, last = shape[1], shape[3]
    return first not in (1, 3) and last is not None and (last in (1, 3) or first is None or last < first)


def _words(shape: Sequence[int | None]) -> str:
    return f"[{', '.join('any' if size is None else str(size) for size in shape)}]"


def rejection_message(
    name: str,
    size: tuple[int, int],
    reasons: Sequence[str],
    *,
    tried: Sequence[spec.ArtifactInput],
    accepted_size: tuple[int, int] | None,
) -> str:
    """Return why a file does not accept a batch of images, and the remedy for the cause."""
    cause = "; ".join(_explained(reason) for reason in reasons) or "no message"
    start = f"the artifact {name!r} does not accept a batch of images of {size[0]} x {size[1]} pixels: {cause}. "
    if accepted_size is not None:
        height, width = accepted_size
        return f"{start}It accepts images of {height} x {width} pixels: give --image-size {height}x{width}"
    lowered = cause.lower()
    forms = f"Tried: {', '.join(form.describe() for form in tried)}. " if len(tried) > 1 else ""
    if "channel" in lowered:
        return (
            f"{start}{forms}Images are RGB or grey unless --channels chooses others: give as many as the model takes."
        )
    if any(word in lowered for word in ("scalar type", "dtype", "input type", "data type")):
        return f"{start}{forms}{_OTHERWISE}"
    if any(word in lowered for word in ("dim value", "dimension", "shape", "size", "guard", "expected input")):
        return f"{start}{forms}Give the --image-size that it was exported for; if it is this one, {_lower(_OTHERWISE)}"
    return f"{start}{forms}{_OTHERWISE}"


def _explained(reason: str) -> str:
    """Replace a bare `AssertionError` by an explanation."""
    if not reason.startswith("AssertionError"):
        return reason
    what = reason.removeprefix("AssertionError").strip(": ")
    return f"an assertion in its code fails for these images{f' ({what})' if what else ''}"


def _lower(sentence: str) -> str:
    return sentence[0].lower() + sentence[1:]


def why_unusable(item: object, batch: int) -> str | None:
    """Return why an output cannot be a slot; None if it can."""
    if not isinstance(item, torch.Tensor):
        return f"a {type(item).__name__}, not a tensor"
    what = f"{str(item.dtype).removeprefix('torch.')} {list(item.shape)}"
    if not item.is_floating_point():
        return f"{what}, not floating-point"
    if item.ndim == 0 or item.shape[0] != batch:
        return f"{what}, without one entry per image of a batch of {batch}"
    if item.ndim == 1:
        return f"{what}, one number per image instead of a vector"
    return None


def is_channels_last(shape: tuple[int, ...], size: tuple[int, int]) -> bool:
    """Return whether an output of a file with channels-last input is a map [h, w, C], from the image's aspect ratio.

    If both layouts are possible, it is assumed to have that of the input.
    """
    if len(shape) != 3:
        return False
    return _is_grid(shape[:2], size) or not _is_grid(shape[1:], size)


def _is_grid(sides: Sequence[int], size: tuple[int, int]) -> bool:
    """Return whether two sides have the image's aspect ratio, to within one cell."""
    return max(sides) <= max(size) and abs(sides[0] * size[1] - sides[1] * size[0]) < max(size)
