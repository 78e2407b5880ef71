"""A decoder that hangs or crashes on images with a marker word; for decode workers forked after `install`."""

import os
import signal
import threading
from collections.abc import Callable
from typing import Any

from genenc_core.images.decode import decode, decoded

HANGS, ABORTS, SEGFAULTS, EXITS = b"<hang>", b"<abort>", b"<segfault>", b"<exit>"
_decode = decode.decode_image


def install(replace: Callable[[object, str, object], None] = setattr) -> None:
    """Replace genenc's decoder."""
    replace(decode, "decode_image", _hostile)


def _hostile(data: bytearray, **options: Any) -> decoded.Decoded:
    if HANGS in data:
        threading.Event().wait()
    if ABORTS in data:
        os.abort()
    if SEGFAULTS in data:
        os.kill(os.getpid(), signal.SIGSEGV)
    if EXITS in data:
        os._exit(0)
    return _decode(data, **options)
