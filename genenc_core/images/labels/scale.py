"""Scale from the coordinates of a points file to pixels."""

import dataclasses
import re
from fractions import Fraction
from typing import Self

import numpy as np

from genenc_core import errors

NORMALIZED, PERCENT = "normalized", "percent"
_FACTOR = re.compile(r"\s*([0-9]{1,9}(?:\.[0-9]{1,9}|/[0-9]{1,9})?)\s*\Z")
_MAX_FACTOR = 10**6


@dataclasses.dataclass(frozen=True, slots=True)
class PointsScale:
    """Scale from coordinates to pixels: times (x, y), and if `relative` also times the image's (width, height).

    Coordinates start at the top-left edge of the image, so no half-pixel offset is added.
    """

    x: Fraction = Fraction(1)
    y: Fraction = Fraction(1)
    relative: bool = False

    @classmethod
    def parse(cls, text: str | None, *, option: str = "--points-scale") -> Self:
        """Parse `2`, `1/2`, `2,1.5` (x and y), `normalized` or `percent`; None means pixels.

        Raises:
            InputError: invalid syntax, or a factor outside 1/1,000,000 to 1,000,000.
        """
        if text is None:
            return cls()
        word = text.strip().lower()
        if word in (NORMALIZED, "normalised"):
            return cls(relative=True)
        if word == PERCENT:
            return cls(Fraction(1, 100), Fraction(1, 100), relative=True)
        factors = [_factor(part) for part in text.split(",")]
        x, y = factors[0], factors[-1]
        if len(factors) > 2 or x is None or y is None:
            raise errors.InputError(
                f"invalid {option} {text!r}: use a factor from 1/1,000,000 to 1,000,000 such as 2 or 1/2, two "
                f"for x and y (2,1.5), {NORMALIZED} (0 to 1 across the image) or {PERCENT} (0 to 100)"
            )
        return cls(x, y)

    @property
    def text(self) -> str | None:
        """The scale in canonical form; None for pixels."""
        if self.relative:
            return NORMALIZED if self.x == 1 else PERCENT
        if self.x == self.y:
            return None if self.x == 1 else str(self.x)
        return f"{self.x},{self.y}"

    def describe(self) -> str:
        """Return a phrase that completes "coordinates ..." in messages."""
        if self.relative:
            return f"in {'percent' if self.x != 1 else 'fractions'} of the image's width and height"
        if self.x == self.y:
            return f"multiplied by {self.x}"
        return f"multiplied by {self.x} (x) and {self.y} (y)"

    def apply(self, xy: np.ndarray) -> np.ndarray:
        """Scale coordinates, float64 `[..., 2]`, to pixels, or to fractions of the image's sides if `relative`."""
        above = np.array([self.x.numerator, self.y.numerator], dtype=np.float64)
        below = np.array([self.x.denominator, self.y.denominator], dtype=np.float64)
        return xy * above / below


PIXELS = PointsScale()
"""Coordinates that are pixels already."""


def _factor(text: str) -> Fraction | None:
    match = _FACTOR.match(text)
    if match is None or re.search("/0+$", match[1]):
        return None
    factor = Fraction(match[1])
    return factor if Fraction(1, _MAX_FACTOR) <= factor <= _MAX_FACTOR else None
