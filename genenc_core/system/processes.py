"""Python child processes that never import from the working directory, whose files may shadow modules."""

import os
import sys
from pathlib import Path


def command(*arguments: str) -> list[str]:
    """Return the command line of a Python child process without the working directory on its path."""
    return [sys.executable, "-P", *arguments]


def environment(**more: str) -> dict[str, str]:
    """Return the environment of such a child: this process's plus `more`, with the same module search path.

    `PYTHONSAFEPATH` and the absolute `PYTHONPATH` keep the working directory out of the children's own children too.
    """
    own = str(Path(__file__).resolve().parents[1])
    folders = [item for item in sys.path if Path(item).is_absolute() and not _is_here(item)]
    path = os.pathsep.join(dict.fromkeys((*folders, own)))
    return {**os.environ, "PYTHONSAFEPATH": "1", "PYTHONPATH": path, **more}


def _is_here(folder: str) -> bool:
    try:
        return Path(folder).samefile(os.curdir)
    except OSError:  # one of them does not exist
        return False
