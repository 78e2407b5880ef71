"""A decoder that hangs on, or dies of, images that contain a word; for tests, in this process and in its children."""

import os
import signal
import threading

from genenc_core.images import decode, isolated

HANGS, ABORTS, SEGFAULTS = b"<hang>", b"<abort>", b"<segfault>"
_decode = decode.decode_image


def hostile(data: bytearray, **options: int) -> decode.Decoded:
    """Decode an image, unless it contains one of the words."""
    if HANGS in data:
        threading.Event().wait()
    if ABORTS in data:
        os.abort()
    if SEGFAULTS in data:
        os.kill(os.getpid(), signal.SIGSEGV)
    return _decode(data, **options)


def serve() -> None:
    """Be the child process of `isolated`, with the hostile decoder."""
    decode.decode_image = hostile  # type: ignore[assignment]
    isolated.serve()
