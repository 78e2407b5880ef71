"""What storing vectors as integers loses, as the commit records of a run say."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from genenc_core import stored_arrays
from genenc_core.store.layout import ArrayPlan
from genenc_core.text import plural

DETAILS: Final = "quantized"
"""Key of a commit record's details."""
FEW: Final = 100
"""Vectors among which ten neighbours are easily found."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Loss:
    """What is lost of one product, on a sample of each shard's rows: at most 1,000 vectors of each."""

    dtype: str
    vectors: int = 0
    """Sampled vectors of all shards."""
    cosine_mean: float | None = None
    """Of a stored vector and the exact one, on average; None if none was sampled."""
    cosine_worst: float | None = None
    recall_at_10: float | None = None
    """Share of the ten nearest stored vectors that are among the ten nearest exact ones; None below 21 vectors."""
    among: int = 0
    """Vectors of a shard among which neighbours were looked for, on average."""

    @property
    def words(self) -> str:
        """The same as text."""
        if self.cosine_mean is None:
            return f"stored as {self.dtype}; what that loses is not measured"
        said = (
            f"stored as {self.dtype}, cosine to the exact vectors {self.cosine_mean:.5f} on average, "
            f"{self.cosine_worst:.5f} at worst ({plural(self.vectors, 'vector')} sampled)"
        )
        if self.recall_at_10 is None:
            return f"{said}; too few in a shard to compare neighbours"
        few = ": few, so that says little" if self.among < FEW else ""
        return f"{said}; recall@10 {self.recall_at_10:.3f} among {self.among}{few}"


def losses(arrays: Iterable[ArrayPlan], measured: Iterable[Mapping[str, Sequence[float]]]) -> dict[str, Loss]:
    """Return what is lost of each product that a run stores as integers.

    Args:
        arrays: the run's arrays.
        measured: `line` of each committed shard.
    """
    shards = list(measured)
    return {
        array.name: _joined(array.dtype, [line[array.name] for line in shards if array.name in line])
        for array in arrays
        if array.dtype in stored_arrays.QUANTIZED and "genenc_product" in array.attributes
    }


def _joined(dtype: str, lines: Sequence[Sequence[float]]) -> Loss:
    lines = [line for line in lines if line[0] > 0]
    count = sum(line[0] for line in lines)
    compared = [line for line in lines if line[3] >= 0]
    queries = sum(line[0] for line in compared)
    if not count:
        return Loss(dtype=dtype)
    return Loss(
        dtype=dtype,
        vectors=int(count),
        cosine_mean=round(sum(line[0] * line[1] for line in lines) / count, 9),
        cosine_worst=min(line[2] for line in lines),
        recall_at_10=round(sum(line[0] * line[3] for line in compared) / queries, 6) if queries else None,
        among=round(sum(line[0] ** 2 for line in compared) / queries) if queries else 0,
    )


def line(details: Mapping[str, Any]) -> dict[str, list[float]]:
    """Return what a commit record says, in short: vectors, mean and worst cosine, recall (-1: none), by product."""
    found = details.get(DETAILS) or {}
    return {
        name: [
            each["vectors"],
            each["cosine_mean"] or 0.0,
            each["cosine_worst"] or 0.0,
            -1.0 if each["recall_at_10"] is None else each["recall_at_10"],
        ]
        for name, each in found.items()
    }


def is_line(value: object) -> bool:
    """Return whether a value is of the form that `line` returns."""
    return type(value) is dict and all(
        type(each) is list
        and len(each) == 4
        and all(type(number) in (int, float) and abs(number) < 2**53 for number in each)
        for each in value.values()
    )
