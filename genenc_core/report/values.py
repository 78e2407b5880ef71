"""An audit of stored values: digests prove that bytes are those that were written, not that they make sense.

All vectors of a product are read once, in blocks; above a budget of bytes a seeded sample of rows stands for them.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any, Final

import numpy as np

from genenc_core import statuses, stored_arrays
from genenc_core.report import subject
from genenc_core.stored.arrays import Array
from genenc_core.stored.rows import Stored

BLOCK_BYTES: Final = 64 * 2**20
"""Stored values that are read at once."""
BUDGET: Final = 8 * 2**30
"""Stored bytes of a product that are read in full."""
LISTED: Final = 20
"""Rows, dimensions or shards that are named of each finding."""
MOST_VALUES: Final = 2**16
"""Values of a vector; longer ones are not audited."""
_REFERENCE: Final = 2048
"""Rows that centre and scale are estimated from."""
_CLIP: Final = 8.0
_FAR: Final = 6.0
_LEAST_SPREAD: Final = 0.05
_DRIFTED: Final = 3.0

OUTLIER_RULE: Final = (
    "distance of a vector: root mean square over dimensions of (value - median) / (1.4826 x median absolute "
    f"deviation), both from at most {_REFERENCE} seeded rows; outlying: its logarithm is more than {_FAR:g} robust "
    f"standard deviations (at least {_LEAST_SPREAD:g}) above the median of all"
)
DRIFT_RULE: Final = (
    "distance of a shard: root mean square over dimensions of (mean of the shard - mean of all) / standard deviation, "
    f"of values as above, clipped at {_CLIP:g}; shards of n of N vectors in random order have about sqrt(1/n - 1/N); "
    f"drifted: more than {_DRIFTED:g} times that, and {_DRIFTED:g} times the median shard"
)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Where:
    """A vector: its row, and the point that it is of; `point` is None for one of the whole image."""

    row: int
    point: str | None = None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """How many vectors something is true of, and the first of them."""

    count: int
    first: tuple[Where, ...] = ()


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Repeated:
    """Vectors of different images that are equal to the last bit."""

    groups: int
    """Different vectors that occur more than once."""
    count: int
    """Vectors in these groups."""
    first: tuple[tuple[Where, ...], ...] = ()
    """The members of the first groups."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Drift:
    """How far the mean of a shard is from that of all."""

    shard: str
    vectors: int
    distance: float
    expected: float
    """Of that many vectors in random order."""
    drifted: bool


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Audit:
    """What was found in the vectors of one product; rows that are unreadable or not stored are not among them."""

    product: str
    vectors: int
    dimensions: int
    exact: bool
    """Whether all stored vectors were read, not a sample."""
    not_finite: Found
    """NaN or infinite values."""
    constant: Found
    """All values equal, as of an image that the model does not see."""
    repeated: Repeated
    dead: tuple[int, ...]
    """Dimensions that are 0 everywhere."""
    fixed: tuple[int, ...]
    """Dimensions with one other value everywhere."""
    outlying: Found
    """By `OUTLIER_RULE`, the farthest first."""
    drift: tuple[Drift, ...]
    """Of all shards, by `DRIFT_RULE`."""
    norms: tuple[float, float, float, float, float]
    """Length of the vectors: least, 5 %, median, 95 %, largest."""
    histogram: tuple[tuple[float, float, int], ...]
    """Lengths between two bounds -> count."""

    @property
    def drifted(self) -> tuple[Drift, ...]:
        """Shards that drifted."""
        return tuple(each for each in self.drift if each.drifted)

    @property
    def findings(self) -> list[str]:
        """One line for each thing that looks wrong; empty if nothing does."""
        of = f"of {self.vectors} vectors"
        shards = ", ".join(each.shard for each in self.drifted[:LISTED])
        said = [
            (self.not_finite.count, f"{self.not_finite.count} {of} have NaN or infinite values"),
            (self.constant.count, f"{self.constant.count} {of} have one value in all dimensions"),
            (
                self.repeated.count,
                f"{self.repeated.count} {of} are repeated: {self.repeated.groups} different ones, in several images",
            ),
            (len(self.dead), f"{len(self.dead)} of {self.dimensions} dimensions are dead: 0 everywhere"),
            (len(self.fixed), f"{len(self.fixed)} of {self.dimensions} dimensions have one value everywhere"),
            (self.outlying.count, f"{self.outlying.count} {of} are outlying"),
            (len(self.drifted), f"{len(self.drifted)} of {len(self.drift)} shards drifted: {shards}"),
        ]
        return [words for count, words in said if count]

    def as_json(self) -> dict[str, Any]:
        """Return all of it as JSON data."""
        return {**dataclasses.asdict(self), "findings": self.findings}


def audited(source: Stored) -> list[Array]:
    """Return the products that are audited: vectors of images and of points, and lists of vectors; maps are not."""
    return [
        product
        for product in source.product_arrays
        if not product.is_map and product.dims and 0 < product.shape[-1] <= MOST_VALUES and len(product.dims) <= 2
    ]


def audit(source: Stored, product: Array, *, budget: int = BUDGET, seed: int = 0) -> Audit | None:
    """Audit a product; None if none of its rows is stored.

    Raises:
        StoreError: values cannot be read.
    """
    rows = source.ok
    most = max(budget // max(product.row_bytes, 1), 1)
    exact = len(rows) <= most
    generator = np.random.default_rng(seed)
    if not exact:
        rows = np.sort(generator.choice(rows, most, replace=False, shuffle=False))
    if not len(rows):
        return None
    reading = _Reading(source, product, rows)
    few = np.sort(generator.choice(rows, min(len(rows), _REFERENCE), replace=False, shuffle=False))
    seen = _Seen(product.shape[-1], _reference(reading, few), subject.shards(source, rows)[1])
    for block in reading.blocks():
        seen.add(*block)
    return seen.result(source, product, exact=exact) if len(seen) else None


class _Reading:
    """Vectors of a product, flat: `[n, dimensions]`, with the row and the index of each in its row."""

    def __init__(self, source: Stored, product: Array, rows: np.ndarray) -> None:
        self.source, self.product, self.rows = source, product, rows
        self.each = product.shape[0] if len(product.shape) == 2 else 1

    def blocks(self) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]]:
        """Yield values float64, rows, index and shard of vectors."""
        size = max(BLOCK_BYTES // max(4 * self.product.row_bytes, 1), 1)
        for start in range(0, len(self.rows), size):
            rows = self.rows[start : start + size]
            yield self._flat(rows, self.source.take(self.product.name, rows))

    def of(self, rows: np.ndarray) -> np.ndarray:
        """Return the vectors of some rows."""
        return self._flat(rows, self.source.read(self.product.name, rows))[0]

    def _flat(self, rows: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        flat = values.reshape(len(rows) * self.each, -1)
        index = np.tile(np.arange(self.each), len(rows))
        owner, shard = np.repeat(rows, self.each), np.repeat(subject.shards(self.source, rows)[0], self.each)
        if self.product.of_points:  # a point that is missing or not in view has no vector
            there = self.source.read(stored_arrays.POINT_STATUS, rows).reshape(-1) == statuses.POINT_OK
            flat, owner, index, shard = flat[there], owner[there], index[there], shard[there]
        return flat, owner, index, shard


def _reference(reading: _Reading, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the median of each dimension, and its robust standard deviation, from finite vectors of some rows."""
    values = reading.of(rows).astype(np.float64)
    values = values[np.isfinite(values).all(axis=1)][: 4 * _REFERENCE]
    if not len(values):
        return np.zeros(values.shape[1]), np.ones(values.shape[1])
    centre = np.median(values, axis=0)
    scale = 1.4826 * np.median(np.abs(values - centre), axis=0)
    with np.errstate(over="ignore", invalid="ignore"):
        scale = np.where(scale > 0, scale, values.std(axis=0))
    usual = np.median(scale[scale > 0]) if (scale > 0).any() else 1.0
    return centre, np.where((scale > 0) & np.isfinite(scale), scale, usual)


class _Seen:
    """Sums over the vectors seen so far; per vector a few numbers are kept, never the vector."""

    def __init__(self, dimensions: int, reference: tuple[np.ndarray, np.ndarray], shards: Sequence[str]) -> None:
        self.centre, self.scale = reference
        self.shards = shards
        self.least, self.most = np.full(dimensions, np.inf), np.full(dimensions, -np.inf)
        self.sums, self.squares = np.zeros((len(shards), dimensions)), np.zeros(dimensions)
        self.counts = np.zeros(len(shards), np.int64)
        self.kept: list[tuple[np.ndarray, ...]] = []
        self.salt = np.random.default_rng(0x5EED).integers(0, 2**64, (2, dimensions), np.uint64, endpoint=False) | 1

    def __len__(self) -> int:
        return sum(len(each[0]) for each in self.kept)

    def add(self, stored: np.ndarray, rows: np.ndarray, index: np.ndarray, shard: np.ndarray) -> None:
        """Add vectors."""
        values = stored.astype(np.float64)
        finite: np.ndarray = np.asarray(np.isfinite(values).all(axis=1))
        constant: np.ndarray = finite & np.asarray(np.equal(values, values[:, :1]).all(axis=1))
        good = values[finite]
        if len(good):
            self.least, self.most = np.minimum(self.least, good.min(0)), np.maximum(self.most, good.max(0))
        distance, norm = np.full(len(values), np.nan), np.full(len(values), np.nan)
        with np.errstate(over="ignore"):
            z = (good - self.centre) / self.scale
            distance[finite] = np.sqrt(np.mean(z * z, axis=1))
            norm[finite] = np.sqrt(np.sum(good * good, axis=1))
        clipped = np.clip(z, -_CLIP, _CLIP)
        own = shard[finite]
        for at in np.unique(own):
            inside = own == at
            self.sums[at] += clipped[inside].sum(0)
            self.counts[at] += int(inside.sum())
        self.squares += (clipped * clipped).sum(0)
        self.kept.append((rows, index, finite, constant, distance, norm, *self._hashes(stored)))

    def _hashes(self, stored: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return two 64-bit hashes of the bits of each vector."""
        bits = np.ascontiguousarray(stored).view(f"u{stored.dtype.itemsize}").astype(np.uint64)
        with np.errstate(over="ignore"):
            mixed = (bits ^ (bits >> np.uint64(15))) * np.uint64(0x9E3779B97F4A7C15)
            mixed ^= mixed >> np.uint64(29)
            one, other = ((mixed * salt).sum(axis=1, dtype=np.uint64) for salt in self.salt)
        return one, other

    def result(self, source: Stored, product: Array, *, exact: bool) -> Audit:
        """Return what was found."""
        columns = [np.concatenate(each) for each in zip(*self.kept, strict=True)]
        rows, index, finite, constant, distance, norm, *hashes = columns
        points = source.points if product.of_points else None

        def where(at: np.ndarray) -> tuple[Where, ...]:
            pairs = zip(rows[at].tolist(), index[at].tolist(), strict=True)
            return tuple(Where(row=row, point=points[number] if points else None) for row, number in pairs)

        def found(these: np.ndarray) -> Found:
            return Found(count=len(these), first=where(these[:LISTED]))

        far = _outlying(distance)
        lengths = norm[np.isfinite(norm)]
        dead = (self.least == 0) & (self.most == 0)
        return Audit(
            product=product.name,
            vectors=len(rows),
            dimensions=product.shape[-1],
            exact=exact,
            not_finite=found(np.flatnonzero(~finite)),
            constant=found(np.flatnonzero(constant)),
            repeated=self._repeated(rows, hashes, finite & ~constant, where),
            dead=tuple(np.flatnonzero(dead).tolist()),
            fixed=tuple(np.flatnonzero((self.least == self.most) & ~dead).tolist()) if len(rows) > 1 else (),
            outlying=found(far),
            drift=self._drift(),
            norms=_quantiles(lengths),
            histogram=_histogram(lengths),
        )

    @staticmethod
    def _repeated(rows: np.ndarray, hashes: Sequence[np.ndarray], among: np.ndarray, where: Any) -> Repeated:
        """Return the vectors that several images share; points of one image that share a cell do not count."""
        at = np.flatnonzero(among)
        order = at[np.lexsort((rows[at], hashes[1][at], hashes[0][at]))]
        same = np.ones(len(order), bool)
        same[1:] = (np.diff(hashes[0][order]) != 0) | (np.diff(hashes[1][order]) != 0)
        starts = np.flatnonzero(same)
        stops = np.append(starts[1:], len(order))
        several = [
            (start, stop)
            for start, stop in zip(starts[stops - starts > 1].tolist(), stops[stops - starts > 1].tolist(), strict=True)
            if rows[order[start]] != rows[order[stop - 1]]
        ]
        several.sort(key=lambda bound: int(order[bound[0]]))
        return Repeated(
            groups=len(several),
            count=sum(stop - start for start, stop in several),
            first=tuple(where(order[start:stop][:LISTED]) for start, stop in several[:LISTED]),
        )

    def _drift(self) -> tuple[Drift, ...]:
        total = int(self.counts.sum())
        used = np.flatnonzero(self.counts)
        if len(used) < 2:
            return ()
        mean = self.sums.sum(0) / total
        variance = self.squares / total - mean**2
        lively = variance > 1e-12
        if not lively.any():
            return ()
        means = self.sums[used] / self.counts[used, None]
        distance = np.sqrt((((means - mean) ** 2)[:, lively] / variance[lively]).mean(1))
        expected = np.sqrt(np.maximum(1 / self.counts[used] - 1 / total, 0))
        far = (distance > _DRIFTED * expected) & (distance > _DRIFTED * np.median(distance))
        return tuple(
            Drift(
                shard=self.shards[shard],
                vectors=int(self.counts[shard]),
                distance=round(float(distance[at]), 6),
                expected=round(float(expected[at]), 6),
                drifted=bool(far[at]),
            )
            for at, shard in enumerate(used.tolist())
        )


def _outlying(distance: np.ndarray) -> np.ndarray:
    """Return which vectors are outlying, the farthest first."""
    with np.errstate(divide="ignore"):
        logs = np.log(distance)
    usual = logs[np.isfinite(logs)]
    if not len(usual):
        return np.empty(0, np.int64)
    middle = np.median(usual)
    spread = max(1.4826 * float(np.median(np.abs(usual - middle))), _LEAST_SPREAD)
    with np.errstate(invalid="ignore"):
        far = np.flatnonzero(logs > middle + _FAR * spread)
    return far[np.argsort(-logs[far], kind="stable")]


def _quantiles(lengths: np.ndarray) -> tuple[float, float, float, float, float]:
    if not len(lengths):
        return (0.0,) * 5
    least, low, middle, high, most = np.quantile(lengths, (0, 0.05, 0.5, 0.95, 1)).tolist()
    return least, low, middle, high, most


def _histogram(lengths: np.ndarray) -> tuple[tuple[float, float, int], ...]:
    if not len(lengths):
        return ()
    low, high = float(lengths.min()), float(lengths.max())
    if not np.isfinite(high - low) or high - low <= 1e-9 * max(abs(high), 1e-30):
        return ((low, high, len(lengths)),)
    counts, bounds = np.histogram(lengths, bins=min(40, max(5, len(lengths) // 4)))
    return tuple(zip(bounds[:-1].tolist(), bounds[1:].tolist(), counts.tolist(), strict=True))
