"""Post-encoder modules: what is kept of a feature map, with shapes checked before anything runs."""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import torch
from torch.nn import functional

from genenc_core import errors

MAP = ("channel", "y", "x")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Signature:
    """Named axes and sizes of one value per image, batch axis excluded."""

    dims: tuple[str, ...]
    shape: tuple[int, ...]

    def __str__(self) -> str:
        return "[" + ", ".join(f"{dim} {size}" for dim, size in zip(self.dims, self.shape, strict=True)) + "]"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class PointBatch:
    """Where to probe a batch: model pixels, origin at the top left edge, and which points count.

    Shapes: `xy` float64 `[B, K, 2]`; `valid` bool `[B, K]`. `input_size` is (height, width) of the model input.
    """

    xy: torch.Tensor
    valid: torch.Tensor
    input_size: tuple[int, int]


class PostEncoder(Protocol):
    """What runs after the encoder on one of its outputs."""

    def output(self, given: Signature) -> Signature:
        """Return the signature after this module; `InputError` when it cannot take `given`."""
        ...

    def apply(self, features: torch.Tensor, points: PointBatch | None) -> torch.Tensor:
        """Return `[B, ...]` of the signature that `output` told."""
        ...


@dataclasses.dataclass(frozen=True, slots=True)
class Identity:
    """`none`: the value as it is."""

    def output(self, given: Signature) -> Signature:
        """Return `given`."""
        return given

    def apply(self, features: torch.Tensor, points: PointBatch | None) -> torch.Tensor:  # noqa: ARG002
        """Return `features`."""
        return features


@dataclasses.dataclass(frozen=True, slots=True)
class GlobalAvgPool:
    """`global_avg_pool`: the mean over all cells, `[B, C, h, w]` -> `[B, C]`."""

    def output(self, given: Signature) -> Signature:
        """Return `[channel]`; needs a map."""
        _require_map("global_avg_pool", given)
        return Signature(dims=("channel",), shape=given.shape[:1])

    def apply(self, features: torch.Tensor, points: PointBatch | None) -> torch.Tensor:  # noqa: ARG002
        """Return the mean over h and w, `[B, C]`.

        Raises:
            InputError: not 4-D, or an empty axis.
        """
        _require_batched_map("global_avg_pool", features)
        return functional.adaptive_avg_pool2d(features, 1).flatten(1)


@dataclasses.dataclass(frozen=True, slots=True)
class SpatialPoint:
    """`spatial_point`: the vector at each point, `[B, C, h, w]` -> `[B, K, C]`; NaN where a point does not count.

    A point at model pixel x lies at cell coordinate v = x * (w / input width), as in WhiskerToolbox:

    - `nearest`: cell floor(v + 0.5), clamped to the map (half away from zero; cell k sits at pixel k * stride);
    - `bilinear`: interpolated at v on the index grid, clamped to it (`grid_sample`, align_corners=True, border);
    - `cell`: cell floor(v), the patch that covers the pixel.
    """

    interpolation: str
    count: int

    def output(self, given: Signature) -> Signature:
        """Return `[point, channel]`; needs a map, of at least 2 x 2 cells for `bilinear`."""
        _require_map("spatial_point", given)
        if self.interpolation == "bilinear" and min(given.shape[1:]) < 2:
            raise errors.InputError(
                f"spatial_point(bilinear) needs a map of at least 2 x 2 cells, got {given}: use nearest or cell"
            )
        return Signature(dims=("point", "channel"), shape=(self.count, given.shape[0]))

    def apply(self, features: torch.Tensor, points: PointBatch | None) -> torch.Tensor:
        """Return the vectors at `points`, `[B, K, C]`."""
        _require_batched_map("spatial_point", features)
        if points is None:
            raise errors.InputError("spatial_point needs points: give --points FILE")
        channels, (height, width) = features.shape[1], features.shape[2:]
        scale = torch.tensor(
            [width / points.input_size[1], height / points.input_size[0]], dtype=torch.float64, device=features.device
        )
        cells = torch.where(points.valid[..., None], points.xy.to(features.device), 0.0) * scale
        if self.interpolation == "bilinear":
            sampled = _bilinear(features, cells)
        else:
            sampled = _gathered(features, torch.floor(cells + (0.5 if self.interpolation == "nearest" else 0.0)))
        assert sampled.shape == (features.shape[0], cells.shape[1], channels)
        return sampled.masked_fill(~points.valid.to(features.device)[..., None], math.nan)


@dataclasses.dataclass(frozen=True, slots=True)
class Pipeline:
    """Modules one after another; empty is the identity."""

    modules: tuple[PostEncoder, ...]

    def output(self, given: Signature) -> Signature:
        """Return the signature after the last module."""
        for module in self.modules:
            given = module.output(given)
        return given

    def apply(self, features: torch.Tensor, points: PointBatch | None) -> torch.Tensor:
        """Feed each module's output to the next."""
        for module in self.modules:
            features = module.apply(features, points)
        return features


def _make_spatial_point(arguments: Mapping[str, str], point_count: int) -> PostEncoder:
    interpolation = arguments.get("interpolation", "nearest").lower()
    if interpolation not in INTERPOLATIONS:
        raise errors.InputError(f"spatial_point: {interpolation=} is unknown; known: {', '.join(INTERPOLATIONS)}")
    if point_count < 1:
        raise errors.InputError("spatial_point needs points, and the run has none: give --points FILE")
    return SpatialPoint(interpolation, point_count)


INTERPOLATIONS = ("nearest", "bilinear", "cell")
ARGUMENTS: Mapping[str, tuple[str, ...]] = {"none": (), "global_avg_pool": (), "spatial_point": ("interpolation",)}
MAKERS: Mapping[str, Callable[[Mapping[str, str], int], PostEncoder]] = {
    "none": lambda _arguments, _points: Identity(),
    "global_avg_pool": lambda _arguments, _points: GlobalAvgPool(),
    "spatial_point": _make_spatial_point,
}


@dataclasses.dataclass(frozen=True, slots=True)
class Step:
    """One module by name with its arguments, as a product names it."""

    module: str
    arguments: tuple[tuple[str, str], ...] = ()

    def __str__(self) -> str:
        inner = ",".join(f"{key}={value}" for key, value in self.arguments)
        return f"{self.module}({inner})" if inner else self.module


def build_pipeline(steps: Sequence[Step], *, point_count: int) -> Pipeline:
    """Return the modules that `steps` name.

    Raises:
        InputError: an unknown module or argument (the known ones are listed), or points needed and absent.
    """
    return Pipeline(tuple(_build_module(step, point_count) for step in steps))


def _build_module(step: Step, point_count: int) -> PostEncoder:
    if step.module not in MAKERS:
        raise errors.InputError(f"post-encoder module {step.module!r} is unknown; known: {', '.join(sorted(MAKERS))}")
    surplus = [key for key, _ in step.arguments if key not in ARGUMENTS[step.module]]
    if surplus:
        known = ", ".join(ARGUMENTS[step.module]) or "none"
        raise errors.InputError(f"{step.module}: unknown argument {surplus[0]!r}; known: {known}")
    return MAKERS[step.module](dict(step.arguments), point_count)


def _require_map(name: str, given: Signature) -> None:
    if given.dims != MAP or min(given.shape) < 1:
        raise errors.InputError(f"{name} needs a feature map [channel, y, x], but is given {given}")


def _require_batched_map(name: str, features: torch.Tensor) -> None:
    if features.ndim != 4 or min(features.shape) < 1:
        raise errors.InputError(f"{name} needs [B, C, H, W] with no empty axis, but is given {tuple(features.shape)}")


def _bilinear(features: torch.Tensor, cells: torch.Tensor) -> torch.Tensor:
    height, width = features.shape[2:]
    last = torch.tensor([width - 1, height - 1], dtype=torch.float64, device=features.device)
    # The grid is made in float64 and used in float32: in the features' own half precision it would be off by cells.
    grid = (2.0 * cells / last - 1.0).to(torch.float32)
    sampled = functional.grid_sample(
        features.float(), grid[:, :, None], mode="bilinear", padding_mode="border", align_corners=True
    )
    return sampled[..., 0].transpose(1, 2).to(features.dtype)


def _gathered(features: torch.Tensor, cells: torch.Tensor) -> torch.Tensor:
    height, width = features.shape[2:]
    x = cells[..., 0].clamp(0, width - 1).long()
    y = cells[..., 1].clamp(0, height - 1).long()
    flat = (y * width + x)[:, None, :].expand(-1, features.shape[1], -1)
    return features.flatten(2).gather(2, flat).transpose(1, 2)
