"""Memory shared with decode workers: model-sized pixels, and a counter per worker."""

import mmap
import os
import tempfile

import numpy as np
import torch

_COUNTER_BYTES = 8


class Slab:
    """Uint8 images `[slots, 3, H, W]` and int64 counters `[workers]` in anonymous shared memory.

    It has no name in any file system, so it is freed with the last process that holds it.
    """

    def __init__(self, slots: int, height: int, width: int, *, workers: int) -> None:
        self._set_up(anonymous_file(), slots, height, width, workers, create=True)

    @classmethod
    def attached(cls, descriptor: int, slots: int, height: int, width: int, *, workers: int) -> "Slab":
        """Map the slab of another process from its descriptor."""
        slab = cls.__new__(cls)
        slab._set_up(descriptor, slots, height, width, workers, create=False)
        return slab

    def _set_up(self, descriptor: int, slots: int, height: int, width: int, workers: int, *, create: bool) -> None:
        self.descriptor = descriptor
        counter_bytes = -(-workers * _COUNTER_BYTES // mmap.PAGESIZE) * mmap.PAGESIZE
        size = counter_bytes + slots * 3 * height * width
        if create:
            os.ftruncate(descriptor, size)
        memory = mmap.mmap(descriptor, size)
        self.counters = np.frombuffer(memory, dtype=np.int64, count=workers)
        self.images = np.frombuffer(memory, dtype=np.uint8, offset=counter_bytes).reshape(slots, 3, height, width)

    def tensor(self, first: int, stop: int) -> torch.Tensor:
        """Return a view of slots `first` to `stop`, uint8 `[n, 3, H, W]`."""
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
