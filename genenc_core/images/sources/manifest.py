"""The manifest `images.parquet`: one row per image, in order, with its points and a digest of the content."""

import contextlib
import functools
import gc
import itertools
import json
import logging
import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, BinaryIO, Self

import numpy as np
import pyarrow as pa
from pyarrow import parquet

from genenc_core import errors
from genenc_core.images.containers import kinds
from genenc_core.images.labels import matching
from genenc_core.images.labels.point_table import PointTable
from genenc_core.images.labels.region_table import RegionTable
from genenc_core.images.labels.scale import PointsScale
from genenc_core.images.sources import addresses, folders, image_source, listing, manifest_rows
from genenc_core.images.sources.block import Block
from genenc_core.system import files, memory

LOGGER = logging.getLogger(__name__)
_GROUPS_KEPT = 2
_BLOCKS_WAITING = 2
"""Blocks that are listed and not yet written."""


class Rows:
    """Consecutive rows of a manifest, with lazily converted columns."""

    def __init__(self, table: pa.Table, root: Path, point_names: Sequence[str]) -> None:
        self._table = table
        self._root = root
        self._point_names = point_names

    def __len__(self) -> int:
        return int(self._table.num_rows)

    @functools.cached_property
    def image_ids(self) -> list[str]:
        """Names of the images."""
        image_ids: list[str] = self._table.column("image_id").to_pylist()
        return image_ids

    @functools.cached_property
    def paths(self) -> list[str]:
        """Absolute paths, as `str` because there are many."""
        folder = os.path.join(self._root, "")  # noqa: PTH118
        paths = map(folders.to_path, self._table.column("path").to_pylist())
        if manifest_rows.MEMBER_COLUMN in self._table.column_names:
            return [path if kinds.is_remote(path) else os.path.join(folder, path) for path in paths]  # noqa: PTH118
        return [path if path.startswith(os.sep) else folder + path for path in paths]  # as os.path.join, in bulk

    @functools.cached_property
    def members(self) -> list[str]:
        """Where each image is in its file, as in `containers.container.Member.at`; "" for files that are images."""
        if manifest_rows.MEMBER_COLUMN not in self._table.column_names:
            return [""] * len(self)
        members: list[str] = self._table.column(manifest_rows.MEMBER_COLUMN).to_pylist()
        return members

    @functools.cached_property
    def bytes(self) -> np.ndarray:
        """File sizes when the manifest was written, int64 `[n]`; -1 = missing."""
        return manifest_rows.numbers(self._table.column("bytes"))

    @functools.cached_property
    def mtime_ns(self) -> np.ndarray:
        """Modification times when the manifest was written, int64 `[n]`, in nanoseconds since 1970."""
        return manifest_rows.numbers(self._table.column("mtime_ns"))

    @functools.cached_property
    def points(self) -> np.ndarray:
        """float64 `[n, K, 2]` in source pixels, NaN = missing; K is 0 without points."""
        if not self._point_names:
            return np.empty((len(self), 0, 2))
        flat = np.stack(
            [manifest_rows.flat_points(self._table.column(name)) for name in manifest_rows.POINT_COLUMNS], axis=-1
        )
        return flat.reshape(len(self), len(self._point_names), 2)


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """An open `images.parquet`; only the requested row groups are read."""

    path: Path
    """Its location; only for messages if there is an `opener`."""
    root: Path
    """Absolute folder that relative paths are resolved against."""
    rows: int
    digest: str
    """sha256 over image_id, path, bytes, mtime_ns, points and their names, but not the root."""
    point_names: tuple[str, ...]
    left_out: Mapping[str, tuple[int, tuple[str, ...]]] = field(default_factory=dict, compare=False)
    """Files of the source that are not readable images: extension ("" for none) -> count and the first few paths."""
    labels: Mapping[str, Any] = field(default_factory=dict, compare=False)
    """With points: counts of `images_without` a label, of images of the points file that are `absent`, and of
    `uncertain` labels left out; the `scale` of its coordinates unless they were pixels; the `individuals` of the
    points if there are any; {} if not recorded."""
    extensions: tuple[str, ...] = field(default=image_source.EXTENSIONS, compare=False)
    """Extensions that counted as images in a folder or glob."""
    earlier_glob: bool = field(default=False, compare=False)
    """As in `ImageSource`."""
    system_folders: bool = field(default=False, compare=False)
    """As in `ImageSource`."""
    listed_ns: int | None = field(default=None, compare=False)
    """When its files were listed, in nanoseconds since 1970, by this machine's clock; None if not recorded."""
    has_members: bool = field(default=False, compare=False)
    """Whether its images are inside files."""
    columns: tuple[str, ...] = field(default=(), compare=False)
    """Further columns of its list, as text."""
    credentials: addresses.Signed | None = field(default=None, compare=False, repr=False)
    """Credentials of the addresses among its images, which are in their list alone."""
    has_likelihood: bool = field(default=False, compare=False)
    """Whether the likelihoods of its points are recorded."""
    frame_sizes: Mapping[int, tuple[int, int]] = field(default_factory=dict, compare=False, repr=False)
    """Row -> width and height that the points file states for its image; not recorded, so {} of an opened file."""
    placed_regions: matching.Placement | None = field(default=None, compare=False, repr=False)
    """Rows of the images of a `RegionTable` that it was matched with; not recorded."""
    opener: Callable[[], BinaryIO] | None = None
    """Opens the file if it is not local."""
    footer: parquet.FileMetaData = field(compare=False, repr=False)
    """Parquet metadata of the row groups, read once because it grows with the rows."""
    starts: np.ndarray = field(compare=False, repr=False)
    """First row of every row group, and the number of rows at the end."""
    kept: dict[int, pa.Table] = field(default_factory=dict, compare=False, repr=False)
    """Cache of the row groups read last."""

    @property
    def what_is_left_out(self) -> str:
        """Its `left_out` in words, "" for none."""
        frames = self.has_members and {*self.extensions} >= kinds.WITH_FRAMES
        return folders.describe(self.left_out, frames=frames) if self.left_out else ""

    @property
    def content_columns(self) -> tuple[str, ...]:
        """Its columns but for the row."""
        return manifest_rows.content_columns(self.point_names, **self._form)

    @property
    def schema(self) -> pa.Schema:
        """Its schema."""
        return manifest_rows.schema(self.point_names, **self._form)

    def new_digest(self) -> manifest_rows.Digest:
        """Return a digest of no rows yet, for rows of its schema."""
        return manifest_rows.Digest(self.point_names, **self._form)

    @property
    def _form(self) -> manifest_rows.Form:
        return {"members": self.has_members, "columns": self.columns, "likelihood": self.has_likelihood}

    @property
    def individuals(self) -> tuple[str, ...]:
        """The individual of each point, "" for none; () if the labels name none."""
        return tuple(self.labels.get("individuals", ()))

    @property
    def points_scale(self) -> PointsScale:
        """The scale that was applied to the coordinates of the points file."""
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
        if stored.get(b"genenc.version", b"") != manifest_rows.VERSION.encode():
            raise errors.StoreError(
                f"{path} is a Parquet file, but not a genenc manifest of version {manifest_rows.VERSION}"
            )
        root, digest, point_names = _described(path, stored)
        form = _require_columns(path, footer, point_names)
        return cls(
            path=path,
            root=root,
            rows=int(footer.num_rows),
            digest=digest,
            point_names=point_names,
            labels=_label_counts(path, stored, point_names),
            left_out=_left_out(path, stored),
            extensions=_extensions_of(stored),
            earlier_glob=b"genenc.glob" not in stored,
            system_folders=b"genenc.system_folders" not in stored,
            credentials=_addresses(path, stored),
            listed_ns=_listed_ns(path, stored),
            has_members=form["members"],
            columns=tuple(form["columns"]),
            has_likelihood=form["likelihood"],
            opener=opener,
            footer=footer,
            starts=np.cumsum([0, *sizes]),
        )

    def places(self, rows: Rows) -> tuple[list[str], list[str]]:
        """Return paths and members of some of its rows, to read them: with credentials, which are not to be kept.

        Raises:
            InputError: the list that has them is gone, or has other ones.
        """
        if self.credentials is None:
            return rows.paths, rows.members
        return self.credentials.places(rows.paths, rows.members)

    def listed_alike(self, source: image_source.ImageSource) -> image_source.ImageSource:
        """Return a source in which the same files count as images as when this manifest was written.

        It must not depend on installed decoders and versions.
        """
        rules = {name: getattr(self, name) for name in ("extensions", "earlier_glob", "system_folders")}
        # A run of an earlier version has no columns; a list without any has none to add.
        return replace(source, **rules, columns=bool(self.columns))

    def labelled_alike(self, points: PointTable | None) -> PointTable | None:
        """Return a table of points as this manifest records them: runs of earlier versions have no likelihoods."""
        return points if points is None or self.has_likelihood else replace(points, likelihood=None)

    def read(self, start: int, stop: int) -> Rows:
        """Return the rows from `start` up to `stop`, exclusive.

        Raises:
            StoreError: the rows are out of range, or the file is damaged.
        """
        if not 0 <= start <= stop <= self.rows:
            raise errors.StoreError(f"{self.path} has rows 0 to {self.rows}, not {start} to {stop}")
        return Rows(self._read_table(start, stop), self.root, self.point_names)

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
        """Recompute the digest of the rows; it equals `digest` unless the file was changed.

        Raises:
            StoreError: the file is damaged.
        """
        digest = self.new_digest()
        try:
            for batch in self.iter_columns(self.content_columns):
                digest.update(batch)
        except (ValueError, UnicodeDecodeError) as error:
            raise errors.StoreError(f"{self.path} is damaged: {error}") from error
        return digest.hexdigest()

    def _file(self) -> parquet.ParquetFile:
        return parquet.ParquetFile(self.opener() if self.opener else self.path, metadata=self.footer)

    def _read_table(self, start: int, stop: int) -> pa.Table:
        first = int(np.searchsorted(self.starts[1:-1], start, side="right"))
        last = max(int(np.searchsorted(self.starts, stop)), first + 1)
        table = pa.concat_tables([self._group(index) for index in range(first, last)])
        return table.slice(start - int(self.starts[first]), stop - start)

    def _group(self, index: int) -> pa.Table:
        """Return a row group; the last few are cached, since each holds the rows of many shards."""
        table = self.kept.get(index)
        if table is None:
            try:
                with self._file() as file:
                    table = file.read_row_group(index, columns=list(self.content_columns), use_threads=False)
            except (OSError, pa.ArrowException) as error:
                raise _damage(self.path, error) from error
            if len(self.kept) >= _GROUPS_KEPT:
                self.kept.clear()
            self.kept[index] = table
        return table


def _damage(path: Path, error: Exception, what: str = "damaged") -> Exception:
    """Return the exception for a file that Arrow cannot read; a lack of memory or threads is not damage."""
    if memory.is_lacking(error):
        return MemoryError(str(error))
    return errors.StoreError(f"{path} is {what}: {error}")


def _described(path: Path, stored: Mapping[bytes, bytes]) -> tuple[Path, str, tuple[str, ...]]:
    """Return the root, digest and point names from a manifest's metadata."""
    try:
        point_names = json.loads(stored[b"genenc.point_names"])
        if not isinstance(point_names, list) or not all(isinstance(name, str) for name in point_names):
            raise ValueError("genenc.point_names is not a list of names")
        root = folders.to_path(stored[b"genenc.root"].decode())
        if not os.path.isabs(root):  # noqa: PTH117
            raise ValueError("genenc.root is not an absolute path")
        return Path(root), stored[b"genenc.digest"].decode(), tuple(point_names)
    except (KeyError, ValueError, RecursionError) as error:
        reason = f"it lacks {error}" if isinstance(error, KeyError) else str(error)
        raise errors.StoreError(
            f"{path} is damaged: the metadata of a genenc manifest is incomplete ({reason})"
        ) from error


def _label_counts(path: Path, stored: Mapping[bytes, bytes], point_names: Sequence[str]) -> dict[str, Any]:
    """Return the label counts in a manifest's metadata; empty in manifests of earlier versions."""
    try:
        labels = json.loads(stored.get(b"genenc.labels", b"{}"))
        if not isinstance(labels, dict) or not all(
            type(labels.get(key, 0)) is int for key in ("absent", "images_without", "uncertain")
        ):
            raise ValueError("genenc.labels is not an object of counts")
        individuals = labels.get("individuals", [])
        if not isinstance(individuals, list) or not all(isinstance(name, str) for name in individuals):
            raise ValueError("genenc.labels has individuals that are not names")
        if individuals and len(individuals) != len(point_names):
            raise ValueError("genenc.labels has another number of individuals than of points")
        if not isinstance(labels.get("scale", ""), str):
            raise ValueError("genenc.labels has a scale that is not text")
        PointsScale.parse(labels.get("scale"))
    except (ValueError, RecursionError, errors.InputError) as error:
        raise errors.StoreError(f"{path} is damaged: {error}") from error
    return labels


def _left_out(path: Path, stored: Mapping[bytes, bytes]) -> dict[str, tuple[int, tuple[str, ...]]]:
    """Return the files left out according to a manifest's metadata; empty in manifests of earlier versions."""
    try:
        kinds = json.loads(stored.get(b"genenc.left_out", b"{}"))
        return {str(kind): (int(count), tuple(map(str, first))) for kind, (count, first) in kinds.items()}
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise errors.StoreError(f"{path} is damaged: genenc.left_out: {error}") from error


def _addresses(path: Path, stored: Mapping[bytes, bytes]) -> addresses.Signed | None:
    """Return the credentials of a list of addresses according to a manifest's metadata; None where there is none."""
    try:
        found = json.loads(stored.get(b"genenc.addresses", b"null"))
        return None if found is None else addresses.Signed(Path(folders.to_path(found["list"])), found["column"])
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise errors.StoreError(f"{path} is damaged: genenc.addresses: {error}") from error


def _require_columns(path: Path, footer: parquet.FileMetaData, point_names: Sequence[str]) -> manifest_rows.Form:
    """Check the columns, and return which of those that not every manifest has are there."""
    try:
        stored = footer.schema.to_arrow_schema()
        form: manifest_rows.Form = {
            "members": manifest_rows.MEMBER_COLUMN in stored.names,
            "columns": manifest_rows.further_columns(stored),
            "likelihood": manifest_rows.LIKELIHOOD_COLUMN in stored.names,
        }
        wrong = [
            field.name
            for field in manifest_rows.schema(point_names, **form)
            if field.name not in stored.names or stored.field(field.name).type != field.type
        ]
    except (KeyError, pa.ArrowException) as error:
        raise _damage(path, error) from error
    if wrong:
        raise errors.StoreError(f"{path} is damaged: the columns {', '.join(wrong)} are missing or of the wrong type")
    return form


def write_manifest(
    path: Path,
    source: image_source.ImageSource,
    *,
    points: PointTable | None = None,
    regions: RegionTable | None = None,
    limit: int | None = None,
    may_be_empty: bool = False,
    checkpoint: Callable[[], None] = folders.no_checkpoint,
) -> Manifest:
    """List a source's images and write them, with their points, as a manifest; atomic and durable.

    Memory use does not grow with the number of images, except for 8 bytes per row of a list. With points, the rows are
    first spooled to a file next to `path`, and all images are listed even with a `limit`, so that ambiguous names are
    always detected. Images without points get NaN; their number, and the images of the points file that are not in the
    source, are logged and recorded in the manifest. With `regions`, the result says where they belong; they are stored
    elsewhere. `checkpoint` is called several times a second; what it raises ends
    the work, and nothing is written.

    Raises:
        InputError: no images (unless it `may_be_empty`), `limit` below 1, no name of the points file matches a row, one
            matches several, or the path is not writable.
    """
    if limit is not None and limit < 1:
        raise errors.InputError(f"invalid limit {limit}: it must be at least 1 image")

    frame_sizes: dict[int, tuple[int, int]] = {}
    of_regions = None if regions is None else _region_matcher(regions)

    def write(partial: Path) -> None:
        left_out, listed_ns = folders.LeftOut(), time.time_ns()
        if points is None and of_regions is not None:
            found = manifest_rows.blocks(_matched(source, [of_regions], limit, left_out, checkpoint))
            _write(partial, found, source, left_out=left_out, listed_ns=listed_ns, may_be_empty=may_be_empty)
            return
        if points is None:
            with contextlib.closing(
                listing.iter_blocks(
                    source,
                    limit=limit,
                    block_rows=manifest_rows.GROUP_ROWS,
                    left_out=left_out,
                    checkpoint=checkpoint,
                )
            ) as images:
                blocks = manifest_rows.blocks(images)
                _write(partial, blocks, source, left_out=left_out, listed_ns=listed_ns, may_be_empty=may_be_empty)
            return
        spool = path.with_name(files.private_name(path.name, "spool"))
        try:
            matcher = _point_matcher(points)
            matchers = [matcher] if of_regions is None else [matcher, of_regions]
            found = manifest_rows.blocks(_matched(source, matchers, limit, left_out, checkpoint))
            _write(spool, found, source, may_be_empty=may_be_empty)
            listed = Manifest.open(spool)
            placed = matcher.result() if listed.rows else _nowhere(points)
            _log_unmatched(placed, points)
            frame_sizes.update(_frame_sizes(placed, points))
            spooled = listed.iter_columns(listed.schema.names, batch_rows=manifest_rows.GROUP_ROWS)
            blocks = (manifest_rows.with_points(block, placed.rows, points.xy, points.likelihood) for block in spooled)
            _write(
                *(partial, blocks, source, points),
                absent=placed.absent,
                labelled=placed.rows,
                left_out=left_out,
                listed_ns=listed_ns,
                may_be_empty=may_be_empty,
            )
        finally:
            spool.unlink(missing_ok=True)

    with _without_old_objects():
        _replace(path, write)
    listed = replace(Manifest.open(path), frame_sizes=frame_sizes)
    if regions is None or of_regions is None:
        return listed
    return replace(listed, placed_regions=_placed(of_regions, regions, listed))


def _point_matcher(points: PointTable) -> matching.Matcher:
    return matching.Matcher(points.images, points.folders, points.hinted, by_stem=points.by_stem)


def _region_matcher(regions: RegionTable) -> matching.Matcher:
    return matching.Matcher(regions.images, regions.folders, what="regions", by_stem=regions.by_stem)


def _placed(matcher: matching.Matcher, regions: RegionTable, listed: Manifest) -> matching.Placement:
    """Return the placement of regions, without images beyond a limit, and log those that are not in the source."""
    placed = matcher.result() if listed.rows else _nowhere(regions)
    _log_unmatched(placed, regions, what="regions")
    return replace(placed, rows={row: index for row, index in placed.rows.items() if row < listed.rows})


@contextlib.contextmanager
def _without_old_objects() -> Iterator[None]:
    """Leave existing objects out of garbage collections, which rows set off often: half of the time of a CSV."""
    if gc.get_freeze_count():
        yield
        return
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def _replace(path: Path, write: Callable[[Path], None]) -> None:
    try:
        files.replace(path, write)
    except OSError as error:
        raise errors.InputError(
            f"cannot write the manifest {str(path)!r}: {error.strerror or error}; choose another --out, or make this "
            "folder writable with enough free space"
        ) from error


def write_selection(path: Path, listed: Manifest, rows: np.ndarray) -> Manifest:
    """Write some rows of a manifest, ascending and at least one, as a manifest of the same source.

    Raises:
        InputError: the path is not writable.
        StoreError: the manifest is damaged.
    """
    columns = listed.schema.names

    def chosen() -> Iterator[pa.RecordBatch]:
        first = 0
        for block in listed.iter_columns(columns, batch_rows=manifest_rows.GROUP_ROWS):
            inside = rows[np.searchsorted(rows, first) : np.searchsorted(rows, first + block.num_rows)] - first
            first += block.num_rows
            yield block.take(pa.array(inside))

    stated = listed.frame_sizes
    frame_sizes = {at: stated[row] for at, row in enumerate(rows.tolist()) if row in stated}
    return replace(write_like(path, listed, chosen), frame_sizes=frame_sizes)


def write_like(
    path: Path, like: Manifest, blocks: Callable[[], Iterable[pa.RecordBatch]], *, listed_ns: int | None = None
) -> Manifest:
    """Write rows as a manifest of the source, and with the points' names, of another one.

    Args:
        path: where to write it.
        like: the other manifest.
        blocks: returns rows of its schema, at least one, which are numbered anew; called again if need be.
        listed_ns: when its rows were listed, in nanoseconds since 1970; None: when those of the other were.

    Raises:
        InputError: the path is not writable.
        StoreError: the rows come from a manifest that is damaged.
    """

    def write(partial: Path) -> None:
        _write_like(
            *(partial, like, blocks(), like.point_names, like.labels),
            likelihood=like.has_likelihood,
            listed_ns=listed_ns,
        )

    _replace(path, write)
    return Manifest.open(path)


def write_relabelled(
    path: Path,
    like: Manifest,
    images: Callable[[], Iterable[pa.RecordBatch]],
    root_of: Callable[[int], Path],
    points: PointTable | None,
    regions: RegionTable | None = None,
) -> Manifest:
    """Write images of a manifest's source with other points, or none, matched as `write_manifest` does.

    Args:
        path: where to write it.
        like: a manifest of this source.
        images: returns rows without points, numbered from 0; called twice.
        root_of: returns the folder that the path of a row is relative to.
        points: the points.
        regions: regions; the result says where they belong.

    Raises:
        InputError: no name of the points file matches a row, one matches several, or the path is not writable.
        StoreError: the rows come from a manifest that is damaged.
    """
    if points is None:
        _replace(path, lambda partial: _write_like(partial, like, images(), (), {}, likelihood=False))
        return with_regions(Manifest.open(path), images, root_of, regions)
    matcher = _point_matcher(points)
    _match_rows([matcher], like, images, root_of)
    placed = matcher.result()
    _log_unmatched(placed, points)
    labels = json.loads(_labels(0, placed.absent, points, placed.rows.values()))

    def write(partial: Path) -> None:
        blocks = (manifest_rows.with_points(block, placed.rows, points.xy, points.likelihood) for block in images())
        _write_like(partial, like, blocks, points.names, labels, likelihood=points.likelihood is not None)

    _replace(path, write)
    found = replace(Manifest.open(path), frame_sizes=_frame_sizes(placed, points))
    return with_regions(found, images, root_of, regions)


def _frame_sizes(placed: matching.Placement, points: PointTable) -> dict[int, tuple[int, int]]:
    """Return the size of the labelled frame by row, where the labels' file states it."""
    return {row: points.frame_sizes[at] for row, at in placed.rows.items() if at in points.frame_sizes}


def with_regions(
    listed: Manifest,
    images: Callable[[], Iterable[pa.RecordBatch]],
    root_of: Callable[[int], Path],
    regions: RegionTable | None,
) -> Manifest:
    """Return a manifest that says where regions belong; `images` and `root_of` as for `write_relabelled`.

    Raises:
        InputError: no name of the regions file matches a row, or one matches several.
        StoreError: the rows come from a manifest that is damaged.
    """
    if regions is None:
        return listed
    matcher = _region_matcher(regions)
    _match_rows([matcher], listed, images, root_of)
    return replace(listed, placed_regions=_placed(matcher, regions, listed))


def _match_rows(
    matchers: Sequence[matching.Matcher],
    like: Manifest,
    images: Callable[[], Iterable[pa.RecordBatch]],
    root_of: Callable[[int], Path],
) -> None:
    """Compare the rows of a manifest with the names of labels."""
    own = 0 if b"genenc.extensions" not in (like.footer.metadata or {}) else 1  # of lists none are recorded
    for block in images():
        texts = zip(*(block.column(name).to_pylist() for name in ("row", *manifest_rows.TEXT_COLUMNS)), strict=True)
        for row, image_id, below in texts:
            for matcher in matchers:
                _add_image(matcher, row, image_id, below, root_of(row), own=own, inside=like.has_members)


def _write_like(
    path: Path,
    like: Manifest,
    blocks: Iterable[pa.RecordBatch],
    point_names: Sequence[str],
    labels: Mapping[str, Any],
    *,
    likelihood: bool,
    listed_ns: int | None = None,
) -> None:
    """Write rows, numbered anew, with the metadata of another manifest; images without a label are counted."""
    form: manifest_rows.Form = {"members": like.has_members, "columns": like.columns, "likelihood": likelihood}
    digest, labelled, count = manifest_rows.Digest(point_names, **form), 0, 0
    stored = {key: value for key, value in (like.footer.metadata or {}).items() if key.startswith(b"genenc.")}
    stored.pop(b"genenc.labels", None)
    if listed_ns is not None:
        stored[b"genenc.listed_ns"] = str(listed_ns).encode()
    schema = manifest_rows.schema(point_names, **form)
    with path.open("xb") as file:
        with parquet.ParquetWriter(file, schema, compression="zstd", use_dictionary=False) as writer:
            for block in manifest_rows.regrouped(blocks):
                writer.write_batch(block)
                digest.update(block)
                labelled += manifest_rows.labelled(block)
                count += block.num_rows
            own = {
                b"genenc.digest": digest.hexdigest(),
                b"genenc.point_names": json.dumps(list(point_names), ensure_ascii=False),
            }
            if point_names:
                own[b"genenc.labels"] = json.dumps({**labels, "images_without": count - labelled})
            writer.add_key_value_metadata({**stored, **own})
        file.flush()
        os.fsync(file.fileno())


def describe_difference(old: Manifest, new: Manifest) -> str:
    """Describe in one line how two manifests differ, e.g. `3 images added (a.png, ...), 1 removed (b.png)`.

    The root is ignored. Memory use grows with the number of rows, so this is for messages only.

    Raises:
        StoreError: one of the files is damaged.
    """
    if old.digest == new.digest:
        return "no difference"
    point_names = (old.point_names, new.point_names)
    tables = [pa.Table.from_batches(each.iter_columns(each.content_columns)) for each in (old, new)]
    return manifest_rows.describe(tables[0], tables[1], point_names=point_names)


def _matched(
    source: image_source.ImageSource,
    matchers: Sequence[matching.Matcher],
    limit: int | None,
    left_out: folders.LeftOut,
    checkpoint: Callable[[], None],
) -> Iterator[Block]:
    """Yield the first `limit` images, passing all of them to the matchers."""
    first = 0
    own = 0 if source.kind == "list" else 1
    with contextlib.closing(
        listing.iter_blocks(source, block_rows=manifest_rows.GROUP_ROWS, left_out=left_out, checkpoint=checkpoint)
    ) as blocks:
        for block in blocks:
            inside = map(bool, block.members or itertools.repeat("", len(block)))
            for row, (image_id, path, member) in enumerate(
                zip(block.image_ids, block.paths, inside, strict=True), start=first
            ):
                for matcher in matchers:
                    _add_image(matcher, row, image_id, path, source.root, own=own, inside=member)
            first += len(block)
            kept = len(block) if limit is None else limit - (first - len(block))
            if kept > 0:
                yield block.first(kept)


def _add_image(
    matcher: matching.Matcher, row: int, image_id: str, path: str, root: Path, *, own: int, inside: bool
) -> None:
    """Compare an image with the names of labels; they name a member as if its container were a folder."""
    path = image_id if inside else path
    full = f"{root}/{path}" if path[0] != "/" else path
    alias = _frame_of_stem(image_id, full) if inside else None
    matcher.add(row, image_id, full, named=path.strip("/").count("/") + 1 + own, alias=alias)


def _frame_of_stem(image_id: str, full: str) -> tuple[str, str] | None:
    """Return the name and path of a frame as predictions have it, `clip#17` and `/v/a/clip#17` of `a/clip.mp4#17`.

    None for other members.
    """
    place, _, number = image_id.rpartition("#")
    if not place or not number.isdecimal():
        return None
    return f"{Path(place).stem}#{number}", f"{os.path.splitext(full.rpartition('#')[0])[0]}#{number}"  # noqa: PTH122


def _nowhere(points: PointTable | RegionTable) -> matching.Placement:
    """Return the placement of labels among no images."""
    return matching.Placement(rows={}, absent=tuple(points.images), elsewhere=())


def _log_unmatched(placed: matching.Placement, points: PointTable | RegionTable, *, what: str = "points") -> None:
    """Log the images of a file of labels that are missing, or were matched despite different folders."""
    if placed.absent:
        LOGGER.warning(
            "%d of %d images of the %s file are not in the source, and their %s are skipped: %s%s",
            *(len(placed.absent), len(points.images), what, what, ", ".join(map(repr, placed.absent[:3]))),
            ", ..." if len(placed.absent) > 3 else "",
        )
    if placed.elsewhere:
        name, path = placed.elsewhere[0]
        LOGGER.warning(
            "%d of %d images of the %s file are named with folders that their paths do not contain: %r was matched "
            "to %r. If these are not the labelled images, pass those instead",
            *(len(placed.elsewhere), len(points.images), what, name, path),
        )


def _write(
    path: Path,
    blocks: Iterable[pa.RecordBatch],
    source: image_source.ImageSource,
    points: PointTable | None = None,
    *,
    absent: Sequence[str] = (),
    labelled: Mapping[int, int] = MappingProxyType({}),
    left_out: folders.LeftOut | None = None,
    listed_ns: int | None = None,
    may_be_empty: bool = False,
) -> None:
    """Write blocks of rows and the manifest's metadata; raise `InputError` if there are no rows and must be."""
    point_names = () if points is None else points.names
    blocks = iter(blocks)
    head = list(itertools.islice(blocks, 1))
    members = manifest_rows.MEMBER_COLUMN in head[0].schema.names if head else source.kind == "members"
    form: manifest_rows.Form = {
        "members": members,
        "columns": manifest_rows.further_columns(head[0].schema) if head else (),
        "likelihood": points is not None and points.likelihood is not None,
    }
    digest = manifest_rows.Digest(point_names, **form)
    like = manifest_rows.schema(point_names, **form)
    count, placed = 0, list[int]()
    with path.open("xb") as file:
        with parquet.ParquetWriter(file, like, compression="zstd", use_dictionary=False) as writer:
            # Compression and hashing, without Python's lock, go on beside the listing.
            with ThreadPoolExecutor(max_workers=1, thread_name_prefix="genenc-manifest") as pool:
                written: deque[Future[None]] = deque()
                for block in itertools.chain(head, blocks):
                    written.append(pool.submit(_add, block, writer, digest))
                    if point_names:
                        placed += [labelled[row] for row in block.column("row").to_pylist() if row in labelled]
                    count += block.num_rows
                    if len(written) > _BLOCKS_WAITING:
                        written.popleft().result()
                for each in written:
                    each.result()
            writer.add_key_value_metadata(
                {
                    "genenc.version": manifest_rows.VERSION,
                    "genenc.root": folders.to_text(str(source.root)),
                    "genenc.digest": digest.hexdigest(),
                    "genenc.point_names": json.dumps(list(point_names), ensure_ascii=False),
                    **_signed(source, members=members),
                    **({} if listed_ns is None else {"genenc.listed_ns": str(listed_ns)}),
                    **({} if source.kind == "list" else {"genenc.extensions": ",".join(source.extensions)}),
                    **({} if source.kind == "list" or source.system_folders else {"genenc.system_folders": "skipped"}),
                    **(
                        {"genenc.glob": "python"}
                        if source.kind in ("glob", "members") and not source.earlier_glob
                        else {}
                    ),
                    **({"genenc.left_out": _as_json(left_out)} if left_out and left_out.kinds else {}),
                    **(
                        {}
                        if points is None
                        else {"genenc.labels": _labels(count - len(placed), absent, points, placed)}
                    ),
                }
            )
        file.flush()
        os.fsync(file.fileno())
    if count == 0 and not may_be_empty:
        reason = (
            f"looked for files ending in {', '.join(source.extensions)}"
            if source.extensions and source.kind != "list"
            else "it has no rows"
            if source.kind == "list"
            else "it has none"
        )
        if left_out is not None and left_out.kinds:
            reason += f"; {folders.describe(left_out.kinds, frames=source.frames is not None)}"
        raise errors.InputError(f"no images found in {source.describe()}: {reason}")


def _signed(source: image_source.ImageSource, *, members: bool) -> dict[str, str]:
    """Return where the credentials of addresses are."""
    if source.kind != "list" or not members:
        return {}
    return {"genenc.addresses": json.dumps({"list": folders.to_text(source.location), "column": source.image_column})}


def _add(block: pa.RecordBatch, writer: parquet.ParquetWriter, digest: manifest_rows.Digest) -> None:
    writer.write_batch(block)
    digest.update(block)


def _as_json(left_out: folders.LeftOut) -> str:
    kinds = {
        folders.to_text(kind): (count, [folders.to_text(path) for path in first])
        for kind, (count, first) in sorted(left_out.kinds.items())
    }
    return json.dumps(kinds, ensure_ascii=False)


def _labels(without: int, absent: Sequence[str], points: PointTable, placed: Iterable[int]) -> str:
    """Return the label metadata as JSON: images without a label, labels without an image, and the scale.

    `placed`: indices of the images of the table that are among the rows.
    """
    uncertain = sum(points.uncertain.get(index, 0) for index in placed) if points.uncertain else 0
    labels: dict[str, object] = {
        "images_without": without,
        "absent": len(absent),
        "absent_first": list(absent[:20]),
        **({} if points.scale.text is None else {"scale": points.scale.text}),
        **({"uncertain": uncertain} if uncertain else {}),
        **({"individuals": list(points.individuals)} if points.individuals else {}),
    }
    return json.dumps(labels)


def _extensions_of(stored: Mapping[bytes, bytes]) -> tuple[str, ...]:
    """Return the recorded extensions; earlier versions recorded none and supported only the built-in ones."""
    recorded = stored.get(b"genenc.extensions", b"").decode(errors="replace")
    return tuple(recorded.split(",")) if recorded else image_source.EXTENSIONS


def _listed_ns(path: Path, stored: Mapping[bytes, bytes]) -> int | None:
    """Return when the files were listed; None in manifests of earlier versions."""
    recorded = stored.get(b"genenc.listed_ns")
    if recorded is None:
        return None
    if not recorded.isdigit() or len(recorded) > 19:
        raise errors.StoreError(f"{path} is damaged: genenc.listed_ns is not a time")
    return int(recorded)
