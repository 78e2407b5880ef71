"""Feature metadata shared by the parts of a model: token layout, input statistics, channel axes."""

import inspect
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from genenc_core import errors
from genenc_core.models import tokens

Size = tuple[int, int]
OTHERS = "prefix"
"""Prefix tokens that are neither one class token nor registers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PatchTokens:
    """Order of a backbone's tokens [B, prefix + h * w, C]: class tokens, registers, then patches row by row."""

    prefix: int
    patch: Size
    """height and width of a patch in pixels"""
    registers: int = 0
    """number of registers, which are the last prefix tokens"""

    def grid(self, image_size: Size) -> Size:
        """Return the rows and columns of patches for an image (height, width)."""
        return image_size[0] // self.patch[0], image_size[1] // self.patch[1]

    def at(self, image_size: Size) -> tokens.TokenLayout:
        """Return the layout for images of a size (height, width)."""
        others = self.prefix - self.registers
        named = (("cls" if others == 1 else OTHERS, others), ("register", self.registers))
        return tokens.TokenLayout(grid=self.grid(image_size), prefix=tuple(each for each in named if each[1]))


@dataclass(frozen=True, slots=True, kw_only=True)
class InputInfo:
    """Input that a backbone expects: channels, image size in pixels, and normalisation statistics."""

    channels: int
    height: int
    width: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: str = "bilinear"
    resize_short: int | None = None
    """length of the shorter side before the centre crop to height x width in its evaluation; None: unknown"""


def image_size(images: torch.Tensor) -> Size:
    """Return height and width of [..., H, W] as plain integers, also during tracing."""
    return int(images.shape[-2]), int(images.shape[-1])


def token_grid(count: int, *, size: Size | None, layout: PatchTokens | None, rows: int | None) -> Size:
    """Return the grid of `count` patch tokens: from `rows`, else from the image and patch size, else square.

    Raises:
        EncoderError: the tokens do not fill the grid.
    """
    if rows is not None:
        grid = (rows, count // rows)
    elif layout is not None and size is not None:
        grid = layout.grid(size)
    else:
        grid = (math.isqrt(count), math.isqrt(count))
    if grid[0] * grid[1] != count:
        raise errors.EncoderError(
            f"{count} tokens do not fill a grid of {grid[0]} x {grid[1]}: give its number of rows (h), and the class "
            "and register tokens before the patches (remove_cls_token, prefix_tokens)."
        )
    return grid


def channels_of(feature: torch.Tensor) -> int:
    """Return the channels of [B, C], tokens [B, N, C], a map [B, C, h, w] or maps in time [B, T, C, h, w]."""
    return int(feature.shape[{2: 1, 3: 2, 5: 2}.get(feature.ndim, 1)])


def as_list(features: Any) -> list[torch.Tensor]:
    """Return the output of a backbone or neck (tensor, sequence or dict) as a list of tensors.

    Raises:
        EncoderError: an item is not a tensor.
    """
    if isinstance(features, torch.Tensor):
        return [features]
    items = list(features.values() if isinstance(features, Mapping) else features)
    for item in items:
        if not isinstance(item, torch.Tensor):
            raise errors.EncoderError(
                f"a backbone or neck returned a {type(item).__name__} among its features; it must return tensors."
            )
    return items


def check_channels(features: Sequence[torch.Tensor], declared: Sequence[int], *, who: str) -> None:
    """Check features against the channel list that the next part was built for.

    Raises:
        EncoderError: the number of features or channels differs.
    """
    actual = [channels_of(feature) for feature in features]
    if actual != list(declared):
        shapes = [list(feature.shape) for feature in features]
        raise errors.EncoderError(
            f"{who} declares features with {list(declared)} channels, but returns {actual} (shapes {shapes}). Maps "
            "must be [B, C, h, w] (for [B, h, w, C] add the neck PermuteDims with new_order [0, 3, 1, 2]); for tokens "
            "[B, N, C] add the neck ReshapeTokensToImage."
        )


def takes(signature: inspect.Signature, name: str) -> bool:
    """Return whether a function accepts the keyword `name`."""
    return name in signature.parameters or any(item.kind is item.VAR_KEYWORD for item in signature.parameters.values())
