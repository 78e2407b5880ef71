"""Process of one measured way: prepares, then does its work once per line of standard input and reports the cost.

Run as a file: `python -P worker.py MODULE:FUNCTION|FILE.py:FUNCTION ARGUMENTS`. Of genenc it imports only `proc`, so
that the interpreter of another tool's environment can run it. The function takes the arguments (a JSON object) and
returns a context manager; what that gives is called once per line, and returns how many units of work it did.
"""

import importlib
import importlib.util
import json
import os
import resource
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import IO

if __name__ == "__main__":  # another tool's environment has no genenc
    sys.path.append(str(Path(__file__).parents[2]))
from genenc_core.system import proc

Once = Callable[[], float]


def main() -> None:
    """Serve lines of standard input until it ends."""
    # Keep output of libraries out of the answers.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    try:
        with load_way(sys.argv[1])(**json.loads(sys.argv[2])) as once:
            _answer(answers, {"ready": True})
            for _line in sys.stdin:
                _answer(answers, measured(once))
    except Exception as error:
        _answer(answers, {"failed": f"{type(error).__name__}: {error}"})
        raise


def load_way(program: str) -> Callable[..., AbstractContextManager[Once]]:
    """Import the function named by a program."""
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
    """Do the work once; return its units, wall seconds, peak bytes and CPU seconds.

    `cpu` covers this process and its descendants, `driver` only this process.
    """
    cpu, driver, start = tree_seconds(), time.process_time(), time.perf_counter()
    count = once()
    wall, own, spent = time.perf_counter() - start, time.process_time() - driver, tree_seconds() - cpu
    return {"count": count, "cpu": spent, "driver": own, "wall": wall, "peak": float(peak_bytes())}


def tree_seconds() -> float:
    """Return CPU seconds of this process, its ended children and all running descendants."""
    own, ended = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    running = sum(map(proc.cpu_seconds, proc.descendants()))
    return own.ru_utime + own.ru_stime + ended.ru_utime + ended.ru_stime + running


def peak_bytes() -> int:
    """Return the summed peak memory of this process and its running descendants, or an ended child's if larger."""
    running = (proc.peak_bytes() or 0) + sum(proc.peak_bytes(each) or 0 for each in proc.descendants())
    ended = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
    own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return max(running or own, ended)


def _answer(answers: IO[str], value: Mapping[str, object]) -> None:
    answers.write(json.dumps(value) + "\n")
    answers.flush()


if __name__ == "__main__":
    main()
