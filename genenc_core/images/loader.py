"""Images of a manifest as model-sized pixels: read, decode and fit in a pool of threads, in row order."""

import contextlib
import errno
import logging
from collections import deque
from collections.abc import Collection, Generator, Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

from genenc_core import errors, spec
from genenc_core.images import geometry, inflight, isolated, plain_jpeg, pool, reading
from genenc_core.images.jobs import Job
from genenc_core.images.limits import Limits
from genenc_core.images.manifest import Manifest
from genenc_core.images.reading import LoadedImage, Request

__all__ = ["ImageLoader", "LoadedImage"]

LOGGER = logging.getLogger(__name__)
_BLOCK_ROWS = 4096
_ASKED = 8
"""Files of other shards that are asked for when a shard has none."""
_Pending = deque[tuple[Request, Job | None]]


class ImageLoader:
    """A pool of threads that turns manifest rows into pixels; use as a context manager, or close it.

    Each worker thread runs torch operations on one thread; the threads of the rest of the process keep theirs.

    An image that outlasts `limits.seconds` gets a second chance in a process of its own; its thread is given up and
    replaced. So does, at once, an image that a process which died had in work: `journal` is the folder where loaders
    of the same manifest note that, and None keeps no notes.
    """

    def __init__(
        self,
        manifest: Manifest,
        preprocessing: spec.Preprocessing,
        *,
        threads: int = 2,
        window: int = 64,
        limits: Limits | None = None,
        journal: Path | None = None,
    ) -> None:
        if threads < 1 or window < 1:
            raise errors.InputError(f"the loader needs at least one thread and a window of one: {threads=}, {window=}")
        chosen = limits or Limits()
        plain_jpeg.prepare()  # here, and not in the isolated process: each of its images would pay for it
        self._manifest = manifest
        self._window = window
        self._alone = isolated.IsolatedLoader(preprocessing, chosen)
        self._journal = inflight.Journal(journal, pool.slots(threads))
        self._pool = pool.DecodePool(
            reading.Reader(geometry.Fitter(preprocessing), chosen),
            threads=threads,
            seconds=chosen.seconds,
            journal=self._journal,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def iter_rows(
        self, start: int, stop: int, *, only: Collection[int] | None = None
    ) -> Generator[LoadedImage, None, None]:
        """Yield the rows from `start` up to `stop`, in order, with at most `window` images in work or waiting.

        With `only`, the others of them are left out.

        A broken image is a `LoadedImage` with a failure, never an exception. Closing the iterator early cancels what
        has not begun.

        Raises:
            StoreError: rows that the manifest does not have.
            TooManyHung: more images hang than there are threads.
            OSError: a fault of the process or the volume that says nothing of an image: the images' folder is gone or
                empty, too many open files, no space, a stale or silent network file system, a decoder killed from
                outside.
        """
        pending: _Pending = deque()
        if not self._manifest.root.is_dir():
            what = (
                "the images' folder does not exist. A run reads its images from where they were when it was made, "
                "also when another place is given later: restore or mount that folder, or make a symbolic link in its "
                "place to where they are now (ln -s NEW OLD)"
            )
            raise FileNotFoundError(errno.ENOENT, what, str(self._manifest.root))
        suspects = self._suspects(start, stop)
        try:
            for request in self._requests(start, stop, only):
                if len(pending) == self._window:
                    yield from self._next_quarter(pending)
                pending.append((request, None if request.row in suspects else self._pool.submit(request)))
            while pending:
                yield from self._next_quarter(pending)
        finally:
            for _request, job in pending:
                if job is not None:
                    self._pool.cancel(job)

    def settle(self, start: int, stop: int) -> None:
        """Tell that the rows from `start` up to `stop` are stored: none of them is a suspect any more."""
        self._journal.settle(start, stop)

    def close(self) -> None:
        """Cancel what has not begun, wait a little for what has, and end the threads; one that hangs is left behind."""
        self._alone.close()
        self._journal.close(hung=not self._pool.close())

    def _next_quarter(self, pending: _Pending) -> Iterator[LoadedImage]:
        """Take the first quarter of a window: to wake up once for many images is cheaper than for each."""
        some = min(len(pending), max(self._window // 4, 1))
        last = pending[some - 1][1]
        if last is not None:
            self._pool.wait_for_end(last)
        for _ in range(some):
            yield self._loaded(*pending.popleft())

    def _suspects(self, start: int, stop: int) -> set[int]:
        found = {row for row in self._journal.suspects() if start <= row < stop}
        if found:
            LOGGER.warning(
                "rows %s were being decoded when an earlier process ended: they are decoded in a process of their own",
                ", ".join(map(str, sorted(found)[:20])),
            )
        return found

    def _loaded(self, request: Request, job: Job | None) -> LoadedImage:
        if job is None:
            return self._alone.load(request)
        try:
            return self._pool.wait(job)
        except pool.Overdue:
            LOGGER.warning("%s gave no result in time: it is tried again in a separate process", request.path)
            return self._alone.load(request)

    def _requests(self, start: int, stop: int, only: Collection[int] | None) -> Iterator[Request]:
        for first in range(start, stop, _BLOCK_ROWS):
            block = self._manifest.read(first, min(first + _BLOCK_ROWS, stop))
            columns = (block.paths, block.bytes, block.mtime_ns)
            for row, path, planned_bytes, mtime_ns in zip(range(first, stop), *columns, strict=False):
                if only is None or row in only:
                    yield Request(row, path, planned_bytes, mtime_ns)

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
