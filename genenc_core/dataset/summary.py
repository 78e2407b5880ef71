"""What an update did, and what versions there are, as lines and as JSON data."""

import dataclasses
from typing import Any

from genenc_core.dataset import documents, marks, tags
from genenc_core.dataset.documents import COUNTS, Version
from genenc_core.dataset.folder import DatasetFolder
from genenc_core.dataset.update import Updated
from genenc_core.text import plural

_WORDS = {
    "new": "new",
    "changed": "changed",
    "points_changed": "with changed labels",
    "retried": "tried again",
    "renamed": "renamed",
    "touched": "with another time only",
    "withdrawn": "withdrawn",
    "not_encoded": "not encoded",
}


def lines(outcome: Updated) -> list[str]:
    """Return the lines that the command prints."""
    version = outcome.version
    if version is None:
        return [f"{outcome.folder}: no version yet"]
    state = f"{outcome.folder}: version {version.version}, {plural(version.counts['rows'], 'image')}"
    if not outcome.made:
        unreadable = f", {_unreadable(version)}" if version.counts["unreadable"] else ""
        return [f"{state}{unreadable}; nothing new"]
    done = changed(*outcome.made)
    return [f"{state} in {plural(len(version.parts), 'part')} ({done}), {_unreadable(version)}"]


def changed(*versions: Version) -> str:
    """Return what versions changed in all: `5 new, 1 withdrawn`."""
    counts = {name: sum(version.counts.get(name, 0) for version in versions) for name in _WORDS}
    return ", ".join(f"{counts[name]} {word}" for name, word in _WORDS.items() if counts[name]) or "the same rows"


def _unreadable(version: Version) -> str:
    return f"{version.counts['unreadable']} unreadable"


def describe(outcome: Updated) -> dict[str, Any]:
    """Return the outcome as JSON data."""
    version = outcome.version
    return {
        "dataset": outcome.folder.root,
        "version": version.version if version else None,
        "before": outcome.before or None,
        "parts": [result.run.root for result in outcome.results],
        "made": [{"version": each.version, "counts": each.counts} for each in outcome.made],
        "counts": {name: _count(name, outcome) for name in COUNTS},
        "failures": [{"shard": failure.shard, "reason": failure.reason} for failure in outcome.failures],
        "exit_code": outcome.exit_code,
    }


def _count(name: str, outcome: Updated) -> int:
    """Return a count: of the newest version for its rows, else of all versions that the update made."""
    if name in ("rows", "unreadable"):
        return outcome.version.counts.get(name, 0) if outcome.version else 0
    return sum(version.counts.get(name, 0) for version in outcome.made)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One version in a list of all."""

    version: int
    rows: int
    parts: int
    unreadable: int
    changes: str
    pruned: bool
    """Whether its rows are gone."""
    time: str
    command: str
    tags: tuple[str, ...]

    def columns(self) -> tuple[str, ...]:
        """Return the columns of the table that `genenc versions` prints."""
        numbers = (str(self.version), str(self.rows), str(self.unreadable))
        return (*numbers, self.changes + ", pruned" * self.pruned, self.time[:19], self.command, ", ".join(self.tags))


def history(folder: DatasetFolder) -> list[Line]:
    """Return a line for each version, in order.

    Raises:
        StoreError: a document is damaged.
    """
    named = tags.list_tags(folder)
    found = [documents.read_version(folder.objects, number).version for number in folder.versions()]
    return [
        Line(
            version=each.version,
            rows=each.counts["rows"],
            parts=len(each.parts),
            unreadable=each.counts["unreadable"],
            changes=changed(each),
            pruned=marks.state(folder.objects, each.version) == marks.PRUNED,
            time=str(each.made.get("time", "")),
            command=str(each.made.get("command", "")),
            tags=tuple(tag.name for tag in named if tag.version == each.version),
        )
        for each in found
    ]


def state(folder: DatasetFolder) -> list[str]:
    """Return what `genenc status` prints of a dataset."""
    version = folder.version()
    return [
        f"{folder}: version {version.version}, {plural(version.counts['rows'], 'image')} in "
        f"{plural(len(version.parts), 'part')}, {_unreadable(version)}",
        f"model: {folder.meaning.identity['model']}",
        *(f"product: {product}" for product in folder.meaning.identity["products"]),
    ]
