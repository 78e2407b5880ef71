"""Which axis of a file's output is which, seen by changing a part of the image: shapes alone do not always say."""

import math
from collections.abc import Callable, Sequence

import torch

from genenc_core.models import tokens

Run = Callable[[torch.Tensor], Sequence[torch.Tensor]]

_CLEAR = math.log(2)
"""Change in the half of a map that belongs to the changed half of the image, over that in the other."""


def channels_last(run: Run, kept: Sequence[int], *, size: tuple[int, int], batch: int) -> dict[int, bool | None]:
    """Return for outputs that are maps whether they are [B, h, w, C], for lists whether they are [B, C, N].

    `run` gives all outputs for images [B, 3, H, W]; `kept` are the positions asked for. None: it cannot be told.
    """
    images = torch.rand((1, 3, *size), generator=torch.Generator().manual_seed(0))
    outputs = run(images.expand(batch, -1, -1, -1).contiguous())
    found: dict[int, bool | None] = {}
    unclear: list[int] = []
    for at in kept:
        shape = tuple(outputs[at].shape)
        if len(shape) == 4:
            first, last = tokens.map_axes((shape[0], *shape[1:]), size)
            if first and last:
                unclear.append(at)
            elif first or last:
                found[at] = last
        elif len(shape) == 3 and min(shape[1:]) > 1:
            unclear.append(at)
    if not unclear:
        return found
    lower, right = images.clone(), images.clone()
    lower[..., size[0] // 2 :, :] = 1 - lower[..., size[0] // 2 :, :]
    right[..., size[1] // 2 :] = 1 - right[..., size[1] // 2 :]
    changes = [run(changed.expand(batch, -1, -1, -1).contiguous()) for changed in (lower, right)]
    for at in unclear:
        by_rows, by_columns = ((other[at][0] - outputs[at][0]).abs().double() for other in changes)
        if by_rows.ndim == 3:
            # The middle axis is the rows of [C, h, w], and the columns of [h, w, C].
            found[at] = _clearer(_contrast(by_columns, 1), _contrast(by_rows, 1))
        else:
            found[at] = _clearer(_contrast(by_rows, 1), _contrast(by_rows, 0))
    return found


def _clearer(one: float, other: float) -> bool | None:
    """Whether the one contrast is clear and the other is not; None: neither is, or both are."""
    if max(one, other) < _CLEAR or min(one, other) > max(one, other) / 2:
        return None
    return one > other


def _contrast(change: torch.Tensor, axis: int) -> float:
    """Return by how much more the second half of an axis changed than the first, as a logarithm."""
    half = change.shape[axis] // 2
    least = 1e-6 * change.max().item() + 1e-30
    first, second = (change.narrow(axis, start, half).mean().item() + least for start in (0, change.shape[axis] - half))
    return math.log(second / first) if half else 0.0
