"""The suite `data`: marginal cost of an image from its file to its committed row, with a near-free network.

Costs are slopes between two image counts; fixed costs of a run are measured by the suites `start` and `end-to-end`.
"""

import functools
from collections.abc import Iterator, Mapping
from pathlib import Path

from genenc_core.bench import images
from genenc_core.bench.measure import Way, slopes
from genenc_core.bench.report import Options, Table
from genenc_core.text import plural

WAYS = "genenc_core.bench.data_ways"
WORKERS = (1, 2)
SHARED_ROWS = 64
FLOOR = "decode + resize"


def run(options: Options) -> Iterator[Table]:
    """Measure decoding, resizing, a plain DataLoader, the loader and extraction, with one and two workers."""
    counts = (256, options.pick(4352, 1280))
    options.tell(f"drawing {counts[1]} images")
    for count in counts:
        images.draw(options.folder / f"good-{count}", count)
        images.draw(options.folder / f"broken-{count}", count, broken_every=100)
        images.draw(options.folder / f"tiny-{count}", count, width=64, height=64)
    for workers in WORKERS:
        yield _table(options, counts, workers)
    yield _tiny(options, counts)
    yield _processes(options, counts)


def _table(options: Options, counts: tuple[int, int], workers: int) -> Table:
    programs = {
        "decode alone": ("decoding", "good"),
        FLOOR: ("resizing", "good"),
        "plain DataLoader": ("plain_loader", "good"),
        "loading alone": ("loading", "good"),
        "network alone": ("network", "good"),
        "genenc": ("extraction", "good"),
        "genenc, 1 % broken files": ("extraction", "broken"),
    }
    ways = [
        functools.partial(_way, options.folder, name, program, kind, {"workers": workers})
        for name, (program, kind) in programs.items()
    ]
    return Table(
        name=f"data-{workers}",
        title=f"Data path, {plural(workers, 'decode worker')}",
        settings=f"Marginal cost per image, from {counts[0]} to {counts[1]} JPEG files of 500 x 375, 90 kB; the "
        "network is a mean; genenc plans, commits and verifies, the others store nothing. Decode and resize alone "
        "are genenc's operators in a loop, in as many forked processes. Loading, the slowest stage, is reading, "
        "hashing, decoding, resizing and cropping. The network alone takes images from memory.",
        baselines=("decode alone", FLOOR, "loading alone", "plain DataLoader"),
        beyond=FLOOR,
        driving=True,
        rows=tuple(slopes(ways, counts, options)),
    )


def _tiny(options: Options, counts: tuple[int, int]) -> Table:
    programs = {"decode alone": "decoding", FLOOR: "resizing", "loading alone": "loading"}
    programs |= {"network alone": "network", "genenc": "extraction"}
    ways = [
        functools.partial(
            _way, options.folder, name, program, "tiny", {"workers": workers}, group=plural(workers, "decode worker")
        )
        for workers in WORKERS
        for name, program in programs.items()
    ]
    return Table(
        name="tiny",
        title="Data path, tiny images",
        settings="As above, with JPEG files of 64 x 64, resized to the network's 224 x 224.",
        baselines=(FLOOR,),
        beyond=FLOOR,
        driving=True,
        rows=tuple(slopes(ways, counts, options)),
    )


def _processes(options: Options, counts: tuple[int, int]) -> Table:
    ways = [
        functools.partial(
            _way,
            options.folder,
            f"{processes} process{'' if processes == 1 else 'es'}, {plural(workers, 'worker')}",
            "sharing",
            "good",
            {"workers": workers, "processes": processes, "shard_rows": SHARED_ROWS},
        )
        for processes, workers in ((1, 1), (2, 1), (1, 2))
    ]
    return Table(
        name="processes",
        title="Several processes on one run",
        settings=f"Marginal cost per image, as above; processes share the run's shards of {SHARED_ROWS} rows by "
        "claims, each with the given number of decode workers and as many cores of its own.",
        baselines=("1 process, 1 worker",),
        rows=tuple(slopes(ways, counts, options)),
    )


def _way(
    folder: Path, name: str, program: str, images: str, more: Mapping[str, object], count: int, *, group: str = ""
) -> Way:
    arguments = {"folder": str(folder / f"{images}-{count}"), **more}
    if program in ("loading", "network", "extraction", "sharing"):
        run_name = "-".join(str(value) for value in (program, images, count, *more.values()))
        arguments["out"] = str(folder / f"runs-{run_name}" / "run")
    return Way(name=name, group=group, program=f"{WAYS}:{program}", arguments=arguments)
