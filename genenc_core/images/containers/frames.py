"""Selection of frames: all, a slice, some by number, or so many per second."""

import itertools
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from genenc_core import errors

FORMS = "all, START:STOP:STEP (0:1000:10), numbers (0,5,17) or a rate (5/s)"
_SLICE = re.compile(r"(\d{0,18}):(\d{0,18})(?::(\d{1,18}))?\Z")
_NUMBERS = re.compile(r"\d{1,18}(?:,\d{1,18})*\Z")
_ROUNDED = 1.1e-3
"""Seconds: some formats round times to 0.5 ms, which must not move a frame to the step before its own."""
_RATE = re.compile(r"(\d{1,6}(?:\.\d{1,9})?)/s\Z")


@dataclass(frozen=True, slots=True)
class Frames:
    """Which frames of a video or a stack are images."""

    chosen: slice | tuple[int, ...] = field(default_factory=lambda: slice(None))
    """Ascending numbers, from 0."""
    per_second: float | None = None
    """Instead: the first frame of every 1 / `per_second` seconds."""

    @classmethod
    def parse(cls, text: str | None) -> "Frames":
        """Parse a selection; None means all frames.

        Raises:
            InputError: another form, numbers that do not ascend, or nothing selected.
        """
        if text is None or text == "all":
            return cls()
        if found := _RATE.match(text):
            if float(found[1]) > 0:
                return cls(per_second=float(found[1]))
        elif found := _SLICE.match(text):
            start, stop, step = (int(part) if part else None for part in found.groups())
            if step != 0 and (stop is None or stop > (start or 0)):
                return cls(slice(start, stop, step))
        elif _NUMBERS.match(text):
            numbers = tuple(map(int, text.split(",")))
            if list(numbers) == sorted(set(numbers)):
                return cls(numbers)
            raise errors.InputError(f"the frames {text!r} do not ascend: give each number once, in order")
        raise errors.InputError(f"invalid frames {text!r}: give {FORMS}")

    def of(self, count: int, times: Sequence[float] | None = None) -> Iterator[int]:
        """Yield the selected ones of `count` frames.

        Args:
            count: number of frames.
            times: their times in seconds, ascending; None for stacks.

        Raises:
            InputError: a rate without times, or a number above the last frame's.
        """
        if self.per_second is not None:
            if times is None:
                raise errors.InputError(f"frames per second ({self.per_second:g}/s) need a video: give {FORMS}")
            yield from self._by_time(times)
        elif isinstance(self.chosen, slice):
            yield from range(count)[self.chosen]
        else:
            if self.chosen[-1] >= count:
                raise errors.InputError(f"there is no frame {self.chosen[-1]}: the last one is {count - 1}")
            yield from self.chosen

    def _by_time(self, times: Sequence[float]) -> Iterator[int]:
        assert self.per_second is not None
        step, nearest = -1, min((after - time for time, after in itertools.pairwise(times)), default=_ROUNDED)
        rounded = min(_ROUNDED, nearest / 2)
        for index, time in enumerate(times):
            now = int((time - times[0] + rounded) * self.per_second)
            if now > step:
                step = now
                yield index
