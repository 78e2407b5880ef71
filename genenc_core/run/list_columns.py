"""Further columns of a list, of a table of images or of frames, as coordinates of a run."""

import re
from collections.abc import Collection, Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from genenc_core.images.sources import manifest, manifest_rows
from genenc_core.store import layout

_INTEGER = r"^-?(0|[1-9][0-9]{0,17})$"
_NUMBER = r"^-?(0|[1-9][0-9]*)(\.[0-9]*)?([eE][+-]?[0-9]{1,3})?$|^(nan|NaN|-?inf)$"


def names(listed: manifest.Manifest, taken: Collection[str]) -> dict[str, str]:
    """Return column -> the name of its coordinate, which is none of `taken`."""
    found: dict[str, str] = {}
    for column in listed.columns:
        name = re.sub(r"[^A-Za-z0-9_-]+", "_", column).strip("_") or "column"
        while name in taken or name in found.values():
            name += "_column"
        found[column] = name
    return found


def coordinates(listed: manifest.Manifest, taken: Collection[str]) -> list[layout.CoordinatePlan]:
    """Return the coordinates, typed by their texts.

    Whole numbers become int64, with empty cells among them float64; other numbers float64, where an empty cell is NaN;
    anything else stays text, as do numbers with leading zeros or signs, which may be names.
    """
    found: list[layout.CoordinatePlan] = []
    for column, name in names(listed, taken).items():
        kind = _kind(listed, column)
        attributes = {"long_name": f"column {column!r} of the list"}
        values = _values(listed, column, kind)
        found.append(layout.CoordinatePlan(name=name, dims=("image",), kind=kind, values=values, attributes=attributes))
    return found


def _kind(listed: manifest.Manifest, column: str) -> str:
    whole, number, empty, some = True, True, False, False
    for block in listed.iter_columns([manifest_rows.COLUMN + column]):
        texts = block.column(0)
        missing = pc.equal(texts, "")
        empty |= bool(pc.any(missing).as_py())
        filled = texts.filter(pc.invert(missing))
        some |= len(filled) > 0
        whole = whole and bool(pc.all(pc.match_substring_regex(filled, _INTEGER), min_count=0).as_py())
        number = number and bool(pc.all(pc.match_substring_regex(filled, _NUMBER), min_count=0).as_py())
    if not some or not number:
        return "string"
    return "int64" if whole and not empty else "float64"


def _values(listed: manifest.Manifest, column: str, kind: str) -> Iterator[list[str] | np.ndarray]:
    for block in listed.iter_columns([manifest_rows.COLUMN + column]):
        texts = block.column(0)
        if kind == "string":
            yield texts.to_pylist()
        elif kind == "int64":
            yield texts.cast(pa.int64()).to_numpy(zero_copy_only=False)
        else:
            yield np.array([float(text) if text else np.nan for text in texts.to_pylist()], np.float64)
