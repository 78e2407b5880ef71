"""What a survey needs of every commit record, one line each in `provenance/tally.jsonl`, so that it need not read them.

Workers write it. What a survey has to read from the records, because a tally lacks them or belongs to a copy, is kept
in the user's cache folder: a command that only reads changes nothing in a run, which may be somebody else's. The
records stay the truth. A line counts only for a record that has the size and the time of change that the line was
written for, and is whole by its checksum; for every other shard the record itself is read. The file may be deleted.
"""

import contextlib
import gc
import json
import zlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final, NamedTuple

from genenc_core.store import places
from genenc_core.store.local import LocalObjects
from genenc_core.store.objects import Objects
from genenc_core.store.records import CommitRecord

PROVENANCE: Final = "provenance"
TALLY: Final = "provenance/tally.jsonl"
CACHED: Final = "tally.jsonl"
Stamp = tuple[int, int]
"""Bytes and nanoseconds of the last change of a record."""


class Line(NamedTuple):
    """What a survey counts of one committed shard; a tuple, as there may be hundreds of thousands."""

    ok: int
    unreadable: int
    points: Mapping[str, int]
    seconds: Mapping[str, float]
    changed: int = 0

    @classmethod
    def of(cls, record: CommitRecord) -> "Line":
        """Return the line of a record whose details are those of genenc."""
        counts, details = record.status_counts, record.details
        return cls(
            ok=counts.get("ok", 0),
            unreadable=counts.get("unreadable", 0),
            points=details["points"],
            seconds=details["seconds"],
            changed=len(details.get("changed_since_planned", ())),
        )


def stamps(objects: Objects) -> dict[int, Stamp]:
    """Return the stamps of the commit records that hold; none on S3.

    Raises:
        OSError: the folder of the records cannot be read.
    """
    newest: dict[int, tuple[int, Stamp]] = {}
    for name, stamp in objects.stamps(places.COMMITS) if isinstance(objects, LocalObjects) else ():
        if of := places.generation_of(name):
            shard, generation = of
            # A later record of a shard stands in for those before it.
            if shard not in newest or generation > newest[shard][0]:
                newest[shard] = generation, stamp
    return {shard: stamp for shard, (_, stamp) in newest.items()}


def note(objects: Objects, records: Iterable[CommitRecord]) -> None:
    """Add the lines of shards that were just committed; what cannot be written is read from the records again.

    On S3, where nothing can be added to an object, no lines are kept.
    """
    if not isinstance(objects, LocalObjects):
        return
    with contextlib.suppress(OSError, KeyError):
        objects.make_folder(PROVENANCE)
        objects.append(TALLY, "".join(_written(record, _stamp(objects, record)) for record in records).encode())


def keep(cache: LocalObjects | None, records: Iterable[CommitRecord], known: Mapping[int, Stamp]) -> None:
    """Add the lines of records that a survey has read to the user's own cache: it writes nothing into a run.

    Args:
        cache: the user's folder for this run; None without one.
        records: as they were read.
        known: stamps from before the records were read.
    """
    with contextlib.suppress(OSError, KeyError):
        lines = [_written(record, known[record.shard]) for record in records]
        if cache is not None:
            cache.root.mkdir(mode=0o700, parents=True, exist_ok=True)
            cache.append(CACHED, "".join(lines).encode())


def read(objects: Objects, known: Mapping[int, Stamp], cache: LocalObjects | None = None) -> dict[int, Line]:
    """Return the lines of all shards whose records have the stamps that the lines were written for."""
    if not known:
        return {}
    text = b""
    for place, key in ((objects, TALLY), (cache, CACHED)):
        with contextlib.suppress(OSError):
            text += b"" if place is None else b"\n" + place.read(key)
    found: dict[int, Line] = {}
    with _uncollected():
        for row in _rows(text):
            with contextlib.suppress(TypeError, ValueError):
                shard, size, changed, *counts = row
                line = Line(*counts)
                if known.get(shard) == (size, changed) and _sane(line):
                    found[shard] = line
    return found


def damaged_lines(objects: Objects) -> int:
    """Return how many lines of the tally are not whole by their checksums.

    Raises:
        OSError: it cannot be read.
    """
    return sum(not _is_whole(line) for line in objects.read(TALLY).split(b"\n") if line)


@contextlib.contextmanager
def _uncollected() -> Iterator[None]:
    """Keep Python from looking, while hundreds of thousands of lines grow, for cycles that they do not have."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _written(record: CommitRecord, stamp: Stamp) -> str:
    line = Line.of(record)
    counts = [
        line.ok,
        line.unreadable,
        dict(line.points),
        dict(line.seconds),
        *([line.changed] if line.changed else []),
    ]
    text = json.dumps([record.shard, *stamp, *counts])
    # The break comes first: what a kill left of a line before it stays alone.
    return f"\n{text}\t{zlib.crc32(text.encode()):08x}"


def _stamp(objects: LocalObjects, record: CommitRecord) -> Stamp:
    return objects.stamp(places.record(record.shard, record.generation))


def _rows(text: bytes) -> list[Any]:
    """Return the content of every whole line."""
    whole = [line.rpartition(b"\t")[0] for line in text.split(b"\n") if _is_whole(line)]
    try:
        rows: list[Any] = json.loads(b"[" + b",".join(whole) + b"]")
    except (ValueError, RecursionError):  # lines that somebody else gave a checksum
        return []
    return rows


def _is_whole(line: bytes) -> bool:
    row, _, checksum = line.rpartition(b"\t")
    return checksum == b"%08x" % zlib.crc32(row)


def _sane(line: Line) -> bool:
    if type(line.points) is not dict or type(line.seconds) is not dict:
        return False
    if not type(line.ok) is type(line.unreadable) is type(line.changed) is int:
        return False
    return all(type(each) is int for each in line.points.values()) and all(
        type(each) in (int, float) for each in line.seconds.values()
    )
