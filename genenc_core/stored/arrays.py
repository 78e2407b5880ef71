"""What is known of a stored array before its rows are read."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from genenc_core import float_values, stored_arrays
from genenc_core.images.sources import manifest_rows

_TEXTS = frozenset(manifest_rows.TEXT_COLUMNS)


@dataclass(frozen=True, slots=True)
class Array:
    """One stored array, of all rows."""

    name: str
    dtype: np.dtype[Any]
    """Of its values."""
    shape: tuple[int, ...]
    """Of one row."""
    dims: tuple[str, ...]
    """Of one row."""
    chunk_rows: int
    """Rows that are decoded together."""
    attributes: Mapping[str, Any]
    stored_as: str
    """Type of the stored array, which may be integers with a scale."""

    @property
    def row_bytes(self) -> int:
        """Bytes of a row; of text, of its reference."""
        return self.dtype.itemsize * int(np.prod(self.shape, dtype=np.int64))

    @property
    def text(self) -> str:
        """As the run records a product, `NAME=[SLOT:]MODULE[+...]@TYPE`."""
        return str(self.attributes.get("genenc_product", ""))

    @property
    def slot(self) -> str:
        """The output slot that a product is of; "" if that is not recorded."""
        return str(self.attributes.get("long_name", "")).rpartition(" of output slot ")[2] if self.text else ""

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
        return self.dims[:1] == (stored_arrays.POINT,)


def described(name: str, opened: Any, chunk_rows: int) -> Array:
    """Return what a `zarr.Array` with a row per image is."""
    attributes = dict(opened.attrs)
    dtype = np.dtype(object) if name in _TEXTS or opened.dtype.kind in "TUO" else np.dtype(opened.dtype)
    dtype = np.dtype(np.float32) if float_values.beside(attributes) else dtype
    dims = tuple(map(str, opened.metadata.dimension_names[1:]))
    return Array(name, dtype, tuple(opened.shape[1:]), dims, int(chunk_rows), attributes, str(opened.dtype))


def is_per_image(opened: Any) -> bool:
    """Return whether a `zarr.Array` has a row per image."""
    return tuple(opened.metadata.dimension_names or ())[:1] == ("image",)
