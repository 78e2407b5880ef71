"""Heads, which convert a decoder's features to classes or values."""

import itertools
from collections.abc import Sequence

import torch
from torch import nn

from genenc_core import errors
from genenc_core.factory import registry


class SegmentationHead(nn.Module):
    """Map [B, C, h, w] -> logits [B, num_classes, h, w]: 3 x 3 convolutions to each of `channel_list`, then 1 x 1."""

    def __init__(
        self, in_channels: int, num_classes: int, channel_list: Sequence[int] | None = None, dropout: float = 0
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        widths = [in_channels, *(channel_list or ())]
        blocks = [
            nn.Sequential(nn.Conv2d(before, after, 3, padding=1), nn.ReLU())
            for before, after in itertools.pairwise(widths)
        ]
        self.head = nn.Sequential(
            nn.Sequential(*blocks), _dropout(dropout, nn.Dropout), nn.Conv2d(widths[-1], num_classes, 1)
        )

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Return the logits."""
        logits: torch.Tensor = self.head(features)
        return logits


class _PixelShuffleUpscale(nn.Module):
    """Upscale by 2: a convolution to 4 C channels, pixel shuffle, batch normalisation, ReLU."""

    def __init__(self, channels: int, *, batch_norm: bool) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, 4 * channels, 3, padding=1)
        self.upscale = nn.PixelShuffle(2)
        self.bn = nn.BatchNorm2d(channels) if batch_norm else nn.Identity()
        self.relu = nn.ReLU()

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        enlarged: torch.Tensor = self.relu(self.bn(self.upscale(self.conv(features))))
        return enlarged


class RegressionHead(nn.Module):
    """Map [B, C, h, w] -> one value per cell [B, 1, h, w], enlarged by 2 ** learned_upscale_layers."""

    def __init__(
        self,
        in_channels: int,
        final_act: nn.Module | str | None = None,
        learned_upscale_layers: int = 0,
        channel_list: Sequence[int] | None = None,
        batch_norm: bool = True,
        dropout: float = 0,
    ) -> None:
        super().__init__()
        if learned_upscale_layers < 0:
            raise errors.InputError(f"RegressionHead: {learned_upscale_layers=} must be 0 or more.")
        layers: list[nn.Module] = []
        if learned_upscale_layers:
            upscales = (_PixelShuffleUpscale(in_channels, batch_norm=batch_norm) for _ in range(learned_upscale_layers))
            layers.append(nn.Sequential(*upscales))
        widths = [in_channels, *(channel_list or ())]
        if channel_list:
            pairs = itertools.pairwise(widths)
            layers.append(nn.Sequential(*(_block(before, after, batch_norm=batch_norm) for before, after in pairs)))
        self.head = nn.Sequential(*layers, nn.Dropout2d(dropout), nn.Conv2d(widths[-1], 1, 1))
        self.final_act = _activation(final_act)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Return the values."""
        values: torch.Tensor = self.final_act(self.head(features))
        return values


class ClassificationHead(nn.Module):
    """Map [B, C, h, w] or vector [B, C] -> logits [B, num_classes]: linear layers at each cell, then the mean.

    With `linear_after_pool` the mean is taken first.
    """

    def __init__(
        self,
        in_dim: int,
        num_classes: int,
        dim_list: Sequence[int] | None = None,
        dropout: float = 0,
        linear_after_pool: bool = False,
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.linear_after_pool = linear_after_pool
        widths = [in_dim, *(dim_list or ())]
        blocks = [nn.Sequential(nn.Linear(before, after), nn.ReLU()) for before, after in itertools.pairwise(widths)]
        self.head = nn.Sequential(
            nn.Sequential(*blocks), _dropout(dropout, nn.Dropout), nn.Linear(widths[-1], num_classes)
        )

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Return the logits.

        Raises:
            EncoderError: tokens [B, N, C].
        """
        if features.ndim == 3:
            raise errors.EncoderError(
                f"ClassificationHead takes maps [B, C, h, w] or vectors [B, C], not tokens {list(features.shape)}: add "
                "the neck AggregateTokens or ReshapeTokensToImage before the decoder."
            )
        cells = features.unsqueeze(-1).flatten(2).transpose(1, 2)
        logits: torch.Tensor = self.head(cells.mean(1)) if self.linear_after_pool else self.head(cells).mean(1)
        return logits


HEADS = {"segmentation": SegmentationHead, "regression": RegressionHead, "classification": ClassificationHead}
"""Head class by task."""


def _block(before: int, after: int, *, batch_norm: bool) -> nn.Module:
    convolution = nn.Conv2d(before, after, 3, padding=1, bias=not batch_norm)
    return nn.Sequential(convolution, nn.BatchNorm2d(after) if batch_norm else nn.Identity(), nn.ReLU(inplace=True))


def _dropout(rate: float, kind: type[nn.Dropout]) -> nn.Module:
    return kind(rate) if rate else nn.Identity()


def _activation(named: nn.Module | str | None) -> nn.Module:
    """Return the module itself, or the torch.nn activation of this name (`ReLU`, `torch.nn.ReLU`)."""
    if named is None:
        return nn.Identity()
    if isinstance(named, nn.Module):
        return named
    known = {name: kind for name, kind in vars(nn.modules.activation).items() if isinstance(kind, type)}
    kind = known.get(named.removeprefix("torch.nn.").removeprefix("modules.activation."))
    if kind is None or not issubclass(kind, nn.Module):
        raise errors.InputError(
            f"final_act {named!r} is not an activation of torch.nn.{registry.nearest(named.rpartition('.')[2], known)} "
            "Give the name of one, or a module."
        )
    module: nn.Module = kind()
    return module


def activation(name: str) -> nn.Module:
    """Return the torch.nn activation of this name.

    Raises:
        InputError: unknown name.
    """
    return _activation(name)
