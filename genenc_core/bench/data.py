"""The suite `data`: what an image more costs from its file to its committed row, with a network that costs nothing.

Slopes between two numbers of images, for a run's fixed costs are those of the suites `start` and `end-to-end`.
"""

import functools
from collections.abc import Iterator, Mapping
from pathlib import Path

from genenc_core.bench import images
from genenc_core.bench.measure import Way, slopes
from genenc_core.bench.records import Options, Table
from genenc_core.text import plural

WAYS = "genenc_core.bench.data_ways"
THREADS = (1, 2)
SHARED_ROWS = 64


def run(options: Options) -> Iterator[Table]:
    """Measure decoding, resizing, a plain DataLoader, the loader and the extraction, with one thread and with two."""
    counts = (256, options.pick(4352, 1280))
    options.tell(f"drawing {counts[1]} images")
    for count in counts:
        images.draw(options.folder / f"good-{count}", count)
        images.draw(options.folder / f"broken-{count}", count, broken_every=100)
    for threads in THREADS:
        yield _table(options, counts, threads)
    yield _processes(options, counts)


def _table(options: Options, counts: tuple[int, int], threads: int) -> Table:
    named = {
        "decode alone": ("decoding", "good"),
        "decode + resize": ("resizing", "good"),
        "plain DataLoader": ("plain_loader", "good"),
        "loading alone": ("loading", "good"),
        "genenc": ("extraction", "good"),
        "genenc, 1 % broken files": ("extraction", "broken"),
    }
    ways = [
        functools.partial(_way, options.folder, name, program, kind, {"threads": threads})
        for name, (program, kind) in named.items()
    ]
    return Table(
        name=f"data-{threads}",
        title=f"Data path, {plural(threads, 'decode worker')}",
        settings=f"What an image more costs, from {counts[0]} to {counts[1]} JPEG files of 500 x 375, 90 kB; the "
        "network takes the mean; genenc plans, commits and verifies, the others keep nothing. Loading, its slowest "
        "stage, is reading, hashing, decoding, resizing and cutting out.",
        baselines=("decode alone", "loading alone", "plain DataLoader"),
        rows=tuple(slopes(ways, counts, options)),
    )


def _processes(options: Options, counts: tuple[int, int]) -> Table:
    ways = [
        functools.partial(
            _way,
            options.folder,
            f"{processes} process{'' if processes == 1 else 'es'}, {plural(threads, 'worker')}",
            "sharing",
            "good",
            {"threads": threads, "processes": processes, "shard_rows": SHARED_ROWS},
        )
        for processes, threads in ((1, 1), (2, 1), (1, 2))
    ]
    return Table(
        name="processes",
        title="Several processes on one run",
        settings=f"What an image more costs, as above; processes share the run's shards of {SHARED_ROWS} rows by "
        "claims, each with so many decode workers and as many cores of its own.",
        baselines=("1 process, 1 worker",),
        rows=tuple(slopes(ways, counts, options)),
    )


def _way(folder: Path, name: str, program: str, images: str, more: Mapping[str, object], count: int) -> Way:
    arguments = {"folder": str(folder / f"{images}-{count}"), **more}
    if program in ("loading", "extraction", "sharing"):
        kept = "-".join(str(value) for value in (program, images, count, *more.values()))
        arguments["out"] = str(folder / f"runs-{kept}" / "run")
    return Way(name=name, program=f"{WAYS}:{program}", arguments=arguments)
