"""Necks that choose and reshape features between a backbone and a decoder."""

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import nn

from genenc_core import errors
from genenc_core.models.factory import features as feats

Features = list[torch.Tensor]
TokenPooling = Literal["mean", "max", "min", "CLS"]


class Neck(nn.Module):
    """Base of all necks: `channel_list` comes in, `process_channel_list` says what goes out.

    Channels are axis 1 of maps [B, C, h, w] and of vectors [B, C], and the last axis of tokens [B, N, C].
    """

    tokens: feats.TokenLayout | None = None
    """how the backbone's tokens stand, where that is known; the builder sets it"""

    def __init__(self, channel_list: Sequence[int]) -> None:
        super().__init__()
        self.channel_list = list(channel_list)

    @abstractmethod
    def process_channel_list(self, channel_list: Sequence[int]) -> list[int]:
        """Return the channels of each feature that `forward` gives, for features with `channel_list` channels."""

    @abstractmethod
    def forward(self, features: Features, image_size: feats.Size | None = None) -> Any:
        """Return other features; `image_size` is the model input's height and width in pixels."""


class SelectIndices(Neck):
    """The features at `indices`; negative ones count from the end."""

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
    """One vector [B, C] from the tokens (or the cells of a map) of the feature at `index`.

    `pooling` is mean, max or min over all tokens, prefix tokens included; CLS, the first token; or a token's number.
    """

    def __init__(self, channel_list: Sequence[int], pooling: TokenPooling | int = "mean", index: int = -1) -> None:
        super().__init__(channel_list)
        if not (isinstance(pooling, int) and not isinstance(pooling, bool)) and pooling not in _POOLINGS:
            raise errors.InputError(
                f"AggregateTokens: pooling {pooling!r} is none of {', '.join(_POOLINGS)} or a token's number."
            )
        _check_index("AggregateTokens", index, channel_list)
        self.pooling = pooling
        self.index = index

    def process_channel_list(self, channel_list: Sequence[int]) -> list[int]:
        """Return the one feature's channels."""
        return [channel_list[self.index]]

    def forward(self, features: Features, image_size: feats.Size | None = None) -> Features:  # noqa: ARG002
        """Return [vectors [B, C]]."""
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
                    "AggregateTokens: this backbone has no class token; take mean, max, min or a token's number."
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
    """Every feature with its axes in `new_order`, e.g. [0, 3, 1, 2] for maps [B, h, w, C]."""

    def __init__(self, channel_list: Sequence[int], new_order: Sequence[int]) -> None:
        super().__init__(channel_list)
        if sorted(new_order) != list(range(len(new_order))):
            raise errors.InputError(f"PermuteDims: new_order {list(new_order)} must name every axis once, from 0.")
        self.new_order = list(new_order)

    def process_channel_list(self, channel_list: Sequence[int]) -> list[int]:
        """Return the list as it is: the order brings the channels where they belong."""
        return list(channel_list)

    def forward(self, features: Features, image_size: feats.Size | None = None) -> Features:  # noqa: ARG002
        """Return the permuted features."""
        return [feature.permute(self.new_order).contiguous() for feature in features]


class ReshapeTokensToImage(Neck):
    """Tokens [B, prefix + t * h * w, E] -> maps [B, t * E, h, w].

    Prefix tokens are the backbone's, where it says how many it has; else `prefix_tokens`, else one. With
    `remove_cls_token` false there are none. The grid has `h` rows, or follows from image and patch size; it is
    taken to be square only when neither is known.
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
        """How many tokens before the patches are dropped."""
        if not self.remove_cls_token:
            return 0
        if self.prefix_tokens is not None:
            return self.prefix_tokens
        return 1 if self.tokens is None else self.tokens.prefix

    def process_channel_list(self, channel_list: Sequence[int]) -> list[int]:
        """Return every entry times the time steps, which become channels."""
        return [channels * self.effective_time_dim for channels in channel_list]

    def forward(self, features: Features, image_size: feats.Size | None = None) -> Features:
        """Return one map per token list."""
        return [self._image(feature, image_size) for feature in features]

    def _image(self, tokens: torch.Tensor, size: feats.Size | None) -> torch.Tensor:
        if tokens.ndim != 3:
            raise errors.EncoderError(
                f"ReshapeTokensToImage takes tokens [B, N, C], not {list(tokens.shape)}: leave this neck out for maps."
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
