"""Values rounded to multiples of a step, so that small errors of the values do not change the result.

A vector x along the channels becomes whole numbers of a step s:

    int8:     s >= max|x| / 127          a bfloat16, the smallest there is
    uint8:    s >= (max x - min x) / 254, and >= max|x| / 32768; likewise
    float16:  s >= max|x| / 1024         a power of two, the smallest there is
    float32:  s >= max|x| / 65536        likewise

and never below 2^-40. Both choices, of the step and of the whole number, change at boundaries. A value that is within
`TIE` of a boundary (in steps) counts as on it, and is decided by a rule: the smaller step, the even number. So values
that are a boundary in theory (a 0.5, equal channels) have one result, whatever their last bits are.

If two computations of a vector each differ from its exact value by less than `TIE` / 4 steps, and one of them has no
value that is `undecided`, both give the same bytes. If the first has no boundary within its own, larger error and
2 `TIE` (`near`), both do, too.
"""

import dataclasses
from typing import Final

import torch

from genenc_core.encoding.products import Product
from genenc_core.stored_arrays import OFFSET, SCALE

TIE: Final = 2.0**-20
"""Distance to a boundary, in steps, within which a rule decides."""
SMALLEST: Final = -40
"""Exponent of the smallest step."""
FINEST: Final = 2.0**-16
"""Of all steps, relative to the largest value of a vector."""
_PARTS: Final = {"int8": 127.0, "uint8": 254.0, "float16": 1024.0, "float32": 65536.0}
"""Steps that the largest value, or the span, is divided into, at least half as many for floats."""
_BITS: Final = {"int8": 8, "uint8": 8, "float16": 1, "float32": 1}
"""Significant bits of a step."""
_UINT8_LEAST: Final = 2.0**-15
"""Of a step of uint8, relative to the largest value, so that float32 holds any whole number of them."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Rounded:
    """A product's value in steps.

    `arrays` `[B, ...]` by stored array; `to_boundary` float64: the distance of each value to the next boundary, in
    steps; `step` float64 of each vector, and `step_margin`: how far, relative to itself, the wanted step is from where
    another would be chosen. These have the vectors' axis kept.
    """

    arrays: dict[str, torch.Tensor]
    to_boundary: torch.Tensor
    step: torch.Tensor
    step_margin: torch.Tensor
    unit: torch.Tensor
    """Distance `TIE` of the wanted step to a boundary, relative to itself."""


def rounded(product: Product, value: torch.Tensor) -> Rounded:
    """Return what is stored of a product's value `[B, ...]`; missing vectors (NaN) stay so."""
    exact, axis = value.double(), product.channel_axis + 1
    step, margin, unit = _step(exact, axis, product.dtype)
    scaled = exact / step
    below = scaled.floor()
    past = scaled - below - 0.5
    even = below + below.remainder(2)
    # Plus zero, which turns -0 into 0.
    whole = torch.where(past.abs() <= TIE, even, torch.where(past > 0, below + 1, below)) + 0.0
    arrays = _stored(product, whole, step, axis)
    return Rounded(arrays=arrays, to_boundary=past.abs(), step=step, step_margin=margin, unit=unit)


def _stored(product: Product, whole: torch.Tensor, step: torch.Tensor, axis: int) -> dict[str, torch.Tensor]:
    if product.dtype in ("float16", "float32"):
        return {product.name: (whole * step).to(getattr(torch, product.dtype))}
    names = {kind: f"{product.name}_{kind.suffix}" for kind in (SCALE, OFFSET)}
    scale = {names[SCALE]: step.squeeze(axis).float()}
    if product.dtype == "int8":
        return {product.name: _whole(whole.clamp(-127, 127), torch.int8), **scale}
    low = whole.amin(axis, keepdim=True)
    kept = _whole((whole - low).clamp(0, 255), torch.uint8)
    return {product.name: kept, **scale, names[OFFSET]: (low * step).squeeze(axis).float()}


def _whole(value: torch.Tensor, kind: torch.dtype) -> torch.Tensor:
    return torch.where(torch.isfinite(value), value, 0).to(kind)


def _step(exact: torch.Tensor, axis: int, kind: str) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the step of each vector, how far the wanted one is from a boundary, and `TIE` there; both relative."""
    wanted = wanted_step(exact, axis, kind)
    bits = _BITS[kind]
    mantissa, exponent = torch.frexp(wanted)
    scaled = mantissa * 2.0**bits
    whole = (scaled - TIE).ceil()
    step = whole * _power_of_two(exponent - bits)
    smallest = torch.full_like(step, 2.0**SMALLEST)
    above = wanted > smallest
    margin = torch.where(above, (scaled - scaled.round()).abs() / scaled, (smallest - wanted) / wanted)
    return torch.maximum(step, smallest), margin, torch.where(above, TIE / scaled, TIE)


def wanted_step(exact: torch.Tensor, axis: int, kind: str) -> torch.Tensor:
    """Return the step before it is rounded up, float64 with the axis kept."""
    size = exact.abs().amax(axis, keepdim=True)
    if kind != "uint8":
        return size / _PARTS[kind]
    span = exact.amax(axis, keepdim=True) - exact.amin(axis, keepdim=True)
    return torch.maximum(span / _PARTS[kind], size * _UINT8_LEAST)


def _power_of_two(exponent: torch.Tensor) -> torch.Tensor:
    """Return 2^exponent, float64, exactly: a library's power may be off by the last bit."""
    kept = exponent.to(torch.int64).clamp(-1022, 1023)
    return ((kept + 1023) << 52).view(torch.float64)


def near(product: Product, found: Rounded, error: torch.Tensor) -> torch.Tensor:
    """Return which images `[B]` may be rounded otherwise if their vectors are wrong by up to `error`.

    `error` is absolute, one for each vector, with the axis kept.
    """
    off = error / found.step
    values = found.to_boundary <= off + 2 * TIE
    # A wanted step is at most 3 / parts as wrong, relative to itself, as a value is in steps: a span has two ends, and
    # a step is less than twice the wanted one.
    steps = found.step_margin <= 3 * off / _PARTS[product.dtype] + 2 * found.unit
    return values.flatten(1).any(1) | steps.flatten(1).any(1)


def by_rule(found: Rounded) -> tuple[int, int]:
    """Return how many values and steps the rule decided, and how many are too near its limit to be sure of."""
    pairs = ((found.to_boundary, TIE), (found.step_margin, found.unit))
    ruled = sum(int((away <= unit).sum()) for away, unit in pairs)
    unsure = sum(int(((away > unit / 2) & (away < 1.5 * unit)).sum()) for away, unit in pairs)
    return ruled, unsure
