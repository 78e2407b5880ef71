"""The ways of the suites `model` and `end-to-end`: an encoder alone, genenc's engine around it, whole extractions."""

import collections
import contextlib
import functools
import importlib
import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from genenc_core.encoding import batching, calls, engine, host_memory, products, size_search
from genenc_core.export import backends
from genenc_core.run import encoders, engines, model_export
from genenc_core.run.parameters import ExtractParameters

Once = Callable[[], float]


@contextlib.contextmanager
def exporting(model: str, form: str, out: str) -> Iterator[Once]:
    """Export a model with random weights."""

    def once() -> float:
        given = model_export.ExportParameters(model=model, out=out, weights="random:0", formats=(form,))  # type: ignore[arg-type]
        return float(len(model_export.export(given)))

    yield once


@contextlib.contextmanager
def bare(model: str, batch: int, batches: int, *, keep: bool = True) -> Iterator[Once]:
    """Encode tensors that are in the device's memory already, and leave the result there.

    `keep`: as in genenc's engine, the host's memory is kept from batch to batch.
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
    """As `bare`, but with a batch on each core."""
    encoder, _wanted = _encoder(model)
    threads = calls.CallThreads(encoder.device, calls.cores())
    pixels = torch.rand(batch, 3, *encoder.input_size, device=encoder.device)

    def once() -> float:
        for call in [threads.submit(encoder, pixels) for _ in range(batches)]:
            call.result()
        return float(batch * batches)

    yield once


@contextlib.contextmanager
def engine_alone(model: str, batch: int, batches: int) -> Iterator[Once]:
    """Give genenc's engine decoded batches: to the device, encoded, reduced to vectors, back on the host."""
    encoder, wanted = _encoder(model)
    runner = engines.untiled_engine(encoder, wanted, batching.BatchSizer(batching.Bounds(min=1, max=None), batch))
    decoded = engine.Batch(
        pixels=torch.randint(0, 256, (batch, 3, *encoder.input_size), dtype=torch.uint8),
        points=torch.zeros(batch, 0, 2, dtype=torch.float64),
        valid=torch.zeros(batch, 0, dtype=torch.bool),
    )

    def once() -> float:
        sent: collections.deque[engine.Ticket] = collections.deque()
        count = -(-batches // runner.side_by_side) * runner.side_by_side  # so that no core is left without
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
    """Find the batch size for a run of so many images; the size is what is counted."""
    encoder, wanted = _encoder(model)
    bounds = batching.Bounds(min=1, max=None)
    runner = engines.untiled_engine(encoder, wanted, batching.BatchSizer(bounds, 1))

    def once() -> float:
        budget = images // engines.SEARCH_SHARE // runner.side_by_side
        trial = functools.partial(runner.trial, point_count=0)
        device = runner.device
        found = size_search.find_size(trial, bounds, image_budget=budget, memory=device.memory, release=device.release)
        return float(found)

    yield once


@contextlib.contextmanager
def runs(folder: str, out: str, runner: str, *, threads: int | None = None, **given: Any) -> Iterator[Once]:
    """Extract into a new run folder each time, by `runner` (`module:class`), whose session stays open.

    `threads`: that torch computes on; None: as many as it takes by itself.
    """
    if threads is not None:
        torch.set_num_threads(threads)
    module, _, name = runner.partition(":")
    numbers = itertools.count()
    who = getattr(importlib.import_module(module), name)()
    Path(out).parent.mkdir(parents=True, exist_ok=True)
    with who.session():

        def once() -> float:
            parameters = ExtractParameters(images=folder, out=f"{out}-{next(numbers)}", **given)
            return float(who.extract(parameters).status.rows)

        yield once


def _encoder(model: str) -> tuple[backends.Encoder, tuple[products.Product, ...]]:
    """Return the encoder of a spec, or of a model's name with random weights, and what would be stored of it."""
    weights = None if model.endswith(".json") else "random:0"
    given = ExtractParameters(images="", model=model, out="", weights=weights)
    found = encoders.resolve_model(given, export_to=None)
    encoder = encoders.CACHE.load(found, device=encoders.device_of(found, "auto"), trust=False)
    chosen = products.default_products(found.spec.outputs, with_points=False, dtype="float32")
    return encoder, products.build_products(list(chosen), found.spec.outputs, point_count=0)


def _wait(encoder: backends.Encoder) -> None:
    if encoder.device.type == "cuda":
        torch.cuda.synchronize(encoder.device)
