"""Axes and order of the outputs of a file without a spec."""

import math
from collections.abc import Callable, Mapping, Sequence

import torch

from genenc_core import errors, spec
from genenc_core.models import tokens

Run = Callable[[torch.Tensor], Sequence[torch.Tensor]]

_CLEAR = math.log(2)
"""required log ratio between the changes of a map in the modified half of the image and in the other half"""


def channels_last(
    run: Run, kept: Sequence[int], *, size: tuple[int, int], batch: int, channels: int = 3
) -> dict[int, bool | None]:
    """Return by position whether maps are [B, h, w, C] and lists are [B, C, N]; None if ambiguous.

    `run` returns all outputs for images [B, channels, H, W]; `kept` are the positions to examine. Ambiguous shapes are
    resolved by changing half of an image; a map with its columns before its rows is ambiguous, too.
    """
    images = torch.rand((1, channels, *size), generator=torch.Generator().manual_seed(0))
    outputs = run(images.expand(batch, -1, -1, -1).contiguous())
    is_last: dict[int, bool | None] = {}
    unclear: list[int] = []
    known: dict[int, bool] = {}
    for at in kept:
        shape = tuple(outputs[at].shape)
        if len(shape) == 4:
            first, last = tokens.map_axes((shape[0], *shape[1:]), size)
            if first and last:
                unclear.append(at)
            elif first or last:
                is_last[at] = last
                if _may_be_turned(shape, size, last=last):
                    known[at] = last
        elif len(shape) == 3 and min(shape[1:]) > 1:
            unclear.append(at)
    if not unclear and not known:
        return is_last
    lower, right = images.clone(), images.clone()
    lower[..., size[0] // 2 :, :] = 1 - lower[..., size[0] // 2 :, :]
    right[..., size[1] // 2 :] = 1 - right[..., size[1] // 2 :]
    changes = [run(changed.expand(batch, -1, -1, -1).contiguous()) for changed in (lower, right)]
    for at in (*unclear, *known):
        by_rows, by_columns = ((other[at][0] - outputs[at][0]).abs().double() for other in changes)
        if by_rows.ndim == 3:
            # The middle axis is the rows of [C, h, w], and the columns of [h, w, C].
            found = known.get(at, _clearer(_contrast(by_columns, 1), _contrast(by_rows, 1)))
            is_last[at] = None if found is not None and _is_turned(by_rows, by_columns, last=found) else found
        else:
            is_last[at] = _clearer(_contrast(by_rows, 1), _contrast(by_rows, 0))
    return is_last


def _may_be_turned(shape: Sequence[int], size: tuple[int, int], *, last: bool) -> bool:
    """Return whether a map that looks like [B, h, w, C] may be [B, C, w, h], or one like [B, C, h, w] [B, w, h, C]."""
    batch, one, two, three = shape
    if last:
        return tokens.map_axes((batch, one, three, two), size)[0]
    return tokens.map_axes((batch, two, one, three), size)[1]


def _is_turned(by_rows: torch.Tensor, by_columns: torch.Tensor, *, last: bool) -> bool:
    """Return whether what is taken for [h, w, C] is [C, w, h], or for [C, h, w] is [w, h, C]: by the outer axes."""
    # Halves of the channels that differ in size show in both changes alike.
    outer = [_contrast(by_rows, axis) - _contrast(by_columns, axis) for axis in (0, 2)]
    rows, other = outer if last else (-outer[1], -outer[0])
    return other >= _CLEAR and other > rows


def _clearer(one: float, other: float) -> bool | None:
    """Return whether only the first contrast is clear, not the second; None if neither or both are."""
    if max(one, other) < _CLEAR or min(one, other) > max(one, other) / 2:
        return None
    return one > other


def _contrast(change: torch.Tensor, axis: int) -> float:
    """Return the log ratio of the changes in the second and the first half of an axis."""
    half = change.shape[axis] // 2
    floor = 1e-6 * change.max().item() + 1e-30
    first, second = (change.narrow(axis, start, half).mean().item() + floor for start in (0, change.shape[axis] - half))
    return math.log(second / first) if half else 0.0


def ordered(outputs: Mapping[str, torch.Tensor], names: Sequence[str]) -> list[torch.Tensor]:
    """Return the outputs in the order of `names`.

    Raises:
        EncoderError: their names differ from `names`.
    """
    if outputs.keys() != set(names):
        raise errors.EncoderError(
            f"the model returned the outputs {', '.join(sorted(outputs))}, but {', '.join(sorted(names))} in the dry "
            "run: it must return the same ones for all images"
        )
    return [outputs[name] for name in names]


def with_names(
    model_spec: spec.RuntimeModelSpec, outputs: Sequence[object] | Mapping[str, object]
) -> spec.RuntimeModelSpec:
    """Return a spec that identifies its file's outputs by name, if they have names.

    `outputs` are those of the file. If all slots are named after outputs they refer to these, else to the outputs in
    order.

    Raises:
        InputError: a slot has the name of an output at another position.
    """
    block = model_spec.genenc or spec.GenencBlock()
    if not isinstance(outputs, Mapping) or block.output_names is not None:
        return model_spec
    slots = [slot.name for slot in model_spec.outputs]
    names, positions = list(outputs), block.output_positions
    if positions is None and set(slots) <= set(names):
        names = slots + [name for name in names if name not in slots]
        positions = tuple(range(len(slots))) if len(names) > len(slots) else None
    else:
        by_position = [names[at] for at in positions or range(len(names)) if at < len(names)]
        for slot, name in zip(slots, by_position, strict=False):
            if slot in names and slot != name:
                raise errors.InputError(
                    f"model spec {model_spec.model_id!r} declares the outputs {', '.join(slots)}, but its file returns "
                    f"{', '.join(names)}: slot {slot!r} would hold {name!r}. Name the slots after the outputs"
                )
    update = {"output_names": tuple(names), "output_positions": positions}
    return model_spec.model_copy(update={"genenc": block.model_copy(update=update)})
