"""The suite `scale`: what a row and a shard more cost, and what memory does, as they grow tenfold and tenfold again."""

from genenc_core.bench import data, images
from genenc_core.bench.measure import Way, compare
from genenc_core.bench.records import Options, Table

WAYS = "genenc_core.bench.scale_ways"


def run(options: Options) -> list[Table]:
    """Measure planning, the status of a run, and whole runs of tiny images."""
    return [_planning(options), _status(options), _images(options)]


def _planning(options: Options) -> Table:
    sizes = (options.pick(100_000, 10_000), options.pick(1_000_000, 100_000))
    ways = [
        Way(name=f"{rows:,} rows", program=f"{WAYS}:planning", arguments=_sized(options, "plan", rows))
        for rows in sizes
    ]
    return Table(
        name="planning",
        title="Planning: a list of images becomes a manifest and an empty store",
        unit="row",
        settings="A Parquet list whose rows are a few real files under other ids; every row's file is asked for.",
        baselines=(f"{sizes[0]:,} rows",),
        rows=tuple(compare(ways, options)),
    )


def _status(options: Options) -> Table:
    sizes = (options.pick(10_000, 1_000), options.pick(100_000, 10_000))
    ways = [
        Way(name=f"{shards:,} shards", program=f"{WAYS}:surveying", arguments=_sized(options, "status", shards))
        for shards in sizes
    ]
    return Table(
        name="status",
        title="The status of a run, by its tally",
        unit="shard",
        settings="A run folder with a record for every shard, in a process that has read it once.",
        baselines=(f"{sizes[0]:,} shards",),
        rows=tuple(compare(ways, options)),
    )


def _images(options: Options) -> Table:
    sizes = (1_000, 10_000, 100_000)[: options.pick(3, 2)]
    ways = []
    for count in sizes:
        options.tell(f"drawing {count:,} images")
        folder = images.draw(options.folder / f"tiny-{count}", count, width=32, height=24)
        given = {"folder": str(folder), "threads": 1, "out": str(options.folder / f"runs-{count}" / "run")}
        ways.append(Way(name=f"{count:,} images", program=f"{data.WAYS}:extraction", arguments=given))
    return Table(
        name="scale-images",
        title="Whole runs of tiny images",
        settings="JPEG files of 32 x 24; the network is an average pool.",
        baselines=(f"{sizes[0]:,} images",),
        rows=tuple(compare(ways, options)),
    )


def _sized(options: Options, name: str, count: int) -> dict[str, object]:
    return {"count": count, "out": str(options.folder / f"{name}-{count}")}
