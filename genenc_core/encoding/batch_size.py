"""Batch size: bounds from the spec, autotuning, and halving when memory runs out."""

import dataclasses
import threading
import time
from collections.abc import Callable, Iterator
from typing import TypeVar

import torch

from genenc_core import errors, spec
from genenc_core.encoding.device import Memory

Made = TypeVar("Made")

OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "_STATUS_ALLOC_FAILED")
MAX_BATCHES = 10
LARGEST = 1024
_FIRST = 4
_SECOND = 8
"""Second size to try, as a multiple of the first."""
_OVERHEAD = 0.012
"""Acceptable share of the per-batch overhead in a batch's time."""
_AS_GOOD = 0.985
"""Share of the best rate at which a smaller batch is preferred."""
_MEMORY_USED = 0.9


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """Batch sizes that an encoder accepts; `max` None means unlimited."""

    min: int
    max: int | None

    @classmethod
    def of(cls, mode: spec.BatchMode) -> "Bounds":
        """Return the bounds of a spec's batch mode."""
        return cls(min=mode.min, max=mode.max or None)

    def clamp(self, size: int) -> int:
        """Return the nearest size within the bounds."""
        size = max(size, self.min)
        return size if self.max is None else min(size, self.max)

    def refuse_outside(self, size: int) -> None:
        """Raise `InputError` if a requested size is out of bounds."""
        if size < 1 or self.clamp(size) != size:
            upper = "unlimited" if self.max is None else self.max
            raise errors.InputError(
                f"batch size {size} is outside the model's bounds {self.min} to {upper}: use one within them, remove "
                "--batch-size, or export the model again with other bounds (--batch-min, --batch-max)"
            )


class BatchSizer:
    """Current batch size; it only shrinks, when memory runs out, and then calls `on_shrink`."""

    def __init__(self, bounds: Bounds, size: int, on_shrink: Callable[[int], None] | None = None) -> None:
        self.bounds = bounds
        self.size = bounds.clamp(size)
        self.on_shrink = on_shrink
        self._shrinking = threading.Lock()

    def out_of_memory(self, failed: int, cause: BaseException) -> None:
        """Reduce the size to half of `failed`.

        Raises:
            EncoderError: no smaller size is allowed.
        """
        smaller = self.bounds.clamp(failed // 2)
        if smaller >= failed:
            raise errors.EncoderError(
                f"out of memory at batch size {failed}, the smallest that the model accepts: "
                f"use a smaller --image-size or another --device ({cause})"
            ) from cause
        with self._shrinking:
            if smaller < self.size:
                self.size = smaller
                if self.on_shrink is not None:
                    self.on_shrink(smaller)


def in_parts(
    count: int,
    sizer: BatchSizer,
    work: Callable[[int, int], Made],
    *,
    retry: Callable[[int, BaseException], bool],
    release: Callable[[], None],
) -> Iterator[tuple[int, int, Made]]:
    """Process a batch of `count` in parts of the current size; yield the start, stop and result of `work` for each.

    If a part runs out of memory, `retry(size, error)` reduces the size, or lets the part run alone, and returns whether
    to continue. `release` frees memory cached for the failed part.
    """
    start = 0
    while start < count:
        stop = min(start + sizer.size, count)
        try:
            made = work(start, stop)
        except (RuntimeError, MemoryError) as error:
            # Raised here, since another frame that holds the error would keep the failed batch in memory.
            if not is_out_of_memory(error) or not retry(stop - start, error):
                raise
        else:
            yield start, stop, made
            start = stop
            continue
        # Only here is the traceback gone that kept the failed batch in memory.
        release()


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an exception means that a smaller batch may fit."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    text = str(error)
    return isinstance(error, RuntimeError) and any(phrase in text for phrase in OUT_OF_MEMORY)


class _Search:
    """Times of the sizes tried so far, and the remaining budget."""

    def __init__(
        self,
        run: Callable[[int], None],
        bounds: Bounds,
        images: int,
        memory: Callable[[], Memory | None],
        release: Callable[[], None],
    ) -> None:
        self.bounds = bounds
        self.images = images
        self.batches = MAX_BATCHES
        self.largest = bounds.clamp(LARGEST)
        self.seconds: dict[int, float] = {}
        self._run = run
        self._memory = memory
        self._release = release
        self._peaks: dict[int, int] = {}
        """Peak bytes by batch size; 0 stands for the model without a batch."""

    def measure(self, size: int, times: int = 2) -> None:
        """Run batches of a size; if one does not fit in memory, it limits all later sizes."""
        for _ in range(times):
            if not (0 < size <= min(self.images, self.largest) and self.batches):
                return
            self.images -= size
            self.batches -= 1
            start = time.perf_counter()
            try:
                self._run(size)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                # A size that ran out of memory, even only the second time, may do so in the run, as may larger ones.
                self.seconds = {tried: best for tried, best in self.seconds.items() if tried < size}
                self.largest = max(self.seconds, default=self.bounds.clamp(1))
                return
            seconds = max(time.perf_counter() - start, 1e-9)
            self.seconds[size] = min(seconds, self.seconds.get(size, seconds))
            self._learn_memory(size)

    def rate(self, size: int) -> float:
        """Return images per second."""
        return size / self.seconds[size]

    def best(self) -> int:
        """Return the fastest size."""
        return max(self.seconds, key=self.rate)

    def good(self, share: float) -> list[int]:
        """Return the measured sizes with at least this share of the best rate."""
        return [size for size in self.seconds if self.rate(size) >= share * self.rate(self.best())]

    def sufficient(self) -> int:
        """Return the power of two from which the per-batch overhead is negligible, by the two largest sizes."""
        smaller, larger = sorted(self.seconds)[-2:]
        each = (self.seconds[larger] - self.seconds[smaller]) / (larger - smaller)
        overhead = self.seconds[larger] - each * larger
        if each <= 0:
            return LARGEST
        wanted = max(overhead * (1 / _OVERHEAD - 1) / each, 1.0)
        return int(min(2 ** round(min(wanted, LARGEST)).bit_length(), LARGEST)) if wanted > 1 else 1

    def allowed(self, size: int) -> int:
        """Return the nearest size within bounds, memory and the remaining images; 0 if there is none."""
        size = min(self.bounds.clamp(size), self.largest)
        while size > self.bounds.min and 2 * size > self.images:
            size = self.bounds.clamp(size // 2)
        return size if 2 * size <= self.images else 0

    def _learn_memory(self, size: int) -> None:
        used = self._memory()
        if used is None or size in self._peaks:
            return
        if not self._peaks:
            # The first batch also makes permanent allocations, and its freed memory would hide the need of a batch.
            self._release()
            idle = self._memory()
            self._peaks = {} if idle is None else {0: idle.peak}
            return
        self._peaks[size] = used.peak
        base = self._peaks[0]
        smaller, larger = sorted(self._peaks)[-2:]
        each = (self._peaks[larger] - self._peaks[smaller]) / (larger - smaller)
        if each > 0:
            usable = base + _MEMORY_USED * (used.limit - base)
            fitting = int(larger + (usable - self._peaks[larger]) / each)
            fitting = fitting // 8 * 8 if fitting >= 16 else max(fitting, 1)
            self.largest = min(self.largest, self.bounds.clamp(max(fitting, *self.seconds)))


def _next_sizes(search: _Search) -> Iterator[int]:
    """Yield sizes worth measuring, most promising first."""
    best, tried = search.best(), sorted(search.seconds)
    below = 1 << (best - 1).bit_length() >> 1
    if len(tried) < 2:
        yield search.allowed(best * _SECOND)
        yield search.allowed(below)
        return
    sufficient = search.sufficient()
    if sufficient > tried[-1]:
        yield search.allowed(sufficient)
    if best != tried[-1] or sufficient > best:
        yield search.allowed(best * 2)
    if best != tried[0] or search.rate(best) * _AS_GOOD > search.rate(tried[1]):
        yield search.allowed(below)


def find_size(
    run: Callable[[int], None],
    bounds: Bounds,
    *,
    image_budget: int,
    memory: Callable[[], Memory | None] = lambda: None,
    release: Callable[[], None] = lambda: None,
) -> int:
    """Find a batch size that is nearly as fast as the fastest.

    `run(n)` encodes n images, or n on each core, and returns when they are done; it may raise RuntimeError or
    MemoryError if out of memory, and other exceptions propagate. `memory` returns the memory use of the last run, if
    known; sizes that should not fit are then not tried. `release` frees cached memory. At most `image_budget` images
    are spent, or one batch of four, so that the search does not cost a short run more than it gains.
    """
    if bounds.max == bounds.min:
        return bounds.min
    first = bounds.clamp(_FIRST)
    search = _Search(run, bounds, max(image_budget, _FIRST + 1), memory, release)
    search.measure(first)
    while search.batches and search.seconds:
        size = next((size for size in _next_sizes(search) if size and size not in search.seconds), None)
        if size is None:
            break
        search.measure(size)
    close = search.good(2 * _AS_GOOD - 1)
    while search.batches and len(close) > 1 and max(close) <= search.images:
        search.measure(close[search.batches % len(close)], times=1)
        close = [size for size in close if size in search.seconds]
    return min(search.good(_AS_GOOD), default=bounds.clamp(1))
