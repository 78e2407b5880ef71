"""Values as products store them: floats of a type, or integers with a scale per vector, and what that loses."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
import torch

from genenc_core import float_values, statuses
from genenc_core.encoding.products import Product
from genenc_core.encoding.region_batches import RegionBatch
from genenc_core.stored_arrays import OFFSET, REGION_STATUS, SCALE

SAMPLE: Final = 1000
"""Vectors of a shard that the loss is measured on, at most."""
NEIGHBOURS: Final = 10
FEWEST: Final = 2 * NEIGHBOURS + 1
"""Vectors below which neighbours are not compared: nearly all of them would be found anyway."""
_TOP: Final = {"int8": 127.0, "uint8": 255.0}
_SMALLEST: Final = float(np.finfo(np.float32).tiny)
_LARGEST: Final = float(np.finfo(np.float32).max) * (1 - 2**-20)
_SAME: Final = 1e-6
"""Difference of cosines below which two neighbours are equally near."""


def stored(product: Product, value: torch.Tensor) -> dict[str, torch.Tensor]:
    """Return the arrays `[B, ...]` that are stored of a product's value `[B, ...]`, or `[R, ...]` of regions, by name.

    As integers, a vector x along the channels becomes the nearest integers q (ties to even) of

        int8:   q = x / scale, scale = max|x| / 127            (-127 to 127, zero stays zero)
        uint8:  q = (x - offset) / scale, offset = min x, scale = (max x - offset) / 255

    so that |x - (q * scale + offset)| <= scale / 2. A vector of equal values has scale 0, one with NaN has scale NaN.
    """
    if product.dtype not in _TOP:
        return {product.name: value.to(getattr(torch, product.dtype))}
    return {
        (f"{product.name}_{suffix}" if suffix else product.name): array
        for suffix, array in _quantized(value.float(), product.batch_axis, product.dtype).items()
    }


def _quantized(value: torch.Tensor, axis: int, kind: str) -> dict[str, torch.Tensor]:
    # Divisors are tensors on the device: a GPU multiplies by the reciprocal of a plain number, which rounds otherwise.
    top = torch.full((), _TOP[kind], device=value.device)
    found: dict[str, torch.Tensor] = {}
    if kind == "int8":
        size = value.abs().amax(axis, keepdim=True)
    else:
        low = value.amin(axis, keepdim=True)
        size, value = value.amax(axis, keepdim=True) - low, value - low
        found[OFFSET.suffix] = low.squeeze(axis)
    # A scale that is not a normal number, or whose integers end above the largest float, would lose more than half.
    scale = torch.where(size > 0, (size / top).clamp(_SMALLEST, _LARGEST / _TOP[kind]), size)
    whole = torch.where(scale > 0, value / scale, 0).round_()
    found[SCALE.suffix] = scale.squeeze(axis)
    if kind == "int8":
        return {"": whole.clamp_(-_TOP[kind], _TOP[kind]).to(torch.int8), **found}
    return {"": whole.clamp_(0, _TOP[kind]).to(torch.uint8), SCALE.suffix: found[SCALE.suffix], **found}


def largest_lost(product: Product, value: torch.Tensor, arrays: Mapping[str, torch.Tensor]) -> torch.Tensor | None:
    """Return the largest finite magnitude that the stored type cannot hold, 0 for none, as a scalar; None if it can."""
    if product.dtype == "float16" and value.dtype != torch.float16:
        kept, value = arrays[product.name], value
    elif product.dtype == "uint8":
        axis = product.batch_axis
        low, high = value.float().aminmax(dim=axis)
        kept, value = high - low, torch.maximum(low.abs(), high.abs())
    else:
        return None
    lost = torch.isinf(kept) & torch.isfinite(value)
    return torch.where(lost, value.abs(), 0).amax() if value.numel() else value.new_zeros(())


class Sample:
    """Rows of a shard whose exact values are kept until the shard is done, to measure what is lost of them.

    The rows, images or regions, are spread evenly over the shard; as many as have `SAMPLE` vectors, but at least one.
    """

    def __init__(self, wanted: Sequence[Product], rows: int, regions: int = 0) -> None:
        self.products = [product for product in wanted if product.dtype in _TOP]
        self.of_regions = {product.name for product in self.products if product.needs_regions}
        self.rows = {
            product.name: _spread(regions if product.needs_regions else rows, max(SAMPLE // product.row_vectors, 1))
            for product in self.products
        }
        self.exact: dict[str, dict[int, np.ndarray]] = {product.name: {} for product in self.products}

    def among(self, at: np.ndarray) -> dict[str, torch.Tensor]:
        """Return which of the rows at positions `at` of the shard are sampled, bool `[n]`, by product with any."""
        found = {name: np.isin(at, rows) for name, rows in self.rows.items() if name not in self.of_regions}
        return {name: torch.from_numpy(rows) for name, rows in found.items() if rows.any()}

    def with_regions(self, regions: RegionBatch | None) -> RegionBatch | None:
        """Return regions of a batch that say which of them are sampled."""
        if regions is None or not self.of_regions:
            return regions
        found = {name: np.isin(regions.at, self.rows[name]) for name in self.of_regions}
        return dataclasses.replace(regions, sampled={name: rows for name, rows in found.items() if rows.any()})

    def keep(self, at: np.ndarray, exact: Mapping[str, np.ndarray], regions: RegionBatch | None = None) -> None:
        """Keep the exact values of those of the rows at `at`, and of the batch's regions, that are sampled."""
        for name, values in exact.items():
            own = regions.at if regions is not None and name in self.of_regions else at
            for row, value in zip(own[np.isin(own, self.rows[name])].tolist(), values, strict=True):
                self.exact[name][row] = value.copy()

    def details(self, arrays: Mapping[str, np.ndarray], status: np.ndarray) -> dict[str, Any]:
        """Return the entry of a commit record: the loss of each product; {} without such products."""
        found = {}
        for product in self.products:
            exact = self.exact[product.name]
            state, ok = status, statuses.OK
            if product.needs_regions:
                state, ok = arrays[REGION_STATUS], statuses.REGION_OK
            rows = [row for row in sorted(exact) if state[row] == ok]
            if rows:
                axis = product.batch_axis
                known = np.stack([exact[row] for row in rows])
                found[product.name] = loss(_vectors(known, axis), _vectors(_decoded(product, arrays, rows), axis))
        return {"quantized": found} if self.products else {}


def _decoded(product: Product, arrays: Mapping[str, np.ndarray], rows: Sequence[int]) -> np.ndarray:
    whole, *beside = product.arrays
    parts = {each.of.suffix: arrays[each.name][rows] for each in beside if each.of is not None}
    beside_dims = (*product.row_dims[: -len(whole.dims)], *beside[0].dims)
    return float_values.decoded(arrays[whole.name][rows], product.row_dims, parts, beside_dims)


def loss(exact: np.ndarray, kept: np.ndarray) -> dict[str, Any]:
    """Compare exact vectors `[n, C]` with those that are stored of them.

    `cosine_mean` and `cosine_worst` of each vector and its own; `recall_at_10`: of the ten stored vectors that are
    nearest (by cosine) to a stored one, the share that are among the ten nearest of the exact ones, or as near; None
    below 21 vectors. All are of at most `SAMPLE` vectors, evenly spread.
    """
    known = np.isfinite(exact).all(1)
    exact, kept = exact[known], kept[known]
    thin = _spread(len(exact), SAMPLE)
    one, other = (_unit(vectors[thin]) for vectors in (exact, kept))
    cosines = np.where(np.any(one, 1) | np.any(other, 1), np.einsum("nc,nc->n", one, other), 1.0)
    return {
        "vectors": len(thin),
        "cosine_mean": round(float(cosines.mean()), 9) if len(thin) else None,
        "cosine_worst": round(float(cosines.min()), 9) if len(thin) else None,
        "recall_at_10": round(_recall(one, other), 6) if len(thin) >= FEWEST else None,
    }


def _recall(exact: np.ndarray, kept: np.ndarray) -> float:
    near, found = (vectors @ vectors.T for vectors in (exact.astype(np.float32), kept.astype(np.float32)))
    for each in (near, found):
        np.fill_diagonal(each, -np.inf)
    least = np.partition(near, -NEIGHBOURS, 1)[:, -NEIGHBOURS, None]
    nearest = np.argpartition(found, -NEIGHBOURS, 1)[:, -NEIGHBOURS:]
    return float((np.take_along_axis(near, nearest, 1) >= least - _SAME).mean())


def _unit(vectors: np.ndarray) -> np.ndarray:
    wide = vectors.astype(np.float64)
    length = np.linalg.norm(wide, axis=1, keepdims=True)
    found: np.ndarray = np.divide(wide, length, out=np.zeros_like(wide), where=length > 0)
    return found


def _vectors(values: np.ndarray, axis: int) -> np.ndarray:
    return np.moveaxis(values, axis, -1).reshape(-1, values.shape[axis])


def _spread(count: int, most: int) -> np.ndarray:
    """Return at most `most` of the numbers below `count`, evenly spread, int64, ascending."""
    return np.arange(count) if count <= most else np.arange(most) * count // most
