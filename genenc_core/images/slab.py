"""Memory that this process shares with its decode workers: model-sized pixels, and a counter per worker."""

import mmap
import os
import tempfile

import numpy as np
import torch

_COUNTER_BYTES = 8


class Slab:
    """Uint8 images `[slots, 3, H, W]` and int64 counters `[workers]` in anonymous shared memory.

    It has no name in any file system, so it is gone with the last process that holds it.
    """

    def __init__(self, slots: int, height: int, width: int, *, workers: int) -> None:
        self._set_up(anonymous_file(), slots, height, width, workers, create=True)

    @classmethod
    def attached(cls, descriptor: int, slots: int, height: int, width: int, *, workers: int) -> "Slab":
        """Return the slab that another process made, from its descriptor."""
        slab = cls.__new__(cls)
        slab._set_up(descriptor, slots, height, width, workers, create=False)
        return slab

    def _set_up(self, descriptor: int, slots: int, height: int, width: int, workers: int, *, create: bool) -> None:
        self.descriptor = descriptor
        counted = -(-workers * _COUNTER_BYTES // mmap.PAGESIZE) * mmap.PAGESIZE
        size = counted + slots * 3 * height * width
        if create:
            os.ftruncate(descriptor, size)
        memory = mmap.mmap(descriptor, size)
        self.counters = np.frombuffer(memory, dtype=np.int64, count=workers)
        self.images = np.frombuffer(memory, dtype=np.uint8, offset=counted).reshape(slots, 3, height, width)

    def tensor(self, first: int, stop: int) -> torch.Tensor:
        """Return the images of slots `first` to `stop`, uint8 `[n, 3, H, W]`, in this memory."""
        return torch.from_numpy(self.images[first:stop])

    def close(self) -> None:
        """Close the descriptor; the memory stays while an array or a tensor of it does."""
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1


def anonymous_file() -> int:
    """Return the descriptor of a file in memory; where the system has none, of one without a name.

    Raises:
        OSError: too many open files, or no space in the temporary folder.
    """
    create = getattr(os, "memfd_create", None)
    if create is not None:
        return int(create("genenc", os.MFD_CLOEXEC))
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())
