"""Necks, which select, reshape or resample features between a backbone and a decoder."""

from abc import abstractmethod
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any, Literal

import torch
import torchvision
from torch import nn
from torch.nn import functional

from genenc_core import errors
from genenc_core.factory import features as feats
from genenc_core.factory.features import Size

Features = list[torch.Tensor]
TokenPooling = Literal["mean", "max", "min", "CLS"]


class Neck(nn.Module):
    """Base class of necks; `channel_list` are the input channels, `process_channel_list` returns the output channels.

    Channels are axis 1 of maps [B, C, h, w] and of vectors [B, C], and the last axis of tokens [B, N, C].
    """

    tokens: feats.PatchTokens | None = None
    """layout of the backbone's tokens, if known; set by the builder"""

    def __init__(self, channel_list: Sequence[int]) -> None:
        super().__init__()
        self.channel_list = list(channel_list)

    @abstractmethod
    def process_channel_list(self, channel_list: Sequence[int]) -> list[int]:
        """Return the channels of each feature that `forward` returns, given those of its inputs."""

    @abstractmethod
    def forward(self, features: Features, image_size: feats.Size | None = None) -> Any:
        """Transform features; `image_size` is the height and width of the model's input in pixels."""


class SelectIndices(Neck):
    """Select the features at `indices`; negative ones count from the end."""

    def __init__(self, channel_list: Sequence[int], indices: Sequence[int]) -> None:
        super().__init__(channel_list)
        count = len(channel_list)
        wrong = [index for index in indices if not -count <= index < count]
        if wrong or not indices:
            raise errors.InputError(
                f"SelectIndices: indices {list(indices)} must be from {-count} to {count - 1}, one or more."
            )
        self.indices = list(indices)

    def process_channel_list(self, channel_list: Sequence[int]) -> list[int]:
        """Return the chosen entries."""
        return [channel_list[index] for index in self.indices]

    def forward(self, features: Features, image_size: feats.Size | None = None) -> Features:  # noqa: ARG002
        """Return the chosen features."""
        return [features[index] for index in self.indices]


class AggregateTokens(Neck):
    """Pool the tokens (or the cells of a map) of the feature at `index` to one vector [B, C].

    `pooling` is mean, max or min over all tokens, prefix tokens included; CLS, the first token; or a token's index.
    """

    def __init__(self, channel_list: Sequence[int], pooling: TokenPooling | int = "mean", index: int = -1) -> None:
        super().__init__(channel_list)
        if not (isinstance(pooling, int) and not isinstance(pooling, bool)) and pooling not in _POOLINGS:
            raise errors.InputError(
                f"AggregateTokens: pooling {pooling!r} must be one of {', '.join(_POOLINGS)} or a token's index."
            )
        _check_index("AggregateTokens", index, channel_list)
        self.pooling = pooling
        self.index = index

    def process_channel_list(self, channel_list: Sequence[int]) -> list[int]:
        """Return the channels of the pooled feature."""
        return [channel_list[self.index]]

    def forward(self, features: Features, image_size: feats.Size | None = None) -> Features:  # noqa: ARG002
        """Return one vector [B, C] in a list."""
        tokens = features[self.index]
        if tokens.ndim == 4:
            tokens = tokens.flatten(2).transpose(1, 2)
        elif tokens.ndim != 3:
            raise errors.EncoderError(
                f"AggregateTokens takes tokens [B, N, C] or a map [B, C, h, w], not {list(tokens.shape)}."
            )
        if isinstance(self.pooling, int):
            return [self._token(tokens, self.pooling)]
        if self.pooling == "CLS":
            if self.tokens is not None and self.tokens.prefix == self.tokens.registers:
                raise errors.EncoderError(
                    "AggregateTokens: this backbone has no class token; use mean, max, min or a token's index."
                )
            return [tokens[:, 0]]
        if self.pooling == "mean":
            return [tokens.mean(1)]
        return [tokens.amax(1) if self.pooling == "max" else tokens.amin(1)]

    def _token(self, tokens: torch.Tensor, number: int) -> torch.Tensor:
        count = int(tokens.shape[1])
        if not -count <= number < count:
            raise errors.EncoderError(f"AggregateTokens: there is no token {number} among {count}.")
        return tokens[:, number]


_POOLINGS = ("mean", "max", "min", "CLS")


class PermuteDims(Neck):
    """Permute the axes of each feature to `new_order`, e.g. [0, 3, 1, 2] for maps [B, h, w, C]."""

    def __init__(self, channel_list: Sequence[int], new_order: Sequence[int]) -> None:
        super().__init__(channel_list)
        if sorted(new_order) != list(range(len(new_order))):
            raise errors.InputError(f"PermuteDims: new_order {list(new_order)} must list every axis once, from 0.")
        self.new_order = list(new_order)

    def process_channel_list(self, channel_list: Sequence[int]) -> list[int]:
        """Return the list unchanged, since the new order puts channels on their axis."""
        return list(channel_list)

    def forward(self, features: Features, image_size: feats.Size | None = None) -> Features:  # noqa: ARG002
        """Return the permuted features."""
        return [feature.permute(self.new_order).contiguous() for feature in features]


class ReshapeTokensToImage(Neck):
    """Reshape tokens [B, prefix + t * h * w, E] to maps [B, t * E, h, w].

    The number of prefix tokens is `prefix_tokens`, else the backbone's if known, else one; none if not
    `remove_cls_token`. The grid has `h` rows, or follows from image and patch size; if neither is known it is assumed
    to be square.
    """

    def __init__(
        self,
        channel_list: Sequence[int],
        remove_cls_token: bool = True,
        effective_time_dim: int = 1,
        h: int | None = None,
        prefix_tokens: int | None = None,
    ) -> None:
        super().__init__(channel_list)
        if effective_time_dim < 1 or (h is not None and h < 1) or (prefix_tokens is not None and prefix_tokens < 0):
            raise errors.InputError(
                f"ReshapeTokensToImage: {effective_time_dim=} and {h=} must be at least 1, {prefix_tokens=} at least 0."
            )
        self.remove_cls_token = remove_cls_token
        self.effective_time_dim = effective_time_dim
        self.h = h
        self.prefix_tokens = prefix_tokens

    @property
    def prefix(self) -> int:
        """Number of prefix tokens to drop."""
        if not self.remove_cls_token:
            return 0
        if self.prefix_tokens is not None:
            return self.prefix_tokens
        return 1 if self.tokens is None else self.tokens.prefix

    def process_channel_list(self, channel_list: Sequence[int]) -> list[int]:
        """Return the entries multiplied by the time steps, which become channels."""
        return [channels * self.effective_time_dim for channels in channel_list]

    def forward(self, features: Features, image_size: feats.Size | None = None) -> Features:
        """Return one map per token list."""
        return [self._image(feature, image_size) for feature in features]

    def _image(self, tokens: torch.Tensor, size: feats.Size | None) -> torch.Tensor:
        if tokens.ndim != 3:
            raise errors.EncoderError(
                f"ReshapeTokensToImage takes tokens [B, N, C], not {list(tokens.shape)}: omit this neck for maps."
            )
        patches = tokens[:, self.prefix :]
        count, steps = int(patches.shape[1]), self.effective_time_dim
        if count % steps:
            raise errors.EncoderError(f"{count} tokens cannot be divided among effective_time_dim {steps}.")
        grid = feats.token_grid(count // steps, size=size, layout=self.tokens, rows=self.h)
        channels = int(patches.shape[2])
        steps_first = patches.reshape(-1, steps, grid[0] * grid[1], channels).transpose(2, 3)
        return steps_first.reshape(-1, steps * channels, *grid)


def _check_index(who: str, index: int, channel_list: Sequence[int]) -> None:
    if not -len(channel_list) <= index < len(channel_list):
        raise errors.InputError(f"{who}: there is no feature {index} among {len(channel_list)}.")


class InterpolateToPyramidal(Neck):
    """Enlarge map i of n by scale_factor ** (n - i), i from 0: four 14 x 14 maps become 224, 112, 56 and 28."""

    def __init__(self, channel_list: Sequence[int], scale_factor: int = 2, mode: str = "nearest") -> None:
        super().__init__(channel_list)
        _at_least_one("InterpolateToPyramidal", "scale_factor", scale_factor)
        self.scale_factor = scale_factor
        self.mode = mode

    def process_channel_list(self, channel_list: Sequence[int]) -> list[int]:
        """Return the list unchanged."""
        return list(channel_list)

    def forward(self, features: Features, image_size: Size | None = None) -> Features:  # noqa: ARG002
        """Return the enlarged maps."""
        last = len(features)
        return [
            functional.interpolate(feature, scale_factor=float(self.scale_factor ** (last - index)), mode=self.mode)
            for index, feature in enumerate(features)
        ]


class MaxpoolToPyramidal(Neck):
    """Max-pool map i by kernel_size ** i, i from 0: four 14 x 14 maps become 14, 7, 3 and 1."""

    def __init__(self, channel_list: Sequence[int], kernel_size: int = 2) -> None:
        super().__init__(channel_list)
        _at_least_one("MaxpoolToPyramidal", "kernel_size", kernel_size)
        self.kernel_size = kernel_size

    def process_channel_list(self, channel_list: Sequence[int]) -> list[int]:
        """Return the list unchanged."""
        return list(channel_list)

    def forward(self, features: Features, image_size: Size | None = None) -> Features:  # noqa: ARG002
        """Return the pooled maps."""
        kernels = [self.kernel_size**index for index in range(len(features))]
        return [
            functional.max_pool2d(feature, kernel) if kernel > 1 else feature
            for feature, kernel in zip(features, kernels, strict=True)
        ]


class AddBottleneckLayer(Neck):
    """Append the last feature, reduced to half its channels by a 1 x 1 convolution."""

    def __init__(self, channel_list: Sequence[int]) -> None:
        super().__init__(channel_list)
        self.bottleneck = nn.Conv2d(channel_list[-1], channel_list[-1] // 2, kernel_size=1)

    def process_channel_list(self, channel_list: Sequence[int]) -> list[int]:
        """Return the list with the additional entry."""
        return [*channel_list, channel_list[-1] // 2]

    def forward(self, features: Features, image_size: Size | None = None) -> Features:  # noqa: ARG002
        """Return the maps and the additional one."""
        return [*features, self.bottleneck(features[-1])]


class LearnedInterpolateToPyramidal(Neck):
    """Resize four maps: x 4 and x 2 by transposed convolutions, unchanged, and max-pooled by 2 (14: 56, 28, 14, 7).

    Channels become [C / 4, C / 2, C, C], as in BEiT's feature pyramid for plain transformers.
    """

    def __init__(self, channel_list: Sequence[int]) -> None:
        super().__init__(channel_list)
        if len(channel_list) != 4:
            raise errors.InputError(
                f"LearnedInterpolateToPyramidal takes exactly 4 features, not {len(channel_list)}: select four with "
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
        """Return [C / 4, C / 2, C, C] for the four entries."""
        return [channel_list[0] // 4, channel_list[1] // 2, channel_list[2], channel_list[3]]

    def forward(self, features: Features, image_size: Size | None = None) -> Features:  # noqa: ARG002
        """Return the pyramid."""
        levels = (self.fpn1, self.fpn2, self.fpn3, self.fpn4)
        return [level(feature) for level, feature in zip(levels, features, strict=True)]


class FeaturePyramidNetworkNeck(Neck):
    """torchvision's feature pyramid network with `out_channel` channels, which adds coarse maps to finer ones."""

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
        """Return the maps as an ordered dict (feat0, feat1, ...) or a list."""
        named = OrderedDict((f"feat{index}", feature) for index, feature in enumerate(features))
        maps: OrderedDict[str, torch.Tensor] = self.fpn(named)
        return maps if self.output_ordered_dict else list(maps.values())


def _at_least_one(who: str, name: str, value: int) -> None:
    if value < 1:
        raise errors.InputError(f"{who}: {name} {value} must be at least 1.")
