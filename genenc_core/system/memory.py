"""Detection of out-of-memory errors, whatever library raised them."""

import errno

from genenc_core import text

_REMEDY = "not enough memory or address space: free some, or raise the limit (ulimit -v), then rerun the command"
_PHRASES = (
    "failed to map segment",  # the dynamic loader, as an ImportError or OSError
    "annot allocate memory",
    "an't allocate memory",  # torch on a CPU
    "can't start new thread",
    "Failed to launch worker thread",  # Arrow
    "not enough memory",
    "Insufficient memory",  # OpenCV and libjpeg
    "could not create a primitive",  # oneDNN
    "without setting an exception",  # the interpreter itself
)


def is_lacking(error: BaseException) -> bool:
    """Return whether an error means that memory, address space or a thread could not be allocated."""
    if isinstance(error, MemoryError):
        return True
    if isinstance(error, OSError) and error.errno == errno.ENOMEM:
        return True
    return isinstance(error, Exception) and any(phrase in str(error) for phrase in _PHRASES)


def lacking_cause(error: BaseException) -> BaseException | None:
    """Return the first out-of-memory error in the chain of causes, or None."""
    chain: list[BaseException] = []
    cause: BaseException | None = error
    while cause is not None and cause not in chain:
        chain.append(cause)
        cause = cause.__cause__
    return next((cause for cause in reversed(chain) if is_lacking(cause)), None)


def describe(error: BaseException) -> str:
    """Return a message for an out-of-memory error: the remedy and the original message."""
    message = text.shortened(" ".join(str(error).split()), 300)
    return f"{_REMEDY} ({message})" if message else _REMEDY
