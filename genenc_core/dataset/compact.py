"""Compaction: copy the current rows of neighbouring small parts into one new part, and make a version with it.

Nothing is encoded, no model is loaded, and no part changes. The new part is a run like any other. Its number lies at or
above `documents.FIRST_COMPACTED` and follows from what it holds:

- an update neither continues it nor counts it among its own, whose numbers are below;
- a killed compaction is continued by the next one of the same rows, and several at once fill one part together.

The version is made on the newest one: if another was made meanwhile, the same parts are looked for in that. If they
have the same current rows, the copy serves; otherwise it is made anew.
"""

import dataclasses
import functools
import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, cast

import numpy as np
import pyarrow as pa

from genenc_core import errors, spec, statuses, stored_arrays
from genenc_core.dataset import documents, origins, parts, publishing, rows
from genenc_core.dataset.documents import Part, Version, Written
from genenc_core.dataset.folder import DatasetFolder
from genenc_core.dataset.origins import Compacted
from genenc_core.dataset.rows import CurrentRows
from genenc_core.encoding import cancellation, shard_encoding
from genenc_core.images.sources import manifest
from genenc_core.images.sources import regions as region_rows
from genenc_core.run import model_cache, out_folder, planning, records, session_log, status, status_cache, tiles
from genenc_core.run.folder import MANIFEST, MODEL_SPEC, REGIONS, RunFolder
from genenc_core.runtime import backends
from genenc_core.store import layout
from genenc_core.store.commit_record import CommitRecord
from genenc_core.system import digests
from genenc_core.text import plural

LOGGER = logging.getLogger(__name__)
SMALL_ROWS = 65_536
"""Parts with fewer current rows are joined, unless told otherwise."""
MOST_ROWS = 2**22
"""Rows of one new part, unless a single one has more."""
_ATTEMPTS = 20
_DEVICE = "cuda"
"""Shards of the new part are as large as for a GPU: a copy has no batches that would take long."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Made:
    """A new part, and the parts whose rows it has."""

    part: str
    sources: tuple[str, ...]
    rows: int


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """Outcome of a compaction."""

    folder: DatasetFolder
    before: int
    """The newest version before."""
    version: Version
    """The newest version now: the same if there was nothing to join."""
    made: tuple[Made, ...]


@dataclasses.dataclass(frozen=True, slots=True)
class _Plan:
    """Parts to join, in the version that they were found in."""

    parts: tuple[Part, ...]
    changes: pa.Table
    known: CurrentRows
    record: Compacted

    @property
    def number(self) -> int:
        """Number of the new part, unless another one has it."""
        return self.record.number()


def compact(
    folder: DatasetFolder, *, below: int = SMALL_ROWS, most: int = MOST_ROWS, only: Sequence[str] | None = None
) -> Outcome:
    """Join small parts: each run of two or more neighbours with fewer than `below` current rows becomes one part.

    Neighbours keep the order of the rows. A run ends where a new part would get more than `most` rows. Parts without
    current rows stay as they are.

    Args:
        folder: the dataset.
        below: what counts as small.
        most: rows of one new part.
        only: instead, names of neighbouring parts to join, whatever their sizes.

    Raises:
        InputError: no version yet, an invalid number, or `only` are not neighbours of the newest version.
        StoreError: a part is damaged, cannot be written, or other processes kept making versions.
        Stopped: a stop was requested; the same call continues.
    """
    if below < 1 or most < 1:
        raise errors.InputError(f"rows of parts to join: {min(below, most)} is too small: give at least 1")
    with cancellation.ensure():
        return _Compaction(folder, below, most, only).run()


class _Compaction:
    """One call of `compact`."""

    def __init__(self, folder: DatasetFolder, below: int, most: int, only: Sequence[str] | None) -> None:
        self.folder = folder
        self.below = below
        self.most = most
        self.only = only
        self.wanted: list[list[str]] | None = None
        """Names of the parts to join; None before the first look."""

    def run(self) -> Outcome:
        """Do the work."""
        self.folder.version()  # one that was not made yet: a clear error
        before = None
        for _ in range(_ATTEMPTS):
            head = self.folder.head()
            assert head is not None
            before = before or head.version.version
            try:
                outcome = self._attempt(head, before)
            except errors.StoreError:
                # A part that left the newest version meanwhile may have been pruned.
                if self.folder.head() == head:
                    raise
                continue
            if outcome is not None:
                return outcome
        raise errors.StoreError(
            f"{self.folder.root!r} was not compacted: other processes made {_ATTEMPTS} versions of it meanwhile; "
            "compact it again when they have ended (what was copied is kept)"
        )

    def _attempt(self, head: Written, before: int) -> Outcome | None:
        """Copy what is to be joined in a version, and make the next one; None if another process made that."""
        changes = rows.read_changes(self.folder, head.version)
        groups = self._groups(head.version, changes)
        self.wanted = [[part.name for part in group] for group in groups]
        runs = []
        for group in groups:
            plan = self._plan(head.version, group, changes)
            runs.append((plan, self._copied(plan)))
        if not runs:
            return Outcome(folder=self.folder, before=before, version=head.version, made=())
        version = self._next(head, changes, runs)
        if not self.folder.create_version(version):
            publishing.discard(self.folder, version)
            return None
        publishing.write_readme(self.folder, version)
        made = (
            Made(part=parts.name_of(run), sources=tuple(plan.record.names), rows=run.manifest.rows)
            for plan, run in runs
        )
        return Outcome(folder=self.folder, before=before, version=version, made=tuple(made))

    def _groups(self, version: Version, changes: pa.Table) -> list[list[Part]]:
        """Return the parts to join: those chosen before that are still neighbours, else those to choose now."""
        if self.wanted is not None:
            kept = [group for names in self.wanted if (group := _neighbours(version, names)) is not None]
            if kept or not self.wanted:
                return kept
        if self.only is None:
            return choose(version, changes, below=self.below, most=self.most)
        group = _neighbours(version, self.only)
        if group is None or len(group) < 2:
            raise errors.InputError(
                f"{', '.join(map(repr, self.only)) or 'no part'}: not two or more neighbouring parts of version "
                f"{version.version} of {self.folder.root!r}, in order; it has {_listed(version)}"
            )
        return [group]

    def _plan(self, version: Version, group: Sequence[Part], changes: pa.Table) -> _Plan:
        own = rows.of_parts(changes, group)
        known = rows.among(self.folder, version.model_copy(update={"parts": list(group)}), own)
        if not len(known):
            raise errors.InputError(
                f"{', '.join(part.name for part in group)} have no current rows: there is nothing to join"
            )
        counts = Counter(known.part.tolist())
        sources = [
            origins.source(part, rows=counts[part.number], root=str(self.folder.part(part.name).manifest.root))
            for part in group
        ]
        content = {
            "schema": origins.SCHEMA,
            "sources": sources,
            "changes": digests.ROW_CHANGES.named(digests.canonical_json(own.to_pylist()).encode()),
            "rows": origins.to_runs(origins.resolved(self.folder, known.part, known.row)),
        }
        if any(part.number >= documents.FIRST_COMPACTED for part in group):
            content["roots"] = _runs_of_roots(known)
        record = Compacted.model_validate_json(digests.canonical_json(content))
        return _Plan(tuple(group), own, known, record)

    def _copied(self, plan: _Plan) -> RunFolder:
        """Return the part with the rows of a plan, all of them stored; it may be there, whole or in part."""
        run = self._created(plan)
        run.store.recover()
        pending = run.store.pending()
        if pending:
            LOGGER.info("%s: copying %s", run.root, plural(len(plan.parts), "part"))
            self._fill(run, plan, pending)
        return run

    def _created(self, plan: _Plan) -> RunFolder:
        """Return the new part, without its rows unless another process was here."""
        number, like = plan.number, self.folder.part(plan.parts[-1].name)
        while True:
            name = documents.part_name(number)
            place = self.folder.part_root(name)
            with out_folder.planning_folder(str(place)) as scratch:
                if self.folder.part_exists(name):
                    run = self.folder.part(name)
                    if origins.read(run.objects) == plan.record:
                        return run
                    number += 1
                    continue
                listed = manifest.write_like(
                    scratch / MANIFEST,
                    like.manifest,
                    functools.partial(rows.manifest_blocks, plan.known),
                    listed_ns=plan.known.first_seen_ns,
                )
                regions = None
                if self.folder.meaning.regions is not None:
                    regions = region_rows.write_copy(scratch / REGIONS, rows.current_regions(self.folder, plan.known))
                given = like.given.model_copy(update={"out": str(place)})
                try:
                    planning.publish(
                        *(place, given, _design(like), listed),
                        scratch=scratch,
                        like=like,
                        more={origins.RECORD: plan.record.as_json()},
                        regions=regions,
                    )
                except errors.OtherRunError:
                    number += 1
                    continue
            return self.folder.part(name)

    def _fill(self, run: RunFolder, plan: _Plan, pending: Sequence[int]) -> None:
        options = dataclasses.replace(records.Options.of(run.given), session=records.new_session())
        source = _Source(self.folder, plan)
        with session_log.recorded(run, options, command="compact"):
            for shard in pending:
                cancellation.current().raise_if_cancelled()
                start, stop = run.store.shard_range(shard)
                arrays, state, details = source.shard(run, start, stop)
                details |= {"session": options.session, "started": records.now()}
                record = run.store.commit(shard, arrays, state, details=details)
                status_cache.note(run.objects, [record])
            status.require_intact(run)
            session_log.end(run.objects, options.session, state="completed", status=status.run_status(run))

    def _next(self, head: Written, changes: pa.Table, runs: Sequence[tuple[_Plan, RunFolder]]) -> Version:
        templates = list(head.version.templates)
        starting = {plan.parts[0].name: publishing.entry(run, templates) for plan, run in runs}
        gone = {part.name for plan, _ in runs for part in plan.parts}
        listed = []
        for part in head.version.parts:
            if part.name in starting:
                listed.append(starting[part.name])
            if part.name not in gone:
                listed.append(part)
        number = head.version.version + 1
        made = {parts.name_of(run): plan.record.names for plan, run in runs}
        counted = {name: head.version.counts[name] for name in ("rows", "unreadable")}
        return Version(
            version=number,
            previous=head.digest,
            parts=listed,
            templates=templates,
            last_part=head.version.last_part,
            changes=rows.write_changes(self.folder, number, rows.of_parts(changes, listed)),
            counts={**dict.fromkeys(documents.COUNTS, 0), **counted},
            made=publishing.made_by("compact", parts=made),
        )


def choose(version: Version, changes: pa.Table, *, below: int, most: int) -> list[list[Part]]:
    """Return runs of two or more neighbouring parts with fewer than `below` current rows each, at most `most` in all.

    Args:
        version: the version.
        changes: its row changes.
        below: what counts as small.
        most: rows of one run.
    """
    gone = rows.gone(changes)
    found: list[list[Part]] = []
    total = 0
    for part in version.parts:
        count = part.rows - gone.get(part.number, 0)
        if not 0 < count < below:
            total = -1
            continue
        if total < 0 or not found or total + count > most or found[-1][-1].template != part.template:
            found.append([])
            total = 0
        found[-1].append(part)
        total += count
    return [group for group in found if len(group) > 1]


def _runs_of_roots(known: rows.CurrentRows) -> list[tuple[str, int]]:
    starts = np.flatnonzero(np.r_[True, np.diff(known.root_of) != 0])
    counts = np.diff(np.r_[starts, len(known)])
    return [
        (str(known.roots[code]), count)
        for code, count in zip(known.root_of[starts].tolist(), counts.tolist(), strict=True)
    ]


def _neighbours(version: Version, names: Sequence[str]) -> list[Part] | None:
    """Return parts by their names; None if they are not neighbours in a version, in this order."""
    own = [part.name for part in version.parts]
    first = own.index(names[0]) if names and names[0] in own else len(own)
    found = version.parts[first : first + len(names)]
    return found if [part.name for part in found] == list(names) else None


def _listed(version: Version) -> str:
    names = [part.name for part in version.parts]
    return ", ".join(names if len(names) <= 10 else [*names[:9], "...", names[-1]])


def _design(like: RunFolder) -> planning.Design:
    """Return the design of a run, from its files alone."""
    found = spec.RuntimeModelSpec.from_json(like.objects.read(MODEL_SPEC).decode())
    _, built = tiles.recorded_products(like, found)
    return planning.Design(
        model=model_cache.ResolvedModel(
            spec=found, backend=cast(backends.BackendKind, like.backend), execution=like.execution
        ),
        preprocessing=like.preprocessing,
        products=built,
        points=None,
        device=_DEVICE,
        tiles=like.tiles,
        cells=like.cells,
        outputs=like.outputs,
    )


class _Source:
    """The rows of a plan, read from the shards that hold them; each is compared with its record's digests."""

    def __init__(self, folder: DatasetFolder, plan: _Plan) -> None:
        self.folder = folder
        self.known = plan.known
        self.runs: dict[int, RunFolder] = {}
        self.kept: tuple[tuple[int, int], CommitRecord, dict[str, np.ndarray]] | None = None

    def shard(self, run: RunFolder, start: int, stop: int) -> tuple[dict[str, np.ndarray], np.ndarray, dict[str, Any]]:
        """Return a shard's arrays, its status and the details of its record, from the records of its rows."""
        of_regions = run.store.plan.region_arrays
        arrays = {
            array.name: np.empty((stop - start, *array.shape[1:]), array.dtype)
            for array in run.store.plan.all_arrays
            if array.name not in of_regions
        }
        regions = {
            array.name: np.full((run.store.plan.region_places, *array.shape[1:]), _empty(array), array.dtype)
            for array in run.store.plan.arrays
            if array.name in of_regions
        }
        filled = 0
        details = _Details(self.known.text("image_id", np.arange(start, stop)), start)
        for first, last in self._pieces(start, stop):
            part, rows_in = int(self.known.part[first]), self.known.row[first:last]
            record, blocks = self._blocks(part, int(rows_in[0]))
            at = rows_in - record.rows[0]
            for name, values in arrays.items():
                values[first - start : last - start] = blocks[name][at]
            places = self._places(part, rows_in) if regions else np.empty(0, np.int64)
            for name, values in regions.items():
                values[filled : filled + len(places)] = blocks[name][places]
            filled += len(places)
            details.add(record, documents.part_name(part), at, first)
        state = arrays.pop(layout.STATUS)
        points = arrays.get(stored_arrays.POINT_STATUS, np.zeros(0, np.uint8))
        said = details.as_json(statuses.counts(statuses.written(statuses.POINTS), points))
        return {**arrays, **regions}, state, {**said, **shard_encoding.region_counts(regions)}

    def _places(self, part: int, rows_in: np.ndarray) -> np.ndarray:
        """Return the places, among those of their shard, of the regions of rows of one shard, int64."""
        run = self._run(part)
        assert run.regions is not None
        start, stop = run.store.shard_range(int(rows_in[0]) // run.store.plan.shard_rows)
        return np.flatnonzero(np.isin(run.regions.of_rows(start, stop).rows, rows_in))

    def _pieces(self, start: int, stop: int) -> Iterator[tuple[int, int]]:
        """Yield [first, last) of rows that lie in one shard of one part."""
        part = self.known.part[start:stop]
        numbers, inverse = np.unique(part, return_inverse=True)
        sizes = np.array([self._run(number).store.plan.shard_rows for number in numbers.tolist()], np.int64)
        shard = self.known.row[start:stop] // sizes[inverse]
        breaks = np.flatnonzero((np.diff(part) != 0) | (np.diff(shard) != 0)) + 1 + start
        yield from zip([start, *breaks.tolist()], [*breaks.tolist(), stop], strict=True)

    def _blocks(self, part: int, row: int) -> tuple[CommitRecord, dict[str, np.ndarray]]:
        store = self._run(part).store
        key = part, row // store.plan.shard_rows
        if self.kept is None or self.kept[0] != key:
            self.kept = None
            record = store.record(key[1])
            if record is None:
                raise errors.StoreError(
                    f"shard {key[1]} of {store.name!r} has no commit record, and a version has its rows: it was "
                    "repaired or damaged; restore the part from a copy"
                )
            self.kept = key, record, store.blocks(record)
        return self.kept[1:]

    def _run(self, part: int) -> RunFolder:
        if part not in self.runs:
            self.runs[part] = self.folder.part(documents.part_name(part))
        return self.runs[part]


def _empty(array: layout.ArrayPlan) -> float:
    """Return what a place holds that is no region."""
    return statuses.NO_REGION if array.name == stored_arrays.REGION_STATUS else array.fill


class _Details:
    """Details of a new shard's commit record, collected from the records of the shards that were copied."""

    def __init__(self, image_ids: Sequence[str], start: int) -> None:
        self.image_ids = image_ids
        self.start = start
        self.unreadable: list[dict[str, Any]] = []
        self.changed: list[Any] = []
        self.further_frames: list[int] = []
        self.input_sha256: list[str] = []
        self.copied: list[dict[str, Any]] = []

    def add(self, record: CommitRecord, part: str, at: np.ndarray, first: int) -> None:
        """Add rows of a shard.

        Args:
            record: the shard's record.
            part: name of its part.
            at: the rows in it, int64 `[n]`, ascending.
            first: the first of the new rows.
        """
        old = record.details
        new = {int(row) + record.rows[0]: first + index for index, row in enumerate(at)}
        for name, kept in (("unreadable", self.unreadable), ("changed_since_planned", self.changed)):
            for item in old.get(name, ()):
                if item["row"] in new:
                    row = new[item["row"]]
                    kept.append({**item, "row": row, "image_id": self.image_ids[row - self.start]})
        self.further_frames += [new[row] for row in old.get("further_frames", ()) if row in new]
        sha256 = list(old.get("input_sha256", ()))
        self.input_sha256 += [sha256[row] if row < len(sha256) else "" for row in at.tolist()]
        about = {name: old[name] for name in ("session", "started", "device") if name in old}
        self.copied.append({"part": part, "shard": record.shard, "rows": len(at), **about})

    def as_json(self, points: Mapping[str, int]) -> dict[str, Any]:
        """Return the details; `points` counts the states of the points."""
        return {
            "unreadable": self.unreadable,
            "changed_since_planned": self.changed,
            **({"further_frames": sorted(self.further_frames)} if self.further_frames else {}),
            "points": dict(points),
            "input_sha256": self.input_sha256,
            "batch_sizes": {},
            "seconds": {},
            "copied": self.copied,
        }
