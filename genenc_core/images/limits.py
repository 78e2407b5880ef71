"""What one image may cost before it is given up, and whether it may be another one than was planned."""

from dataclasses import dataclass

from genenc_core import errors

LARGEST_MEGAPIXELS = 4000
"""Beyond this, Pillow and libjpeg's own 32-bit sizes come near."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Bounds per image; what goes over them is a row that is recorded as unreadable.

    Raises:
        InputError: a bound out of range.
    """

    seconds: float = 60.0
    """That something waited for the image to be read, decoded and fitted."""
    megapixels: float = 400.0
    """Width x height that a header may announce, in millions; refused before memory is taken."""
    accept_changed: bool = False
    """Whether files are taken as they are now, changed or gone since the run was planned."""

    def __post_init__(self) -> None:
        if not 0 < self.seconds <= 86400:
            raise errors.InputError(f"the image timeout is {self.seconds:g} s: give more than 0, at most 86400 (a day)")
        if not 0 < self.megapixels <= LARGEST_MEGAPIXELS:
            raise errors.InputError(
                f"the largest image is {self.megapixels:g} megapixels: give more than 0, at most {LARGEST_MEGAPIXELS}"
            )

    @property
    def pixels(self) -> int:
        """The largest width x height."""
        return int(self.megapixels * 1_000_000)
