"""A run, or a version of a dataset, opened to be looked at: which rows it has, and their stored values.

Nothing is written in it, and no model is loaded.
"""

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import zarr

from genenc_core import errors, float_values, spec, statuses, stored_arrays, text
from genenc_core.dataset import folder as dataset_folder
from genenc_core.dataset import rows as dataset_rows
from genenc_core.dataset.documents import Version
from genenc_core.run.folder import RunFolder
from genenc_core.store import zarr_bytes
from genenc_core.store.backends.objects import Root, is_remote, to_root
from genenc_core.text import argument

BLOCK_BYTES: Final = 64 * 2**20
"""Stored values that are read at once."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Stored:
    """A product, as it is stored; `dims` and `shape` are those of one image."""

    name: str
    dims: tuple[str, ...]
    shape: tuple[int, ...]
    dtype: str
    """Of its values."""
    stored_as: str
    """Type of the stored array, which may be integers with a scale."""
    text: str
    """As the run records it, `NAME=[SLOT:]MODULE[+...]@TYPE`."""

    @property
    def is_map(self) -> bool:
        """Whether it is a feature map, `[channel, y, x]`."""
        return len(self.dims) == 3 and self.dims[1:] == (f"{self.name}_y", f"{self.name}_x")

    @property
    def is_vector(self) -> bool:
        """Whether it is one vector of an image."""
        return len(self.dims) == 1 and not self.of_points

    @property
    def of_points(self) -> bool:
        """Whether it has a value for each point."""
        return stored_arrays.POINT in self.dims

    @property
    def row_bytes(self) -> int:
        """Bytes of one image's value."""
        return int(np.prod(self.shape, dtype=np.int64)) * np.dtype(self.dtype).itemsize


@dataclasses.dataclass(kw_only=True)
class Part:
    """A run, and which of its rows are looked at."""

    name: str
    """That of a part of a dataset; "" for a single run."""
    run: RunFolder
    rows: np.ndarray
    """int64 `[n]`, ascending."""

    @functools.cached_property
    def group(self) -> Any:
        """Its Zarr group."""
        return zarr.open_group(self.run.store.zarr_store(), mode="r")

    def read(self, name: str, at: np.ndarray) -> np.ndarray:
        """Return rows of an array, given by ascending positions among `rows`; of stored integers their values.

        Raises:
            StoreError: they cannot be read.
        """
        return float_values.read(
            name,
            lambda each: self._stored(each, self.rows[at]),
            lambda each: dict(self.group[each].attrs),
            lambda each: self.group[each].metadata.dimension_names,
        )

    def _stored(self, name: str, wanted: np.ndarray) -> np.ndarray:
        try:
            first, last = int(wanted[0]), int(wanted[-1]) + 1
            if last - first == len(wanted):
                return np.asarray(self.group[name][first:last])
            return np.asarray(self.group[name].oindex[wanted])
        except (errors.GenencError, MemoryError):
            raise
        except Exception as error:  # of zarr, its codecs and the volume
            raise errors.StoreError(
                f"{name!r} of {self.run.root!r} cannot be read ({errors.reason(error)}); genenc verify "
                f"{argument(self.run.root)} --content lists the damage"
            ) from error


class Source:
    """What is looked at; rows are numbered as in the run, or among the current rows of the version."""

    def __init__(
        self,
        place: str,
        parts: Sequence[Part],
        *,
        version: Version | None = None,
        known: dataset_rows.CurrentRows | None = None,
    ) -> None:
        self.place = place
        self.parts = parts
        self.version = version
        self.known = known
        """Names and files of the current rows of a version, which may differ from those of its parts."""
        self.starts = np.cumsum([0, *(len(part.rows) for part in parts)])

    def __len__(self) -> int:
        return int(self.starts[-1])

    @property
    def title(self) -> str:
        """Display name: the folder's, and the version."""
        version = "" if self.version is None else f", version {self.version.version}"
        return text.title(text.place(self.place)) + version

    @property
    def run(self) -> RunFolder:
        """The run, or the newest part, which has the meaning of all."""
        return self.parts[-1].run

    @property
    def preprocessing(self) -> spec.Preprocessing:
        """How images were fitted to the model."""
        return self.run.preprocessing

    @property
    def point_names(self) -> tuple[str, ...]:
        """Names of the labelled points."""
        return tuple(self.run.manifest.point_names)

    @functools.cached_property
    def products(self) -> tuple[Stored, ...]:
        """All products with a value per image or point; those of regions have rows of their own."""
        plans = [plan for plan in self.run.store.plan.arrays if plan.dims[0] == "image"]
        beside = {plan.name: float_values.beside(plan.attributes) for plan in plans}
        others = {array.name for array in stored_arrays.TABLE}.union(*(names.values() for names in beside.values()))
        return tuple(
            Stored(
                name=plan.name,
                dims=tuple(plan.dims[1:]),
                shape=tuple(plan.shape[1:]),
                dtype="float32" if beside[plan.name] else plan.dtype,
                stored_as=plan.dtype,
                text=str(plan.attributes.get("genenc_product", "")),
            )
            for plan in plans
            if plan.name not in others
        )

    @functools.cached_property
    def columns(self) -> tuple[str, ...]:
        """Names of the arrays with further columns of the list."""
        suffix = f"/{zarr_bytes.METADATA}"
        names = {key.removesuffix(suffix) for key in self.run.store.created if key.endswith(suffix)}
        known = {array.name for array in stored_arrays.TABLE} | {product.name for product in self.products}
        return tuple(sorted(name for name in names - known if name and self.run.manifest.columns))

    @functools.cached_property
    def states(self) -> np.ndarray:
        """The state of every row, uint8 `[rows]`, as in the array `status`."""
        found = [part.read(stored_arrays.STATUS, np.arange(len(part.rows))) for part in self.parts if len(part.rows)]
        return np.concatenate([np.empty(0, np.uint8), *found])

    @functools.cached_property
    def ok(self) -> np.ndarray:
        """The rows whose values are stored, int64, ascending."""
        return np.flatnonzero(self.states == statuses.OK)

    def groups(self, rows: np.ndarray) -> tuple[np.ndarray, list[str]]:
        """Return the number of the shard that each of these rows is stored in, and the names of all shards."""
        found, names, first = np.empty(len(rows), np.int64), [], 0
        for part, (start, stop) in zip(self.parts, self._bounds(), strict=True):
            inside = (rows >= start) & (rows < stop)
            found[inside] = first + part.rows[rows[inside] - start] // part.run.store.plan.shard_rows
            count = part.run.store.shard_count
            names += [f"{part.name}/{shard}" if part.name else str(shard) for shard in range(count)]
            first += count
        return found, names

    def read(self, name: str, rows: np.ndarray) -> np.ndarray:
        """Return rows of an array, in the order given.

        Raises:
            StoreError: they cannot be read.
        """
        order = np.argsort(rows, kind="stable")
        ordered = rows[order]
        found: np.ndarray | None = None
        for part, (start, stop) in zip(self.parts, self._bounds(), strict=True):
            inside = np.flatnonzero((ordered >= start) & (ordered < stop))
            if len(inside):
                at, repeated = np.unique(ordered[inside] - start, return_inverse=True)
                values = part.read(name, at)[repeated]
                if found is None:
                    found = np.empty((len(rows), *values.shape[1:]), values.dtype)
                found[order[inside]] = values
        if found is None:
            like = self.run.store.plan.arrays
            shape = next((plan.shape[1:] for plan in like if plan.name == name), ())
            return np.empty((0, *shape))
        return found

    def blocks(self, name: str, rows: np.ndarray, row_bytes: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield (rows, values) of ascending rows, as many at once as memory allows."""
        size = max(BLOCK_BYTES // max(row_bytes, 1), 1)
        for start in range(0, len(rows), size):
            block = rows[start : start + size]
            yield block, self.read(name, block)

    def names(self, rows: np.ndarray) -> list[str]:
        """Return the names of images."""
        if self.known is not None:
            return self.known.text("image_id", rows)
        return [str(name) for name in self.read("image_id", rows).tolist()]

    def place_of(self, row: int) -> tuple[Part, int]:
        """Return the run that a row is stored in, and its row there."""
        at = int(np.searchsorted(self.starts, row, side="right")) - 1
        return self.parts[at], int(self.parts[at].rows[row - self.starts[at]])

    def row_of(self, image: str) -> int:
        """Return the row of an image by its name.

        Raises:
            InputError: there is none of this name.
        """
        first = 0
        for part in self.parts:
            for start in range(0, len(part.rows), 2**16):
                at = np.arange(start, min(start + 2**16, len(part.rows)))
                names = self.names(first + at)
                if image in names:
                    return first + start + names.index(image)
            first += len(part.rows)
        raise errors.InputError(
            f"no image {image!r} in {self.place!r}: names are those in images.parquet, such as "
            f"{self.names(np.arange(min(len(self), 1)))[0]!r}"
        )

    def _bounds(self) -> list[tuple[int, int]]:
        return list(zip(self.starts[:-1].tolist(), self.starts[1:].tolist(), strict=True))


def open_source(place: Root, version: int | str | None = None) -> Source:
    """Open a run, or a version of a dataset, the newest by default.

    Raises:
        InputError: neither is there, there is no such version, or it has no rows.
        StoreError: it is damaged.
    """
    root = to_root(str(place))
    if not dataset_folder.exists(root):
        if version is not None:
            raise errors.InputError(f"--version {version!r} is for datasets, and {str(place)!r} is none: leave it out")
        run = RunFolder(root)
        return Source(run.root, [Part(name="", run=run, rows=np.arange(run.manifest.rows))])
    folder = dataset_folder.DatasetFolder(root)
    found = folder.version(version)
    known = dataset_rows.current(folder, found)
    if not len(known):
        raise errors.InputError(f"version {found.version} of {folder.root!r} has no rows: there is nothing to see")
    parts = [
        Part(name=part.name, run=folder.part(part.name), rows=known.row[known.part == part.number])
        for part in found.parts
    ]
    for part, recorded in zip(parts, found.parts, strict=True):
        if part.run.store.document != recorded.store:
            raise errors.StoreError(
                f"the part {part.run.root!r} is not the one that version {found.version} was made with: restore it "
                "from a copy"
            )
    return Source(folder.root, parts, version=found, known=known)


def refuse_inside(out: Path, place: str) -> None:
    """Refuse a file or folder to write that is what is looked at, or lies in it.

    Raises:
        InputError: so it is.
    """
    if not is_remote(place) and out.resolve().is_relative_to(Path(place).resolve()):
        raise errors.InputError(f"--out {str(out)!r} is in {place!r}, where nothing may change: give a place beside it")
