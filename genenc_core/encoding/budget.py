"""How many images may fail before their shard does."""

import dataclasses
from fractions import Fraction

from genenc_core import errors


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class FailureBudget:
    """How many images of one shard may fail before the shard does: a count, or a share of its rows.

    Unless told otherwise 5 %, and at least 10 images, so that a few broken files do not fail a small shard.
    """

    limit: int | Fraction = Fraction(5, 100)
    at_least: int = 10

    @classmethod
    def parse(cls, text: str | None) -> "FailureBudget":
        """Read `12`, `5%` or `0.05`, each taken exactly; None is the default.

        Raises:
            InputError: another form, or out of range.
        """
        if text is None:
            return cls()
        try:
            if text.strip().endswith("%"):
                limit: int | Fraction = Fraction(text.strip()[:-1]) / 100
            else:
                limit = Fraction(text) if "." in text else int(text)
        except (ValueError, ZeroDivisionError) as error:
            raise errors.InputError(f"max failures {text!r} is neither a count (12) nor a share (5%, 0.05)") from error
        if limit < 0 or (isinstance(limit, Fraction) and limit > 1):
            raise errors.InputError(f"max failures {text!r} is out of range: a count >= 0, or a share of 0 to 100 %")
        return cls(limit=limit, at_least=0)

    def allows(self, rows: int) -> int:
        """Return how many of `rows` images may fail."""
        return max(self.at_least, self.limit if isinstance(self.limit, int) else int(self.limit * rows))
