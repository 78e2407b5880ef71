"""Readers of Linux's /proc for processes and the machine; None, "" or empty results on other systems.

Imports nothing from genenc, because the processes of `genenc bench` use it without genenc installed.
"""

import os
import platform
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_PROC = Path("/proc")
SELF = "self"
"""This process, instead of a process number."""


def resident_bytes(process: int | str = SELF) -> int | None:
    """Return the resident memory of a process in bytes."""
    pages = _text(f"{process}/statm").split()[1:2]
    return int(pages[0]) * os.sysconf("SC_PAGE_SIZE") if pages else None


def peak_bytes(process: int | str = SELF) -> int | None:
    """Return the peak resident memory of a process in bytes."""
    return _entry(f"{process}/status", "VmHWM")


def proportional_bytes(process: int | str) -> int | None:
    """Return the proportional set size (PSS) of a process in bytes."""
    return _entry(f"{process}/smaps_rollup", "Pss")


def available_bytes() -> int | None:
    """Return the available memory of the system in bytes, including reclaimable page cache."""
    return _entry("meminfo", "MemAvailable")


def children(process: int | str) -> list[int]:
    """Return the running child processes of a process."""
    try:
        threads = os.listdir(_PROC / str(process) / "task")  # noqa: PTH208
    except OSError:
        return []
    # A thread may end in between.
    return [int(child) for thread in threads for child in _text(f"{process}/task/{thread}/children").split()]


def descendants(process: int | str = SELF) -> Iterator[int]:
    """Yield all running descendants of a process."""
    waiting: list[int | str] = [process]
    while waiting:
        found = children(waiting.pop())
        waiting += found
        yield from found


def cpu_seconds(process: int) -> float:
    """Return the CPU seconds of a running process, including its ended children."""
    return sum(map(int, _stat(process)[11:15])) / os.sysconf("SC_CLK_TCK")


def began(process: int) -> str:
    """Return the start time of a process in clock ticks since boot; "" if it does not exist."""
    return "".join(_stat(process)[19:20])


def boot() -> str:
    """Return an identifier of this boot and PID namespace; "" if unknown."""
    try:
        return f"{_text('sys/kernel/random/boot_id').strip()}/{(_PROC / 'self/ns/pid').stat().st_ino}"
    except OSError:
        return ""


def identity() -> dict[str, Any]:
    """Return what identifies this process among those of all machines and boots, as JSON values."""
    return {"host": os.uname().nodename, "pid": os.getpid(), "machine": boot(), "began": began(os.getpid())}


def has_ended(process: object) -> bool:
    """Return whether a process of which this is the `identity` ran on this machine and has ended."""
    try:
        here, pid = boot(), int(process["pid"])  # type: ignore[index]
        if not here or process["machine"] != here:  # type: ignore[index]
            return False
        now = began(pid)
        return now != process["began"] if now else not _exists(pid)  # type: ignore[index]
    except (ValueError, KeyError, TypeError, OverflowError):
        return False


def _exists(pid: int) -> bool:
    """Return whether there is such a process, also where /proc does not show it."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:  # another user's
        return True
    return True


def busy_seconds() -> float | None:
    """Return the CPU seconds that the whole machine has been busy since boot."""
    fields = _text("stat").partition("\n")[0].split()[1:]
    if not fields:
        return None
    user, nice, system, _idle, _waiting, interrupt, soft = map(int, fields[:7])
    return (user + nice + system + interrupt + soft) / os.sysconf("SC_CLK_TCK")


def cpu_name() -> str:
    """Return the processor's model name."""
    names = (line.partition(":")[2].strip() for line in _text("cpuinfo").splitlines() if line.startswith("model name"))
    return next(names, platform.processor() or "unknown")


def descriptors() -> list[int]:
    """Return the open file descriptors of this process, including the one used to list them."""
    return [int(each) for each in os.listdir(_PROC / "self/fd")]  # noqa: PTH208


def _stat(process: int) -> list[str]:
    """Return the fields of /proc/PID/stat after the name, which may contain anything; empty if the process is gone."""
    return _text(f"{process}/stat").rpartition(")")[2].split()


def _entry(name: str, entry: str) -> int | None:
    """Return the value of a line `ENTRY: 12 kB` in bytes."""
    found = (line.split()[1] for line in _text(name).splitlines() if line.startswith(f"{entry}:"))
    return next((int(kib) * 1024 for kib in found), None)


def _text(name: str) -> str:
    try:
        return (_PROC / name).read_text(errors="replace")
    except OSError:  # the process ended, or there is no such file
        return ""
