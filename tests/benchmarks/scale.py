"""Marginal cost of rows and shards, and memory, when their number grows tenfold.

Run: python tests/benchmarks/scale.py [--quick] [--out tests/benchmarks/results-scale.json]
"""

from pathlib import Path
from typing import Any

import suite
from genenc_core.bench import data, images
from genenc_core.bench.measure import Way, compare, measure_in_new_processes
from genenc_core.bench.report import Options, Table

WAYS = Path(__file__).with_name("scale_ways.py")


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
        given = {"folder": str(folder), "workers": 1, "out": str(options.folder / f"runs-{count}" / "run")}
        ways.append(Way(name=f"{count:,} images", program=f"{data.WAYS}:extraction", arguments=given))
    return Table(
        name="scale-images",
        title="Whole runs of tiny images",
        settings="JPEG files of 32 x 24; the network is an average pool; each run in a new process.",
        baselines=(f"{sizes[0]:,} images",),
        rows=tuple(measure_in_new_processes(ways, options)),
    )


def _grown(options: Options, program: str, things: str, fewest: int) -> dict[str, Any]:
    """Return a table's rows and baseline: one way with `fewest` things and one with ten times as many."""
    ways = [
        Way(
            name=f"{count:,} {things}",
            program=f"{WAYS}:{program}",
            arguments={"count": count, "out": str(options.folder / f"{program}-{count}")},
        )
        for count in (fewest, 10 * fewest)
    ]
    return {"baselines": (ways[0].name,), "rows": tuple(compare(ways, options))}


if __name__ == "__main__":
    suite.main("scale", __doc__)
