"""Runs mutated inputs in sequence under time and memory limits, and reports their outcomes."""

import contextlib
import random
import resource
import signal
import time
import traceback
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import fuzz_targets
from genenc_core.system import host_memory

SECONDS = 10.0
GROWTH_BYTES = 1 << 30


class Hang(BaseException):
    """A case exceeded the time limit; a BaseException, so that no `except Exception` swallows it."""


def _hang(_number: int, _frame: FrameType | None) -> None:
    raise Hang


@contextlib.contextmanager
def limited(more: int = 3 << 30) -> Iterator[None]:
    """Limit this process's address space to `more` bytes above its current size."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + more, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


def _reset_peak() -> int:
    """Reset this process's peak memory and return its current memory in bytes."""
    host_memory.release()  # what an encoder keeps would hide what a case takes
    Path("/proc/self/clear_refs").write_text("5")
    return _peak_bytes()


def _peak_bytes() -> int:
    """Return the peak memory in bytes since `_reset_peak`."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmHWM:"))


def run(target: Any, *, seed: int, start: int, count: int, before: Any = None) -> dict[str, Any]:
    """Run the cases `start` to `start + count` of a seed; each has its own generator, so any can be reproduced.

    Returns outcomes by name, the slowest case, the growth of memory, and for every failure the case and its traceback.
    """
    outcomes: Counter[str] = Counter()
    failures: list[dict[str, Any]] = []
    slowest, begun, held = 0.0, time.monotonic(), _reset_peak()
    previous = signal.signal(signal.SIGALRM, _hang)
    with fuzz_targets.quiet(), limited():
        for index in range(start, start + count):
            if before is not None:
                before(index)
            data = target.case(random.Random(f"{seed}:{index}"))
            clock = time.monotonic()
            resident = _reset_peak()
            try:
                signal.setitimer(signal.ITIMER_REAL, SECONDS)
                outcomes[target.run(data)] += 1
            except (Exception, Hang) as error:
                signal.setitimer(signal.ITIMER_REAL, 0)
                outcomes["failed"] += 1
                told = traceback.format_exception(error)
                failures.append({"index": index, "error": repr(error)[:300], "traceback": "".join(told)[-3000:]})
            finally:
                signal.setitimer(signal.ITIMER_REAL, 0)
            slowest = max(slowest, time.monotonic() - clock)
            grown = _peak_bytes() - resident
            if grown > GROWTH_BYTES:
                outcomes["failed"] += 1
                failures.append({"index": index, "error": f"memory grew by {grown:,} bytes"})
    signal.signal(signal.SIGALRM, previous)
    return {
        "cases": count,
        "outcomes": dict(sorted(outcomes.items())),
        "slowest_seconds": round(slowest, 2),
        "growth_mib": (_reset_peak() - held) >> 20,
        "seconds": round(time.monotonic() - begun, 1),
        "failures": failures,
    }
