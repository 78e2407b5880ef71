"""How the values of a reproducible run were decided, as its commit records say; does not import torch."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from genenc_core.text import plural

KEY: Final = "reproducible"
"""Of a run's identity, and of a commit record's details."""
_FIELDS: Final = ("images", "again", "by_rule", "undecided", "used")


def line(details: Mapping[str, Any]) -> list[float]:
    """Return what a commit record says, in short; [] if it says nothing."""
    found = details.get(KEY)
    return [] if not found else [found[name] for name in _FIELDS]


def joined(found: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the entries of several records as one."""
    together = {name: sum(each[name] for each in found) for name in _FIELDS[:-1]}
    return {**together, "used": max(each["used"] for each in found)}


def is_line(value: object) -> bool:
    """Return whether a value is of the form that `line` returns."""
    return isinstance(value, Sequence) and (
        not value or (len(value) == len(_FIELDS) and all(type(each) in (int, float) and each >= 0 for each in value))
    )


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Decisions:
    """How the values of a run were decided, summed over its shards."""

    images: int
    again: int
    """Images that were computed in float64."""
    by_rule: int
    """Values, and steps, so near a boundary that a rule decides."""
    undecided: int
    """Those so near the limit of the rule that another computer might decide otherwise."""
    used: float
    """Largest error of float32 that was seen, as a share of its margin; 0 in float64 alone."""

    @property
    def words(self) -> str:
        """The same as text."""
        share = f"{100 * self.again / self.images:.3g} %" if self.images else "none"
        checked = f" (float32 was wrong by at most {100 * self.used:.2g} % of the margin)" if self.used else ""
        sure = (
            "all values are decided"
            if not self.undecided
            else f"{plural(self.undecided, 'value')} may differ on another computer"
        )
        return f"{share} of the images computed in float64{checked}; {self.by_rule} values by rule; {sure}"


def decisions(lines: Iterable[Sequence[float]]) -> Decisions | None:
    """Sum up the lines of a run's shards; None if none says anything."""
    known = [each for each in lines if each]
    if not known:
        return None
    images, again, by_rule, undecided = (int(sum(each[place] for each in known)) for place in range(4))
    return Decisions(
        images=images, again=again, by_rule=by_rule, undecided=undecided, used=max(each[4] for each in known)
    )
