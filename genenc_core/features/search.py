"""Nearest neighbours among stored vectors: exact, block by block, in bounded memory.

Every distance is computed in float64 by the same operations, whatever the block: equal vectors have equal distances,
and a vector has distance 0 from itself.
"""

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np

from genenc_core import errors, statuses, text
from genenc_core.features import regions, vectors
from genenc_core.features.parameters import SearchParameters
from genenc_core.features.vectors import MEBIBYTE, Block, Vectors
from genenc_core.stored import rows as stored_rows
from genenc_core.stored.rows import Stored

_PIECE_VALUES = 2**17
"""Values that are worked on at once, in float64: they stay in the processor's cache."""


@dataclasses.dataclass(frozen=True, slots=True)
class Neighbour:
    """A stored vector near the one asked for."""

    rank: int
    """From 1."""
    row: int
    image_id: str
    point: str
    """Name of the point; "" for a vector of the whole image."""
    distance: float
    region: str = ""
    """Name of the region in its image; "" for other vectors."""
    category: str = ""
    """Its class."""
    region_number: int | None = None
    """Its number among all regions, from 0, as `#N` takes it."""

    def columns(self, *, with_points: bool, with_regions: bool = False) -> list[str]:
        """Return the texts of a table's row."""
        more = [self.point] if with_points else []
        more += [f"#{self.region_number}", self.region, self.category] if with_regions else []
        return [str(self.rank), f"{self.distance:.6g}", str(self.row), self.image_id, *more]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Neighbours:
    """The nearest stored vectors, in order of distance, then of rows and points."""

    place: str
    version: int | None
    product: str
    metric: str
    asked: str
    """What was searched for, in words."""
    found: tuple[Neighbour, ...]
    searched: int
    """Vectors that were compared."""
    left_out: dict[str, int]
    """Rows by state (`not_written`, `unreadable`), vectors that are `not_finite` or of length `zero`."""
    block_bytes: int
    """Memory of the largest block that was read."""

    @property
    def rows(self) -> np.ndarray:
        """Rows of the neighbours, int64 `[top]`."""
        return np.array([each.row for each in self.found], np.int64)

    @property
    def image_ids(self) -> list[str]:
        """Names of their images."""
        return [each.image_id for each in self.found]

    @property
    def distances(self) -> np.ndarray:
        """Their distances, float64 `[top]`."""
        return np.array([each.distance for each in self.found], np.float64)

    @property
    def with_points(self) -> bool:
        """Whether the vectors are of points."""
        return any(each.point for each in self.found)

    @property
    def with_regions(self) -> bool:
        """Whether the vectors are of regions."""
        return any(each.region_number is not None for each in self.found)

    def headings(self) -> list[str]:
        """Return the headings of the table of neighbours."""
        more = ["point"] if self.with_points else []
        more += ["number", "region", "category"] if self.with_regions else []
        return ["rank", self.metric, "row", "image_id", *more]

    def lines(self) -> list[list[str]]:
        """Return the table of neighbours."""
        kinds = {"with_points": self.with_points, "with_regions": self.with_regions}
        return [each.columns(**kinds) for each in self.found]

    def summary(self) -> str:
        """Return what was compared and left out, as a line."""
        out = [f"{count} {name.replace('_', ' ')}" for name, count in self.left_out.items()]
        left = f"; left out: {', '.join(out)}" if out else ""
        return f"{self.asked} among {text.plural(self.searched, 'vector')} of {self.product!r}{left}"

    def as_json(self) -> dict[str, object]:
        """Return all of it as JSON data."""
        return dataclasses.asdict(self)


def search(given: SearchParameters) -> Neighbours:
    """Find the stored vectors nearest to that of an image, a row, or a point of a row.

    Raises:
        InputError: not a run or dataset, no such image, point or product, or the vector asked for is not stored.
        StoreError: the run or dataset is damaged.
    """
    stored = stored_rows.open_rows(given.source, given.version)
    if given.region is not None:
        return _like_region(stored, given)
    if (given.like is None) == (given.row is None):
        raise errors.InputError("give one of --like IMAGE and --row IMAGE_ID: what is to be found")
    if given.at is not None and given.like is None:
        raise errors.InputError(f"--at {given.at!r} is for an image that is given by --like")
    if given.any_point and given.point is None:
        raise errors.InputError("--any-point needs --point NAME, or --like IMAGE --at X,Y --point NAME")
    if given.at is not None and given.point is None:
        raise errors.InputError(f"--at {given.at!r} needs --point NAME: the point of the stored images to compare with")
    product = vectors.choose_product(stored, given.product, with_points=given.point is not None)
    if given.point is None and stored.product(product).of_points:
        raise errors.InputError(f"the product {product!r} has a vector for each point: add --point NAME")
    if given.row is not None:
        return _like_row(stored, product, given)
    from genenc_core.features import like  # torch

    assert given.like is not None
    query = like.encoded(stored, product, given)
    where = f" at {given.at}" if given.at else ""
    found = nearest(stored, product, query, given, asked=f"images like {given.like}{where}")
    first = found.found[0] if found.found else None
    if given.at is None and first and first.distance and like.is_stored_as(stored, first.row, given.like):
        # Encoded in another batch, or elsewhere: rounding is no distance from itself.
        query = Vectors(stored, product).at(np.array([first.row]))[0, 0]
        found = nearest(stored, product, query, given, asked=found.asked)
    return found


def search_vector(given: SearchParameters, vector: np.ndarray) -> Neighbours:
    """Find the stored vectors nearest to one; raises as `search`."""
    if given.like is not None or given.row is not None:
        raise errors.InputError("a vector is given, and an image or row: give one of them")
    if given.region is not None:
        raise errors.InputError(f"a vector is given, and the region {given.region!r}: give one of them")
    stored = stored_rows.open_rows(given.source, given.version)
    asked = "vectors like the one given"
    if regions.is_product(stored, given.product):
        return _nearest_regions(regions.RegionRows(stored), given.product, vector, given, asked=asked)
    product = vectors.choose_product(stored, given.product, with_points=given.point is not None)
    if given.point is None and stored.product(product).of_points:
        raise errors.InputError(f"the product {product!r} has a vector for each point: give the point")
    return nearest(stored, product, vector, given, asked=asked)


def _like_region(stored: Stored, given: SearchParameters) -> Neighbours:
    for name in ("like", "at", "point"):
        if getattr(given, name) is not None:
            raise errors.InputError(f"--region {given.region!r} is a stored region: leave --{name} out")
    assert given.region is not None
    if not regions.are_in(stored):
        raise errors.InputError(f"{stored.title!r} has no regions: leave --region out, or probe it with --regions FILE")
    every = regions.RegionRows(stored)
    product = regions.choose_product(every, given.product)
    number = every.find(given.region, given.row)
    (name,) = every.texts("region_name", np.array([number]))
    what = f"{name} of {stored.image_id(int(every.image[number]))}"
    if every.status[number] != statuses.REGION_OK:
        state = next((each.name for each in statuses.REGIONS if each.value == every.status[number]), "unknown")
        raise errors.InputError(f"{what!r} has no {product!r}: it is {state.replace('_', ' ')}; give another region")
    query = regions.RegionVectors(every, product).at(number, number + 1)[0, 0]
    return _nearest_regions(every, product, query, given, asked=f"regions like {what}", itself=number)


def _nearest_regions(
    every: regions.RegionRows,
    product: str,
    query: np.ndarray,
    given: SearchParameters,
    *,
    asked: str,
    itself: int | None = None,
) -> Neighbours:
    """Find the stored regions nearest to a vector; arguments and errors as for `nearest`."""
    own = regions.RegionVectors(every, product)
    scan = _scan(own, query, given, itself=None if itself is None else (itself, 0))
    numbers = scan.best.position
    images = every.image[numbers]
    found = zip(
        images.tolist(),
        [every.stored.image_id(at) for at in images.tolist()],
        [""] * len(numbers),
        scan.best.distance.tolist(),
        every.texts("region_name", numbers),
        every.texts("region_category", numbers),
        numbers.tolist(),
        strict=True,
    )
    return _neighbours(
        every.stored, product, given, asked, [Neighbour(at, *each) for at, each in enumerate(found, 1)], scan
    )


def _like_row(stored: Stored, product: str, given: SearchParameters) -> Neighbours:
    assert given.row is not None
    position = stored.find(given.row)
    point = None if given.point is None else stored_rows.point_index(stored, given.point)
    own = Vectors(stored, product, None if point is None else [point])
    query = own.at(np.array([position]))[0, 0]
    name = stored.image_id(position)
    at = f"{given.point} of {name}" if given.point else name
    if not np.isfinite(query).all():
        state = next(
            (key for key, count in stored_rows.counts_left_out(stored.status[[position]]).items() if count), ""
        )
        why = f"its row is {state.replace('_', ' ')}" if state else "its vector is not finite"
        raise errors.InputError(f"{at!r} has no {product!r}: {why}; give another row")
    return nearest(stored, product, query, given, asked=f"images like {at}", itself=(position, point or 0))


def nearest(
    stored: Stored,
    product: str,
    query: np.ndarray,
    given: SearchParameters,
    *,
    asked: str,
    itself: tuple[int, int] | None = None,
) -> Neighbours:
    """Find the stored vectors nearest to one.

    Args:
        stored: the rows.
        product: the product that is searched.
        query: `[channels]`.
        given: metric, number of neighbours, memory, and the point that is searched.
        asked: what the query is, in words.
        itself: position and index of the point of the query, if it is stored; it is not returned.

    Raises:
        InputError: another number of channels, a value that is not finite, or, for cosine, only zeros.
        StoreError: the run or dataset is damaged.
    """
    chosen = None if given.any_point or given.point is None else [stored_rows.point_index(stored, given.point)]
    own = Vectors(stored, product, chosen)
    scan = _scan(own, query, given, itself=itself)
    rows, points = np.divmod(scan.best.position, own.count)
    names = stored.images.text("image_id", rows)
    shown = [stored.points[own.points[each]] if own.with_points else "" for each in points.tolist()]
    found = zip(rows.tolist(), names, shown, scan.best.distance.tolist(), strict=True)
    return _neighbours(stored, product, given, asked, [Neighbour(at, *each) for at, each in enumerate(found, 1)], scan)


@dataclasses.dataclass(frozen=True, slots=True)
class _Scanned:
    """What was found among all vectors of a product."""

    best: "_Best"
    searched: int
    left: dict[str, int]
    block_bytes: int


def _neighbours(
    stored: Stored, product: str, given: SearchParameters, asked: str, found: Sequence[Neighbour], scan: _Scanned
) -> Neighbours:
    return Neighbours(
        place=stored.place,
        version=stored.version,
        product=product,
        metric=given.metric,
        asked=asked,
        found=tuple(found),
        searched=scan.searched,
        left_out=scan.left,
        block_bytes=scan.block_bytes,
    )


def _scan(
    own: Vectors | regions.RegionVectors, query: np.ndarray, given: SearchParameters, *, itself: tuple[int, int] | None
) -> _Scanned:
    """Compare a vector with all of a product but `itself`; raises as `nearest`."""
    query = _checked(query, own, given.metric)
    best, searched, zero, largest = _Best(given.top), 0, 0, 0
    for block in own.blocks(given.memory * MEBIBYTE):
        usable = block.usable
        if itself is not None and _holds(block, itself[0]):
            usable = usable.copy()
            usable[itself[0] - block.start, own.points.index(itself[1])] = False
        largest = max(largest, block.values.nbytes)
        for first, distance in _distances(block.values, query, given.metric):
            at = np.flatnonzero(usable.reshape(-1)[first : first + len(distance)])
            has = ~np.isnan(distance[at])
            searched, zero = searched + int(has.sum()), zero + int((~has).sum())
            best.add(distance[at[has]], block.start * own.count + first + at[has])
    return _Scanned(best, searched, {**own.left.as_json(), **({"zero": zero} if zero else {})}, largest)


def _holds(block: Block, position: int) -> bool:
    return block.start <= position < block.start + len(block.values)


def _checked(query: np.ndarray, own: Vectors | regions.RegionVectors, metric: str) -> np.ndarray:
    query = np.ascontiguousarray(np.asarray(query, np.float64).reshape(-1))
    if len(query) != own.channels:
        raise errors.InputError(
            f"the vector has {len(query)} values, those of {own.array.name!r} have {own.channels}: give one of them"
        )
    if not np.isfinite(query).all():
        raise errors.InputError("the vector has values that are not finite: give another one")
    if metric == "cosine" and not query.any():
        raise errors.InputError("the vector is all zeros, which has no direction: search with --metric l2")
    return query


def _distances(values: np.ndarray, query: np.ndarray, metric: str) -> Iterator[tuple[int, np.ndarray]]:
    """Yield distances of vectors `[rows, points, channels]` in order, with the number of the first; NaN of zeros."""
    flat = values.reshape(-1, values.shape[-1])
    rows = max(_PIECE_VALUES // max(flat.shape[1], 1), 1)
    # Of two axes, so that it is computed as the stored ones are.
    unit = _of_unit_length(query[None].copy())[0] if metric == "cosine" else query
    for first in range(0, len(flat), rows):
        piece = flat[first : first + rows].astype(np.float64, order="C")
        with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
            if metric == "cosine":
                # Half the squared distance of unit vectors, which is 1 - cos, and exactly 0 of equal ones.
                piece = _of_unit_length(piece)
            piece -= unit
            piece *= piece
            squared = piece.sum(axis=1)
        yield first, squared / 2 if metric == "cosine" else np.sqrt(squared)


def _of_unit_length(vectors: np.ndarray) -> np.ndarray:
    """Divide vectors `[n, channels]` in place by their lengths."""
    vectors /= np.sqrt((vectors * vectors).sum(axis=1))[:, None]
    return vectors


class _Best:
    """The smallest distances so far, equal ones in the order of their positions."""

    def __init__(self, top: int) -> None:
        self.top = top
        self.distance = np.empty(0)
        self.position = np.empty(0, np.int64)

    def add(self, distance: np.ndarray, position: np.ndarray) -> None:
        """Add distances at later positions, ascending."""
        if len(self.distance) == self.top and len(distance):
            near = distance < self.distance[-1]
            distance, position = distance[near], position[near]
        both, where = np.concatenate([self.distance, distance]), np.concatenate([self.position, position])
        order = np.argsort(both, kind="stable")[: self.top]
        self.distance, self.position = both[order], where[order]
