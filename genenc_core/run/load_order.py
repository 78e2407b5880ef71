"""Serialises shard loading within a process, so that committing one shard overlaps encoding the next."""

import contextlib
import threading
import time
from collections.abc import Callable, Iterator

from genenc_core.encoding import cancellation

LANES = 2
"""Shards in progress per process: one is read and written while another is encoded."""
STALLED_SECONDS = 5.0
"""Seconds without progress after which a shard's turn is ignored: an image hangs or the encoder is slow."""


class Turn:
    """A shard's turn to load; may not hold the lock if the previous shard stalled."""

    def __init__(self, held: contextlib.ExitStack, moved: Callable[[], None]) -> None:
        self._held = held
        self.moved = moved
        """Call after images were loaded."""

    def end(self) -> None:
        """Let the next shard load; call when all images of this one are in progress."""
        self._held.close()


class LoadOrder:
    """Lock for loading: shards loaded concurrently would also finish, and be committed, at the same time."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._moved = time.monotonic()

    @contextlib.contextmanager
    def turn(self) -> Iterator[Turn]:
        """Wait for a turn, which ends with the block at the latest.

        Raises:
            Stopped: a stop was requested while waiting.
        """
        held = contextlib.ExitStack()
        if self._acquire():
            held.callback(self._lock.release)
        with held:
            yield Turn(held, self._move)

    def _move(self) -> None:
        self._moved = time.monotonic()

    def _acquire(self) -> bool:
        """Wait for the lock; return False if its holder stalls."""
        while not self._lock.acquire(timeout=0.2):
            cancellation.current().raise_if_cancelled()
            if time.monotonic() - self._moved > STALLED_SECONDS:
                return False
        self._move()
        return True
