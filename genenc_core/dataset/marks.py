"""Marks of versions that are pruned: `versions/v000003.pruned.json`.

A mark is made before anything is removed, first as `about to be`: it can still be taken back, and readers do not mind
it. Holds and tags are read only after it was made, and whoever sets a tag looks for marks only after its hold was
written (`tags`): one of both sees the other. As `pruned` it stays for ever, and the parts go. One prune at a time
writes marks.
"""

from typing import Final

from genenc_core import errors
from genenc_core.dataset import documents
from genenc_core.run import records
from genenc_core.store import run_store
from genenc_core.store.backends.objects import Objects, join

ABOUT_TO_BE: Final = "about to be"
PRUNED: Final = "pruned"


def make(objects: Objects, number: int, state: str) -> None:
    """Make or replace the mark of a version; call only while holding the lock of `prune`."""
    records.write_json(
        objects, documents.pruned_key(number), {"version": number, "state": state, "time": records.now()}
    )


def take_back(objects: Objects, number: int) -> None:
    """Remove the mark of a version that is kept after all; call only while holding the lock of `prune`."""
    key = documents.pruned_key(number)
    with run_store.disk_errors(join(objects.name, key)):
        objects.remove(key)


def state(objects: Objects, number: int) -> str | None:
    """Return the state of a version's mark; None if it has none.

    Raises:
        StoreError: the mark is damaged.
    """
    return str(found["state"]) if (found := _read(objects, number)) else None


def pruned_on(objects: Objects, number: int) -> str | None:
    """Return when a version was pruned, as ISO 8601; None if it was not.

    Raises:
        StoreError: the mark is damaged.
    """
    found = _read(objects, number)
    return str(found["time"]) if found and found["state"] == PRUNED else None


def _read(objects: Objects, number: int) -> dict[str, object] | None:
    key = documents.pruned_key(number)
    with run_store.read_errors(objects.name):
        if objects.kind(key) is None:
            return None
    try:
        found = records.read_json(objects, key)
    except errors.StoreError as error:
        if isinstance(error.__cause__, FileNotFoundError):  # taken back meanwhile
            return None
        raise
    if found.get("version") != number or found.get("state") not in (ABOUT_TO_BE, PRUNED) or "time" not in found:
        raise errors.StoreError(
            f"{join(objects.name, key)!r} is damaged: it is not the mark of version {number}; genenc prune writes it "
            "again once the file is deleted"
        )
    return found
