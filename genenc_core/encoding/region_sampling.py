"""Post-encoder modules that reduce a map to one vector, or a small map, per region."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Final

import numpy as np
import torch

from genenc_core import errors
from genenc_core.encoding.pooling import PointBatch, PostEncoder, Signature, require_batched_map, require_map
from genenc_core.encoding.region_batches import RegionBatch

OF: Final = ("mask", "box")
DEFAULT_SIZE: Final = 7
"""Rows and columns of `roi_align`, as in Mask R-CNN's box head."""
LARGEST_SIZE: Final = 64
_LEAST_SIDE: Final = 1e-4
"""Cells: a side of nothing has no sample."""


@dataclasses.dataclass(frozen=True, slots=True)
class RegionMean:
    """`region_mean`: the mean over a region's area, each cell weighted by its area in it, `[B, C, h, w]` -> `[R, C]`.

    Of a mask the pixels count, or with `of="box"` its box; what lies beyond the image or its view does not.
    """

    of: str
    count: int
    """Regions per image, of which the size of shards is reckoned."""

    def output(self, signature: Signature) -> Signature:
        """Return `[region, channel]`; needs a map."""
        require_map("region_mean", signature)
        return Signature(dims=("region", "channel"), shape=(self.count, signature.shape[0]))

    def apply(self, features: torch.Tensor, points: PointBatch | None) -> torch.Tensor:
        """Return the means of the batch's regions, `[R, C]`; NaN for those that the model does not see."""
        require_batched_map("region_mean", features)
        regions = _regions(points)
        values = features.new_full((0 if regions is None else len(regions), features.shape[1]), math.nan)
        if regions is None or points is None:
            return values
        cells, size = points.cells_of(features), (features.shape[2], features.shape[3])
        for image, at in regions.by_image():
            weights = _upload(regions.weights(at, cells, size, of_boxes=self.of == "box"), features.device)
            # In float64: a sum over many cells, whatever the precision of matrix products of the device.
            means = weights @ features[image].flatten(1).double().T
            values[_upload(at, features.device)] = means.to(features.dtype)
        return values


@dataclasses.dataclass(frozen=True, slots=True)
class RoiAlign:
    """`roi_align_mean`, `roi_align`: ROI-align of a region's box, `[B, C, h, w]` -> `[R, C]` or `[R, C, n, n]`.

    He, Gkioxari, Dollar, Girshick: Mask R-CNN, 2017, as torchvision computes it with aligned=True and samples as dense
    as the cells (sampling_ratio=-1): bilinear between the centres of cells. Of a mask its box counts.
    """

    name: str
    size: int | None
    """Rows and columns; None for the mean of one bin."""
    count: int

    def output(self, signature: Signature) -> Signature:
        """Return `[region, channel]`, or `[region, channel, y, x]`; needs a map."""
        require_map(self.name, signature)
        if self.size is None:
            return Signature(dims=("region", "channel"), shape=(self.count, signature.shape[0]))
        return Signature(
            dims=("region", "channel", "y", "x"), shape=(self.count, signature.shape[0], self.size, self.size)
        )

    def apply(self, features: torch.Tensor, points: PointBatch | None) -> torch.Tensor:
        """Return the vectors or maps of the batch's regions; NaN for those that the model does not see."""
        from torchvision import ops  # slow to import, and few runs need it

        require_batched_map(self.name, features)
        regions, side = _regions(points), self.size or 1
        count = 0 if regions is None else len(regions)
        values = features.new_full((count, features.shape[1], side, side), math.nan)
        if regions is not None and points is not None and regions.valid.any():
            at = np.flatnonzero(regions.valid)
            found = regions.on_map(points.cells_of(features), (features.shape[2], features.shape[3]))[at]
            rois = np.column_stack([regions.image[at], _with_sides(found, (features.shape[3], features.shape[2]))])
            wide = torch.promote_types(features.dtype, torch.float32)
            boxes = _upload(rois, features.device).to(wide)
            aligned = ops.roi_align(features.to(wide).contiguous(), boxes, side, aligned=True)
            values[_upload(at, features.device)] = aligned.to(features.dtype)
        return values.flatten(1) if self.size is None else values


def make_mean(arguments: Mapping[str, str], count: int) -> PostEncoder:
    """Return `region_mean`; raise `InputError` without regions, or for an argument that is unknown."""
    of = arguments.get("of", "mask").lower()
    if of not in OF:
        raise errors.InputError(f"region_mean: {of=} is unknown; known: {', '.join(OF)}")
    return RegionMean(of, _require_regions("region_mean", count))


def make_aligned_mean(arguments: Mapping[str, str], count: int) -> PostEncoder:  # noqa: ARG001
    """Return `roi_align_mean`; raise `InputError` without regions."""
    return RoiAlign("roi_align_mean", None, _require_regions("roi_align_mean", count))


def make_aligned(arguments: Mapping[str, str], count: int) -> PostEncoder:
    """Return `roi_align`; raise `InputError` without regions, or for a size out of range."""
    text = arguments.get("size", str(DEFAULT_SIZE))
    size = int(text) if text.isdecimal() and len(text) < 4 else 0
    if not 1 <= size <= LARGEST_SIZE:
        raise errors.InputError(f"roi_align: size={text!r} is not a number from 1 to {LARGEST_SIZE}, such as 7")
    return RoiAlign("roi_align", size, _require_regions("roi_align", count))


def _require_regions(name: str, count: int) -> int:
    if count < 1:
        raise errors.InputError(f"{name} needs regions, and the run has none: use --regions FILE")
    return count


def _regions(points: PointBatch | None) -> RegionBatch | None:
    """Return the regions of a batch; None of one that only tries the encoder."""
    return None if points is None else points.regions


def _upload(values: np.ndarray, device: torch.device) -> torch.Tensor:
    tensor = torch.from_numpy(values)
    # From pinned memory the copy does not wait for the device.
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


def _with_sides(boxes: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Return boxes on a map of `size` (w, h) with sides of more than nothing, where the map ends before the input."""
    wide = boxes.copy()
    for axis in (0, 1):
        thin = wide[:, axis + 2] - wide[:, axis] < _LEAST_SIDE
        wide[thin, axis] = np.clip(wide[thin, axis], 0, size[axis] - _LEAST_SIDE)
        wide[thin, axis + 2] = wide[thin, axis] + _LEAST_SIDE
    return wide
