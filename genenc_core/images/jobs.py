"""What decoding threads work on, and what each of them has: the words of `pool`."""

import threading
from collections.abc import Sequence
from typing import Protocol

from genenc_core.images.reading import Begun, LoadedImage, Request

WAITS, RUNS, ENDED = range(3)
"""States of a job."""


class Work(Protocol):
    """Loads images, small ones in two steps; `reading.Reader` does."""

    def begin(self, request: Request) -> LoadedImage | Begun:
        """Load an image, or begin to."""
        ...

    def finish(self, begun: Sequence[Begun]) -> Sequence[LoadedImage]:
        """Load what was begun."""
        ...


class Job:
    """One image to load, and what became of it: a future that costs little, of which few are waited for."""

    __slots__ = ("ended", "outcome", "request", "state")

    def __init__(self, request: Request) -> None:
        self.request = request
        self.state = WAITS
        self.outcome: LoadedImage | BaseException | None = None
        self.ended: threading.Event | None = None
        """Made when somebody waits."""


class Worker:
    """One thread: what it works on, since when, and what it does next."""

    def __init__(self, slot: int) -> None:
        self.slot = slot
        self.jobs: Sequence[Job] = ()
        """What it works on at this moment: one image, or several that were begun. Another object each time."""
        self.begun: list[tuple[Job, Begun]] = []
        self.next: list[Job] = []
        """Last first."""
        self.given_up = False
        """Whether it hangs; what else it had is another's then, and it must touch nothing more."""
        self.seen: Sequence[Job] = ()
        self.age = 0.0
        self.thread: threading.Thread | None = None
