"""A decoder that hangs or crashes on images with a marker word; for decode workers forked after `install`."""

import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import loading
from genenc_core.images.decode import decode, decoded
from genenc_core.images.load import decode_pool

HANGS, ABORTS, SEGFAULTS, EXITS = b"<hang>", b"<abort>", b"<segfault>", b"<exit>"
_decode = decode.decode_image


def install(patch: pytest.MonkeyPatch, folder: Path) -> Callable[[], None]:
    """Replace genenc's decoder; return what hangs.

    For a pool of decode workers, time goes on only while all that are at work hang, which they tell in `folder`.
    """

    def hang() -> None:
        (folder / str(os.getpid())).touch()
        threading.Event().wait()

    def hostile(data: bytearray, **options: Any) -> decoded.Decoded:
        if HANGS in data:
            hang()
        if ABORTS in data:
            os.abort()
        if SEGFAULTS in data:
            os.kill(os.getpid(), signal.SIGSEGV)
        if EXITS in data:
            os._exit(0)
        return _decode(data, **options)

    folder.mkdir()
    patch.setattr(decode, "decode_image", hostile)
    loading.own_time(patch, lambda pool: _all_hang(pool, folder))
    return hang


def _all_hang(pool: decode_pool.DecodePool, folder: Path) -> bool:
    at_work = [worker.process for worker in pool._workers.values() if worker.assigned]
    return bool(at_work) and all((folder / str(process)).exists() for process in at_work)
