"""Pooling of maps and token lists to one vector per image, and the protocol of post-encoder modules."""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Protocol

import torch
from torch.nn import functional

from genenc_core import errors
from genenc_core.encoding.cells import Cells

if TYPE_CHECKING:
    from genenc_core.encoding.region_batches import RegionBatch

MAP = ("channel", "y", "x")
TOKENS = ("token", "channel")
VECTOR = ("channel",)
Reduction = Callable[[torch.Tensor, int], torch.Tensor]
"""(tensor, axis) -> the tensor reduced over that axis."""
OVER = ("view", "bars")
"""Cells to pool over: those with their centre in the image, or all, including those on the bars around it.

A run records `view` if there are bars; the default is all, as in WhiskerToolbox, TerraTorch and genenc 0.1.0.
"""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Signature:
    """Named axes and sizes of one value per image, batch axis excluded."""

    dims: tuple[str, ...]
    shape: tuple[int, ...]

    def __str__(self) -> str:
        return "[" + ", ".join(f"{dim} {size}" for dim, size in zip(self.dims, self.shape, strict=True)) + "]"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class PointBatch:
    """Points at which to sample a batch, in model pixels with the origin at the top-left edge.

    Shapes: `xy` float64 `[B, K, 2]`; `valid` bool `[B, K]`. `input_size` is (height, width) of the model input.
    `view` float64 `[B, 4]`: left, top, right, bottom of the part of it that each image covers; None means all. `cells`
    is the grid of the map; None if it divides the input evenly. `regions` are those of the batch; None without any.
    """

    xy: torch.Tensor
    valid: torch.Tensor
    input_size: tuple[int, int]
    view: torch.Tensor | None = None
    cells: Cells | None = None
    regions: "RegionBatch | None" = None

    def cells_of(self, features: torch.Tensor) -> Cells:
        """Return the grid of maps `[B, C, h, w]`."""
        return self.cells or Cells.regular(features.shape[2:], self.input_size)


class PostEncoder(Protocol):
    """Module that runs after the encoder on one of its outputs."""

    def output(self, signature: Signature) -> Signature:
        """Return the signature after this module.

        Raises:
            InputError: the module cannot take `signature`.
        """
        ...

    def apply(self, features: torch.Tensor, points: PointBatch | None) -> torch.Tensor:
        """Return `[B, ...]` with the signature that `output` returned.

        Raises:
            InputError: features that do not match the signature, missing points, or a value out of range of a cast.
        """
        ...


def require_map(name: str, signature: Signature) -> None:
    """Raise `InputError` unless a signature is a map without empty axes."""
    if signature.dims != MAP or min(signature.shape) < 1:
        raise errors.InputError(f"{name} needs a feature map [channel, y, x], but got {signature}")


def require_batched_map(name: str, features: torch.Tensor) -> None:
    """Raise `InputError` unless a tensor is `[B, C, h, w]` without empty axes."""
    if features.ndim != 4 or min(features.shape) < 1:
        raise errors.InputError(f"{name} needs [B, C, H, W] with no empty axis, but got {tuple(features.shape)}")


def _mean(values: torch.Tensor, axis: int) -> torch.Tensor:
    return values.mean(axis)


def _max(values: torch.Tensor, axis: int) -> torch.Tensor:
    return values.amax(axis)


def _min(values: torch.Tensor, axis: int) -> torch.Tensor:
    return values.amin(axis)


def _cells(
    features: torch.Tensor, points: PointBatch | None, over: str | None
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Return the cells `[B, C, N]` of maps, and which of them count, bool `[B, 1, N]`, or None for all."""
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

    def output(self, signature: Signature) -> Signature:
        """Return `[channel]`; needs a map."""
        require_map(self.name, signature)
        return Signature(dims=VECTOR, shape=signature.shape[:1])

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

    def output(self, signature: Signature) -> Signature:
        """Return `[channel]`; needs a map."""
        require_map(self.name, signature)
        return Signature(dims=VECTOR, shape=signature.shape[:1])

    def apply(self, features: torch.Tensor, points: PointBatch | None) -> torch.Tensor:
        """Return the largest or smallest value over h and w, `[B, C]`; NaN where a cell is NaN."""
        require_batched_map(self.name, features)
        return _reduced(self.reduce, features, points, self.over)


@dataclasses.dataclass(frozen=True, slots=True)
class GeneralizedMean:
    """`gem`: (mean of max(x, 1e-6)^p)^(1/p) over the cells, `[B, C, h, w]` -> `[B, C]`.

    Radenovic, Tolias, Chum: Fine-tuning CNN image retrieval with no human annotation, 2018, equation (3), with their
    p = 3. p = 1 is the mean of the values clamped at 1e-6; a large p approaches the maximum.
    """

    power: float = 3.0
    floor: float = 1e-6
    over: str | None = None

    def output(self, signature: Signature) -> Signature:
        """Return `[channel]`; needs a map."""
        require_map("gem", signature)
        return Signature(dims=VECTOR, shape=signature.shape[:1])

    def apply(self, features: torch.Tensor, points: PointBatch | None) -> torch.Tensor:
        """Return the generalised mean over h and w, `[B, C]`; NaN where a cell is NaN."""
        require_batched_map("gem", features)
        cells, inside = _cells(features, points, self.over)
        if inside is not None:
            cells = torch.where(inside, cells, self.floor)
        cells = cells.clamp(min=self.floor)
        # Normalised by the maximum, since x^p of large features would overflow float32.
        largest = cells.amax(2, keepdim=True)
        powers = (cells / largest) ** self.power
        mean = powers.mean(2) if inside is None else _masked_mean(powers, inside)
        return largest[..., 0] * mean ** (1 / self.power)


@dataclasses.dataclass(frozen=True, slots=True)
class TokenPool:
    """`vit_mean`, `vit_max`, `vit_min`: over the patch tokens without the class token, -> `[B, C]`.

    Takes a patch map `[B, C, h, w]`, which has no class token, or tokens `[B, N, C]`, with `has_cls` stating whether
    the first is one.
    """

    name: str
    reduce: Reduction
    has_cls: bool | None = None
    over: str | None = None

    def output(self, signature: Signature) -> Signature:
        """Return `[channel]`; needs a map or tokens."""
        if signature.dims == MAP:
            require_map(self.name, signature)
            if self.has_cls:
                raise errors.InputError(f"{self.name}: a map {signature} has no class token; remove has_cls")
            return Signature(dims=VECTOR, shape=signature.shape[:1])
        _require_tokens(self.name, signature)
        if self.has_cls is None:
            raise errors.InputError(
                f"{self.name}: state whether the first of {signature} is a class token: {self.name}(has_cls=true) or "
                f"{self.name}(has_cls=false)"
            )
        if signature.shape[0] <= int(self.has_cls):
            raise errors.InputError(f"{self.name}(has_cls=true) leaves nothing of {signature}")
        return Signature(dims=VECTOR, shape=signature.shape[1:])

    def apply(self, features: torch.Tensor, points: PointBatch | None) -> torch.Tensor:
        """Return the reduced patch tokens, `[B, C]`; NaN where a token is NaN."""
        if features.ndim == 4:
            return _reduced(self.reduce, features, points, self.over)
        return self.reduce(features[:, int(bool(self.has_cls)) :], 1)


@dataclasses.dataclass(frozen=True, slots=True)
class ClassToken:
    """`cls_token`, `vit_cls`: the class token of tokens `[B, N, C]` that include one, -> `[B, C]`.

    For an encoder's patch map, the product uses the encoder's class token slot of that map instead.
    """

    name: str
    has_cls: bool | None = None

    def output(self, signature: Signature) -> Signature:
        """Return `[channel]`; needs tokens."""
        if signature.dims != TOKENS:
            raise errors.InputError(
                f"{self.name} takes the class token of an encoder and must be the first module, but got {signature}"
            )
        _require_tokens(self.name, signature)
        if not self.has_cls:
            stated = "" if self.has_cls is None else ", and has_cls=false states that there is none"
            raise errors.InputError(
                f"{self.name}: it is not known whether the first of tokens {signature} is a class token{stated}; if "
                f"it is, use {self.name}(has_cls=true)"
            )
        return Signature(dims=VECTOR, shape=signature.shape[1:])

    def apply(self, features: torch.Tensor, points: PointBatch | None) -> torch.Tensor:  # noqa: ARG002
        """Return the first token, `[B, C]`."""
        return features[:, 0]


@dataclasses.dataclass(frozen=True, slots=True)
class Flatten:
    """`flatten`: all values of a map or of tokens as one vector, `[B, C, h, w]` -> `[B, C * h * w]`."""

    def output(self, signature: Signature) -> Signature:
        """Return `[channel]`; vectors stay as they are, and values per point or region are refused."""
        if signature.dims not in (MAP, TOKENS, VECTOR):
            raise errors.InputError(f"flatten needs a map, tokens or a vector of the whole image, but got {signature}")
        return Signature(dims=VECTOR, shape=(math.prod(signature.shape),))

    def apply(self, features: torch.Tensor, points: PointBatch | None) -> torch.Tensor:  # noqa: ARG002
        """Return the values in their order: channels, rows, columns; or tokens, channels."""
        return features.flatten(1)


def make_gem(arguments: Mapping[str, str]) -> PostEncoder:
    """Return `gem`; raise `InputError` unless p is a number above 0."""
    text = arguments.get("p", "3")
    try:
        power = float(text)
    except ValueError:
        power = math.nan
    if not (0 < power < math.inf):
        raise errors.InputError(f"gem: p={text!r} is not a number above 0, such as 3")
    return GeneralizedMean(power, over=over("gem", arguments))


def over(name: str, arguments: Mapping[str, str]) -> str | None:
    """Parse the `over` argument of a pooling; raise `InputError` unless it is one of `OVER`."""
    text = arguments.get("over")
    if text is not None and text not in OVER:
        raise errors.InputError(f"{name}: over={text!r} is unknown; known: {', '.join(OVER)}")
    return text


def has_cls(name: str, arguments: Mapping[str, str]) -> bool | None:
    """Parse a module's `has_cls`; raise `InputError` unless it is true or false."""
    text = arguments.get("has_cls")
    if text is None:
        return None
    if text.lower() not in ("true", "false"):
        raise errors.InputError(f"{name}: has_cls={text!r} is neither true nor false")
    return text.lower() == "true"


REDUCTIONS: Mapping[str, Reduction] = {"mean": _mean, "max": _max, "min": _min}


def _require_tokens(name: str, signature: Signature) -> None:
    if signature.dims != TOKENS or min(signature.shape) < 1:
        raise errors.InputError(f"{name} needs tokens [token, channel] or a map [channel, y, x], but got {signature}")
