"""Parts of a dataset: creating the first, finding unfinished ones, and what their records say of rows."""

from collections.abc import Collection, Mapping, Set
from pathlib import Path
from typing import Any

import numpy as np

from genenc_core import errors, statuses
from genenc_core.dataset import documents
from genenc_core.dataset.documents import Version, Written
from genenc_core.dataset.folder import DatasetFolder
from genenc_core.dataset.rows import CurrentRows, Images, index
from genenc_core.run import out_folder, records
from genenc_core.run.folder import RunFolder
from genenc_core.store import layout
from genenc_core.store.backends.objects import Root, open_objects
from genenc_core.system import digests

_OWN_NAMES = {documents.DATASET, documents.SETTINGS, documents.PARTS, documents.VERSIONS, documents.TAGS, "README.md"}


def create_dataset(
    root: Root, meaning: Mapping[str, Any], points: list[str], individuals: list[str], regions: str | None = None
) -> DatasetFolder:
    """Create `dataset.json`, or open the dataset that another process created meanwhile.

    Raises:
        InputError: the folder holds something else, or is not writable.
    """
    objects = open_objects(root)
    if isinstance(root, Path):
        with out_folder.writing(root):
            root.mkdir(parents=True, exist_ok=True)
    _refuse_foreign(objects.names(""), objects.name)
    records.create_json(objects, documents.DATASET, documents.meaning_to_json(meaning, points, individuals, regions))
    return DatasetFolder(root)


def refuse_other_folder(root: Root) -> None:
    """Raise `InputError` if a place is neither free nor a dataset."""
    objects = open_objects(root)
    try:
        names = objects.names("")
    except FileNotFoundError:
        return
    except OSError as error:
        raise errors.InputError(f"{objects.name!r} cannot be read: {error.strerror or error}") from error
    _refuse_foreign(names, objects.name)


def _refuse_foreign(names: Collection[str], where: str) -> None:
    foreign = sorted(name for name in names if name not in _OWN_NAMES and name[0] != ".")
    if foreign and documents.DATASET not in names:
        what = (
            "holds a run" if "features.zarr" in foreign else f"is not empty and not a dataset (it holds {foreign[0]!r})"
        )
        raise errors.InputError(f"{where!r} {what}: give a new folder")


def newest(folder: DatasetFolder, head: Written | None) -> RunFolder | None:
    """Return the newest part that was created, of a version if there is one; None if there is none."""
    if head is not None:
        return folder.part(head.version.parts[-1].name)
    names = [documents.part_name(number) for number in reversed(folder.parts())]
    return next((folder.part(name) for name in names if folder.part_exists(name)), None)


def next_number(folder: DatasetFolder, head: Written | None) -> int:
    """Return the number after that of the last part; one whose creation was interrupted is created again."""
    last = head.version.last_part if head else 0
    created = [number for number in of_updates(folder, above=last) if folder.part_exists(documents.part_name(number))]
    return max([last, *created]) + 1


def unfinished(
    folder: DatasetFolder, head: Written | None, images: Images, *, passed: Collection[str]
) -> RunFolder | None:
    """Return the first part that no version has yet and that can be finished.

    A part without a committed shard is passed over if one of its files changed or vanished since.
    """
    last = head.version.last_part if head else 0
    for number in of_updates(folder, above=last):
        name = documents.part_name(number)
        if name not in passed and folder.part_exists(name):
            run = folder.part(name)
            if run.store.committed() or _are_listed(run, images):
                return run
    return None


def of_updates(folder: DatasetFolder, *, above: int = 0) -> list[int]:
    """Return the numbers above another of the parts that updates made, in a version or not, in order."""
    return [number for number in folder.parts() if number > above and not documents.is_compacted(number)]


def is_passed(run: RunFolder, head: Written) -> bool:
    """Return whether a version has a part, or passed over it."""
    return (documents.part_number(name_of(run)) or 0) <= head.version.last_part


def name_of(run: RunFolder) -> str:
    """Return the name of a part."""
    return run.root.rstrip("/").rpartition("/")[2]


def rows_in(run: RunFolder, images: Images) -> np.ndarray:
    """Return the rows of a listing whose files a part has, of the same size, time and labels; int64, ascending."""
    own = Images.of_run(run)
    at = _same_files(images, own)
    found = np.flatnonzero(at >= 0)
    kept: np.ndarray = found[images.same_labels(found, own, at[found])].astype(np.int64)
    return kept


def _are_listed(run: RunFolder, images: Images) -> bool:
    """Return whether all files of a part are listed, unchanged."""
    return bool((_same_files(Images.of(run.manifest), images) >= 0).all())


def _same_files(images: Images, among: Images) -> np.ndarray:
    """Return where images are among others, of the same size and time, int64 `[n]`, -1 for none."""
    at = index(images, among)
    found = np.flatnonzero(at >= 0)
    to = at[found]
    other = (images.bytes[found] != among.bytes[to]) | (images.mtime_ns[found] != among.mtime_ns[to])
    other |= ~images.same_member(found, among, to)
    at[found[other]] = -1
    return at


def status_of(run: RunFolder) -> np.ndarray:
    """Return the status of every row of a part, uint8 `[rows]`."""
    import zarr

    group: Any = zarr.open_group(run.store.zarr_store(), mode="r")
    return np.asarray(group[layout.STATUS][:])


def unreadable_positions(folder: DatasetFolder, version: Version, known: CurrentRows) -> np.ndarray:
    """Return the positions of the current rows that are unreadable, int64, ascending."""
    found = []
    for part in version.parts:
        of_part = np.flatnonzero(known.part == part.number)
        found.append(of_part[is_unreadable(folder, part.name, known.row[of_part])])
    return np.concatenate([np.empty(0, np.int64), *found])


def is_unreadable(folder: DatasetFolder, name: str, rows: np.ndarray) -> np.ndarray:
    """Return which rows of a part are unreadable, bool `[n]`."""
    if not len(rows):
        return np.empty(0, bool)
    unreadable: np.ndarray = status_of(folder.part(name))[rows] == statuses.UNREADABLE
    return unreadable


def values_digest(run: RunFolder, left_out: Set[int] = frozenset()) -> str:
    """Return the digest of what the committed rows of a part decode to, without shards with these rows."""
    parts = []
    for shard in sorted(run.store.committed()):
        if not left_out.isdisjoint(range(*run.store.shard_range(shard))):
            continue
        record = run.store.record(shard)
        assert record is not None
        parts.append("".join(f"{shard} {item.key} {item.content_digest}\n" for item in record.objects).encode())
    return digests.PART_VALUES.named(*parts)


class RecordedDigests:
    """Recorded sha256 of the files of current rows, read from commit records when they are asked for."""

    def __init__(self, folder: DatasetFolder, known: CurrentRows) -> None:
        self.folder = folder
        self.known = known
        self.runs: dict[int, RunFolder] = {}
        self.shards: dict[tuple[int, int], list[str]] = {}

    def __call__(self, positions: np.ndarray) -> list[str]:
        """Return the digests by position, "" where none is recorded."""
        return [self._digest(int(self.known.part[at]), int(self.known.row[at])) for at in positions]

    def _digest(self, part: int, row: int) -> str:
        if part not in self.runs:
            self.runs[part] = self.folder.part(documents.part_name(part))
        store = self.runs[part].store
        shard = row // store.plan.shard_rows
        if (part, shard) not in self.shards:
            record = store.record(shard)
            found = record.details.get("input_sha256") if record else None
            self.shards[part, shard] = list(map(str, found)) if isinstance(found, list | tuple) else []
        start = store.shard_range(shard)[0]
        recorded = self.shards[part, shard]
        return recorded[row - start] if row - start < len(recorded) else ""
