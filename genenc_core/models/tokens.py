"""Conversion of transformer outputs (token lists, channels-last maps) to maps, class tokens and register tokens."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from genenc_core import errors

FEATURES = "features"
Prefix = tuple[tuple[str, int], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenLayout:
    """Order of a model's tokens [B, N, C]: prefix tokens first, then the patches of `grid` in row-major order."""

    grid: tuple[int, int]
    """(height, width) in patches"""
    prefix: Prefix = ()
    """slot name and count of each kind of prefix token, in order"""

    @property
    def patches(self) -> int:
        """Number of patch tokens."""
        return self.grid[0] * self.grid[1]

    @property
    def prefixed(self) -> int:
        """Number of prefix tokens."""
        return sum(count for _, count in self.prefix)

    def holds(self, count: int) -> bool:
        """Return whether `count` tokens are the patches, with or without the prefix tokens."""
        return count in (self.patches, self.patches + self.prefixed)


def prefix_of(count: int, *, registers: int = 0, distilled: bool = False, class_token: bool = True) -> Prefix:
    """Name `count` prefix tokens: `cls`, then `dist` (the distillation token), then `register`.

    `class_token` says whether the model has one. If the counts do not add up, all tokens form one slot, `prefix`.
    """
    named: Prefix = (("cls", int(class_token)), ("dist", int(distilled)), ("register", registers))
    named = tuple((name, number) for name, number in named if number)
    if sum(number for _, number in named) == count:
        return named
    return (("prefix", count),) if count else ()


def slot_name(base: str, part: str) -> str:
    """Return the slot of a prefix token that belongs to map `base`: `cls` for `features`, else e.g. `blocks.5.cls`."""
    return part if base == FEATURES else f"{base}.{part}"


def split(tokens: torch.Tensor, layout: TokenLayout, *, base: str = FEATURES) -> dict[str, torch.Tensor]:
    """Split tokens [B, N, C] into slots: `base` [B, C, h, w]; single prefix tokens [B, C]; several [B, R, C].

    A list without prefix tokens yields only the map.

    Raises:
        EncoderError: N is not the number of patches, with or without the prefix tokens.
    """
    count = tokens.shape[1]
    if not layout.holds(count):
        raise errors.EncoderError(
            f"{base!r} has {count} tokens, but a grid of {layout.grid[0]} x {layout.grid[1]} patches with "
            f"{layout.prefixed} prefix tokens needs {layout.patches + layout.prefixed}."
        )
    prefix = layout.prefix if count != layout.patches else ()
    first = sum(number for _, number in prefix)
    slots = {base: tokens[:, first:].transpose(1, 2).unflatten(2, layout.grid)}  # type: ignore[no-untyped-call]
    start = 0
    for part, number in prefix:
        slots[slot_name(base, part)] = (
            tokens[:, start] if number == 1 and part != "register" else (tokens[:, start : start + number])
        )
        start += number
    return slots


def channels_first(maps: torch.Tensor) -> torch.Tensor:
    """Permute [B, h, w, C] to [B, C, h, w]."""
    return maps.permute(0, 3, 1, 2)


def map_axes(shape: tuple[int, ...], image: tuple[int, int]) -> tuple[bool, bool]:
    """Return whether [B, a, b, c] may be [B, C, h, w], and whether it may be [B, h, w, C].

    Either requires the aspect ratio of the image (height, width), to within one cell.
    """
    _, first, second, third = shape
    return _proportional((second, third), image), _proportional((first, second), image)


def _proportional(sides: tuple[int, int], image: tuple[int, int]) -> bool:
    height, width = image
    if sides[0] > height or sides[1] > width:
        return False
    return abs(sides[0] * width - sides[1] * height) < max(height, width)


def arranged(
    value: torch.Tensor, layout: TokenLayout | None, *, channels_last: bool, base: str = FEATURES
) -> Mapping[str, torch.Tensor]:
    """Convert a model's output `base` to slots: split tokens by `layout`, permute [B, h, w, C], else keep as is."""
    if value.ndim == 3 and layout is not None:
        return split(value, layout, base=base)
    return {base: channels_first(value) if value.ndim == 4 and channels_last else value}
