"""The suite `end-to-end`: files to committed rows with real encoders, next to their bounds; and what Prefect costs."""

from collections.abc import Iterator, Mapping
from pathlib import Path

from genenc_core.bench import data, images, model
from genenc_core.bench.measure import Way, compare, minus, slopes
from genenc_core.bench.records import Options, Row, Table

WAYS = model.WAYS
PLAIN = "genenc_core.cli.runners:PlainRunner"
MODELS = ("resnet18", "convnext_tiny", "resnet50")
SHARD_IMAGES = 1024


def run(options: Options) -> Iterator[Table]:
    """Measure extractions with and without Prefect."""
    counts = (4 * model.BATCH, options.pick(40, 20) * model.BATCH)
    photos = {count: str(images.draw(options.folder / f"photos-{count}", count)) for count in counts}
    rows = [row for name in MODELS[: options.pick(3, 1)] for row in _extractions(options, name, photos)]
    yield Table(
        name="end-to-end",
        title="End to end",
        settings=f"What an image more costs, from {counts[0]} to {counts[1]} JPEG files of 500 x 375, 90 kB, with "
        f"eager models of random weights and batches of {model.BATCH}. Extractions plan, load, encode, commit and "
        "verify; no stage can be faster than the bare forward or decoding.",
        baselines=("bare forward", "decode alone"),
        rows=tuple(rows),
    )
    yield _prefect(options)


def _extractions(options: Options, name: str, photos: Mapping[int, str]) -> list[Row]:
    ways = [
        [
            Way(
                name="bare forward",
                group=name,
                program=f"{WAYS}:bare",
                arguments={"model": name, "batch": model.BATCH, "batches": count // model.BATCH},
            ),
            Way(
                name="decode alone",
                group=name,
                program=f"{data.WAYS}:decoding",
                arguments={"folder": folder, "threads": 2},
            ),
            *(
                Way(
                    name=words,
                    group=name,
                    program=f"{WAYS}:runs",
                    arguments=_runs(options, f"{name}-{count}", folder, who)
                    | {"model": name, "weights": "random:0", "batch_size": model.BATCH},
                )
                for words, who in _runners(options).items()
            ),
        ]
        for count, folder in photos.items()
    ]
    return slopes([(less, more) for less, more in zip(*ways, strict=True)], options)


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
