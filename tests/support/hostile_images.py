"""A decoder that hangs on, or dies of, images that contain a word; for tests, in this process and in its children."""

import os
import signal
import threading
from collections.abc import Callable, Sequence

import torch

from genenc_core.images import decode, decoded, isolated, plain_jpeg

HANGS, ABORTS, SEGFAULTS = b"<hang>", b"<abort>", b"<segfault>"
_decode = decode.decode_image
_decode_resized = plain_jpeg.decode_resized


def install(replace: Callable[[object, str, object], None] = setattr) -> None:
    """Make it the product's."""
    replace(decode, "decode_image", _hostile)
    replace(plain_jpeg, "decode_resized", _hostile_resized)


def serve() -> None:
    """Be the child process of `isolated`, with the hostile decoder."""
    install()
    isolated.serve()


def _hostile(data: bytearray, **options: int) -> decoded.Decoded:
    _obey(data)
    return _decode(data, **options)


def _hostile_resized(sources: Sequence[plain_jpeg.Source]) -> list[torch.Tensor | None]:
    for source in sources:
        _obey(source.buffer.numpy().tobytes())
    return _decode_resized(sources)


def _obey(data: bytes | bytearray) -> None:
    if HANGS in data:
        threading.Event().wait()
    if ABORTS in data:
        os.abort()
    if SEGFAULTS in data:
        os.kill(os.getpid(), signal.SIGSEGV)
