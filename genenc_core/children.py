"""Python child processes, which never import from the working directory: a file there may be named like any module."""

import os
import sys
from pathlib import Path


def command(*arguments: str) -> list[str]:
    """Return the command line of a child of this Python, without the working directory on its path."""
    return [sys.executable, "-P", *arguments]


def environment(**more: str) -> dict[str, str]:
    """Return the environment of such a child: this process's and `more`, with modules looked up where it looks them up.

    `PYTHONSAFEPATH` and the absolute `PYTHONPATH` keep the working directory out of the children's own children, too.
    """
    own = str(Path(__file__).resolve().parents[1])
    folders = [item for item in sys.path if Path(item).is_absolute() and not _is_here(item)]
    path = os.pathsep.join(dict.fromkeys((*folders, own)))
    return {**os.environ, "PYTHONSAFEPATH": "1", "PYTHONPATH": path, **more}


def _is_here(folder: str) -> bool:
    try:
        return Path(folder).samefile(os.curdir)
    except OSError:  # one of them is not there
        return False
