"""Shards of one process are loaded one after the other, so that one is committed while the next is encoded."""

import contextlib
import threading
import time
from collections.abc import Callable, Iterator

from genenc_core.encoding import control

LANES = 2
"""Shards of one process that are in work at a time: one is read and written while another is encoded."""
STALLED_SECONDS = 5.0
"""A shard that takes no image for so long lets the others go on: an image of it hangs, or its encoder is slow."""


class Turn:
    """One shard's turn to load, where it has one."""

    def __init__(self, held: contextlib.ExitStack, moved: Callable[[], None]) -> None:
        self._held = held
        self.moved = moved
        """Called whenever images were loaded."""

    def end(self) -> None:
        """Let the next shard load: all images of this one are in work."""
        self._held.close()


class Turns:
    """Who is loading. Two shards that were loaded side by side would end, and be committed, at the same time."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._moved = time.monotonic()

    @contextlib.contextmanager
    def turn(self) -> Iterator[Turn]:
        """Wait for a turn, which ends with the block if not before.

        Raises:
            Stopped: the end was asked for meanwhile.
        """
        held = contextlib.ExitStack()
        if self._begun():
            held.callback(self._lock.release)
        with held:
            yield Turn(held, self._move)

    def _move(self) -> None:
        self._moved = time.monotonic()

    def _begun(self) -> bool:
        """Wait for the lock; return False when whoever has it stalls."""
        while not self._lock.acquire(timeout=0.2):
            control.current().checkpoint()
            if time.monotonic() - self._moved > STALLED_SECONDS:
                return False
        self._move()
        return True
