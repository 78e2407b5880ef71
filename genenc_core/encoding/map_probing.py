"""Products of stored outputs of an encoder: what the first pass would have stored of them.

An output that is stored as float32 gives the same bits. One that is stored as float16 was rounded once, to the nearest
of its three digits; everything after that is computed in float32, as in the first pass.
"""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
import torch

from genenc_core.encoding import engine, post_encoder, products, quantization
from genenc_core.encoding.region_batches import RegionBatch

BATCH_BYTES = 64 * 2**20
"""Stored bytes that are worked on at once."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class StoredOutputs:
    """Stored outputs of some images, and where their points are.

    Shapes: `slots` `[B, ...]` by output slot, float16 or float32; `points` float64 `[B, K, 2]` in model pixels; `valid`
    bool `[B, K]`; `view` float64 `[B, 4]`, `sampled` bool `[B]` by product and `regions` as in `engine.Batch`.
    `input_size` is (height, width) of the model input.
    """

    slots: Mapping[str, np.ndarray]
    points: torch.Tensor
    valid: torch.Tensor
    view: torch.Tensor | None
    input_size: tuple[int, int]
    sampled: Mapping[str, torch.Tensor] = dataclasses.field(default_factory=dict)
    regions: RegionBatch | None = None


@torch.inference_mode()
def reduce(
    stored: StoredOutputs, wanted: Sequence[products.Product]
) -> tuple[dict[str, np.ndarray], np.ndarray, dict[str, np.ndarray]]:
    """Return every product's stored arrays `[B, ...]`, and which images have only finite values, bool `[B]`.

    A product of regions is `[R, ...]`. And the exact values of the sampled rows, float32 `[n, ...]`, by product.

    Raises:
        InputError: a value overflows the type of its product.
    """
    where = post_encoder.PointBatch(
        xy=stored.points,
        valid=stored.valid,
        input_size=stored.input_size,
        view=stored.view,
        regions=stored.regions,
    )
    sampled = engine.sampled(stored.sampled, stored.regions)
    arrays: dict[str, np.ndarray] = {}
    exact: dict[str, np.ndarray] = {}
    finite = torch.ones(len(stored.valid), dtype=torch.bool)
    for product in wanted:
        value = _applied(product, stored.slots[product.slot], dataclasses.replace(where, cells=product.cells))
        if product.needs_regions:
            finite &= engine.finite_images(value, stored.regions, len(stored.valid))
        else:
            finite &= engine.finite_rows(value, stored.valid if product.needs_points else None)
        kept = quantization.stored(product, value)
        largest = quantization.largest_lost(product, value, kept)
        if largest is not None:
            engine.refuse_overflow(product, largest.item())
        arrays |= {name: array.numpy() for name, array in kept.items()}
        if product.name in sampled:
            exact[product.name] = value[sampled[product.name]].float().numpy()
    return arrays, finite.numpy(), exact


def _applied(product: products.Product, values: np.ndarray, where: post_encoder.PointBatch) -> torch.Tensor:
    """Apply a product's modules; float16 becomes float32, as the encoder returned it, before any arithmetic."""
    features = torch.from_numpy(values)
    widened = features.dtype == torch.float32
    for module in product.pipeline.modules:
        # Copies of a few vectors are widened faster than whole maps.
        if not widened and not post_encoder.copies_values(module):
            features, widened = features.float(), True
        features = module.apply(features, where)
    if widened:
        return features
    # Missing points are NaN of the same bits as in float32.
    return (
        features.float().masked_fill_(~where.valid[..., None], torch.nan) if product.needs_points else features.float()
    )


def batches(rows: int, row_bytes: int) -> list[slice]:
    """Return slices of `rows` rows, each of at most `BATCH_BYTES` unless a single row has more."""
    size = max(BATCH_BYTES // max(row_bytes, 1), 1)
    return [slice(start, min(start + size, rows)) for start in range(0, rows, size)]
