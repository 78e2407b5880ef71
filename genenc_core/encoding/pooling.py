"""Reductions of maps and token lists to one vector per image."""

import dataclasses
import math
from collections.abc import Callable, Mapping

import torch
from torch.nn import functional

from genenc_core import errors
from genenc_core.encoding.signature import (
    MAP,
    TOKENS,
    VECTOR,
    PointBatch,
    PostEncoder,
    Signature,
    require_batched_map,
    require_map,
)

Reduction = Callable[[torch.Tensor, int], torch.Tensor]
"""A tensor and one of its axes -> the tensor without that axis."""
OVER = ("view", "bars")
"""What a pooling counts: the cells whose centres lie in the image, or all, those on the bars around it too.

A run records `view` where there are bars; without a word it is all, as in WhiskerToolbox, TerraTorch and genenc 0.1.0.
"""


def _mean(values: torch.Tensor, axis: int) -> torch.Tensor:
    return values.mean(axis)


def _max(values: torch.Tensor, axis: int) -> torch.Tensor:
    return values.amax(axis)


def _min(values: torch.Tensor, axis: int) -> torch.Tensor:
    return values.amin(axis)


def _cells(
    features: torch.Tensor, points: PointBatch | None, over: str | None
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Return the cells `[B, C, N]` of maps, and which of them count, bool `[B, 1, N]`; None: all."""
    if over != "view" or points is None or points.view is None:
        return features.flatten(2), None
    view = points.view.to(features.device)[: len(features)]
    inside = points.cells_of(features).inside(view, (features.shape[2], features.shape[3]))
    return features.flatten(2), inside.flatten(1)[:, None]


def _masked_mean(cells: torch.Tensor, inside: torch.Tensor) -> torch.Tensor:
    return torch.where(inside, cells, 0).sum(2) / inside.sum(2)


def _reduced(reduce: Reduction, features: torch.Tensor, points: PointBatch | None, over: str | None) -> torch.Tensor:
    cells, inside = _cells(features, points, over)
    if inside is None:
        return reduce(cells, 2)
    if reduce is _mean:
        return _masked_mean(cells, inside)
    return reduce(torch.where(inside, cells, -math.inf if reduce is _max else math.inf), 2)


@dataclasses.dataclass(frozen=True, slots=True)
class GlobalAvgPool:
    """`global_avg_pool`, `cnn_mean`: the mean over the cells, `[B, C, h, w]` -> `[B, C]`."""

    name: str = "global_avg_pool"
    over: str | None = None

    def output(self, given: Signature) -> Signature:
        """Return `[channel]`; needs a map."""
        require_map(self.name, given)
        return Signature(dims=VECTOR, shape=given.shape[:1])

    def apply(self, features: torch.Tensor, points: PointBatch | None) -> torch.Tensor:
        """Return the mean over h and w, `[B, C]`.

        Raises:
            InputError: not 4-D, or an empty axis.
        """
        require_batched_map(self.name, features)
        cells, inside = _cells(features, points, self.over)
        return functional.adaptive_avg_pool2d(features, 1).flatten(1) if inside is None else _masked_mean(cells, inside)


@dataclasses.dataclass(frozen=True, slots=True)
class GlobalExtreme:
    """`global_max_pool`, `global_min_pool`, `cnn_max`, `cnn_min`: over the cells, `[B, C, h, w]` -> `[B, C]`."""

    name: str
    reduce: Reduction
    over: str | None = None

    def output(self, given: Signature) -> Signature:
        """Return `[channel]`; needs a map."""
        require_map(self.name, given)
        return Signature(dims=VECTOR, shape=given.shape[:1])

    def apply(self, features: torch.Tensor, points: PointBatch | None) -> torch.Tensor:
        """Return the largest or smallest value over h and w, `[B, C]`; NaN where a cell is NaN."""
        require_batched_map(self.name, features)
        return _reduced(self.reduce, features, points, self.over)


@dataclasses.dataclass(frozen=True, slots=True)
class GeneralizedMean:
    """`gem`: (mean of max(x, 1e-6)^p)^(1/p) over the cells, `[B, C, h, w]` -> `[B, C]`.

    Radenovic, Tolias, Chum: Fine-tuning CNN image retrieval with no human annotation, 2018, equation (3), with their
    p = 3. p = 1 is the mean of what is positive; a large p comes near the largest value.
    """

    power: float = 3.0
    floor: float = 1e-6
    over: str | None = None

    def output(self, given: Signature) -> Signature:
        """Return `[channel]`; needs a map."""
        require_map("gem", given)
        return Signature(dims=VECTOR, shape=given.shape[:1])

    def apply(self, features: torch.Tensor, points: PointBatch | None) -> torch.Tensor:
        """Return the generalised mean over h and w, `[B, C]`; NaN where a cell is NaN."""
        require_batched_map("gem", features)
        cells, inside = _cells(features, points, self.over)
        if inside is not None:
            cells = torch.where(inside, cells, self.floor)
        cells = cells.clamp(min=self.floor)
        # The same number, but x^p of large features would not fit float32.
        largest = cells.amax(2, keepdim=True)
        powers = (cells / largest) ** self.power
        mean = powers.mean(2) if inside is None else _masked_mean(powers, inside)
        return largest[..., 0] * mean ** (1 / self.power)


@dataclasses.dataclass(frozen=True, slots=True)
class TokenPool:
    """`vit_mean`, `vit_max`, `vit_min`: over the patch tokens, the class token left out, -> `[B, C]`.

    Takes a patch map `[B, C, h, w]`, which holds no class token, or tokens `[B, N, C]`, of which `has_cls` says
    whether the first is one.
    """

    name: str
    reduce: Reduction
    has_cls: bool | None = None
    over: str | None = None

    def output(self, given: Signature) -> Signature:
        """Return `[channel]`; needs a map or tokens."""
        if given.dims == MAP:
            require_map(self.name, given)
            if self.has_cls:
                raise errors.InputError(f"{self.name}: a map {given} holds no class token; leave has_cls out")
            return Signature(dims=VECTOR, shape=given.shape[:1])
        _require_tokens(self.name, given)
        if self.has_cls is None:
            raise errors.InputError(
                f"{self.name}: say whether the first of {given} is a class token: {self.name}(has_cls=true) or "
                f"{self.name}(has_cls=false)"
            )
        if given.shape[0] <= int(self.has_cls):
            raise errors.InputError(f"{self.name}(has_cls=true) leaves nothing of {given}")
        return Signature(dims=VECTOR, shape=given.shape[1:])

    def apply(self, features: torch.Tensor, points: PointBatch | None) -> torch.Tensor:
        """Return the reduced patch tokens, `[B, C]`; NaN where a token is NaN."""
        if features.ndim == 4:
            return _reduced(self.reduce, features, points, self.over)
        return self.reduce(features[:, int(bool(self.has_cls)) :], 1)


@dataclasses.dataclass(frozen=True, slots=True)
class ClassToken:
    """`cls_token`, `vit_cls`: the class token of tokens `[B, N, C]` that hold one, -> `[B, C]`.

    Of an encoder's patch map it is the encoder's own slot beside that map, which the product then takes instead.
    """

    name: str
    has_cls: bool | None = None

    def output(self, given: Signature) -> Signature:
        """Return `[channel]`; needs tokens."""
        if given.dims != TOKENS:
            raise errors.InputError(
                f"{self.name} takes the class token of an encoder, so it stands first; here it is given {given}"
            )
        _require_tokens(self.name, given)
        if not self.has_cls:
            said = "" if self.has_cls is None else ", and has_cls=false says that there is none"
            raise errors.InputError(
                f"{self.name}: tokens {given} do not tell whether the first is a class token{said}; if it is, "
                f"write {self.name}(has_cls=true)"
            )
        return Signature(dims=VECTOR, shape=given.shape[1:])

    def apply(self, features: torch.Tensor, points: PointBatch | None) -> torch.Tensor:  # noqa: ARG002
        """Return the first token, `[B, C]`."""
        return features[:, 0]


def make_gem(arguments: Mapping[str, str]) -> PostEncoder:
    """Return `gem`; raises `InputError` unless p is a number above 0."""
    text = arguments.get("p", "3")
    try:
        power = float(text)
    except ValueError:
        power = math.nan
    if not (0 < power < math.inf):
        raise errors.InputError(f"gem: p={text!r} is not a number above 0, such as 3")
    return GeneralizedMean(power, over=over("gem", arguments))


def over(name: str, arguments: Mapping[str, str]) -> str | None:
    """Read what a pooling counts; raises `InputError` unless it is one of `OVER`."""
    text = arguments.get("over")
    if text is not None and text not in OVER:
        raise errors.InputError(f"{name}: over={text!r} is unknown; known: {', '.join(OVER)}")
    return text


def has_cls(name: str, arguments: Mapping[str, str]) -> bool | None:
    """Read a module's `has_cls`; raises `InputError` unless it is true or false."""
    text = arguments.get("has_cls")
    if text is None:
        return None
    if text.lower() not in ("true", "false"):
        raise errors.InputError(f"{name}: has_cls={text!r} is neither true nor false")
    return text.lower() == "true"


REDUCTIONS: Mapping[str, Reduction] = {"mean": _mean, "max": _max, "min": _min}


def _require_tokens(name: str, given: Signature) -> None:
    if given.dims != TOKENS or min(given.shape) < 1:
        raise errors.InputError(f"{name} needs tokens [token, channel] or a map [channel, y, x], but is given {given}")
