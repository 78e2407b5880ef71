"""Tags: versions by name. A tag keeps its version from being pruned.

While a tag is being set, a hold keeps the version: a file of its own that the setter makes first and removes last. So a
tag that is written stays, and a setter that is refused has changed nothing.
"""

import contextlib
import dataclasses
from collections.abc import Iterator

from genenc_core import errors
from genenc_core.dataset import documents, marks
from genenc_core.dataset.folder import DatasetFolder
from genenc_core.run import records
from genenc_core.store import run_store
from genenc_core.store.backends.objects import is_remote
from genenc_core.system import proc


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Tag:
    """A tag as it stands."""

    name: str
    version: int
    time: str
    """When it was set, as ISO 8601; "" if that was not recorded."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Tagged:
    """Outcome of setting or removing a tag."""

    name: str
    before: int | None
    """The version that it named; None if it was new."""
    version: int | None
    """The version that it names now; None if it was removed."""


def list_tags(folder: DatasetFolder) -> tuple[Tag, ...]:
    """Return all tags, by name.

    Raises:
        StoreError: a tag is damaged, or the folder cannot be read.
    """
    return tuple(filter(None, (_read(folder, name) for name in folder.tags())))


def set_tag(folder: DatasetFolder, name: str, which: int | str | None = None) -> Tagged:
    """Let a tag name a version, the newest one by default; replaced atomically, the last of several wins.

    Raises:
        InputError: not a valid name, there is no such version, or it was or is being pruned.
        StoreError: the tag cannot be written.
    """
    key, number = documents.tag_key(name), folder.version(which).version
    before = _named(folder, name)
    with _held(folder, number):
        # Only now: a prune that marks the version later sees the hold, or the tag.
        _refuse_marked(folder, name, number)
        records.write_json(folder.objects, key, {"version": number, "time": records.now()})
    return Tagged(name=name, before=before, version=number)


def remove_tag(folder: DatasetFolder, name: str) -> Tagged:
    """Remove a tag; its version stays until it is pruned.

    Raises:
        InputError: there is no such tag.
        StoreError: it cannot be removed.
    """
    documents.tag_key(name)
    if name not in folder.tags():
        raise errors.InputError(
            f"{folder.root!r} has no tag {name!r}: nothing to remove; tags: {', '.join(folder.tags()) or 'none'}"
        )
    before = _named(folder, name)
    _remove(folder, name)
    return Tagged(name=name, before=before, version=None)


def _remove(folder: DatasetFolder, name: str) -> None:
    with run_store.disk_errors(f"the tag {name!r} of {folder.root!r}"):
        folder.objects.remove(documents.tag_key(name))
        folder.objects.sync(documents.TAGS)


def holds(folder: DatasetFolder) -> dict[str, int]:
    """Return the versions of which a tag is being set, by the keys of their holds; those of `left_holds` too."""
    found = {name: documents.held_number(name) for name in folder.names(documents.TAGS)}
    return {f"{documents.TAGS}/{name}": number for name, number in found.items() if number is not None}


def left_holds(folder: DatasetFolder) -> set[str]:
    """Return the keys of holds whose setters were killed, as far as it can be known: locally, on this machine.

    On S3 a request of a killed setter may still be carried out.
    """
    if is_remote(folder.root):
        return set()
    return {key for key in holds(folder) if _has_ended(folder, key)}


def _has_ended(folder: DatasetFolder, hold: str) -> bool:
    try:
        return proc.has_ended(records.read_json(folder.objects, hold).get("setter"))
    except errors.StoreError:
        return False


@contextlib.contextmanager
def _held(folder: DatasetFolder, number: int) -> Iterator[None]:
    """Keep a version from being pruned until the block ends, or this process is killed (see `left_holds`)."""
    key = documents.hold_key(number)
    try:
        held = {"version": number, "time": records.now(), "setter": proc.identity()}
        records.write_json(folder.objects, key, held)
        yield
    finally:
        with contextlib.suppress(OSError):
            folder.objects.remove(key)


def _refuse_marked(folder: DatasetFolder, name: str, number: int) -> None:
    if marks.state(folder.objects, number) is not None:
        raise errors.InputError(
            f"version {number} of {folder.root!r} is being pruned, so {name!r} was not set: tag another version, or "
            "try again when the prune has ended (if it was killed: after the next one)"
        )


def _named(folder: DatasetFolder, name: str) -> int | None:
    """Return the version that a tag names; None for none, or a damaged tag, which is then replaced or removed."""
    with contextlib.suppress(errors.StoreError):
        found = _read(folder, name)
        return None if found is None else found.version
    return None


def _read(folder: DatasetFolder, name: str) -> Tag | None:
    """Return a tag; None if there is none of this name."""
    found = documents.read_tag(folder.objects, name)
    return None if found is None else Tag(name=name, version=found[0], time=found[1])
