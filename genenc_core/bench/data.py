"""The suite `data`: JPEG files to committed rows with a network that costs nothing, next to decoding alone."""

from collections.abc import Iterator

from genenc_core.bench import images
from genenc_core.bench.measure import Way, compare
from genenc_core.bench.records import Options, Table
from genenc_core.text import plural

WAYS = "genenc_core.bench.data_ways"
THREADS = (1, 2)


def run(options: Options) -> Iterator[Table]:
    """Measure decoding, resizing, a plain DataLoader and the extraction, with one thread and with two."""
    count = options.pick(1024, 256)
    options.tell(f"drawing {count} images")
    good = str(images.draw(options.folder / "good", count))
    broken = str(images.draw(options.folder / "broken", count, broken_every=100))
    for threads in THREADS:
        yield _table(options, good, broken, threads, count)
    yield _processes(options, good, count)


def _table(options: Options, good: str, broken: str, threads: int, count: int) -> Table:
    scratch = str(options.folder / f"runs-{threads}")
    both = {"folder": good, "threads": threads}
    ways = [
        Way(name="decode alone", program=f"{WAYS}:decoding", arguments=both),
        Way(name="decode + resize", program=f"{WAYS}:resizing", arguments=both),
        Way(name="plain DataLoader", program=f"{WAYS}:plain_loader", arguments=both),
        Way(name="genenc", program=f"{WAYS}:extraction", arguments={**both, "out": f"{scratch}/good"}),
        Way(
            name="genenc, 1 % broken files",
            program=f"{WAYS}:extraction",
            arguments={"folder": broken, "threads": threads, "out": f"{scratch}/broken"},
        ),
    ]
    return Table(
        name=f"data-{threads}",
        title=f"Data path, {plural(threads, 'decoding thread')}",
        settings=f"{count} JPEG files of 500 x 375, 90 kB; the network is an average pool; genenc plans, commits and "
        "verifies, the others keep nothing.",
        baselines=("decode alone", "plain DataLoader"),
        rows=tuple(compare(ways, options)),
    )


def _processes(options: Options, good: str, count: int) -> Table:
    scratch = options.folder / "runs-shared"
    ways = [
        Way(
            name=f"{processes} process{'' if processes == 1 else 'es'}, {plural(threads, 'thread')}",
            program=f"{WAYS}:sharing",
            arguments={
                "folder": good,
                "processes": processes,
                "threads": threads,
                "out": str(scratch / f"{processes}-{threads}"),
            },
        )
        for processes, threads in ((1, 1), (2, 1), (1, 2))
    ]
    return Table(
        name="processes",
        title="Several processes on one run",
        settings=f"{count} JPEG files as above; processes share the run's shards by claims, each with so many decoding "
        "threads; their start is not measured.",
        baselines=("1 process, 1 thread",),
        rows=tuple(compare(ways, options)),
    )
