"""What must hold of a dataset at any instant and after a command that nobody killed."""

import contextlib
import dataclasses
import hashlib
import os
import random
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import checks
from changing_photos import Content
from genenc_core import api, errors, statuses
from genenc_core.dataset import compact, documents, prune, publishing, rows, tags, update, verify
from genenc_core.dataset import parts as dataset_parts
from genenc_core.dataset.documents import Version
from genenc_core.dataset.folder import DatasetFolder, exists
from genenc_core.run.folder import RunFolder
from genenc_core.store.backends import objects

Held = Mapping[str, Sequence[Content]]
Row = tuple[str, str, int, Content]
"""Name, path, status and colour."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """What stands of a dataset."""

    versions: dict[int, str] = dataclasses.field(default_factory=dict)
    """Digests of the documents of versions and of what they read, by number; "" for pruned ones."""
    tags: dict[str, int] = dataclasses.field(default_factory=dict)
    encoded: dict[str, str] = dataclasses.field(default_factory=dict)
    """Where each file was encoded, by name and time: part and row."""
    pending: list[str] = dataclasses.field(default_factory=list)
    """Files of unfinished parts that are not encoded."""
    wrong: list[str] = dataclasses.field(default_factory=list)

    @classmethod
    def of_json(cls, found: Mapping[str, Any]) -> "Seen":
        """Return what a process told."""
        return cls(**{**found, "versions": {int(number): text for number, text in found["versions"].items()}})


def look(root: Path, held: Held) -> Seen:
    """Read every version and the records of every part."""
    seen = Seen()
    if not exists(root):
        return seen
    folder = DatasetFolder(root)
    pruned = folder.pruned()
    for number in folder.versions():
        seen.versions[number] = ""
        if number not in pruned:
            try:
                seen.versions[number], found = read(root, number)
                seen.wrong.extend(misread(found, number, held))
            except errors.GenencError as error:
                seen.wrong.append(f"version {number} does not read: {error}")
    seen.wrong.extend(altered(folder, seen.versions))
    seen.tags.update({tag.name: tag.version for tag in tags.list_tags(folder)})
    head = folder.head()
    kept = [
        documents.read_version(folder.objects, number).version for number in folder.versions() if number not in pruned
    ]
    needed = {part.name for version in kept for part in version.parts}
    for number in dataset_parts.of_updates(folder):
        is_passed = head is not None and number <= head.version.last_part
        with contextlib.ExitStack() as lenient:
            if is_passed and documents.part_name(number) not in needed:
                lenient.enter_context(contextlib.suppress(errors.StoreError))  # a killed prune has removed half of it
            _account(folder, number, seen, is_passed=is_passed)
    return seen


def contents(root: Path, number: int | None) -> list[Row]:
    """Return names, paths, statuses and colours of a version's rows, in order, as a user reads them."""
    opened = api.Dataset.open(root, number).arrays()
    values = np.asarray(opened.features.values) * 255
    colours = [
        None if np.isnan(row).any() else (round(row[0]), round(row[1]), round(row[2])) for row in values.tolist()
    ]
    off = np.abs(np.nan_to_num(values) - np.nan_to_num(values).round()).max(initial=0)
    if off > 0.01:
        raise errors.StoreError(f"values that are of no colour, by {off}")
    names = [np.asarray(opened[name].values).astype(object).tolist() for name in ("image_id", "path")]
    return list(zip(*names, np.asarray(opened.status.values).tolist(), colours, strict=True))


def read(root: Path, number: int) -> tuple[str, list[Row]]:
    """Return the digests of a version's document and of what it reads, and that."""
    found = contents(root, number)
    document = documents.read_version(DatasetFolder(root).objects, number).digest
    return f"{document} {hashlib.sha256(repr(found).encode()).hexdigest()[:16]}", found


def misread(found: Sequence[Row], number: int, held: Held) -> Iterator[str]:
    """Yield rows of a version that are not of a content that their file had."""
    names = [row[0] for row in found]
    if len({*names}) < len(names):
        yield f"version {number} has an image twice: {sorted(name for name in {*names} if names.count(name) > 1)}"
    for name, path, status, colour in found:
        is_read = status == statuses.OK and colour is not None
        is_unreadable = status == statuses.UNREADABLE and colour is None
        # A file that changed after its part was planned is unreadable in the first version with that part.
        is_changed = is_unreadable and len(held.get(name, ())) > 1
        if name != path or not (is_read or is_unreadable) or not (is_changed or colour in held.get(name, ())):
            yield f"version {number}: {name} ({path}) has status {status} and {colour}, and held {held.get(name)}"


def altered(folder: DatasetFolder, versions: Mapping[int, str]) -> Iterator[str]:
    """Yield versions of compactions that read otherwise than the versions before."""
    for number, now in versions.items():
        before = versions.get(number - 1)
        if now and before and now.split()[1:] != before.split()[1:] and _made_by(folder, number) == "compact":
            yield f"version {number} is of a compaction, and does not read as version {number - 1}"


def _made_by(folder: DatasetFolder, number: int) -> str:
    return str(documents.read_version(folder.objects, number).version.made["command"])


def _account(folder: DatasetFolder, number: int, seen: Seen, *, is_passed: bool) -> None:
    """Note what a part of an update has encoded, and what it has still to encode."""
    name = documents.part_name(number)
    if not folder.part_exists(name):
        return
    run = folder.part(name)
    listed = run.manifest.read(0, run.manifest.rows)
    files = [f"{image} {time}" for image, time in zip(listed.image_ids, listed.mtime_ns.tolist(), strict=True)]
    committed = run.store.committed()
    for shard in range(run.store.shard_count):
        for row in range(*run.store.shard_range(shard)):
            if shard in committed:
                here = f"{name} row {row}"
                if seen.encoded.setdefault(files[row], here) != here:
                    seen.wrong.append(f"encoded twice: {files[row]}, {seen.encoded[files[row]]} and {here}")
            elif not is_passed:
                seen.pending.append(files[row])


def differs(before: Seen, now: Seen, *, kept: int, tagging: bool) -> Iterator[str]:
    """Yield versions and tags that changed in a way that no command may cause.

    Args:
        before: what was seen before a command.
        now: what stands now.
        kept: newest versions that a prune keeps.
        tagging: whether a tag was set or removed meanwhile.
    """
    for number, text in before.versions.items():
        found = now.versions.get(number)
        if found is None or (found and found != text):
            yield f"version {number} {'reads otherwise than before' if found else 'is not there any more'}"
    pruned = {number for number, text in now.versions.items() if not text}
    newest = sorted(now.versions)[-kept:]
    tagged = {number for name, number in before.tags.items() if now.tags.get(name) == number}
    for number in sorted(pruned & {*newest, *tagged}):
        yield f"version {number} was pruned, and it is one of {newest} or has a tag: {now.tags}"
    if not tagging and now.tags != before.tags:
        yield f"tags were {before.tags}, and are {now.tags}"


def exact(root: Path, now: Mapping[str, Content]) -> Iterator[str]:
    """Yield how the newest version differs from the folder of images."""
    found = {name: colour for name, _, _, colour in contents(root, None)}
    for name in sorted({*found} | {*now}):
        if name not in found or name not in now or found[name] != now[name]:
            yield f"{name}: {found.get(name, 'no row')}, and the file holds {now.get(name, 'nothing: it is not there')}"


def verified(root: Path, *, content: bool) -> Iterator[str]:
    """Yield what a verification finds."""
    yield from (f"verify: {problem}" for problem in verify.verify(DatasetFolder(root), content=content).problems)


def litter(root: Path) -> Iterator[str]:
    """Yield what is left in a dataset whose updates and compactions have ended, after a prune."""
    folder = DatasetFolder(root)
    pruned = folder.pruned()
    versions = {number: documents.read_version(folder.objects, number).version for number in folder.versions()}
    kept = {number: version for number, version in versions.items() if number not in pruned}
    parts = {part.name for version in kept.values() for part in version.parts}
    files = [*map(documents.version_key, versions), *map(documents.pruned_key, pruned)]
    files += [f"{documents.VERSIONS}/{version.changes.file}" for version in kept.values() if version.changes]
    tagged = [f"{documents.TAGS}/{name}.json" for name in folder.tags()]
    wanted = {
        "README.md",
        documents.DATASET,
        documents.SETTINGS,
        *files,
        *tagged,
        *(f"{documents.PARTS}/{part}" for part in parts),
    }
    folders = (documents.PARTS, documents.VERSIONS, documents.TAGS)
    found = {path.relative_to(root).as_posix() for path in root.iterdir() if path.name not in folders}
    found |= {path.relative_to(root).as_posix() for name in folders for path in (root / name).glob("*")}
    if found != wanted:
        yield f"a prune leaves {sorted(found - wanted)}, and lacks {sorted(wanted - found)}"
    hidden = [str(path.relative_to(root)) for path in root.rglob(".*")]
    if hidden:
        yield f"left behind: {hidden}"
    for part in sorted(parts):
        yield from (f"{part}: {what}" for what in checks.litter(objects.open_objects(root / documents.PARTS / part)))


BROKEN = {
    "early-version": ("update",),
    "last-wins": ("update update", "update compact"),
    "blind-prune": ("update", "tag", "prune"),
    "lossy-compaction": ("update", "compact compact"),
    "restart": ("update",),
}
"""Ways to break the protocol, and what must run for it to show."""


WINDOW = float(os.environ.get("GENENC_CRASH_WINDOW", "3"))
"""Seconds, at most, for which a broken version waits before it replaces another, so that readers see that one."""


def break_protocol(how: str) -> None:
    """Break the protocol of this process on purpose, in a way that the checks must find."""
    module: Any
    if how == "early-version":  # of a part that is not encoded yet
        module = update.Update
        module.encode = _claiming(module.encode)
    elif how == "last-wins":  # a version replaces that of another process
        module = DatasetFolder
        module.create_version = _replace_version
    elif how == "blind-prune":  # tagged versions are pruned
        module = prune
        module._tagged = lambda _: set()
    elif how == "lossy-compaction":  # the last row is not copied
        module = compact._Compaction
        module._plan = _losing(module._plan)
    elif how == "restart":  # an unfinished part is not continued
        module = dataset_parts
        module.unfinished = lambda *_, **__: None


def _claiming(encode: Any) -> Any:
    added: Any = publishing._Added
    real = added.__init__

    def claim(self: Any, *given: Any) -> None:
        real(self, *given)
        self.committed[:] = True

    def claiming(self: update.Update, run: RunFolder) -> None:
        added.__init__ = claim
        self.make_version(run)
        encode(self, run)

    return claiming


def _replace_version(self: DatasetFolder, version: Version) -> bool:
    time.sleep(random.uniform(0.0, WINDOW))
    self.objects.replace(version.key, documents.version_to_bytes(version))
    return True


def _losing(plan: Any) -> Any:
    real = rows.among

    def losing(folder: DatasetFolder, version: Version | None, changes: Any) -> rows.CurrentRows:
        known = real(folder, version, changes)
        short = slice(0, len(known) - 1)
        columns = (known.table, known.points, known.part, known.row, known.seen_ns)
        root_of = known.root_of[short]
        return rows.CurrentRows(*(column[short] for column in columns), roots=known.roots, root_of=root_of)

    def planned(*given: Any) -> Any:
        module: Any = rows
        module.among = losing
        try:
            return plan(*given)
        finally:
            module.among = real

    return planned
