"""Bounded reading of small text files such as specs and configurations; never a device, pipe or huge file."""

import os
import stat
from pathlib import Path

from genenc_core import errors

LARGEST_BYTES = 16 * 2**20


def read_text(path: Path, *, most: int = LARGEST_BYTES) -> str:
    """Return a regular file's UTF-8 text of at most `most` bytes.

    Raises:
        InputError: the file is missing, unreadable, not regular, too large or not UTF-8; the message omits its name.
    """
    try:
        # Opening a pipe would block until somebody opens it for writing.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        with os.fdopen(descriptor, "rb") as file:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise errors.InputError("it is not a regular file")
            data = file.read(most + 1)
    except OSError as error:
        raise errors.InputError(error.strerror or str(error)) from error
    except ValueError as error:
        raise errors.InputError(f"its name is not a valid file name: {error}") from error
    if len(data) > most:
        raise errors.InputError(
            f"it is larger than the {most:,} bytes allowed for such a file: check that it is the right one"
        )
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise errors.InputError(f"it is not UTF-8 text: {error}") from error
