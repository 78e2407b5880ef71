"""The part of an engine that makes stored bytes the same anywhere: near boundaries in float64, elsewhere in float32."""

import dataclasses
import math
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Final

import torch

from genenc_core import errors
from genenc_core.encoding import rounding
from genenc_core.encoding.products import Product

if TYPE_CHECKING:
    from genenc_core.encoding.engine import Encoder

CHECKED_EACH: Final = 32
"""At least one of so many images is computed in float64, too, to check the margin."""
SAFETY: Final = 8.0
"""Margin, relative to the largest error that was measured before the run."""
MOST_USED: Final = 0.5
"""Share of the margin that an error may reach."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Margin:
    """Bound of the error of float32 in a product's vectors: relative to the largest value, and at least absolute."""

    relative: float
    absolute: float

    def of(self, value: torch.Tensor, axis: int) -> torch.Tensor:
        """Return the bound for each vector, with its axis kept."""
        return (value.double().abs().amax(axis, keepdim=True) * self.relative).clamp_min(self.absolute)

    @classmethod
    def measured(cls, pairs: Sequence[tuple[torch.Tensor, torch.Tensor]], axis: int) -> "Margin":
        """Return `SAFETY` times the largest differences of pairs of float32 and float64 values."""
        relative = absolute = 0.0
        for one, exact in pairs:
            apart = (one.double() - exact).abs().amax(axis)
            size = exact.abs().amax(axis)
            known = torch.isfinite(apart) & (size > 0)
            if bool(known.any()):
                absolute = max(absolute, float(apart[known].max()))
                relative = max(relative, float((apart[known] / size[known]).max()))
        # Where float32 is exact, as of empty images, one of its own units stands for the error.
        least = torch.finfo(torch.float32).eps
        return cls(relative=SAFETY * max(relative, least), absolute=SAFETY * absolute)


WIDEST: Final = Margin(relative=0.0, absolute=math.inf)
"""Margin that sends every image to float64."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Decided:
    """How the values of some images were decided."""

    images: int = 0
    again: int = 0
    """Images that were computed in float64."""
    by_rule: int = 0
    """Values, and steps, within `rounding.TIE` of a boundary."""
    undecided: int = 0
    """Those so near the limit of the rule that another computer might decide otherwise."""
    used: float = 0.0
    """Largest error of float32 that was seen, as a share of its margin."""

    def __add__(self, other: "Decided") -> "Decided":
        return Decided(
            images=self.images + other.images,
            again=self.again + other.again,
            by_rule=self.by_rule + other.by_rule,
            undecided=self.undecided + other.undecided,
            used=max(self.used, other.used),
        )


class Reproducible:
    """Decides what is stored of the values of batches, with help of an encoder in float64.

    `margins` has one for each product; None: the engine's own encoder computes in float64. They may be replaced before
    the first batch.
    """

    def __init__(
        self,
        encoder: "Encoder",
        margins: Mapping[str, Margin] | None,
        *,
        on_exceeded: Callable[[str], None] = lambda _why: None,
    ) -> None:
        self.encoder = encoder
        self.margins = margins
        self._on_exceeded = on_exceeded
        self._lock = threading.Lock()
        self._unchecked = CHECKED_EACH

    def stored(
        self,
        wanted: Sequence[Product],
        values: Mapping[str, torch.Tensor],
        finite: torch.Tensor,
        exactly: Callable[[int], tuple[Mapping[str, torch.Tensor], torch.Tensor]],
    ) -> tuple[dict[str, torch.Tensor], Decided]:
        """Return what is stored of the values of a batch, and how it was decided; `finite` is updated.

        `exactly` computes an image of the batch again, in float64: its values `[1, ...]`, and whether they are finite.

        Raises:
            EncoderError: an error of float32 exceeds its margin.
        """
        found = {product.name: rounding.rounded(product, values[product.name]) for product in wanted}
        arrays = {name: array for each in found.values() for name, array in each.arrays.items()}
        bounds = self.margins
        if bounds is None:
            return arrays, _decided(found, images=len(finite))
        margins = {each.name: bounds[each.name].of(values[each.name], each.channel_axis + 1) for each in wanted}
        near = ~finite
        for product in wanted:
            near |= rounding.near(product, found[product.name], margins[product.name])
        decided = Decided(images=len(finite))
        for row in (near | self._to_check(len(finite))).nonzero()[:, 0].tolist():
            exact, fine = exactly(row)
            finite[row] = fine[0]
            again = {product.name: rounding.rounded(product, exact[product.name]) for product in wanted}
            for each in again.values():
                for name, array in each.arrays.items():
                    arrays[name][row] = array[0]
            used = self._used(row, values, exact, margins)
            decided += dataclasses.replace(_decided(again, images=0), again=1, used=used)
        return arrays, decided

    def _to_check(self, count: int) -> torch.Tensor:
        """Return which images of a batch are computed again in any case."""
        chosen = torch.zeros(count, dtype=torch.bool)
        with self._lock:
            first = max(CHECKED_EACH - 1 - self._unchecked, 0)
            chosen[first::CHECKED_EACH] = True
            self._unchecked = count - 1 - int(chosen.nonzero().max()) if chosen.any() else self._unchecked + count
        return chosen

    def _used(
        self,
        row: int,
        values: Mapping[str, torch.Tensor],
        exact: Mapping[str, torch.Tensor],
        margins: Mapping[str, torch.Tensor],
    ) -> float:
        """Return the share of its margin that an image's error reaches."""
        worst = 0.0
        for name, value in exact.items():
            share = ((values[name][row].double() - value[0]).abs() / margins[name][row]).nan_to_num(0.0, 0.0)
            worst = max(worst, float(share.max()))
        if worst > MOST_USED:
            why = f"an error of float32 is {worst:.2g} of the margin, which is meant to be {SAFETY:g} times the largest"
            self.margins = dict.fromkeys(margins, WIDEST)
            self._on_exceeded(why)
            raise errors.EncoderError(
                f"{why}, so nothing of this shard is stored: resume the run, which computes all images in float64 from "
                "here on"
            )
        return worst


def _decided(found: Mapping[str, rounding.Rounded], *, images: int) -> Decided:
    counts = [rounding.by_rule(each) for each in found.values()]
    ruled, unsure = (sum(each) for each in zip(*counts, strict=True))
    return Decided(images=images, again=images, by_rule=ruled, undecided=unsure)
