"""CPU and memory limits of this process, cgroups included."""

import dataclasses
import math
import os
from collections.abc import Iterator
from pathlib import Path

from genenc_core.system import proc

_GROUPS = Path("/sys/fs/cgroup")
_OWN = Path("/proc/self/cgroup")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class _Kind:
    """Files of one cgroup version."""

    memory: tuple[str, ...]
    """Memory limits; the smallest applies."""
    used: str
    droppable: tuple[str, ...]
    """Entries of memory.stat for reclaimable page cache."""
    cores: tuple[str, ...]
    """Files that together hold the CPU quota per period and the period, in microseconds."""


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
    """Return how many cores this process may use: its CPU affinity, limited by its cgroups."""
    own = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min([own, *_groups_cores()])


def available_bytes() -> int | None:
    """Return how many bytes this process could still allocate: the minimum over the system and its cgroups.

    Reclaimable page cache counts as available. None where /proc does not provide it.
    """
    system = proc.available_bytes()
    return None if system is None else max(min([system, *_left_in_groups()]), 0)


def _left_in_groups(groups: Path = _GROUPS, own: Path = _OWN) -> Iterator[int]:
    """Yield the memory left in each limited cgroup of this process, in bytes."""
    for group, kind in _own_groups("memory", groups, own):
        for limit in kind.memory:
            try:
                maximum, used = int((group / limit).read_text()), int((group / kind.used).read_text())
                stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
                yield maximum - used + sum(int(stat.get(name, 0)) for name in kind.droppable)
            except (OSError, ValueError):  # "max" means no limit
                continue


def _groups_cores(groups: Path = _GROUPS, own: Path = _OWN) -> Iterator[int]:
    """Yield the CPU quota of each limited cgroup of this process in cores, rounded up."""
    for group, kind in _own_groups("cpu", groups, own):
        try:
            quota, period = map(int, " ".join((group / name).read_text() for name in kind.cores).split())
        except (OSError, ValueError):
            continue
        if quota > 0 and period > 0:
            yield math.ceil(quota / period)


def _own_groups(controller: str, groups: Path, own: Path) -> Iterator[tuple[Path, _Kind]]:
    """Yield this process's cgroups (v1 and v2) for a controller, and all their ancestors."""
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
