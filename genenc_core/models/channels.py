"""Models of other channels than three: first convolutions and statistics adapted as timm does."""

import math
import warnings
from collections.abc import Mapping

import torch
from torch import nn

from genenc_core import errors
from genenc_core.models.encoder_module import PerChannel

RGB = 3


class AdaptedChannels(UserWarning):
    """Weights or statistics of three channels are used for others."""


def adapted_weight(weight: torch.Tensor, channels: int) -> torch.Tensor:
    """Return the weight `[O, 3, h, w]` of a first convolution for other channels, as timm's `adapt_input_conv` does.

    One channel gets the sum of the three; others repeat them in order, times 3 / channels.
    """
    if channels == 1:
        return weight.float().sum(dim=1, keepdim=True).to(weight.dtype)
    repeated = weight.float().repeat(1, math.ceil(channels / RGB), 1, 1)[:, :channels]
    return (repeated * (RGB / channels)).to(weight.dtype)


def adapted_statistics(values: PerChannel, channels: int) -> PerChannel:
    """Return mean or std of three channels for others, of which each gets that of the colour whose filter it gets.

    One channel gets the mean of the three.
    """
    if len(values) == channels:
        return values
    if channels == 1:
        return (sum(values) / len(values),)
    return tuple(values[at % len(values)] for at in range(channels))


def first_convolution(model: nn.Module, *, channels: int = RGB) -> str | None:
    """Return the name of the first convolution of that many channels; None if there is none."""
    found = (
        name for name, part in model.named_modules() if isinstance(part, nn.Conv2d) and part.in_channels == channels
    )
    return next(found, None)


def widen(model: nn.Module, channels: int, *, who: str) -> None:
    """Replace the first convolution of a model of three channels by one of others, with adapted weights.

    Raises:
        InputError: there is none.
    """
    name = first_convolution(model)
    old = None if name is None else model.get_submodule(name)
    if name is None or not isinstance(old, nn.Conv2d) or old.groups != 1:
        raise errors.InputError(f"{who} has no first convolution of three channels, so it cannot take {channels}")
    new = nn.Conv2d(
        channels,
        old.out_channels,
        old.kernel_size,  # type: ignore[arg-type]
        stride=old.stride,  # type: ignore[arg-type]
        padding=old.padding,  # type: ignore[arg-type]
        dilation=old.dilation,  # type: ignore[arg-type]
        bias=old.bias is not None,
        padding_mode=old.padding_mode,
    )
    with torch.no_grad():
        new.weight.copy_(adapted_weight(old.weight, channels))
        if old.bias is not None and new.bias is not None:
            new.bias.copy_(old.bias)
    parent, _, last = name.rpartition(".")
    setattr(model.get_submodule(parent), last, new.requires_grad_(old.weight.requires_grad))


def in_state(state: Mapping[str, torch.Tensor], name: str | None) -> int | None:
    """Return the channels of a state dict's first convolution of that name; None if it has none."""
    weight = state.get(f"{name}.weight")
    return int(weight.shape[1]) if isinstance(weight, torch.Tensor) and weight.ndim == 4 else None


def adapted_state(state: Mapping[str, torch.Tensor], name: str, channels: int) -> dict[str, torch.Tensor]:
    """Return a state dict of three channels for others."""
    key = f"{name}.weight"
    return {**state, key: adapted_weight(state[key], channels)}


def note_of(channels: int) -> str:
    """Return what was done to pretrained weights."""
    how = "their sum" if channels == 1 else f"repeated in order, times 3/{channels}"
    return f"the first convolution's three channels were adapted to {channels} as timm does: {how}"


def warn_of_statistics(name: str, mean: PerChannel, std: PerChannel) -> None:
    """Warn of mean and std that were made of those of red, green and blue."""
    shown = [", ".join(f"{value:.4g}" for value in values) for values in (mean, std)]
    warnings.warn(
        f"{name!r} has mean and std of three channels; its {len(mean)} get {shown[0]} and {shown[1]}, those of the "
        "colours whose filters they get. Give --mean and --std of your channels in [0, 1]",
        AdaptedChannels,
        stacklevel=3,
    )
