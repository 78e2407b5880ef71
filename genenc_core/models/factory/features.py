"""What a model's parts tell each other of features: how tokens lie in the image, which axis the channels are."""

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from genenc_core import errors

Size = tuple[int, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenLayout:
    """How a backbone's tokens [B, prefix + h * w, C] stand: class and register tokens first, then patches by rows."""

    prefix: int
    patch: Size
    """pixels of one patch: height, width"""
    registers: int = 0
    """how many of the prefix tokens, its last ones, are registers"""

    def grid(self, image_size: Size) -> Size:
        """Return rows and columns of patches in an image (height, width)."""
        return image_size[0] // self.patch[0], image_size[1] // self.patch[1]


@dataclass(frozen=True, slots=True, kw_only=True)
class InputInfo:
    """What a backbone was made for: image size in pixels, and the statistics its images are normalised with."""

    channels: int
    height: int
    width: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: str = "bilinear"
    resize_short: int | None = None
    """its evaluation resizes the shorter side to this before a centre crop to height x width; None: not known"""


def image_size(images: torch.Tensor) -> Size:
    """Return height and width of [..., H, W] as plain numbers, also while a model is traced."""
    return int(images.shape[-2]), int(images.shape[-1])


def token_grid(count: int, *, size: Size | None, layout: TokenLayout | None, rows: int | None) -> Size:
    """Return the grid of `count` patch tokens: by its rows, else from the image, else square.

    Raises:
        EncoderError: the tokens do not fill such a grid.
    """
    if rows is not None:
        grid = (rows, count // rows)
    elif layout is not None and size is not None:
        grid = layout.grid(size)
    else:
        grid = (math.isqrt(count), math.isqrt(count))
    if grid[0] * grid[1] != count:
        raise errors.EncoderError(
            f"{count} tokens do not fill a grid of {grid[0]} x {grid[1]}: say how many rows it has (h), and whether "
            "class and register tokens stand before the patches (remove_cls_token, prefix_tokens)."
        )
    return grid


def channels_of(feature: torch.Tensor) -> int:
    """Return the channels of [B, C], tokens [B, N, C], a map [B, C, h, w] or maps in time [B, T, C, h, w]."""
    return int(feature.shape[{2: 1, 3: 2, 5: 2}.get(feature.ndim, 1)])


def listed(features: Any) -> list[torch.Tensor]:
    """Return a backbone's or neck's output as a list of tensors, whatever it is packed in.

    Raises:
        EncoderError: something in it is no tensor.
    """
    if isinstance(features, torch.Tensor):
        return [features]
    found = list(features.values() if isinstance(features, Mapping) else features)
    for item in found:
        if not isinstance(item, torch.Tensor):
            raise errors.EncoderError(
                f"a backbone or neck gave a {type(item).__name__} among its features; it must give tensors."
            )
    return found


def check_channels(features: Sequence[torch.Tensor], declared: Sequence[int], *, who: str) -> None:
    """Compare features with the channel list that the next part was built for.

    Raises:
        EncoderError: other numbers of features or channels.
    """
    found = [channels_of(feature) for feature in features]
    if found != list(declared):
        shapes = [list(feature.shape) for feature in features]
        raise errors.EncoderError(
            f"{who} declares features with {list(declared)} channels, but gives {found} (shapes {shapes}). Maps must "
            "be [B, C, h, w] (the neck PermuteDims with new_order [0, 3, 1, 2] turns [B, h, w, C]); tokens [B, N, C] "
            "become maps with the neck ReshapeTokensToImage."
        )


def takes(function: Callable[..., Any], name: str) -> bool:
    """Tell whether `function` has a parameter `name`, or takes any keyword."""
    parameters = inspect.signature(function).parameters
    return name in parameters or any(item.kind is item.VAR_KEYWORD for item in parameters.values())
