"""Progress rate over a moving window."""

import itertools
import time
from collections import deque
from collections.abc import Callable

WINDOW_SECONDS = 60.0


class Pace:
    """Items per second in the last `window` seconds; `clock` returns seconds."""

    def __init__(self, *, window: float = WINDOW_SECONDS, clock: Callable[[], float] = time.monotonic) -> None:
        self._window = window
        self._clock = clock
        self._samples: deque[tuple[float, int]] = deque()
        """(time, total items), oldest first; the oldest is the last one before the window."""
        self.start()

    def start(self) -> None:
        """Restart the measurement now; earlier items no longer count."""
        self._samples.clear()
        self._samples.append((self._clock(), 0))

    def add(self, items: int) -> None:
        """Record items completed just now."""
        now = self._clock()
        self._samples.append((now, self._samples[-1][1] + items))
        while len(self._samples) > 2 and self._samples[1][0] <= now - self._window:
            self._samples.popleft()

    @property
    def per_second(self) -> float | None:
        """The rate; None before the first item.

        Items come in batches, so the time since the last one counts only once it exceeds every earlier gap.
        """
        samples = tuple(self._samples)  # another thread may add samples
        (began, before), (last, count) = samples[0], samples[-1]
        if count == before:
            return None
        times = [moment for moment, _ in samples]
        longest = max(after - first for first, after in itertools.pairwise(times))
        now = self._clock()
        ended = now if now - last > longest else last
        return (count - before) / (ended - began) if ended > began else None

    def seconds_for(self, items: int) -> float | None:
        """Return the seconds that `items` more items take at this rate; None while the rate is unknown."""
        rate = self.per_second
        return items / rate if rate else None


def duration(seconds: float) -> str:
    """Return seconds as `42 s`, `7 min` or `3 h 20 min`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"
