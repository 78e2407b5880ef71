"""What changed between the current rows of a dataset and a listing of its images."""

import dataclasses
import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from genenc_core import errors, spec
from genenc_core.dataset.rows import CurrentRows, Images, index
from genenc_core.images.containers import kinds
from genenc_core.images.decode.decoded import ImageUnreadable
from genenc_core.images.sources import file_stamps, folders
from genenc_core.system import digests

_THREADS = 8
_READ = 256
"""Files that are read to see whether a folder is another one."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Differences:
    """Rows of a listing, and positions among the current rows, that differ; int64 arrays, ascending."""

    new: np.ndarray
    """Rows of the listing whose names are not in the dataset."""
    changed: np.ndarray
    """Rows of the listing whose files differ in size or time, are others, or, by content, differ in content."""
    points_changed: np.ndarray
    """Rows of the listing of the same files with other points or regions."""
    retried: np.ndarray
    """Rows of the listing of the same files, unreadable and to be tried again."""
    vanished: np.ndarray
    """Positions of rows whose names are not listed, and that were not renamed."""
    doubtful: int = 0
    """How many of the changed have the size and time of the file before, which another file has too, and were renamed
    or otherwise touched since."""
    renamed: tuple[np.ndarray, np.ndarray]
    """Positions, and the rows of the listing with the same content under another name."""
    touched: tuple[np.ndarray, np.ndarray]
    """Positions, and the rows of the listing with another time and the same content."""

    @property
    def to_encode(self) -> np.ndarray:
        """Rows of the listing to encode, ascending."""
        return np.sort(np.concatenate([self.new, self.changed, self.points_changed, self.retried]))

    @property
    def changes_rows(self) -> bool:
        """Whether current rows are withdrawn or get another name or time, apart from what is encoded."""
        return any(map(len, (self.vanished, self.renamed[0], self.touched[0])))

    def without(self, encoded: np.ndarray) -> "Differences":
        """Return what is left after a version with all of this, and with these rows of the listing, was made."""
        kinds = ("new", "changed", "points_changed", "retried")
        left = {kind: np.setdiff1d(getattr(self, kind), encoded) for kind in kinds}
        none = _nothing()
        return dataclasses.replace(self, doubtful=0, **left, vanished=none, renamed=(none, none), touched=(none, none))


ReadDigests = Callable[[np.ndarray], list[str]]
"""Returns the recorded sha256 of files by the positions of their rows, "" where there is none."""


def compare(
    known: CurrentRows,
    listed: Images,
    root: Path,
    *,
    may_differ: np.ndarray,
    unreadable: np.ndarray | None = None,
    recorded_digests: ReadDigests,
    by_content: bool = False,
    keep_vanished: bool = False,
    channels: spec.Channels | None = None,
) -> Differences:
    """Compare by name, size and time, or by content.

    Args:
        known: the dataset's current rows. A file with the size and time of the one before is another one if the list
            names it by another path; if it is in another folder than that, which is still there, or is gone and had
            another content; or if a further file has this size and time (frames out of an archive) and it, or a folder
            above it, was renamed or otherwise touched since it was listed.
        listed: the images now.
        root: folder that the listing's paths are relative to.
        may_differ: bool `[len(known)]`: which rows may be older than the listing; others are taken as equal to it.
        unreadable: positions of rows to try again if their files are the same; None for none.
        recorded_digests: digests of the files of current rows.
        by_content: a file of another time or name is compared by its digest if its size is the same.
        keep_vanished: rows of images that are not listed stay: none is taken as vanished or renamed.
        channels: those that are read of images inside files, if not RGB.
    """
    rows, positions = _matched(known, listed)
    both = (rows >= 0) & (positions >= 0)
    new, vanished = np.sort(rows[positions < 0]), np.sort(positions[rows < 0])
    vanished = vanished[:0] if keep_vanished else vanished[may_differ[vanished]]
    rows, positions = rows[both], positions[both]
    order = np.argsort(rows)
    rows, positions = rows[order], positions[order]
    same_size = listed.bytes[rows] == known.bytes[positions]
    same_time = listed.mtime_ns[rows] == known.mtime_ns[positions]
    same_member = listed.same_member(rows, known, positions)
    equal_points = listed.same_labels(rows, known, positions)
    files = _Files(listed, root, channels)
    elsewhere = same_size & ~files.same_path(rows, known, positions)
    asked = same_size & same_time & ~elsewhere & may_differ[positions]
    beside, gone = files.beside_another(rows, known, positions, asked)
    doubtful = asked & ~beside
    doubtful[doubtful] = _are_doubtful(files, rows[doubtful], known, positions[doubtful])
    gone &= ~doubtful
    beside[gone] = files.are_others(rows[gone], known, positions[gone], recorded_digests)
    differs = (~(same_size & same_time & same_member) | elsewhere | beside | doubtful) & may_differ[positions]
    equal_points |= ~may_differ[positions]
    touched, renamed = _nothing(), (_nothing(), _nothing())
    if by_content:
        # The size of a member's file says nothing of the member.
        maybe = np.flatnonzero(differs & (same_size | listed.has_members) & equal_points)
        kept = maybe[files.equal(rows[maybe], recorded_digests(positions[maybe]))]
        differs[kept] = False
        touched = kept[(~(same_size & same_time & same_member) | elsewhere)[kept]]
        renamed = _renamed(known, listed, new, vanished, files, recorded_digests)
        new, vanished = np.setdiff1d(new, renamed[1]), np.setdiff1d(vanished, renamed[0])
    again = np.isin(positions, unreadable) if unreadable is not None else np.zeros(len(rows), bool)
    return Differences(
        new=new,
        changed=rows[differs],
        doubtful=int((doubtful & differs).sum()),
        points_changed=rows[~differs & ~equal_points],
        retried=rows[~differs & equal_points & again],
        vanished=vanished,
        renamed=renamed,
        touched=(positions[touched], rows[touched]),
    )


def _matched(known: CurrentRows, listed: Images) -> tuple[np.ndarray, np.ndarray]:
    """Return rows of the listing and positions of the dataset by name, -1 where a name is only in the other."""
    positions = index(listed, known)
    found = np.zeros(len(known), bool)
    found[positions[positions >= 0]] = True
    vanished = np.flatnonzero(~found)
    rows = np.concatenate([np.arange(len(listed)), np.full(len(vanished), -1)])
    return rows, np.concatenate([positions, vanished])


def _are_doubtful(files: "_Files", rows: np.ndarray, known: CurrentRows, positions: np.ndarray) -> np.ndarray:
    """Return which files of unchanged size and time may be others that have both, bool `[n]`."""
    shared = np.concatenate([_repeated(files.listed), _repeated(known)])
    found: np.ndarray = np.isin(_stamp_keys(files.listed)[rows], shared) & (files.listed.bytes[rows] >= 0)
    found[found] = files.last_touched(rows[found]) > known.seen_ns[positions[found]]
    return found


def _repeated(images: Images) -> np.ndarray:
    """Return keys of the sizes and times that several images have, int64."""
    keys, counts = np.unique(_stamp_keys(images), return_counts=True)
    return keys[counts > 1]


def _stamp_keys(images: Images) -> np.ndarray:
    """Return a number for the size and time of each image; different ones seldom have the same."""
    keys: np.ndarray = images.mtime_ns * 1_000_003 + images.bytes
    return keys


def _renamed(
    known: CurrentRows,
    listed: Images,
    new: np.ndarray,
    vanished: np.ndarray,
    files: "_Files",
    recorded_digests: ReadDigests,
) -> tuple[np.ndarray, np.ndarray]:
    """Return positions of vanished rows and new rows of the listing with the same content, extension and points."""
    sizes = np.intersect1d(known.bytes[vanished], listed.bytes[new])
    vanished = vanished[np.isin(known.bytes[vanished], sizes)]
    new = new[np.isin(listed.bytes[new], sizes)]
    free: dict[tuple[str, str], list[int]] = defaultdict(list)
    suffixes = map(_suffix, known.text("path", vanished))
    for position, digest, suffix in zip(vanished.tolist(), recorded_digests(vanished), suffixes, strict=True):
        if digest:
            free[digest, suffix].append(position)
    found: list[tuple[int, int]] = []
    suffixes = map(_suffix, listed.text("path", new))
    for row, digest, suffix in zip(new.tolist(), files.digests(new), suffixes, strict=True):
        candidates = free.get((digest, suffix), []) if digest else []
        for position in candidates:
            if listed.same_labels(np.array([row]), known, np.array([position]))[0]:
                candidates.remove(position)
                found.append((position, row))
                break
    pairs = np.array(sorted(found), np.int64).reshape(-1, 2)
    return pairs[:, 0], pairs[:, 1]


class _Files:
    """Files of a listing, whose digests are read when they are asked for."""

    def __init__(self, listed: Images, root: Path, channels: spec.Channels | None) -> None:
        self.listed = listed
        self.root = root
        self.channels = channels

    def digests(self, rows: np.ndarray) -> list[str]:
        """Return the sha256 of files, or of what is read of members of files; "" where one cannot be read."""
        with ThreadPoolExecutor(_THREADS) as pool:
            if not self.listed.has_members:
                return list(pool.map(_digest, self._paths(rows)))
            places: dict[str, list[int]] = defaultdict(list)
            for at, path in enumerate(self._paths(rows)):
                places[path].append(at)
            members = self.listed.text("member", rows)
            asked = ((path, [members[at] for at in of]) for path, of in places.items())
            found = dict(
                zip(places, pool.map(lambda each: _member_digests(each[0], each[1], self.channels), asked), strict=True)
            )
        by_row = {at: digest for path, of in places.items() for at, digest in zip(of, found[path], strict=True)}
        return [by_row[at] for at in range(len(rows))]

    def same_path(self, rows: np.ndarray, known: CurrentRows, positions: np.ndarray) -> np.ndarray:
        """Return which files have the place of the row's, bool `[n]`; one of both may be relative to another root."""
        now, before = (
            images.table.column("path").take(pa.array(at)) for images, at in ((self.listed, rows), (known, positions))
        )
        same = np.asarray(pc.equal(now, before), bool)
        for at in np.flatnonzero(~same).tolist():
            place, path = os.path.join(self.root, now[at].as_py()), before[at].as_py()  # noqa: PTH118
            same[at] = place == path or (not os.path.isabs(path) and place.endswith(f"/{path}"))  # noqa: PTH117
        return same

    def beside_another(
        self, rows: np.ndarray, known: CurrentRows, positions: np.ndarray, asked: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return which of the `asked` files lie below another root than the row's file: beside it, or in its place.

        Both bool `[n]`: the row's file is still there, and another one; or it is gone.
        """
        beside, gone = np.zeros(len(rows), bool), np.zeros(len(rows), bool)
        moved = [code for code, root in enumerate(known.roots) if root != self.root]
        at = np.flatnonzero(asked & np.isin(known.root_of[positions], moved))
        before = known.text("path", positions[at])
        same: dict[tuple[str, str], bool | None] = {}
        for place, now, path, root in zip(
            at.tolist(), self._paths(rows[at]), before, known.root_of[positions[at]].tolist(), strict=True
        ):
            pair = (os.path.join(known.roots[root], folders.to_path(path)), now)  # noqa: PTH118
            if pair not in same:
                same[pair] = _is_same(*map(kinds.place_of, pair)) if self.listed.has_members else _is_same(*pair)
            beside[place], gone[place] = same[pair] is False, same[pair] is None
        return beside, gone

    def are_others(
        self, rows: np.ndarray, known: CurrentRows, positions: np.ndarray, recorded_digests: ReadDigests
    ) -> np.ndarray:
        """Return which files, each in the place of one that is gone, have another content; bool `[n]`.

        Read are all files whose size and time others have, and some of the rest: all of it if one of these differs.
        Of a file with images inside some of them are read, and stand for all.
        """
        _, place = np.unique(self._paths(rows), return_inverse=True)
        shared = np.isin(_stamp_keys(self.listed)[rows], np.concatenate(list(map(_shared, (self.listed, known)))))
        found, seen = np.zeros(len(rows), bool), np.zeros(len(rows), bool)
        alone = np.flatnonzero(~shared)
        few = np.isin(place, np.unique(place[alone[:: max(len(alone) // _READ, 1)]])) & ~shared
        for some in (shared, few, ~shared):
            at = _first_and_last(place, some & ~seen)
            pairs = zip(self.digests(rows[at]), recorded_digests(positions[at]), strict=True)
            other = np.array([bool(now) and bool(before) and now != before for now, before in pairs], bool)
            found |= np.isin(place, place[at[other]])
            seen |= some
            if some is few and not found[few].any():
                break
        return found

    def last_touched(self, rows: np.ndarray) -> np.ndarray:
        """Return when files or folders above them were last renamed, replaced or similar, int64 `[n]` in ns."""
        above: dict[str, int] = {}
        found = np.zeros(len(rows), np.int64)
        for at, path in enumerate(self._paths(rows)):
            if kinds.is_remote(path):
                continue  # a copy of an object has a time of its own
            if self.listed.has_members:
                found[at] = file_stamps.last_renamed(kinds.place_of(path), above)
                continue
            folder = file_stamps.last_renamed(os.path.dirname(path), above)  # noqa: PTH120
            found[at] = max(folder, file_stamps.last_renamed(path, {os.path.dirname(path): folder}))  # noqa: PTH120
        return found

    def _paths(self, rows: np.ndarray) -> list[str]:
        paths = [folders.to_path(path) for path in self.listed.text("path", rows)]
        return [path if kinds.is_remote(path) else os.path.join(self.root, path) for path in paths]  # noqa: PTH118

    def equal(self, rows: np.ndarray, recorded: Iterable[str]) -> np.ndarray:
        """Return which files have the recorded digests, bool `[n]`."""
        found = zip(self.digests(rows), recorded, strict=True)
        return np.array([bool(now) and now == before for now, before in found], bool)


def _is_same(before: str, now: str) -> bool | None:
    """Return whether two paths lead to the same file; None where the first leads nowhere."""
    try:
        return os.path.samefile(before, now)  # noqa: PTH121
    except OSError:
        return None


def _shared(images: Images) -> np.ndarray:
    """Return keys of the sizes and times that several files have, int64; images may be in one file."""
    if not images.has_members:
        return _repeated(images)
    paths = images.table.column("path").combine_chunks().dictionary_encode().indices.to_numpy()
    keys, counts = np.unique(np.unique(np.stack([_stamp_keys(images), paths], 1), axis=0)[:, 0], return_counts=True)
    return keys[counts > 1]


def _first_and_last(place: np.ndarray, asked: np.ndarray) -> np.ndarray:
    """Return the first, the middle and the last of the `asked` rows of each place, ascending."""
    at = np.flatnonzero(asked)
    at = at[np.argsort(place[at], kind="stable")]
    starts = np.flatnonzero(np.r_[True, np.diff(place[at]) != 0][: len(at)])
    stops = np.r_[starts[1:], len(at)]
    chosen: np.ndarray = np.unique(at[np.concatenate([starts, (starts + stops) // 2, stops - 1])]) if len(at) else at
    return chosen


def _digest(path: str) -> str:
    try:
        return digests.IMAGE_FILE.hex_of_file(Path(path))
    except OSError:
        return ""


def _member_digests(path: str, members: Sequence[str], channels: spec.Channels | None) -> list[str]:
    """Return the sha256 of what a run reads of members of a file, "" where one cannot be read."""
    found: list[str] = []
    try:
        container = kinds.open_container(path, channels)
    except (OSError, ImageUnreadable, errors.InputError):
        return [""] * len(members)
    try:
        container.expect(members)
        for at in members:
            try:
                content = container.read(at)
                is_file = content.pixels is None and content.samples is None
                found.append(digests.IMAGE_FILE.hex(content.data if is_file else content.values))
            except (OSError, ImageUnreadable):
                found.append("")
    finally:
        container.close()
    return found


def _suffix(path: str) -> str:
    return os.path.splitext(path)[1].lower()  # noqa: PTH122


def _nothing() -> np.ndarray:
    return np.empty(0, np.int64)
