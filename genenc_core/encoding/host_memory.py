"""What the host's C library does with memory that tensors free: keeps it for the next batch.

glibc gives every large block back to the system when it is freed and asks for fresh pages for the next, which the
system must clear: up to a fifth of a CPU encoder's time, for some batch sizes and not for others. Blocks are kept where
`mallopt` forbids mappings of their own and trimming, in the main arena alone: others cannot hold blocks above 64 MiB.
"""

import ctypes
import functools
import os
from typing import Any

_TRIM_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -4, -8  # of malloc.h
_NEVER = -1
"""as the size that glibc takes it for: the largest"""
_SETTINGS = ("trim_threshold", "mmap_max", "mmap_threshold")
_OTHER_ARENA = 4
"""the bit in the size before a block that is not the main arena's"""


def most_arenas() -> int:
    """Return how many threads may come before one that shares the main arena; 0 where no memory can be kept.

    It cannot with another C library than glibc, nor where the environment says when glibc gives memory back
    (MALLOC_TRIM_THRESHOLD_, MALLOC_MMAP_MAX_, MALLOC_MMAP_THRESHOLD_, or the tunables of these names). No further arena
    is made from here on, unless glibc has settled for its own limit before: eight a core.
    """
    library = _glibc()
    if library is None or _set_by_user() or not library.mallopt(_ARENA_MAX, 1):
        return 0
    return 8 * (os.cpu_count() or 1) + 8


def in_main_arena() -> bool:
    """Whether memory of the calling thread comes from the main arena.

    A thread is given its arena when it first asks for memory. Asked after `most_arenas`.
    """
    library = _glibc()
    assert library is not None
    block = library.malloc(2048)
    size = ctypes.c_size_t.from_address(block - ctypes.sizeof(ctypes.c_size_t)).value
    library.free(block)
    return not size & _OTHER_ARENA


def keep() -> None:
    """Let this process keep what threads of the main arena free, whatever its size."""
    library = _glibc()
    if library is not None:
        library.mallopt(_TRIM_THRESHOLD, _NEVER)
        library.mallopt(_MMAP_MAX, 0)


def release() -> None:
    """Give the system back what is kept and not in use."""
    library = _glibc()
    if library is not None:
        library.malloc_trim(0)


def _set_by_user() -> bool:
    tunables = os.environ.get("GLIBC_TUNABLES", "")
    return any(f"MALLOC_{name.upper()}_" in os.environ or f"glibc.malloc.{name}=" in tunables for name in _SETTINGS)


@functools.cache
def _glibc() -> Any:
    """Return GNU's C library; None where another serves this process's memory."""
    try:
        library, loaded = ctypes.CDLL("libc.so.6"), ctypes.CDLL(None)
        theirs, ours = (ctypes.cast(each.malloc, ctypes.c_void_p).value for each in (loaded, library))
        if theirs != ours or not hasattr(library, "gnu_get_libc_version"):
            return None
        library.malloc.restype, library.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
        library.free.restype, library.free.argtypes = None, [ctypes.c_void_p]
        library.malloc_trim.argtypes = [ctypes.c_size_t]
        library.mallopt.argtypes = [ctypes.c_int, ctypes.c_int]
    except (OSError, TypeError, AttributeError):
        return None
    return library
