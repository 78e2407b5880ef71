"""Artifacts against their eager model: random images, what the model makes of them, and the worst difference."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch

from genenc_core import errors
from genenc_core.export.formats import record
from genenc_core.models import sources, wording

Shape = tuple[int, int, int]
"""images, height, width"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """An artifact to compare, and the shapes of image batches to do it at."""

    name: str
    run: record.Runner
    shapes: tuple[Shape, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """max |artifact - eager|, and the same over max |eager|."""

    absolute: float
    relative: float


def batches(least: int, most: int) -> tuple[int, ...]:
    """Return the batch sizes to compare at: the smallest, an odd one between, the largest."""
    odd = next((size for size in (3, least + 1, least + 2) if least <= size <= most and size % 2), least)
    return tuple(sorted({least, odd, most}))


def draw(shape: Shape) -> Iterator[torch.Tensor]:
    """Yield two kinds of random images [B, 3, H, W] in [0, 1]: noise, and smooth blobs as in photographs."""
    count, height, width = shape
    generator = torch.Generator().manual_seed(0)
    yield torch.rand((count, 3, height, width), generator=generator)
    coarse = torch.rand((count, 3, 8, 8), generator=generator)
    yield torch.nn.functional.interpolate(coarse, size=(height, width), mode="bilinear").contiguous()


def compare(
    built: sources.BuiltEncoder, candidates: Sequence[Candidate], *, tolerance: float
) -> Mapping[str, Difference]:
    """Return the worst difference of each candidate over its shapes and all outputs.

    One batch is held at a time, and the eager model runs it once for all candidates.

    Raises:
        ExportError: a difference above the tolerance, not a number, other shapes, or a call that fails.
    """
    worst = {candidate.name: Difference(absolute=0.0, relative=0.0) for candidate in candidates}
    for shape in sorted({shape for candidate in candidates for shape in candidate.shapes}):
        for images in draw(shape):
            with torch.inference_mode():
                expected = built.module(images)
            for candidate in candidates:
                if shape in candidate.shapes:
                    found = _difference(candidate, images, expected)
                    _refuse_above(tolerance, found, candidate.name, shape)
                    worst[candidate.name] = _larger(worst[candidate.name], found)
    return worst


def _refuse_above(tolerance: float, found: Difference, name: str, shape: Shape) -> None:
    if not found.relative <= tolerance:
        raise errors.ExportError(
            f"the export {name!r} differs from its model: relative error {found.relative:.3g} at {_words(shape)}, "
            f"tolerance {tolerance:.3g}. Nothing was written. Use another format, or --backend eager."
        )


def _difference(candidate: Candidate, images: torch.Tensor, expected: Sequence[torch.Tensor]) -> Difference:
    name, at = candidate.name, _words((images.shape[0], images.shape[2], images.shape[3]))
    try:
        with torch.inference_mode():
            outputs = candidate.run(images)
    except Exception as error:  # every runtime has exceptions of its own
        raise errors.ExportError(f"the export {name!r} fails at {at}: {wording.reason(error)}.") from error
    shapes = [list(tensor.shape) for tensor in outputs], [list(tensor.shape) for tensor in expected]
    if shapes[0] != shapes[1]:
        raise errors.ExportError(f"the export {name!r} gives {shapes[0]} at {at}, its model {shapes[1]}.")
    found = Difference(absolute=0.0, relative=0.0)
    for got, wanted in zip(outputs, expected, strict=True):
        if not (bool(got.isfinite().all()) and bool(wanted.isfinite().all())):
            raise errors.ExportError(
                f"model {name!r} gives NaN or infinite features at {at}, so its export cannot be compared. Check its "
                "weights."
            )
        absolute = float((got - wanted).abs().max())
        scale = float(wanted.abs().max())
        relative = absolute / scale if scale else (0.0 if absolute == 0 else math.inf)
        found = _larger(found, Difference(absolute=absolute, relative=relative))
    return found


def _larger(one: Difference, other: Difference) -> Difference:
    return Difference(absolute=max(one.absolute, other.absolute), relative=max(one.relative, other.relative))


def _words(shape: Shape) -> str:
    return f"batch {shape[0]} of {shape[1]} x {shape[2]} pixels"
