"""Pruning: remove parts, and other files, that no kept version needs.

Kept are the newest version, those asked for, and those with a tag. The documents of the others stay, since each version
names the digest of the one before; a mark says that their rows are gone (`marks`).

One prune at a time works on a dataset (`prune.lock`, as for repairs). Its steps, each durable before the next:

1. mark the versions as about to be pruned; then read holds and tags, and take back the mark of a version that has one;
2. mark them as pruned, for good, and write down in `prune.json` what is removed;
3. remove that, then `prune.json`.

Killed before 2, the next prune decides again; after it, it removes what `prune.json` names, and goes on.

A part is removed only if no version can ever get it again. A part of an update is needed until a version has it or
passed over it (its number is above `last_part` of the newest version), however old it is and whoever holds it: a killed
update is continued by the next one. An unfinished compaction is of no use any more once one of the parts that it copies
has left the newest version, since parts never come back. What has no store yet may just be in
creation, and stays, unless its lock tells on a local disk that its creation was killed.
"""

import contextlib
import dataclasses
import os
import socket
from collections.abc import Iterator, Mapping
from typing import Any, Final

from genenc_core import errors
from genenc_core.dataset import documents, marks, origins, tags
from genenc_core.dataset.documents import Version
from genenc_core.dataset.folder import DatasetFolder
from genenc_core.run import out_folder, records
from genenc_core.store import run_store
from genenc_core.store.backends.objects import join, open_objects

LOCK: Final = "prune.lock"
JOURNAL: Final = "prune.json"
_FOLDERS: Final = ("", documents.VERSIONS, documents.TAGS)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Removed:
    """A part or file that was, or would be, removed."""

    place: str
    """Relative to the dataset."""
    bytes: int
    why: str


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Pruned:
    """Outcome of a prune."""

    folder: DatasetFolder
    dry_run: bool
    """Whether nothing was changed."""
    kept: tuple[int, ...]
    """Versions that still open."""
    versions: tuple[int, ...]
    """Versions pruned now."""
    removed: tuple[Removed, ...]
    left: tuple[Removed, ...]
    """Parts that no version has and that stay, and holds that keep a version, with the reason."""

    @property
    def bytes(self) -> int:
        """Bytes of all that was removed."""
        return sum(item.bytes for item in self.removed)


def prune(folder: DatasetFolder, *, keep: int, dry_run: bool = False) -> Pruned:
    """Remove what only other versions need than the last `keep`, and those with a tag.

    Args:
        folder: the dataset.
        keep: newest versions to keep, at least 1.
        dry_run: change nothing, only tell what would be removed.

    Raises:
        InputError: `keep` is below 1.
        StoreError: a document is damaged (nothing was removed), a file cannot be removed, or another prune is running.
    """
    if keep < 1:
        raise errors.InputError(f"--keep {keep} leaves no version: give at least 1")
    if dry_run:
        survey = _Survey(folder, keep)
        return survey.outcome(survey.chosen, dry_run=True)
    with _alone(folder):
        return _prune(folder, keep)


def _prune(folder: DatasetFolder, keep: int) -> Pruned:
    survey = _Survey(folder, keep)
    for number in survey.chosen:
        marks.make(folder.objects, number, marks.ABOUT_TO_BE)
    folder.objects.sync(*([documents.VERSIONS] if survey.chosen else []))
    tagged = _tagged(folder)
    for number in survey.marked | survey.chosen:
        if number in tagged or number not in survey.chosen:
            marks.take_back(folder.objects, number)
    pruned = survey.chosen - tagged
    for number in sorted(pruned):
        marks.make(folder.objects, number, marks.PRUNED)
    outcome = survey.outcome(pruned, dry_run=False)
    places = [item.place for item in outcome.removed if item.place not in survey.abandoned]
    if places or survey.begun:
        records.write_json(folder.objects, JOURNAL, {"remove": places})
        for place in places:
            _remove(folder, place)
        with run_store.disk_errors(f"{JOURNAL} of {folder.root!r}"):
            folder.objects.remove(JOURNAL)
    for place in survey.abandoned:
        out_folder.remove_abandoned(folder.part_root(place.rpartition("/")[2]))
    return outcome


class _Survey:
    """What a dataset holds, and which versions are to be pruned."""

    def __init__(self, folder: DatasetFolder, keep: int) -> None:
        self.folder = folder
        numbers = folder.versions()  # before everything else: later versions need only what is kept for the newest
        self.versions = {number: documents.read_version(folder.objects, number).version for number in numbers}
        found = {number: marks.state(folder.objects, number) for number in _marked(folder)}
        self.gone = {number for number, state in found.items() if state == marks.PRUNED}
        self.marked = {number for number, state in found.items() if state == marks.ABOUT_TO_BE}
        self.chosen = set(numbers[:-keep]) - self.gone - _tagged(folder)
        self.begun = _journal(folder)
        """What a killed prune was about to remove."""
        self.abandoned: set[str] = set()
        """Parts whose creation was killed: they are not in the journal, as it may begin again."""

    @property
    def head(self) -> Version | None:
        return self.versions[max(self.versions)] if self.versions else None

    def outcome(self, pruned: set[int], *, dry_run: bool) -> Pruned:
        """Return what is removed when these versions are pruned."""
        kept = sorted(self.versions.keys() - self.gone - pruned)
        needed = {part.name for number in kept for part in self.versions[number].parts}
        for place in self.begun:
            if place.removeprefix(f"{documents.PARTS}/") in needed:
                raise errors.StoreError(
                    f"{join(self.folder.root, JOURNAL)!r} is damaged: it names {place!r}, which a kept version has; "
                    "delete it, and prune again"
                )
        had = {part.name for version in self.versions.values() for part in version.parts}
        removed: list[Removed] = []
        left: list[Removed] = []
        for number in self.folder.parts():
            name = documents.part_name(number)
            if name not in needed:
                place = f"{documents.PARTS}/{name}"
                why, stays = ("only pruned versions have it", False) if name in had else self._unlisted(number, place)
                (left if stays else removed).append(Removed(place=place, bytes=self._bytes(place), why=why))
        ended, held = tags.left_holds(self.folder), tags.holds(self.folder)
        left += [
            Removed(
                place=key,
                bytes=self._bytes(key),
                why=f"it keeps version {number} while a tag is set; if no command is setting one, delete the file",
            )
            for key, number in held.items()
            if key not in ended
        ]
        removed += [Removed(place=key, bytes=self._bytes(key), why="left by a killed process") for key in sorted(ended)]
        removed += self._files({self.versions[number].changes for number in kept})
        known = {item.place for item in removed}
        removed += [
            Removed(place=place, bytes=self._bytes(place), why="a prune was killed while it removed it")
            for place in self.begun
            if place not in known and self._bytes(place)
        ]
        return Pruned(
            folder=self.folder,
            dry_run=dry_run,
            kept=tuple(kept),
            versions=tuple(sorted(pruned)),
            removed=tuple(removed),
            left=tuple(left),
        )

    def _unlisted(self, number: int, place: str) -> tuple[str, bool]:
        """Return what a part is that no version has, and whether it stays."""
        if place in self.begun:
            return "a prune was killed while it removed it", False
        if self.head is None:
            return "unfinished; the next update continues it", True
        name, is_compacted = documents.part_name(number), documents.is_compacted(number)
        if not is_compacted and number <= self.head.last_part:
            return "a version passed over it", False
        if not self.folder.part_exists(name):
            if out_folder.is_abandoned(self.folder.part_root(name)):
                self.abandoned.add(place)
                return f"creation by {'a compaction' if is_compacted else 'an update'} that was killed", False
            if not is_compacted:
                return "creation by an update that has not ended; the next one continues it, or passes over it", True
            where = join(self.folder.root, place)
            return (
                f"creation by a compaction that has not ended; if none is running, delete {where!r}",
                True,
            )
        if not is_compacted:
            return "unfinished; the next update continues it, or passes over it", True
        sources = origins.read(open_objects(self.folder.part_root(name))).names
        if set(sources) <= {part.name for part in self.head.parts}:
            return "unfinished compaction; the next one of these parts continues it", True
        return "an unfinished compaction of parts that the newest version has no more", False

    def _files(self, kept: set[Any]) -> Iterator[Removed]:
        """Yield files of row changes that no kept version has, and what killed processes left."""
        needed = {changes.file for changes in kept if changes is not None}
        newest = max(self.versions, default=0)
        for name in sorted(self.folder.names(documents.VERSIONS)):
            place = f"{documents.VERSIONS}/{name}"
            number = documents.changes_number(name)
            if number is not None and number <= newest and name not in needed:  # a later one may be about to be named
                yield Removed(place=place, bytes=self._bytes(place), why="row changes that no kept version has")
        for above in _FOLDERS:
            # A live process whose file is removed writes it again.
            for name in sorted(filter(_is_partial, self.folder.names(above))):
                place = f"{above}/{name}".lstrip("/")
                yield Removed(place=place, bytes=self._bytes(place), why="left by a killed process")

    def _bytes(self, place: str) -> int:
        with run_store.read_errors(self.folder.root):
            try:
                if not place.startswith(f"{documents.PARTS}/"):
                    return self.folder.objects.size(place) or 0
                return sum(size for _, size in self.folder.objects.walk(place))
            except FileNotFoundError:
                return 0


def _remove(folder: DatasetFolder, place: str) -> None:
    """Remove a part or file; where it cannot be removed whole, the next prune goes on."""
    objects = folder.objects
    with run_store.disk_errors(f"removing {join(folder.root, place)!r}"):
        if not place.startswith(f"{documents.PARTS}/"):
            objects.remove(place)
            return
        objects.remove_tree(place)
        left = [] if place.rpartition("/")[2] not in folder.names(documents.PARTS) else [*objects.walk(place)]
        if left:
            raise errors.StoreError(
                f"{join(folder.root, place)!r} cannot be removed whole ({left[0][0]!r} is left): see to its "
                "permissions, and prune again"
            )


def _journal(folder: DatasetFolder) -> list[str]:
    """Return what a killed prune was about to remove."""
    with run_store.read_errors(folder.root):
        if folder.objects.kind(JOURNAL) is None:
            return []
    found = records.read_json(folder.objects, JOURNAL).get("remove")
    places = list(map(str, found)) if isinstance(found, list) else []
    if not isinstance(found, list) or not all(map(_is_removable, places)):
        raise errors.StoreError(
            f"{join(folder.root, JOURNAL)!r} is damaged: it does not name parts and files of the dataset; delete it, "
            "and prune again"
        )
    return places


def _is_removable(place: str) -> bool:
    """Return whether a place is a part's, or that of a file that a prune may remove."""
    above, _, name = place.rpartition("/")
    if above == documents.PARTS:
        return documents.part_number(name) is not None
    if above == documents.VERSIONS and documents.changes_number(name) is not None:
        return True
    if above == documents.TAGS and documents.held_number(name) is not None:
        return True
    return above in _FOLDERS and _is_partial(name)


def _is_partial(name: str) -> bool:
    """Return whether a file has the name of one that is being written."""
    return name.startswith(".") and name.endswith(".partial")


def _tagged(folder: DatasetFolder) -> set[int]:
    """Return the versions that have a tag, or are about to get one.

    Raises:
        StoreError: a tag is damaged: what it keeps is not known.
    """
    left, held = tags.left_holds(folder), tags.holds(folder)  # before the tags: a hold is removed once its tag is there
    kept = {number for key, number in held.items() if key not in left}
    return kept | {tag.version for tag in tags.list_tags(folder)}


def _marked(folder: DatasetFolder) -> list[int]:
    return sorted(filter(None, map(documents.pruned_number, folder.names(documents.VERSIONS))))


@contextlib.contextmanager
def _alone(folder: DatasetFolder) -> Iterator[None]:
    """Be the only prune of a dataset."""
    note = f"process {os.getpid()} on {socket.gethostname()}, since {records.now()}\n"
    with run_store.disk_errors(f"the prune of {folder.root!r}"), contextlib.ExitStack() as held:
        try:
            held.enter_context(folder.objects.lock(LOCK, note.encode()))
        except FileExistsError as error:
            raise errors.StoreError(_already_running(folder)) from error
        yield


def _already_running(folder: DatasetFolder) -> str:
    try:
        holder = folder.objects.read(LOCK).decode(errors="replace").strip()[:200]
    except OSError:
        holder = "it has just ended"
    return (
        f"another prune of {folder.root!r} is running ({holder}): wait for it, then prune again. If that process is "
        f"gone, it was killed: delete {join(folder.root, LOCK)!r} first"
    )


def describe(outcome: Pruned) -> Mapping[str, Any]:
    """Return the outcome as JSON data."""
    lists = {name: [dataclasses.asdict(item) for item in getattr(outcome, name)] for name in ("removed", "left")}
    return {
        "dataset": outcome.folder.root,
        "dry_run": outcome.dry_run,
        "kept": list(outcome.kept),
        "pruned": list(outcome.versions),
        "bytes": outcome.bytes,
        **lists,
    }


def lines(outcome: Pruned) -> list[str]:
    """Return what the command prints."""
    would = "would be removed" if outcome.dry_run else "removed"
    found = [f"{item.place}: {item.bytes} bytes {would}, {item.why}" for item in outcome.removed]
    found += [f"{item.place}: stays, {item.why}" for item in outcome.left]
    kept = ", ".join(map(str, outcome.kept))
    return [*found, f"{len(outcome.removed)} removed, {outcome.bytes} bytes; versions that open: {kept}"]
