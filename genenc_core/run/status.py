"""Status, verification and repair of a run, from its folder alone."""

import dataclasses
import functools
import itertools
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from genenc_core import errors, spec, statuses
from genenc_core.images.labels.scale import PointsScale
from genenc_core.run import (
    bound,
    decisions,
    identity,
    integrity,
    out_folder,
    probe_source,
    quantized,
    records,
    session_log,
    status_cache,
)
from genenc_core.run.bound import Bound
from genenc_core.run.folder import MODEL_SPEC, RunFolder
from genenc_core.store import repair, run_store, verify
from genenc_core.store.backends.objects import Root
from genenc_core.store.commit_record import CommitRecord
from genenc_core.text import argument, plural

NAMED = 20
"""Unreadable images listed in text output."""
_CACHE_FROM = 256
_CACHE_BATCH = 64


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ShardRow:
    """One shard in status output; `state` is committed, damaged, failed or pending."""

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
    """Summary of all commit records: counts, a row per shard, and unreadable images.

    `unreadable` may be truncated to the number asked for, and so may `failed_images`: those that could not be read
    when a shard failed, whose rows are not stored.
    """

    status: records.RunStatus
    fit: str
    shards: tuple[ShardRow, ...]
    unreadable: tuple[dict[str, Any], ...]
    failed_images: tuple[dict[str, Any], ...] = ()
    labels: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    left_out: Mapping[str, tuple[int, tuple[str, ...]]] = dataclasses.field(default_factory=dict)
    what_is_left_out: str = ""
    """The same in words."""
    foreign: tuple[str, ...] = ()
    """Files among the commit records that belong to no shard of the run."""
    is_probe_set: bool = False
    region_labels: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """What `regions.parquet` says of the regions file."""
    source: tuple[str, ...] = ()
    """Of a probe set: what has become of its source, as text."""
    dataset: str | None = None
    """The dataset that the run is a part of."""
    first_with_further_frames: str | None = None
    """The first image whose file holds further frames."""


def survey(folder: RunFolder, *, most: int | None = None, committed_rows: bool = True) -> Survey:
    """Summarise a run's commit records; records not in its tally are read, damaged ones are listed.

    Args:
        folder: the run.
        most: maximum number of unreadable images to list, which needs their records; None for all.
        committed_rows: include rows for committed shards.
    """
    (committed, foreign), failed = folder.store.record_names(), set(folder.failed())
    damaged: dict[int, str] = {}
    lines = _lines(folder, [shard for shard in range(folder.store.shard_count) if shard in committed], damaged)
    unreadable = _unreadable(folder, sorted(shard for shard, line in lines.items() if line.unreadable), most, damaged)
    lines = {shard: line for shard, line in lines.items() if shard not in damaged}
    shown = [shard for shard in range(folder.store.shard_count) if committed_rows or shard not in lines]
    rows = [_shard_row(folder, shard, lines.get(shard), failed, damaged.get(shard)) for shard in shown]
    points: Counter[str] = Counter()
    regions: Counter[str] = Counter()
    for line in lines.values():
        points.update(line.points)
        regions.update(line.regions)
    found = records.RunStatus(
        root=folder.root,
        rows=folder.store.plan.rows,
        shards=folder.store.shard_count,
        committed=len(committed - damaged.keys()),
        failed=tuple(sorted(failed)),
        ok=sum(line.ok for line in lines.values()),
        unreadable=sum(line.unreadable for line in lines.values()),
        points={each.name: points[each.name] for each in statuses.written(statuses.POINTS) if points[each.name]},
        regions={each.name: regions[each.name] for each in statuses.written(statuses.REGIONS) if regions[each.name]},
        changed=sum(line.changed for line in lines.values()),
        further_frames=sum(line.further[0] for line in lines.values() if line.further),
        damaged=tuple(sorted(damaged)),
        bound=bound.find((line.seconds, line.work) for line in lines.values() if line.work),
        quantized=quantized.losses(folder.store.plan.arrays, (line.quantized for line in lines.values())),
        decided=decisions.decisions(line.decided for line in lines.values()),
    )
    fit = str(folder.identity["preprocessing"]["fit"])
    first = min((line.further[1] for line in lines.values() if line.further), default=None)
    return Survey(
        status=found,
        fit=fit,
        shards=tuple(rows),
        unreadable=tuple(unreadable),
        failed_images=tuple(_failed_images(folder, failed, most)),
        labels=folder.manifest.labels,
        region_labels={} if folder.regions is None else folder.regions.labels,
        left_out=folder.manifest.left_out,
        what_is_left_out=folder.manifest.what_is_left_out,
        foreign=tuple(foreign),
        is_probe_set=folder.is_probe_set,
        source=tuple(probe_source.notes(folder)) if folder.is_probe_set else (),
        dataset=folder.dataset,
        first_with_further_frames=None if first is None else folder.manifest.read(first, first + 1).image_ids[0],
    )


def _lines(
    folder: RunFolder, committed: Sequence[int], damaged: dict[int, str] | None = None
) -> dict[int, status_cache.Line]:
    """Return the lines of committed shards, from the tally or from records, which are cached if there are many.

    Damaged records are added to `damaged` with their reasons; if it is None, the first one raises `StoreError`.
    """
    with run_store.read_errors(folder.root):
        stamps = status_cache.stamps(folder.objects)
        known = status_cache.read(folder.objects, stamps, folder.cache)
    lines = {shard: known[shard] for shard in committed if shard in known}
    missing = [shard for shard in committed if shard not in lines]
    for first in range(0, len(missing), _CACHE_BATCH):
        found = filter(None, (_record(folder, shard, damaged) for shard in missing[first : first + _CACHE_BATCH]))
        records_read = {record.shard: record for record in found}
        lines |= {shard: status_cache.Line.of(record) for shard, record in records_read.items()}
        if len(missing) >= _CACHE_FROM:
            status_cache.keep(folder.cache, records_read.values(), stamps)
    return lines


def _record(folder: RunFolder, shard: int, damaged: dict[int, str] | None = None) -> CommitRecord | None:
    try:
        record = folder.store.record(shard)
        if record is not None:
            subject = f"the commit record of shard {shard} of {folder.root!r}"
            identity.check_details(record.details, subject=subject)
    except errors.StoreError as error:
        if damaged is None or verify.is_passing(folder.store, error.__cause__):
            raise
        damaged[shard] = str(error)
        return None
    return record


def _failed_images(folder: RunFolder, shards: Iterable[int], most: int | None) -> list[dict[str, Any]]:
    """Return the first `most` images that could not be read when shards failed."""
    found: list[dict[str, Any]] = []
    for shard in sorted(shards):
        if most is not None and len(found) >= most:
            break
        found += folder.failed_images(shard)
    return found[:most]


def _unreadable(
    folder: RunFolder, shards: Iterable[int], most: int | None, damaged: dict[int, str]
) -> list[dict[str, Any]]:
    """Return the first `most` unreadable images, from the records of the given shards."""
    found: list[dict[str, Any]] = []
    for shard in shards:
        if most is not None and len(found) >= most:
            break
        record = _record(folder, shard, damaged)
        found += [] if record is None else record.details["unreadable"]
    return found[:most]


def describe(found: records.RunStatus) -> dict[str, Any]:
    """Return a run's status as JSON data."""
    return {**dataclasses.asdict(found), "pending": found.pending, "complete": found.complete}


def run_status(folder: RunFolder) -> records.RunStatus:
    """Count a run's rows and shards from its commit records.

    Raises:
        StoreError: the folder cannot be read, or a commit record is damaged.
    """
    found = survey(folder, most=0, committed_rows=False)
    if found.status.damaged:
        raise errors.StoreError(next(row.reason for row in found.shards if row.state == "damaged"))
    return found.status


def progress_summary(root: Root) -> str:
    """Describe the progress of an unfinished run and how to continue it."""
    try:
        found = survey(RunFolder(root), most=0, committed_rows=False).status
    except (errors.StoreError, errors.InputError):
        return "nothing is stored, the run folder does not exist yet"
    return f"{found.committed} of {found.shards} shards are stored; continue with: genenc resume {argument(root)}"


def select_shards(folder: RunFolder, text: str) -> list[int]:
    """Return the uncommitted shards selected by `pending`, `failed` or a list like `0,3-7`.

    `unreadable` selects the committed shards with unreadable rows, `unreadable:5,17-20` those with these rows.

    Raises:
        InputError: not of these forms, or a shard or row that the run does not have.
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
    for first, last in parse_ranges(text, folder.store.shard_count, "shards"):
        named.update(range(first, last + 1))
    return sorted(named & set(pending))


def unreadable_by_shard(folder: RunFolder) -> dict[int, int]:
    """Return the number of unreadable rows of every committed shard, from the tally or the records."""
    committed = folder.store.committed()
    lines = _lines(folder, [shard for shard in range(folder.store.shard_count) if shard in committed])
    return {shard: line.unreadable for shard, line in lines.items()}


def unreadable_rows(folder: RunFolder, wanted: str) -> dict[int, int]:
    """Return the maximum number of selected unreadable rows by shard; `wanted` is `all` or a list of rows.

    Raises:
        InputError: neither, or a row that the run does not have.
    """
    found = {shard: count for shard, count in unreadable_by_shard(folder).items() if count}
    if wanted == "all":
        return found
    ranges = parse_ranges(wanted, folder.store.plan.rows, "rows")
    kept = {}
    for shard, count in found.items():
        start, stop = folder.store.shard_range(shard)
        named = sum(max(min(last + 1, stop) - max(first, start), 0) for first, last in ranges)
        if named:
            kept[shard] = min(count, named)
    return kept


def parse_ranges(text: str, count: int, what: str) -> list[tuple[int, int]]:
    """Parse a list like `0,3-7` into (first, last) pairs below `count`.

    Raises:
        InputError: not of this form, or out of range.
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


def verify_place(root: Root, *, content: bool = False) -> verify.VerifyReport:
    """Verify a run as `verify_run` does, even if it is too damaged to open.

    Raises:
        StoreError: not a run, or its manifest or identity is from another run.
    """
    try:
        folder = RunFolder(root)
    except errors.StoreError:
        # An input file of the run is damaged; still list the other problems.
        store = run_store.RunStore.open(root)
        with run_store.read_errors(store.name):
            found = tuple(integrity.recorded(store))
        if not found:
            raise
        report = verify.verify_store(store, content=content)
        return dataclasses.replace(report, problems=(*found, *report.problems))
    return verify_run(folder, content=content)


def verify_run(folder: RunFolder, *, content: bool = False) -> verify.VerifyReport:
    """Check every committed object against its record, the metadata, the manifest, the model and the provenance.

    Raises:
        StoreError: the folder cannot be read.
    """
    sessions: set[str] = set()
    report = verify.verify_store(folder.store, content=content, seen=_session_collector(sessions))
    return dataclasses.replace(report, problems=(*integrity.problems(folder, sessions), *report.problems))


def _session_collector(sessions: set[str]) -> Callable[[CommitRecord], None]:
    """Return a callback that adds the sessions of commit records to `sessions`."""

    def note(record: CommitRecord) -> None:
        sessions.update(filter(None, [session_log.session_of(record)]))

    return note


def part_refusal(folder: RunFolder) -> str:
    """Return why nothing is encoded or repaired in a part of a dataset but by updates."""
    return (
        f"{folder.root!r} is a part of the dataset {folder.dataset!r}, whose versions must not change: restore a "
        f"damaged part from a copy; genenc update {argument(folder.dataset)} continues an unfinished one, and tries "
        "unreadable images again with --retry-unreadable"
    )


def repair_run(folder: RunFolder, *, content: bool = False) -> repair.Repaired:
    """Repair the problems that `verify_run` finds: damaged shards become pending, metadata is rewritten.

    Raises:
        InputError: it is a part of a dataset.
        StoreError: an I/O error.
    """
    # Imported late because it imports torch, which read-only commands do not need.
    from genenc_core.run import store_plan

    if folder.dataset is not None:
        raise errors.InputError(part_refusal(folder))
    sessions: set[str] = set()
    out_folder.sweep_killed(folder.root)

    def remade(key: str) -> bytes | None:
        if key == integrity.README:
            return _readme(folder)
        needed = {place for place, _ in session_log.named(folder.objects, sessions)}
        return session_log.recreate(folder.objects, key, stand_in=key in needed)

    done = repair.repair_store(
        folder.store,
        coordinates=store_plan.coordinates(folder.manifest, folder.store.plan, folder.regions),
        content=content,
        beside=functools.partial(integrity.problems, folder, sessions),
        remake=remade,
        seen=_session_collector(sessions),
    )
    lost = tuple(key for key in done.restored if session_log.is_lost(folder.objects, key))
    return dataclasses.replace(done, restored=tuple(key for key in done.restored if key not in lost), lost=lost)


def _readme(folder: RunFolder) -> bytes | None:
    """Return the run's README as written by this version, None if that fails."""
    from genenc_core.encoding import products
    from genenc_core.run import store_plan, tiles

    try:
        found = spec.RuntimeModelSpec.from_json(folder.objects.read(MODEL_SPEC).decode())
        _, built = tiles.recorded_products(folder, found)
        left_out = products.outputs_not_stored(found, built)
        words = store_plan.readme(
            folder.identity,
            folder.manifest,
            built,
            out=folder.given.out,
            weights=folder.given.weights,
            not_stored=left_out,
            regions=folder.regions,
        )
    except (errors.GenencError, OSError):
        return None
    return words.encode()


def require_intact(folder: RunFolder) -> int:
    """Verify all committed shards and finish their promotion; return their number.

    Raises:
        StoreError: an object does not match its record (the first few are named), or cannot be promoted.
    """
    report = verify_run(folder)
    if report.unpromoted:
        folder.store.recover()
    _refuse(folder, report.problems)
    return report.shards_checked


def require_listed(folder: RunFolder) -> None:
    """Refuse a run with missing or truncated objects, from listings alone: no object is read.

    Raises:
        StoreError: the first few are named.
    """
    _refuse(folder, list(itertools.islice(verify.listed_problems(folder.store), 5)))


def _refuse(folder: RunFolder, problems: Sequence[verify.Problem]) -> None:
    if not problems:
        return
    shards = (f"shard {item.shard:05d}: " if item.shard is not None else "" for item in problems)
    found = "; ".join(f"{shard}{item.place}: {item.what}" for shard, item in zip(shards, problems[:5], strict=False))
    where = argument(folder.root)
    remedy = (
        f"genenc verify {where} --repair makes damaged shards pending, then genenc resume {where} encodes them again"
    )
    if folder.dataset is not None:
        remedy = f"restore this part of the dataset {folder.dataset!r} from a copy"
    raise errors.StoreError(f"{folder.root!r} is damaged: {found}; genenc verify {where} lists all problems, {remedy}")


def label_lines(labels: Mapping[str, Any], *, what: str = "points") -> list[str]:
    """Return what the `labels` of a manifest or of regions count, apart from those that were placed."""
    lines = []
    if labels.get("absent"):
        lines.append(f"  {labels['absent']} images of the {what} file are not among the images")
    if labels.get("uncertain"):
        noun = "label" if what == "points" else "region"
        lines.append(f"  {plural(labels['uncertain'], noun)} left out: below the least likelihood")
    if labels.get("images_without"):
        lines.append(f"  {plural(labels['images_without'], 'image')} without any label")
    return lines


def _region_lines(found: Survey) -> list[str]:
    counts = found.status.regions
    if not counts:
        return []
    shown = ", ".join(f"{count} {name.replace('_', ' ')}" for name, count in counts.items())
    lines = [f"regions: {shown}"]
    if counts.get("outside_view"):
        lines.append("  outside view: cut off by the fit; --fit pad or stretch shows the model whole images")
    if counts.get("outside_image"):
        lines.append("  outside image: beyond the image's edges; correct the regions file (other size?)")
    if counts.get("other_size"):
        lines.append("  other size: masks that were not made from these images; give the images they were made from")
    if counts.get("empty"):
        lines.append("  empty: boxes of no width or height, or masks without a pixel")
    if found.region_labels.get("scale"):
        scale = PointsScale.parse(found.region_labels["scale"])
        lines.append(f"  the coordinates of the regions file were {scale.describe()}")
    return lines + label_lines(found.region_labels, what="regions")


def summary_lines(found: Survey, limit: Bound | None, *, most: int = NAMED) -> list[str]:
    """Return a text summary of a run: counts, then at most `most` unreadable images with reasons.

    `limit` is the bottleneck of the run or session, omitted if None.
    """
    status, failures = found.status, found.unreadable[:most]
    where = f"{status.committed} of {plural(status.shards, 'shard')}"
    lines = [f"{status.ok} of {plural(status.rows, 'image')} stored in {where}"]
    root = argument(status.root)
    dataset = None if found.dataset is None else argument(found.dataset)
    if status.unreadable:
        lines.append(f"{status.unreadable} unreadable (rows kept, NaN):")
        lines += [f"  row {item['row']}: {item['image_id']}: {item['reason']}" for item in failures]
        if len(failures) < status.unreadable:
            lines.append(f"  ... and {status.unreadable - len(failures)} more: genenc status --json {root}")
        if not found.is_probe_set:
            lines.append(
                f"  to retry them: genenc resume {root} --shards unreadable, with --accept-changed for files that were "
                "repaired or replaced since the run was planned"
                if dataset is None
                else f"  to retry them: genenc update {dataset} for files that were repaired or replaced, with "
                "--retry-unreadable for those that were not"
            )
    if status.changed:
        lines.append(f"{status.changed} stored from files that changed since the run was planned")
    if status.further_frames:
        lines.append(
            f"{plural(status.further_frames, 'image')} stored from files with further frames or pages, which are not, "
            f"such as {found.first_with_further_frames!r}: --frames all takes the pages of TIFFs"
        )
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
    lines += label_lines(found.labels)
    lines += [f"{name}: {loss.words}" for name, loss in status.quantized.items() if status.committed]
    lines += [] if status.decided is None else [f"reproducible: {status.decided.words}"]
    lines += _region_lines(found)
    if found.left_out:
        lines.append(f"left out: {found.what_is_left_out}")
    if found.foreign:
        named = ", ".join(found.foreign[:5]) + (", ..." if len(found.foreign) > 5 else "")
        remedy = "" if dataset else f"; genenc verify {root} --repair sets them aside"
        lines.append(f"foreign files among the commit records: {named}{remedy}")
    if limit is not None:
        lines.append(limit.words)
    lines += found.source
    if status.failed:
        lines.append(f"failed shards: {', '.join(map(str, status.failed))}")
    broken = [row for row in found.shards if row.state == "damaged"]
    lines += [f"shard {row.shard} is damaged and not counted: {row.reason}" for row in broken[:most]]
    if len(broken) > most:
        lines.append(f"... and {plural(len(broken) - most, 'more damaged shard')}: genenc verify {root}")
    if status.pending:
        command = f"genenc resume {root}" if dataset is None else f"genenc update {dataset}"
        lines.append(f"{plural(status.pending, 'shard')} to do: {command}")
    return lines


def _shard_row(
    folder: RunFolder, shard: int, line: status_cache.Line | None, failed: set[int], damage: str | None
) -> ShardRow:
    plan = folder.store.plan
    start, stop = shard * plan.shard_rows, min((shard + 1) * plan.shard_rows, plan.rows)
    if damage is not None:
        return ShardRow(shard=shard, start=start, stop=stop, state="damaged", reason=damage)
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
