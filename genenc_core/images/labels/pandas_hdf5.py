"""Data frames that pandas stored as HDF5, read without running what they may hold.

pandas and PyTables unpickle whatever a file names; here names of columns may only be text and numbers.
"""

import io
import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from genenc_core import errors

LARGEST_TABLE = 2**28
"""Cells."""


class Frame(NamedTuple):
    """A data frame of numbers."""

    levels: tuple[str, ...]
    """Names of the levels of the columns."""
    columns: list[tuple[str, ...]]
    """A name per level."""
    rows: list[tuple[str, ...]]
    """Names of the rows, one per level."""
    values: np.ndarray
    """float64 `[rows, columns]`."""


def entries(path: Path) -> list[str]:
    """Return the names of what a file holds at its top; [] if it is not readable, which `read` explains."""
    try:
        import h5py

        with h5py.File(path, "r", locking=False) as file:
            return list(file)
    except Exception:  # damage may raise anything
        return []


def read(path: Path) -> Frame:
    """Read the only data frame of a file, in pandas' format `table` or `fixed`.

    Raises:
        InputError: h5py is not installed, or the file is damaged, holds no or several data frames, or more than
            numbers and names.
    """
    try:
        import h5py
    except ImportError as error:
        raise errors.InputError(
            f"the points file {str(path)!r} is HDF5, and h5py is not installed: pip install 'genenc[hdf5]', or pass "
            "the CSV that DeepLabCut writes beside it"
        ) from error
    try:
        with h5py.File(path) as file:
            found = [group for group in file.values() if "pandas_type" in group.attrs]
            if len(found) != 1:
                raise ValueError(f"it holds {len(found)} data frames of pandas, beside {', '.join(file) or 'nothing'}")
            frame = _of_table(found[0]) if "table" in found[0] else _fixed(found[0])
    except MemoryError:
        raise
    except Exception as error:  # h5py and damaged pickles may raise anything
        raise errors.InputError(
            f"the points file {str(path)!r} is HDF5, but not readable as labels of DeepLabCut "
            f"({str(error).splitlines()[0] if str(error) else type(error).__name__}), and no analysis file of SLEAP. "
            "Pass the CSV beside it"
        ) from error
    return frame


def _of_table(group: Any) -> Frame:
    """Return a frame stored as `table`: one record per row."""
    table = group["table"]
    _refuse_large(table.shape[0] * max(table.dtype.itemsize // 8, 1))
    blocks = [name for name in table.dtype.names if name.startswith("values_block_")]
    axis = _unpickled(group.attrs["non_index_axes"])[0][0]
    information = _unpickled(group.attrs["info"])[axis]
    levels = tuple(str(name) for name in information.get("names") or [information.get("index_name")])
    columns = [column for block in blocks for column in _unpickled(table.attrs[f"{block}_kind"])]
    rows = table[()]
    values = np.concatenate([np.asarray(rows[block], np.float64).reshape(len(rows), -1) for block in blocks], axis=1)
    index = [name for name in table.dtype.names if name not in blocks]
    return _frame(levels, columns, list(zip(*(_texts(rows[name]) for name in index), strict=True)), values)


def _fixed(group: Any) -> Frame:
    """Return a frame stored as `fixed`: an array per axis and block."""
    _refuse_large(sum(int(np.prod(group[name].shape)) for name in group if name.endswith("_values")))
    levels, axis = _axis(group, "axis0")
    _, index = _axis(group, "axis1")
    blocks = range(int(group.attrs["nblocks"]))
    columns = [column for block in blocks for column in _axis(group, f"block{block}_items")[1]]
    values = np.concatenate([np.asarray(group[f"block{block}_values"][()], np.float64) for block in blocks], axis=1)
    order = [columns.index(column) for column in axis]
    return _frame(levels, axis, index, values[:, order])


def _axis(group: Any, name: str) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Return names of the levels and the entries of an axis."""
    if name in group:
        return (_text(group[name].attrs.get("name", b"")),), [(text,) for text in _texts(group[name][()])]
    at = range(int(group.attrs[f"{name}_nlevels"]))
    levels = [group[f"{name}_level{level}"] for level in at]
    codes = [group[f"{name}_label{level}"][()] for level in at]
    texts = [_texts(level[()]) for level in levels]
    # A code of -1 is a missing name.
    found = [[known[code] if code >= 0 else "" for code in own] for known, own in zip(texts, codes, strict=True)]
    return tuple(_text(level.attrs.get("name", b"")) for level in levels), list(zip(*found, strict=True))


def _frame(
    levels: Sequence[str], columns: Sequence[Any], index: Sequence[tuple[str, ...]], values: np.ndarray
) -> Frame:
    named = [tuple(map(str, column)) if isinstance(column, tuple) else (str(column),) for column in columns]
    if values.shape != (len(index), len(named)) or any(len(column) != len(levels) for column in named):
        raise ValueError(f"{len(index)} rows and {len(named)} columns have values of the shape {list(values.shape)}")
    return Frame(tuple(levels), named, list(index), values)


def _texts(values: np.ndarray) -> list[str]:
    if values.dtype.kind not in "SUOiuf":
        raise ValueError(f"names of the type {values.dtype}")
    if values.dtype.kind == "O":
        raise ValueError("names are pickled objects, which could run code")
    return [value.decode() if isinstance(value, bytes) else str(value) for value in values.tolist()]


def _text(value: object) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def _refuse_large(cells: int) -> None:
    if cells > LARGEST_TABLE:
        raise ValueError(f"it has {cells:,} cells, more than {LARGEST_TABLE:,}")


class _Plain(pickle.Unpickler):
    """Reads lists, tuples, dictionaries, text and numbers; nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        raise pickle.UnpicklingError(f"it names {module}.{name}, which could run code")


def _unpickled(data: Any) -> Any:
    if not isinstance(data, bytes):
        raise ValueError(f"an attribute is a {type(data).__name__}, not a pickle")
    return _Plain(io.BytesIO(bytes(data))).load()
