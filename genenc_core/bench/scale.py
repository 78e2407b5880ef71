"""The suite `scale`: what a row and a shard more cost, and what memory does, as they grow tenfold."""

from typing import Any

from genenc_core.bench import data, images
from genenc_core.bench.measure import Way, afresh, compare
from genenc_core.bench.records import Options, Table

WAYS = "genenc_core.bench.scale_ways"


def run(options: Options) -> list[Table]:
    """Measure planning, the status of a run, and whole runs of tiny images."""
    return [_planning(options), _status(options), _images(options)]


def _planning(options: Options) -> Table:
    return Table(
        name="planning",
        title="Planning: a list of images becomes a manifest and an empty store",
        unit="row",
        settings="A Parquet list whose rows are a few real files under other ids; every row's file is asked for.",
        **_grown(options, "planning", "rows", options.pick(1_000_000, 10_000)),
    )


def _status(options: Options) -> Table:
    return Table(
        name="status",
        title="The status of a run, by its tally",
        unit="shard",
        settings="A run folder with a record for every shard, in a process that has read it once.",
        **_grown(options, "surveying", "shards", options.pick(10_000, 1_000)),
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
        settings="JPEG files of 32 x 24; the network is an average pool; each run in a new process.",
        baselines=(f"{sizes[0]:,} images",),
        rows=tuple(afresh(ways, options)),
    )


def _grown(options: Options, program: str, things: str, fewest: int) -> dict[str, Any]:
    """Return the rows of a table, and the one they are set against: a way with `fewest` things, and ten times them."""
    ways = [
        Way(
            name=f"{count:,} {things}",
            program=f"{WAYS}:{program}",
            arguments={"count": count, "out": str(options.folder / f"{program}-{count}")},
        )
        for count in (fewest, 10 * fewest)
    ]
    return {"baselines": (ways[0].name,), "rows": tuple(compare(ways, options))}
