"""Rows of a run, or of a version of a dataset, as NumPy arrays: what reports, search, exports and `api.open` read.

Nothing is written, and no model is loaded. Names are read when they are first asked for, about 100 bytes a row; arrays
block by block. Imports neither torch nor xarray.
"""

import functools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from genenc_core import errors, float_values, statuses, stored_arrays, text
from genenc_core.dataset import documents, folder, origins, rows
from genenc_core.dataset.documents import Version
from genenc_core.dataset.folder import DatasetFolder
from genenc_core.dataset.part_store import PartStore
from genenc_core.dataset.rows import CurrentRows, Images
from genenc_core.images.sources import manifest_rows
from genenc_core.run.folder import RunFolder
from genenc_core.store import layout, run_store, store_keys
from genenc_core.store.backends.objects import Root, to_root
from genenc_core.store.commit_record import CommitRecord
from genenc_core.stored.arrays import Array, described, is_per_image
from genenc_core.text import argument


@dataclass(frozen=True, slots=True)
class Origin:
    """The run that holds a row, and the row in it."""

    run: RunFolder
    row: int
    part: str = ""
    """Name of the run as a part of a dataset."""


@dataclass(frozen=True, slots=True)
class Part:
    """A run, and which of its rows are looked at."""

    name: str
    """As a part of a dataset; "" for a single run."""
    run: RunFolder
    positions: np.ndarray
    """Among all rows, consecutive; int64 `[n]`."""
    rows: np.ndarray
    """In the run, ascending; int64 `[n]`."""

    def held(self, positions: np.ndarray) -> np.ndarray:
        """Return which of some positions it holds, as indices into them, int64."""
        first = self.positions[:1]
        return np.flatnonzero((positions >= first) & (positions < first + len(self.positions))) if len(first) else first


class Stored:
    """Opened rows; see `open_rows`. Subclasses read a run or a version."""

    place: str
    version: int | None = None
    identity: Mapping[str, Any]
    """What all rows have in common; of a run with its images."""
    points: tuple[str, ...]
    individuals: tuple[str, ...]

    @functools.cached_property
    def images(self) -> Images:
        """Names of the images, in order."""
        raise NotImplementedError

    @functools.cached_property
    def current(self) -> CurrentRows | None:
        """Names and files of the rows of a version, which may differ from those of its parts; None of a run."""
        return None

    def __len__(self) -> int:
        return len(self.images)

    @property
    def title(self) -> str:
        """The place, with the version of a dataset."""
        return self.place if self.version is None else f"{self.place} version {self.version}"

    @functools.cached_property
    def arrays(self) -> dict[str, Array]:
        """All arrays with a row per image, by name."""
        raise NotImplementedError

    def take(self, name: str, positions: np.ndarray) -> np.ndarray:
        """Return some rows of an array; `positions` are ascending. Of stored integers their values, as float32.

        Raises:
            StoreError: an object is missing, damaged or unreadable.
        """
        return float_values.read(
            name,
            lambda each: self._stored(each, positions),
            lambda each: self.arrays[each].attributes,
            lambda each: ("image", *self.arrays[each].dims),
        )

    def _stored(self, name: str, positions: np.ndarray) -> np.ndarray:
        """Return some rows of an array as they are stored; raises as `take`."""
        raise NotImplementedError

    def origin(self, position: int) -> Origin:
        """Return which run holds a row."""
        raise NotImplementedError

    @functools.cached_property
    def parts(self) -> tuple[Part, ...]:
        """The runs that hold the rows, in order; of a version also those without a current row.

        Raises:
            StoreError: a part is missing, damaged, or not the one that the version was made with.
        """
        raise NotImplementedError

    def part_of(self, position: int) -> tuple[Part, int]:
        """Return the part that holds a row, and the row in its run."""
        starts = [int(part.positions[0]) if len(part.positions) else len(self) for part in self.parts]
        at = max(at for at, start in enumerate(starts) if start <= position)
        return self.parts[at], int(self.parts[at].rows[position - starts[at]])

    @property
    def model_run(self) -> RunFolder:
        """A run whose folder has the model's files: the newest part, which has the meaning of all."""
        if not self.parts:
            raise errors.InputError(f"{self.title!r} has no images")
        return self.parts[-1].run

    def as_xarray(self) -> Any:
        """Return all arrays as a lazy `xarray.Dataset`, with the names of the stored axes."""
        raise NotImplementedError

    def made(self) -> dict[str, Any]:
        """Return when, by what and from what a version was made; {} of a run."""
        return {}

    @property
    def products(self) -> list[str]:
        """Names of the products, in the order of the identity."""
        return [str(each).partition("=")[0] for each in self.identity.get("products", ())]

    def product(self, name: str) -> Array:
        """Return a product.

        Raises:
            InputError: there is none of this name.
        """
        if name in self.products and name not in self.arrays:
            raise errors.InputError(
                f"{name!r} of {self.title!r} has a row for each region, not for each image: give a product of images "
                "or points"
            )
        if name not in self.products or name not in self.arrays:
            hint = text.nearest(name, self.products)
            raise errors.InputError(
                f"{self.title!r} has no product {name!r}: {f'{hint} ' if hint else ''}it has {', '.join(self.products)}"
            )
        return self.arrays[name]

    @functools.cached_property
    def product_arrays(self) -> tuple[Array, ...]:
        """The products with a row per image; those of regions have rows of their own."""
        return tuple(self.arrays[name] for name in self.products if name in self.arrays)

    @functools.cached_property
    def scales(self) -> frozenset[str]:
        """Names of the arrays by which stored integers are scaled; values that are taken are scaled already."""
        return frozenset(
            other for array in self.arrays.values() for other in float_values.beside(array.attributes).values()
        )

    @functools.cached_property
    def columns(self) -> tuple[str, ...]:
        """Names of the arrays with further columns of the list."""
        if not self.model_run.manifest.columns:
            return ()
        known = {array.name for array in stored_arrays.TABLE} | self.scales | set(self.products)
        return tuple(sorted(self.arrays.keys() - known))

    def read(self, name: str, positions: np.ndarray) -> np.ndarray:
        """Return some rows of an array, in the order asked for; raises as `take`."""
        order, back = np.unique(positions, return_inverse=True)
        found = self.take(name, order)
        return found if np.array_equal(order, positions) else found[back]

    def blocks(self, name: str, block_rows: int) -> Iterator[tuple[int, np.ndarray]]:
        """Yield all rows of an array in order, in blocks, each with its first position."""
        for start in range(0, len(self), block_rows):
            yield start, self.take(name, np.arange(start, min(start + block_rows, len(self))))

    @functools.cached_property
    def status(self) -> np.ndarray:
        """State of every row, uint8 `[n]`."""
        found = np.empty(len(self), np.uint8)
        for start, block in self.blocks(layout.STATUS, 2**20):
            found[start : start + len(block)] = block
        return found

    @functools.cached_property
    def ok(self) -> np.ndarray:
        """The rows whose values are stored, int64, ascending."""
        return np.flatnonzero(self.status == statuses.OK)

    def names(self, positions: np.ndarray) -> list[str]:
        """Return the names of some rows."""
        return self.images.text("image_id", positions)

    def image_id(self, position: int) -> str:
        """Return the name of a row."""
        return self.names(np.array([position]))[0]

    def find(self, image: str) -> int:
        """Return the position of an image, given by its name, the end of its name, its path, or as `#` and a row.

        Raises:
            InputError: no image has this name, or several end with it.
        """
        if image.startswith("#"):
            row = text.whole_number(image[1:])
            if row is None or row >= len(self):
                raise errors.InputError(f"{image!r} is no row: {self.title!r} has rows #0 to #{len(self) - 1}")
            return row
        return _found(self, image)


def open_rows(place: Root, version: int | str | None = None) -> Stored:
    """Open a run, or a version of a dataset (None: the newest); nothing but names is read.

    Raises:
        InputError: neither a run nor a dataset, or there is no such version.
        StoreError: it is damaged.
    """
    root = to_root(str(place))
    if folder.exists(root):
        found = DatasetFolder(root)
        return _OfVersion(found, found.version(version))
    if version is not None and run_store.RunStore.exists(root):
        raise errors.InputError(f"{str(place)!r} is a single run, which has no version {version!r}: leave it out")
    return _OfRun(RunFolder(root))


def counts_left_out(status: np.ndarray) -> dict[str, int]:
    """Return how many rows have no features, by state; states without rows are left out."""
    counted = {"not_written": statuses.NOT_WRITTEN, "unreadable": statuses.UNREADABLE}
    found = {name: int((status == value).sum()) for name, value in counted.items()}
    return {name: count for name, count in found.items() if count}


class _OfRun(Stored):
    def __init__(self, run: RunFolder) -> None:
        self.run = run
        self.place = run.root
        self.identity = run.identity
        self.points = run.manifest.point_names
        self.individuals = run.manifest.individuals
        self._present: set[tuple[str, int]] = set()

    @functools.cached_property
    def images(self) -> Images:
        return Images.of(self.run.manifest)

    def __len__(self) -> int:
        return self.run.manifest.rows

    @functools.cached_property
    def _group(self) -> Any:
        import zarr

        return zarr.open_group(self.run.store.zarr_store(), mode="r", zarr_format=3)

    @functools.cached_property
    def _committed(self) -> set[int]:
        return self.run.store.committed()

    @functools.cached_property
    def arrays(self) -> dict[str, Array]:
        with run_store.read_errors(self.place):
            found = dict(self._group.arrays())
        return {name: described(name, each, each.chunks[0]) for name, each in found.items() if is_per_image(each)}

    def _stored(self, name: str, positions: np.ndarray) -> np.ndarray:
        if not len(positions):
            return np.empty((0, *self.arrays[name].shape), self.arrays[name].dtype)
        first, last = int(positions[0]), int(positions[-1])
        dense = last - first < 2 * len(positions)
        try:
            array = self._group[name]
            found = np.asarray(array[first : last + 1] if dense else array.oindex[positions])
        except errors.GenencError:
            raise
        except Exception as error:  # of zarr and its codecs
            raise errors.StoreError(
                f"{name!r} of {self.place!r} is damaged ({errors.reason(error)}); genenc verify "
                f"{argument(self.place)} --content lists the damage"
            ) from error
        self._refuse_missing(name, positions)
        return found[positions - first] if dense and len(found) != len(positions) else found

    def _refuse_missing(self, name: str, positions: np.ndarray) -> None:
        """Raise `StoreError` if an object of committed rows is missing, which Zarr would read as its fill."""
        plan = next((each for each in self.run.store.plan.all_arrays if each.name == name), None)
        if plan is None:
            return
        for shard in np.unique(positions // self.run.store.plan.shard_rows).tolist():
            if (name, shard) in self._present or shard not in self._committed:
                continue
            key = layout.chunk_key(plan, shard)
            with run_store.read_errors(self.place):
                if self.run.objects.size(f"{store_keys.GROUP}/{key}") is None:
                    raise errors.StoreError(
                        f"{key!r} of {self.place!r} is missing, and its shard is committed: genenc verify "
                        f"{argument(self.place)} --repair, then genenc resume {argument(self.place)}"
                    )
            self._present.add((name, shard))

    def origin(self, position: int) -> Origin:
        return Origin(self.run, position)

    def as_xarray(self) -> Any:
        from genenc_core.dataset import reading

        return reading.open_run(self.run)

    @functools.cached_property
    def parts(self) -> tuple[Part, ...]:
        every = np.arange(len(self))
        return (Part("", self.run, every, every),)

    def names(self, positions: np.ndarray) -> list[str]:
        # From the array, which need not be read whole.
        return [str(name) for name in self.read("image_id", positions).tolist()]


class _OfVersion(Stored):
    def __init__(self, opened: DatasetFolder, version: Version) -> None:
        self.folder = opened
        self.place = opened.root
        self._document = version
        self.version = version.version
        self.identity = opened.meaning.identity
        self.points = tuple(opened.meaning.points)
        self.individuals = tuple(opened.meaning.individuals)
        self._parts = PartStore(opened.objects, version)
        self._index = {part.number: at for at, part in enumerate(version.parts)}

    @functools.cached_property
    def current(self) -> CurrentRows:
        """The names, with where each row is stored."""
        return rows.current(self.folder, self._document)

    @property
    def images(self) -> Images:
        return self.current

    @functools.cached_property
    def arrays(self) -> dict[str, Array]:
        if not self._document.parts:
            return {}
        part = self._document.parts[0]
        opened = {name: self._parts.empty(part.template, name) for name in part.chunks}
        return {
            name: described(name, each, max(part.chunks[name][1], 1))
            for name, each in opened.items()
            if is_per_image(each)
        }

    def _stored(self, name: str, positions: np.ndarray) -> np.ndarray:
        numbers, own = self.current.part[positions], self.current.row[positions]
        cuts = np.flatnonzero(np.diff(numbers) != 0) + 1
        found = [
            self._of_part(name, self._index[int(numbers[at[0]])], own[at])
            for at in np.split(np.arange(len(positions)), cuts)
            if len(at)
        ]
        if not found:
            return np.empty((0, *self.arrays[name].shape), self.arrays[name].dtype)
        return found[0] if len(found) == 1 else np.concatenate(found)

    def _of_part(self, name: str, index: int, own: np.ndarray) -> np.ndarray:
        self._parts.check(index)
        first, last = int(own[0]), int(own[-1])
        dense = last - first < 2 * len(own)
        rest = (slice(None),) * len(self.arrays[name].shape)
        found = np.asarray(self._parts.read(index, name, (slice(first, last + 1) if dense else own, *rest)))
        return found[own - first] if dense and len(found) != len(own) else found

    def origin(self, position: int) -> Origin:
        part, row = origins.resolved(
            self.folder, self.current.part[position : position + 1], self.current.row[position : position + 1]
        )
        encoded = documents.part_name(int(part[0]))
        if self.folder.part_exists(encoded):
            return Origin(self.folder.part(encoded), int(row[0]), encoded)
        # The part that encoded it was pruned: the compacted one has its bytes and digests.
        name = documents.part_name(int(self.current.part[position]))
        return Origin(self.folder.part(name), int(self.current.row[position]), name)

    @functools.cached_property
    def parts(self) -> tuple[Part, ...]:
        found = []
        for index, part in enumerate(self._document.parts):
            self._parts.check(index)
            at = np.flatnonzero(self.current.part == part.number)
            found.append(Part(part.name, self.folder.part(part.name), at, self.current.row[at]))
        return tuple(found)

    def as_xarray(self) -> Any:
        from genenc_core.dataset import reading

        return reading.open_version(self.folder, self._document)

    def made(self) -> dict[str, Any]:
        return {f"version_{name}": value for name, value in self._document.made.items()}


def input_digests(stored: Stored) -> np.ndarray:
    """Return the recorded sha256 of every row's image file, uint8 `[n, 32]`; zeros where none is recorded.

    Raises:
        StoreError: a commit record is damaged.
    """
    found = np.zeros((len(stored), 32), np.uint8)
    for part in stored.parts:
        shard_of = part.rows // part.run.store.plan.shard_rows
        for shard in np.unique(shard_of).tolist():
            record = part.run.store.record(shard)
            if record is not None:
                recorded = np.array([np.frombuffer(_bytes(each), np.uint8) for each in digests_of(record)])
                here = np.flatnonzero(shard_of == shard)
                found[part.positions[here]] = recorded[part.rows[here] - record.rows[0]]
    return found


def _bytes(digest: str) -> bytes:
    try:
        found = bytes.fromhex(digest)
    except ValueError:
        found = b""
    return found if len(found) == 32 else bytes(32)


def digests_of(record: CommitRecord) -> list[str]:
    """Return the sha256 of the image files of a shard's rows, "" where none is recorded."""
    start, stop = record.rows
    known = record.details.get("input_sha256")
    listed = list(map(str, known)) if isinstance(known, list | tuple) else []
    return (listed + [""] * (stop - start))[: stop - start]


_SHOWN = 3


def _found(stored: Stored, image: str) -> int:
    import pyarrow as pa
    import pyarrow.compute as pc

    for column in manifest_rows.TEXT_COLUMNS:
        at = pc.index(stored.images.table.column(column), pa.scalar(image, pa.large_string())).as_py()
        if at >= 0:
            return int(at)
    names = stored.images.table.column("image_id")
    ends = np.flatnonzero(np.asarray(pc.ends_with(names, "/" + image.lstrip("/"))))
    if len(ends) == 1:
        return int(ends[0])
    if len(ends):
        shown = ", ".join(map(repr, stored.images.text("image_id", ends[:_SHOWN])))
        more = ", ..." if len(ends) > _SHOWN else ""
        raise errors.InputError(f"{image!r} is the end of {len(ends)} names ({shown}{more}): give more of one")
    first: Sequence[str] = stored.images.text("image_id", np.arange(min(len(stored), 10_000)))
    hint = text.nearest(image, first) or f"names are like {first[0]!r}" if first else "there are no images"
    raise errors.InputError(f"{stored.title!r} has no image {image!r}: {hint}; rows are given as #0, #1, ...")


def point_index(stored: Stored, point: str) -> int:
    """Return the index of a point.

    Raises:
        InputError: there is none of this name.
    """
    if point not in stored.points:
        known = f"it has {', '.join(stored.points)}" if stored.points else "it has no points"
        raise errors.InputError(f"{stored.title!r} has no point {point!r}: {known}")
    return stored.points.index(point)
