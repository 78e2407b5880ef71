"""Images of a manifest as model-sized pixels: read, decode and fit in a pool of threads, in row order."""

import errno
import hashlib
import os
import stat
import threading
import time
from collections import deque
from collections.abc import Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import torch

from genenc_core import errors, spec
from genenc_core.images import decode, geometry
from genenc_core.images.manifest import Manifest

MAX_BYTES = 4 * 2**30
_BLOCK_ROWS = 4096
_NOT_THE_IMAGES_FAULT = frozenset((errno.EMFILE, errno.ENFILE, errno.ESTALE, errno.ETIMEDOUT, errno.ENOTCONN))

# torch.set_num_threads also sets a process-wide default, so only one loader at a time may start its threads.
_STARTING = threading.Lock()


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedImage:
    """One row: its pixels and geometry, or why there are none."""

    row: int
    pixels: torch.Tensor | None
    """uint8 contiguous [3, model height, model width]; None when the image is unreadable."""
    height: int
    """Of the upright source in pixels; -1 when unreadable."""
    width: int
    """Of the upright source in pixels; -1 when unreadable."""
    affine: geometry.Affine | None
    """Source to model pixels; None when unreadable."""
    orientation: int
    """EXIF orientation 1 to 8, already applied; 0 when unreadable."""
    sha256: str
    """Of the file's bytes; empty when they could not be read."""
    failure: str | None
    """Why the image is unreadable, one short line; None when it is not."""
    changed: str | None
    """How the file's size differs from the manifest's; None when it does not. What was read is what `sha256` says."""
    seconds: float
    """CPU time of its thread for reading, decoding and fitting."""


class ImageLoader:
    """A pool of threads that turns manifest rows into pixels; use as a context manager, or close it.

    Each worker thread runs torch operations on one thread; the threads of the rest of the process keep theirs.
    """

    def __init__(
        self, manifest: Manifest, preprocessing: spec.Preprocessing, *, threads: int = 2, window: int = 64
    ) -> None:
        if threads < 1 or window < 1:
            raise errors.InputError(f"the loader needs at least one thread and a window of one: {threads=}, {window=}")
        self._manifest = manifest
        self._preprocessing = preprocessing
        self._window = window
        self._pool = _single_threaded_pool(threads)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def iter_rows(self, start: int, stop: int) -> Generator[LoadedImage, None, None]:
        """Yield the rows from `start` up to `stop`, in order, with at most `window` images in work or waiting.

        A broken image is a `LoadedImage` with a failure, never an exception. Closing the iterator early cancels what
        has not begun.

        Raises:
            StoreError: rows that the manifest does not have.
            OSError: a fault of the process or the volume that says nothing of an image: the images' folder is gone,
                too many open files, a stale or silent network file system.
        """
        pending: deque[Future[LoadedImage]] = deque()
        if not self._manifest.root.is_dir():
            raise FileNotFoundError(
                errno.ENOENT, "the images' folder is not there: put it back or mount it", str(self._manifest.root)
            )
        try:
            for row, path, planned_bytes in self._entries(start, stop):
                if len(pending) == self._window:
                    yield pending.popleft().result()
                pending.append(self._pool.submit(_load, row, path, planned_bytes, self._preprocessing))
            while pending:
                yield pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()

    def close(self) -> None:
        """Cancel what has not begun, wait for what has, and end the threads."""
        self._pool.shutdown(wait=True, cancel_futures=True)

    def _entries(self, start: int, stop: int) -> Iterator[tuple[int, Path, int]]:
        for first in range(start, stop, _BLOCK_ROWS):
            block = self._manifest.read(first, min(first + _BLOCK_ROWS, stop))
            yield from zip(range(first, stop), block.paths, block.bytes, strict=False)


def _single_threaded_pool(threads: int) -> ThreadPoolExecutor:
    """Start a pool whose threads run torch operations alone, and leave every other thread's number as it is."""
    with _STARTING:
        with ThreadPoolExecutor(1) as new_thread:
            default = new_thread.submit(torch.get_num_threads).result()
        started = threading.Barrier(threads + 1)
        pool = ThreadPoolExecutor(threads, thread_name_prefix="genenc-images", initializer=_use_one_thread)
        for _ in range(threads):
            pool.submit(started.wait)
        started.wait()
        with ThreadPoolExecutor(1) as new_thread:
            new_thread.submit(torch.set_num_threads, default).result()
    return pool


def _use_one_thread() -> None:
    torch.get_num_threads()  # makes torch set this thread up now; it would overwrite the 1 later
    torch.set_num_threads(1)


def _load(row: int, path: Path, planned_bytes: int, preprocessing: spec.Preprocessing) -> LoadedImage:
    begin = time.thread_time()
    digest, changed = "", None
    try:
        data = _read(path)
        changed = None if len(data) == planned_bytes else _change(planned_bytes, len(data))
        digest = hashlib.sha256(data).hexdigest()
        image = decode.decode_image(data)
        height, width = image.pixels.shape[1:]
        plan = geometry.plan_fit(height, width, preprocessing)
        pixels = geometry.apply_fit(image.pixels, plan, preprocessing)
    except Exception as error:
        if isinstance(error, OSError) and error.errno in _NOT_THE_IMAGES_FAULT:
            raise
        # one image must never end the others; the reason is kept with its row
        return LoadedImage(
            row=row,
            pixels=None,
            height=-1,
            width=-1,
            affine=None,
            orientation=0,
            sha256=digest,
            failure=_reason(error),
            changed=changed,
            seconds=time.thread_time() - begin,
        )
    return LoadedImage(
        row=row,
        pixels=pixels,
        height=height,
        width=width,
        affine=plan.affine,
        orientation=image.orientation,
        sha256=digest,
        failure=None,
        changed=changed,
        seconds=time.thread_time() - begin,
    )


def _read(path: Path) -> bytearray:
    """Return a regular file's bytes.

    Raises:
        ImageUnreadable: no regular file, or too large.
        OSError: it cannot be opened or read.
    """
    # Without O_NONBLOCK, opening a FIFO would wait for its writer for ever.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise decode.ImageUnreadable("not a regular file")
        if status.st_size > MAX_BYTES:
            raise decode.ImageUnreadable(f"file of {status.st_size} bytes, above the limit of {MAX_BYTES}")
        data = bytearray(status.st_size)
        filled = 0
        while filled < len(data):
            count = os.readv(descriptor, [memoryview(data)[filled:]])
            if not count:
                raise decode.ImageUnreadable(f"ended after {filled} of {len(data)} bytes while it was read")
            filled += count
    finally:
        os.close(descriptor)
    return data


def _change(planned_bytes: int, found_bytes: int) -> str:
    was = "missing" if planned_bytes < 0 else f"{planned_bytes} bytes"
    return f"was {was} when the run was planned, {found_bytes} bytes when it was read"


def _reason(error: Exception) -> str:
    if isinstance(error, decode.ImageUnreadable):
        return str(error)
    if isinstance(error, MemoryError):
        return "not enough memory for this image"
    if isinstance(error, OSError) and error.strerror:
        return f"cannot be read: {error.strerror}"
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:200]
