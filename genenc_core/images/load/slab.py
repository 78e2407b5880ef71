"""Memory shared with decode workers: model-sized pixels, and a counter per worker."""

import math
import mmap
import os
import tempfile
from typing import Any, NamedTuple

import numpy as np
import torch

from genenc_core import spec

_COUNTER_BYTES = 8


class Form(NamedTuple):
    """Shape and type of one image."""

    shape: tuple[int, int, int]
    kind: np.dtype[Any]

    @classmethod
    def of(cls, preprocessing: spec.Preprocessing) -> "Form":
        """Return the form of fitted images: uint8 `[3, H, W]` RGB, or float32 `[C, H, W]` of other channels."""
        shape = (preprocessing.channel_count, preprocessing.height, preprocessing.width)
        return cls(shape, np.dtype(np.uint8 if preprocessing.channels is None else np.float32))

    @property
    def bytes(self) -> int:
        """Size in memory."""
        return math.prod(self.shape) * self.kind.itemsize


class Slab:
    """Images `[slots, C, H, W]` of uint8 or float32, and int64 counters `[workers]`, in anonymous shared memory.

    It has no name in any file system, so it is freed with the last process that holds it.
    """

    def __init__(self, slots: int, form: "Form", *, workers: int) -> None:
        self._set_up(anonymous_file(), slots, form, workers, create=True)

    @classmethod
    def attached(cls, descriptor: int, slots: int, form: "Form", *, workers: int) -> "Slab":
        """Map the slab of another process from its descriptor."""
        slab = cls.__new__(cls)
        slab._set_up(descriptor, slots, form, workers, create=False)
        return slab

    def _set_up(self, descriptor: int, slots: int, form: "Form", workers: int, *, create: bool) -> None:
        self.descriptor = descriptor
        counter_bytes = -(-workers * _COUNTER_BYTES // mmap.PAGESIZE) * mmap.PAGESIZE
        size = counter_bytes + slots * form.bytes
        if create:
            os.ftruncate(descriptor, size)
        memory = mmap.mmap(descriptor, size)
        self.counters = np.frombuffer(memory, dtype=np.int64, count=workers)
        self.images = np.frombuffer(memory, dtype=form.kind, offset=counter_bytes).reshape(slots, *form.shape)

    def tensor(self, first: int, stop: int) -> torch.Tensor:
        """Return a view of slots `first` to `stop`, `[n, C, H, W]`."""
        return torch.from_numpy(self.images[first:stop])

    def close(self) -> None:
        """Close the descriptor; the memory lives as long as any array or tensor of it."""
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1


def anonymous_file() -> int:
    """Return the descriptor of an in-memory file, or of an unnamed temporary file if the system has no such.

    Raises:
        OSError: too many open files, or no space in the temporary folder.
    """
    create = getattr(os, "memfd_create", None)
    if create is not None:
        return int(create("genenc", os.MFD_CLOEXEC))
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())
