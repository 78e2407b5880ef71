"""Further columns of a list, of a table of images or of frames, as coordinates of a run."""

import re
from collections.abc import Collection, Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from genenc_core.images.sources import manifest, manifest_rows
from genenc_core.store import layout

_INTEGER = r"^-?(0|[1-9][0-9]*)$"
_NUMBER = r"^-?(0|[1-9][0-9]*)(\.[0-9]*)?([eE][+-][0-9]{1,3})?$|^-?[0-9]\.[0-9]*[eE][0-9]{1,3}$|^(nan|NaN|-?inf)$"
_DECIMALS = r"^-?[0-9]+\.(?P<decimals>[0-9]*)$"
_LARGE = r"^-?[0-9]{16,}$"
_LARGEST_EXACT = 2**53
"""Up to here float64 holds every whole number."""


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

    Whole numbers become int64, with empty cells among them float64; other numbers float64, where an empty cell is NaN.
    Anything else stays text, as do numbers that may be names, or are not told apart as numbers: with leading zeros or
    signs, as `1E5`, with zeros at the end among others with fewer decimals (`1.1`, `1.10`), whole ones that the type
    does not hold.
    """
    found: list[layout.CoordinatePlan] = []
    for column, name in names(listed, taken).items():
        kind = _kind(listed, column)
        attributes = {"long_name": f"column {column!r} of the list"}
        values = _values(listed, column, kind)
        found.append(layout.CoordinatePlan(name=name, dims=("image",), kind=kind, values=values, attributes=attributes))
    return found


class _Texts:
    """What the cells of a column so far may be."""

    def __init__(self) -> None:
        self.whole = self.number = self.exact = self.fits = True
        self.empty = self.some = self.padded = False
        self.decimals: set[int] = set()

    def add(self, texts: pa.Array) -> None:
        """Look at more cells."""
        missing = pc.equal(texts, "")
        self.empty |= bool(pc.any(missing).as_py())
        filled = texts.filter(pc.invert(missing))
        self.some |= len(filled) > 0
        self.number = self.number and _all_match(filled, _NUMBER)
        self.whole = self.whole and self.number and _all_match(filled, _INTEGER)
        if self.number:
            self._add_numbers(filled)

    def _add_numbers(self, texts: pa.Array) -> None:
        large = [int(text) for text in texts.filter(pc.match_substring_regex(texts, _LARGE)).to_pylist()]
        self.fits &= all(-(2**63) <= value < 2**63 for value in large)
        self.exact &= all(abs(value) <= _LARGEST_EXACT for value in large)
        decimals = pc.drop_null(pc.struct_field(pc.extract_regex(texts, _DECIMALS), "decimals"))
        self.padded |= bool(pc.any(pc.match_substring_regex(decimals, r"^0{2,}$|[1-9]0+$")).as_py())
        self.decimals.update(pc.unique(pc.binary_length(decimals)).to_pylist())

    @property
    def kind(self) -> str:
        """The type of the coordinate."""
        if not self.some or not self.number:
            return "string"
        if self.whole and not self.empty:
            return "int64" if self.fits else "string"
        return "string" if not self.exact or (self.padded and len(self.decimals) > 1) else "float64"


def _all_match(texts: pa.Array, pattern: str) -> bool:
    return bool(pc.all(pc.match_substring_regex(texts, pattern), min_count=0).as_py())


def _kind(listed: manifest.Manifest, column: str) -> str:
    found = _Texts()
    for block in listed.iter_columns([manifest_rows.COLUMN + column]):
        found.add(block.column(0))
    return found.kind


def _values(listed: manifest.Manifest, column: str, kind: str) -> Iterator[list[str] | np.ndarray]:
    for block in listed.iter_columns([manifest_rows.COLUMN + column]):
        texts = block.column(0)
        if kind == "string":
            yield texts.to_pylist()
        elif kind == "int64":
            yield texts.cast(pa.int64()).to_numpy(zero_copy_only=False)
        else:
            yield np.array([float(text) if text else np.nan for text in texts.to_pylist()], np.float64)
