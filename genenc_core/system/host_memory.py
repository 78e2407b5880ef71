"""Control of glibc's allocator, so that memory freed by tensors is reused for the next batch.

glibc returns every large block to the system when it is freed and requests fresh, zeroed pages for the next: up to a
fifth of a CPU encoder's time at some batch sizes. Blocks are kept if `mallopt` disables separate mappings and trimming,
but only in the main arena: other arenas cannot hold blocks above 64 MiB.
"""

import ctypes
import functools
import os
from typing import Any

_TRIM_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -4, -8  # from malloc.h
_NEVER = -1
"""Interpreted by glibc as the largest size."""
_SETTINGS = ("trim_threshold", "mmap_max", "mmap_threshold")
_OTHER_ARENA = 4
"""Bit in a block's size header that marks an arena other than the main one."""


def max_arenas() -> int:
    """Return how many threads may start before one shares the main arena; 0 if memory cannot be kept.

    It cannot with a C library other than glibc, or if the environment configures when glibc returns memory
    (MALLOC_TRIM_THRESHOLD_, MALLOC_MMAP_MAX_, MALLOC_MMAP_THRESHOLD_, or the tunables of these names). No further arena
    is created after this call, unless glibc has already fixed its own limit of eight per core.
    """
    library = _glibc()
    if library is None or _set_by_user() or not library.mallopt(_ARENA_MAX, 1):
        return 0
    return 8 * (os.cpu_count() or 1) + 8


def in_main_arena() -> bool:
    """Return whether the calling thread allocates from the main arena.

    A thread gets its arena at its first allocation. Call `max_arenas` before.
    """
    library = _glibc()
    assert library is not None
    block = library.malloc(2048)
    size = ctypes.c_size_t.from_address(block - ctypes.sizeof(ctypes.c_size_t)).value
    library.free(block)
    return not size & _OTHER_ARENA


def keep() -> None:
    """Keep memory freed by threads of the main arena in this process, whatever its size."""
    library = _glibc()
    if library is not None:
        library.mallopt(_TRIM_THRESHOLD, _NEVER)
        library.mallopt(_MMAP_MAX, 0)


def release() -> None:
    """Return kept, unused memory to the system."""
    library = _glibc()
    if library is not None:
        library.malloc_trim(0)


def _set_by_user() -> bool:
    tunables = os.environ.get("GLIBC_TUNABLES", "")
    return any(f"MALLOC_{name.upper()}_" in os.environ or f"glibc.malloc.{name}=" in tunables for name in _SETTINGS)


@functools.cache
def _glibc() -> Any:
    """Return glibc, or None if another library provides this process's malloc."""
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
