"""Sections of the page about what ran: counts, unreadable images, times, values, origin."""

from collections.abc import Sequence

import numpy as np

from genenc_core import text
from genenc_core.report import broken, page, pictures, plots
from genenc_core.report import counts as counting
from genenc_core.report.counts import Counts
from genenc_core.report.page import Section
from genenc_core.report.values import DRIFT_RULE, LISTED, MOST_VALUES, OUTLIER_RULE, Audit
from genenc_core.stored.rows import Stored

_THUMBNAILS = 12


def facts(counts: Counts, audits: list[Audit]) -> str:
    """Return the main figures."""
    said = sum(len(audit.findings) for audit in audits)
    complete = not counts.pending_shards
    shown = [
        page.fact(f"{counts.ok:,}", f"of {counts.rows:,} images stored", "good" if counts.ok == counts.rows else ""),
        page.fact(f"{counts.unreadable:,}", "unreadable", "bad" if counts.unreadable else ""),
        page.fact(
            "complete" if complete else f"{counts.pending_shards:,} to do",
            text.plural(counts.shards, "shard"),
            "good" if complete else "bad",
        ),
    ]
    if counts.rate is not None:
        shown.append(page.fact(f"{counts.rate:.3g}", "images/s, by the records"))
    if counts.bound is not None:
        shown.append(page.fact(counts.bound.stage, "busiest stage"))
    shown.append(page.fact(said, "remarks of the value audit"))
    return f'<div class="facts">{"".join(shown)}</div>'


def ran(source: Stored, counts: Counts) -> Section:
    """Return what ran, and what is stored."""
    body = page.pairs(counting.meaning(source))
    if counts.bound is not None:
        body += f"<p>{page.e(counts.bound.words[0].upper() + counts.bound.words[1:])}.</p>"
    points = ", ".join(f"{count:,} {name.replace('_', ' ')}" for name, count in counts.points.items())
    if points:
        body += f"<p>Points: {page.e(points)}.</p>"
    products = []
    for each in source.product_arrays:
        axes = ", ".join(f"{dim} {size}" for dim, size in zip(each.dims, each.shape, strict=True))
        products.append((each.name, axes, each.stored_as, each.text))
    body += page.table(("array", "axes of an image", "type", "product"), products)
    if counts.lines:
        body += page.more("As genenc status says it", f"<pre>{_lines(counts.lines)}</pre>")
    return Section(key="ran", title="What ran", body=body)


def _lines(lines: Sequence[str]) -> str:
    return "\n".join(map(page.e, lines))


def failed(source: Stored, counts: Counts) -> Section:
    """Return the unreadable images with reasons, and what can be drawn of them."""
    if not counts.failures:
        none = "None is listed in the records."
        words = none if counts.unreadable else "Every image that was tried could be read."
        return Section(key="failed", title="Unreadable images", body=page.soft(words))
    files = {each.row: pictures.broken_file(source, each.row) for each in counts.failures[:_THUMBNAILS]}
    there = [file for file in files.values() if file is not None]
    drawn = broken.drawn([file.path for file in there], [file.sha256 for file in there])
    rows = []
    for each in counts.failures:
        file = files.get(each.row)
        url = drawn.get(file.path) if file is not None else None
        shown = f'<img src="{page.e(url)}" alt="what can be drawn of {page.e(each.image)}" width="96">' if url else ""
        rows.append((each.row, each.image, each.reason, shown))
    words = f"{text.plural(counts.unreadable, 'row')} without features; their values are NaN."
    if len(counts.failures) < counts.unreadable:
        words += f" The first {len(counts.failures)} are listed; genenc status --json lists all."
    body = page.soft(words) + page.table(("row", "image", "reason", "what can be drawn"), rows, numbers=(0,), raw=3)
    return Section(key="failed", title="Unreadable images", body=body)


def times(counts: Counts) -> Section:
    """Return when shards were begun, and what their stages took."""
    measured = [each for each in counts.times if sum(each.seconds.values()) > 0]
    if not measured:
        return Section(key="times", title="Timeline", body=page.soft("The commit records hold no times."))
    body = _begun(counts)
    seconds = {name: [each.seconds[name] for each in measured] for name in plots.STAGES}
    used = {name: values for name, values in seconds.items() if sum(values) > 0}
    label = f"seconds of each stage of {text.plural(len(measured), 'shard')}"
    body += page.plot(plots.stages("stages", [each.name for each in measured], used, label))
    body += page.legend((plots.STAGES[name], f"{name} {sum(values):.3g} s") for name, values in used.items())
    body += page.soft(
        "Seconds of all workers and batches of a shard, from its commit record. Stages run beside each other, and so "
        "do shards: bars are longer than the clock ran."
    )
    return Section(key="times", title="Timeline", body=body)


def _begun(counts: Counts) -> str:
    began = np.array([each.began for each in counts.times])
    known = np.isfinite(began)
    spans = [(each.began, each.ended) for each in counts.sessions if np.isfinite(each.began)]
    if not known.any():
        return ""
    zero = min([*(start for start, _ in spans), float(began[known].min())])
    sessions = [(start - zero, (stop if np.isfinite(stop) else start) - zero) for start, stop in spans]
    at = np.flatnonzero(known)
    label = f"when {text.plural(len(at), 'shard')} were begun, in {text.plural(len(sessions), 'session')}"
    svg = plots.timeline("begun", (began[at] - zero).tolist(), at.tolist(), sessions, label)
    return page.plot(svg) + page.legend([(plots.KINDS[0], "a shard is begun"), (plots.KINDS[4], "a session runs")])


def audited(source: Stored, audits: list[Audit], left_out: list[str]) -> Section:
    """Return what the audit found in each product."""
    body = "".join(_audit(source, audit) for audit in audits)
    if not audits:
        body = page.soft("No vectors are stored yet." if not left_out else "No vectors are stored.")
    if left_out:
        body += page.soft(
            f"Not audited: {', '.join(left_out)} (maps, and vectors of more than {MOST_VALUES:,} values)."
        )
    rules = f"<p>{page.e(OUTLIER_RULE)}.</p><p>{page.e(DRIFT_RULE)}.</p>"
    return Section(key="values", title="Values", body=body + page.more("The rules", rules))


def _audit(source: Stored, audit: Audit) -> str:
    read = "all that are stored" if audit.exact else "a seeded sample, because there are so many"
    body = f"<h3>{page.e(audit.product)}</h3>"
    body += page.soft(f"{audit.vectors:,} vectors of {audit.dimensions:,} values: {read}.")
    body += page.findings(
        audit.findings,
        "Nothing stands out: no NaN, constant, repeated or outlying vectors, no dead dimensions, no drift.",
    )
    name = "".join(char for char in audit.product if char.isalnum())
    if len(audit.histogram) > 1:
        low, high = audit.norms[0], audit.norms[4]
        label = f"histogram of the lengths of {audit.vectors} vectors, {low:.4g} to {high:.4g}"
        body += page.plot(plots.lengths(f"lengths-{name}", audit.histogram, label))
    if audit.drift:
        worst = max(audit.drift, key=lambda each: each.distance)
        label = f"drift of {len(audit.drift)} shards, at most {worst.distance:.3g} in shard {worst.shard}"
        distances, expected = ([getattr(each, of) for each in audit.drift] for of in ("distance", "expected"))
        drifted = [each.drifted for each in audit.drift]
        body += page.plot(plots.drift(f"drift-{name}", distances, expected, drifted, page.e(label)))
        colours = [(plots.KINDS[0], "shard"), *([(plots.KINDS[5], "drifted shard")] if audit.drifted else [])]
        body += page.legend([*colours, ("currentColor", "dashed: expected of rows in random order")])
    return body + _named(source, audit)


def _named(source: Stored, audit: Audit) -> str:
    """Return the vectors and dimensions that findings are about."""
    kinds = [("not finite", audit.not_finite), ("constant", audit.constant), ("outlying", audit.outlying)]
    places = [(kind, where) for kind, found in kinds for where in found.first]
    places += [(f"repeated, group {at}", where) for at, group in enumerate(audit.repeated.first, 1) for where in group]
    shown = ""
    if places:
        rows = sorted({where.row for _, where in places})
        names = dict(zip(rows, source.names(np.array(rows)), strict=True))
        lines = [(kind, where.row, names[where.row], where.point or "") for kind, where in places]
        with_points = any(where.point for _, where in places)
        head = ("what", "row", "image", "point") if with_points else ("what", "row", "image")
        lines = lines if with_points else [line[:3] for line in lines]  # type: ignore[misc]
        shown += page.table(head, lines, numbers=(1,), caption=f"At most {LISTED} of each are named")
    for words, found in (("dead", audit.dead), ("fixed", audit.fixed)):
        if found:
            numbers = ", ".join(map(str, found[:200])) + (", ..." if len(found) > 200 else "")
            shown += f"<p>{words.capitalize()} dimensions: {numbers}</p>"
    return page.more("Which", shown) if shown else ""


def provenance(source: Stored, counts: Counts) -> Section:
    """Return where the values come from."""
    body = page.pairs(counting.origin(source))
    lines = [
        (
            f"{each.part} {each.name}".strip(),
            each.command,
            each.state,
            counting.moment(each.began),
            counting.duration(each.began, each.ended),
            counting.described(each.environment),
        )
        for each in counts.sessions
    ]
    if lines:
        head = ("session", "command", "state", "began", "took", "environment")
        body += page.table(head, lines, caption="Sessions")
    else:
        body += page.soft("No session is recorded.")
    given = _lines(counting.parameters(source).splitlines())
    body += page.more("Parameters that were given", f"<pre>{given}</pre>")
    return Section(key="provenance", title="Provenance", body=body)
