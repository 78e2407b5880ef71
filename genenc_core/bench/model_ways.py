"""Programs of the suites `model` and `end-to-end`: a bare encoder, genenc's engine, whole extractions."""

import collections
import contextlib
import functools
import importlib
import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from genenc_core.encoding import batch_size, encoder_threads, engine, products
from genenc_core.run import engine_setup, model_cache, model_export
from genenc_core.run.parameters import ExportParameters, ExtractParameters
from genenc_core.runtime import backends
from genenc_core.system import host_memory

Once = Callable[[], float]


@contextlib.contextmanager
def exporting(model: str, form: str, out: str) -> Iterator[Once]:
    """Export a model with random weights."""

    def once() -> float:
        given = ExportParameters(model=model, out=out, weights="random:0", formats=(form,))  # type: ignore[arg-type]
        return float(len(model_export.export(given)))

    yield once


@contextlib.contextmanager
def bare(model: str, batch: int, batches: int, *, keep: bool = True) -> Iterator[Once]:
    """Encode tensors already in device memory, and leave the results there.

    `keep`: reuse host memory from batch to batch, as genenc's engine does.
    """
    if keep:
        host_memory.keep()
    encoder, _wanted = _encoder(model)
    pixels = torch.rand(batch, 3, *encoder.input_size, device=encoder.device)

    def once() -> float:
        with torch.inference_mode():
            for _ in range(batches):
                encoder(pixels)
            _wait(encoder)
        return float(batch * batches)

    yield once


@contextlib.contextmanager
def bare_side_by_side(model: str, batch: int, batches: int) -> Iterator[Once]:
    """Like `bare`, with one batch per core."""
    encoder, _wanted = _encoder(model)
    threads = encoder_threads.CallThreads(encoder.device, encoder_threads.cores())
    pixels = torch.rand(batch, 3, *encoder.input_size, device=encoder.device)

    def once() -> float:
        for call in [threads.submit(encoder, pixels) for _ in range(batches)]:
            call.result()
        return float(batch * batches)

    yield once


@contextlib.contextmanager
def engine_alone(model: str, batch: int, batches: int) -> Iterator[Once]:
    """Run decoded batches through genenc's engine: transfer, encode, reduce to vectors, transfer back."""
    encoder, wanted = _encoder(model)
    runner = engine_setup.untiled_engine(
        encoder, wanted, batch_size.BatchSizer(batch_size.Bounds(min=1, max=None), batch)
    )
    decoded = engine.Batch(
        pixels=torch.randint(0, 256, (batch, 3, *encoder.input_size), dtype=torch.uint8),
        points=torch.zeros(batch, 0, 2, dtype=torch.float64),
        valid=torch.zeros(batch, 0, dtype=torch.bool),
    )

    def once() -> float:
        sent: collections.deque[engine.Ticket] = collections.deque()
        count = -(-batches // runner.side_by_side) * runner.side_by_side  # a multiple, so that every core has work
        for _ in range(count):
            sent.append(runner.submit(decoded))
            if len(sent) == runner.in_flight:
                sent.popleft().result()
        for ticket in sent:
            ticket.result()
        return float(batch * count)

    yield once


@contextlib.contextmanager
def searching(model: str, images: int) -> Iterator[Once]:
    """Search the batch size for a run of `images` images; the returned unit count is the size."""
    encoder, wanted = _encoder(model)
    bounds = batch_size.Bounds(min=1, max=None)
    runner = engine_setup.untiled_engine(encoder, wanted, batch_size.BatchSizer(bounds, 1))

    def once() -> float:
        budget = images // engine_setup.SEARCH_SHARE // runner.side_by_side
        trial = functools.partial(runner.trial, point_count=0)
        device = runner.device
        found = batch_size.find_size(trial, bounds, image_budget=budget, memory=device.memory, release=device.release)
        return float(found)

    yield once


@contextlib.contextmanager
def runs(folder: str, out: str, runner: str, *, threads: int | None = None, **given: Any) -> Iterator[Once]:
    """Extract into a new run folder each time with `runner` (`module:class`), whose session stays open.

    `threads`: number of torch threads; None for torch's default.
    """
    if threads is not None:
        torch.set_num_threads(threads)
    module, _, name = runner.partition(":")
    numbers = itertools.count()
    instance = getattr(importlib.import_module(module), name)()
    Path(out).parent.mkdir(parents=True, exist_ok=True)
    with instance.session():

        def once() -> float:
            parameters = ExtractParameters(images=folder, out=f"{out}-{next(numbers)}", **given)
            return float(instance.extract(parameters).status.rows)

        yield once


def _encoder(model: str) -> tuple[backends.Encoder, tuple[products.Product, ...]]:
    """Return the encoder of a spec, or of a model name with random weights, and its default products."""
    weights = None if model.endswith(".json") else "random:0"
    given = ExtractParameters(images="", model=model, out="", weights=weights)
    found = model_cache.resolve_model(given, export_to=None)
    encoder = model_cache.CACHE.load(found, device=model_cache.device_of(found, "auto"), trust=False)
    chosen = products.default_products(found.spec.outputs, with_points=False, dtype="float32")
    return encoder, products.build_products(list(chosen), found.spec.outputs, point_count=0)


def _wait(encoder: backends.Encoder) -> None:
    if encoder.device.type == "cuda":
        torch.cuda.synchronize(encoder.device)
