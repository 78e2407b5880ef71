"""What a report is of: opened rows, their title and shards; and that nothing is written among them."""

from pathlib import Path

import numpy as np

from genenc_core import errors, text
from genenc_core.store.backends.objects import Root, is_remote
from genenc_core.stored import rows as stored_rows
from genenc_core.stored.rows import Stored


def open_rows(place: Root, version: int | str | None = None) -> Stored:
    """Open a run, or a version of a dataset, the newest by default.

    Raises:
        InputError: neither is there, there is no such version, or it has no rows.
        StoreError: it is damaged.
    """
    found = stored_rows.open_rows(place, version)
    if not len(found):
        raise errors.InputError(f"{found.title!r} has no rows: there is nothing to see")
    return found


def title(stored: Stored) -> str:
    """Return a display name: that of the folder, and the version."""
    version = "" if stored.version is None else f", version {stored.version}"
    return text.title(text.place(stored.place)) + version


def shards(stored: Stored, rows: np.ndarray) -> tuple[np.ndarray, list[str]]:
    """Return the number of the shard that each of some rows is stored in, and the names of all shards."""
    names: list[str] = []
    numbers = np.empty(len(rows), np.int64)
    for part in stored.parts:
        here, store = part.held(rows), part.run.store
        numbers[here] = len(names) + part.rows[rows[here] - part.positions[:1]] // store.plan.shard_rows
        names += [f"{part.name}/{shard}" if part.name else str(shard) for shard in range(store.shard_count)]
    return numbers, names


def refuse_inside(out: Path, place: str) -> None:
    """Refuse a file or folder to write that is what is looked at, or lies in it.

    Raises:
        InputError: so it is.
    """
    if not is_remote(place) and out.resolve().is_relative_to(Path(place).resolve()):
        raise errors.InputError(f"--out {str(out)!r} is in {place!r}, where nothing may change: give a place beside it")
