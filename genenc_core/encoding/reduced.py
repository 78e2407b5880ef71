"""What is stored of a batch, and what of its values cannot be."""

import dataclasses
from collections.abc import Sequence

import numpy as np
import torch


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Reduced:
    """What is stored of one batch.

    `arrays` has per product `[B, ...]` in its stored type; `finite` bool `[B]` is false where an output was NaN or
    infinite; `sizes` are the batch sizes used; seconds are of this batch.
    """

    arrays: dict[str, np.ndarray]
    finite: np.ndarray
    sizes: tuple[int, ...]
    encode_seconds: float
    reduce_seconds: float


def apart(value: torch.Tensor, outputs: dict[str, torch.Tensor]) -> torch.Tensor:
    """Return a value in memory that is not the model's outputs': a model may write its next ones over these."""
    shared = {output.untyped_storage().data_ptr() for output in outputs.values()}
    return value.clone() if value.untyped_storage().data_ptr() in shared else value


def finite_rows(value: torch.Tensor, valid: torch.Tensor | None) -> torch.Tensor:
    """Return which images' values `[B, ...]` are finite, bool `[B]`; of points `[B, K, C]`, the `valid` ones."""
    finite = torch.isfinite(value).flatten(1) if valid is None else torch.isfinite(value).all(2) | ~valid
    return finite.all(1)


def largest_lost(value: torch.Tensor, stored: torch.Tensor) -> torch.Tensor:
    """Return the largest finite magnitude in `value` that became infinite in `stored`, 0 for none, as a scalar."""
    lost = torch.isinf(stored) & torch.isfinite(value)
    return torch.where(lost, value.abs(), 0).amax() if value.numel() else value.new_zeros(())


def joined(parts: Sequence[Reduced]) -> Reduced:
    """Return the parts of a batch as one."""
    return Reduced(
        arrays={name: np.concatenate([part.arrays[name] for part in parts]) for name in parts[0].arrays},
        finite=np.concatenate([part.finite for part in parts]),
        sizes=tuple(size for part in parts for size in part.sizes),
        encode_seconds=sum(part.encode_seconds for part in parts),
        reduce_seconds=sum(part.reduce_seconds for part in parts),
    )
