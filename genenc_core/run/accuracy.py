"""Error of reduced-precision or compiled features against plain float32, measured on a run's first images."""

import dataclasses
import logging
import time
from collections.abc import Sequence

import torch

from genenc_core.encoding import batch_size, engine, tiling
from genenc_core.images.load.loader import ImageLoader
from genenc_core.run import model_cache, precision, records
from genenc_core.run.folder import RunFolder
from genenc_core.runtime import backends
from genenc_core.runtime.execution import Execution

LOGGER = logging.getLogger(__name__)
FIRST_IMAGES = 8
SLOW = 1.5
"""Slowdown against float32 above which the user is warned."""
FAR = 0.1
"""Relative error above which the user is warned."""


def measure(folder: RunFolder, options: records.Options, runner: engine.Engine, images: ImageLoader) -> None:
    """Measure and record the error of a run that is not computed in plain float32, unless already recorded.

    The error of an output slot is |a - b| / |b| over an image's values; the largest and the mean over images are
    recorded. Tiled runs are measured on their first images resized to one tile. Unreadable images are skipped; if none
    is readable, noise is used. No record is written if the float32 model does not fit in memory.

    Raises:
        InputError: the model cannot be loaded in float32.
    """
    if not folder.execution.identity() or folder.objects.size(precision.RECORD) is not None:
        return
    model = model_cache.run_model(folder)
    device = model_cache.device_of(model, options.device)
    own = model_cache.CACHE.load(model, device=device, trust=options.trust)
    found = _pixels(folder, images, own.input_size)
    size = (runner.encoder if isinstance(runner.encoder, tiling.TiledEncoder) else runner).sizer.size
    batches = [found[start : start + size] for start in range(0, len(found), size)]
    least = model.spec.resolved_batch_mode().min
    model = dataclasses.replace(model, execution=Execution())
    try:
        # A compiled model takes one batch size.
        values, seconds = _values(runner, own, batches, least=size if runner.fixed else least)
        other = model_cache.CACHE.load(model, device=device, trust=options.trust, keep=False)
        plain, plain_seconds = _values(runner, other, batches, least=least)
    except (RuntimeError, MemoryError) as error:
        if not batch_size.is_out_of_memory(error):
            raise
        LOGGER.warning("%s: not enough memory to compare with float32: %s", folder.execution.describe(), error)
        return
    errors = {
        slot: (value - plain[slot]).norm(dim=1) / plain[slot].norm(dim=1).clamp_min(1e-30)
        for slot, value in values.items()
    }
    relative_errors = {
        slot: {"largest": float(item.max()), "mean": float(item.mean())} for slot, item in errors.items()
    }
    record = {
        "computed": folder.execution.describe(),
        "device": device,
        "images": len(found),
        "relative_error": relative_errors,
    }
    records.create_json(folder.objects, precision.RECORD, {**record, "measured": records.now()})
    LOGGER.info("%s against float32: %s", folder.execution.describe(), precision.describe_difference(relative_errors))
    worst = max((item["largest"] for item in relative_errors.values()), default=0.0)
    if not worst <= FAR:  # also true for NaN
        LOGGER.warning(
            "features computed in %s differ from float32 by up to %.2g %% of their norm and may be wrong; "
            "extract to another --out without it for float32 features",
            folder.execution.describe(),
            100 * worst,
        )
    if not folder.execution.compile and seconds > SLOW * plain_seconds:
        LOGGER.warning(
            "%s took %.1f times as long as float32 for %d images on this %s, which may not support it in hardware: "
            "extracting to another --out without --precision may be faster",
            folder.execution.describe(),
            seconds / plain_seconds,
            len(found),
            device.partition(":")[0].upper(),
        )


def _values(
    runner: engine.Engine, encoder: backends.Encoder, batches: Sequence[torch.Tensor], *, least: int
) -> tuple[dict[str, torch.Tensor], float]:
    """Return the outputs as float64 `[n, values]` by slot, and the seconds; pad batches to `least` images."""
    parts: dict[str, list[torch.Tensor]] = {}
    began = time.perf_counter()
    for batch in batches:
        with torch.inference_mode():  # as in the engine, to avoid a recompilation
            images = engine.unit_range(engine.padded(batch, least).to(encoder.device))
        for slot, value in runner.call(encoder, images).items():
            parts.setdefault(slot, []).append(value[: len(batch)].cpu().double().flatten(1))
    return {slot: torch.cat(values) for slot, values in parts.items()}, time.perf_counter() - began


def _pixels(folder: RunFolder, images: ImageLoader, size: tuple[int, int]) -> torch.Tensor:
    """Return the first images `[n, C, H, W]`, resized to the model's input size."""
    rows = min(FIRST_IMAGES, folder.store.plan.rows)
    good: list[torch.Tensor] = []
    for batch in images.iter_batches(0, rows):
        good += [pixels for part in batch.parts for pixels in part.clone()]
        batch.release()
    if not good:
        return torch.randint(0, 256, (rows, folder.preprocessing.channel_count, *size), dtype=torch.uint8)
    found = torch.stack(good)
    if tuple(found.shape[2:]) != size:
        found = torch.nn.functional.interpolate(found.float(), size).to(found.dtype)
    return found
