"""Comparison of artifacts with their eager model on random images, and measurement of time and peak memory."""

import math
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch

from genenc_core import errors
from genenc_core.models import resolve
from genenc_core.runtime.formats import interface
from genenc_core.system import proc

PERIOD_SECONDS = 0.02
Shape = tuple[int, int, int]
"""images, height, width"""


class Meter:
    """Context manager that measures wall time and peak memory of its body.

    `peak_rss_bytes` is the largest sum of resident memory (VmRSS) of this process and its descendants, sampled every
    20 ms: memory in use before is included, shorter peaks may be missed, and shared pages count once per process. It is
    None without /proc (on systems other than Linux).
    """

    def __init__(self) -> None:
        self.seconds = 0.0
        self.peak_rss_bytes: int | None = None
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="genenc-meter", daemon=True)

    def __enter__(self) -> "Meter":
        self._started = time.perf_counter()
        self._sample()
        self._thread.start()
        return self

    def __exit__(self, *_details: object) -> None:
        self.seconds = time.perf_counter() - self._started
        self._done.set()
        self._thread.join()
        self._sample()

    def _watch(self) -> None:
        while not self._done.wait(PERIOD_SECONDS):
            self._sample()

    def _sample(self) -> None:
        own = proc.resident_bytes()
        if own is not None:
            resident = own + sum(proc.resident_bytes(child) or 0 for child in proc.descendants())
            self.peak_rss_bytes = max(resident, self.peak_rss_bytes or 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """An artifact to compare, and the shapes of image batches for the comparison."""

    name: str
    run: interface.Runner
    shapes: tuple[Shape, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """max |artifact - eager|, absolute and relative to max |eager|."""

    absolute: float
    relative: float


def batches(batch_min: int, batch_max: int) -> tuple[int, ...]:
    """Return the batch sizes to compare at: the smallest, an odd one in between, and the largest."""
    odd = next(
        (size for size in (3, batch_min + 1, batch_min + 2) if batch_min <= size <= batch_max and size % 2), batch_min
    )
    return tuple(sorted({batch_min, odd, batch_max}))


def draw(shape: Shape, *, channels: int = 3) -> Iterator[torch.Tensor]:
    """Yield two batches of random images [B, channels, H, W] in [0, 1]: noise, and smooth blobs as in photographs."""
    count, height, width = shape
    generator = torch.Generator().manual_seed(0)
    yield torch.rand((count, channels, height, width), generator=generator)
    coarse = torch.rand((count, channels, 8, 8), generator=generator)
    yield torch.nn.functional.interpolate(coarse, size=(height, width), mode="bilinear").contiguous()


def compare(
    built: resolve.BuiltEncoder, candidates: Sequence[Candidate], *, tolerance: float
) -> Mapping[str, Difference]:
    """Return the worst difference of each candidate over its shapes and all outputs.

    Only one batch is in memory at a time, and the eager model runs once per batch for all candidates.

    Raises:
        ExportError: a difference above the tolerance, NaN or infinite features, other shapes, or a failing call.
    """
    worst = {candidate.name: Difference(absolute=0.0, relative=0.0) for candidate in candidates}
    for shape in sorted({shape for candidate in candidates for shape in candidate.shapes}):
        for images in draw(shape, channels=built.preprocessing.channel_count):
            with torch.inference_mode():
                expected = built.module(images.clone())  # a model may write to its input
            for candidate in candidates:
                if shape in candidate.shapes:
                    difference = _difference(candidate, images, expected)
                    _check_tolerance(tolerance, difference, candidate.name, shape)
                    worst[candidate.name] = _larger(worst[candidate.name], difference)
    return worst


def _check_tolerance(tolerance: float, difference: Difference, name: str, shape: Shape) -> None:
    if not difference.relative <= tolerance:
        raise errors.ExportError(
            f"the export {name!r} differs from its model: relative error {difference.relative:.3g} for "
            f"{_describe(shape)}, tolerance {tolerance:.3g}. Nothing was written. Use another format, or --backend "
            "eager."
        )


def _difference(candidate: Candidate, images: torch.Tensor, expected: Sequence[torch.Tensor]) -> Difference:
    name, batch = candidate.name, _describe((images.shape[0], images.shape[2], images.shape[3]))
    try:
        with torch.inference_mode():
            outputs = candidate.run(images.clone())
    except Exception as error:  # every runtime has its own exceptions
        raise errors.ExportError(f"the export {name!r} fails for {batch}: {errors.reason(error)}.") from error
    shapes = [list(tensor.shape) for tensor in outputs], [list(tensor.shape) for tensor in expected]
    if shapes[0] != shapes[1]:
        raise errors.ExportError(f"the export {name!r} returns {shapes[0]} for {batch}, its model {shapes[1]}.")
    worst = Difference(absolute=0.0, relative=0.0)
    for actual, reference in zip(outputs, expected, strict=True):
        if not (bool(actual.isfinite().all()) and bool(reference.isfinite().all())):
            raise errors.ExportError(
                f"model {name!r} returns NaN or infinite features for {batch}, so its export cannot be compared. Check "
                "its weights."
            )
        absolute = float((actual - reference).abs().max())
        scale = float(reference.abs().max())
        relative = absolute / scale if scale else (0.0 if absolute == 0 else math.inf)
        worst = _larger(worst, Difference(absolute=absolute, relative=relative))
    return worst


def _larger(one: Difference, other: Difference) -> Difference:
    return Difference(absolute=max(one.absolute, other.absolute), relative=max(one.relative, other.relative))


def _describe(shape: Shape) -> str:
    return f"a batch of {shape[0]} of {shape[1]} x {shape[2]} pixels"
