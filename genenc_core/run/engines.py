"""The engine of a run: its encoder, tiled where the run says so, its products and its batch size."""

import logging
from collections.abc import Callable, Sequence

from genenc_core import spec
from genenc_core.encoding import batching, control, engine, products, tile_plan, tiling
from genenc_core.export import backends
from genenc_core.run import encoders, records
from genenc_core.run.folder import RunFolder

LOGGER = logging.getLogger(__name__)


def wanted_slots(
    found: spec.RuntimeModelSpec, wanted: Sequence[products.ProductSpec | products.Product]
) -> tuple[spec.SlotSpec, ...]:
    """Return the model's output slots that products take; a product without one takes the first."""
    names = {product.slot or found.outputs[0].name for product in wanted}
    return tuple(slot for slot in found.outputs if slot.name in names)


def outputs(
    found: spec.RuntimeModelSpec, wanted: Sequence[products.ProductSpec], tiles: tile_plan.TilePlan | None
) -> tuple[spec.SlotSpec, ...]:
    """Return the output slots as products meet them; with tiles, those that they take are of the whole canvas."""
    if tiles is None:
        return found.outputs
    taken = wanted_slots(found, wanted)
    return tuple(tiles.stitched(slot) if slot in taken else slot for slot in found.outputs)


def make_engine(folder: RunFolder, options: records.Options) -> engine.Engine:
    """Load a run's encoder and find its batch size.

    Raises:
        InputError: no such device, a batch size out of bounds, a model or artifact that cannot be had.
        Stopped: the end was asked for.
    """
    device = str(backends.resolve_device(options.device))
    model = encoders.run_model(folder)
    encoder = encoders.CACHE.load(model, device=device, trust=options.trust or folder.given.trust)
    tiles = folder.tiles
    parsed = [products.parse_product(text) for text in folder.identity["products"]]
    points = len(folder.manifest.point_names)
    wanted = products.build_products(parsed, outputs(model.spec, parsed, tiles), point_count=points)
    bounds = batching.Bounds.of(model.spec.resolved_batch_mode())
    sizer = batching.BatchSizer(bounds, bounds.clamp(batching.FIRST_SIZE))
    slots = wanted_slots(model.spec, parsed)
    if tiles is None:
        runner = engine.Engine(encoder, wanted, sizer)
        sizer.size = _size(folder, options, bounds, device, 1, lambda count: runner.trial(count, points))
        words = f"{sizer.size} images a batch"
    else:
        tiled = tiling.TiledEncoder(encoder, tiles, slots, sizer)
        sizer.size = _size(folder, options, bounds, device, tiles.count, tiled.trial)
        together = tiling.canvases_per_call(tiles, slots, sizer.size)
        runner = engine.Engine(tiled, wanted, batching.BatchSizer(batching.Bounds(min=1, max=None), together))
        words = f"tiles {tiles.describe()}, {sizer.size} a batch, of {together} images together"
    LOGGER.info("%s on %s (%s), %s", model.spec.model_id, device, folder.backend, words)
    return runner


def _size(
    folder: RunFolder,
    options: records.Options,
    bounds: batching.Bounds,
    device: str,
    tiles: int,
    trial: Callable[[int], None],
) -> int:
    """Return the batch size asked for, or the run's own on this kind of device: found once, then kept for it.

    It counts what the model is given at once: images, or the tiles of which each image has `tiles`.
    """
    if options.batch_size:
        bounds.refuse_outside(options.batch_size)
        return options.batch_size
    path = folder.root / "provenance" / f"batch_size-{device.partition(':')[0]}.json"
    if path.exists():
        return bounds.clamp(int(str(records.read_json(path)["size"])))
    plan = folder.store.plan

    def stoppable(count: int) -> None:
        control.current().checkpoint()
        trial(count)

    size = batching.find_size(stoppable, bounds, image_budget=plan.rows * tiles // 10)
    size = bounds.clamp(min(size, plan.shard_rows * tiles))
    return int(str(records.create_json(path, {"size": size, "device": device, "found": records.now()})["size"]))
