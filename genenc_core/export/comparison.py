"""Artifact against eager model: random batches, what the eager model makes of them, and the worst difference."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from genenc_core import errors
from genenc_core.export import artifacts
from genenc_core.models import sources, wording


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One random batch, float32 [B, 3, H, W], and the maps that the eager model makes of it."""

    images: torch.Tensor
    expected: tuple[torch.Tensor, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """max |artifact - eager|, and the same over max |eager|."""

    absolute: float
    relative: float


def batches(least: int, most: int) -> tuple[int, ...]:
    """Return the batch sizes to compare at: the smallest, an odd one between, the largest."""
    odd = next((size for size in (3, least + 1, least + 2) if least <= size <= most and size % 2), least)
    return tuple(sorted({least, odd, most}))


def draw_samples(built: sources.BuiltEncoder, batches: Sequence[int]) -> list[Sample]:
    """Run the eager model on two kinds of random images per batch size: noise, and smooth blobs as in photographs."""
    size = (built.preprocessing.height, built.preprocessing.width)
    generator = torch.Generator().manual_seed(0)
    found = []
    for batch in batches:
        noise = torch.rand((batch, 3, *size), generator=generator)
        coarse = torch.rand((batch, 3, 8, 8), generator=generator)
        smooth = torch.nn.functional.interpolate(coarse, size=size, mode="bilinear")
        for images in (noise, smooth.contiguous()):
            with torch.inference_mode():
                found.append(Sample(images=images, expected=built.module(images)))
    return found


def compare(run: artifacts.Runner, samples: Sequence[Sample], *, model_id: str, tolerance: float) -> Difference:
    """Return the worst difference over all samples and outputs.

    Raises:
        ExportError: above the tolerance, not a number, other shapes, or a call that fails.
    """
    found = [difference for sample in samples for difference in _differences(run, sample, model_id)]
    worst = Difference(absolute=max(d.absolute for d in found), relative=max(d.relative for d in found))
    if not worst.relative <= tolerance:
        raise errors.ExportError(
            f"the export {model_id!r} differs from its model: relative error {worst.relative:.3g}, tolerance "
            f"{tolerance:.3g}. Nothing was written. Use another format, or --backend eager; a small excess may be "
            "accepted with a larger --tolerance."
        )
    return worst


def _differences(run: artifacts.Runner, sample: Sample, model_id: str) -> Iterator[Difference]:
    batch = len(sample.images)
    try:
        with torch.inference_mode():
            outputs = run(sample.images)
    except (RuntimeError, ValueError) as error:
        raise errors.ExportError(f"the export {model_id!r} fails at batch {batch}: {wording.reason(error)}.") from error
    shapes = [list(tensor.shape) for tensor in outputs], [list(tensor.shape) for tensor in sample.expected]
    if shapes[0] != shapes[1]:
        raise errors.ExportError(f"the export {model_id!r} gives {shapes[0]} at batch {batch}, its model {shapes[1]}.")
    for got, expected in zip(outputs, sample.expected, strict=True):
        if not (bool(got.isfinite().all()) and bool(expected.isfinite().all())):
            raise errors.ExportError(
                f"model {model_id!r} gives NaN or infinite features at batch {batch}, so its export cannot be "
                "compared. Check its weights."
            )
        absolute = float((got - expected).abs().max())
        scale = float(expected.abs().max())
        relative = absolute / scale if scale else (0.0 if absolute == 0 else math.inf)
        yield Difference(absolute=absolute, relative=relative)
