"""What of its host this process may use: its cores, and memory within the limits of its control groups."""

import dataclasses
import math
import os
from collections.abc import Iterator
from pathlib import Path

_GROUPS = Path("/sys/fs/cgroup")
_OWN = Path("/proc/self/cgroup")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class _Kind:
    """The files of a kind of control groups."""

    memory: tuple[str, ...]
    """Limits on memory, of which the least counts."""
    used: str
    droppable: tuple[str, ...]
    """Entries of memory.stat: files held in memory."""
    cores: tuple[str, ...]
    """One after the other: microseconds of CPU time in a period, and the period."""


_V2 = _Kind(
    memory=("memory.max", "memory.high"),
    used="memory.current",
    droppable=("active_file", "inactive_file"),
    cores=("cpu.max",),
)
_V1 = _Kind(
    memory=("memory.limit_in_bytes",),
    used="memory.usage_in_bytes",
    droppable=("total_active_file", "total_inactive_file"),
    cores=("cpu.cfs_quota_us", "cpu.cfs_period_us"),
)


def cores() -> int:
    """Return how many cores this process may keep busy: those it may run on, or what its control groups allow."""
    own = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min([own, *_groups_cores()])


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


def _left_in_groups(groups: Path = _GROUPS, own: Path = _OWN) -> Iterator[int]:
    """Yield what each control group of this process has left of its memory; most have no limit."""
    for group, kind in _own_groups("memory", groups, own):
        for limit in kind.memory:
            try:
                most, used = int((group / limit).read_text()), int((group / kind.used).read_text())
                stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
                yield most - used + sum(int(stat.get(name, 0)) for name in kind.droppable)
            except (OSError, ValueError):  # "max" is no number
                continue


def _groups_cores(groups: Path = _GROUPS, own: Path = _OWN) -> Iterator[int]:
    """Yield how many cores each control group of this process may keep busy, rounded up; most have no limit."""
    for group, kind in _own_groups("cpu", groups, own):
        try:
            quota, period = map(int, " ".join((group / name).read_text() for name in kind.cores).split())
        except (OSError, ValueError):
            continue
        if quota > 0 and period > 0:
            yield math.ceil(quota / period)


def _own_groups(controller: str, groups: Path, own: Path) -> Iterator[tuple[Path, _Kind]]:
    """Yield this process's control groups of a controller, of the old kind and of the new, and all above them."""
    try:
        lines = own.read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _number, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        top, kind = (groups / controller, _V1) if controllers else (groups, _V2)
        folder = top / path.lstrip("/")
        for group in [folder, *folder.parents]:
            yield group, kind
            if group == top:
                break
