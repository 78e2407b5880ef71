"""Files of the planned size and nearly the planned time that may be others: judged for a shard, not for a file.

File systems and archives keep times to fewer digits, but all times of a volume to the same. And files of one size and
one time (uncompressed frames out of an archive) are told apart by when they were last renamed, replaced or written.
"""

import functools
import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:  # decode workers need no Parquet
    from genenc_core.images.manifest import Manifest

RESOLUTIONS = (100, 1000, 10**7, 10**9, 2 * 10**9)
"""Nanoseconds to which file systems and archives keep times: NTFS; tar; exFAT; ext3, NFS, zip; FAT."""
_SECOND = 10**9
_BLOCK = 4096
"""Rows whose paths are read at once."""


class Stamp(NamedTuple):
    """What was planned of a file that was read, and what was found."""

    size: int
    """Bytes, planned and found."""
    planned: int
    """Time of last change, in nanoseconds since 1970."""
    found: int
    """The same, when it was read."""
    touched: int
    """When its content, name or permissions last changed, in nanoseconds since 1970."""


STAMP = np.dtype([(name, np.int64) for name in Stamp._fields])
"""The same in arrays."""
NO_STAMP = np.array((-1, 0, 0, 0), STAMP)[()]


def same_time(one: int, other: int) -> bool:
    """Whether two times are equal where one of them was kept to fewer digits, as a copy's may be.

    Not two whole seconds: they are those of two pictures of a camera.
    """
    if one == other or (one % _SECOND == 0 and other % _SECOND == 0):
        return one == other
    apart = abs(one - other)
    return any(apart < each and (one % each == 0 or other % each == 0) for each in RESOLUTIONS)


def doubtful(rows: np.ndarray, stamped: np.ndarray, manifest: "Manifest", paths: Mapping[int, str]) -> dict[int, str]:
    """Return the rows of a shard whose files may be others than planned, each with the reason.

    Args:
        rows: int64 [n], all of the shard's whose files were read.
        stamped: STAMP [n], of their files.
        manifest: of all rows.
        paths: row -> path, of the shard's.

    Raises:
        StoreError: the manifest is damaged.
    """
    if manifest.listed_ns is not None:
        renamed = _last_renamed([os.path.dirname(paths[row]) for row in rows.tolist()])  # noqa: PTH120
        stamped = stamped.copy()
        stamped["touched"] = np.maximum(stamped["touched"], renamed)
    exact = (stamped["planned"] == stamped["found"]).all()
    if exact and (manifest.listed_ns is None or (stamped["touched"] <= manifest.listed_ns).all()):
        return {}
    stamps = {row: Stamp(*values) for row, values in zip(rows.tolist(), stamped.tolist(), strict=True)}
    kept = _resolutions(stamps)
    near = {row: stamp for row, stamp in stamps.items() if same_time(stamp.planned, stamp.found)}
    rounded = {row: _apart(stamp) for row, stamp in near.items() if stamp.planned != stamp.found}
    reasons = {
        row: "changed since planned: same size, its time differs by less than 2 s, and the times of the other files do "
        "not show that they are kept to fewer digits now"
        for row, apart in rounded.items()
        if not any(apart < each for each in kept)
    }
    if manifest.listed_ns is None:
        return reasons
    late = {row: stamp for row, stamp in near.items() if stamp.touched > manifest.listed_ns and row not in reasons}
    widths = {row: min(each for each in kept if rounded[row] < each) if row in rounded else 1 for row in late}
    for row in _shared(late, widths, manifest) if late else ():
        reasons[row] = (
            "may be another file: it or a folder above it was renamed, replaced or otherwise touched after the run was "
            "planned, and another planned file has its size and time"
        )
    return reasons


def _last_renamed(folders: Sequence[str]) -> np.ndarray:
    """Return of each folder when it or one above it was last renamed or the like, in nanoseconds since 1970.

    What is done in a folder changes its own time, too, so that a rename before it is not seen.
    """

    @functools.cache
    def renamed(folder: str) -> int:
        try:
            status = os.stat(folder)  # noqa: PTH116
        except OSError:
            return 0
        own = status.st_ctime_ns if status.st_ctime_ns > status.st_mtime_ns else 0
        above = os.path.dirname(folder)  # noqa: PTH120
        return own if above == folder else max(own, renamed(above))

    return np.array([renamed(folder) for folder in folders], dtype=np.int64)


def _apart(stamp: Stamp) -> int:
    return abs(stamp.planned - stamp.found)


def _resolutions(stamps: Mapping[int, Stamp]) -> list[int]:
    """Return to what times were rounded: all of one side are multiples of it, and of the other not all are.

    Files that were written long before or after they were planned are others, and say nothing of the volume.
    """
    same = [stamp for stamp in stamps.values() if _apart(stamp) < RESOLUTIONS[-1]]
    planned = np.array([stamp.planned for stamp in same], dtype=np.int64)
    found = np.array([stamp.found for stamp in same], dtype=np.int64)
    return [each for each in RESOLUTIONS if (planned % each == 0).all() != (found % each == 0).all()]


def _shared(late: Mapping[int, Stamp], widths: Mapping[int, int], manifest: "Manifest") -> Iterator[int]:
    """Yield the rows for whose file another planned file could be taken, by size and time."""
    sizes = {stamp.size for stamp in late.values()}
    times = [stamp.found for stamp in late.values()]
    rows, size, time = _alike(manifest, sizes, min(times) - RESOLUTIONS[-1], max(times) + RESOLUTIONS[-1])
    order = np.lexsort((time, size))
    rows, size, time = rows[order], size[order], time[order]
    path = _remembered(manifest)
    starts = {each: np.searchsorted(size, each) for each in sizes}
    stops = {each: np.searchsorted(size, each, side="right") for each in sizes}
    for row, stamp in late.items():
        start, stop = starts[stamp.size], stops[stamp.size]
        part = time[start:stop]
        first = start + np.searchsorted(part, stamp.found - widths[row], side="right")
        last = start + np.searchsorted(part, stamp.found + widths[row])
        # A list may name one file several times.
        if any(path(int(other)) != path(row) for other in rows[first:last] if other != row):
            yield row


def _alike(
    manifest: "Manifest", sizes: Collection[int], first: int, last: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return rows with their sizes and times, int64, of all files of some sizes and a span of time."""
    wanted, start = np.array(sorted(sizes)), 0
    found: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    for block in manifest.iter_columns(["bytes", "mtime_ns"]):
        size, time = (block.column(name).to_numpy() for name in ("bytes", "mtime_ns"))
        at = np.flatnonzero(np.isin(size, wanted) & (time >= first) & (time <= last))
        found.append((start + at, size[at], time[at]))
        start += len(size)
    rows, size, time = (np.concatenate(parts) for parts in zip(*found, strict=True))
    return rows, size, time


def _remembered(manifest: "Manifest") -> Callable[[int], str]:
    """Return what gives a row's path, and reads neighbours but once."""
    blocks: dict[int, list[str]] = {}

    def path(row: int) -> str:
        block = row // _BLOCK
        if block not in blocks:
            blocks[block] = manifest.read(block * _BLOCK, min((block + 1) * _BLOCK, manifest.rows)).paths
        return blocks[block][row % _BLOCK]

    return path
