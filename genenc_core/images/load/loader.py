"""Loader of manifest rows as batches of model-sized pixels, in row order, read and decoded by decode workers.

The calling process handles whole batches; only failed images are handled one by one.
"""

import collections
import contextlib
import dataclasses
import errno
import itertools
import logging
import threading
from collections.abc import Callable, Collection, Generator, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
import torch

from genenc_core import errors, spec
from genenc_core.images.containers import kinds
from genenc_core.images.decode import load_image
from genenc_core.images.decode.limits import Limits
from genenc_core.images.load import decode_pool, decode_worker
from genenc_core.images.load.decode_worker import Answer, Seconds
from genenc_core.images.load.slab import Form, Slab
from genenc_core.images.sources.manifest import Manifest

LOGGER = logging.getLogger(__name__)
LARGEST_PIECE, PIECE_BYTES = 64, 8 * 2**20
"""Rows assigned to a worker at a time, and bytes of their pixels."""
AHEAD_BYTES = 512 * 2**20
"""Pixels that may be in progress or waiting for the caller."""
_ROWS_READ = 4096
"""Manifest rows read at a time."""
_PROBED_FILES = 8
"""Files of other shards to try if none of a shard can be read."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Unreadable:
    """A row without pixels, with the reason and its cause."""

    row: int
    reason: str
    cause: load_image.Cause


class LoadedBatch:
    """The next readable images, and everything known about the rows up to the last of them.

    `rows` int64 `[n]` of the images; `heights`, `widths` int32 `[n]` of the upright sources in pixels; `orientations`
    uint8 `[n]`, EXIF, already applied; `affines` float64 `[n, 4]`, source to model pixels: scale x and y, offset x
    and y; `on_gpu` bool `[n]`: decoded on a GPU; `have_more` bool `[n]`: their files hold further frames. `parts`:
    their pixels, `[k, C, H, W]` each, `n` in total: uint8 RGB, or float32 of other channels.
    `seen` int64 `[m]`: all rows that were tried, with the `sha256` S64 `[m]` of their files (empty if none) and
    `stamps`, STAMP `[m]`.
    `unreadable`: rows without pixels; `changes`: row -> how the file of an image differs from the planned one.
    `seconds`: worker time spent.
    """

    def __init__(self, results: Sequence["_BlockResult"], memory: Sequence["_SharedMemory"]) -> None:
        self._memory = memory
        self.parts = [each.pixels for each in results if len(each.rows)]
        self.rows = np.concatenate([each.rows for each in results])
        records = np.concatenate([each.records for each in results])
        self.heights, self.widths = records["height"], records["width"]
        self.orientations, self.affines = records["orientation"], records["affine"]
        self.on_gpu = records["on_gpu"].astype(bool)
        self.have_more = records["has_more"].astype(bool)
        self.seen = np.concatenate([each.seen for each in results])
        self.sha256 = np.concatenate([each.sha256 for each in results])
        self.stamps = np.concatenate([each.stamps for each in results])
        self.unreadable: list[Unreadable] = []
        self.changes: dict[int, str] = {}
        for each in results:
            self.unreadable += each.unreadable
            self.changes |= each.changes
        self.seconds = Seconds.total(each.seconds for each in results)

    def __len__(self) -> int:
        return len(self.rows)

    def release(self) -> None:
        """Release the memory of the pixels, which must not be read afterwards."""
        for each in self._memory:
            each.release()
        self._memory = ()


class ImageLoader:
    """Loads manifest rows as batches of pixels with decode workers; use as a context manager, or close it.

    Workers are started while callers wait for images, up to `workers`. An image whose worker crashes or takes longer
    than `limits.seconds` is retried once, on its own; if that fails too, its row records the reason.
    """

    def __init__(
        self,
        manifest: Manifest,
        preprocessing: spec.Preprocessing,
        *,
        workers: int = 2,
        batch: int = 64,
        in_flight: int = 1,
        limits: Limits | None = None,
        device: str | None = None,
        prepare_memory: Callable[[np.ndarray], Callable[[], None]] = lambda _images: lambda: None,
    ) -> None:
        """Allocate the shared memory; workers are started on demand.

        Args:
            manifest: the rows.
            preprocessing: how images are fitted to the model.
            workers: maximum number of decode processes.
            batch: images of a full batch.
            in_flight: batches per caller that may be unreleased; two callers are served at a time.
            limits: bounds per image.
            device: device to decode JPEGs on; required by, and only for, `decode="gpu"`.
            prepare_memory: called with the memory of all pixels, `[slots, C, H, W]`; returns a function that is
                called when they are no longer read.

        Raises:
            InputError: a number below 1, or a missing device.
            OSError: not enough memory or file descriptors.
        """
        if min(workers, batch, in_flight) < 1:
            raise errors.InputError(f"the loader needs values of at least 1: {workers=}, {batch=}, {in_flight=}")
        if preprocessing.decode == "gpu" and device is None:
            raise errors.InputError("the loader needs a device to decode images on a GPU")
        self.workers = workers
        self._manifest = manifest
        self._batch = batch
        form = Form.of(preprocessing)
        image_bytes = form.bytes
        self._piece = max(1, min(LARGEST_PIECE, PIECE_BYTES // image_bytes, -(-batch // workers)))
        wanted = max(2 * batch, 2 * decode_pool.PIECES_PER_WORKER * workers * self._piece)
        self._ahead = max(-(-min(wanted, AHEAD_BYTES // image_bytes) // batch), 1)
        """Blocks that one caller may have in progress or waiting."""
        blocks = 2 * (in_flight + 1) + self._ahead + 1
        self._slab = Slab(blocks * batch, form, workers=workers)
        self._unprepare = prepare_memory(self._slab.images)
        self._pool = decode_pool.DecodePool(
            self._slab, preprocessing, limits or Limits(), workers, device if preprocessing.decode == "gpu" else None
        )
        self._free = list(range(blocks))[::-1]
        self._room = threading.Condition()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def iter_batches(
        self,
        start: int,
        stop: int,
        *,
        only: Collection[int] | None = None,
        on_submitted: Callable[[], None] = lambda: None,
    ) -> Generator[LoadedBatch, None, None]:
        """Yield the rows from `start` up to `stop`, in order, in batches that are full except the last; release each.

        A broken image is an entry of its batch, never an exception. Closing the iterator early cancels work that has
        not begun.

        Args:
            start: the first row.
            stop: the row after the last.
            only: rows to load; None means all.
            on_submitted: called once all rows are submitted, when those of another caller may follow.

        Raises:
            StoreError: the rows are out of range.
            TooManyHung: consecutive images hang.
            OSError: a fault of the process or the volume rather than of an image: the image folder is missing or
                empty, too many open files, no space, a stale or unresponsive network file system, decode workers
                killed externally.
        """
        self._require_folder()
        blocks = self._blocks(start, stop, only)
        pending: collections.deque[_Block] = collections.deque()
        carried: list[_BlockResult] = []
        submitted = False
        try:
            while True:
                while not submitted and len(pending) < self._ahead:
                    block = next(blocks, None)
                    if block is None:
                        submitted = True
                        on_submitted()
                        break
                    if not self._allocate(block, wait=not pending):
                        blocks = itertools.chain([block], blocks)  # another caller has the memory
                        break
                    pending.append(block)
                    self._pool.submit(block.pieces)
                if not pending:
                    break
                self._pool.wait(pending[0])
                carried.append(pending[0].result())
                pending.popleft()  # the result holds its memory
                while sum(len(each.rows) for each in carried) >= self._batch:
                    yield self._cut(carried, self._batch)
            if carried:
                yield self._cut(carried, self._batch)
        finally:
            for each in carried:
                each.memory.release()
            for block in pending:
                self._pool.abandon(block)

    def close(self) -> None:
        """Stop the workers and discard their work in progress."""
        self._pool.close()
        unprepare, self._unprepare = self._unprepare, lambda: None
        unprepare()
        self._slab.close()

    def other_files_readable(self, start: int, stop: int) -> bool:
        """Return whether any of a few files outside rows `start` to `stop` can be read, or there are none."""
        count = self._manifest.rows - (stop - start)
        sample = range(0, count, max(count // _PROBED_FILES, 1))[:_PROBED_FILES]
        for row in (at if at < start else at + stop - start for at in sample):
            listed = self._manifest.read(row, row + 1)
            if _is_readable(listed.paths[0], inside=bool(listed.members[0])):
                return True
        return not sample

    def _require_folder(self) -> None:
        if not self._manifest.root.is_dir():
            what = (
                "the image folder does not exist. A run always reads its images from the folder it was created with: "
                "restore or mount that folder, or replace it by a symbolic link to the new one (ln -s NEW OLD)"
            )
            raise FileNotFoundError(errno.ENOENT, what, str(self._manifest.root))

    def _blocks(self, start: int, stop: int, only: Collection[int] | None) -> Iterator["_Block"]:
        """Yield the rows as blocks of one batch each, without memory yet."""
        rows, planned = np.empty(0, np.int64), np.empty((0, 2), np.int64)
        paths: list[str] = []
        members: list[str] = []
        for first in range(start, stop, _ROWS_READ):
            listed = self._manifest.read(first, min(first + _ROWS_READ, stop))
            wanted = np.arange(first, first + len(listed))
            more, inside = self._manifest.places(listed) if self._manifest.has_members else (listed.paths, [])
            numbers = np.stack([listed.bytes, listed.mtime_ns], axis=1)
            if only is not None:
                kept = [at for at, row in enumerate(wanted.tolist()) if row in only]
                wanted, more, numbers = wanted[kept], [more[at] for at in kept], numbers[kept]
                inside = [inside[at] for at in kept] if inside else []
            members = members + inside
            rows, paths, planned = np.concatenate([rows, wanted]), paths + more, np.concatenate([planned, numbers])
            last = first + _ROWS_READ >= stop
            while len(rows) >= self._batch or (last and len(rows)):
                size = self._batch
                yield _Block(rows[:size], paths[:size], members[:size], planned[:size], self._piece)
                rows, paths, members, planned = rows[size:], paths[size:], members[size:], planned[size:]

    def _allocate(self, block: "_Block", *, wait: bool) -> bool:
        """Assign memory to a block; return False if none is free and not `wait`."""
        with self._room:
            if wait:
                self._room.wait_for(lambda: self._free)
            if not self._free:
                return False
            number = self._free.pop()
        block.place(number * self._batch, self._slab, lambda: self._free_block(number))
        return True

    def _free_block(self, number: int) -> None:
        with self._room:
            self._free.append(number)
            self._room.notify_all()

    @staticmethod
    def _cut(carried: list["_BlockResult"], size: int) -> LoadedBatch:
        """Cut a batch of `size` images from `carried`, with everything known about rows before its last."""
        parts: list[_BlockResult] = []
        while carried and size:
            first = carried[0]
            if len(first.rows) > size:
                now, carried[0] = first.split(size)
                parts.append(now)
                break
            parts.append(carried.pop(0))
            size -= len(first.rows)
        return LoadedBatch(parts, [each.memory for each in parts])


def _is_readable(path: str, *, inside: bool) -> bool:
    """Return whether a file, or a container by the path of what is inside, can be read."""
    if inside and kinds.is_remote(path):
        return True  # a fault of the network is no missing object
    place = Path(kinds.place_of(path) if inside else path)
    with contextlib.suppress(OSError):
        if inside and place.is_dir():
            return any(place.iterdir())
        with place.open("rb") as file:
            file.read(1)
            return True
    return False


class _SharedMemory:
    """Reference-counted memory of a block."""

    def __init__(self, free: Callable[[], None]) -> None:
        self._free = free
        self._lock = threading.Lock()
        self._users = 1

    def share(self) -> Self:
        """Add a user."""
        with self._lock:
            self._users += 1
        return self

    def release(self) -> None:
        """Remove a user; the last one frees the memory."""
        with self._lock:
            self._users -= 1
            last = not self._users
        if last:
            self._free()


@dataclasses.dataclass(slots=True, kw_only=True)
class _BlockResult:
    """Images of a block, with the information about its rows attached to the first part."""

    rows: np.ndarray
    records: np.ndarray
    pixels: torch.Tensor
    seen: np.ndarray
    sha256: np.ndarray
    stamps: np.ndarray
    unreadable: list[Unreadable]
    changes: dict[int, str]
    seconds: Seconds
    memory: _SharedMemory

    def split(self, count: int) -> tuple["_BlockResult", "_BlockResult"]:
        """Return the first `count` images with all row information, and the rest."""
        first = dataclasses.replace(
            self, rows=self.rows[:count], records=self.records[:count], pixels=self.pixels[:count]
        )
        rest = _BlockResult(
            rows=self.rows[count:],
            records=self.records[count:],
            pixels=self.pixels[count:],
            seen=self.seen[:0],
            sha256=self.sha256[:0],
            stamps=self.stamps[:0],
            unreadable=[],
            changes={},
            seconds=Seconds(),
            memory=self.memory.share(),
        )
        return first, rest


class _Block:
    """Rows of one batch that are processed by the workers in pieces."""

    def __init__(
        self, rows: np.ndarray, paths: Sequence[str], members: Sequence[str], planned: np.ndarray, piece: int
    ) -> None:
        self.rows = rows
        self.answers: dict[int, Answer] = {}
        """By the position of their first row."""
        self.pieces = [
            decode_pool.Job(self, at, paths[at : at + piece], members[at : at + piece], planned[at : at + piece])
            for at in range(0, len(rows), piece)
        ]
        self.missing = len(rows)
        self.slot = -1
        self.fault: Exception | None = None
        self.abandoned = False
        """Whether its caller stopped waiting for it."""

    def place(self, slot: int, slab: Slab, free: Callable[[], None]) -> None:
        """Set the slots of its pixels."""
        self.slot = slot
        self.pixels = slab.tensor(slot, slot + len(self.rows))
        self.memory = _SharedMemory(free)

    @property
    def ended(self) -> bool:
        """Whether there is nothing left to wait for."""
        return self.fault is not None or not self.missing

    def note(self, at: int, answer: Answer) -> None:
        """Store the answer for its rows from `at` on."""
        self.answers[at] = answer
        self.missing -= answer.rows

    def drop(self) -> None:
        """Release its memory; no worker writes to it any more."""
        self.memory.release()

    def result(self) -> _BlockResult:
        """Return its images and row information.

        Raises:
            OSError: a fault of the process or the volume.
        """
        unreadable: list[Unreadable] = []
        changes: dict[int, str] = {}
        answers = sorted(self.answers.items())
        for first, answer in answers:
            for at, note in answer.notes.items():
                row = int(self.rows[first + at])
                if "fault" in note:
                    raise OSError(*note["fault"])
                if "failure" in note:
                    unreadable.append(Unreadable(row=row, reason=note["failure"], cause=note["cause"]))
                elif "changed" in note:
                    changes[row] = note["changed"]
        records = np.frombuffer(b"".join(answer.records for _, answer in answers), decode_worker.RECORD)
        good = records["readable"].astype(bool)
        whole = bool(good.all())
        sha256 = np.frombuffer(records["sha256"].tobytes().hex().encode(), "S64").copy()
        sha256[records["hashed"] == 0] = b""
        return _BlockResult(
            rows=self.rows if whole else self.rows[good],
            records=records if whole else records[good],
            pixels=self.pixels if whole else torch.from_numpy(self.pixels.numpy()[good]),
            seen=self.rows,
            sha256=sha256,
            stamps=records["stamp"],
            unreadable=unreadable,
            changes=changes,
            seconds=Seconds.total(answer.seconds for _, answer in answers),
            memory=self.memory,
        )
