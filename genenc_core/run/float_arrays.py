"""An opened xarray Dataset with values where arrays are stored as integers, still read lazily."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
import xarray
from xarray.backends import BackendArray
from xarray.core import indexing

from genenc_core import errors, float_values

_ANCILLARY = "ancillary_variables"


def decoded(opened: xarray.Dataset) -> xarray.Dataset:
    """Return the dataset with float32 values in place of stored integers, and without the arrays beside them.

    Nothing is read: a selection of values reads the same selection of the integers and what scales them.

    Raises:
        StoreError: an array beside one of integers is missing, or has other axes.
    """
    replaced: dict[str, xarray.Variable] = {}
    gone: list[str] = []
    for name, variable in opened.variables.items():
        names = float_values.beside(variable.attrs)
        if not names:
            continue
        if missing := [each for each in names.values() if each not in opened.variables]:
            raise errors.StoreError(f"{name!r} is stored as integers, but {missing[0]!r} is missing: restore the store")
        replaced[str(name)] = _values(variable, {suffix: opened.variables[each] for suffix, each in names.items()})
        gone += names.values()
    return opened.drop_vars(gone).assign(replaced) if replaced else opened


def _values(whole: xarray.Variable, beside: Mapping[str, xarray.Variable]) -> xarray.Variable:
    known = {f"genenc_{suffix}" for suffix in beside}
    attrs = {name: value for name, value in whole.attrs.items() if name not in (*known, float_values.COMMENT)}
    if ancillary := str(attrs.get(_ANCILLARY, "")).split():
        names = {whole.attrs[name] for name in known}
        attrs[_ANCILLARY] = " ".join(name for name in ancillary if name not in names)
    if whole.chunks is not None:
        found = whole.astype(np.float32) * beside["scale"]
        found = found + beside["offset"] if "offset" in beside else found
        made: xarray.Variable = found.transpose(*whole.dims)
        return made._replace(attrs=attrs)
    data = indexing.LazilyIndexedArray(_Decoded(whole, beside))
    return xarray.Variable(whole.dims, data, attrs)


@dataclasses.dataclass(eq=False)
class _Decoded(BackendArray):
    """Values of integers that xarray has not read yet."""

    whole: xarray.Variable
    beside: Mapping[str, xarray.Variable]

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the integers."""
        return self.whole.shape

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of the values."""
        return np.dtype(np.float32)

    def __getitem__(self, key: indexing.ExplicitIndexer) -> Any:
        return indexing.explicit_indexing_adapter(key, self.shape, indexing.IndexingSupport.OUTER, self._read)

    def _read(self, key: tuple[Any, ...]) -> np.ndarray:
        # Axes that a number selects are dropped at the end: the axis of the channels must stay until then.
        kept = tuple(slice(at, at + 1 or None) if isinstance(at, int | np.integer) else at for at in key)
        by_dim = dict(zip(self.whole.dims, kept, strict=True))
        values = self.whole[kept]
        others = {
            suffix: variable[tuple(by_dim[dim] for dim in variable.dims)] for suffix, variable in self.beside.items()
        }
        found = float_values.decoded(
            np.asarray(values.values),
            [str(dim) for dim in values.dims],
            {suffix: np.asarray(variable.values) for suffix, variable in others.items()},
            [str(dim) for dim in others["scale"].dims],
        )
        return found[tuple(0 if isinstance(at, int | np.integer) else slice(None) for at in key)]
