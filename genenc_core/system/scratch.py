"""Temporary folders of a process; what a killed one leaves is removed by the next that makes one."""

import contextlib
import fcntl
import shutil
import socket
import tempfile
import time
from pathlib import Path

_PREFIX = "genenc-"
_LOCK = ".lock"
_JUST_MADE = 60
"""Seconds in which a folder may not be locked yet."""


class TemporaryFolder(tempfile.TemporaryDirectory[str]):
    """A temporary folder that is locked as long as its process, or one forked from it, lives."""

    def __init__(self, purpose: str) -> None:
        remove_abandoned()
        super().__init__(prefix=f"{_PREFIX}{purpose}-", ignore_cleanup_errors=True)
        self._lock = Path(self.name, _LOCK).open("w")  # noqa: SIM115 (open as long as the folder is used)
        with contextlib.suppress(OSError):  # no locks on this file system: then nothing is removed by others
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._lock.write(socket.gethostname())
            self._lock.flush()


def remove_abandoned() -> None:
    """Remove this user's folders of dead processes of this machine: locks may not be those of others that share it."""
    for folder in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        with contextlib.suppress(OSError):
            if folder.is_symlink() or time.time() - folder.stat().st_mtime < _JUST_MADE:
                continue
            with (folder / _LOCK).open("r+") as lock:
                if lock.read() != socket.gethostname():
                    continue
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)
