"""Images of rows as the model saw them, where their files are still those that the rows were made from.

Decode workers read them, so that a file that breaks its decoder breaks nothing here.
"""

import dataclasses
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

import numpy as np
import pyarrow as pa

from genenc_core import errors, spec
from genenc_core.images.decode.limits import Limits
from genenc_core.images.load.loader import ImageLoader, LoadedBatch
from genenc_core.images.sources import manifest
from genenc_core.inspection import sheet
from genenc_core.stored.rows import Part, Stored
from genenc_core.system import limits, scratch

_SECONDS: Final = 20.0
_FILE_COLUMNS: Final = ("image_id", "path", "bytes", "mtime_ns")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Pictures:
    """Images by row, and why others are not shown."""

    pixels: Mapping[int, np.ndarray]
    """uint8 `[height, width, 3]`, of the model's input; of other channels than RGB as `genenc inspect` shows them."""
    missing: Mapping[int, str]
    """Row -> reason."""


def load(source: Stored, rows: np.ndarray) -> Pictures:
    """Decode the images of some rows.

    A file counts as the row's if its digest is that of the commit record, or, where none is recorded, if it has the
    size and time that were planned, as `genenc resume` compares them.
    """
    pixels: dict[int, np.ndarray] = {}
    channels = source.model_run.preprocessing.channels
    missing: dict[int, str] = {}
    rows = np.unique(rows)
    with scratch.TemporaryFolder("report") as folder:
        for number, part in enumerate(source.parts):
            own = rows[part.held(rows)]
            if not len(own):
                continue
            at = own - part.positions[0]
            try:
                chosen = _chosen(Path(folder) / f"{number}.parquet", source, part, own, at)
                for index, found in _loaded(chosen, part, part.rows[at], source.model_run.preprocessing):
                    row = int(own[index])
                    if isinstance(found, str):
                        missing[row] = found
                    else:
                        pixels[row] = found
            except (OSError, errors.GenencError) as error:
                reason = errors.reason(error)
                missing |= {row: reason for row in own.tolist() if row not in pixels}
    if channels is not None and pixels:
        pixels = sheet.in_colours(pixels)
    return Pictures(
        pixels={row: np.ascontiguousarray(image.transpose(1, 2, 0)) for row, image in pixels.items()}, missing=missing
    )


def _chosen(path: Path, source: Stored, part: Part, own: np.ndarray, at: np.ndarray) -> manifest.Manifest:
    """Return a manifest of some rows of a part, with their files as a version of a dataset knows them."""
    listed = part.run.manifest
    chosen = manifest.write_selection(path, listed, part.rows[at])
    if source.current is None:
        return chosen
    known, block = source.current.rows(own), pa.Table.from_batches(chosen.iter_columns(chosen.schema.names))
    for name in _FILE_COLUMNS:
        field = block.schema.field(name)
        block = block.set_column(block.schema.get_field_index(name), field, known.column(name).cast(field.type))
    batches = block.combine_chunks().to_batches()
    return manifest.write_like(path.with_suffix(".renamed.parquet"), listed, lambda: batches)


def _loaded(
    chosen: manifest.Manifest, part: Part, stored: np.ndarray, preprocessing: spec.Preprocessing
) -> Iterator[tuple[int, np.ndarray | str]]:
    """Yield the position of each row of a manifest with its image `[C, H, W]`, or with why it is not shown."""
    digests = _digests(part, stored)
    given = part.run.given
    if preprocessing.decode == "gpu":
        preprocessing = preprocessing.model_copy(update={"decode": "full"})
    bounds = Limits(seconds=min(given.image_timeout, _SECONDS), megapixels=given.max_megapixels, accept_changed=True)
    workers = min(limits.cores(), 4)
    with ImageLoader(chosen, preprocessing, workers=workers, batch=min(16, chosen.rows), limits=bounds) as loader:
        for batch in loader.iter_batches(0, chosen.rows):
            yield from _of_batch(batch, digests)
            batch.release()


def _of_batch(batch: LoadedBatch, digests: Mapping[int, str]) -> Iterator[tuple[int, np.ndarray | str]]:
    found = dict(zip(batch.seen.tolist(), batch.sha256.astype(str).tolist(), strict=True))
    images = (image for images in batch.parts for image in images)
    for row, image in zip(batch.rows.tolist(), images, strict=True):
        if difference := _difference(digests.get(row, ""), found.get(row, ""), batch.changes.get(row)):
            yield row, difference
        else:
            yield row, image.numpy().copy()
    for item in batch.unreadable:
        yield item.row, item.reason


def _difference(recorded: str, found: str, change: str | None) -> str:
    """Return how a file differs from that of the row; "" if it does not."""
    if recorded and found:
        return "" if recorded == found else "the file has other content than when the row was stored"
    return change or ""


def _digests(part: Part, stored: np.ndarray) -> dict[int, str]:
    """Return the digests of the files that rows were made from, by position; only those that are recorded."""
    store, found = part.run.store, {}
    for shard in np.unique(stored // store.plan.shard_rows).tolist():
        try:
            record = store.record(shard)
        except errors.StoreError:
            continue
        if record is None:
            continue
        known = record.details.get("input_sha256") or []
        start = store.shard_range(shard)[0]
        for at in np.flatnonzero(stored // store.plan.shard_rows == shard).tolist():
            row = int(stored[at]) - start
            if row < len(known) and known[row]:
                found[at] = str(known[row])
    return found


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class BrokenFile:
    """The file of an unreadable row, of which something may be drawn in a process of its own."""

    path: str
    sha256: str
    """"" if none was recorded."""


def broken_file(source: Stored, row: int) -> BrokenFile | None:
    """Return the file of an unreadable row, if it is still the one that could not be read; None otherwise."""
    part, stored = source.part_of(row)
    listed = part.run.manifest.read(stored, stored + 1)
    path = listed.paths[0]
    if listed.members[0] or not path.startswith("/"):
        return None
    if source.current is not None:
        (named,) = source.current.text("path", [row])
        path = os.path.join(source.current.roots[source.current.root_of[row]], named)  # noqa: PTH118
    digest = _digests(part, np.array([stored])).get(0, "")
    try:
        size = os.stat(path).st_size  # noqa: PTH116
    except OSError:
        return None
    if not digest and size != int(listed.bytes[0]):
        return None
    return BrokenFile(path=path, sha256=digest)
