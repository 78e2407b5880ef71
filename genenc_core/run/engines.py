"""The engine of a run: its encoder, tiled where the run says so, its products and its batch size."""

import logging
from collections.abc import Callable

from genenc_core import text
from genenc_core.encoding import batching, control, engine, products, tiling
from genenc_core.run import encoders, records, tiles
from genenc_core.run.folder import RunFolder

LOGGER = logging.getLogger(__name__)


def make_engine(folder: RunFolder, options: records.Options) -> engine.Engine:
    """Load a run's encoder and find its batch size.

    Raises:
        InputError: no such device, a batch size out of bounds, a model or artifact that cannot be had.
        Stopped: the end was asked for.
    """
    model = encoders.run_model(folder)
    device = encoders.device_of(model, options.device)
    # What the folder says of trust is its author's word; an artifact is loaded by the digest that the run records.
    encoder = encoders.CACHE.load(model, device=device, trust=options.trust)
    plan = folder.tiles
    parsed = [products.parse_product(text) for text in folder.identity["products"]]
    points = len(folder.manifest.point_names)
    wanted = products.build_products(parsed, tiles.outputs(model.spec, parsed, plan), point_count=points)
    bounds = batching.Bounds.of(model.spec.resolved_batch_mode())
    sizer = batching.BatchSizer(bounds, bounds.clamp(batching.FIRST_SIZE))
    if plan is None:
        runner = engine.Engine(encoder, wanted, sizer)
        sizer.size = _size(folder, options, bounds, device, 1, lambda count: runner.trial(count, points))
        words = f"{sizer.size} images a batch"
    else:
        slots = tiles.wanted_slots(model.spec, parsed)
        tiled = tiling.TiledEncoder(encoder, plan, slots, sizer)
        sizer.size = _size(folder, options, bounds, device, plan.count, tiled.trial)
        together = tiling.canvases_per_call(plan, slots, sizer.size)
        runner = engine.Engine(tiled, wanted, batching.BatchSizer(batching.Bounds(min=1, max=None), together))
        words = f"tiles {plan.describe()}, {sizer.size} a batch, of {together} images together"
    LOGGER.info("%s on %s (%s), %s", text.title(model.spec.model_id), device, folder.backend, words)
    return runner


def _size(
    folder: RunFolder,
    options: records.Options,
    bounds: batching.Bounds,
    device: str,
    per_image: int,
    trial: Callable[[int], None],
) -> int:
    """Return the batch size asked for, or the run's own on this kind of device: found once, then kept for it.

    It counts what the model is given at once: images, or tiles, of which each image has `per_image`.
    """
    if options.batch_size:
        bounds.refuse_outside(options.batch_size)
        return options.batch_size
    key = f"provenance/batch_size-{device.partition(':')[0]}.json"
    if folder.objects.size(key) is not None:
        return bounds.clamp(int(str(records.read_json(folder.objects, key)["size"])))
    plan = folder.store.plan

    def stoppable(count: int) -> None:
        control.current().checkpoint()
        trial(count)

    size = batching.find_size(stoppable, bounds, image_budget=plan.rows * per_image // 10)
    size = bounds.clamp(min(size, plan.shard_rows * per_image))
    return int(
        str(records.create_json(folder.objects, key, {"size": size, "device": device, "found": records.now()})["size"])
    )
