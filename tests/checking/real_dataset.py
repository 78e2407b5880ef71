"""The real code of datasets' versions, tags and pruning over the simulated store."""

import contextlib
import functools
from collections.abc import Hashable
from typing import Any

from genenc_core.dataset import documents, marks, prune, tags
from genenc_core.dataset.documents import Part, Version
from genenc_core.dataset.folder import DatasetFolder
from real_store import processes
from simulated_store import Contents, Ended, SimulatedObjects, Task

CONFIRMED = "confirmed/tag"
"""There once a tag was set without an error."""


def opened(objects: SimulatedObjects) -> DatasetFolder:
    """Open the dataset."""
    folder = object.__new__(DatasetFolder)
    folder.objects, folder.root = objects, "/dataset" if objects.is_local else "s3://bucket/dataset"
    return folder


def part(number: int) -> Part:
    """A part of one row."""
    return Part(name=documents.part_name(number), rows=1, store="", values="", template=0, chunks={})


def version(number: int, previous: str, parts: list[Part]) -> Version:
    """A version of these parts."""
    return Version(
        version=number,
        previous=previous,
        parts=parts,
        templates=[{}],
        last_part=max(each.number for each in parts),
        changes=None,
        counts={},
        made={},
    )


def add(number: int, *others: int) -> Task:
    """Make a version with a part more, as an update does; then with others."""

    def run(objects: SimulatedObjects) -> Hashable:
        folder, made = opened(objects), 0
        for each in (number, *others):
            while True:
                head = folder.head()
                parts = head.version.parts if head else []
                if part(each) in parts:
                    break
                following = head.version.version + 1 if head else 1
                if folder.create_version(version(following, head.digest if head else "", [*parts, part(each)])):
                    made = following
                    break
        return made

    return Task(f"add {number}", run)


def chain_is_intact(contents: Contents) -> str:
    """D2, D4 and D8: versions are a chain, and each has the parts of the one before and one more, each once."""
    before = None
    for number in range(1, 9):
        if documents.version_key(number) not in contents:
            continue
        found = _read(contents[documents.version_key(number)], number)
        names = [each.name for each in found.version.parts]
        if len(names) != len(set(names)):
            return f"D2: version {number} has a part twice: {names}"
        if number > 1 and before is None:
            return f"D8: version {number} without the one before"
        if before is not None and found.version.previous != before.digest:
            return f"D8: version {number} does not follow version {number - 1}"
        if before is not None and names[:-1] != [each.name for each in before.version.parts]:
            return f"D4: version {number} lost parts of version {number - 1}: {names}"
        before = found
    return ""


def versions_stay(before: Contents, after: Contents) -> str:
    """D1: a version never changes."""
    changed = [
        key for key in before if documents.version_number(key.rpartition("/")[2]) and before[key] != after.get(key)
    ]
    return f"D1: {changed} changed" if changed else ""


def made_is_there(ended: Ended, contents: Contents) -> str:
    """D4: who made a version has its part in it."""
    if ended.error or not ended.value:
        return ""
    number, own = int(str(ended.value)), int(ended.task.split()[1])
    found = _read(contents[documents.version_key(number)], number).version
    return "" if found.parts[-1] == part(own) else f"D4: {ended.task} made version {number}, which is another's"


def all_added(*numbers: int) -> Any:
    """D3 and D4: the newest version has every part."""

    def check(contents: Contents) -> str:
        newest = max(n for n in range(1, 9) if documents.version_key(n) in contents)
        found = {each.number for each in _read(contents[documents.version_key(newest)], newest).version.parts}
        return f"D4: the newest version has {found}, not {numbers}" if found != {*numbers} else ""

    return check


@functools.cache
def _read(data: bytes, number: int) -> documents.Written:
    key = documents.version_key(number)
    return documents.read_version(SimulatedObjects("s3", "z", (), {key: data}), number)


@functools.cache
def two_versions() -> Contents:
    """A dataset of two versions with a part each, which have nothing in common."""
    changed: dict[str, Any] = {"parts/p000001/file": b"1", "parts/p000002/file": b"2", "parts/": b"", "versions/": b""}
    folder = opened(SimulatedObjects("s3", "z", (), {}, changed))
    folder.create_version(version(1, "", [part(1)]))
    head = folder.head()
    assert head is not None
    folder.create_version(version(2, head.digest, [part(2)]))
    return {**changed, "tags/": b"", "parts/p000001/": b"", "parts/p000002/": b""}


def tag(number: int) -> Task:
    """Tag a version; `CONFIRMED` is there afterwards."""

    def run(objects: SimulatedObjects) -> Hashable:
        with processes(objects):
            done = tags.set_tag(opened(objects), "tag", number).version
        with contextlib.suppress(ConnectionError):
            objects.replace(CONFIRMED, b"")
        return done

    return Task(f"tag {number}", run)


def pruned(*, unlock: bool = False) -> Task:
    """Prune all but the newest version; on S3 after removing the lock of a killed prune, as its message says."""

    def run(objects: SimulatedObjects) -> Hashable:
        if unlock and not objects.is_local:
            objects.remove(prune.LOCK)
        with processes(objects):
            return prune.prune(opened(objects), keep=1).versions

    return Task("prune", run)


def tagged_stays(contents: Contents) -> str:
    """D7: what a tag keeps is there, and reads; so does the newest version."""
    if "parts/p000002/file" not in contents:
        return "D7: a part of the newest version was removed"
    if CONFIRMED not in contents:
        return ""
    if "parts/p000001/file" not in contents:
        return "D7: a part of a tagged version was removed"
    mark = contents.get(documents.pruned_key(1), b"")
    return "D7: a tagged version counts as pruned" if f'"{marks.PRUNED}"'.encode() in mark else ""


def nothing_half_pruned(contents: Contents) -> str:
    """D7: in the end a version is there or pruned, and nothing of a prune is left."""
    gone = f'"{marks.PRUNED}"'.encode() in contents.get(documents.pruned_key(1), b"")
    if gone == ("parts/p000001/file" in contents):
        return "D7: version 1 is pruned and its part is there, or the other way round"
    left = [key for key in (prune.LOCK, prune.JOURNAL) if key in contents]
    return f"D7: {left} is left" if left else ""
