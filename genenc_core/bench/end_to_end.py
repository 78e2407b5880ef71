"""The suite `end-to-end`: from files to committed rows with real encoders, their bounds, and Prefect's overhead."""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from genenc_core.bench import data, images, model
from genenc_core.bench.measure import Way, slopes
from genenc_core.bench.report import Options, Row, Table

WAYS = model.WAYS
PLAIN = "genenc_core.cli.runners:PlainRunner"
SHARD_IMAGES = 1024
SIDE_BY_SIDE = "bare forward, a batch on each core"


def run(options: Options) -> Iterator[Table]:
    """Measure extractions with and without Prefect."""
    counts = (4 * model.BATCH, options.pick(40, 20) * model.BATCH)
    photos = {count: str(images.draw(options.folder / f"photos-{count}", count)) for count in counts}
    rows = [row for name in model.MODELS[: options.pick(3, 1)] for row in _extractions(options, name, photos)]
    yield Table(
        name="end-to-end",
        title="End to end",
        settings=f"Marginal cost per image, from {counts[0]} to {counts[1]} JPEG files of 500 x 375, 90 kB, with "
        f"eager models, random weights and batches of {model.BATCH}. Extractions plan, load, encode, commit and "
        "verify. The bare forward is torch's own, with all cores on one batch; genenc's engine runs one batch per "
        "core, as does the second bare forward.",
        baselines=("bare forward", SIDE_BY_SIDE, "decode alone"),
        rows=tuple(rows),
    )
    yield _prefect(options)


def _extractions(options: Options, name: str, photos: Mapping[int, str]) -> list[Row]:
    def bare(count: int) -> Way:
        return forward("bare forward", "bare", count)

    def side_by_side(count: int) -> Way:
        return forward(SIDE_BY_SIDE, "bare_side_by_side", count)

    def forward(label: str, way: str, count: int) -> Way:
        settings = {"model": name, "batch": model.BATCH, "batches": count // model.BATCH}
        return Way(name=label, group=name, program=f"{WAYS}:{way}", arguments=settings)

    def decoding(count: int) -> Way:
        settings = {"folder": photos[count], "workers": 2}
        return Way(name="decode alone", group=name, program=f"{data.WAYS}:decoding", arguments=settings)

    def extraction(label: str, count: int) -> Way:
        settings = {"model": name, "weights": "random:0", "batch_size": model.BATCH}
        return _run(options, label, f"{name}-{count}", photos[count], settings, group=name)

    ways: list[Callable[[int], Way]] = [
        bare,
        side_by_side,
        decoding,
        *(functools.partial(extraction, label) for label in _runners(options)),
    ]
    smaller, larger = photos
    return slopes(ways, (smaller, larger), options)


def _prefect(options: Options) -> Table:
    """Measure the marginal cost of a small shard: the flow's overhead does not depend on its content."""
    counts = (8, options.pick(72, 40))
    tiny = {count: str(images.draw(options.folder / f"tiny-{count}", count, width=64, height=48)) for count in counts}
    # A second thread would only busy-wait after each shard's one image.
    settings = {"model": f"{data.WAYS}:average_pool", "batch_size": 8, "shard_rows": 1, "threads": 1}

    def shards(label: str, count: int) -> Way:
        return _run(options, label, f"tiny-{count}", tiny[count], settings)

    rows = slopes([functools.partial(shards, label) for label in _runners(options)], counts, options)
    return Table(
        name="prefect",
        title="What a shard costs beyond its images",
        unit="shard",
        settings=f"Shards of one small image, with torch on one thread: the marginal cost of a shard is the slope from "
        f"{counts[0]} to {counts[1]} shards, and with Prefect includes its server. The note relates it to a shard of "
        f"{SHARD_IMAGES} images at 2.5 CPU ms.",
        baselines=("genenc --plain",),
        rows=tuple(dataclasses.replace(row, note=_share(row)) for row in rows),
    )


def _share(shard: Row) -> str:
    if shard.cpu is None or not shard.measured:
        return shard.note
    return f"{100 * shard.cpu / (SHARD_IMAGES * 2.5e-3):.1f} % of a shard of {SHARD_IMAGES} images"


def _run(
    options: Options, label: str, name: str, folder: str, settings: Mapping[str, object], *, group: str = ""
) -> Way:
    """Return an extraction by the runner with this label."""
    runner = _runners(options)[label]
    out: Path = options.folder / f"runs-{name}-{runner.rpartition(':')[2]}" / "run"
    arguments = {"folder": folder, "out": str(out), "runner": runner, **settings}
    return Way(name=label, group=group, program=f"{WAYS}:runs", arguments=arguments)


def _runners(options: Options) -> dict[str, str]:
    """Return the runners by label."""
    return {"genenc --plain": PLAIN, **({} if options.flows is None else {"genenc (Prefect)": options.flows})}
