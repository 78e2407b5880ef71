"""The suite `end-to-end`: files to committed rows with real encoders, next to their bounds; and what Prefect costs."""

from collections.abc import Iterator
from pathlib import Path

from genenc_core.bench import data, images, model
from genenc_core.bench.measure import Way, compare, minus
from genenc_core.bench.records import Options, Row, Table

WAYS = model.WAYS
PLAIN = "genenc_core.cli.runners:PlainRunner"
MODELS = ("resnet18", "resnet50", "convnext_tiny")
SHARD_IMAGES = 1024


def run(options: Options) -> Iterator[Table]:
    """Measure extractions with and without Prefect."""
    count = options.pick(128, 64)
    photos = str(images.draw(options.folder / "photos", count))
    rows = [row for name in MODELS[: options.pick(3, 1)] for row in _extractions(options, name, photos, count)]
    yield Table(
        name="end-to-end",
        title="End to end",
        settings=f"{count} JPEG files of 500 x 375, 90 kB, eager models with random weights, batches of {model.BATCH}. "
        "Extractions plan, load, encode, commit and verify; no stage can be faster than the bare forward or decoding.",
        baselines=("bare forward", "decode alone"),
        rows=tuple(rows),
    )
    yield _prefect(options)


def _extractions(options: Options, name: str, photos: str, count: int) -> list[Row]:
    group = name
    given = {"model": name, "weights": "random:0", "batch_size": model.BATCH}
    batches = {"model": name, "batch": model.BATCH, "batches": count // model.BATCH}
    ways = [
        Way(name="bare forward", group=group, program=f"{WAYS}:bare", arguments=batches),
        Way(
            name="decode alone",
            group=group,
            program=f"{data.WAYS}:decoding",
            arguments={"folder": photos, "threads": 2},
        ),
        *(
            Way(name=words, group=group, program=f"{WAYS}:runs", arguments=_runs(options, name, photos, who) | given)
            for words, who in _runners(options).items()
        ),
    ]
    return compare(ways, options)


def _prefect(options: Options) -> Table:
    """Measure what a shard more costs, with little in it: the flow's share of it does not depend on what is in it."""
    most = options.pick(72, 40)
    tiny = {size: str(images.draw(options.folder / f"tiny-{size}", size, width=64, height=48)) for size in (8, most)}
    given = {"model": f"{data.WAYS}:average_pool", "batch_size": 8, "shard_rows": 1}
    runners = _runners(options)
    ways = [
        Way(
            name=f"{words}, {size} shards",
            program=f"{WAYS}:runs",
            arguments=_runs(options, f"tiny-{size}", folder, who) | given,
        )
        for words, who in runners.items()
        for size, folder in tiny.items()
    ]
    rows = compare(ways, options)
    pairs = [(words, rows[2 * at], rows[2 * at + 1]) for at, words in enumerate(runners)]
    shown = [minus(f"{words}, a shard more", more, less, note=_share(more, less)) for words, less, more in pairs]
    return Table(
        name="prefect",
        title="What a shard costs beyond its images",
        unit="shard",
        settings=f"Shards of one small image: the cost of a shard more is the slope from 8 to {most} shards, and with "
        f"Prefect includes its server. The note sets it against a shard of {SHARD_IMAGES} images at 2.5 CPU ms.",
        baselines=("genenc --plain, a shard more",),
        rows=tuple(shown),
    )


def _share(more: Row, less: Row) -> str:
    if not (more.measured and less.measured):
        return more.note or less.note
    slope = minus("", more, less).cpu
    return f"{100 * slope / (SHARD_IMAGES * 2.5e-3):.1f} % of a shard of {SHARD_IMAGES} images"


def _runners(options: Options) -> dict[str, str]:
    """Return who carries out an extraction, by the words for it."""
    return {"genenc --plain": PLAIN, **({} if options.flows is None else {"genenc (Prefect)": options.flows})}


def _runs(options: Options, name: str, folder: str, runner: str) -> dict[str, object]:
    out: Path = options.folder / f"runs-{name}-{runner.rpartition(':')[2]}" / "run"
    return {"folder": folder, "out": str(out), "runner": runner}
