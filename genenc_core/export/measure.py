"""How long a piece of work takes, and the most memory that the process and its children hold meanwhile."""

import contextlib
import threading
import time
from pathlib import Path

PERIOD_SECONDS = 0.02


class Meter:
    """Measures the body of a `with` statement.

    `peak_rss_bytes` is the largest sum of resident memory (VmRSS) of this process and all that it started, sampled
    every 20 ms: what was in memory before counts, a shorter peak may be missed, and pages that processes share count
    for each. It is None where there is no /proc (elsewhere than on Linux).
    """

    def __init__(self) -> None:
        self.seconds = 0.0
        self.peak_rss_bytes: int | None = None
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="genenc-meter", daemon=True)

    def __enter__(self) -> "Meter":
        self._started = time.perf_counter()
        self._sample()
        self._thread.start()
        return self

    def __exit__(self, *_details: object) -> None:
        self.seconds = time.perf_counter() - self._started
        self._done.set()
        self._thread.join()
        self._sample()

    def _watch(self) -> None:
        while not self._done.wait(PERIOD_SECONDS):
            self._sample()

    def _sample(self) -> None:
        found = _resident(Path("/proc/self"))
        if found is not None:
            self.peak_rss_bytes = max(found, self.peak_rss_bytes or 0)


def _resident(process: Path) -> int | None:
    """Return the resident bytes of a process and its descendants; None when it cannot be told."""
    with contextlib.suppress(OSError, ValueError):
        lines = (process / "status").read_text().splitlines()
        own = next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmRSS:")), 0)
        return own + sum(_resident(Path("/proc") / child) or 0 for child in _children(process))
    return None


def _children(process: Path) -> list[str]:
    found: list[str] = []
    with contextlib.suppress(OSError):
        for thread in (process / "task").iterdir():
            # A thread may end while it is looked at.
            with contextlib.suppress(OSError):
                found += (thread / "children").read_text().split()
    return found
