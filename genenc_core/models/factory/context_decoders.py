"""Decoders that look around: UPerNet's pyramid pooling and DeepLab's atrous spatial pyramid pooling."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import nn
from torch.nn import functional

from genenc_core import errors
from genenc_core.models.factory import decoders

Features = list[torch.Tensor]


class _ConvNormAct(nn.Module):
    """Convolution without bias, batch normalisation, ReLU; sizes stay unless `padding` says otherwise."""

    def __init__(self, before: int, after: int, kernel: int, *, padding: int = 0, dilation: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(before, after, kernel, padding=padding, dilation=dilation, bias=False)
        self.norm = nn.BatchNorm2d(after)
        self.act = nn.ReLU()

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        made: torch.Tensor = self.act(self.norm(self.conv(maps)))
        return made


class UperNetDecoder(nn.Module):
    """UPerNet (Xiao et al. 2018): pooled context on the coarsest map, a feature pyramid, all levels fused.

    The layers are named as in mmsegmentation and TerraTorch, so that their weights fit.
    """

    includes_head = False

    def __init__(
        self,
        channel_list: Sequence[int],
        pool_scales: Sequence[int] = (1, 2, 3, 6),
        channels: int = 256,
        align_corners: bool = True,
        scale_modules: bool = False,
    ) -> None:
        super().__init__()
        if scale_modules:
            raise errors.InputError(
                "UperNetDecoder: scale_modules is deprecated in TerraTorch and not taken here: put the neck "
                "LearnedInterpolateToPyramidal before the decoder, which is the same layers."
            )
        self.out_channels = channels
        self.align_corners = align_corners
        coarsest = channel_list[-1]
        self.psp_modules = nn.ModuleList(
            nn.Sequential(nn.AdaptiveAvgPool2d(scale), _ConvNormAct(coarsest, channels, 1)) for scale in pool_scales
        )
        self.bottleneck = _ConvNormAct(coarsest + len(pool_scales) * channels, channels, 3, padding=1)
        self.lateral_convs = nn.ModuleList(_ConvNormAct(width, channels, 1) for width in channel_list[:-1])
        self.fpn_convs = nn.ModuleList(_ConvNormAct(channels, channels, 3, padding=1) for _ in channel_list[:-1])
        self.fpn_bottleneck = _ConvNormAct(len(channel_list) * channels, channels, 3, padding=1)

    def forward(self, features: Features) -> torch.Tensor:
        """Return [B, channels, h, w] at the size of the first feature."""
        coarsest = features[-1]
        pooled = [self._resized(pool(coarsest), coarsest) for pool in self.psp_modules]
        levels = [lateral(maps) for lateral, maps in zip(self.lateral_convs, features[:-1], strict=True)]
        levels.append(self.bottleneck(torch.cat((coarsest, *pooled), 1)))
        for index in range(len(levels) - 1, 0, -1):
            levels[index - 1] = levels[index - 1] + self._resized(levels[index], levels[index - 1])
        smooth = [convolution(maps) for convolution, maps in zip(self.fpn_convs, levels[:-1], strict=True)]
        smooth.append(levels[-1])
        fused: torch.Tensor = self.fpn_bottleneck(
            torch.cat([smooth[0], *(self._resized(maps, smooth[0]) for maps in smooth[1:])], 1)
        )
        return fused

    def _resized(self, maps: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
        size = like.shape[2:]
        return functional.interpolate(maps, size=size, mode="bilinear", align_corners=self.align_corners)


class _Branches(nn.Module):
    def __init__(self, before: int, after: int, dilations: Sequence[int]) -> None:
        super().__init__()
        self.model_sequence = nn.ModuleList(
            _ConvNormAct(before, after, 1)
            if dilation == 1
            else _ConvNormAct(before, after, 3, padding=dilation, dilation=dilation)
            for dilation in dilations
        )

    def forward(self, maps: torch.Tensor) -> list[torch.Tensor]:
        return [branch(maps) for branch in self.model_sequence]


class _Aspp(nn.Module):
    """Atrous spatial pyramid pooling (DeepLabv3, Chen et al. 2017), and a 1 x 1 convolution to the outputs."""

    includes_head = True
    last = "conv_seg"

    def __init__(
        self,
        channel_list: Sequence[int],
        outputs: int,
        *,
        dilations: Sequence[int],
        in_channels: int | None,
        channels: int,
        align_corners: bool,
        dropout: float,
        input_transform: Literal["resize_concat"] | None,
        in_index: int | Sequence[int],
    ) -> None:
        super().__init__()
        if input_transform not in (None, "resize_concat"):
            raise errors.InputError(f"ASPP: input_transform {input_transform!r} must be 'resize_concat' or left out.")
        several = input_transform == "resize_concat"
        if isinstance(in_index, int) == several:
            raise errors.InputError(
                f"ASPP: in_index {in_index!r} must be a list with input_transform 'resize_concat', one number without."
            )
        self.indices = [in_index] if isinstance(in_index, int) else list(in_index)
        width = sum(decoders.entry(channel_list, index, who="ASPP", argument="in_index") for index in self.indices)
        if in_channels not in (None, width):
            raise errors.InputError(f"ASPP: in_channels {in_channels} is not the features' {width}; leave it out.")
        self.align_corners = align_corners
        self.out_channels = outputs
        self.image_pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), _ConvNormAct(width, channels, 1))
        self.aspp_modules = _Branches(width, channels, dilations)
        self.bottleneck = _ConvNormAct((len(dilations) + 1) * channels, channels, 3, padding=1)
        self.dropout = nn.Dropout2d(dropout)
        setattr(self, self.last, nn.Conv2d(channels, outputs, 1))

    def forward(self, features: Features) -> torch.Tensor:
        """Return [B, outputs, h, w] at the size of the (first) feature taken."""
        chosen = [features[index] for index in self.indices]
        maps = torch.cat([chosen[0], *(self._resized(item, chosen[0]) for item in chosen[1:])], 1)
        context = self._resized(self.image_pool(maps), maps)
        fused = self.bottleneck(torch.cat((context, *self.aspp_modules(maps)), 1))
        outputs: torch.Tensor = getattr(self, self.last)(self.dropout(fused))
        return outputs

    def _resized(self, maps: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
        size = like.shape[2:]
        return functional.interpolate(maps, size=size, mode="bilinear", align_corners=self.align_corners)


class ASPPSegmentationHead(_Aspp):
    """DeepLabv3's head for classes; it needs no head after it."""

    def __init__(
        self,
        channel_list: Sequence[int],
        num_classes: int,
        dilations: Sequence[int] = (1, 6, 12, 18),
        in_channels: int | None = None,
        channels: int = 256,
        align_corners: bool = False,
        head_dropout_ratio: float = 0.3,
        input_transform: Literal["resize_concat"] | None = None,
        in_index: int | Sequence[int] = -1,
    ) -> None:
        super().__init__(
            channel_list,
            num_classes,
            dilations=dilations,
            in_channels=in_channels,
            channels=channels,
            align_corners=align_corners,
            dropout=head_dropout_ratio,
            input_transform=input_transform,
            in_index=in_index,
        )


class ASPPRegressionHead(_Aspp):
    """DeepLabv3's layers for values; it needs no head after it."""

    last = "conv_reg"

    def __init__(
        self,
        channel_list: Sequence[int],
        out_channels: int = 1,
        dilations: Sequence[int] = (1, 6, 12, 18),
        in_channels: int | None = None,
        channels: int = 256,
        align_corners: bool = False,
        head_dropout_ratio: float = 0.3,
        input_transform: Literal["resize_concat"] | None = None,
        in_index: int | Sequence[int] = -1,
    ) -> None:
        super().__init__(
            channel_list,
            out_channels,
            dilations=dilations,
            in_channels=in_channels,
            channels=channels,
            align_corners=align_corners,
            dropout=head_dropout_ratio,
            input_transform=input_transform,
            in_index=in_index,
        )
