"""What a version of torch does wrong, and what keeps it from doing harm."""

import functools
import threading

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

FAKE_DEVICES_ARE_MENDED = (2, 12)


@functools.cache
def before_fake_tensors() -> None:
    """Let any thread use tensors without numbers; call it before the first of them, `torch.export`'s own included.

    Where there is no CUDA device, torch 2.11 puts a stand-in in its place when a thread first enters a FakeTensorMode.
    The stand-in belongs to that thread but is asked by all: the process crashes (a segmentation fault) once the thread
    has ended. Here a thread that never ends is the first; a forked process has its memory, which is enough. Later
    versions have one stand-in for the whole process.
    """
    if tuple(int(part) for part in torch.__version__.split(".")[:2]) >= FAKE_DEVICES_ARE_MENDED:
        return
    entered = threading.Event()
    threading.Thread(target=_enter_and_stay, args=(entered,), name="genenc-fake-device", daemon=True).start()
    entered.wait()


def _enter_and_stay(entered: threading.Event) -> None:
    try:
        with FakeTensorMode():
            pass
    finally:
        entered.set()
    threading.Event().wait()
