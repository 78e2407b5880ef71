"""Per-image limits: time, pixels, and whether changed files are accepted."""

from dataclasses import dataclass

from genenc_core import errors

MAX_BYTES = 4 * 2**30
"""Of one image's file."""
LARGEST_MEGAPIXELS = 4000
"""Keeps well below the 32-bit size limits of Pillow and libjpeg."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Bounds per image; an image that exceeds them is recorded as unreadable.

    Raises:
        InputError: a bound out of range.
    """

    seconds: float = 60.0
    """Time waited for the image to be read, decoded and fitted."""
    megapixels: float = 400.0
    """Width x height in the header, in millions; checked before memory is allocated."""
    accept_changed: bool = False
    """Whether to accept files as they are now, changed or missing since the run was planned."""

    def __post_init__(self) -> None:
        if not 0 < self.seconds <= 86400:
            raise errors.InputError(
                f"invalid image timeout of {self.seconds:g} s: it must be above 0 and at most 86400 (a day)"
            )
        if not 0 < self.megapixels <= LARGEST_MEGAPIXELS:
            raise errors.InputError(
                f"invalid limit of {self.megapixels:g} megapixels: it must be above 0 and at most {LARGEST_MEGAPIXELS}"
            )

    @property
    def pixels(self) -> int:
        """Largest width x height."""
        return int(self.megapixels * 1_000_000)
