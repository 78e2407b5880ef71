"""Two sets of features of the same images: how alike they are, row by row and as a whole, and why they differ."""

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np

from genenc_core import errors, statuses, text
from genenc_core.dataset import rows
from genenc_core.features import identities, moments
from genenc_core.features.identities import Entry
from genenc_core.features.parameters import CompareParameters
from genenc_core.features.vectors import MEBIBYTE, Vectors
from genenc_core.stored import rows as stored_rows
from genenc_core.stored.rows import Stored

_NAMED = 5
_SHOWN = 60


@dataclasses.dataclass(frozen=True, slots=True)
class Side:
    """One of the two."""

    place: str
    version: int | None
    product: str
    channels: int
    images: int
    only_here: int
    """Images that the other one has not."""
    names: tuple[str, ...]
    """The first of them."""


@dataclasses.dataclass(frozen=True, slots=True)
class Pair:
    """A vector in both."""

    image_id: str
    point: str
    """Name of the point; "" for a vector of the whole image."""
    rows: tuple[int, int]
    difference: float
    """Euclidean length of the difference; where the channels differ in number, NaN."""
    cosine: float
    """Cosine of the angle between them; NaN if one is zero."""

    def columns(self, *, with_point: bool) -> list[str]:
        """Return the texts of a table's row."""
        point = [self.point] if with_point else []
        return [self.image_id, *point, *map(str, self.rows), f"{self.difference:.6g}", f"{self.cosine:.9g}"]


@dataclasses.dataclass(frozen=True, slots=True)
class Spread:
    """Values over all vectors."""

    least: float
    mean: float
    median: float
    largest: float


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """How alike two sets of features are."""

    sides: tuple[Side, Side]
    common: int
    """Images in both."""
    other_files: int
    """Of these, images whose files differ by digest."""
    unknown_files: int
    """Of these, images whose file has no recorded digest in one of them."""
    left_out: dict[str, int]
    """Images in both without features in one of them (`rows`), vectors that are `not_finite` in one of them."""
    vectors: int
    """Vectors that were compared."""
    identical: int
    """Vectors with the same bits, or as many equal values of another type."""
    cosine: Spread | None
    difference: Spread | None
    """Euclidean length of the difference."""
    relative: Spread | None
    """The same over the length of the first vector."""
    largest_value: float | None
    """Largest difference of a value."""
    cka: float | None
    """Linear CKA, 0 to 1; None with `why_no_cka`."""
    why_no_cka: str
    worst: tuple[Pair, ...]
    """Vectors that differ most, the most first."""
    identity: tuple[Entry, ...]
    """Entries of the identities that differ."""
    made_with: tuple[Entry, ...]
    """Devices, batch sizes, versions and machines that differ."""
    block_bytes: int
    """Memory of the largest blocks that were read."""

    @property
    def same(self) -> bool:
        """Whether all images are in both, with the same vectors."""
        alone = any(side.only_here for side in self.sides)
        return not alone and not self.left_out and self.identical == self.vectors

    def as_json(self) -> dict[str, Any]:
        """Return all of it as JSON data."""
        found = dataclasses.asdict(self)
        for name in ("identity", "made_with"):
            found[name] = [entry._asdict() for entry in getattr(self, name)]
        return {"same": self.same, **found}

    def lines(self) -> list[str]:
        """Return all of it as text but for the tables."""
        found = [f"{name}: {_place(side)}" for name, side in zip("AB", self.sides, strict=True)]
        found.append(f"{text.plural(self.common, 'image')} in both{', '.join(['', *self._alone()])}{self._files()}")
        out = [f"{count} {name.replace('_', ' ')}" for name, count in self.left_out.items()]
        left = f"; left out: {', '.join(out)}" if out else ""
        found.append(f"{text.plural(self.vectors, 'vector')} compared, {self.identical} of them identical{left}")
        for name in ("cosine", "difference", "relative"):
            spread: Spread | None = getattr(self, name)
            if spread is not None:
                values = ", ".join(f"{key} {value:.9g}" for key, value in dataclasses.asdict(spread).items())
                found.append(f"{name:<11}{values}")
        if self.largest_value is not None:
            found.append(f"{'value':<11}largest difference {self.largest_value:.9g}")
        cka = f"{self.cka:.9f}" if self.cka is not None else f"not computed: {self.why_no_cka}"
        return [*found, f"{'linear CKA':<11}{cka}"]

    def _alone(self) -> list[str]:
        found = []
        for name, side in zip("AB", self.sides, strict=True):
            if side.only_here:
                more = ", ..." if side.only_here > len(side.names) else ""
                found.append(f"{side.only_here} only in {name} ({', '.join(side.names)}{more})")
        return found

    def _files(self) -> str:
        if self.other_files:
            return f"; {self.other_files} of other files"
        if self.unknown_files == self.common:
            return "; whether of the same files is not recorded"
        more = f", {self.unknown_files} not recorded" if self.unknown_files else ""
        return f"; of the same files{more}"

    def tables(self) -> Iterator[tuple[str, tuple[str, ...], list[list[str]]]]:
        """Yield the title, headings and rows of each table that has rows."""
        if self.worst:
            point = ("point",) if any(pair.point for pair in self.worst) else ()
            headings = ("image_id", *point, "row A", "row B", "difference", "cosine")
            yield "differ most", headings, [pair.columns(with_point=bool(point)) for pair in self.worst]
        for title, entries in (("identity", self.identity), ("made with", self.made_with)):
            if entries:
                yield (
                    title,
                    ("entry", "A", "B"),
                    [[each.name, _shown(each.one), _shown(each.other)] for each in entries],
                )


def compare(given: CompareParameters) -> Comparison:
    """Compare the features of two runs or versions.

    Raises:
        InputError: not runs or datasets, no images in common, other files under one name, or products that cannot be
            compared.
        StoreError: one of them is damaged.
    """
    one = stored_rows.open_rows(given.source, given.version)
    other = stored_rows.open_rows(given.other, given.other_version)
    products = _products(one, other, given)
    at = rows.index(one.images, other.images)
    common = np.flatnonzero(at >= 0)
    if not len(common):
        raise errors.InputError(
            f"{one.title!r} and {other.title!r} have no image in common: their names are like "
            f"{_first(one)!r} and {_first(other)!r}"
        )
    files = _files(one, other, common, at[common], allowed=given.different_images)
    both = _Both(one, other, products, common, at[common], given)
    return both.compared(files)


def _first(stored: Stored) -> str:
    return stored.image_id(0) if len(stored) else "none"


def _products(one: Stored, other: Stored, given: CompareParameters) -> tuple[str, str]:
    """Return the products to compare."""
    if given.product or given.other_product:
        first = given.product or given.other_product
        chosen = first, given.other_product or first
    else:
        both = [name for name in one.products if name in other.products and name in one.arrays]
        # Vectors of images, then of points, then maps.
        both.sort(key=lambda name: len(one.arrays[name].shape))
        if not both:
            raise errors.InputError(
                f"{one.title!r} has the products {', '.join(one.products)}, {other.title!r} "
                f"{', '.join(other.products)}: give --product and --other-product"
            )
        chosen = both[0], both[0]
    arrays = one.product(chosen[0]), other.product(chosen[1])
    if arrays[0].of_points != arrays[1].of_points:
        raise errors.InputError(
            f"of {chosen[0]!r} and {chosen[1]!r} only one has a vector for each point: give two of a kind"
        )
    return chosen


@dataclasses.dataclass(frozen=True, slots=True)
class _Files:
    other: int
    unknown: int


def _files(one: Stored, other: Stored, at: np.ndarray, to: np.ndarray, *, allowed: bool) -> _Files:
    """Compare the recorded digests of the images in both.

    Raises:
        InputError: some differ, and this was not allowed.
    """
    first, second = stored_rows.input_digests(one)[at], stored_rows.input_digests(other)[to]
    known = first.any(axis=1) & second.any(axis=1)
    differ = np.flatnonzero(known & (first != second).any(axis=1))
    if len(differ) and not allowed:
        names = one.images.text("image_id", at[differ[:_NAMED]])
        more = ", ..." if len(differ) > _NAMED else ""
        raise errors.InputError(
            f"{text.plural(len(differ), 'image')} of one name in {one.title!r} and {other.title!r} were made from "
            f"other files ({', '.join(names)}{more}): compare them anyway with --different-images"
        )
    return _Files(len(differ), int((~known).sum()))


class _Both:
    """The vectors of the images that two have in common, in the order of the first."""

    def __init__(
        self,
        one: Stored,
        other: Stored,
        products: tuple[str, str],
        at: np.ndarray,
        to: np.ndarray,
        given: CompareParameters,
    ) -> None:
        names = [name for name in one.points if name in other.points]
        if one.product(products[0]).of_points and not names:
            raise errors.InputError(f"{one.title!r} and {other.title!r} have no point in common")
        self.points = names if one.product(products[0]).of_points else [""]
        chosen = ([each.points.index(name) for name in names] for each in (one, other))
        self.sides = tuple(
            Vectors(stored, product, points)
            for stored, product, points in zip((one, other), products, chosen, strict=True)
        )
        self.stored = one, other
        self.at, self.to = at, to
        self.given = given
        self.memory = given.memory * MEBIBYTE
        self.left_out = {"rows": 0, "not_finite": 0}
        self.block_bytes = 0

    def blocks(self) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]]:
        """Yield the index among the common images, the point, and both vectors, `[n, channels]`."""
        self.left_out = {"rows": 0, "not_finite": 0}
        count = min(side.block_rows(self.memory // 2) for side in self.sides)
        for start in range(0, len(self.at), count):
            at, to = self.at[start : start + count], self.to[start : start + count]
            stored = (self.stored[0].status[at] == statuses.OK) & (self.stored[1].status[to] == statuses.OK)
            self.left_out["rows"] += int((~stored).sum())
            kept = np.flatnonzero(stored)
            if not len(kept):
                continue
            x = self.sides[0].at(at[kept])
            order = np.argsort(to[kept], kind="stable")
            y = np.empty((len(kept), len(self.points), self.sides[1].channels), self.sides[1].array.dtype)
            y[order] = self.sides[1].at(to[kept][order])
            self.block_bytes = max(self.block_bytes, x.nbytes + y.nbytes)
            finite = np.isfinite(x).all(axis=2) & np.isfinite(y).all(axis=2)
            self.left_out["not_finite"] += int((~finite).sum())
            row, point = np.nonzero(finite)
            yield start + kept[row], point, x[finite], y[finite]

    def compared(self, files: _Files) -> Comparison:
        """Compare all vectors."""
        alike = self.sides[0].channels == self.sides[1].channels
        found = _Found(self.given.worst, alike=alike)
        products, why = self._moments()
        for index, point, x, y in self.blocks():
            if products is not None:
                products.add(x, y)
            if alike:
                found.add(index, point, x, y)
            else:
                found.vectors += len(x)
        left = {name: count for name, count in self.left_out.items() if count}
        cka, why = self._cka(products, why)
        runs = [stored.model_run for stored in self.stored]
        return Comparison(
            sides=(self._side(0), self._side(1)),
            common=len(self.at),
            other_files=files.other,
            unknown_files=files.unknown,
            left_out=left,
            vectors=found.vectors,
            identical=found.identical,
            **found.spreads(),
            cka=cka,
            why_no_cka=why,
            worst=tuple(self._pair(*each) for each in found.worst()),
            identity=tuple(identities.differences(self.stored[0].identity, self.stored[1].identity)),
            made_with=tuple(identities.differences(*map(identities.made_with, runs))),
            block_bytes=self.block_bytes,
        )

    def _moments(self) -> tuple[moments.CrossProducts | None, str]:
        channels, others = (side.channels for side in self.sides)
        needed = moments.CrossProducts.bytes(channels, others)
        if needed <= self.memory:
            return moments.CrossProducts(channels, others), ""
        more = -(-needed // MEBIBYTE)
        return None, f"{channels} and {others} channels take {more} MiB: give --memory {more}"

    def _cka(self, products: moments.CrossProducts | None, why: str) -> tuple[float | None, str]:
        if products is not None:
            found = products.cka()
            return found, "" if found is not None else "the vectors of one are all the same"
        count = len(self.at) * len(self.points)
        if 8 * count * (3 * count + sum(side.channels for side in self.sides)) > self.memory:
            return None, why
        pairs = [(x, y) for _, _, x, y in self.blocks()]
        x, y = (np.concatenate(each) for each in zip(*pairs, strict=True))
        found = moments.cka_of_rows(x, y)
        return found, "" if found is not None else "the vectors of one are all the same"

    def _side(self, index: int) -> Side:
        stored, own = self.stored[index], self.sides[index]
        alone = np.setdiff1d(np.arange(len(stored)), (self.at, self.to)[index])
        names = stored.images.text("image_id", alone[:_NAMED])
        return Side(stored.place, stored.version, own.array.name, own.channels, len(stored), len(alone), tuple(names))

    def _pair(self, index: int, point: int, difference: float, cosine: float) -> Pair:
        at, to = int(self.at[index]), int(self.to[index])
        return Pair(self.stored[0].image_id(at), self.points[point], (at, to), difference, cosine)


class _Found:
    """Differences of pairs of vectors: three numbers of each are kept."""

    def __init__(self, worst: int, *, alike: bool) -> None:
        self.most = worst
        self.alike = alike
        self.vectors = 0
        self.identical = 0
        self.largest = 0.0
        self.index: list[np.ndarray] = []
        self.point: list[np.ndarray] = []
        self.cosine: list[np.ndarray] = []
        self.difference: list[np.ndarray] = []
        self.relative: list[np.ndarray] = []

    def add(self, index: np.ndarray, point: np.ndarray, x: np.ndarray, y: np.ndarray) -> None:
        """Add pairs `[n, channels]`."""
        self.vectors += len(x)
        self.identical += int((x == y).all(axis=1).sum())
        x, y = x.astype(np.float64), y.astype(np.float64)
        lengths = [np.sqrt((each * each).sum(axis=1)) for each in (x, y)]
        with np.errstate(invalid="ignore", divide="ignore"):
            # Of unit vectors: exactly 1 of equal ones.
            unit = x / lengths[0][:, None] - y / lengths[1][:, None]
            self.cosine.append(1 - (unit * unit).sum(axis=1) / 2)
            x -= y
            self.difference.append(np.sqrt((x * x).sum(axis=1)))
            self.relative.append(self.difference[-1] / lengths[0])
        self.largest = max(self.largest, float(np.abs(x).max(initial=0)))
        self.index.append(index)
        self.point.append(point)

    def spreads(self) -> dict[str, Any]:
        """Return what is said of all pairs."""
        if not self.alike or not self.vectors:
            return {"cosine": None, "difference": None, "relative": None, "largest_value": None}
        names = ("cosine", "difference", "relative")
        return {**{name: _spread(np.concatenate(getattr(self, name))) for name in names}, "largest_value": self.largest}

    def worst(self) -> Iterator[tuple[int, int, float, float]]:
        """Yield the pairs that differ most, the most first, equal ones in order; not identical ones."""
        if not self.index:
            return
        index, point, difference, cosine = (
            np.concatenate(each) for each in (self.index, self.point, self.difference, self.cosine)
        )
        for at in np.argsort(-difference, kind="stable")[: self.most].tolist():
            if difference[at] > 0:
                yield int(index[at]), int(point[at]), float(difference[at]), float(cosine[at])


def _spread(values: np.ndarray) -> Spread | None:
    values = values[np.isfinite(values)]
    if not len(values):
        return None
    return Spread(float(values.min()), float(values.mean()), float(np.median(values)), float(values.max()))


def _place(side: Side) -> str:
    version = "" if side.version is None else f" version {side.version}"
    return f"{side.place}{version}, {side.product!r} of {side.channels} channels, {text.plural(side.images, 'image')}"


def _shown(value: object) -> str:
    return "-" if value is None else text.shortened(str(value), _SHOWN)
