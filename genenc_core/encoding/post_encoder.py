"""Post-encoder modules by name, with shapes checked before anything runs."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import torch
from torch.nn import functional

from genenc_core import errors
from genenc_core.encoding import point_sampling, pooling, region_sampling
from genenc_core.encoding.point_sampling import INTERPOLATIONS, SpatialPoint
from genenc_core.encoding.pooling import MAP, TOKENS, VECTOR, GlobalAvgPool, PointBatch, PostEncoder, Signature

__all__ = [
    "INTERPOLATIONS",
    "MAP",
    "TOKENS",
    "VECTOR",
    "GlobalAvgPool",
    "PointBatch",
    "PostEncoder",
    "Signature",
    "SpatialPoint",
]

SMALLEST_NORM = 1e-12
_TYPES: Mapping[str, torch.dtype] = {
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "float32": torch.float32,
}


@dataclasses.dataclass(frozen=True, slots=True)
class Identity:
    """`none`: the unchanged value."""

    def output(self, signature: Signature) -> Signature:
        """Return `signature`."""
        return signature

    def apply(self, features: torch.Tensor, points: PointBatch | None) -> torch.Tensor:  # noqa: ARG002
        """Return `features`."""
        return features


@dataclasses.dataclass(frozen=True, slots=True)
class L2Normalize:
    """`l2_normalize`: every vector divided by its length, x / max(|x|, 1e-12), along channels; zeros stay zero."""

    def output(self, signature: Signature) -> Signature:
        """Return `signature`."""
        return signature

    def apply(self, features: torch.Tensor, points: PointBatch | None) -> torch.Tensor:  # noqa: ARG002
        """Return `[B, C]`, `[B, K, C]` or `[B, C, h, w]` with vectors of length 1; NaN stays NaN."""
        # In float32, since half precision can represent neither lengths above 65504 nor 1e-12.
        wide = features.to(torch.promote_types(features.dtype, torch.float32))
        exact = functional.normalize(wide, dim=2 if features.ndim == 3 else 1, eps=SMALLEST_NORM)
        return exact.to(features.dtype)


@dataclasses.dataclass(frozen=True, slots=True)
class Cast:
    """`cast(TYPE)`: round to float16, bfloat16 or float32 for later modules; the stored type does not change."""

    dtype: torch.dtype

    def output(self, signature: Signature) -> Signature:
        """Return `signature`."""
        return signature

    def apply(self, features: torch.Tensor, points: PointBatch | None) -> torch.Tensor:  # noqa: ARG002
        """Return `features` in the type.

        Raises:
            InputError: a finite value overflows the type.
        """
        converted = features.to(self.dtype)
        if bool((torch.isinf(converted) & torch.isfinite(features)).any()):
            largest = features[torch.isfinite(features)].abs().max().item()
            raise errors.InputError(
                f"cast({str(self.dtype).removeprefix('torch.')}): a value of {largest:.4g} overflows; cast to "
                "bfloat16 or float32, or remove the cast"
            )
        return converted


def copies_values(module: PostEncoder) -> bool:
    """Return whether a module only copies values, so that it may come before or after a change of their type."""
    return isinstance(module, Identity) or (isinstance(module, SpatialPoint) and module.copies_values)


@dataclasses.dataclass(frozen=True, slots=True)
class Pipeline:
    """Sequence of modules; empty is the identity."""

    modules: tuple[PostEncoder, ...]

    @property
    def is_identity(self) -> bool:
        """Whether values are stored as they are."""
        return all(isinstance(module, Identity) for module in self.modules)

    def output(self, signature: Signature) -> Signature:
        """Return the signature after the last module."""
        for module in self.modules:
            signature = module.output(signature)
        return signature

    def apply(self, features: torch.Tensor, points: PointBatch | None) -> torch.Tensor:
        """Feed each module's output to the next."""
        for module in self.modules:
            features = module.apply(features, points)
        return features


@dataclasses.dataclass(frozen=True, slots=True)
class Step:
    """Name and arguments of one module of a product."""

    module: str
    arguments: tuple[tuple[str, str], ...] = ()

    def __str__(self) -> str:
        inner = ",".join(f"{key}={value}" for key, value in self.arguments)
        return f"{self.module}({inner})" if inner else self.module


def build_pipeline(steps: Sequence[Step], *, point_count: int, region_count: int = 0) -> Pipeline:
    """Build the modules that `steps` name; `region_count` is that of an image, on average.

    Raises:
        InputError: an unknown module or argument (the known ones are listed), or missing points or regions.
    """
    return Pipeline(tuple(_build_module(step, point_count, region_count) for step in steps))


def _build_module(step: Step, point_count: int, region_count: int) -> PostEncoder:
    if step.module not in MAKERS and step.module not in OF_REGIONS:
        known_modules = ", ".join(sorted({*MAKERS, *OF_REGIONS}))
        raise errors.InputError(f"post-encoder module {step.module!r} is unknown; known: {known_modules}")
    known = ARGUMENTS.get(step.module, ())
    surplus = [key for key, _ in step.arguments if key not in known]
    if surplus:
        raise errors.InputError(f"{step.module}: unknown argument {surplus[0]!r}; known: {', '.join(known) or 'none'}")
    keys = [key for key, _ in step.arguments]
    if len(set(keys)) != len(keys):
        raise errors.InputError(f"{step.module}: an argument is given twice in {step}")
    if step.module in OF_REGIONS:
        return OF_REGIONS[step.module](dict(step.arguments), region_count)
    return MAKERS[step.module](dict(step.arguments), point_count)


def _make_cast(arguments: Mapping[str, str], _points: int) -> PostEncoder:
    wanted = arguments.get("dtype", "")
    if wanted not in _TYPES:
        raise errors.InputError(f"cast: type {wanted!r} is unknown; use cast(TYPE) with one of {', '.join(_TYPES)}")
    return Cast(_TYPES[wanted])


def _make_token_pool(kind: str, arguments: Mapping[str, str], _points: int) -> PostEncoder:
    name = f"vit_{kind}"
    reduce, over = pooling.REDUCTIONS[kind], pooling.over(name, arguments)
    return pooling.TokenPool(name, reduce, pooling.has_cls(name, arguments), over)


def _make_mean(name: str, arguments: Mapping[str, str], _points: int) -> PostEncoder:
    return GlobalAvgPool(name, pooling.over(name, arguments))


def _make_class_token(name: str, arguments: Mapping[str, str], _points: int) -> PostEncoder:
    return pooling.ClassToken(name, pooling.has_cls(name, arguments))


def _make_extreme(name: str, kind: str, arguments: Mapping[str, str], _points: int) -> PostEncoder:
    return pooling.GlobalExtreme(name, pooling.REDUCTIONS[kind], pooling.over(name, arguments))


CLASS_TOKEN = ("cls_token", "vit_cls")
ARGUMENTS: Mapping[str, tuple[str, ...]] = {
    "spatial_point": ("interpolation",),
    "gem": ("p", "over"),
    "cast": ("dtype",),
    "region_mean": ("of",),
    "roi_align": ("size",),
    "cls_token": ("has_cls",),
    "vit_mean": ("has_cls", "over"),
    "vit_max": ("has_cls", "over"),
    "vit_min": ("has_cls", "over"),
    "vit_cls": ("has_cls",),
    **dict.fromkeys(("global_avg_pool", "global_max_pool", "global_min_pool"), ("over",)),
    **dict.fromkeys(("cnn_mean", "cnn_max", "cnn_min"), ("over",)),
}
POOLINGS = tuple(module for module, arguments in ARGUMENTS.items() if "over" in arguments)
MAKERS: Mapping[str, Callable[[Mapping[str, str], int], PostEncoder]] = {
    "none": lambda _arguments, _points: Identity(),
    "global_avg_pool": partial(_make_mean, "global_avg_pool"),
    "global_max_pool": partial(_make_extreme, "global_max_pool", "max"),
    "global_min_pool": partial(_make_extreme, "global_min_pool", "min"),
    "gem": lambda arguments, _points: pooling.make_gem(arguments),
    "spatial_point": point_sampling.make,
    "cls_token": partial(_make_class_token, "cls_token"),
    "flatten": lambda _arguments, _points: pooling.Flatten(),
    "l2_normalize": lambda _arguments, _points: L2Normalize(),
    "cast": _make_cast,
    # TerraTorch's names
    "cnn_mean": partial(_make_mean, "cnn_mean"),
    "cnn_max": partial(_make_extreme, "cnn_max", "max"),
    "cnn_min": partial(_make_extreme, "cnn_min", "min"),
    "vit_mean": partial(_make_token_pool, "mean"),
    "vit_max": partial(_make_token_pool, "max"),
    "vit_min": partial(_make_token_pool, "min"),
    "vit_cls": partial(_make_class_token, "vit_cls"),
}
OF_REGIONS: Mapping[str, Callable[[Mapping[str, str], int], PostEncoder]] = {
    "region_mean": region_sampling.make_mean,
    "roi_align_mean": region_sampling.make_aligned_mean,
    "roi_align": region_sampling.make_aligned,
}
"""Modules with one value per region."""
