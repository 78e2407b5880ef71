"""Necks that make a pyramid of maps: by interpolation, pooling or learned layers."""

from collections import OrderedDict
from collections.abc import Sequence

import torch
import torchvision
from torch import nn
from torch.nn import functional

from genenc_core import errors
from genenc_core.models.factory.features import Size
from genenc_core.models.factory.necks import Features, Neck


class InterpolateToPyramidal(Neck):
    """Map i of n enlarged by scale_factor ** (n - i), i from 0: four 14 x 14 maps become 224, 112, 56 and 28."""

    def __init__(self, channel_list: Sequence[int], scale_factor: int = 2, mode: str = "nearest") -> None:
        super().__init__(channel_list)
        _at_least_one("InterpolateToPyramidal", "scale_factor", scale_factor)
        self.scale_factor = scale_factor
        self.mode = mode

    def process_channel_list(self, channel_list: Sequence[int]) -> list[int]:
        """Return the list as it is."""
        return list(channel_list)

    def forward(self, features: Features, image_size: Size | None = None) -> Features:  # noqa: ARG002
        """Return the enlarged maps."""
        last = len(features)
        return [
            functional.interpolate(feature, scale_factor=float(self.scale_factor ** (last - index)), mode=self.mode)
            for index, feature in enumerate(features)
        ]


class MaxpoolToPyramidal(Neck):
    """Map i max-pooled by kernel_size ** i, i from 0: four 14 x 14 maps become 14, 7, 3 and 1."""

    def __init__(self, channel_list: Sequence[int], kernel_size: int = 2) -> None:
        super().__init__(channel_list)
        _at_least_one("MaxpoolToPyramidal", "kernel_size", kernel_size)
        self.kernel_size = kernel_size

    def process_channel_list(self, channel_list: Sequence[int]) -> list[int]:
        """Return the list as it is."""
        return list(channel_list)

    def forward(self, features: Features, image_size: Size | None = None) -> Features:  # noqa: ARG002
        """Return the pooled maps."""
        kernels = [self.kernel_size**index for index in range(len(features))]
        return [
            functional.max_pool2d(feature, kernel) if kernel > 1 else feature
            for feature, kernel in zip(features, kernels, strict=True)
        ]


class AddBottleneckLayer(Neck):
    """The features, and after them the last one through a 1 x 1 convolution to half its channels."""

    def __init__(self, channel_list: Sequence[int]) -> None:
        super().__init__(channel_list)
        self.bottleneck = nn.Conv2d(channel_list[-1], channel_list[-1] // 2, kernel_size=1)

    def process_channel_list(self, channel_list: Sequence[int]) -> list[int]:
        """Return the list with the new entry."""
        return [*channel_list, channel_list[-1] // 2]

    def forward(self, features: Features, image_size: Size | None = None) -> Features:  # noqa: ARG002
        """Return one map more than came in."""
        return [*features, self.bottleneck(features[-1])]


class LearnedInterpolateToPyramidal(Neck):
    """Exactly four maps, x 4 and x 2 by transposed convolutions, as it is, and max-pooled by 2: 56, 28, 14, 7 from 14.

    Channels become [C / 4, C / 2, C, C], as in BEiT's feature pyramid for plain transformers.
    """

    def __init__(self, channel_list: Sequence[int]) -> None:
        super().__init__(channel_list)
        if len(channel_list) != 4:
            raise errors.InputError(
                f"LearnedInterpolateToPyramidal takes exactly 4 features, not {len(channel_list)}: choose four with "
                "the neck SelectIndices first."
            )
        first, second = channel_list[0], channel_list[1]
        self.fpn1 = nn.Sequential(
            nn.ConvTranspose2d(first, first // 2, 2, stride=2),
            nn.BatchNorm2d(first // 2),
            nn.GELU(),
            nn.ConvTranspose2d(first // 2, first // 4, 2, stride=2),
        )
        self.fpn2 = nn.Sequential(nn.ConvTranspose2d(second, second // 2, 2, stride=2))
        self.fpn3 = nn.Sequential(nn.Identity())
        self.fpn4 = nn.Sequential(nn.MaxPool2d(2, stride=2))

    def process_channel_list(self, channel_list: Sequence[int]) -> list[int]:
        """Return [C / 4, C / 2, C, C] of the four entries."""
        return [channel_list[0] // 4, channel_list[1] // 2, channel_list[2], channel_list[3]]

    def forward(self, features: Features, image_size: Size | None = None) -> Features:  # noqa: ARG002
        """Return the pyramid."""
        levels = (self.fpn1, self.fpn2, self.fpn3, self.fpn4)
        return [level(feature) for level, feature in zip(levels, features, strict=True)]


class FeaturePyramidNetworkNeck(Neck):
    """torchvision's feature pyramid network: `out_channel` channels, fine maps enriched by coarse."""

    def __init__(self, channel_list: Sequence[int], out_channel: int = 256, output_ordered_dict: bool = True) -> None:
        super().__init__(channel_list)
        _at_least_one("FeaturePyramidNetworkNeck", "out_channel", out_channel)
        self.out_channel = out_channel
        self.output_ordered_dict = output_ordered_dict
        self.fpn = torchvision.ops.FeaturePyramidNetwork(list(channel_list), out_channel)

    def process_channel_list(self, channel_list: Sequence[int]) -> list[int]:
        """Return `out_channel` for every map."""
        return [self.out_channel] * len(channel_list)

    def forward(
        self,
        features: Features,
        image_size: Size | None = None,  # noqa: ARG002
    ) -> Features | OrderedDict[str, torch.Tensor]:
        """Return feat0, feat1 ... as an ordered dict, or the maps as a list."""
        named = OrderedDict((f"feat{index}", feature) for index, feature in enumerate(features))
        maps: OrderedDict[str, torch.Tensor] = self.fpn(named)
        return maps if self.output_ordered_dict else list(maps.values())


def _at_least_one(who: str, name: str, value: int) -> None:
    if value < 1:
        raise errors.InputError(f"{who}: {name} {value} must be at least 1.")
