"""How many images go into one call: bounds from the spec, and halving when memory runs out."""

import dataclasses
import threading
from collections.abc import Callable

import torch

from genenc_core import errors, spec

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
            raise errors.InputError(
                f"batch size {size} is outside the model's bounds {self.min} to {upper}: give one of them, or leave "
                "--batch-size out; a model that is exported again can have others (--batch-min, --batch-max)"
            )


class BatchSizer:
    """The batch size in force; it only ever shrinks, when memory runs out, and then `on_shrink` is told."""

    def __init__(self, bounds: Bounds, size: int, on_shrink: Callable[[int], None] | None = None) -> None:
        self.bounds = bounds
        self.size = bounds.clamp(size)
        self.on_shrink = on_shrink
        self._shrinking = threading.Lock()

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
        with self._shrinking:
            if smaller < self.size:
                self.size = smaller
                if self.on_shrink is not None:
                    self.on_shrink(smaller)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception means that a smaller batch may fit."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    text = str(error)
    return isinstance(error, RuntimeError) and any(words in text for words in OUT_OF_MEMORY)
