"""Temporal wrapper of an image backbone: encodes each time step, then pools over time."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import nn

from genenc_core import errors
from genenc_core.factory import features as feats

TemporalPooling = Literal["mean", "max", "diff", "keep", "concat"]
_POOLINGS = ("mean", "max", "diff", "keep", "concat")


class TemporalWrapper(nn.Module):
    """Encode [B, C, T, H, W] and pool the features, tokens [B, N, C] or maps [B, C, h, w], over T.

    `pooling` is `mean`, `max`, `diff` (the first of two steps minus the second), `concat` (of the steps' channels) or
    `keep`, which returns [B, T, ...]. `subset_lengths` averages runs of steps first, and pools the averages.
    """

    def __init__(
        self,
        encoder: nn.Module,
        pooling: TemporalPooling = "mean",
        n_timestamps: int | None = None,
        features_permute_op: Sequence[int] | None = None,
        subset_lengths: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        if pooling not in _POOLINGS:
            raise errors.InputError(f"temporal pooling {pooling!r} is not one of {', '.join(_POOLINGS)}.")
        if subset_lengths is not None and (not subset_lengths or min(subset_lengths) < 1):
            raise errors.InputError(f"temporal_subset_lengths {subset_lengths} must be numbers of at least 1.")
        if None not in (subset_lengths, n_timestamps) and sum(subset_lengths or ()) != n_timestamps:
            raise errors.InputError(
                f"temporal_subset_lengths {subset_lengths} add up to {sum(subset_lengths or ())}, not to "
                f"temporal_n_timestamps {n_timestamps}."
            )
        self.encoder = encoder
        self.pooling = pooling
        self.subset_lengths = None if subset_lengths is None else list(subset_lengths)
        self.n_timestamps = n_timestamps if subset_lengths is None else sum(subset_lengths)
        self.permutation = None if features_permute_op is None else list(features_permute_op)
        self.out_channels = _channels(encoder, pooling, self.pooled_steps)
        self.tokens: feats.PatchTokens | None = getattr(encoder, "tokens", None)

    @property
    def pooled_steps(self) -> int | None:
        """Number of steps, or averages of steps, to pool; None if it depends on the input."""
        return self.n_timestamps if self.subset_lengths is None else len(self.subset_lengths)

    def forward(self, images: torch.Tensor) -> list[torch.Tensor]:
        """Return one pooled feature per feature of the backbone.

        Raises:
            InputError: not [B, C, T, H, W], or not the declared number of steps.
        """
        if images.ndim != 5:
            raise errors.InputError(f"a temporal backbone takes [B, C, T, H, W], not {list(images.shape)}.")
        steps = int(images.shape[2])
        if self.n_timestamps not in (None, steps):
            raise errors.InputError(f"the images have {steps} time steps, but {self.n_timestamps} were declared.")
        flat = images.transpose(1, 2).flatten(0, 1)
        return [self._pooled(feature, steps) for feature in feats.as_list(self.encoder(flat))]

    def _pooled(self, feature: torch.Tensor, steps: int) -> torch.Tensor:
        if self.permutation is not None:
            feature = feature.permute(self.permutation)
        stacked = feature.reshape(-1, steps, *feature.shape[1:])  # [B, T, C, h, w] or tokens [B, T, N, C]
        if self.subset_lengths is not None:
            stacked = torch.stack([part.mean(1) for part in torch.split(stacked, self.subset_lengths, 1)], 1)
        pooled = self._over_time(stacked)
        if self.permutation is None:
            return pooled
        back = sorted(range(len(self.permutation)), key=self.permutation.__getitem__)
        return pooled.permute([0, 1, *(axis + 1 for axis in back[1:])] if self.pooling == "keep" else back)

    def _over_time(self, stacked: torch.Tensor) -> torch.Tensor:
        if self.pooling == "mean":
            return stacked.mean(1)
        if self.pooling == "max":
            return stacked.amax(1)
        if self.pooling == "concat":
            return torch.cat(stacked.unbind(1), 2 if stacked.ndim == 4 else 1)
        if self.pooling == "keep":
            return stacked
        if stacked.shape[1] != 2:
            raise errors.InputError(
                f"temporal pooling 'diff' takes 2 steps (or subsets), not {stacked.shape[1]}: give "
                "temporal_subset_lengths of two subsets."
            )
        return stacked[:, 0] - stacked[:, 1]


def _channels(encoder: nn.Module, pooling: str, steps: int | None) -> list[int]:
    channels = [int(value) for value in encoder.out_channels]  # type: ignore[union-attr]
    if pooling != "concat":
        return channels
    if steps is None:
        raise errors.InputError(
            "temporal pooling 'concat' needs backbone_temporal_n_timestamps, for which the decoder is built."
        )
    return [value * steps for value in channels]
