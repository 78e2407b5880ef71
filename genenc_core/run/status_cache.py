"""The tally, `provenance/tally.jsonl`: one summary line per commit record, so that surveys need not read the records.

Workers write it. Lines that a survey has to derive from records, because the tally lacks them or the run was copied,
are cached in the user's cache folder: read-only commands never write into a run. The records remain authoritative: a
line is used only if its checksum is valid and the record's size and modification time match; otherwise the record is
read. The file may be deleted.
"""

import contextlib
import gc
import json
import time
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Final, NamedTuple

from genenc_core.run import decisions, quantized
from genenc_core.run.bound import Work
from genenc_core.store import store_keys
from genenc_core.store.backends.local import LocalObjects
from genenc_core.store.backends.objects import Objects
from genenc_core.store.commit_record import CommitRecord

PROVENANCE: Final = "provenance"
TALLY: Final = "provenance/tally.jsonl"
CACHED: Final = "tally.jsonl"
_LONGEST: Final = 1e12
"""Seconds above which a timing is invalid."""
_WRITTEN_WITHIN: Final = 0.05
"""Seconds within which a line that a process has begun to write is whole."""
Stamp = tuple[int, int]
"""Size in bytes and modification time in nanoseconds of a record."""


class Line(NamedTuple):
    """Summary of a committed shard; a tuple, as there may be hundreds of thousands."""

    ok: int
    unreadable: int
    points: Mapping[str, int]
    seconds: Mapping[str, float]
    changed: int = 0
    work: Sequence[float] = ()
    """Fields of `bound.Work`; empty in records of earlier versions."""
    quantized: Mapping[str, Sequence[float]] = {}
    """`quantized.line`; empty without products that are stored as integers."""
    regions: Mapping[str, int] = MappingProxyType({})
    """Empty without regions."""
    further: Sequence[int] = ()
    """How many rows are of files with further frames, and the first of them; empty without any."""
    decided: Sequence[float] = ()
    """`decisions.line`; empty unless the run is reproducible."""

    @classmethod
    def of(cls, record: CommitRecord) -> "Line":
        """Return the line of a validated record."""
        counts, details = record.status_counts, record.details
        return cls(
            ok=counts.get("ok", 0),
            unreadable=counts.get("unreadable", 0),
            points=details["points"],
            seconds=details["seconds"],
            changed=len(details.get("changed_since_planned", ())),
            work=list(Work.of(details) or ()),
            quantized=quantized.line(details),
            regions=details.get("regions", {}),
            further=[len(further), min(further)] if (further := details.get("further_frames")) else [],
            decided=decisions.line(details),
        )


def stamps(objects: Objects) -> dict[int, Stamp]:
    """Return the stamps of the current commit records by shard; empty on S3.

    Raises:
        OSError: the folder of the records cannot be read.
    """
    newest: dict[int, tuple[int, Stamp]] = {}
    for name, stamp in objects.stamps(store_keys.COMMITS) if isinstance(objects, LocalObjects) else ():
        if of := store_keys.generation_of(name):
            shard, generation = of
            # The latest record of a shard replaces earlier ones.
            if shard not in newest or generation > newest[shard][0]:
                newest[shard] = generation, stamp
    return {shard: stamp for shard, (_, stamp) in newest.items()}


def note(objects: Objects, records: Iterable[CommitRecord]) -> None:
    """Append the lines of newly committed shards; errors are ignored, as the records can be read instead.

    No-op on S3, where objects cannot be appended to.
    """
    if not isinstance(objects, LocalObjects):
        return
    with contextlib.suppress(OSError, KeyError):
        lines = "".join(_written(record, _stamp(objects, record)) for record in records).encode()
        try:
            objects.append(TALLY, lines)
        except FileNotFoundError:
            objects.make_folder(PROVENANCE)
            objects.append(TALLY, lines)


def keep(cache: LocalObjects | None, records: Iterable[CommitRecord], known: Mapping[int, Stamp]) -> None:
    """Append the lines of records that a survey has read to the user's cache.

    Args:
        cache: the user's folder for this run, if any.
        records: the records read.
        known: stamps taken before the records were read.
    """
    with contextlib.suppress(OSError, KeyError):
        lines = [_written(record, known[record.shard]) for record in records]
        if cache is not None:
            cache.root.mkdir(mode=0o700, parents=True, exist_ok=True)
            cache.append(CACHED, "".join(lines).encode())


def read(objects: Objects, known: Mapping[int, Stamp], cache: LocalObjects | None = None) -> dict[int, Line]:
    """Return the lines of all shards whose records have matching stamps."""
    if not known:
        return {}
    text = b""
    for place, key in ((objects, TALLY), (cache, CACHED)):
        with contextlib.suppress(OSError):
            text += b"" if place is None else b"\n" + place.read(key)
    found: dict[int, Line] = {}
    with _gc_paused():
        for row in _rows(text):
            with contextlib.suppress(TypeError, ValueError, OverflowError):
                shard, size, changed, *counts = row
                line = Line(*counts)
                if known.get(shard) == (size, changed) and _sane(line):
                    found[shard] = line
    return found


def damaged_lines(objects: Objects) -> int:
    """Count the lines of the tally with wrong checksums.

    A last line that another process is writing meanwhile is read again until it is whole or stays as it is.

    Raises:
        OSError: it cannot be read.
    """
    text = objects.read(TALLY)
    while not _is_whole(text.rpartition(b"\n")[2]):
        time.sleep(_WRITTEN_WITHIN)
        before, text = text, objects.read(TALLY)
        if text == before:
            break
    return sum(not _is_whole(line) for line in text.split(b"\n") if line)


@contextlib.contextmanager
def _gc_paused() -> Iterator[None]:
    """Pause garbage collection, which is slow while hundreds of thousands of lines are created."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _written(record: CommitRecord, stamp: Stamp) -> str:
    line = Line.of(record)
    further, decided = list(line.further), list(line.decided)
    rest: list[Any] = [line.changed, line.work, line.quantized, dict(line.regions), further, decided]
    while rest and not rest[-1]:
        rest.pop()
    counts = [
        line.ok,
        line.unreadable,
        dict(line.points),
        dict(line.seconds),
        *rest,
    ]
    text = json.dumps([record.shard, *stamp, *counts])
    # The newline comes first, to end a line left incomplete by a kill.
    return f"\n{text}\t{zlib.crc32(text.encode()):08x}"


def _stamp(objects: LocalObjects, record: CommitRecord) -> Stamp:
    return objects.stamp(store_keys.record(record.shard, record.generation))


def _rows(text: bytes) -> list[Any]:
    """Return the content of every intact line."""
    whole = [line.rpartition(b"\t")[0] for line in text.split(b"\n") if _is_whole(line)]
    try:
        rows: list[Any] = json.loads(b"[" + b",".join(whole) + b"]")
    except (ValueError, RecursionError):  # forged lines with valid checksums
        return []
    return rows


def _is_whole(line: bytes) -> bool:
    row, _, checksum = line.rpartition(b"\t")
    return checksum == b"%08x" % zlib.crc32(row)


def _sane(line: Line) -> bool:
    if type(line.points) is not dict or type(line.seconds) is not dict:
        return False
    if not quantized.is_line(line.quantized) or (line.regions and type(line.regions) is not dict):
        return False
    if type(line.further) not in (tuple, list) or [*map(type, line.further)] not in ([], [int, int]):
        return False
    if not decisions.is_line(line.decided):
        return False
    if len(line.work) not in (0, len(Work._fields)):
        return False
    if min(line.work, default=0) < 0 or not sum(line.work) < _LONGEST:
        return False
    if not type(line.ok) is type(line.unreadable) is type(line.changed) is int:
        return False
    return all(type(each) is int for each in (*line.points.values(), *line.regions.values())) and all(
        type(each) in (int, float) and abs(each) < _LONGEST for each in line.seconds.values()
    )
