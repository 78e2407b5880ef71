"""Making a version: which rows it has, its counts, its document and the dataset's README."""

import contextlib
import importlib.metadata
import re
from collections.abc import Iterable
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from genenc_core import errors, statuses
from genenc_core.dataset import documents, part_arrays, parts, rows
from genenc_core.dataset.comparison import Differences
from genenc_core.dataset.documents import Part, Version, Written
from genenc_core.dataset.folder import DatasetFolder
from genenc_core.dataset.rows import CurrentRows, Images
from genenc_core.run import records
from genenc_core.run.folder import RunFolder
from genenc_core.system import code_version
from genenc_core.text import argument


def next_version(
    folder: DatasetFolder,
    head: Written | None,
    run: RunFolder | None,
    *,
    known: CurrentRows,
    listed: Images,
    found: Differences,
    made: dict[str, Any],
) -> Version | None:
    """Return the version after `head`; None if it would not differ.

    Args:
        folder: the dataset.
        head: its newest version.
        run: a part whose committed rows are added; their images' earlier rows are superseded.
        known: the current rows of `head`.
        listed: the images now.
        found: how these differ; rows of vanished images are withdrawn.
        made: who makes it.
    """
    number = head.version.version + 1 if head else 1
    added = None if run is None else _Added(run, listed)
    if added is not None and not added.committed.any():
        return None
    superseded = np.empty(0, np.int64) if added is None else added.positions_in(known)
    # A part that was planned by another comparison may have an image under its new name.
    twice = np.isin(found.renamed[1], [] if added is None else added.listed_rows())
    renamed = (found.renamed[0][~twice], found.renamed[1][~twice])
    withdrawn = np.setdiff1d(np.concatenate([found.vanished, found.renamed[0][twice]]), superseded)
    kinds = {rows.RENAMED: renamed, rows.TOUCHED: found.touched}
    amended = {kind: _without(pairs, superseded) for kind, pairs in kinds.items()}
    if added is None and not len(withdrawn) and not any(len(positions) for positions, _ in amended.values()):
        return None
    changes = [
        rows.changed(known.part[superseded], known.row[superseded], rows.SUPERSEDED),
        rows.changed(known.part[withdrawn], known.row[withdrawn], rows.WITHDRAWN),
        *(rows.changed(known.part[at], known.row[at], kind, listed.rows(now)) for kind, (at, now) in amended.items()),
        *([] if added is None else [added.not_encoded()]),
    ]
    table = _replaced(rows.read_changes(folder, head.version if head else None), rows.joined(changes))
    templates = list(head.version.templates) if head else []
    new = [] if added is None else [entry(added.run, templates, added.left_out)]
    listed_parts = [*(head.version.parts if head else []), *new]
    gone = np.concatenate([superseded, withdrawn])
    counts = {
        **dict.fromkeys(documents.COUNTS, 0),
        "rows": len(known) - len(gone) + (0 if added is None else int(added.committed.sum())),
        "unreadable": (head.version.counts["unreadable"] if head else 0)
        - _unreadable(folder, known, gone)
        + (0 if added is None else added.unreadable()),
        **({} if added is None else added.counts(found)),
        "withdrawn": len(withdrawn),
        **{kind: len(positions) for kind, (positions, _) in amended.items()},
    }
    kept, table = _without_empty(listed_parts, table)
    last = max([0 if added is None else added.number, head.version.last_part if head else 0])
    return Version(
        version=number,
        previous=head.digest if head else "",
        parts=kept,
        templates=templates,
        last_part=last,
        changes=rows.write_changes(folder, number, table),
        counts=counts,
        made=made,
    )


class _Added:
    """A part whose committed rows a version adds."""

    def __init__(self, run: RunFolder, listed: Images) -> None:
        self.run = run
        self.number = documents.part_number(parts.name_of(run)) or 0
        self.images = Images.of_run(run)
        self.listed = listed
        self.committed = np.zeros(len(self.images), bool)
        """Which rows are committed, bool `[rows]`."""
        for shard in run.store.committed():
            start, stop = run.store.shard_range(shard)
            self.committed[start:stop] = True

    @property
    def names(self) -> pa.Array:
        """Names of the committed rows."""
        column = self.images.table.column("image_id").combine_chunks()
        return column.filter(pa.array(self.committed))

    def positions_in(self, known: CurrentRows) -> np.ndarray:
        """Return the positions of current rows of the same images."""
        return _positions(known.table.column("image_id"), self.names)

    def listed_rows(self) -> np.ndarray:
        """Return the rows of the listing of the same images."""
        return _positions(self.listed.table.column("image_id"), self.names)

    @property
    def left_out(self) -> np.ndarray:
        """Rows whose shards are not committed, int64."""
        return np.flatnonzero(~self.committed)

    def not_encoded(self) -> pa.Table:
        """Return the changes of the rows whose shards are not committed."""
        left_out = self.left_out
        return rows.changed(np.full(len(left_out), self.number), left_out, rows.NOT_ENCODED)

    def unreadable(self) -> int:
        """Return the number of committed rows that are unreadable."""
        return int((parts.status_of(self.run)[self.committed] == statuses.UNREADABLE).sum())

    def counts(self, found: Differences) -> dict[str, int]:
        """Return why the committed rows were encoded, and how many rows were not."""
        of_part = set(self.listed_rows().tolist())
        kinds = ("new", "changed", "points_changed", "retried")
        counted = {kind: len(of_part.intersection(getattr(found, kind).tolist())) for kind in kinds}
        # Rows that were planned to be tried again are the same files: they do not differ from those known.
        counted["retried"] = int(self.committed.sum()) - sum(counted[kind] for kind in kinds[:3])
        return {**counted, "not_encoded": int((~self.committed).sum())}


def entry(run: RunFolder, templates: list[dict[str, dict[str, Any]]], left_out: Iterable[int] = ()) -> Part:
    """Return a part's entry in a version; its template is added to `templates` if it is new.

    `left_out`: rows of its shards that were not committed.
    """
    template, chunks = part_arrays.read(run)
    plain = {name: dict(document) for name, document in template.items()}
    if plain not in templates:
        templates.append(plain)
    regions = run.regions
    return Part(
        name=parts.name_of(run),
        rows=run.manifest.rows,
        store=run.store.document,
        values=parts.values_digest(run, set(left_out)),
        template=templates.index(plain),
        chunks=dict(chunks),
        regions=None if regions is None else len(regions),
        region_places=None if regions is None else run.store.plan.region_places * run.store.shard_count,
    )


def _positions(names: pa.ChunkedArray, wanted: pa.Array) -> np.ndarray:
    """Return where names are that are among the wanted ones, int64, ascending."""
    found = pc.is_in(names.combine_chunks(), value_set=wanted)
    return np.flatnonzero(np.asarray(found)).astype(np.int64)


def _without(pairs: tuple[np.ndarray, np.ndarray], superseded: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return pairs of a position and a row of the listing, without those of superseded positions."""
    kept = ~np.isin(pairs[0], superseded)
    return pairs[0][kept], pairs[1][kept]


def _replaced(before: pa.Table, changes: pa.Table) -> pa.Table:
    """Return changes with later ones in place of earlier ones of the same rows."""
    kept = before.filter(pa.array(~np.isin(rows.keys(before), rows.keys(changes))))
    return rows.joined([kept, changes]).sort_by([("part", "ascending"), ("row", "ascending")])


def _without_empty(listed: list[Part], changes: pa.Table) -> tuple[list[Part], pa.Table]:
    """Return parts without those that have no current row, and the changes of the others; the last part stays."""
    gone = rows.gone(changes)
    kept = [part for part in listed if part is listed[-1] or gone.get(part.number, 0) < part.rows]
    return kept, rows.of_parts(changes, kept)


def _unreadable(folder: DatasetFolder, known: CurrentRows, positions: np.ndarray) -> int:
    """Return how many of these current rows are unreadable."""
    count = 0
    for number in np.unique(known.part[positions]).tolist():
        of_part = positions[known.part[positions] == number]
        count += int(parts.is_unreadable(folder, documents.part_name(number), known.row[of_part]).sum())
    return count


def made_by(command: str, **more: object) -> dict[str, Any]:
    """Return who makes a version, and when."""
    return {
        "command": command,
        "time": records.now(),
        "session": records.new_session(),
        "genenc": importlib.metadata.version("genenc"),
        "code": dict(code_version.describe()),
        **more,
    }


def discard(folder: DatasetFolder, version: Version) -> None:
    """Remove the file of a version that was not made."""
    if version.changes is not None:
        with contextlib.suppress(OSError):
            folder.objects.remove(f"{documents.VERSIONS}/{version.changes.file}")


def write_readme(folder: DatasetFolder, version: Version) -> None:
    """Write the dataset's README; nothing depends on it."""
    with contextlib.suppress(errors.StoreError):
        records.write_text(
            folder.objects,
            README,
            _README.format(
                root=folder.root,
                place=argument(folder.root),
                version=version.version,
                rows=version.counts["rows"],
                parts=len(version.parts),
                model=folder.meaning.identity["model"],
                products="\n".join(f"- `{text}`" for text in folder.meaning.identity["products"]),
            ),
        )


def readme_version(text: str) -> int | None:
    """Return the version that a README is of; None if it does not say."""
    found = re.search(r", version ([0-9]{1,9}); ", text)
    return int(found[1]) if found else None


README: Final = "README.md"


_README = """# A dataset of genenc

{rows} images in {parts} parts, version {version}; model: {model}.

{products}

```python
from genenc_core.api import Dataset

rows = Dataset.open({root!r}).arrays()            # or version=1, version="a tag"
rows.features.sel(image_id="...")
```

`genenc versions {place}` lists the versions, `genenc update {place} IMAGES` makes the next one. Each folder in `parts/`
is a run, which plain Zarr reads; `versions/` says which of their rows are current. Nothing here is ever rewritten.
"""
