"""Finds the batch size by measuring: at most ten batches, never twice out of memory, near the fastest.

Every size is run twice and its shorter time counts: the first run also pays for what is made for that size, and what
disturbs a measurement only ever makes it longer. From two sizes follow what a batch costs by itself and what an image
costs, so from which size on the batch's own cost is small; that size and its neighbours are measured. Chosen is the
smallest size that is nearly as fast as the fastest.
"""

import time
from collections.abc import Callable, Iterator

from genenc_core.encoding import batching
from genenc_core.encoding.device import Memory

MOST_BATCHES = 10
LARGEST = 1024
_FIRST = 4
_SECOND = 8
"""the second size, in first sizes"""
_OWN_COST = 0.012
"""share of a batch's time that its own cost, beside its images', may have"""
_AS_GOOD = 0.985
"""share of the best rate at which a smaller batch is preferred"""
_MEMORY_USED = 0.9


class _Search:
    """Times of the sizes tried so far, and what is left to spend."""

    def __init__(
        self,
        run: Callable[[int], None],
        bounds: batching.Bounds,
        images: int,
        memory: Callable[[], Memory | None],
        release: Callable[[], None],
    ) -> None:
        self.bounds = bounds
        self.images = images
        self.batches = MOST_BATCHES
        self.largest = bounds.clamp(LARGEST)
        self.seconds: dict[int, float] = {}
        self._run = run
        self._memory = memory
        self._release = release
        self._peaks: dict[int, int] = {}
        """Bytes by batch size; 0 is the model alone."""

    def measure(self, size: int, times: int = 2) -> None:
        """Run batches of a size; one that does not fit in memory bounds all that follow."""
        for _ in range(times):
            if not (0 < size <= min(self.images, self.largest) and self.batches):
                return
            self.images -= size
            self.batches -= 1
            start = time.perf_counter()
            try:
                self._run(size)
            except (RuntimeError, MemoryError) as error:
                if not batching.is_out_of_memory(error):
                    raise
                # Memory that did not hold it the second time may not hold it, nor larger ones, in the run either.
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
        """Return the sizes tried that give at least this share of the best rate; none when none was measured."""
        return [size for size in self.seconds if self.rate(size) >= share * self.rate(self.best())]

    def sufficient(self) -> int:
        """Return the power of two from which on a batch's own cost hardly counts, by the two largest sizes."""
        smaller, larger = sorted(self.seconds)[-2:]
        each = (self.seconds[larger] - self.seconds[smaller]) / (larger - smaller)
        own = self.seconds[larger] - each * larger
        if each <= 0:
            return LARGEST
        wanted = max(own * (1 / _OWN_COST - 1) / each, 1.0)
        return int(min(2 ** round(min(wanted, LARGEST)).bit_length(), LARGEST)) if wanted > 1 else 1

    def allowed(self, size: int) -> int:
        """Return the nearest size within bounds, memory and the images left; 0 for none."""
        size = min(self.bounds.clamp(size), self.largest)
        while size > self.bounds.min and 2 * size > self.images:
            size = self.bounds.clamp(size // 2)
        return size if 2 * size <= self.images else 0

    def _learn_memory(self, size: int) -> None:
        used = self._memory()
        if used is None or size in self._peaks:
            return
        if not self._peaks:
            # What the first batch took once and for all is no batch's, and what it left free would hide what one takes.
            self._release()
            alone = self._memory()
            self._peaks = {} if alone is None else {0: alone.peak}
            return
        self._peaks[size] = used.peak
        base = self._peaks[0]
        smaller, larger = sorted(self._peaks)[-2:]
        each = (self._peaks[larger] - self._peaks[smaller]) / (larger - smaller)
        if each > 0:
            usable = base + _MEMORY_USED * (used.limit - base)
            most = int(larger + (usable - self._peaks[larger]) / each)
            most = most // 8 * 8 if most >= 16 else max(most, 1)
            self.largest = min(self.largest, self.bounds.clamp(max(most, *self.seconds)))


def _next_sizes(search: _Search) -> Iterator[int]:
    """Yield sizes worth a measurement, most promising first."""
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
    bounds: batching.Bounds,
    *,
    image_budget: int,
    memory: Callable[[], Memory | None] = lambda: None,
    release: Callable[[], None] = lambda: None,
) -> int:
    """Return a batch size that is nearly as fast as the fastest.

    `run(n)` encodes n images, or n on each core, and returns when they are done; for want of memory it may raise
    RuntimeError or MemoryError, and whatever else it raises is passed on. `memory` tells what the last run used where
    that is known; then no size is tried that should not fit. `release` gives back memory that is kept and free. At most
    `image_budget` images are spent, or one batch of four, so that a short run does not pay more for the search than it
    can win.
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
