"""How far features in another precision, or compiled, are from plain float32: measured on a run's first images."""

import dataclasses
import logging

import torch

from genenc_core.encoding import engine
from genenc_core.export.execution import Execution
from genenc_core.images.loader import ImageLoader
from genenc_core.run import encoders, precision, records
from genenc_core.run.folder import RunFolder

LOGGER = logging.getLogger(__name__)
FIRST_IMAGES = 8


def measure(folder: RunFolder, options: records.Options, runner: engine.Engine, images: ImageLoader) -> None:
    """Write the record of a run that is not computed in plain float32, unless it has one.

    Of each output slot the error is |a - b| / |b| of an image's values, the largest and the mean over the images. A
    run in tiles is measured on its first images squeezed into one tile. Unreadable images are left out; without any
    other, noise stands for them.

    Raises:
        InputError: the model cannot be had in float32.
    """
    if not folder.execution.identity() or folder.objects.size(precision.RECORD) is not None:
        return
    model = encoders.run_model(folder)
    device = encoders.device_of(model, options.device)
    plain = dataclasses.replace(model, execution=Execution())
    found, count = _pixels(folder, images, encoders.CACHE.load(model, device=device, trust=options.trust).input_size)
    if folder.execution.compile:
        # A compiled model is made for one batch size.
        found = found[torch.arange(runner.sizer.size) % len(found)]
    values = {}
    for name, item in (("own", model), ("plain", plain)):
        encoder = encoders.CACHE.load(item, device=device, trust=options.trust)
        made = runner.call(encoder, found.to(encoder.device).float().div_(255.0))
        values[name] = {slot: value.cpu().double().flatten(1) for slot, value in made.items()}
    errors = {
        slot: ((own - values["plain"][slot]).norm(dim=1) / values["plain"][slot].norm(dim=1).clamp_min(1e-30))[:count]
        for slot, own in values["own"].items()
    }
    told = {slot: {"largest": float(item.max()), "mean": float(item.mean())} for slot, item in errors.items()}
    record = {"computed": folder.execution.describe(), "device": device, "images": count, "relative_error": told}
    records.create_json(folder.objects, precision.RECORD, {**record, "measured": records.now()})
    LOGGER.info("%s against float32: %s", folder.execution.describe(), precision.words(told))


def _pixels(folder: RunFolder, images: ImageLoader, size: tuple[int, int]) -> tuple[torch.Tensor, int]:
    """Return uint8 images `[n, 3, H, W]` of the model's size, and how many there are."""
    rows = min(FIRST_IMAGES, folder.store.plan.rows)
    good = [image.pixels for image in images.iter_rows(0, rows) if image.pixels is not None]
    if not good:
        return torch.randint(0, 256, (rows, 3, *size), dtype=torch.uint8), rows
    found = torch.stack(good)
    if tuple(found.shape[2:]) != size:
        found = torch.nn.functional.interpolate(found.float(), size).to(torch.uint8)
    return found, len(found)
