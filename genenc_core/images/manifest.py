"""The manifest images.parquet: one row per image, in order, with its points and a digest of it all."""

import json
import logging
import os
import secrets
import time
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Self

import numpy as np
import pyarrow as pa
from pyarrow import parquet

from genenc_core import errors, memory
from genenc_core.images import differences, folders, listing, matching, names, rows, sources
from genenc_core.images.point_scale import PointsScale
from genenc_core.images.points import PointTable

LOGGER = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rows:
    """Consecutive rows of a manifest."""

    start: int
    image_ids: list[str]
    paths: list[str]
    """Absolute; as text, for there are many."""
    bytes: list[int]
    """File sizes when the manifest was written; -1 = there was no file."""
    mtime_ns: list[int]
    """When the files had last been changed, in nanoseconds since 1970."""
    points: np.ndarray
    """float64 [n, K, 2] in source pixels, NaN = missing; K is 0 without points."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """An images.parquet; reading takes only the row groups that are asked for."""

    path: Path
    """Where it lies, for people where it has an opener."""
    root: Path
    """Absolute folder that relative paths start from."""
    rows: int
    digest: str
    """sha256 over the rows' content: image_id, path, bytes, mtime_ns, points and their names; not over the root."""
    point_names: tuple[str, ...]
    left_out: Mapping[str, tuple[int, tuple[str, ...]]] = field(default_factory=dict, compare=False)
    """Files beside the images that no reader takes: end of the name ("" for none) -> how many, and the first few."""
    labels: Mapping[str, Any] = field(default_factory=dict, compare=False)
    """With points: `images_without` a label, images of the points file that are `absent`, and the `scale` of its
    coordinates where they were no pixels; {} where not recorded."""
    extensions: tuple[str, ...] = field(default=sources.EXTENSIONS, compare=False)
    """Ends of the names of what counted as an image in a folder or a glob."""
    listed_ns: int | None = field(default=None, compare=False)
    """When its files were listed, in nanoseconds since 1970, by this machine's clock; None where not recorded."""
    opener: Callable[[], BinaryIO] | None = None
    """How to open one that is no local file."""
    footer: parquet.FileMetaData = field(compare=False, repr=False)
    """What the file says of its row groups, read once: it grows with the rows."""
    starts: np.ndarray = field(compare=False, repr=False)
    """First row of every row group, and the number of rows."""

    @property
    def points_scale(self) -> PointsScale:
        """What the points file's coordinates were multiplied by."""
        return PointsScale.parse(self.labels.get("scale"))

    @classmethod
    def open(cls, path: Path, *, opener: Callable[[], BinaryIO] | None = None) -> Self:
        """Open a manifest.

        Raises:
            StoreError: missing, not Parquet, or not written by `write_manifest`.
        """
        try:
            with parquet.ParquetFile(opener() if opener else path) as file:
                footer = file.metadata
                stored = footer.metadata or {}
                sizes = [footer.row_group(index).num_rows for index in range(footer.num_row_groups)]
        except errors.UnsafeFileError as error:
            raise errors.StoreError(error.sentence) from error
        except (OSError, pa.ArrowException) as error:
            raise _damage(path, error, "not a readable manifest") from error
        if stored.get(b"genenc.version", b"") != rows.VERSION.encode():
            raise errors.StoreError(f"{path} is a Parquet file but no genenc manifest of version {rows.VERSION}")
        root, digest, point_names = _described(path, stored)
        _require_columns(path, footer, point_names)
        return cls(
            path=path,
            root=root,
            rows=int(footer.num_rows),
            digest=digest,
            point_names=point_names,
            labels=_label_counts(path, stored),
            left_out=_left_out(path, stored),
            extensions=_extensions_of(stored),
            listed_ns=_listed_ns(path, stored),
            opener=opener,
            footer=footer,
            starts=np.cumsum([0, *sizes]),
        )

    def read(self, start: int, stop: int) -> Rows:
        """Return the rows from `start` up to `stop`, exclusive.

        Raises:
            StoreError: rows that the manifest does not have, or a damaged file.
        """
        if not 0 <= start <= stop <= self.rows:
            raise errors.StoreError(f"{self.path} has the rows 0 to {self.rows}, not {start} to {stop}")
        table = self._read_table(start, stop)
        xy = np.empty((stop - start, 0, 2))
        if self.point_names:
            flat = np.stack([rows.flat_points(table.column(name)) for name in rows.POINT_COLUMNS], axis=-1)
            xy = flat.reshape(stop - start, len(self.point_names), 2)
        root = str(self.root)
        return Rows(
            start=start,
            image_ids=table.column("image_id").to_pylist(),
            paths=[os.path.join(root, names.to_path(path)) for path in table.column("path").to_pylist()],  # noqa: PTH118
            bytes=table.column("bytes").to_pylist(),
            mtime_ns=table.column("mtime_ns").to_pylist(),
            points=xy,
        )

    def iter_columns(self, columns: Sequence[str], *, batch_rows: int = 65536) -> Iterator[pa.RecordBatch]:
        """Yield the named columns of all rows, in order, in blocks of at most `batch_rows`.

        Raises:
            StoreError: the file is damaged.
        """
        try:
            with self._file() as file:
                for batch in file.iter_batches(batch_size=batch_rows, columns=list(columns)):
                    yield batch.select(list(columns))
        except (OSError, pa.ArrowException) as error:
            raise _damage(self.path, error) from error

    def content_digest(self) -> str:
        """Return the digest of the rows as they are now: `digest`, unless the file was changed.

        Raises:
            StoreError: the file is damaged.
        """
        found = rows.Digest(self.point_names)
        columns = ["image_id", "path", "bytes", "mtime_ns", *(rows.POINT_COLUMNS if self.point_names else ())]
        try:
            for batch in self.iter_columns(columns):
                found.update(batch)
        except (ValueError, UnicodeDecodeError) as error:
            raise errors.StoreError(f"{self.path} is damaged: {error}") from error
        return found.hexdigest()

    def _file(self) -> parquet.ParquetFile:
        return parquet.ParquetFile(self.opener() if self.opener else self.path, metadata=self.footer)

    def _read_table(self, start: int, stop: int) -> pa.Table:
        columns = ["image_id", "path", *rows.NUMBER_COLUMNS, *(rows.POINT_COLUMNS if self.point_names else ())]
        try:
            first = max(int(np.searchsorted(self.starts, start, side="right")) - 1, 0)
            groups = range(first, int(np.searchsorted(self.starts, stop))) if stop > start else range(0)
            with self._file() as file:
                table = file.read_row_groups([*groups], columns=columns, use_threads=False)
        except (OSError, pa.ArrowException) as error:
            raise _damage(self.path, error) from error
        return table.slice(start - int(self.starts[first]) if groups else 0, stop - start)


def _damage(path: Path, error: Exception, what: str = "damaged") -> Exception:
    """Return what to raise for a file that Arrow cannot read; that memory or a thread was lacking is no damage."""
    if memory.is_lacking(error):
        return MemoryError(str(error))
    return errors.StoreError(f"{path} is {what}: {error}")


def _described(path: Path, stored: Mapping[bytes, bytes]) -> tuple[Path, str, tuple[str, ...]]:
    """Return what a manifest's metadata says: its root, its digest, the names of its points."""
    try:
        point_names = json.loads(stored[b"genenc.point_names"])
        if not isinstance(point_names, list) or not all(isinstance(name, str) for name in point_names):
            raise ValueError("genenc.point_names is not a list of names")
        root = names.to_path(stored[b"genenc.root"].decode())
        if not os.path.isabs(root):  # noqa: PTH117
            raise ValueError("genenc.root is not an absolute path")
        return Path(root), stored[b"genenc.digest"].decode(), tuple(point_names)
    except (KeyError, ValueError, RecursionError) as error:
        told = f"it lacks {error}" if isinstance(error, KeyError) else str(error)
        raise errors.StoreError(
            f"{path} is damaged: the metadata of a genenc manifest is incomplete ({told})"
        ) from error


def _label_counts(path: Path, stored: Mapping[bytes, bytes]) -> dict[str, Any]:
    """Return what a manifest's metadata counts of the labels; nothing in manifests of earlier versions."""
    try:
        found = json.loads(stored.get(b"genenc.labels", b"{}"))
        if not isinstance(found, dict) or not all(
            type(found.get(key, 0)) is int for key in ("absent", "images_without")
        ):
            raise ValueError("genenc.labels is not an object of counts")
        if not isinstance(found.get("scale", ""), str):
            raise ValueError("genenc.labels has a scale that is not text")
        PointsScale.parse(found.get("scale"))
    except (ValueError, RecursionError, errors.InputError) as error:
        raise errors.StoreError(f"{path} is damaged: {error}") from error
    return found


def _left_out(path: Path, stored: Mapping[bytes, bytes]) -> dict[str, tuple[int, tuple[str, ...]]]:
    """Return which files a manifest's metadata says were left out; none in manifests of earlier versions."""
    try:
        found = json.loads(stored.get(b"genenc.left_out", b"{}"))
        return {str(kind): (int(count), tuple(map(str, first))) for kind, (count, first) in found.items()}
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise errors.StoreError(f"{path} is damaged: genenc.left_out: {error}") from error


def _require_columns(path: Path, footer: parquet.FileMetaData, point_names: Sequence[str]) -> None:
    try:
        found = footer.schema.to_arrow_schema()
        wrong = [
            field.name
            for field in rows.schema(point_names)
            if field.name not in found.names or found.field(field.name).type != field.type
        ]
    except (KeyError, pa.ArrowException) as error:
        raise _damage(path, error) from error
    if wrong:
        raise errors.StoreError(f"{path} is damaged: the columns {', '.join(wrong)} are missing or of another type")


def write_manifest(
    path: Path,
    source: sources.ImageSource,
    *,
    points: PointTable | None = None,
    limit: int | None = None,
) -> Manifest:
    """List the source's images and write them, with their points, as a manifest; atomic and durable.

    Memory does not grow with the number of images but for 8 bytes a row of a list. With points the rows are spooled
    to a file beside `path` first, and all images are listed even with a `limit`, so that a name that fits several
    images is always found. Images without points get NaN; how many there are, and which images of the points file are
    not among the images, is logged and kept in the manifest.

    Raises:
        InputError: no images, limit below 1, no points image that means a row, one that means several, an unwritable
            path.
    """
    if limit is not None and limit < 1:
        raise errors.InputError(f"the limit is {limit}; it must be at least 1 image")
    left_out, listed_ns = folders.LeftOut(), time.time_ns()
    partial, spool = (path.with_name(f".{path.name}.{secrets.token_hex(4)}.{kind}") for kind in ("partial", "spool"))
    try:
        if points is None:
            listed = listing.iter_blocks(source, limit=limit, block_rows=rows.GROUP_ROWS, left_out=left_out)
            _write(partial, rows.blocks(listed), source, left_out=left_out, listed_ns=listed_ns)
        else:
            matcher = matching.Matcher(points.images)
            _write(spool, rows.blocks(_watched(source, matcher, limit, left_out)), source)
            placed = matcher.placed()
            _note_labels(placed, points)
            spooled = Manifest.open(spool).iter_columns(rows.schema(()).names, batch_rows=rows.GROUP_ROWS)
            blocks = (rows.with_points(block, placed.rows, points.xy) for block in spooled)
            _write(
                *(partial, blocks, source, points),
                absent=placed.absent,
                labelled=placed.rows,
                left_out=left_out,
                listed_ns=listed_ns,
            )
        partial.replace(path)
        _sync_folder(path.parent)
    except OSError as error:
        raise errors.InputError(
            f"cannot write the manifest {str(path)!r}: {error.strerror or error}; choose another --out, or make "
            "this one a writable folder with free space"
        ) from error
    finally:
        partial.unlink(missing_ok=True)
        spool.unlink(missing_ok=True)
    return Manifest.open(path)


def describe_difference(old: Manifest, new: Manifest) -> str:
    """Return how two manifests differ, in one line, e.g. `3 images added (a.png, ...), 1 removed (b.png)`.

    The root does not count. Memory grows with the number of rows: it is for messages.

    Raises:
        StoreError: one of the files is damaged.
    """
    if old.digest == new.digest:
        return "no difference"
    point_names = (old.point_names, new.point_names)
    columns = ["image_id", "path", "bytes", "mtime_ns"]
    tables = []
    for manifest in (old, new):
        wanted = columns + (list(rows.POINT_COLUMNS) if manifest.point_names else [])
        tables.append(pa.Table.from_batches(manifest.iter_columns(wanted)))
    return differences.describe(tables[0], tables[1], point_names=point_names)


def _watched(
    source: sources.ImageSource, matcher: matching.Matcher, limit: int | None, left_out: folders.LeftOut
) -> Iterator[listing.Block]:
    """Yield the first `limit` images, and show all of them to the matcher."""
    first = 0
    own = 0 if source.kind == "list" else 1
    for block in listing.iter_blocks(source, block_rows=rows.GROUP_ROWS, left_out=left_out):
        for row, (image_id, path) in enumerate(zip(block.image_ids, block.paths, strict=True), start=first):
            full = f"{source.root}/{path}" if path[0] != "/" else path
            matcher.see(row, image_id, full, named=path.strip("/").count("/") + 1 + own)
        first += len(block)
        kept = len(block) if limit is None else limit - (first - len(block))
        if kept > 0:
            yield block.first(kept)


def _note_labels(placed: matching.Placed, points: PointTable) -> None:
    """Say how many images of the points file are not among the images."""
    if placed.absent:
        LOGGER.warning(
            "%d of %d images of the points file are not among the images, and their points are left out: %s%s",
            *(len(placed.absent), len(points.images), ", ".join(map(repr, placed.absent[:3]))),
            ", ..." if len(placed.absent) > 3 else "",
        )
    if placed.elsewhere:
        name, path = placed.elsewhere[0]
        LOGGER.warning(
            "%d of %d images of the points file are named with folders that their paths do not have: %r is taken for "
            "%r. If these are not the images that were labelled, give those",
            *(len(placed.elsewhere), len(points.images), name, path),
        )


def _write(
    path: Path,
    blocks: Iterable[pa.RecordBatch],
    source: sources.ImageSource,
    points: PointTable | None = None,
    *,
    absent: Sequence[str] = (),
    labelled: Container[int] = (),
    left_out: folders.LeftOut | None = None,
    listed_ns: int | None = None,
) -> None:
    """Write blocks of rows and the manifest's metadata; refuse to write none."""
    point_names = () if points is None else points.names
    digest = rows.Digest(point_names)
    count = with_label = 0
    with path.open("xb") as file:
        with parquet.ParquetWriter(file, rows.schema(point_names), compression="zstd", use_dictionary=False) as writer:
            for block in blocks:
                writer.write_batch(block)
                digest.update(block)
                if point_names:
                    with_label += sum(row in labelled for row in block.column("row").to_pylist())
                count += block.num_rows
            writer.add_key_value_metadata(
                {
                    "genenc.version": rows.VERSION,
                    "genenc.root": names.to_text(str(source.root)),
                    "genenc.digest": digest.hexdigest(),
                    "genenc.point_names": json.dumps(list(point_names), ensure_ascii=False),
                    **({} if listed_ns is None else {"genenc.listed_ns": str(listed_ns)}),
                    **({} if source.kind == "list" else {"genenc.extensions": ",".join(source.extensions)}),
                    **({"genenc.left_out": _as_json(left_out)} if left_out and left_out.kinds else {}),
                    **({} if points is None else {"genenc.labels": _labels(count, with_label, absent, points)}),
                }
            )
        file.flush()
        os.fsync(file.fileno())
    if count == 0:
        looked = (
            "it has no rows" if source.kind == "list" else f"looked for files ending in {', '.join(source.extensions)}"
        )
        if left_out is not None and left_out.kinds:
            looked += f"; {folders.describe(left_out.kinds)}"
        raise errors.InputError(f"no images found in {source.describe()}: {looked}")


def _as_json(left_out: folders.LeftOut) -> str:
    kinds = {
        names.to_text(kind): (count, [names.to_text(path) for path in first])
        for kind, (count, first) in sorted(left_out.kinds.items())
    }
    return json.dumps(kinds, ensure_ascii=False)


def _labels(count: int, labelled: int, absent: Sequence[str], points: PointTable) -> str:
    """Return what a manifest says of the points file: images without a label, labels without an image, the scale."""
    found: dict[str, object] = {
        "images_without": count - labelled,
        "absent": len(absent),
        "absent_first": list(absent[:20]),
    }
    return json.dumps(found if points.scale.text is None else {**found, "scale": points.scale.text})


def _extensions_of(stored: Mapping[bytes, bytes]) -> tuple[str, ...]:
    """Return the recorded ends of names; earlier versions recorded none and knew only those that need no decoder."""
    recorded = stored.get(b"genenc.extensions", b"").decode(errors="replace")
    return tuple(recorded.split(",")) if recorded else sources.EXTENSIONS


def _listed_ns(path: Path, stored: Mapping[bytes, bytes]) -> int | None:
    """Return when the files were listed; earlier versions did not record it."""
    recorded = stored.get(b"genenc.listed_ns")
    if recorded is None:
        return None
    if not recorded.isdigit() or len(recorded) > 19:
        raise errors.StoreError(f"{path} is damaged: genenc.listed_ns is not a time")
    return int(recorded)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
