"""Shards of one process are loaded one after the other, so that one is committed while the next is encoded."""

import contextlib
import threading
import time
from collections.abc import Callable, Iterable, Iterator

from genenc_core.encoding import control
from genenc_core.images.loader import LoadedImage

LANES = 2
"""Shards of one process that are in work at a time: one is read and written while another is encoded."""
STALLED_SECONDS = 5.0
"""A shard that takes no image for so long lets the others go on: an image of it hangs, or its encoder is slow."""

Passing = Callable[[Iterable[LoadedImage]], Iterator[LoadedImage]]


class Turns:
    """Who is loading. Two shards that were loaded side by side would end, and be committed, at the same time."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._moved = time.monotonic()

    @contextlib.contextmanager
    def turn(self, count: int, window: int) -> Iterator[Passing]:
        """Wait for a turn; `count` images go through the function given, and with the last `window` of them it ends.

        Raises:
            Stopped: the end was asked for meanwhile.
        """
        held = contextlib.ExitStack()
        if self._begun():
            held.callback(self._lock.release)

        def passing(items: Iterable[LoadedImage]) -> Iterator[LoadedImage]:
            for left, item in zip(range(count - 1, -1, -1), items, strict=False):
                self._moved = time.monotonic()
                if left <= window:
                    held.close()
                yield item

        with held:
            yield passing

    def _begun(self) -> bool:
        """Wait for the lock; return False when whoever has it stalls."""
        while not self._lock.acquire(timeout=0.2):
            control.current().checkpoint()
            if time.monotonic() - self._moved > STALLED_SECONDS:
                return False
        self._moved = time.monotonic()
        return True
