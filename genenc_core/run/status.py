"""Where a run stands and whether it is intact, read from the run folder alone."""

import dataclasses
import functools
import itertools
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from genenc_core import errors, spec
from genenc_core.images import folders
from genenc_core.images.point_scale import PointsScale
from genenc_core.images.point_states import POINT_STATES
from genenc_core.run import identity, integrity, out_folder, records, tally
from genenc_core.run.folder import MODEL_SPEC, RunFolder
from genenc_core.store import repair, run_store, verify
from genenc_core.store.objects import Root
from genenc_core.store.records import CommitRecord
from genenc_core.text import argument, plural

NAMED = 20
"""Unreadable images that a person is told of."""
_WORTH_NOTING = 256
_NOTED_AT_ONCE = 64


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ShardRow:
    """One shard as a person sees it: `state` is committed, failed or pending."""

    shard: int
    start: int
    stop: int
    state: str
    unreadable: int = 0
    images_per_second: float | None = None
    seconds: dict[str, float] = dataclasses.field(default_factory=dict)
    reason: str = ""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Survey:
    """Everything the commit records say, from one reading: counts, a line per shard, and what could not be read.

    `unreadable` has the first images only where fewer were asked for.
    """

    status: records.RunStatus
    fit: str
    shards: tuple[ShardRow, ...]
    unreadable: tuple[dict[str, Any], ...]
    labels: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    left_out: Mapping[str, tuple[int, tuple[str, ...]]] = dataclasses.field(default_factory=dict)
    foreign: tuple[str, ...] = ()
    """Files among the commit records that no shard of the run has."""


def survey(root: Root, *, most: int | None = None, committed_rows: bool = True) -> Survey:
    """Return what a run's commit records say; those that are not in its tally are read.

    Args:
        root: the run folder.
        most: unreadable images to name with their reasons, which stand in the records alone; None for all.
        committed_rows: also give the rows of committed shards.
    """
    folder = RunFolder(root)
    (committed, foreign), failed = folder.store.record_names(), set(folder.failed())
    lines = _lines(folder, [shard for shard in range(folder.store.shard_count) if shard in committed])
    shown = [shard for shard in range(folder.store.shard_count) if committed_rows or shard not in lines]
    rows = [_shard_row(folder, shard, lines.get(shard), failed) for shard in shown]
    points: Counter[str] = Counter()
    for name, count in (item for line in lines.values() for item in line.points.items()):
        points[name] += count
    found = records.RunStatus(
        root=str(root),
        rows=folder.store.plan.rows,
        shards=folder.store.shard_count,
        committed=len(committed),
        failed=tuple(sorted(failed)),
        ok=sum(line.ok for line in lines.values()),
        unreadable=sum(line.unreadable for line in lines.values()),
        points={name: points[name] for name in POINT_STATES.values() if points[name]},
        changed=sum(line.changed for line in lines.values()),
    )
    fit = str(folder.identity["preprocessing"]["fit"])
    unreadable = _unreadable(folder, sorted(shard for shard, line in lines.items() if line.unreadable), most)
    return Survey(
        status=found,
        fit=fit,
        shards=tuple(rows),
        unreadable=tuple(unreadable),
        labels=folder.manifest.labels,
        left_out=folder.manifest.left_out,
        foreign=tuple(foreign),
    )


def _lines(folder: RunFolder, committed: Sequence[int]) -> dict[int, tally.Line]:
    """Return the lines of committed shards: of the tally, or of records, which are noted when they are many."""
    with run_store.read_errors(folder.root):
        stamps = tally.stamps(folder.objects)
        known = tally.read(folder.objects, stamps, folder.cache)
    lines = {shard: known[shard] for shard in committed if shard in known}
    missing = [shard for shard in committed if shard not in lines]
    for first in range(0, len(missing), _NOTED_AT_ONCE):
        found = filter(None, (_record(folder, shard) for shard in missing[first : first + _NOTED_AT_ONCE]))
        records_read = {record.shard: record for record in found}
        lines |= {shard: tally.Line.of(record) for shard, record in records_read.items()}
        if len(missing) >= _WORTH_NOTING:
            tally.keep(folder.cache, records_read.values(), stamps)
    return lines


def _record(folder: RunFolder, shard: int) -> CommitRecord | None:
    record = folder.store.record(shard)
    if record is not None:
        subject = f"the commit record of shard {shard} of {folder.root!r}"
        identity.check_details(record.details, subject=subject)
    return record


def _unreadable(folder: RunFolder, shards: Iterable[int], most: int | None) -> list[dict[str, Any]]:
    """Return the first `most` unreadable images; reads the records of shards that have some."""
    found: list[dict[str, Any]] = []
    for shard in shards:
        if most is not None and len(found) >= most:
            break
        record = _record(folder, shard)
        found += [] if record is None else record.details["unreadable"]
    return found[:most]


def describe(found: records.RunStatus) -> dict[str, Any]:
    """Return a run's status as JSON data."""
    return {**dataclasses.asdict(found), "pending": found.pending, "complete": found.complete}


def run_status(root: Root) -> records.RunStatus:
    """Return the counts of a run, from its commit records."""
    return survey(root, most=0, committed_rows=False).status


def standing(root: Root) -> str:
    """Return how many shards of a run are stored and how to go on, for the end of an unfinished session."""
    try:
        found = run_status(root)
    except (errors.StoreError, errors.InputError):
        return "nothing is stored, the run folder was not made yet"
    return f"{found.committed} of {found.shards} shards are stored; continue with: genenc resume {argument(root)}"


def select_shards(folder: RunFolder, text: str) -> list[int]:
    """Return the shards that `pending`, `failed` or a list like `0,3-7` name and that are not committed.

    `unreadable` names the committed shards in which rows are unreadable, `unreadable:5,17-20` those of these rows.

    Raises:
        InputError: another form, or a shard or row that the run does not have.
    """
    kind, _, listed = text.partition(":")
    if kind == "unreadable" and (listed or kind == text):
        return sorted(unreadable_rows(folder, listed or "all"))
    pending = folder.store.pending()
    if text == "pending":
        return pending
    if text == "failed":
        return folder.failed()
    named: set[int] = set()
    for first, last in numbers(text, folder.store.shard_count, "shards"):
        named.update(range(first, last + 1))
    return sorted(named & set(pending))


def unreadable_rows(folder: RunFolder, wanted: str) -> dict[int, int]:
    """Return how many unreadable rows each shard has that may have some of those wanted: `all`, or a list.

    Raises:
        InputError: neither, or a row that the run does not have.
    """
    committed = folder.store.committed()
    lines = _lines(folder, [shard for shard in range(folder.store.shard_count) if shard in committed])
    found = {shard: line.unreadable for shard, line in lines.items() if line.unreadable}
    if wanted == "all":
        return found
    ranges = numbers(wanted, folder.store.plan.rows, "rows")
    kept = {}
    for shard, count in found.items():
        start, stop = folder.store.shard_range(shard)
        named = sum(max(min(last + 1, stop) - max(first, start), 0) for first, last in ranges)
        if named:
            kept[shard] = min(count, named)
    return kept


def numbers(text: str, count: int, what: str) -> list[tuple[int, int]]:
    """Read a list like `0,3-7` as (first, last) pairs below `count`.

    Raises:
        InputError: another form, or out of range.
    """
    found = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*([0-9]{1,18})(?:-([0-9]{1,18}))?\s*", part)
        if match is None:
            forms = "failed, pending, unreadable, " if what == "shards" else "all, "
            raise errors.InputError(f"--shards {text!r} is neither {forms}nor a list of {what} like 0,3-7")
        first, last = int(match[1]), int(match[2] or match[1])
        if last < first or last >= count:
            raise errors.InputError(
                f"--shards {text!r}: {part.strip()} is out of range; the run has {what} 0 to {count - 1}"
            )
        found.append((first, last))
    return found


def verify_run(root: Root, *, content: bool = False) -> verify.VerifyReport:
    """Check every committed object against its record, the metadata, the manifest, the model and the provenance.

    Raises:
        StoreError: the folder is not a run, or its manifest or identity is not its own.
    """
    try:
        folder = RunFolder(root)
    except errors.StoreError:
        # A file that the run was made with is damaged: what else is damaged can still be listed.
        store = run_store.RunStore.open(root)
        with run_store.read_errors(store.name):
            found = tuple(integrity.recorded(store))
        if not found:
            raise
        report = verify.verify_store(store, content=content)
        return dataclasses.replace(report, problems=(*found, *report.problems))
    report = verify.verify_store(folder.store, content=content)
    return dataclasses.replace(report, problems=(*integrity.problems(folder), *report.problems))


def repair_run(root: Root, *, content: bool = False) -> repair.Repaired:
    """Put right what `verify_run` finds: damaged shards become pending, metadata is written anew.

    Raises:
        StoreError: the folder is not a run, its manifest or identity is not its own, or the disk failed.
    """
    # What only reads a run does without torch, which the planning of arrays needs.
    from genenc_core.run import store_plan

    folder = RunFolder(root)
    out_folder.sweep_killed(root)
    return repair.repair_store(
        folder.store,
        coordinates=store_plan.coordinates(folder.manifest),
        content=content,
        beside=functools.partial(integrity.problems, folder),
        remake=lambda key: _readme(folder) if key == integrity.README else None,
    )


def _readme(folder: RunFolder) -> bytes | None:
    """Return the run's README as this version writes it, None where it cannot."""
    from genenc_core.encoding import products
    from genenc_core.run import store_plan, tiles

    try:
        found = spec.RuntimeModelSpec.from_json(folder.objects.read(MODEL_SPEC).decode())
        parsed = [products.parse_product(each) for each in folder.identity["products"]]
        slots = tiles.outputs(found, parsed, folder.tiles)
        built = products.build_products(parsed, slots, point_count=len(folder.manifest.point_names), cells=folder.cells)
        left_out = products.outputs_not_stored(found, built)
        words = store_plan.readme(folder.identity, folder.manifest, built, out=folder.given.out, not_stored=left_out)
    except (errors.GenencError, OSError):
        return None
    return words.encode()


def require_intact(root: Root) -> int:
    """Return the number of committed shards, all of them checked and in their place.

    Raises:
        StoreError: an object is not what its record says, the first few are named; or cannot be put in its place.
    """
    report = verify_run(root)
    if report.unpromoted:
        RunFolder(root).store.recover()
    _refuse(root, report.problems)
    return report.shards_checked


def require_listed(root: Root) -> None:
    """Refuse a run of whose committed objects some are missing or cut short, by listings alone: no object is read.

    Raises:
        StoreError: the first few are named.
    """
    _refuse(root, list(itertools.islice(verify.listed_problems(RunFolder(root).store), 5)))


def _refuse(root: Root, problems: Sequence[verify.Problem]) -> None:
    if not problems:
        return
    shards = (f"shard {item.shard:05d}: " if item.shard is not None else "" for item in problems)
    found = "; ".join(f"{shard}{item.place}: {item.what}" for shard, item in zip(shards, problems[:5], strict=False))
    where = argument(root)
    raise errors.StoreError(
        f"{str(root)!r} is damaged: {found}; genenc verify {where} lists everything, genenc verify {where} --repair "
        f"makes damaged shards pending, then genenc resume {where} encodes them again"
    )


def summary_lines(found: Survey, *, most: int = NAMED) -> list[str]:
    """Return what to tell a person about a run: counts, then at most `most` unreadable images with reasons."""
    status, failures = found.status, found.unreadable[:most]
    where = f"{status.committed} of {plural(status.shards, 'shard')}"
    lines = [f"{status.ok} of {plural(status.rows, 'image')} stored in {where}"]
    root = argument(status.root)
    if status.unreadable:
        lines.append(f"{status.unreadable} unreadable (rows kept, NaN):")
        lines += [f"  row {item['row']}: {item['image_id']}: {item['reason']}" for item in failures]
        if len(failures) < status.unreadable:
            lines.append(f"  ... and {status.unreadable - len(failures)} more: genenc status --json {root}")
        lines.append(
            f"  to try them again: genenc resume {root} --shards unreadable, with --accept-changed for files that were "
            "repaired or replaced since the run was planned"
        )
    if status.changed:
        lines.append(f"{status.changed} stored from files that changed since the run was planned")
    if status.points:
        counts = ", ".join(f"{count} {name.replace('_', ' ')}" for name, count in status.points.items())
        lines.append(f"points: {counts}")
    if status.points.get("outside_view"):
        lines.append("  outside view: cut off by the fit; --fit pad or stretch shows the model whole images")
    if status.points.get("outside_image"):
        lines.append(
            "  outside image: beyond the image's edges; correct the points file (other size? x and y swapped?)"
        )
    if found.labels.get("scale"):
        scale = PointsScale.parse(found.labels["scale"])
        lines.append(f"  the coordinates of the points file were {scale.describe()}")
    if found.labels.get("absent"):
        lines.append(f"  {found.labels['absent']} images of the points file are not among the images")
    if found.labels.get("images_without"):
        lines.append(f"  {plural(found.labels['images_without'], 'image')} without any label")
    if found.left_out:
        lines.append(f"left out: {folders.describe(found.left_out)}")
    if found.foreign:
        named = ", ".join(found.foreign[:5]) + (", ..." if len(found.foreign) > 5 else "")
        lines.append(f"foreign files among the commit records: {named}; genenc verify {root} --repair sets them aside")
    if status.failed:
        lines.append(f"failed shards: {', '.join(map(str, status.failed))}")
    if not status.complete:
        lines.append(f"{plural(status.pending, 'shard')} to do: genenc resume {root}")
    return lines


def _shard_row(folder: RunFolder, shard: int, line: tally.Line | None, failed: set[int]) -> ShardRow:
    plan = folder.store.plan
    start, stop = shard * plan.shard_rows, min((shard + 1) * plan.shard_rows, plan.rows)
    if line is None:
        state = "failed" if shard in failed else "pending"
        reason = folder.failure(shard) if shard in failed else ""
        return ShardRow(shard=shard, start=start, stop=stop, state=state, reason=reason)
    seconds = {key: float(value) for key, value in line.seconds.items()}
    busy = seconds.get("load_wait", 0.0) + seconds.get("encode", 0.0) + seconds.get("reduce", 0.0)
    return ShardRow(
        shard=shard,
        start=start,
        stop=stop,
        state="committed",
        unreadable=line.unreadable,
        images_per_second=(stop - start) / busy if busy else None,
        seconds=seconds,
    )
