"""How far features in another precision, or compiled, are from plain float32: measured on a run's first images."""

import dataclasses
import logging
import time
from collections.abc import Sequence

import torch

from genenc_core.encoding import batching, engine, tiling
from genenc_core.export import backends
from genenc_core.export.execution import Execution
from genenc_core.images.loader import ImageLoader
from genenc_core.run import encoders, precision, records
from genenc_core.run.folder import RunFolder

LOGGER = logging.getLogger(__name__)
FIRST_IMAGES = 8
SLOW = 1.5
"""Times as slow as float32, of which the user is told."""


def measure(folder: RunFolder, options: records.Options, runner: engine.Engine, images: ImageLoader) -> None:
    """Write the record of a run that is not computed in plain float32, unless it has one.

    Of each output slot the error is |a - b| / |b| of an image's values, the largest and the mean over the images. A
    run in tiles is measured on its first images squeezed into one tile. Unreadable images are left out; without any
    other, noise stands for them. Where memory does not hold the model in float32, there is no record.

    Raises:
        InputError: the model cannot be had in float32.
    """
    if not folder.execution.identity() or folder.objects.size(precision.RECORD) is not None:
        return
    model = encoders.run_model(folder)
    device = encoders.device_of(model, options.device)
    own = encoders.CACHE.load(model, device=device, trust=options.trust)
    found = _pixels(folder, images, own.input_size)
    size = (runner.encoder if isinstance(runner.encoder, tiling.TiledEncoder) else runner).sizer.size
    batches = [found[start : start + size] for start in range(0, len(found), size)]
    least = model.spec.resolved_batch_mode().min
    model = dataclasses.replace(model, execution=Execution())
    try:
        # A compiled model is made for one batch size.
        values, seconds = _values(runner, own, batches, least=size if runner.fixed else least)
        other = encoders.CACHE.load(model, device=device, trust=options.trust, keep=False)
        plain, plain_seconds = _values(runner, other, batches, least=least)
    except (RuntimeError, MemoryError) as error:
        if not batching.is_out_of_memory(error):
            raise
        LOGGER.warning("%s: no memory to compare it with float32: %s", folder.execution.describe(), error)
        return
    errors = {
        slot: (value - plain[slot]).norm(dim=1) / plain[slot].norm(dim=1).clamp_min(1e-30)
        for slot, value in values.items()
    }
    told = {slot: {"largest": float(item.max()), "mean": float(item.mean())} for slot, item in errors.items()}
    record = {"computed": folder.execution.describe(), "device": device, "images": len(found), "relative_error": told}
    records.create_json(folder.objects, precision.RECORD, {**record, "measured": records.now()})
    LOGGER.info("%s against float32: %s", folder.execution.describe(), precision.words(told))
    if not folder.execution.compile and seconds > SLOW * plain_seconds:
        LOGGER.warning(
            "%s took %.1f times as long as float32 for %d images on this %s, which may have no instructions for it: "
            "without --precision a run (another --out) may be faster",
            folder.execution.describe(),
            seconds / plain_seconds,
            len(found),
            device.partition(":")[0].upper(),
        )


def _values(
    runner: engine.Engine, encoder: backends.Encoder, batches: Sequence[torch.Tensor], *, least: int
) -> tuple[dict[str, torch.Tensor], float]:
    """Return per slot float64 `[n, values]`, and the seconds; batches of fewer than `least` images are filled up."""
    parts: dict[str, list[torch.Tensor]] = {}
    began = time.perf_counter()
    for batch in batches:
        with torch.inference_mode():  # as in the engine: a compiled model would be compiled once more otherwise
            images = engine.padded(batch, least).to(encoder.device).float().div_(255.0)
        for slot, value in runner.call(encoder, images).items():
            parts.setdefault(slot, []).append(value[: len(batch)].cpu().double().flatten(1))
    return {slot: torch.cat(values) for slot, values in parts.items()}, time.perf_counter() - began


def _pixels(folder: RunFolder, images: ImageLoader, size: tuple[int, int]) -> torch.Tensor:
    """Return uint8 images `[n, 3, H, W]` of the model's size."""
    rows = min(FIRST_IMAGES, folder.store.plan.rows)
    good: list[torch.Tensor] = []
    for batch in images.iter_batches(0, rows):
        good += [pixels for part in batch.parts for pixels in part.clone()]
        batch.release()
    if not good:
        return torch.randint(0, 256, (rows, 3, *size), dtype=torch.uint8)
    found = torch.stack(good)
    if tuple(found.shape[2:]) != size:
        found = torch.nn.functional.interpolate(found.float(), size).to(torch.uint8)
    return found
