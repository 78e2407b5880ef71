"""The report of a run or dataset: one HTML file, and its main figures as text for other pages."""

import dataclasses
import datetime
from typing import Any

import numpy as np
from PIL import Image

from genenc_core import text
from genenc_core.encoding import cancellation
from genenc_core.report import counts as counting
from genenc_core.report import gallery, page, plots, projection, results, subject, values
from genenc_core.report.counts import Counts
from genenc_core.report.parameters import ReportParameters
from genenc_core.report.values import Audit
from genenc_core.stored.rows import Stored

_SHEET_COLUMNS = 6


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What was found; `html` is the page."""

    place: str
    version: int | None
    title: str
    counts: Counts
    audits: tuple[Audit, ...]
    sample: str
    """The images that were looked at, in words."""
    html: str = dataclasses.field(repr=False)
    contact_sheet: Image.Image | None = dataclasses.field(repr=False, compare=False, default=None)

    def as_json(self) -> dict[str, Any]:
        """Return the figures as JSON data."""
        counts = self.counts
        return {
            "place": self.place,
            "version": self.version,
            "rows": counts.rows,
            "ok": counts.ok,
            "unreadable": counts.unreadable,
            "pending_shards": counts.pending_shards,
            "points": dict(counts.points),
            "images_per_second": counts.rate,
            "bound": None if counts.bound is None else counts.bound.words,
            "sample": self.sample,
            "values": [audit.as_json() for audit in self.audits],
        }

    def lines(self) -> list[str]:
        """Return the main figures as text."""
        counts = self.counts
        unreadable = f", {counts.unreadable} unreadable" if counts.unreadable else ""
        to_do = f", {text.plural(counts.pending_shards, 'shard')} to do" if counts.pending_shards else ""
        said = [f"{counts.ok} of {text.plural(counts.rows, 'image')} stored{unreadable}{to_do}"]
        if counts.rate is not None:
            said.append(f"{counts.rate:.3g} images/s, by the records")
        if counts.bound is not None:
            said.append(counts.bound.words)
        for audit in self.audits:
            said += [f"{audit.product}: {words}" for words in audit.findings or ["nothing stands out in the values"]]
        return said


def make(given: ReportParameters) -> Report:
    """Look at a run or dataset; nothing is written.

    Raises:
        InputError: not a run or dataset, an unknown version, product or column, or matplotlib is not installed.
        StoreError: it is damaged.
        Stopped: a stop was requested.
    """
    plots.require()
    projection.require(given.projection)
    source = subject.open_rows(given.source, given.version)
    sample = gallery.Sample.of(source, given)
    _check(sample)
    with cancellation.ensure():
        stop = cancellation.current().raise_if_cancelled
        counts = counting.count(source)
        chosen = values.audited(source)
        audits = []
        for product in chosen:
            stop()
            found = values.audit(source, product, seed=given.seed)
            audits += [] if found is None else [found]
        names = {product.name for product in chosen}
        left_out = [product.name for product in source.product_arrays if product.name not in names]
        sections = [results.ran(source, counts)]
        for part in (gallery.sheet, gallery.of_maps, gallery.near, gallery.projected):
            stop()
            made = part(sample)
            sections += made if isinstance(made, list) else [made]
    sections += [
        results.failed(source, counts),
        results.audited(source, audits, left_out),
        results.times(counts),
        results.provenance(source, counts),
    ]
    return Report(
        place=source.place,
        version=source.version,
        title=subject.title(source),
        counts=counts,
        audits=tuple(audits),
        sample=sample.words,
        html=_page(source, sample, counts, audits, sections),
        contact_sheet=_sheet(sample),
    )


def _check(sample: gallery.Sample) -> None:
    """Refuse wrong names before anything is read."""
    _ = sample.map, sample.vectors
    if sample.given.color_by is not None:
        projection.colouring(sample.source, sample.rows[:0], sample.given.color_by)


def _page(
    source: Stored, sample: gallery.Sample, counts: Counts, audits: list[Audit], sections: list[page.Section]
) -> str:
    model = str(source.model_run.identity["model"])
    now = datetime.datetime.now(datetime.UTC)
    subtitle = f"Features of {text.plural(counts.rows, 'image')} from {page.e(model)}; {page.e(source.place)}"
    footer = (
        f"Made by genenc report on {now:%Y-%m-%d %H:%M} UTC; counts are of the commit records. "
        f"Pictures, projection and neighbours are of {page.e(sample.words)}. This file needs no network and "
        "runs no script."
    )
    return page.document(subject.title(source), subtitle, results.facts(counts, audits), sections, footer)


def _sheet(sample: gallery.Sample) -> Image.Image | None:
    """Return the first images of the contact sheet as one picture, for other pages."""
    found = [sample.pictures.pixels[row] for row in sample.sheet_rows.tolist() if row in sample.pictures.pixels]
    if not found:
        return None
    height, width = gallery.fitting(found[0].shape[0], found[0].shape[1], gallery.SMALL)
    chosen = found[: 2 * _SHEET_COLUMNS]
    columns = min(_SHEET_COLUMNS, len(chosen))
    made = Image.new("RGB", (columns * width, -(-len(chosen) // columns) * height))
    for at, pixels in enumerate(chosen):
        small = Image.fromarray(np.ascontiguousarray(pixels)).resize((width, height), Image.Resampling.BOX)
        made.paste(small, (at % columns * width, at // columns * height))
    return made
