"""Program of the suite `start`: a command in a new process per call."""

import contextlib
import shutil
import subprocess
from collections.abc import Callable, Iterator, Sequence


@contextlib.contextmanager
def command(line: Sequence[str], removed: str | None) -> Iterator[Callable[[], float]]:
    """Run a command; the folder `removed` that it creates is deleted before each call."""

    def once() -> float:
        if removed is not None:
            shutil.rmtree(removed, ignore_errors=True)
        done = subprocess.run(line, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"exit code {done.returncode}: {done.stderr.strip()[-500:]}")
        return 1.0

    yield once
