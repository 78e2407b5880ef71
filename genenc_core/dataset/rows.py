"""Rows of a version: which rows of its parts are current, and the images that they are of."""

import functools
import io
import itertools
import secrets
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import parquet

from genenc_core import errors
from genenc_core.dataset import documents, origins
from genenc_core.dataset.documents import ChangesFile, Part, Version
from genenc_core.dataset.folder import DatasetFolder
from genenc_core.images.sources import manifest, manifest_rows
from genenc_core.images.sources import regions as region_rows
from genenc_core.images.sources.regions import Regions
from genenc_core.run.folder import MANIFEST, REGIONS, RunFolder
from genenc_core.store import run_store
from genenc_core.store.backends.objects import Objects, join, open_objects
from genenc_core.system import digests

SUPERSEDED: Final = "superseded"
"""The image is in a later part: its file, its points, or its being unreadable changed."""
WITHDRAWN: Final = "withdrawn"
"""The image was no longer among those listed."""
NOT_ENCODED: Final = "not_encoded"
"""Its shard was not committed."""
RENAMED: Final = "renamed"
"""The row is current, of an image with another name and the same content."""
TOUCHED: Final = "touched"
"""The row is current: the file has another time and the same content."""
GONE: Final = (SUPERSEDED, WITHDRAWN, NOT_ENCODED)
_KINDS: Final = (*GONE, RENAMED, TOUCHED)
_SCHEMA: Final = pa.schema(
    [
        pa.field("part", pa.int32(), nullable=False),
        pa.field("row", pa.int64(), nullable=False),
        pa.field("change", pa.string(), nullable=False),
        pa.field("image_id", pa.string()),
        pa.field("path", pa.string()),
        pa.field("bytes", pa.int64()),
        pa.field("mtime_ns", pa.int64()),
    ]
)
_COLUMNS: Final = pa.schema(
    # Offsets of 64 bits: the names of a large set are more than 2 GiB.
    [("image_id", pa.large_string()), ("path", pa.large_string()), ("bytes", pa.int64()), ("mtime_ns", pa.int64())]
)
_MEMBER: Final = pa.field(manifest_rows.MEMBER_COLUMN, pa.large_string())
"""Where an image is in its file; only in datasets of images inside files."""
_THREADS: Final = 16
_UNKNOWN: Final = np.iinfo(np.int64).max
_LARGEST: Final = 2**32


class Images:
    """Images in a fixed order, by column: those of a listing, or of a version's current rows."""

    def __init__(
        self,
        table: pa.Table,
        points: np.ndarray,
        *,
        regions: np.ndarray | None = None,
        listed_ns: int | None = None,
        root: Path | None = None,
    ) -> None:
        self.regions = np.zeros(len(points), np.uint64) if regions is None else regions
        """A number for the regions of each image (`Regions.label_digests`), uint64 `[n]`; 0 for none."""
        self.root = root
        """Folder that paths are relative to; None if they are of several."""
        self.listed_ns = listed_ns
        """When a listing was made, in nanoseconds since 1970; None if not recorded."""
        self.table = table
        """With `image_id`, `path`, `bytes` and `mtime_ns`, and of images inside files, `member`."""
        self.points = points
        """float64 `[n, K, 2]`."""

    def __len__(self) -> int:
        return int(self.table.num_rows)

    @classmethod
    def of_run(cls, run: RunFolder) -> "Images":
        """Return the images of a run, with their labels."""
        return cls.of(run.manifest, run.regions)

    @classmethod
    def of(cls, listed: manifest.Manifest, regions: Regions | None = None) -> "Images":
        """Return the images of a manifest, with their regions."""
        names, members = listed.point_names, listed.has_members
        of_images = _COLUMNS.append(_MEMBER) if members else _COLUMNS
        columns = [*of_images.names, *(manifest_rows.POINT_COLUMNS if names else ())]
        schema = manifest_rows.schema(names, members=members).empty_table().select(columns).schema
        table = pa.Table.from_batches(listed.iter_columns(columns), schema)
        return cls(
            table.select(of_images.names).cast(of_images),
            _points(table, len(names)),
            regions=None if regions is None else regions.label_digests(listed.rows),
            listed_ns=listed.listed_ns,
            root=listed.root,
        )

    @property
    def has_members(self) -> bool:
        """Whether they are inside files."""
        return _MEMBER.name in self.table.column_names

    def same_member(self, rows: np.ndarray, others: "Images", positions: np.ndarray) -> np.ndarray:
        """Return which images are where others are in their files, bool `[n]`; all are, of image files."""
        if not (self.has_members and others.has_members):
            return np.ones(len(rows), bool)
        one, other = (
            of.table.column(_MEMBER.name).take(pa.array(at)) for of, at in ((self, rows), (others, positions))
        )
        return np.asarray(pc.equal(one, other), bool)

    def same_labels(self, rows: np.ndarray, others: "Images", positions: np.ndarray) -> np.ndarray:
        """Return which images have the points and regions of others, bool `[n]`."""
        one, other = self.points[rows], others.points[positions]
        same: np.ndarray = ((one == other) | (np.isnan(one) & np.isnan(other))).all(axis=(1, 2))
        same &= self.regions[rows] == others.regions[positions]
        return same

    @functools.cached_property
    def bytes(self) -> np.ndarray:
        """File sizes, int64 `[n]`; -1 = missing."""
        return manifest_rows.numbers(self.table.column("bytes"))

    @functools.cached_property
    def mtime_ns(self) -> np.ndarray:
        """Modification times in nanoseconds since 1970, int64 `[n]`."""
        return manifest_rows.numbers(self.table.column("mtime_ns"))

    def rows(self, rows: np.ndarray) -> pa.Table:
        """Return some images, by column."""
        return self.table.take(pa.array(rows))

    def text(self, column: str, rows: Sequence[int] | np.ndarray) -> list[str]:
        """Return values of `image_id` or `path`."""
        found: list[str] = self.table.column(column).take(pa.array(np.asarray(rows, np.int64))).to_pylist()
        return found


class CurrentRows(Images):
    """The current rows of a version, in order, with where each is stored."""

    def __init__(
        self,
        table: pa.Table,
        points: np.ndarray,
        part: np.ndarray,
        row: np.ndarray,
        seen_ns: np.ndarray,
        roots: Sequence[Path],
        root_of: np.ndarray,
        *,
        regions: np.ndarray | None = None,
    ) -> None:
        super().__init__(table, points, regions=regions)
        self.roots = roots
        """Folders that paths are relative to."""
        self.root_of = root_of
        """Which of `roots` the path of a row is relative to, int64 `[n]`."""
        self.seen_ns = seen_ns
        """When the files were listed for the parts, int64 `[n]` in nanoseconds since 1970; the largest if unknown."""
        self.part = part
        """Numbers of the parts, int32 `[n]`."""
        self.row = row
        """Rows in them, int64 `[n]`."""

    @property
    def first_seen_ns(self) -> int | None:
        """When the first of the files were listed; None if that is unknown."""
        first = int(self.seen_ns.min(initial=_UNKNOWN))
        return None if first == _UNKNOWN else first


def current(folder: DatasetFolder, version: Version | None) -> CurrentRows:
    """Return the current rows of a version, in the order of its parts; none without a version.

    Raises:
        StoreError: a document or manifest is missing or damaged.
    """
    return among(folder, version, read_changes(folder, version))


def among(folder: DatasetFolder, version: Version | None, changes: pa.Table) -> CurrentRows:
    """Return the current rows of a version with these row changes.

    Raises:
        StoreError: a manifest is missing or damaged, or the changes are of other parts.
    """
    names = folder.meaning.points
    parts = version.parts if version else []
    with ThreadPoolExecutor(_THREADS) as pool:
        found = list(pool.map(lambda part: _images(folder, part, names), parts))
    tables = [images.table for images in found]
    table = pa.concat_tables([tables[0].schema.empty_table() if tables else _COLUMNS.empty_table(), *tables])
    points = np.concatenate([np.empty((0, len(names), 2)), *(images.points for images in found)])
    regions = np.concatenate([np.empty(0, np.uint64), *(images.regions for images in found)])
    part = np.concatenate([np.empty(0, np.int32), *(np.full(item.rows, item.number, np.int32) for item in parts)])
    row = np.concatenate([np.empty(0, np.int64), *(np.arange(item.rows) for item in parts)])
    seen = np.array([_UNKNOWN if images.listed_ns is None else images.listed_ns for images in found], np.int64)
    seen = np.repeat(seen, [item.rows for item in parts])
    table = _amended(table, version, changes)
    keep = np.flatnonzero(mask(version, changes)) if version else np.empty(0, np.int64)
    roots, root_of = _roots(folder, parts, [images.root for images in found])
    at = (part[keep], row[keep], seen[keep], roots, root_of[keep])
    return CurrentRows(table.take(pa.array(keep)), points[keep], *at, regions=regions[keep])


def _roots(
    folder: DatasetFolder, parts: Sequence[Part], listed: Sequence[Path | None]
) -> tuple[list[Path], np.ndarray]:
    """Return the folders that paths of these parts are relative to, and which one each row's is, int64 `[n]`.

    The rows of a compacted part may come from several folders, of which its manifest names one.
    """
    records = origins.of_parts(folder, [part.number for part in parts if documents.is_compacted(part.number)])
    runs: list[tuple[str, int]] = []
    for part, root in zip(parts, listed, strict=True):
        record = records.get(part.number)
        own = [(str(root), part.rows)] if record is None else record.roots_of_rows()
        if sum(count for _, count in own) != part.rows:
            raise errors.StoreError(f"{origins.RECORD!r} of {part.name!r} is damaged: it is of another number of rows")
        runs += own
    names = list(dict.fromkeys(name for name, _ in runs))
    codes = np.array([names.index(name) for name, _ in runs], np.int64)
    return [Path(name) for name in names], np.repeat(codes, np.array([count for _, count in runs], np.int64))


def manifest_blocks(known: CurrentRows, *, with_points: bool = True) -> Iterator[pa.RecordBatch]:
    """Yield current rows as those of a manifest, numbered from 0, with their points if there are any."""
    count = known.points.shape[1] if with_points else 0
    members = known.has_members
    schema = manifest_rows.schema([str(index) for index in range(count)], members=members)
    names = (*manifest_rows.TEXT_COLUMNS, *((_MEMBER.name,) if members else ()))
    for start in range(0, len(known), manifest_rows.GROUP_ROWS):
        block = known.table.slice(start, manifest_rows.GROUP_ROWS)
        xy = known.points[start : start + block.num_rows]
        axes = [np.ascontiguousarray(xy[..., axis]).ravel() for axis in range(2 if count else 0)]
        points = [pa.FixedSizeListArray.from_arrays(pa.array(values), count) for values in axes]
        texts = [block.column(name).cast(pa.string()).combine_chunks() for name in names]
        numbers = [block.column(name).combine_chunks() for name in manifest_rows.NUMBER_COLUMNS]
        row = pa.array(np.arange(start, start + block.num_rows))
        yield pa.record_batch([row, *texts, *numbers, *points], schema=schema)


def mask(version: Version, changes: pa.Table) -> np.ndarray:
    """Return which stored rows of a version are current, bool `[rows of all parts]`."""
    kept = np.ones(version.stored_rows, bool)
    gone = np.isin(changes.column("change").to_numpy(zero_copy_only=False).astype(str), GONE)
    kept[_positions(version, changes)[gone]] = False
    return kept


def amendments(version: Version, changes: pa.Table) -> tuple[np.ndarray, pa.Table]:
    """Return the stored rows of a version that have other names, sizes or times, and these."""
    amended = ~np.isin(changes.column("change").to_numpy(zero_copy_only=False).astype(str), GONE)
    return _positions(version, changes)[amended], changes.filter(pa.array(amended))


def of_parts(changes: pa.Table, parts: Iterable[Part]) -> pa.Table:
    """Return the row changes of some parts."""
    numbers = pa.array([part.number for part in parts], pa.int32())
    return changes.filter(pc.is_in(changes.column("part"), value_set=numbers))


def gone(changes: pa.Table) -> dict[int, int]:
    """Return how many rows of each part are not current, by its number, for parts with any."""
    found = changes.filter(pc.is_in(changes.column("change"), value_set=pa.array(GONE)))
    numbers, counts = np.unique(np.asarray(found.column("part")), return_counts=True)
    return dict(zip(numbers.tolist(), counts.tolist(), strict=True))


def _positions(version: Version, changes: pa.Table) -> np.ndarray:
    """Return the positions of changes among all stored rows of a version, int64."""
    numbers = np.array([part.number for part in version.parts], np.int64)
    order = np.argsort(numbers)
    parts = manifest_rows.numbers(changes.column("part").cast(pa.int64()))
    rows = manifest_rows.numbers(changes.column("row"))
    at = order[np.searchsorted(numbers[order], parts).clip(max=max(len(numbers) - 1, 0))] if len(numbers) else parts
    sizes = np.array([part.rows for part in version.parts], np.int64)
    if len(parts) and (
        not len(numbers) or (numbers[at] != parts).any() or (rows < 0).any() or (rows >= sizes[at]).any()
    ):
        raise errors.StoreError(f"changes of version {version.version} are damaged: a row that its parts do not have")
    positions: np.ndarray = _starts(version)[at] + rows
    return positions


def _starts(version: Version) -> np.ndarray:
    return np.cumsum([0, *(part.rows for part in version.parts)])


def _amended(table: pa.Table, version: Version | None, changes: pa.Table) -> pa.Table:
    if version is None:
        return table
    positions, amended = amendments(version, changes)
    if not len(positions):
        return table
    source = np.arange(len(table))
    source[positions] = len(table) + np.arange(len(positions))
    both = pa.concat_tables([table, amended.select(table.column_names).cast(table.schema)])
    return both.take(pa.array(source))


def read_changes(folder: DatasetFolder, version: Version | None) -> pa.Table:
    """Return the row changes of a version: part, row, change, and the new name, size and time of a renamed file.

    Raises:
        StoreError: missing or damaged.
    """
    if version is None or version.changes is None:
        return no_changes()
    key = f"{documents.VERSIONS}/{version.changes.file}"
    where = join(folder.root, key)
    with run_store.read_errors(folder.root):
        try:
            data = folder.objects.read(key, most=_LARGEST)
        except FileNotFoundError as error:
            raise errors.StoreError(f"{where!r} is missing: restore it from a copy") from error
    if digests.ROW_CHANGES.named(data) != version.changes.digest:
        raise errors.StoreError(f"{where!r} was changed after it was written: restore it from a copy")
    footer = parquet.read_metadata(io.BytesIO(data))
    sizes = sum(footer.row_group(at).total_byte_size for at in range(footer.num_row_groups))
    if footer.num_rows != version.changes.rows or footer.num_rows > version.stored_rows or sizes > _LARGEST:
        raise errors.StoreError(f"{where!r} has {footer.num_rows} rows in {sizes} bytes, not those of its version")
    schema = _SCHEMA.append(_MEMBER) if _MEMBER.name in footer.schema.names else _SCHEMA
    table: pa.Table = parquet.read_table(io.BytesIO(data), schema=schema)
    return table


def write_changes(folder: DatasetFolder, number: int, table: pa.Table) -> ChangesFile | None:
    """Write the row changes of a version under a name of its own; None if there are none."""
    if not len(table):
        return None
    sink = io.BytesIO()
    parquet.write_table(table, sink, compression="zstd")
    data = sink.getvalue()
    name = f"v{number:06d}-{secrets.token_hex(8)}.parquet"
    with run_store.disk_errors(f"version {number} of {folder.root!r}"):
        folder.objects.make_folder(documents.VERSIONS)
        folder.objects.write_new(f"{documents.VERSIONS}/{name}", data)
        folder.objects.sync(documents.VERSIONS)
    return ChangesFile(file=name, rows=len(table), digest=digests.ROW_CHANGES.named(data))


def no_changes() -> pa.Table:
    """Return the row changes of a version whose rows are all current."""
    return _SCHEMA.empty_table()


def changed(part: np.ndarray, row: np.ndarray, change: str, images: pa.Table | None = None) -> pa.Table:
    """Return one kind of change of rows as a table; `images` has the columns of renamed and touched ones."""
    count = len(row)
    given = {"part": pa.array(part, pa.int32()), "row": pa.array(row, pa.int64()), "change": pa.repeat(change, count)}
    more = {name: pa.nulls(count) if images is None else images.column(name) for name in _COLUMNS.names}
    table: pa.Table = pa.table({**given, **more}).cast(_SCHEMA)
    if images is not None and _MEMBER.name in images.column_names:
        table = table.append_column(_MEMBER, images.column(_MEMBER.name))
    return table


def joined(changes: Sequence[pa.Table]) -> pa.Table:
    """Return row changes as one table; of images inside files some say where in these they are."""
    return pa.concat_tables(changes, promote_options="default")


def keys(changes: pa.Table) -> np.ndarray:
    """Return a number for each row that changes are of, int64."""
    part, row = (manifest_rows.numbers(changes.column(name).cast(pa.int64())) for name in ("part", "row"))
    joined: np.ndarray = (part << 34) + row
    return joined


def index(images: Images, among: Images) -> np.ndarray:
    """Return where the names of images are among others, int64 `[n]`, -1 for none."""
    names, others = (each.table.column("image_id").combine_chunks() for each in (images, among))
    return np.asarray(pc.index_in(names, value_set=others).fill_null(-1), np.int64)


def _images(folder: DatasetFolder, part: Part, point_names: Sequence[str]) -> Images:
    objects: Objects = open_objects(folder.part_root(part.name))
    opened = manifest.Manifest.open(
        Path(join(objects.name, MANIFEST)), opener=functools.partial(objects.open, MANIFEST)
    )
    if opened.rows != part.rows or list(opened.point_names) != list(point_names):
        raise errors.StoreError(
            f"{join(objects.name, MANIFEST)!r} is not the file that the version was made with: restore it from a copy"
        )
    if folder.meaning.regions is None:
        return Images.of(opened)
    place, opener = join(objects.name, REGIONS), functools.partial(objects.open, REGIONS)
    found = Regions.open(Path(place), rows=part.rows, opener=opener)
    if len(found) != part.regions:
        raise errors.StoreError(f"{place!r} is not the file that the version was made with: restore it from a copy")
    return Images.of(opened, found)


def current_regions(folder: DatasetFolder, known: CurrentRows) -> Regions:
    """Return the regions of current rows, numbered as these.

    Raises:
        StoreError: a file of regions is missing or damaged.
    """
    tables: list[pa.Table] = []
    like: Regions | None = None
    starts = np.flatnonzero(np.r_[True, np.diff(known.part) != 0]) if len(known) else np.empty(0, np.int64)
    for first, last in itertools.pairwise([*starts.tolist(), len(known)]):
        found = folder.part(documents.part_name(int(known.part[first]))).regions
        assert found is not None
        like, table = found, found.of_images(known.row[first:last])
        tables.append(region_rows.renumbered(table, np.asarray(table.column("row")) + first))
    assert like is not None
    return region_rows.made(pa.concat_tables(tables), {"absent": 0, **like.labels_of_scale})


def _points(table: pa.Table, count: int) -> np.ndarray:
    if not count:
        return np.empty((len(table), 0, 2))
    flat = [manifest_rows.flat_points(table.column(name)) for name in manifest_rows.POINT_COLUMNS]
    stacked: np.ndarray = np.stack(flat, axis=-1).reshape(len(table), count, 2)
    return stacked
