"""One way in a process of its own: prepares, then does its work once per line on standard input and tells the cost.

Run as a file: `python -P worker.py MODULE:FUNCTION|FILE.py:FUNCTION ARGUMENTS`. It imports nothing of genenc, so that
the interpreter of another tool's environment can run it. The function takes the arguments (a JSON object) and returns a
context manager; what that gives is called once per line, and returns how many units of work it did.
"""

import importlib
import importlib.util
import json
import os
import resource
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import IO

Once = Callable[[], float]


def main() -> None:
    """Serve the lines of standard input until it ends."""
    # What a library prints must not stand between the answers.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    try:
        with found(sys.argv[1])(**json.loads(sys.argv[2])) as once:
            _answer(answers, {"ready": True})
            for _line in sys.stdin:
                _answer(answers, measured(once))
    except Exception as error:
        _answer(answers, {"failed": f"{type(error).__name__}: {error}"})
        raise


def found(program: str) -> Callable[..., AbstractContextManager[Once]]:
    """Return the function that a program names."""
    place, _, name = program.rpartition(":")
    if not place.endswith(".py"):
        return getattr(importlib.import_module(place), name)  # type: ignore[no-any-return]
    spec = importlib.util.spec_from_file_location(Path(place).stem, place)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return getattr(module, name)  # type: ignore[no-any-return]


def measured(once: Once) -> dict[str, float]:
    """Do the work once; return units, CPU seconds of this process and all under it, wall seconds and peak bytes."""
    cpu, start = tree_seconds(), time.perf_counter()
    count = once()
    wall, spent = time.perf_counter() - start, tree_seconds() - cpu
    return {"count": count, "cpu": spent, "wall": wall, "peak": float(peak_bytes())}


def tree_seconds() -> float:
    """Return CPU seconds of this process, of its ended children, and of every process under it that still runs."""
    own, ended = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    ticks = sum(sum(map(int, fields[11:15])) for fields in map(_stat, descendants()) if fields)
    return own.ru_utime + own.ru_stime + ended.ru_utime + ended.ru_stime + ticks / os.sysconf("SC_CLK_TCK")


def peak_bytes() -> int:
    """Return this process's peak memory and that of all that run under it, or of an ended child if that is more."""
    running = sum(_high_water(pid) for pid in [os.getpid(), *descendants()])
    ended = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
    own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return max(running or own, ended)


def descendants() -> Iterator[int]:
    """Yield the processes under this one that still run; none where the system has no /proc."""
    waiting = [os.getpid()]
    while waiting:
        children = _children(waiting.pop())
        waiting += children
        yield from children


def _children(pid: int) -> list[int]:
    try:
        lists = [path.read_text() for path in Path(f"/proc/{pid}/task").glob("*/children")]
    except OSError:
        return []
    return [int(child) for text in lists for child in text.split()]


def _stat(pid: int) -> list[str]:
    """Return the fields of /proc/PID/stat after the name, which may hold anything; none when the process is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
    except OSError:
        return []


def _high_water(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/status").read_text(errors="replace").splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM")), 0)


def _answer(answers: IO[str], value: Mapping[str, object]) -> None:
    answers.write(json.dumps(value) + "\n")
    answers.flush()


if __name__ == "__main__":
    main()
