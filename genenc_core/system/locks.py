"""Kernel file locks, which are released when the holding process ends, however it ends."""

import contextlib
import fcntl
import os
from collections.abc import Callable


def acquire(opened: Callable[[], int], named: Callable[[], os.stat_result | None], *, wait: bool = True) -> int:
    """Lock a file that still has its name and return its descriptor; close it to release the lock.

    The holder may rename or delete the file; the next one then locks the file that has the name by then.

    Args:
        opened: opens the file for writing, as network file systems require for locking, or creates it.
        named: returns the stat of the file that has the name now; None or FileNotFoundError if there is none.
        wait: block until the lock is free.

    Raises:
        BlockingIOError: another process holds the lock, and `wait` is false.
        OSError: the file cannot be opened, or its file system does not support locks.
    """
    while True:
        descriptor = opened()
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
            with contextlib.suppress(FileNotFoundError):
                current = named()
                if current is not None and os.path.samestat(os.fstat(descriptor), current):
                    return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)
