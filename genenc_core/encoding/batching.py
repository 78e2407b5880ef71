"""How many images go into one call: bounds from the spec, a size found by measuring, halving on out-of-memory."""

import dataclasses
import time
from collections.abc import Callable

import torch

from genenc_core import errors, spec

WORTHWHILE_GAIN = 1.05
FIRST_SIZE = 4
LARGEST_FOUND = 1024
OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "_STATUS_ALLOC_FAILED")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """The batch sizes that an encoder takes; `max` None means unlimited."""

    min: int
    max: int | None

    @classmethod
    def of(cls, mode: spec.BatchMode) -> "Bounds":
        """Return the bounds of a spec's batch mode."""
        return cls(min=mode.min, max=mode.max or None)

    def clamp(self, size: int) -> int:
        """Return the nearest size within the bounds."""
        size = max(size, self.min)
        return size if self.max is None else min(size, self.max)

    def refuse_outside(self, size: int) -> None:
        """Raise `InputError` when a requested size is out of bounds."""
        if size < 1 or self.clamp(size) != size:
            upper = "unlimited" if self.max is None else self.max
            raise errors.InputError(f"batch size {size} is outside the model's bounds {self.min} to {upper}")


class BatchSizer:
    """The batch size in force; it only ever shrinks, when memory runs out."""

    def __init__(self, bounds: Bounds, size: int) -> None:
        self.bounds = bounds
        self.size = bounds.clamp(size)

    def out_of_memory(self, failed: int, cause: BaseException) -> None:
        """Halve below `failed` and remember it.

        Raises:
            EncoderError: nothing smaller is allowed.
        """
        smaller = self.bounds.clamp(failed // 2)
        if smaller >= failed:
            raise errors.EncoderError(
                f"out of memory at batch size {failed}, and the model takes no fewer: "
                f"use a smaller --image-size or another --device ({cause})"
            ) from cause
        self.size = min(self.size, smaller)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception means that a smaller batch may fit."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    text = str(error)
    return isinstance(error, RuntimeError) and any(words in text for words in OUT_OF_MEMORY)


def find_size(run: Callable[[int], None], bounds: Bounds, *, image_budget: int) -> int:
    """Return the batch size from which on a larger one gains less than 5 % images per second.

    `run(n)` encodes n images and returns when they are done. Sizes double from 4; at most `image_budget` images
    are spent, so that a short run does not pay more for the search than it can win.
    """
    if bounds.max == bounds.min:
        return bounds.min
    size = bounds.clamp(FIRST_SIZE)
    _try(run, bounds.clamp(1))
    best, best_rate, spent = bounds.clamp(1), 0.0, bounds.clamp(1)
    while spent + size <= max(image_budget, FIRST_SIZE + 1) and size <= LARGEST_FOUND:
        seconds = _try(run, size)
        spent += size
        if seconds is None:
            break
        rate = size / seconds
        if rate < best_rate * WORTHWHILE_GAIN:
            break
        best, best_rate = size, rate
        if bounds.clamp(size * 2) == size:
            break
        size = bounds.clamp(size * 2)
    return best


def _try(run: Callable[[int], None], size: int) -> float | None:
    """Return the seconds of `run(size)`, or None when it does not fit in memory."""
    start = time.perf_counter()
    try:
        run(size)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        return None
    return max(time.perf_counter() - start, 1e-9)
