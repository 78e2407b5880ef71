"""Token lists and channels-last maps of transformers, brought to maps, class tokens and register tokens."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from genenc_core import errors

FEATURES = "features"
Prefix = tuple[tuple[str, int], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenLayout:
    """How a model orders its tokens [B, N, C]: prefix tokens first, then the patches of `grid` row by row."""

    grid: tuple[int, int]
    """(height, width) in patches"""
    prefix: Prefix = ()
    """slot name and number of each kind of prefix token, in their order"""

    @property
    def patches(self) -> int:
        """How many tokens are patches."""
        return self.grid[0] * self.grid[1]

    @property
    def prefixed(self) -> int:
        """How many tokens stand before the patches."""
        return sum(count for _, count in self.prefix)

    def holds(self, count: int) -> bool:
        """Tell whether a list of `count` tokens is the patches, or the prefix tokens and the patches."""
        return count in (self.patches, self.patches + self.prefixed)


def prefix_of(count: int, *, registers: int = 0, distilled: bool = False, class_token: bool = True) -> Prefix:
    """Name `count` prefix tokens: `cls`, then `dist` (the distillation token), then `register`.

    `class_token` says whether the model has one at all. Tokens that this does not explain are one slot, `prefix`.
    """
    named: Prefix = (("cls", int(class_token)), ("dist", int(distilled)), ("register", registers))
    named = tuple((name, number) for name, number in named if number)
    if sum(number for _, number in named) == count:
        return named
    return (("prefix", count),) if count else ()


def slot_name(base: str, part: str) -> str:
    """Return the slot of a prefix token beside the map `base`: `cls` beside `features`, else `blocks.5.cls`."""
    return part if base == FEATURES else f"{base}.{part}"


def split(tokens: torch.Tensor, layout: TokenLayout, *, base: str = FEATURES) -> dict[str, torch.Tensor]:
    """Return tokens [B, N, C] as slots: `base` [B, C, h, w]; single prefix tokens [B, C]; several [B, R, C].

    A list without prefix tokens gives the map alone.

    Raises:
        EncoderError: N is neither the number of patches nor that and the prefix tokens.
    """
    count = tokens.shape[1]
    if not layout.holds(count):
        raise errors.EncoderError(
            f"{base!r} has {count} tokens, but a grid of {layout.grid[0]} x {layout.grid[1]} patches and "
            f"{layout.prefixed} tokens before it are {layout.patches + layout.prefixed}."
        )
    prefix = layout.prefix if count != layout.patches else ()
    first = sum(number for _, number in prefix)
    found = {base: tokens[:, first:].transpose(1, 2).unflatten(2, layout.grid)}  # type: ignore[no-untyped-call]
    start = 0
    for part, number in prefix:
        found[slot_name(base, part)] = (
            tokens[:, start] if number == 1 and part != "register" else (tokens[:, start : start + number])
        )
        start += number
    return found


def channels_first(maps: torch.Tensor) -> torch.Tensor:
    """Return [B, h, w, C] as [B, C, h, w]."""
    return maps.permute(0, 3, 1, 2)


def map_axes(shape: tuple[int, ...], image: tuple[int, int]) -> tuple[bool, bool]:
    """Tell whether [B, a, b, c] can be [B, C, h, w], and whether it can be [B, h, w, C], for an image (height, width).

    A map can be one only if its sides are to each other as the image's, to within one cell.
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
    """Return a model's output `base` as slots: tokens by `layout`, [B, h, w, C] channels first, else as it is."""
    if value.ndim == 3 and layout is not None:
        return split(value, layout, base=base)
    return {base: channels_first(value) if value.ndim == 4 and channels_last else value}
