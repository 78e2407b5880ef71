"""Float values of arrays that are stored as integers with a scale, and perhaps an offset, per vector.

The attributes of such an array name the arrays beside it. CF's `scale_factor` and `add_offset` are one number for a
whole array, so readers of these see the integers as they are stored.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Final

import numpy as np

from genenc_core import stored_arrays

_PREFIX: Final = "genenc_"
COMMENT: Final = "comment"


def attributes(beside: Mapping[str, str]) -> dict[str, object]:
    """Return the attributes of an array; `beside` names the arrays by suffix: `scale`, perhaps `offset`."""
    offset = f" + {beside['offset']}" if "offset" in beside else ""
    comment = f"values = this array * {beside['scale']}{offset}, one of each per vector along the channels"
    return {**{f"{_PREFIX}{suffix}": name for suffix, name in beside.items()}, COMMENT: comment}


def beside(attrs: Mapping[str, object]) -> dict[str, str]:
    """Return the names of the arrays beside an array, by suffix, from its attributes; {} if it holds values itself."""
    companions = [each for arrays in stored_arrays.QUANTIZED.values() for each in arrays]
    found = {each.suffix: attrs.get(f"{_PREFIX}{each.suffix}") for each in companions}
    return {suffix: name for suffix, name in found.items() if isinstance(name, str)}


def decoded(
    values: np.ndarray, dims: Sequence[str], companions: Mapping[str, np.ndarray], companion_dims: Sequence[str]
) -> np.ndarray:
    """Return float32 values of stored integers.

    Args:
        values: the integers.
        dims: their axes.
        companions: the arrays beside them, by suffix.
        companion_dims: their axes: those of the values but one.
    """
    (axis,) = (at for at, dim in enumerate(dims) if dim not in companion_dims)
    found: np.ndarray = values.astype(np.float32)
    found *= np.expand_dims(companions["scale"], axis)
    if "offset" in companions:
        found += np.expand_dims(companions["offset"], axis)
    return found


def read(
    name: str,
    of: Callable[[str], np.ndarray],
    attrs: Callable[[str], Mapping[str, object]],
    dims: Callable[[str], Sequence[str]],
) -> np.ndarray:
    """Return the values of an array, decoded if it holds integers.

    Args:
        name: the array.
        of: returns an array by name.
        attrs: returns its attributes.
        dims: returns its axes.
    """
    names = beside(attrs(name))
    if not names:
        return of(name)
    return decoded(of(name), dims(name), {suffix: of(each) for suffix, each in names.items()}, dims(names["scale"]))
