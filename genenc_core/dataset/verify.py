"""Verification of a dataset: documents, the chain of versions, parts, tags, and foreign files; read-only."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Final

from genenc_core import errors
from genenc_core.dataset import documents, marks, origins, part_arrays, parts, prune, publishing, rows
from genenc_core.dataset.documents import Part, Version, Written
from genenc_core.dataset.folder import DatasetFolder
from genenc_core.run import records, status
from genenc_core.run.folder import DOCUMENTS, RunFolder
from genenc_core.store import run_store
from genenc_core.store.backends import beneath
from genenc_core.text import argument

_COPY: Final = "restore it from a copy"
_OWN: Final = (documents.DATASET, documents.SETTINGS, publishing.README, prune.LOCK, prune.JOURNAL)
_FOLDERS: Final = (documents.PARTS, documents.VERSIONS, documents.TAGS)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """One deviation."""

    place: str
    """Relative to the dataset."""
    what: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.place}: {self.what}; {self.remedy}"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Verified:
    """Outcome of a verification."""

    folder: DatasetFolder
    versions: int
    """Versions that open."""
    pruned: int
    parts: int
    """Parts that were checked."""
    shards: int
    """Shards that were checked."""
    problems: tuple[Problem, ...]
    unlisted: tuple[str, ...]
    """Parts and row changes that no version has: unfinished, or left by killed processes until `prune` removes them.

    Not checked, and no problem.
    """

    @property
    def ok(self) -> bool:
        """Whether everything that a version needs is intact."""
        return not self.problems


def verify(folder: DatasetFolder, *, content: bool = False) -> Verified:
    """Check everything that the versions need that are not pruned.

    Args:
        folder: the dataset.
        content: also decode every stored object, as for runs.

    Raises:
        StoreError: the folder itself cannot be read.
    """
    return _Verification(folder, content).run()


class _Verification:
    """One call of `verify`."""

    def __init__(self, folder: DatasetFolder, content: bool) -> None:
        self.folder = folder
        self.content = content
        self.found: list[Problem] = []
        self.shards = 0

    def run(self) -> Verified:
        """Do the work."""
        self._meaning()
        names = {above: self.folder.names(above) for above in ("", *_FOLDERS)}
        numbers = sorted(filter(None, map(documents.version_number, names[documents.VERSIONS])))
        versions = self._chain(numbers)
        marked = self._marks(names[documents.VERSIONS], versions)
        kept = {number: version for number, version in versions.items() if marked.get(number) != marks.PRUNED}
        pruned = len([number for number in versions if number not in kept])
        for version in kept.values():
            self._changes(version)
        checked = self._parts(kept)
        if versions:  # a killed first update leaves less
            self._settings()
            self._readme(versions)
        self._tags(names[documents.TAGS], numbers, marked)
        self._foreign(names)
        numbered = filter(None, map(documents.part_number, names[documents.PARTS]))
        listed = {part.name for version in kept.values() for part in version.parts}
        unlisted = [name for name in map(documents.part_name, sorted(numbered)) if name not in listed]
        needed = {version.changes.file for version in versions.values() if version.changes}
        unlisted += [
            name for name in sorted(names[documents.VERSIONS]) if documents.changes_number(name) and name not in needed
        ]
        return Verified(
            folder=self.folder,
            versions=len(kept),
            pruned=pruned,
            parts=checked,
            shards=self.shards,
            problems=tuple(self.found),
            unlisted=tuple(unlisted),
        )

    def _add(self, place: str, what: object, remedy: str = _COPY) -> None:
        self.found.append(Problem(place=place, what=str(what), remedy=remedy))

    def _meaning(self) -> None:
        """Check `dataset.json`."""
        try:
            documents.read_meaning(self.folder.objects)
        except errors.StoreError as error:
            self._add(documents.DATASET, error)

    def _chain(self, numbers: list[int]) -> dict[int, Version]:
        """Return the versions whose documents are intact; each must name the digest of the one before."""
        read: dict[int, Written] = {}
        for number, last in zip(numbers, [0, *numbers], strict=False):
            key = documents.version_key(number)
            if number != last + 1:
                self._add(documents.version_key(last + 1), "missing, and later versions are there")
            try:
                read[number] = documents.read_version(self.folder.objects, number)
            except errors.StoreError as error:
                self._add(key, error)
        for number, written in read.items():
            before = read.get(number - 1)
            expected = before.digest if before else "" if number == 1 else None
            if expected not in (None, written.version.previous):
                self._add(
                    documents.version_key(number),
                    f"it does not name the digest of version {number - 1} as that stands: one of both was replaced",
                    "restore both from a copy",
                )
        return {number: written.version for number, written in read.items()}

    def _settings(self) -> None:
        """Check `update.json`, which holds what the next update takes."""
        if what := records.problem(self.folder.objects, documents.SETTINGS, earlier=False):
            self._add(documents.SETTINGS, what, f"{_COPY}, or delete it and give the next update all its options")

    def _readme(self, versions: Mapping[int, Version]) -> None:
        """Check that the version is there that the README is of; a killed update leaves that of one before."""
        try:
            number = publishing.readme_version(self.folder.objects.read(publishing.README).decode(errors="replace"))
        except (OSError, errors.StoreError):  # nothing depends on it
            return
        if number is None or number <= max(versions):
            return
        key = documents.version_key(number)
        with run_store.read_errors(self.folder.root):
            if self.folder.objects.size(key) is None:  # an update may have made it meanwhile
                self._add(key, f"missing, and {publishing.README} is of it")

    def _marks(self, names: list[str], versions: Mapping[int, Version]) -> dict[int, str]:
        """Return the state of every version with a mark."""
        found = {}
        for number in sorted(filter(None, map(documents.pruned_number, names))):
            key = documents.pruned_key(number)
            try:
                state = marks.state(self.folder.objects, number)
            except errors.StoreError as error:
                self._add(key, error, "restore it from a copy, or delete it if the version still opens then")
                continue
            if state is not None:
                found[number] = state
            if number not in versions or (state == marks.PRUNED and number == max(versions)):
                self._add(key, "a mark of the newest version, or of none", "delete it")
        return found

    def _changes(self, version: Version) -> None:
        place = version.key if version.changes is None else f"{documents.VERSIONS}/{version.changes.file}"
        try:
            changes = rows.read_changes(self.folder, version)
            current = int(rows.mask(version, changes).sum())
            rows.amendments(version, changes)
        except (errors.StoreError, ValueError) as error:
            self._add(place, error)
            return
        if current != version.counts.get("rows"):
            self._add(place, f"version {version.version} has {current} rows, and states {version.counts.get('rows')}")

    def _parts(self, kept: Mapping[int, Version]) -> int:
        """Check every part of versions; return their number."""
        entries: dict[str, list[tuple[Part, Version]]] = {}
        for version in kept.values():
            for part in version.parts:
                entries.setdefault(part.name, []).append((part, version))
        for name, given in sorted(entries.items()):
            self._part(name, given)
        return len(entries)

    def _part(self, name: str, given: list[tuple[Part, Version]]) -> None:
        place = f"{documents.PARTS}/{name}"
        try:
            root = self.folder.part_root(name)
            if not self.folder.part_exists(name):
                self._add(place, f"missing, and version {given[0][1].version} has it")
                return
            report = status.verify_place(root, content=self.content)
            self.shards += report.shards_checked
            remedy = f"genenc verify {argument(root)} tells more; {_COPY}"
            for problem in report.problems:
                shard = "" if problem.shard is None else f"shard {problem.shard:05d}: "
                self._add(f"{place}/{problem.place}", f"{shard}{problem.what}", remedy)
            if not report.problems:
                self._entries(self.folder.part(name), given)
        except errors.StoreError as error:
            self._add(place, error)

    def _entries(self, run: RunFolder, given: list[tuple[Part, Version]]) -> None:
        """Compare an intact part with what versions say of it."""
        place = f"{documents.PARTS}/{parts.name_of(run)}"
        template, chunks = part_arrays.read(run)
        values = {part.number: parts.values_digest(run, self._left_out(part, version)) for part, version in given[:1]}
        if documents.is_compacted(documents.part_number(parts.name_of(run)) or 0):
            copied = origins.read(run.objects)
            if len(copied.places()[0]) != run.manifest.rows:
                self._add(f"{place}/{origins.RECORD}", "it is not of the rows of its part")
        for part, version in given:
            differs = [
                what
                for what, same in (
                    ("its store.json", part.store == run.store.document),
                    ("the number of its rows", part.rows == run.manifest.rows),
                    ("the values of its rows", part.values == values.get(part.number)),
                    ("the number of its regions", part.regions == (None if run.regions is None else len(run.regions))),
                    ("its arrays", version.templates[part.template] == template and part.chunks == chunks),
                )
                if not same
            ]
            if differs:
                self._add(place, f"{', '.join(differs)} differ from what version {version.version} was made with")
                return

    def _left_out(self, part: Part, version: Version) -> set[int]:
        """Return the rows of a part that were not encoded when a version was made with it."""
        changes = rows.read_changes(self.folder, version)
        numbers, at, kinds = (changes.column(name).to_pylist() for name in ("part", "row", "change"))
        found = zip(numbers, at, kinds, strict=True)
        return {row for number, row, kind in found if number == part.number and kind == rows.NOT_ENCODED}

    def _tags(self, names: list[str], numbers: list[int], marked: Mapping[int, str]) -> None:
        for name in sorted(name for name in names if not _is_hidden(name)):
            key = f"{documents.TAGS}/{name}"
            try:
                if documents.tag_key(name.removesuffix(".json")) != key:
                    raise errors.InputError(f"{name!r} is not a tag")
                number = self.folder.number_of(name.removesuffix(".json"))
            except errors.GenencError as error:
                self._add(key, error, "delete it, and set the tag again")
                continue
            if number not in numbers:
                self._add(key, f"there is no version {number}", "set or remove the tag")
            elif marked.get(number) == marks.PRUNED:
                self._add(key, f"version {number} was pruned", "set or remove the tag")

    def _foreign(self, names: Mapping[str, list[str]]) -> None:
        """Add what is neither of the dataset nor left by a killed process, which `prune` removes."""
        known: dict[str, Callable[[str], bool]] = {
            "": lambda name: name in (*_OWN, *_FOLDERS, *DOCUMENTS),
            documents.PARTS: lambda name: documents.part_number(name) is not None,
            documents.VERSIONS: lambda name: bool(
                documents.version_number(name) or documents.pruned_number(name) or documents.changes_number(name)
            ),
            documents.TAGS: lambda name: name.endswith(".json"),
        }
        for above, is_own in known.items():
            for name in sorted(names[above]):
                place = f"{above}/{name}".lstrip("/")
                if not is_own(name) and not _is_hidden(name):
                    self._add(place, "foreign file: it is not of the dataset", "move it away")
                elif above in (documents.PARTS, "") and is_own(name):
                    self._special(place, folder=above == documents.PARTS or name in _FOLDERS)

    def _special(self, place: str, *, folder: bool) -> None:
        """Add a link, pipe or device in place of a file or folder."""
        with run_store.read_errors(self.folder.root):
            kind = self.folder.objects.kind(place)
        if kind not in (None, beneath.FILE, beneath.FOLDER) or (kind is not None and (kind == beneath.FILE) == folder):
            self._add(place, f"it is {kind}", "put the original file or folder itself there")


def _is_hidden(name: str) -> bool:
    return name.startswith(".")


def describe(outcome: Verified) -> Mapping[str, Any]:
    """Return the outcome as JSON data."""
    return {
        "dataset": outcome.folder.root,
        "ok": outcome.ok,
        "problems": [dataclasses.asdict(problem) for problem in outcome.problems],
        "unlisted": list(outcome.unlisted),
        **{name: getattr(outcome, name) for name in ("versions", "pruned", "parts", "shards")},
    }
