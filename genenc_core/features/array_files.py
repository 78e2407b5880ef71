"""Exports as arrays: one `.npy` file each, or one HDF5 file; shaped as in the store, with names beside them."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from genenc_core import errors
from genenc_core.encoding import cancellation
from genenc_core.features import parquet_files, regions
from genenc_core.features.tables import Features
from genenc_core.stored.arrays import Array
from genenc_core.system import digests, files

_CHUNK_BYTES = 8 * 2**20
_IMAGE, _REGION = "image", "region"


def write_npy(features: Features, folder: Path, memory: int) -> None:
    """Write a folder of `.npy` files: one for each array, `image_id` and `path` as text of the greatest length."""
    files.make_folder(folder)
    for name in ("image_id", "path"):
        _write_texts(folder / f"{name}.npy", _names(features, name))
    if features.stored.points:
        _write_texts(folder / "point.npy", list(features.stored.points))
    if features.of_regions:
        np.save(folder / f"{regions.IMAGE}.npy", region_images(features), allow_pickle=False)
    for array, axis in arrays(features):
        if array.dtype.kind == "O":
            values = [str(each) for _, block in _blocks(features, array, axis, memory) for each in block]
            _write_texts(folder / f"{array.name}.npy", values)
            continue
        shape = (_length(features, axis), *array.shape)
        opened: Any = np.lib.format.open_memmap(folder / f"{array.name}.npy", "w+", array.dtype, shape)
        for start, block in _blocks(features, array, axis, memory):
            opened[start : start + len(block)] = block
        opened.flush()
        del opened
    files.write_new(folder / parquet_files.METADATA, parquet_files.metadata(features).encode(errors="backslashreplace"))


def write_hdf5(features: Features, path: Path, memory: int) -> None:
    """Write one HDF5 file: a dataset for each array, its axes labelled; what they are in the attribute `genenc`."""
    h5py = require_h5py()
    with h5py.File(path, "w", libver="latest") as file:
        file.attrs["genenc"] = digests.canonical_json(features.metadata())
        texts = h5py.string_dtype("utf-8")
        for name in ("image_id", "path"):
            file.create_dataset(name, data=_names(features, name), dtype=texts)
            file[name].dims[0].label = "image"
        if features.stored.points:
            file.create_dataset("point", data=list(features.stored.points), dtype=texts)
            file["point"].dims[0].label = "point"
        if features.of_regions:
            file.create_dataset(regions.IMAGE, data=region_images(features))
            file[regions.IMAGE].dims[0].label = _REGION
        for array, axis in arrays(features):
            length = _length(features, axis)
            kind = texts if array.dtype.kind == "O" else array.dtype
            most = max(_CHUNK_BYTES // max(array.row_bytes, 1), 1)
            chunks = (min(array.chunk_rows, length, most), *array.shape) if length else None
            made = file.create_dataset(array.name, (length, *array.shape), kind, chunks=chunks)
            for at, dim in enumerate((axis, *array.dims)):
                made.dims[at].label = dim
            for start, block in _blocks(features, array, axis, memory):
                made[start : start + len(block)] = block


def require_h5py() -> Any:
    """Return the library.

    Raises:
        InputError: it is not installed.
    """
    try:
        import h5py
    except ImportError as error:
        raise errors.InputError(
            "--format hdf5 needs h5py, which is not installed: pip install 'genenc[hdf5]'"
        ) from error
    return h5py


def arrays(features: Features) -> list[tuple[Array, str]]:
    """Return the arrays of an export, with their first axis: those of all rows, and the products that were chosen."""
    stored = features.stored
    chosen = {each.name for each in features.products}
    left = {name for name in stored.products if name not in chosen} | {"image_id", "path"} | stored.scales
    if not any(each.of_points for each in features.products):
        left |= {"point_status"}
    found = [(array, _IMAGE) for name, array in stored.arrays.items() if name not in left]
    if features.regions is None or not features.of_regions:
        return found
    return found + [(array, _REGION) for array in (*features.regions.described_by, *features.of_regions)]


def region_images(features: Features) -> np.ndarray:
    """Return the row of each region's image among those that are exported, int64 `[R]`."""
    assert features.regions is not None
    found: np.ndarray = np.searchsorted(features.rows, features.regions.image[features.region_numbers])
    return found.astype(np.int64)


def _length(features: Features, axis: str) -> int:
    return len(features.rows if axis == _IMAGE else features.region_numbers)


def _names(features: Features, column: str) -> list[str]:
    return features.stored.images.text(column, features.rows)


def _blocks(features: Features, array: Array, axis: str, memory: int) -> Iterator[tuple[int, np.ndarray]]:
    count = max(memory // (2 * max(array.row_bytes, 1)), 1)
    if count > array.chunk_rows:
        count = count // array.chunk_rows * array.chunk_rows
    entries = features.rows if axis == _IMAGE else features.region_numbers
    take = features.stored.take if axis == _IMAGE else features.take_regions
    for start in range(0, len(entries), count):
        cancellation.current().raise_if_cancelled()
        yield start, take(array.name, entries[start : start + count])


def _write_texts(path: Path, values: list[str]) -> None:
    np.save(path, np.array(values, dtype=np.str_), allow_pickle=False)
