"""Detection of replaced files that have the planned size and nearly the planned time, judged per shard.

File systems and archives round times, but all times of a volume in the same way. Files of equal size and time
(uncompressed frames from an archive) are distinguished by when they were last renamed, replaced or written.
"""

import os
import stat
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:  # decode workers need no Parquet
    from genenc_core.images.sources.manifest import Manifest

RESOLUTIONS = (100, 1000, 10**7, 10**9, 2 * 10**9)
"""Timestamp resolutions in nanoseconds of file systems and archives: NTFS; tar; exFAT; ext3, NFS, zip; FAT."""
_SECOND = 10**9
_MAX_LINKS = 40
"""The limit of Linux."""
_BLOCK = 4096
"""Rows whose paths are read at a time."""


class Stamp(NamedTuple):
    """Planned and actual times of a file that was read."""

    size: int
    """Bytes, both planned and actual."""
    planned: int
    """Planned modification time, in nanoseconds since 1970."""
    found: int
    """Modification time when it was read, in nanoseconds since 1970."""
    touched: int
    """When its content, name or permissions, or a link on the way to it, last changed, in nanoseconds since 1970."""


STAMP = np.dtype([(name, np.int64) for name in Stamp._fields])
"""The NumPy dtype of a `Stamp`."""
NO_STAMP = np.array((-1, 0, 0, 0), STAMP)[()]


def same_time(one: int, other: int) -> bool:
    """Return whether two times are equal up to the rounding of one of them, as on a copy.

    Two whole seconds must be equal: they may be of two frames of a camera.
    """
    if one == other or (one % _SECOND == 0 and other % _SECOND == 0):
        return one == other
    difference = abs(one - other)
    return any(difference < each and (one % each == 0 or other % each == 0) for each in RESOLUTIONS)


def doubtful(rows: np.ndarray, stamped: np.ndarray, manifest: "Manifest", paths: Mapping[int, str]) -> dict[int, str]:
    """Return the rows of a shard whose files may not be the planned ones, each with the reason.

    Args:
        rows: int64 `[n]`, all rows of the shard whose files were read.
        stamped: STAMP `[n]` of their files.
        manifest: the manifest of the run.
        paths: row -> path, for the rows of the shard.

    Raises:
        StoreError: the manifest is damaged.
    """
    if manifest.listed_ns is not None:
        known: dict[str, int] = {}
        above = [paths[row].rpartition(os.sep)[0] for row in rows.tolist()]
        renamed = {each: last_renamed(os.path.dirname(each + os.sep), known) for each in set(above)}  # noqa: PTH120
        stamped = stamped.copy()
        stamped["touched"] = np.maximum(stamped["touched"], [renamed[each] for each in above])
    exact = (stamped["planned"] == stamped["found"]).all()
    if exact and (manifest.listed_ns is None or (stamped["touched"] <= manifest.listed_ns).all()):
        return {}
    stamps = {row: Stamp(*values) for row, values in zip(rows.tolist(), stamped.tolist(), strict=True)}
    kept = _resolutions(stamps)
    near = {row: stamp for row, stamp in stamps.items() if same_time(stamp.planned, stamp.found)}
    rounded = {row: _difference(stamp) for row, stamp in near.items() if stamp.planned != stamp.found}
    reasons = {
        row: "changed since planned: same size, its time differs by less than 2 s, and the other files do not show "
        "that times are rounded now"
        for row, difference in rounded.items()
        if not any(difference < each for each in kept)
    }
    if manifest.listed_ns is None:
        return reasons
    late = {row: stamp for row, stamp in near.items() if stamp.touched > manifest.listed_ns and row not in reasons}
    widths = {row: min(each for each in kept if rounded[row] < each) if row in rounded else 1 for row in late}
    for row in _shared(late, widths, manifest) if late else ():
        reasons[row] = (
            "may be another file: it or a parent folder was renamed, replaced or otherwise touched after the run was "
            "planned, and another planned file has the same size and time"
        )
    return reasons


def last_renamed(path: str, known: dict[str, int], links: int = _MAX_LINKS) -> int:
    """Return when a path, a link on the way to it, or a parent folder was last renamed, replaced or similar.

    In nanoseconds since 1970. Changes inside a folder also update its time, which hides an earlier rename. `known`
    caches results; at most `links` levels of links are followed.
    """
    if path not in known:
        known[path] = 0  # the root is its own parent
        try:
            status = os.lstat(path)
            target = os.readlink(path) if stat.S_ISLNK(status.st_mode) else None  # noqa: PTH115
        except OSError:
            return 0
        above = os.path.dirname(path)  # noqa: PTH120
        own = status.st_ctime_ns if target is not None or status.st_ctime_ns > status.st_mtime_ns else 0
        linked = last_renamed(os.path.join(above, target), known, links - 1) if target and links else 0  # noqa: PTH118
        known[path] = max(own, linked, last_renamed(above, known))
    return known[path]


def _difference(stamp: Stamp) -> int:
    return abs(stamp.planned - stamp.found)


def _resolutions(stamps: Mapping[int, Stamp]) -> list[int]:
    """Return the resolutions times were rounded to: all on one side are multiples of it, but not all on the other.

    Files whose time differs much from the planned one were replaced, and are no evidence about the volume.
    """
    same = [stamp for stamp in stamps.values() if _difference(stamp) < RESOLUTIONS[-1]]
    planned = np.array([stamp.planned for stamp in same], dtype=np.int64)
    found = np.array([stamp.found for stamp in same], dtype=np.int64)
    return [each for each in RESOLUTIONS if (planned % each == 0).all() != (found % each == 0).all()]


def _shared(late: Mapping[int, Stamp], widths: Mapping[int, int], manifest: "Manifest") -> Iterator[int]:
    """Yield the rows whose file could be mistaken for another planned file, by size and time."""
    sizes = {stamp.size for stamp in late.values()}
    times = [stamp.found for stamp in late.values()]
    rows, size, time = _candidates(manifest, sizes, min(times) - RESOLUTIONS[-1], max(times) + RESOLUTIONS[-1])
    order = np.lexsort((time, size))
    rows, size, time = rows[order], size[order], time[order]
    path = _cached_paths(manifest)
    starts = {each: np.searchsorted(size, each) for each in sizes}
    stops = {each: np.searchsorted(size, each, side="right") for each in sizes}
    for row, stamp in late.items():
        start, stop = starts[stamp.size], stops[stamp.size]
        part = time[start:stop]
        first = start + np.searchsorted(part, stamp.found - widths[row], side="right")
        last = start + np.searchsorted(part, stamp.found + widths[row])
        # A list may name a file several times.
        if any(path(int(other)) != path(row) for other in rows[first:last] if other != row):
            yield row


def _candidates(
    manifest: "Manifest", sizes: Collection[int], first: int, last: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return rows, sizes and times, int64, of all files with one of `sizes` and a time from `first` to `last`."""
    wanted, start = np.array(sorted(sizes)), 0
    matches: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    for block in manifest.iter_columns(["bytes", "mtime_ns"]):
        size, time = (block.column(name).to_numpy() for name in ("bytes", "mtime_ns"))
        at = np.flatnonzero(np.isin(size, wanted) & (time >= first) & (time <= last))
        matches.append((start + at, size[at], time[at]))
        start += len(size)
    rows, size, time = (np.concatenate(parts) for parts in zip(*matches, strict=True))
    return rows, size, time


def _cached_paths(manifest: "Manifest") -> Callable[[int], str]:
    """Return a function from row to path that reads each block of rows once."""
    blocks: dict[int, list[str]] = {}

    def path(row: int) -> str:
        block = row // _BLOCK
        if block not in blocks:
            blocks[block] = manifest.read(block * _BLOCK, min((block + 1) * _BLOCK, manifest.rows)).paths
        return blocks[block][row % _BLOCK]

    return path
