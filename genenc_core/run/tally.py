"""What a survey needs of every commit record, one line each in `provenance/tally.jsonl`, so that it need not read them.

The records stay the truth. A line counts only for a record that has the size and the time of change that the line was
written for, and is whole by its checksum; for every other shard the record itself is read. The file may be deleted.
"""

import contextlib
import gc
import json
import os
import zlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final, NamedTuple

from genenc_core.store import places
from genenc_core.store.local import LocalObjects
from genenc_core.store.objects import Objects
from genenc_core.store.records import CommitRecord

TALLY: Final = "provenance/tally.jsonl"
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
    found = objects.stamps(places.COMMITS) if isinstance(objects, LocalObjects) else ()
    named = ((places.generation_of(name), stamp) for name, stamp in found)
    # A later record of a shard stands in for those before it.
    return {name[0]: stamp for name, stamp in sorted(item for item in named if item[0] is not None) if name}


def note(objects: Objects, records: Iterable[CommitRecord], known: Mapping[int, Stamp] | None = None) -> None:
    """Add the lines of committed shards; what cannot be written is read from the records again.

    On S3, where nothing can be added to an object, no lines are kept.

    Args:
        objects: the run folder.
        records: as they were read, or just written.
        known: stamps from before the records were read; None for records just written.
    """
    if not isinstance(objects, LocalObjects):
        return
    with contextlib.suppress(OSError, KeyError):
        lines = [_written(record, known[record.shard] if known else _stamp(objects, record)) for record in records]
        descriptor = os.open(objects.path(TALLY), os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
        try:
            os.write(descriptor, "".join(lines).encode())
        finally:
            os.close(descriptor)


def read(objects: Objects, known: Mapping[int, Stamp]) -> dict[int, Line]:
    """Return the lines of all shards whose records have the stamps that the lines were written for."""
    if not known:
        return {}
    try:
        text = objects.read(TALLY)
    except OSError:
        return {}
    found: dict[int, Line] = {}
    with _uncollected():
        for row in _rows(text):
            with contextlib.suppress(TypeError, ValueError):
                shard, size, changed, *counts = row
                line = Line(*counts)
                if known.get(shard) == (size, changed) and _sane(line):
                    found[shard] = line
    return found


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
    status = objects.path(places.record(record.shard, record.generation)).stat()
    return status.st_size, status.st_mtime_ns


def _rows(text: bytes) -> list[Any]:
    """Return the content of every whole line."""
    parts = (line.rpartition(b"\t") for line in text.split(b"\n"))
    whole = [row for row, _, checksum in parts if checksum == b"%08x" % zlib.crc32(row)]
    try:
        rows: list[Any] = json.loads(b"[" + b",".join(whole) + b"]")
    except (ValueError, RecursionError):  # lines that somebody else gave a checksum
        return []
    return rows


def _sane(line: Line) -> bool:
    if type(line.points) is not dict or type(line.seconds) is not dict:
        return False
    counts = {type(line.ok), type(line.unreadable), type(line.changed), *map(type, line.points.values())}
    return counts == {int} and set(map(type, line.seconds.values())) <= {int, float}
