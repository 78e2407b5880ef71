"""On how many threads torch computes, in threads of which some are to have fewer."""

import contextlib
import threading
from collections.abc import Callable, Iterator

import torch

# One at a time: what torch.set_num_threads sets for its thread it also sets for all that are new.
_STARTING = threading.Lock()


@contextlib.contextmanager
def starting() -> Iterator[None]:
    """Leave the number for new threads as it was, whatever those that begin meanwhile set for themselves."""
    with _STARTING:
        default = _in_new_thread(torch.get_num_threads)
        try:
            yield
        finally:
            _in_new_thread(lambda: torch.set_num_threads(default))


def set_here(count: int) -> None:
    """Let the calling thread's operations run on so many; within `starting`."""
    torch.get_num_threads()  # makes torch set this thread up now; it would overwrite the number later
    torch.set_num_threads(count)


def _in_new_thread(work: Callable[[], int | None]) -> int:
    found: list[int] = []
    thread = threading.Thread(target=lambda: found.append(work() or 0))
    thread.start()
    thread.join()
    return found[0]
