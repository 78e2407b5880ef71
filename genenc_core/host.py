"""What of its host this process may use: its cores, and memory within the limits of its control groups."""

import os
from collections.abc import Iterator
from pathlib import Path

_GROUPS = Path("/sys/fs/cgroup")
_V2 = ("memory.max", "memory.current", "inactive_file")
_V1 = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")


def cores() -> int:
    """Return how many cores this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def resident_bytes() -> int | None:
    """Return how much memory this process holds; None where /proc does not tell."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except (OSError, ValueError, IndexError):
        return None
    return pages * os.sysconf("SC_PAGE_SIZE")


def available_bytes() -> int | None:
    """Return how much more memory this process could take: the least that the system and its control groups have left.

    Files that the system holds in memory and could drop count as left. None where /proc does not tell.
    """
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        system = next(int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, ValueError, IndexError, StopIteration):
        return None
    return max(min([system, *_left_in_groups()]), 0)


def _left_in_groups(groups: Path = _GROUPS, own: Path = Path("/proc/self/cgroup")) -> Iterator[int]:
    """Yield what each control group of this process has left, of the old kind and of the new; most have no limit."""
    try:
        lines = own.read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _number, controllers, path = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        top, files = (groups / "memory", _V1) if controllers else (groups, _V2)
        folder = top / path.lstrip("/")
        for group in [folder, *folder.parents]:
            left = _left_in(group, *files)
            if left is not None:
                yield left
            if group == top:
                break


def _left_in(group: Path, limit: str, usage: str, droppable: str) -> int | None:
    """Return what a control group has left; None where it has no limit, or none that can be read."""
    try:
        most, used = int((group / limit).read_text()), int((group / usage).read_text())
        stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        return most - used + int(stat.get(droppable, 0))
    except (OSError, ValueError):  # "max" is no number
        return None
