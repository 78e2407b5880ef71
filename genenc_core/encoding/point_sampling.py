"""Sampling of feature vectors at points of a map."""

import dataclasses
import math
from collections.abc import Mapping

import torch
from torch.nn import functional

from genenc_core import errors
from genenc_core.encoding.pooling import PointBatch, PostEncoder, Signature, require_batched_map, require_map

NAMES = ("nearest", "cell", "bilinear", "bilinear_corners")
"""Interpolations for users. A run records `bilinear` as `bilinear_centers`, because plain `bilinear` means
`bilinear_corners` in WhiskerToolbox specs and in runs of genenc 0.1.0."""
INTERPOLATIONS = (*NAMES, "bilinear_centers")


@dataclasses.dataclass(frozen=True, slots=True)
class SpatialPoint:
    """`spatial_point`: the vector at each point, `[B, C, h, w]` -> `[B, K, C]`; NaN for invalid points.

    On the map's real grid (`Cells`), clamped to the map:

    - `cell`: the cell that contains the point, i.e. the one with the nearest centre;
    - `bilinear_centers`: interpolated between the centres of the four cells around the point.

    By WhiskerToolbox's rule, which puts cell k at pixel k * (input width / w) for every model, with v = x * (w / input
    width):

    - `nearest`: cell floor(v + 0.5), clamped to the map (half away from zero);
    - `bilinear_corners`, `bilinear`: interpolated at v on the index grid, clamped to it (`grid_sample`,
      align_corners=True, border).
    """

    interpolation: str
    count: int

    @property
    def copies_values(self) -> bool:
        """Whether every vector is that of one cell."""
        return not self.interpolation.startswith("bilinear")

    def output(self, signature: Signature) -> Signature:
        """Return `[point, channel]`; needs a map, with at least 2 x 2 cells for `bilinear`."""
        require_map("spatial_point", signature)
        if self.interpolation.startswith("bilinear") and min(signature.shape[1:]) < 2:
            raise errors.InputError(
                f"spatial_point(bilinear) needs a map of at least 2 x 2 cells, got {signature}: use cell or nearest"
            )
        return Signature(dims=("point", "channel"), shape=(self.count, signature.shape[0]))

    def apply(self, features: torch.Tensor, points: PointBatch | None) -> torch.Tensor:
        """Return the vectors at `points`, `[B, K, C]`."""
        require_batched_map("spatial_point", features)
        if points is None:
            raise errors.InputError("spatial_point needs points: use --points FILE")
        channels, (height, width) = features.shape[1], features.shape[2:]
        xy = torch.where(points.valid[..., None], points.xy.to(features.device), 0.0)
        if self.interpolation in ("bilinear_centers", "cell"):
            where = points.cells_of(features).index(xy)
        else:
            # Numbers instead of a tensor, whose copy to the device would wait for all pending work on it.
            scales = width / points.input_size[1], height / points.input_size[0]
            where = torch.stack([xy[..., axis] * scale for axis, scale in enumerate(scales)], -1)
        sampled = _gathered(features, torch.floor(where + 0.5)) if self.copies_values else _bilinear(features, where)
        assert sampled.shape == (features.shape[0], xy.shape[1], channels)
        return sampled.masked_fill(~points.valid.to(features.device)[..., None], math.nan)


def make(arguments: Mapping[str, str], point_count: int) -> PostEncoder:
    """Return `spatial_point` for a product's arguments; raise `InputError` without points."""
    interpolation = arguments.get("interpolation", "nearest").lower()
    if interpolation not in INTERPOLATIONS:
        raise errors.InputError(f"spatial_point: {interpolation=} is unknown; known: {', '.join(NAMES)}")
    if point_count < 1:
        raise errors.InputError("spatial_point needs points, and the run has none: use --points FILE")
    return SpatialPoint(interpolation, point_count)


def _bilinear(features: torch.Tensor, cells: torch.Tensor) -> torch.Tensor:
    height, width = features.shape[2:]
    # The grid is computed in float64 and used in float32 or float64; in half precision it would be off by whole cells.
    wide = torch.promote_types(features.dtype, torch.float32)
    axes = [2.0 * cells[..., axis] / (size - 1) - 1.0 for axis, size in enumerate((width, height))]
    grid = torch.stack(axes, -1).to(wide)
    sampled = functional.grid_sample(
        features.to(wide), grid[:, :, None], mode="bilinear", padding_mode="border", align_corners=True
    )
    return sampled[..., 0].transpose(1, 2).to(features.dtype)


def _gathered(features: torch.Tensor, cells: torch.Tensor) -> torch.Tensor:
    height, width = features.shape[2:]
    x = cells[..., 0].clamp(0, width - 1).long()
    y = cells[..., 1].clamp(0, height - 1).long()
    flat = (y * width + x)[:, None, :].expand(-1, features.shape[1], -1)
    return features.flatten(2).gather(2, flat).transpose(1, 2)
