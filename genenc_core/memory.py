"""Whether an error comes from too little memory or address space, whatever library raised it."""

import errno

LACKING = "not enough memory or address space: free some, or raise the limit (ulimit -v), then rerun the command"
_WORDS = (
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
    """Whether memory, address space or a thread could not be had."""
    if isinstance(error, MemoryError):
        return True
    if isinstance(error, OSError) and error.errno == errno.ENOMEM:
        return True
    return isinstance(error, Exception) and any(words in str(error) for words in _WORDS)


def lacking_cause(error: BaseException) -> BaseException | None:
    """Return what was first raised for want of memory: the error or one that it was raised from; None for neither."""
    chain: list[BaseException] = []
    cause: BaseException | None = error
    while cause is not None and cause not in chain:
        chain.append(cause)
        cause = cause.__cause__
    return next((cause for cause in reversed(chain) if is_lacking(cause)), None)
