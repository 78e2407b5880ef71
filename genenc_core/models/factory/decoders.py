"""Decoders of one or a few layers: identity, linear, MLP, fully convolutional."""

from collections.abc import Sequence

import torch
from torch import nn

from genenc_core import errors
from genenc_core.models.factory import heads

Features = list[torch.Tensor]


class IdentityDecoder(nn.Module):
    """The feature at `out_index`, as it is."""

    includes_head = False

    def __init__(self, channel_list: Sequence[int], out_index: int = -1) -> None:
        super().__init__()
        self.out_channels = entry(channel_list, out_index, who="IdentityDecoder", argument="out_index")
        self.out_index = out_index

    def forward(self, features: Features) -> torch.Tensor:
        """Return one of the features."""
        return features[self.out_index]


class LinearDecoder(nn.Module):
    """One transposed convolution from a feature to logits, `upsampling_size` times as high and wide."""

    includes_head = True

    def __init__(self, channel_list: Sequence[int], num_classes: int, upsampling_size: int, in_index: int = -1) -> None:
        super().__init__()
        if upsampling_size < 1:
            raise errors.InputError(f"LinearDecoder: {upsampling_size=} must be at least 1.")
        channels = entry(channel_list, in_index, who="LinearDecoder", argument="in_index")
        self.in_index = in_index
        self.out_channels = num_classes
        self.conv = nn.ConvTranspose2d(channels, num_classes, upsampling_size, stride=upsampling_size)

    def forward(self, features: Features) -> torch.Tensor:
        """Return logits [B, num_classes, h * upsampling_size, w * upsampling_size]."""
        logits: torch.Tensor = self.conv(features[self.in_index])
        return logits


class MLPDecoder(nn.Module):
    """All features side by side, through one linear layer and an activation, at every cell."""

    includes_head = False

    def __init__(self, channel_list: Sequence[int], activation: str = "ReLU", out_index: int = -1) -> None:
        super().__init__()
        self.out_channels = entry(channel_list, out_index, who="MLPDecoder", argument="out_index")
        self.hidden_layer = nn.Linear(sum(channel_list), self.out_channels)
        self.activation = heads.activation(activation)

    def forward(self, features: Features) -> torch.Tensor:
        """Return [B, C, h, w], C being the channels of the feature at `out_index`.

        Raises:
            EncoderError: maps of several sizes.
        """
        sizes = [tuple(int(side) for side in feature.shape[2:]) for feature in features]
        if len(set(sizes)) != 1:
            raise errors.EncoderError(
                f"MLPDecoder takes maps of one size, not {sizes}: choose some with SelectIndices."
            )
        cells = torch.cat(features, 1).movedim(1, -1)
        return self.activation(self.hidden_layer(cells)).movedim(-1, 1)  # type: ignore[no-any-return]


class _ChannelNorm(nn.Module):
    """Layer normalisation over the channels of [B, C, h, w]."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.ln = nn.LayerNorm(channels, eps=1e-6)

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        return self.ln(maps.movedim(1, -1)).movedim(-1, 1).contiguous()  # type: ignore[no-any-return]


class FCNDecoder(nn.Module):
    """`num_convs` times: transposed convolution x 2, 3 x 3 convolution, layer normalisation, GELU."""

    includes_head = False

    def __init__(
        self, channel_list: Sequence[int], channels: int = 256, num_convs: int = 4, in_index: int = -1
    ) -> None:
        super().__init__()
        if num_convs < 1 or channels < 1:
            raise errors.InputError(f"FCNDecoder: {num_convs=} and {channels=} must be at least 1.")
        first = entry(channel_list, in_index, who="FCNDecoder", argument="in_index")
        self.in_index = in_index
        self.out_channels = channels
        self.convs = nn.Sequential(*(_doubling(first if i == 0 else channels, channels) for i in range(num_convs)))

    def forward(self, features: Features) -> torch.Tensor:
        """Return [B, channels, h * 2 ** num_convs, w * 2 ** num_convs]."""
        decoded: torch.Tensor = self.convs(features[self.in_index])
        return decoded


def _doubling(before: int, after: int) -> nn.Module:
    return nn.Sequential(
        nn.ConvTranspose2d(before, after, 2, stride=2),
        nn.Conv2d(after, after, 3, padding=1),
        _ChannelNorm(after),
        nn.GELU(),
    )


def entry(channel_list: Sequence[int], index: int, *, who: str, argument: str) -> int:
    """Return the channels of one feature.

    Raises:
        InputError: there is no such feature.
    """
    if not -len(channel_list) <= index < len(channel_list):
        raise errors.InputError(f"{who}: {argument} {index} is none of the {len(channel_list)} features.")
    return channel_list[index]
