"""A decoder that hangs on, or dies of, images that contain a word; for decode workers that are forked after it."""

import os
import signal
import threading
from collections.abc import Callable

from genenc_core.images import decode, decoded

HANGS, ABORTS, SEGFAULTS, EXITS = b"<hang>", b"<abort>", b"<segfault>", b"<exit>"
_decode = decode.decode_image


def install(replace: Callable[[object, str, object], None] = setattr) -> None:
    """Make it the product's."""
    replace(decode, "decode_image", _hostile)


def _hostile(data: bytearray, **options: int) -> decoded.Decoded:
    if HANGS in data:
        threading.Event().wait()
    if ABORTS in data:
        os.abort()
    if SEGFAULTS in data:
        os.kill(os.getpid(), signal.SIGSEGV)
    if EXITS in data:
        os._exit(0)
    return _decode(data, **options)
