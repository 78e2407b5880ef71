"""Where the rows of compacted parts come from: `provenance/compacted.json` of the part.

It names the parts that were copied, and for every row the part and row that an update encoded, also where the part that
was copied had been compacted itself: those parts may be gone by now.
"""

from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

import numpy as np
import pydantic

from genenc_core import errors
from genenc_core.dataset import documents
from genenc_core.dataset.documents import Part
from genenc_core.dataset.folder import DatasetFolder
from genenc_core.run import records
from genenc_core.store.backends.objects import Objects, join, open_objects
from genenc_core.system import digests

RECORD: Final = "provenance/compacted.json"
SCHEMA: Final = "genenc.compacted/1"
_THREADS: Final = 16
Places = tuple[np.ndarray, np.ndarray]
"""Numbers of parts and rows in them, int64 `[n]` each."""


class _Source(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(strict=True, frozen=True)

    name: str = pydantic.Field(pattern="^p[0-9]{6,9}$")
    store: str
    values: str
    rows: pydantic.NonNegativeInt
    """Current rows that were copied."""
    root: str
    """Folder of its images when they were listed."""


class Compacted(pydantic.BaseModel):
    """What a compacted part was copied from."""

    model_config = _Source.model_config

    schema_: str = pydantic.Field(default=SCHEMA, alias="schema", pattern="^genenc.compacted/1$")
    sources: list[_Source]
    changes: str
    """Digest of the row changes of these parts: names, sizes, times, and which rows are current."""
    rows: list[tuple[pydantic.PositiveInt, pydantic.NonNegativeInt, pydantic.PositiveInt]]
    """For its rows in order: part that encoded them, first row in it, number of rows."""
    roots: list[tuple[str, pydantic.PositiveInt]] | None = None
    """For its rows in order: folder of their images, number of rows; None: those of the sources."""

    def places(self) -> Places:
        """Return by which part each row was encoded, and as which row."""
        runs = np.array(self.rows, np.int64).reshape(-1, 3)
        first = np.repeat(runs[:, 1] - np.cumsum(runs[:, 2]) + runs[:, 2], runs[:, 2])
        return np.repeat(runs[:, 0], runs[:, 2]), first + np.arange(len(first))

    @property
    def names(self) -> list[str]:
        """Names of the parts that were copied."""
        return [source.name for source in self.sources]

    def as_json(self) -> dict[str, Any]:
        """Return the record as JSON data."""
        return self.model_dump(mode="json", by_alias=True, exclude_none=True)

    def roots_of_rows(self) -> list[tuple[str, int]]:
        """Return for its rows in order: folder of their images, number of rows."""
        return [(source.root, source.rows) for source in self.sources] if self.roots is None else self.roots

    def number(self) -> int:
        """Return the number of the part with this content: who copies the same rows fills the same part."""
        wanted = int(digests.ROW_CHANGES.hex(digests.canonical_json(self.as_json()).encode())[:12], 16)
        return documents.FIRST_COMPACTED + wanted % (10**9 - documents.FIRST_COMPACTED)


def source(part: Part, *, rows: int, root: str) -> Mapping[str, object]:
    """Return the entry of a part that is copied."""
    return {"name": part.name, "store": part.store, "values": part.values, "rows": rows, "root": root}


def to_runs(places: Places) -> list[tuple[int, int, int]]:
    """Return places as runs of consecutive rows; the reverse of `Compacted.places`."""
    part, row = places
    starts = np.flatnonzero(np.r_[True, (np.diff(part) != 0) | (np.diff(row) != 1)][: len(part)])
    counts = np.diff(np.r_[starts, len(part)])
    return list(zip(part[starts].tolist(), row[starts].tolist(), counts.tolist(), strict=True))


def read(objects: Objects) -> Compacted:
    """Return the record of a compacted part.

    Raises:
        StoreError: missing or damaged.
    """
    where = join(objects.name, RECORD)
    try:
        return Compacted.model_validate_json(digests.canonical_json(records.read_json(objects, RECORD)))
    except pydantic.ValidationError as error:
        raise errors.StoreError(f"{where!r} is damaged: {errors.reason(error)}; restore it from a copy") from error


def of_parts(folder: DatasetFolder, numbers: Iterable[int]) -> dict[int, Compacted]:
    """Return the records of compacted parts by number, read together and once per opened dataset; raises as `read`."""
    wanted = list(numbers)
    unread = [number for number in wanted if number not in folder.origins]
    with ThreadPoolExecutor(_THREADS) as pool:
        found = pool.map(lambda number: read(open_objects(folder.part_root(documents.part_name(number)))), unread)
        folder.origins.update(zip(unread, found, strict=True))
    return {number: folder.origins[number] for number in wanted}


def resolved(folder: DatasetFolder, part: np.ndarray, row: np.ndarray) -> Places:
    """Return by which parts rows were encoded, and as which rows, for rows that may be in compacted parts.

    Raises:
        StoreError: the record of a compacted part is missing or damaged.
    """
    part, row = part.astype(np.int64), row.astype(np.int64)
    for number, record in of_parts(folder, np.unique(part[part >= documents.FIRST_COMPACTED]).tolist()).items():
        where = np.flatnonzero(part == number)
        encoded = record.places()
        if len(where) and row[where].max() >= len(encoded[0]):
            raise errors.StoreError(f"{RECORD!r} of {documents.part_name(number)!r} is damaged: it has too few rows")
        part[where], row[where] = (values[row[where]] for values in encoded)
    return part, row
