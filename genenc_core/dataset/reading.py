"""A version of a dataset as one lazy xarray Dataset: current rows of all parts, in order, by image id.

Opening reads no part. What is read of a part is decided row by row; `image_id` is read when a name is first asked for.
"""

import functools
import math
from collections.abc import Hashable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Self

import numpy as np
import xarray
from xarray.backends import AbstractDataStore, BackendArray
from xarray.core import indexing
from xarray.indexes import PandasIndex

from genenc_core import errors, stored_arrays, text
from genenc_core.dataset import part_arrays, rows
from genenc_core.dataset.documents import Version
from genenc_core.dataset.folder import DatasetFolder
from genenc_core.dataset.part_store import PartStore
from genenc_core.run.folder import RunFolder
from genenc_core.store.backends.objects import join

IMAGE_ID, REGION_IMAGE, REGION_IMAGE_ID = "image_id", "region_image", "region_image_id"
_THREADS = 16
_SEARCHED = 10_000
"""Names that are compared with one that is not there."""
_PIECE_BYTES = 64 * 2**20
"""Of what a thread reads at once."""


def open_version(folder: DatasetFolder, version: Version) -> xarray.Dataset:
    """Open the current rows of a version: every array `[image, ...]` of its parts, with `image_id` as an index.

    Raises:
        StoreError: its documents are damaged, or its parts differ in more than their rows.
    """
    return _with_index(xarray.open_dataset(_VersionStore(folder, version), chunks=None))


def open_run(run: RunFolder) -> xarray.Dataset:
    """Open a single run, with `image_id` as an index; rows that are not stored yet are NaN."""
    found = xarray.open_zarr(run.store.zarr_store(), consolidated=False, chunks=None)
    return _with_index(regions_alone(found))


def regions_alone(found: xarray.Dataset) -> xarray.Dataset:
    """Return the arrays of a run without the places of its axis `region` that are no region."""
    if REGION_IMAGE not in found:
        return found
    return found.isel(region=np.flatnonzero(found[REGION_IMAGE].values >= 0))


def _with_index(opened: xarray.Dataset) -> xarray.Dataset:
    return opened.set_xindex(IMAGE_ID, NameIndex)


class StoredRows:
    """Where the current rows of a version are stored; takes memory by the rows that are not current."""

    def __init__(self, folder: DatasetFolder, version: Version) -> None:
        changes = rows.read_changes(folder, version)
        self.gone = gone = np.flatnonzero(~rows.mask(version, changes))
        """Positions of the rows that are not current, int64, ascending."""
        self._current_before = gone - np.arange(len(gone))
        self.starts = np.cumsum([0, *(part.rows for part in version.parts)])
        """First position of each part among all stored rows, int64 `[parts + 1]`."""
        self.count = int(self.starts[-1]) - len(gone)
        positions, amended = rows.amendments(version, changes)
        order = np.argsort(positions)
        self.amended = positions[order]
        """Positions of the rows with other names, int64, ascending."""
        self.names = {name: np.array(amended.column(name).to_pylist(), object)[order] for name in (IMAGE_ID, "path")}
        """Their names."""

    def positions(self, current: np.ndarray) -> np.ndarray:
        """Return the positions of current rows among all stored rows, int64."""
        found: np.ndarray = current + np.searchsorted(self._current_before, current, side="right")
        return found

    def current_of(self, positions: np.ndarray) -> np.ndarray:
        """Return the current rows at these positions among all stored rows, int64."""
        found: np.ndarray = positions - np.searchsorted(self.gone, positions)
        return found

    def is_current(self, positions: np.ndarray) -> np.ndarray:
        """Return which positions are those of current rows, bool `[n]`."""
        at = np.searchsorted(self.gone, positions)
        found: np.ndarray = np.append(self.gone, -1)[at] != positions
        return found

    def is_changed(self, start: int, stop: int) -> bool:
        """Return whether some of these positions are not those of current rows."""
        first, last = np.searchsorted(self.gone, [start, stop]).tolist()
        return bool(first < last)


class StoredRegions:
    """Where the regions of the current rows of a version are stored; reads the parts that have other rows, too.

    Raises:
        StoreError: such a part is damaged.
    """

    def __init__(self, parts: PartStore, stored: StoredRows) -> None:
        version = parts.version
        self._parts = parts
        self._rows = stored
        self._found: dict[int, tuple[np.ndarray, np.ndarray]] = {}
        self.starts = np.cumsum([0, *(part.region_places or 0 for part in version.parts)])
        """First position of each part among all places, int64 `[parts + 1]`."""
        with ThreadPoolExecutor(_THREADS) as pool:
            counts = list(pool.map(self._count, range(len(version.parts))))
        self._firsts = np.cumsum([0, *counts])
        self.count = int(self._firsts[-1])

    def positions(self, current: np.ndarray) -> np.ndarray:
        """Return the positions of current regions among all places, int64."""
        part = np.searchsorted(self._firsts, current, side="right") - 1
        found = np.empty(len(current), np.int64)
        for index in np.unique(part).tolist():
            own = part == index
            found[own] = self.starts[index] + self._of_part(index)[0][current[own] - self._firsts[index]]
        return found

    def images(self, positions: np.ndarray) -> np.ndarray:
        """Return the positions of the images of regions among all stored rows, int64."""
        part = np.searchsorted(self.starts, positions, side="right") - 1
        found = np.empty(len(positions), np.int64)
        for index in np.unique(part).tolist():
            own = part == index
            places, images = self._of_part(index)
            found[own] = images[np.searchsorted(places, positions[own] - self.starts[index])]
        return found

    def _count(self, index: int) -> int:
        first, last = self._rows.starts[index : index + 2]
        return (
            len(self._of_part(index)[0]) if self._rows.is_changed(first, last) else self._parts.of(index).regions or 0
        )

    def _of_part(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the places of the current regions of a part, and the positions of their images."""
        if index not in self._found:
            self._parts.check(index)
            part, first = self._parts.of(index), int(self._rows.starts[index])
            images = np.asarray(self._parts.read(index, REGION_IMAGE, (slice(None),)), np.int64)
            places = np.flatnonzero(images >= 0)
            if len(places) != part.regions or (images >= part.rows).any():
                raise errors.StoreError(
                    f"{REGION_IMAGE!r} of the part {part.name!r} is damaged: restore it from a copy"
                )
            kept = self._rows.is_current(images[places] + first)
            self._found[index] = places[kept], images[places[kept]] + first
        return self._found[index]


class _PartedArray(BackendArray):
    """One array of all parts, by current row, or by region of these."""

    def __init__(
        self, parts: PartStore, rows_of_images: StoredRows, name: str, regions: StoredRegions | None = None
    ) -> None:
        self.parts = parts
        self.images = rows_of_images
        self.regions = regions
        self.stored: StoredRows | StoredRegions = rows_of_images if regions is None else regions
        self.name = name
        like = parts.empty(parts.version.parts[0].template if parts.version.parts else 0, name)
        self.shape = (self.stored.count, *like.shape[1:])
        self.dtype = like.dtype
        sizes = np.array([part.chunks[name] for part in parts.version.parts], np.int64).reshape(-1, 2)
        objects, self.chunks = np.maximum(sizes, 1).T
        row_bytes = self.dtype.itemsize * math.prod(self.shape[1:])
        self.pieces = np.maximum(_PIECE_BYTES // np.maximum(objects * row_bytes, 1), 1) * objects
        """Rows that are read at once, whole stored objects, int64 `[parts]`."""

    def __getitem__(self, key: indexing.ExplicitIndexer) -> Any:
        return indexing.explicit_indexing_adapter(key, self.shape, indexing.IndexingSupport.OUTER, self._read)

    def _read(self, key: tuple[Any, ...]) -> Any:
        at, *others = key
        is_slice = isinstance(at, slice)
        wanted = np.arange(*at.indices(self.shape[0])) if is_slice else self._bounded(np.atleast_1d(at))
        positions, repeated = self.stored.positions(wanted), None
        if (np.diff(positions) <= 0).any():
            positions, repeated = np.unique(positions, return_inverse=True)
        found = self._rows(positions, tuple(others))
        if self.name in self.images.names:
            found = self._amended(found, positions, self.name)
        elif self.regions is not None and self.name == REGION_IMAGE:
            found = self.images.current_of(self.regions.images(positions))
        elif self.regions is not None and self.name == REGION_IMAGE_ID:
            found = self._amended(found, self.regions.images(positions), IMAGE_ID)
        found = found if repeated is None else found[repeated]
        return found if is_slice or np.ndim(at) else found.reshape(found.shape[1:])

    def _bounded(self, at: np.ndarray) -> np.ndarray:
        outside = at[(at < 0) | (at >= self.shape[0])]  # xarray has counted negative ones from the start
        if len(outside):
            raise IndexError(f"no row {outside[0]} in {self.name!r}, which has {self.shape[0]}")
        return at

    def _rows(self, positions: np.ndarray, others: tuple[Any, ...]) -> np.ndarray:
        """Return stored rows, given in ascending order."""
        if not len(positions):
            return self._empty(others)
        part = np.searchsorted(self.stored.starts, positions, side="right") - 1
        row = positions - self.stored.starts[part]
        piece = row // self.pieces[part]
        cuts = np.flatnonzero((np.diff(part) != 0) | (np.diff(piece) != 0)) + 1
        bounds = list(zip([0, *cuts.tolist()], [*cuts.tolist(), len(positions)], strict=True))
        if len(bounds) == 1:
            self.parts.check(int(part[0]))
            return self._piece(int(part[0]), row, others)
        with ThreadPoolExecutor(min(_THREADS, len(bounds))) as pool:
            list(pool.map(self.parts.check, np.unique(part).tolist()))
            blocks = pool.map(lambda bound: self._piece(int(part[bound[0]]), row[slice(*bound)], others), bounds)
            found: np.ndarray | None = None
            for (start, stop), block in zip(bounds, blocks, strict=True):
                if found is None:
                    found = np.empty((len(positions), *block.shape[1:]), self.dtype)
                found[start:stop] = block
        assert found is not None
        return found

    def _empty(self, others: tuple[Any, ...]) -> np.ndarray:
        found = np.empty((0, *self.shape[1:]), self.dtype)
        for axis in range(len(others), 0, -1):
            found = found[(*[slice(None)] * axis, others[axis - 1])]
        return found

    def _piece(self, part: int, row: np.ndarray, others: tuple[Any, ...]) -> np.ndarray:
        """Return rows of a part, given in ascending order; a chunk is read only if it holds one of them."""
        first, last = int(row[0]), int(row[-1])
        dense = last - first < 2 * len(row) and (np.diff(row) <= self.chunks[part]).all()
        selection = slice(first, last + 1) if dense else row
        found = np.asarray(self.parts.read(part, self.name, (selection, *others)))
        return found if len(found) == len(row) else found[row - first]

    def _amended(self, found: np.ndarray, positions: np.ndarray, name: str) -> np.ndarray:
        """Return names of the images at these positions as they are now."""
        of = self.images.amended
        at = np.searchsorted(of, positions)
        is_amended = np.append(of, -1)[at] == positions
        if is_amended.any():
            found = found.copy()
            found[is_amended] = self.images.names[name][at[is_amended]]
        return found


class _VersionStore(AbstractDataStore):
    """What xarray decodes."""

    def __init__(self, folder: DatasetFolder, version: Version) -> None:
        self.folder = folder
        self.version = version
        self.parts = PartStore(folder.objects, version)
        self.stored = StoredRows(folder, version)
        self._refuse_unusable()

    def get_variables(self) -> dict[str, xarray.Variable]:
        """Return all arrays, not read."""
        found = {}
        for name, document in self.version.templates[self.template].items():
            data: Any
            if stored_arrays.is_of_points_alone(name):
                meaning = self.folder.meaning
                values = meaning.points if name == stored_arrays.POINT else meaning.individuals
                data = np.array(values, self.parts.empty(self.template, name).dtype)
            else:
                regions = self.regions if part_arrays.is_per_region(document) else None
                data = indexing.LazilyIndexedArray(_PartedArray(self.parts, self.stored, name, regions))
            # As xarray's own reader of Zarr: it leaves the strings as they are.
            encoding = {"dtype": data.dtype}
            found[name] = xarray.Variable(document["dimension_names"], data, document.get("attributes", {}), encoding)
        return found

    def get_attrs(self) -> dict[str, Any]:
        """Return the attributes of the dataset."""
        identity = self.folder.meaning.identity
        shown = {name: identity[name] for name in ("model", "weights", "backend", "preprocessing") if name in identity}
        return {
            "title": f"Image features of {identity.get('model')}",
            "genenc": {"dataset_version": self.version.version, **shown},
        }

    @functools.cached_property
    def regions(self) -> StoredRegions:
        """Where the regions are."""
        return StoredRegions(self.parts, self.stored)

    @property
    def template(self) -> int:
        """The template that stands for all."""
        return self.version.parts[0].template if self.version.parts else 0

    def _refuse_unusable(self) -> None:
        """Raise `StoreError` unless all parts have the same arrays but for their rows."""
        where = repr(join(self.folder.root, self.version.key))
        templates = {self.template, *(part.template for part in self.version.parts)}
        if not self.version.templates:
            raise errors.StoreError(f"{where} is damaged: it describes no arrays")
        first = self._signature(self.template)
        if IMAGE_ID not in first or any(self._signature(each) != first for each in templates):
            raise errors.StoreError(f"{where} is damaged: its parts do not have the same arrays")
        unknown = [
            name
            for name, (_, _, dims) in first.items()
            if (dims[:1] in (("image",), ("region",))) == stored_arrays.is_of_points_alone(name)
        ]
        if unknown:
            raise errors.StoreError(f"{where} has an array {unknown[0]!r} that this version of genenc does not know")

    def _signature(self, template: int) -> dict[str, tuple[str, tuple[int, ...], tuple[str, ...]]]:
        """Return type, shape of a row, and dimensions of each array."""
        arrays = {name: self.parts.empty(template, name) for name in self.version.templates[template]}
        return {
            name: (str(array.dtype), array.shape[1:], tuple(array.metadata.dimension_names or ()))
            for name, array in arrays.items()
        }


class NameIndex(xarray.Index):
    """An index of names that are read when the first label is asked for."""

    def __init__(self, name: Hashable, variable: xarray.Variable) -> None:
        self.name = name
        self.variable = variable

    @property
    def dim(self) -> Hashable:
        """The dimension of the names."""
        dim: Hashable = self.variable.dims[0]
        return dim

    @functools.cached_property
    def loaded(self) -> PandasIndex:
        """The index of the names."""
        return PandasIndex(np.asarray(self.variable.values).astype(object), self.dim)

    @classmethod
    def from_variables(cls, variables: Mapping[Any, xarray.Variable], *, options: Mapping[str, Any]) -> Self:  # noqa: ARG003
        """Keep the variable of the names."""
        ((name, variable),) = variables.items()
        return cls(name, variable)

    @classmethod
    def concat(cls, indexes: Sequence[Self], dim: Hashable, positions: Any = None) -> Self:
        """Concatenate names."""
        return indexes[0]._like(PandasIndex.concat([each.loaded for each in indexes], dim, positions))

    def _like(self, index: PandasIndex) -> Self:
        names = np.asarray(index.index, object).astype(self.variable.dtype)
        return type(self)(self.name, xarray.Variable(index.dim, names, self.variable.attrs))

    def create_variables(self, variables: Any = None) -> dict[Any, xarray.Variable]:  # noqa: ARG002
        """Return the variable of the names."""
        return {self.name: self.variable}

    def isel(self, indexers: Mapping[Any, Any]) -> Self | None:
        """Select names by position; none are read."""
        at = indexers[self.dim]
        if isinstance(at, xarray.Variable):
            if at.dims != (self.dim,):
                return None
            at = at.data
        found = self.variable.isel({self.dim: at})
        return type(self)(self.name, found) if found.dims == (self.dim,) else None

    def sel(self, labels: dict[Any, Any], **options: Any) -> Any:
        """Find names.

        Raises:
            KeyError: a name that there is not.
        """
        try:
            return self.loaded.sel(labels, **options)
        except KeyError as error:
            raise KeyError(self._unknown(next(iter(labels.values())))) from error

    def _unknown(self, wanted: Any) -> str:
        """Return which name is not there, and what may be meant."""
        known = self.loaded.index
        given = np.atleast_1d(np.asarray(getattr(wanted, "values", wanted), object)).tolist()
        missing = next((str(each) for each in given if each not in known), str(wanted))
        ends = [name for name in known[:_SEARCHED] if str(name).endswith(f"/{missing}")]
        hint = f"did you mean {ends[0]!r}?" if ends else text.nearest(missing, known[:_SEARCHED].tolist())
        if not hint:
            hint = f"names are like {known[0]!r}" if len(known) else "there are none"
        return f"no {self.name} {missing!r}: {hint}"

    def equals(self, other: xarray.Index, **_options: Any) -> bool:
        """Compare names."""
        return isinstance(other, NameIndex) and (
            self.variable is other.variable or bool(self.loaded.equals(other.loaded))
        )

    def join(self, other: Self, how: Any = "inner") -> Self:
        """Combine names for alignment."""
        return self._like(self.loaded.join(other.loaded, how))

    def reindex_like(self, other: Self, **options: Any) -> dict[Hashable, Any]:
        """Find the names of another index."""
        found: dict[Hashable, Any] = self.loaded.reindex_like(other.loaded, **options)
        return found

    def rename(self, name_dict: Mapping[Any, Hashable], dims_dict: Mapping[Any, Hashable]) -> Self:
        """Rename the coordinate, or its dimension."""
        name, dim = name_dict.get(self.name, self.name), dims_dict.get(self.dim, self.dim)
        if (name, dim) == (self.name, self.dim):
            return self
        own = xarray.Dataset({name: self.variable})
        return type(self)(name, own.rename_dims({self.dim: dim} if dim != self.dim else {}).variables[name])

    def to_pandas_index(self) -> Any:
        """Return the names."""
        return self.loaded.index

    def _copy(self, deep: bool = True, memo: dict[int, Any] | None = None) -> Self:  # noqa: ARG002
        return type(self)(self.name, self.variable)

    def __repr__(self) -> str:
        return f"NameIndex({self.variable.sizes[self.dim]} names)"

    def _repr_inline_(self, max_width: int) -> str:  # noqa: ARG002
        return repr(self)

    def __getstate__(self) -> dict[str, Any]:
        """Read the names again in another process."""
        return {"name": self.name, "variable": self.variable}
