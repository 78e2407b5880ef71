"""Images of a manifest as batches of model-sized pixels, in row order: read, decoded and fitted by decode workers.

The process that asks handles batches: nothing here is done per image but for images that fail.
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
from typing import Any, Self

import numpy as np
import torch

from genenc_core import errors, spec
from genenc_core.images import decode_pool, decode_worker, reading
from genenc_core.images.decode_worker import Answer
from genenc_core.images.limits import Limits
from genenc_core.images.manifest import Manifest
from genenc_core.images.slab import Slab

LOGGER = logging.getLogger(__name__)
LARGEST_PIECE, PIECE_BYTES = 16, 4 * 2**20
"""Rows that a worker is given at a time, and bytes of their pixels."""
AHEAD_BYTES = 512 * 2**20
"""Of pixels that may be in work or waiting to be taken."""
_BLOCK_ROWS = 4096
_ASKED = 8
"""Files of other shards that are asked for when a shard has none."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Unreadable:
    """A row without pixels: why, and whose fault it is."""

    row: int
    reason: str
    cause: reading.Cause


class LoadedBatch:
    """The next readable images of some rows, and all that is known of the rows up to the last of them.

    `rows` int64 `[n]` of the images; `heights`, `widths` int32 `[n]` of the upright sources in pixels; `orientations`
    uint8 `[n]`, EXIF's, already applied; `affines` float64 `[n, 4]`, source to model pixels: scale x and y, offset x
    and y. `parts`: their pixels, uint8 `[k, 3, H, W]` each, together `n`.
    `seen` int64 `[m]`: all rows that were tried, with `sha256` S64 `[m]` of their files, empty where there is none,
    and `stamps`, STAMP `[m]`.
    `unreadable`: those without pixels; `changes`: row -> how its file differs from the one that was planned, of images.
    `seconds`: CPU time of the workers.
    """

    def __init__(self, taken: Sequence["_Taken"], held: Sequence["_Held"]) -> None:
        self._held = held
        self.parts = [each.pixels for each in taken if len(each.rows)]
        self.rows = np.concatenate([each.rows for each in taken])
        records = np.concatenate([each.records for each in taken])
        self.heights, self.widths = records["height"], records["width"]
        self.orientations, self.affines = records["orientation"], records["affine"]
        self.seen = np.concatenate([each.seen for each in taken])
        self.sha256 = np.concatenate([each.sha256 for each in taken])
        self.stamps = np.concatenate([each.stamps for each in taken])
        self.unreadable: list[Unreadable] = []
        self.changes: dict[int, str] = {}
        self.seconds = 0.0
        for each in taken:
            self.unreadable += each.unreadable
            self.changes |= each.changes
            self.seconds += each.seconds

    def __len__(self) -> int:
        return len(self.rows)

    def release(self) -> None:
        """Give the memory of the pixels back: nothing reads them any more. Once."""
        for each in self._held:
            each.release()
        self._held = ()


class ImageLoader:
    """Decode workers that turn manifest rows into batches of pixels; use as a context manager, or close it.

    Workers are started as there is work for them, `workers` at most. An image whose worker ends or takes longer than
    `limits.seconds` is tried once more, alone; if it happens again, its row has that reason.
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
        prepare_memory: Callable[[np.ndarray], None] = lambda _images: None,
    ) -> None:
        """Begin.

        Args:
            manifest: the rows.
            preprocessing: what becomes of an image.
            workers: processes that decode.
            batch: images of a full batch.
            in_flight: batches of one caller that may wait for their release; two callers are served at a time.
            limits: bounds per image.
            prepare_memory: is given the memory of all pixels, uint8 `[slots, 3, H, W]`.

        Raises:
            InputError: a number below 1.
            OSError: no memory or descriptor.
        """
        if min(workers, batch, in_flight) < 1:
            raise errors.InputError(f"the loader needs numbers of one at least: {workers=}, {batch=}, {in_flight=}")
        self._manifest = manifest
        self._batch = batch
        image_bytes = 3 * preprocessing.height * preprocessing.width
        self._piece = max(1, min(LARGEST_PIECE, PIECE_BYTES // image_bytes, -(-batch // workers)))
        wanted = max(2 * batch, 2 * decode_pool.PIECES_GIVEN * workers * self._piece)
        self._ahead = max(-(-min(wanted, AHEAD_BYTES // image_bytes) // batch), 1)
        """Blocks that one caller has in work or waiting, while there are some."""
        blocks = 2 * (in_flight + 1) + self._ahead + 1
        self._slab = Slab(blocks * batch, preprocessing.height, preprocessing.width, workers=workers)
        prepare_memory(self._slab.images)
        self._pool = decode_pool.DecodePool(self._slab, preprocessing, limits or Limits(), workers)
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
        on_asked: Callable[[], None] = lambda: None,
    ) -> Generator[LoadedBatch, None, None]:
        """Yield the rows from `start` up to `stop`, in order, in full batches but for the last; release each.

        A broken image is an entry of its batch, never an exception. Closing the iterator early cancels what has not
        begun.

        Args:
            start: the first row.
            stop: the row behind the last.
            only: rows to load; None: all.
            on_asked: called once all rows are in work, when another caller's may follow.

        Raises:
            StoreError: rows that the manifest does not have.
            TooManyHung: one image after the other hangs.
            OSError: a fault of the process or the volume that says nothing of an image: the images' folder is gone or
                empty, too many open files, no space, a stale or silent network file system, decode workers killed from
                outside.
        """
        self._require_folder()
        blocks = self._blocks(start, stop, only)
        pending: collections.deque[_Block] = collections.deque()
        carried: list[_Taken] = []
        asked = False
        try:
            while True:
                while not asked and len(pending) < self._ahead:
                    block = next(blocks, None)
                    if block is None:
                        asked = True
                        on_asked()
                        break
                    if not self._place(block, wait=not pending):
                        blocks = itertools.chain([block], blocks)  # another caller has the room
                        break
                    pending.append(block)
                    self._pool.submit(block.pieces)
                if not pending:
                    break
                self._pool.wait(pending[0])
                carried.append(pending[0].taken())
                pending.popleft()  # its memory is held by what was taken
                while sum(len(each.rows) for each in carried) >= self._batch:
                    yield self._cut(carried, self._batch)
            if carried:
                yield self._cut(carried, self._batch)
        finally:
            for each in carried:
                each.held.release()
            for block in pending:
                self._pool.give_up(block)

    def close(self) -> None:
        """End the workers; what they have in work is lost."""
        self._pool.close()
        self._slab.close()

    def others_answer(self, start: int, stop: int) -> bool:
        """Whether any of a few files of other rows than `start` to `stop` can be read, or there are none to ask."""
        count = self._manifest.rows - (stop - start)
        asked = range(0, count, max(count // _ASKED, 1))[:_ASKED]
        for row in (at if at < start else at + stop - start for at in asked):
            (path,) = self._manifest.read(row, row + 1).paths
            with contextlib.suppress(OSError), Path(path).open("rb") as file:
                file.read(1)
                return True
        return not asked

    def _require_folder(self) -> None:
        if not self._manifest.root.is_dir():
            what = (
                "the images' folder does not exist. A run reads its images from where they were when it was made, "
                "also when another place is given later: restore or mount that folder, or make a symbolic link in its "
                "place to where they are now (ln -s NEW OLD)"
            )
            raise FileNotFoundError(errno.ENOENT, what, str(self._manifest.root))

    def _blocks(self, start: int, stop: int, only: Collection[int] | None) -> Iterator["_Block"]:
        """Yield the rows as blocks of a batch each, which have no memory yet."""
        rows, planned = np.empty(0, np.int64), np.empty((2, 0), np.int64)
        paths: list[str] = []
        for first in range(start, stop, _BLOCK_ROWS):
            found = self._manifest.read(first, min(first + _BLOCK_ROWS, stop))
            wanted = np.arange(first, first + len(found.paths))
            more = list(found.paths)
            numbers = np.stack([np.asarray(found.bytes, np.int64), np.asarray(found.mtime_ns, np.int64)])
            if only is not None:
                kept = [at for at, row in enumerate(wanted.tolist()) if row in only]
                wanted, more, numbers = wanted[kept], [more[at] for at in kept], numbers[:, kept]
            rows, paths, planned = np.concatenate([rows, wanted]), paths + more, np.hstack([planned, numbers])
            last = first + _BLOCK_ROWS >= stop
            while len(rows) >= self._batch or (last and len(rows)):
                size = self._batch
                yield _Block(rows[:size], paths[:size], planned[:, :size], self._piece)
                rows, paths, planned = rows[size:], paths[size:], planned[:, size:]

    def _place(self, block: "_Block", *, wait: bool) -> bool:
        """Give a block its memory; return False where there is none and it need not `wait`."""
        with self._room:
            if wait:
                self._room.wait_for(lambda: self._free)
            if not self._free:
                return False
            number = self._free.pop()
        block.place(number * self._batch, self._slab, lambda: self._give_back(number))
        return True

    def _give_back(self, number: int) -> None:
        with self._room:
            self._free.append(number)
            self._room.notify_all()

    @staticmethod
    def _cut(carried: list["_Taken"], size: int) -> LoadedBatch:
        """Take a batch of `size` images from what is carried, with all that is known of rows before its last."""
        taken: list[_Taken] = []
        while carried and size:
            first = carried[0]
            if len(first.rows) > size:
                now, carried[0] = first.split(size)
                taken.append(now)
                break
            taken.append(carried.pop(0))
            size -= len(first.rows)
        return LoadedBatch(taken, [each.held for each in taken])


class _Held:
    """Memory of a block, of which some parts are still in use."""

    def __init__(self, give_back: Callable[[], None]) -> None:
        self._give_back = give_back
        self._lock = threading.Lock()
        self._users = 1

    def share(self) -> Self:
        """Count one more user."""
        with self._lock:
            self._users += 1
        return self

    def release(self) -> None:
        """Count one user less; with the last one the memory is given back."""
        with self._lock:
            self._users -= 1
            last = not self._users
        if last:
            self._give_back()


@dataclasses.dataclass(slots=True, kw_only=True)
class _Taken:
    """Images of a block, and what is known of its rows, which comes with the first of its images."""

    rows: np.ndarray
    records: np.ndarray
    pixels: torch.Tensor
    seen: np.ndarray
    sha256: np.ndarray
    stamps: np.ndarray
    unreadable: list[Unreadable]
    changes: dict[int, str]
    seconds: float
    held: _Held

    def split(self, count: int) -> tuple["_Taken", "_Taken"]:
        """Return the first `count` images with all that is known, and the others."""
        first = dataclasses.replace(
            self, rows=self.rows[:count], records=self.records[:count], pixels=self.pixels[:count]
        )
        rest = _Taken(
            rows=self.rows[count:],
            records=self.records[count:],
            pixels=self.pixels[count:],
            seen=self.seen[:0],
            sha256=self.sha256[:0],
            stamps=self.stamps[:0],
            unreadable=[],
            changes={},
            seconds=0.0,
            held=self.held.share(),
        )
        return first, rest


class _Block:
    """Rows of one batch on their way through the workers, in pieces."""

    def __init__(self, rows: np.ndarray, paths: Sequence[str], planned: np.ndarray, piece: int) -> None:
        self.rows = rows
        self.records = np.zeros(len(rows), decode_worker.RECORD)
        self.words: dict[int, dict[str, Any]] = {}
        self.pieces = [
            decode_pool.Work(self, at, paths[at : at + piece], planned[:, at : at + piece])
            for at in range(0, len(rows), piece)
        ]
        self.missing = len(rows)
        self.seconds = 0.0
        self.slot = -1
        self.fault: Exception | None = None
        self.given_up = False
        """Whether nobody waits for it any more."""

    def place(self, slot: int, slab: Slab, give_back: Callable[[], None]) -> None:
        """Set where its pixels go."""
        self.slot = slot
        self.pixels = slab.tensor(slot, slot + len(self.rows))
        self.held = _Held(give_back)

    @property
    def ended(self) -> bool:
        """Whether there is nothing to wait for."""
        return self.fault is not None or not self.missing

    def note(self, at: int, answer: Answer) -> None:
        """Keep what came of its rows from `at` on."""
        self.records[at : at + len(answer.records)] = answer.records
        self.words.update((at + key, value) for key, value in answer.words.items())
        self.missing -= len(answer.records)
        self.seconds += answer.seconds

    def drop(self) -> None:
        """Give its memory back: no worker writes to it."""
        self.held.release()

    def taken(self) -> _Taken:
        """Return what came of it.

        Raises:
            OSError: a fault of the process or the volume.
        """
        rows = self.rows.tolist()
        unreadable: list[Unreadable] = []
        changes: dict[int, str] = {}
        for at, words in sorted(self.words.items()):
            if "fault" in words:
                raise OSError(*words["fault"])
            if "failure" in words:
                unreadable.append(Unreadable(row=rows[at], reason=words["failure"], cause=words["cause"]))
            elif "changed" in words:
                changes[rows[at]] = words["changed"]
        good = self.records["readable"].astype(bool)
        whole = bool(good.all())
        sha256 = np.frombuffer(self.records["sha256"].tobytes().hex().encode(), "S64").copy()
        sha256[self.records["hashed"] == 0] = b""
        return _Taken(
            rows=self.rows if whole else self.rows[good],
            records=self.records if whole else self.records[good],
            pixels=self.pixels if whole else torch.from_numpy(self.pixels.numpy()[good]),
            seen=self.rows,
            sha256=sha256,
            stamps=self.records["stamp"],
            unreadable=unreadable,
            changes=changes,
            seconds=self.seconds,
            held=self.held,
        )
