"""The engine of a run: its encoder, tiled where the run says so, its products and its batch size."""

import contextlib
import dataclasses
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence

from genenc_core import errors, text
from genenc_core.encoding import batching, calls, control, engine, products, size_search, tiling
from genenc_core.export import backends
from genenc_core.run import encoders, outputs_check, records, tiles, turns
from genenc_core.run.folder import RunFolder
from genenc_core.store.objects import join

LOGGER = logging.getLogger(__name__)
LARGEST_SIZE = 2**20
SEARCH_SHARE = 50
"""The search for a batch size may encode one in so many of a run's images."""


def make_engine(folder: RunFolder, options: records.Options) -> engine.Engine:
    """Load a run's encoder and find its batch size.

    Raises:
        InputError: no such device, a batch size out of bounds, a model or artifact that cannot be had.
        StoreError: the model gives other outputs than when the run was made.
        Stopped: the end was asked for.
    """
    model = encoders.run_model(folder)
    device = encoders.device_of(model, options.device)
    control.current().on_phase("loading the model")
    # What the folder says of trust is its author's word; an artifact is loaded by the digest that the run records.
    encoder = encoders.CACHE.load(model, device=device, trust=options.trust)
    outputs_check.refuse_other_outputs(folder, model, device=device, trust=options.trust)
    plan = folder.tiles
    parsed = [products.parse_product(text) for text in folder.identity["products"]]
    points = len(folder.manifest.point_names)
    slots = tiles.outputs(model.spec, parsed, plan)
    wanted = products.build_products(parsed, slots, point_count=points, cells=folder.cells)
    bounds = batching.Bounds.of(model.spec.resolved_batch_mode())
    sizer = batching.BatchSizer(bounds, 1)
    known = _KnownSize(folder, options, bounds, device)
    if known.told() is None:
        control.current().on_phase("choosing the batch size")
    if plan is None:
        runner = untiled_engine(encoder, wanted, sizer, fixed=model.execution.compile)
        compiled = model.execution.compile and known.told() is None
        with _uncompiled(runner, model, device, options) if compiled else contextlib.nullcontext(runner) as measured:
            sizer.size = known.size(
                1, measured, lambda count: measured.trial(count, points), evenly=model.execution.compile
            )
        words = f"{sizer.size} images a batch, {runner.side_by_side} side by side"
        busy = turns.LANES * -(-folder.store.plan.shard_rows // sizer.size)
        if busy < runner.side_by_side and sizer.size > bounds.min:
            LOGGER.warning(
                "batches of %d keep %d of %d cores busy: shards have %d rows, and %d are in work; give a smaller "
                "--batch-size, or let it be found",
                *(sizer.size, busy, runner.side_by_side, folder.store.plan.shard_rows, turns.LANES),
            )
    else:
        slots = tiles.wanted_slots(model.spec, parsed)
        tiled = tiling.TiledEncoder(encoder, plan, slots, sizer)
        runner = engine.Engine(tiled, wanted, batching.BatchSizer(batching.Bounds(min=1, max=None), 1))
        sizer.size = known.size(plan.count, runner, lambda count: runner.call(tiled.trial, count))
        together = tiling.canvases_per_call(plan, slots, sizer.size)
        runner.sizer.size = together
        words = f"tiles {plan.describe()}, {sizer.size} a batch, of {together} images together"
    sizer.on_shrink = known.shrink
    control.current().on_phase("encoding")
    LOGGER.info("%s on %s (%s), %s", text.title(model.spec.model_id), device, folder.backend, words)
    return runner


def untiled_engine(
    encoder: backends.Encoder,
    wanted: Sequence[products.Product],
    sizer: batching.BatchSizer,
    *,
    fixed: bool = False,
) -> engine.Engine:
    """Return the engine of an encoder: with a batch on each core, where the encoder may be called so."""
    side_by_side = calls.cores() if encoder.concurrent else 1
    return engine.Engine(encoder, wanted, sizer, fixed=fixed, side_by_side=side_by_side)


@contextlib.contextmanager
def _uncompiled(
    runner: engine.Engine, model: encoders.ResolvedModel, device: str, options: records.Options
) -> Iterator[engine.Engine]:
    """Give the engine that is measured: every size of a compiled model would have to be compiled first."""
    plain = dataclasses.replace(model, execution=dataclasses.replace(model.execution, compile=False))
    encoder = encoders.CACHE.load(plain, device=device, trust=options.trust, keep=False)
    bounds = batching.Bounds.of(model.spec.resolved_batch_mode())
    measured = engine.Engine(encoder, runner.products, batching.BatchSizer(bounds, 1))
    try:
        yield measured
    finally:
        measured.close()


class _KnownSize:
    """The run's own batch size on one kind of device: found once, kept in its folder, lowered when memory runs out.

    It counts what the model is given at once: images, or tiles.
    """

    def __init__(self, folder: RunFolder, options: records.Options, bounds: batching.Bounds, device: str) -> None:
        self._folder = folder
        self._options = options
        self._bounds = bounds
        self._device = device
        self._key = f"provenance/batch_size-{device.partition(':')[0]}.json"

    def told(self) -> int | None:
        """Return the size asked for, or that in the folder; None for neither."""
        if self._options.batch_size:
            self._bounds.refuse_outside(self._options.batch_size)
            return self._options.batch_size
        if self._folder.objects.size(self._key) is not None:
            return self._bounds.clamp(self._recorded(records.read_json(self._folder.objects, self._key)))
        return None

    def _recorded(self, record: Mapping[str, object]) -> int:
        """Return the size that a record holds.

        Raises:
            StoreError: it holds none.
        """
        size = record.get("size")
        if type(size) is not int or not 0 < size <= LARGEST_SIZE:
            raise errors.StoreError(
                f"{join(self._folder.root, self._key)!r} is damaged: it holds no batch size; delete it, and the batch "
                "size is searched for again"
            )
        return size

    def size(self, per_image: int, runner: engine.Engine, trial: Callable[[int], None], *, evenly: bool = False) -> int:
        """Return the size asked for, or that in the folder, or what a search finds; an image has `per_image` items.

        `evenly`: every batch is filled up, so a shard is to fill its batches alike.
        """
        told = self.told()
        if told is not None:
            return told
        plan = self._folder.store.plan

        def stoppable(count: int) -> None:
            control.current().checkpoint()
            trial(count)

        budget = plan.rows * per_image // SEARCH_SHARE // runner.side_by_side
        device = runner.device
        size = size_search.find_size(
            stoppable, self._bounds, image_budget=budget, memory=device.memory, release=device.release
        )
        device.release()  # what was measured with is another's from here on
        # No batch has rows of two shards, and each core is to have one.
        at_once = min(turns.LANES * plan.shard_rows, plan.rows) * per_image
        size = min(size, plan.shard_rows * per_image, -(-at_once // runner.side_by_side))
        if evenly:
            size = -(-plan.shard_rows // -(-plan.shard_rows // size))
        size = self._bounds.clamp(size)
        record = {"size": size, "device": self._device, "found": records.now()}
        return self._recorded(records.create_json(self._folder.objects, self._key, record))

    def shrink(self, size: int) -> None:
        """Keep a size that memory ran out above, for the next session and other processes to start with."""
        LOGGER.warning("%s ran out of memory: %d a batch from here on", self._device, size)
        record = {"size": size, "device": self._device, "memory_ran_out_above": size, "found": records.now()}
        with contextlib.suppress(errors.StoreError):  # the batch goes on without
            if self._folder.objects.size(self._key) is not None:
                known = records.read_json(self._folder.objects, self._key)
                record["size"] = min(size, self._recorded(known))
            records.write_json(self._folder.objects, self._key, record)
