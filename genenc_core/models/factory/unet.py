"""The U-Net decoder, its layers named as in segmentation_models_pytorch, so that its weights fit."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import nn
from torch.nn import functional

from genenc_core import errors

Features = list[torch.Tensor]


class UNetDecoder(nn.Module):
    """From the coarsest map to the finest: enlarge to the next map, put it beside, two convolutions; then once more.

    The last block has no map beside it and keeps the finest map's size, as every map of the pyramid is used.
    Source of the layout: Ronneberger et al. 2015, as segmentation_models_pytorch has it.
    """

    includes_head = False

    def __init__(
        self,
        channel_list: Sequence[int],
        channels: Sequence[int],
        use_batchnorm: bool = True,
        attention_type: Literal["scse"] | None = None,
    ) -> None:
        super().__init__()
        if len(channels) != len(channel_list) or min(channels) < 1:
            raise errors.InputError(
                f"UNetDecoder: channels {list(channels)} must be {len(channel_list)} numbers of at least 1, one per "
                f"feature (the features have {list(channel_list)} channels)."
            )
        if attention_type not in (None, "scse"):
            raise errors.InputError(f"UNetDecoder: attention_type {attention_type!r} must be 'scse' or left out.")
        self.out_channels = channels[-1]
        self.decoder = _Blocks(channel_list, channels, norm=use_batchnorm, attention=attention_type == "scse")
        for module in self.decoder.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_uniform_(module.weight, mode="fan_in", nonlinearity="relu")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, features: Features) -> torch.Tensor:
        """Return [B, channels[-1], h, w] at the size of the first feature."""
        decoded: torch.Tensor = self.decoder(features)
        return decoded


class _Blocks(nn.Module):
    def __init__(self, given: Sequence[int], made: Sequence[int], *, norm: bool, attention: bool) -> None:
        super().__init__()
        before = [given[-1], *made[:-1]]
        beside = [*list(given[-2::-1]), 0]
        self.blocks = nn.ModuleList(
            _Block(*widths, norm=norm, attention=attention) for widths in zip(before, beside, made, strict=True)
        )

    def forward(self, features: Features) -> torch.Tensor:
        coarse_first = features[::-1]
        decoded = coarse_first[0]
        for index, block in enumerate(self.blocks):
            skip = coarse_first[index + 1] if index + 1 < len(features) else None
            size = (features[0] if skip is None else skip).shape[2:]
            decoded = block(functional.interpolate(decoded, size=size, mode="nearest"), skip)
        return decoded


class _Block(nn.Module):
    def __init__(self, before: int, beside: int, after: int, *, norm: bool, attention: bool) -> None:
        super().__init__()
        self.conv1 = _convolution(before + beside, after, norm=norm)
        self.attention1 = _Attention(before + beside) if attention else nn.Identity()
        self.conv2 = _convolution(after, after, norm=norm)
        self.attention2 = _Attention(after) if attention else nn.Identity()

    def forward(self, maps: torch.Tensor, skip: torch.Tensor | None) -> torch.Tensor:
        if skip is not None:
            maps = self.attention1(torch.cat((maps, skip), 1))
        decoded: torch.Tensor = self.attention2(self.conv2(self.conv1(maps)))
        return decoded


class _Attention(nn.Module):
    """scSE (Roy et al. 2018) under the names of segmentation_models_pytorch: channel and spatial gates, added."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.attention = _ScSE(channels)

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        gated: torch.Tensor = self.attention(maps)
        return gated


class _ScSE(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        narrow = max(channels // 16, 1)
        self.cSE = nn.Sequential(
            nn.AdaptiveAvgPool2d(1),
            nn.Conv2d(channels, narrow, 1),
            nn.ReLU(),
            nn.Conv2d(narrow, channels, 1),
            nn.Sigmoid(),
        )
        self.sSE = nn.Sequential(nn.Conv2d(channels, 1, 1), nn.Sigmoid())

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        gated: torch.Tensor = maps * self.cSE(maps) + maps * self.sSE(maps)
        return gated


def _convolution(before: int, after: int, *, norm: bool) -> nn.Module:
    convolution = nn.Conv2d(before, after, 3, padding=1, bias=not norm)
    return nn.Sequential(convolution, nn.BatchNorm2d(after) if norm else nn.Identity(), nn.ReLU(inplace=True))
