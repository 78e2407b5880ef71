"""Set up a run's engine: encoder, tiling, products and batch size."""

import contextlib
import dataclasses
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence

from genenc_core import errors, text
from genenc_core.encoding import batch_size, cancellation, encoder_threads, engine, products, tiling
from genenc_core.run import decisions, load_order, margins, model_cache, outputs_check, records, tiles
from genenc_core.run.folder import RunFolder, batch_size_key
from genenc_core.runtime import backends
from genenc_core.store.backends.objects import join

LOGGER = logging.getLogger(__name__)
LARGEST_SIZE = 2**20
SEARCH_SHARE = 50
"""The batch size search may encode at most 1 / SEARCH_SHARE of a run's images."""


def make_engine(folder: RunFolder, options: records.Options) -> engine.Engine:
    """Load a run's encoder and find its batch size.

    Raises:
        InputError: no such device, a batch size out of bounds, or a model or artifact that cannot be loaded.
        StoreError: the model's outputs differ from those when the run was made.
        Stopped: a stop was requested.
    """
    model = model_cache.run_model(folder)
    device = model_cache.device_of(model, options.device)
    cancellation.current().on_phase("loading the model")
    # Trust comes from this session's options, not from the folder; artifacts are checked against the recorded digest.
    encoder = model_cache.CACHE.load(model, device=device, trust=options.trust)
    outputs_check.refuse_other_outputs(folder, model, device=device, trust=options.trust)
    plan = folder.tiles
    parsed, wanted = tiles.recorded_products(folder, model.spec)
    points = len(folder.manifest.point_names)
    decides = None
    if decisions.KEY in folder.identity:
        cancellation.current().on_phase("comparing float32 with float64")
        encoder, decides = margins.encoder_of(folder, encoder, wanted)
    bounds = batch_size.Bounds.of(model.spec.resolved_batch_mode())
    sizer = batch_size.BatchSizer(bounds, 1)
    known = _KnownSize(folder, options, bounds, device)
    if known.current() is None:
        cancellation.current().on_phase("choosing the batch size")
    if plan is None:
        runner = untiled_engine(encoder, wanted, sizer, fixed=model.execution.compile)
        compiled = model.execution.compile and known.current() is None
        with _uncompiled(runner, model, device, options) if compiled else contextlib.nullcontext(runner) as measured:
            sizer.size = known.size(
                1, measured, lambda count: measured.trial(count, points), evenly=model.execution.compile
            )
        words = f"{sizer.size} images per batch, {runner.side_by_side} concurrent"
        busy = load_order.LANES * -(-folder.store.plan.shard_rows // sizer.size)
        if busy < runner.side_by_side and sizer.size > bounds.min:
            LOGGER.warning(
                "batches of %d keep only %d of %d cores busy: shards have %d rows and %d are encoded at a time; give "
                "a smaller --batch-size, or auto",
                *(sizer.size, busy, runner.side_by_side, folder.store.plan.shard_rows, load_order.LANES),
            )
    else:
        slots = tiles.wanted_slots(model.spec, parsed)
        tiled = tiling.TiledEncoder(encoder, plan, slots, sizer)
        runner = engine.Engine(tiled, wanted, batch_size.BatchSizer(batch_size.Bounds(min=1, max=None), 1))
        sizer.size = known.size(plan.count, runner, lambda count: runner.call(tiled.trial, count))
        together = tiling.canvases_per_call(plan, slots, sizer.size, channels=tiled.channels)
        runner.sizer.size = together
        words = f"tiles {plan.describe()}, {sizer.size} per batch, from {together} images at a time"
    sizer.on_shrink = known.shrink
    runner.reproducible = decides
    cancellation.current().on_phase("encoding")
    LOGGER.info("%s on %s (%s), %s", text.title(model.spec.model_id), device, folder.backend, words)
    return runner


def untiled_engine(
    encoder: backends.Encoder,
    wanted: Sequence[products.Product],
    sizer: batch_size.BatchSizer,
    *,
    fixed: bool = False,
) -> engine.Engine:
    """Return the engine of an encoder, with one batch per core if the encoder supports concurrent calls."""
    side_by_side = encoder_threads.cores() if encoder.concurrent else 1
    return engine.Engine(encoder, wanted, sizer, fixed=fixed, side_by_side=side_by_side)


@contextlib.contextmanager
def _uncompiled(
    runner: engine.Engine, model: model_cache.ResolvedModel, device: str, options: records.Options
) -> Iterator[engine.Engine]:
    """Yield an engine without compilation for measuring: each batch size of a compiled model would be compiled."""
    plain = dataclasses.replace(model, execution=dataclasses.replace(model.execution, compile=False))
    encoder = model_cache.CACHE.load(plain, device=device, trust=options.trust, keep=False)
    bounds = batch_size.Bounds.of(model.spec.resolved_batch_mode())
    measured = engine.Engine(encoder, runner.products, batch_size.BatchSizer(bounds, 1))
    try:
        yield measured
    finally:
        measured.close()


class _KnownSize:
    """The run's batch size on one kind of device: searched once, recorded in its folder, lowered on out-of-memory.

    It counts the items per model call: images, or tiles.
    """

    def __init__(self, folder: RunFolder, options: records.Options, bounds: batch_size.Bounds, device: str) -> None:
        self._folder = folder
        self._options = options
        self._bounds = bounds
        self._device = device
        self._key = batch_size_key(device)

    def current(self) -> int | None:
        """Return the requested or recorded size, None if there is neither."""
        if self._options.batch_size:
            self._bounds.refuse_outside(self._options.batch_size)
            return self._options.batch_size
        if self._folder.objects.size(self._key) is not None:
            return self._bounds.clamp(self._recorded(records.read_json(self._folder.objects, self._key)))
        return None

    def _recorded(self, record: Mapping[str, object]) -> int:
        """Return the size in a record.

        Raises:
            StoreError: it has no valid size.
        """
        size = record.get("size")
        if type(size) is not int or not 0 < size <= LARGEST_SIZE:
            raise errors.StoreError(
                f"{join(self._folder.root, self._key)!r} is damaged: it holds no batch size; delete it and the batch "
                "size is searched again"
            )
        return size

    def size(self, per_image: int, runner: engine.Engine, trial: Callable[[int], None], *, evenly: bool = False) -> int:
        """Return the requested or recorded size, else search for one; an image has `per_image` items.

        `evenly`: batches are padded, so choose a size that divides a shard into equally full batches.
        """
        current = self.current()
        if current is not None:
            return current
        plan = self._folder.store.plan

        def stoppable(count: int) -> None:
            cancellation.current().raise_if_cancelled()
            trial(count)

        budget = plan.rows * per_image // SEARCH_SHARE // runner.side_by_side
        device = runner.device
        size = batch_size.find_size(
            stoppable, self._bounds, image_budget=budget, memory=device.memory, release=device.release
        )
        device.release()  # free the memory used for measuring
        # A batch never spans two shards, and each core should get one.
        at_once = min(load_order.LANES * plan.shard_rows, plan.rows) * per_image
        size = min(size, plan.shard_rows * per_image, -(-at_once // runner.side_by_side))
        if evenly:
            size = -(-plan.shard_rows // -(-plan.shard_rows // size))
        size = self._bounds.clamp(size)
        record = {"size": size, "device": self._device, "found": records.now()}
        return self._recorded(records.create_json(self._folder.objects, self._key, record))

    def shrink(self, size: int) -> None:
        """Record a smaller size after running out of memory, for later sessions and other processes."""
        LOGGER.warning("%s ran out of memory: batch size reduced to %d", self._device, size)
        record = {"size": size, "device": self._device, "memory_ran_out_above": size, "found": records.now()}
        with contextlib.suppress(errors.StoreError):  # not essential: the batch itself continues
            if self._folder.objects.size(self._key) is not None:
                known = records.read_json(self._folder.objects, self._key)
                record["size"] = min(size, self._recorded(known))
            records.write_json(self._folder.objects, self._key, record)
