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
_NEVER = 2**31 - 1
_SETTINGS = ("trim_threshold", "mmap_max", "mmap_threshold")
_OTHER_ARENA = 4
"""the bit in the size before a block that is not the main arena's"""


@functools.cache
def keep() -> bool:
    """Let this process keep what is freed; return whether it does.

    It does not with another C library than glibc, nor where the environment says when glibc gives memory back
    (MALLOC_TRIM_THRESHOLD_, MALLOC_MMAP_MAX_, MALLOC_MMAP_THRESHOLD_, or the tunables of these names).
    """
    library = _glibc()
    if library is None or _set_by_user():
        return False
    told = (_TRIM_THRESHOLD, _NEVER), (_MMAP_MAX, 0), (_ARENA_MAX, 1)
    done = [library.mallopt(name, value) for name, value in told]
    return all(done)


def is_kept_here() -> bool:
    """Whether memory that the calling thread frees is kept whatever its size: its arena is the main one.

    A thread is given its arena when it first asks for memory. Asked after `keep`.
    """
    library = _glibc()
    assert library is not None
    block = library.malloc(2048)
    size = ctypes.c_size_t.from_address(block - ctypes.sizeof(ctypes.c_size_t)).value
    library.free(block)
    return not size & _OTHER_ARENA


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
    except (OSError, TypeError, AttributeError):
        return None
    library.malloc.restype, library.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
    library.free.restype, library.free.argtypes = None, [ctypes.c_void_p]
    library.malloc_trim.argtypes = [ctypes.c_size_t]
    return library
