"""Finds the batch size by measuring: at most ten batches, never twice out of memory, within a few percent of the best.

Sizes grow fourfold while that gains images per second. Then the sizes around the best are measured, and again those
that come close, and the shortest time of each counts: what disturbs a measurement only ever makes it longer. Chosen is
the smallest size that is nearly as fast as the fastest.
"""

import time
from collections.abc import Callable

from genenc_core.encoding import batching
from genenc_core.encoding.device import Memory

MOST_BATCHES = 10
LARGEST = 1024
_GROWTH = 4
_WORTHWHILE = 1.03
"""gain of a fourfold batch below which larger ones are not tried"""
_AS_GOOD = 0.985
"""share of the best rate at which a smaller batch is preferred"""
_CLOSE = 0.94
"""share of the best rate from which on a size is worth a second look"""
_MEMORY_USED = 0.9


class _Search:
    """Times of the sizes tried so far, and what is left to spend."""

    def __init__(
        self, run: Callable[[int], None], bounds: batching.Bounds, budget: int, memory: Callable[[], Memory | None]
    ) -> None:
        self.bounds = bounds
        self.seconds: dict[int, float] = {}
        self.counts: dict[int, int] = {}
        self.peaks: dict[int, int] = {}
        self.largest = bounds.clamp(LARGEST)
        self._run = run
        self._images = budget
        self._batches = MOST_BATCHES
        self._memory = memory
        self._limit: int | None = None

    def affordable(self, size: int) -> bool:
        """Whether a batch of `size` may be run."""
        return self._batches > 0 and size <= self._images and size <= self.largest

    def measure(self, size: int, *, counts: bool = True) -> None:
        """Run one batch; one that does not fit in memory bounds all that follow."""
        self._images -= size
        self._batches -= 1
        self._memory()
        start = time.perf_counter()
        try:
            self._run(size)
        except (RuntimeError, MemoryError) as error:
            if not batching.is_out_of_memory(error):
                raise
            self.largest = max((tried for tried in self.seconds if tried < size), default=self.bounds.clamp(1))
            return
        seconds = max(time.perf_counter() - start, 1e-9)
        used = self._memory()
        if used is not None:
            self.peaks[size], self._limit = used.peak, used.limit
        if counts:
            self.seconds[size] = min(seconds, self.seconds.get(size, seconds))
            self.counts[size] = self.counts.get(size, 0) + 1

    def rate(self, size: int) -> float:
        """Return images per second."""
        return size / self.seconds[size]

    def best(self) -> int:
        """Return the fastest size."""
        return max(self.seconds, key=self.rate)

    def fitting(self, size: int) -> int:
        """Return `size`, or the largest multiple of 8 that should fit by the memory of the two largest sizes tried."""
        size = min(size, self.largest)
        if self._limit is None or len(self.peaks) < 2:
            return size
        smaller, larger = sorted(self.peaks)[-2:]
        each = (self.peaks[larger] - self.peaks[smaller]) / (larger - smaller)
        if each <= 0:
            return size
        most = int(larger + (_MEMORY_USED * self._limit - self.peaks[larger]) / each)
        return size if most >= size else self.bounds.clamp(most // 8 * 8 if most >= 16 else max(most, 1))


def _grow(search: _Search) -> None:
    """Measure sizes from the first on, each four times the one before, while that is worthwhile."""
    size, last = search.bounds.clamp(batching.FIRST_SIZE), 0.0
    while search.affordable(size):
        search.measure(size)
        if size not in search.seconds:
            return
        if search.rate(size) < last * _WORTHWHILE and search.affordable(size):
            # The first batch of a size also pays for what is made for that size.
            search.measure(size)
        if size not in search.seconds or search.rate(size) < last * _WORTHWHILE:
            return
        last = search.rate(size)
        larger = search.fitting(search.bounds.clamp(size * _GROWTH))
        if larger <= size:
            return
        size = larger


def _refine(search: _Search) -> None:
    """Measure the sizes beside the best, and once more those that come close to it."""
    for _ in range(MOST_BATCHES):
        best = search.best()
        beside = [search.bounds.clamp(size) for size in (best // 2, best * 2)]
        wanted = [size for size in beside if size not in search.seconds and size < max(search.seconds)]
        close = [size for size in search.seconds if search.rate(size) >= _CLOSE * search.rate(best)]
        wanted += sorted(close, key=lambda size: (search.counts[size], size))
        size = next((size for size in wanted if size >= 1 and search.affordable(size)), None)
        if size is None:
            return
        search.measure(size)


def find_size(
    run: Callable[[int], None],
    bounds: batching.Bounds,
    *,
    image_budget: int,
    memory: Callable[[], Memory | None] = lambda: None,
) -> int:
    """Return a batch size that is nearly as fast as the fastest.

    `run(n)` encodes n images and returns when they are done. `memory` tells what the last run used where that is
    known; then no size is tried that should not fit. At most `image_budget` images are spent, so that a short run does
    not pay more for the search than it can win.
    """
    if bounds.max == bounds.min:
        return bounds.min
    search = _Search(run, bounds, max(image_budget, batching.FIRST_SIZE + 1), memory)
    # The first batch of all also pays for what is made once.
    search.measure(bounds.clamp(1), counts=False)
    _grow(search)
    if not search.seconds:
        return bounds.clamp(1)
    _refine(search)
    enough = _AS_GOOD * search.rate(search.best())
    return min(size for size in search.seconds if search.rate(size) >= enough)
