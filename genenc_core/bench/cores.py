"""The suite `cores`: scaling with simulated cores on any machine; decoding sleeps instead of using a CPU."""

import dataclasses
import functools
import math
from collections.abc import Iterator, Mapping
from pathlib import Path

from genenc_core.bench import images
from genenc_core.bench.measure import Way, slopes
from genenc_core.bench.report import Options, Row, Table
from genenc_core.text import plural

WAYS = "genenc_core.bench.cores_ways"
DECODING = (0.008, 0.0012)
"""Simulated decode times per image, in seconds."""
DECODERS = (1, 4, 16, 32)
BATCH = 256
SHARD_ROWS = 4096
SIDE = 40
BOUND = "bound"
PLAIN, BARE = "plain DataLoader", "DataLoader of uint8"
NAMED = {PLAIN: "plain_loader", BARE: "bare_loader", "loading alone": "loading", "genenc": "extraction"}


def run(options: Options) -> Iterator[Table]:
    """Measure loading and extraction with an increasing number of decoders."""
    for seconds in DECODING:
        yield _table(options, seconds)


def _table(options: Options, seconds: float) -> Table:
    decoders = DECODERS if not options.quick else DECODERS[2:3]
    return Table(
        name=f"cores-{1000 * seconds:g}",
        title=f"Simulated cores, {1000 * seconds:g} ms to decode an image",
        settings=f"Marginal rates per image. Decoding sleeps, so that many decoders share few cores; the bound is "
        f"their maximum decoding rate. JPEG files of {SIDE} x {SIDE}, batches of {BATCH}, shards of {SHARD_ROWS} "
        "images; the network is a mean. The DataLoaders only load, with as many processes, which read and sleep; the "
        "plain one applies torchvision's usual transform, the other returns the pixels unchanged. The note is the rate "
        "expected on as many real cores: they share the decoding and the measured CPU time, of which the driving "
        "process uses at upper one core.",
        baselines=(BOUND, PLAIN, BARE),
        kind="rates",
        rows=tuple(row for count in decoders for row in _group(options, count, seconds)),
    )


def _group(options: Options, decoders: int, seconds: float) -> list[Row]:
    counts = _counts(options, decoders, seconds)
    group = plural(decoders, "decoder")
    options.tell(f"{group} at {1000 * seconds:g} ms: {counts[0]:,} and {counts[1]:,} images")
    for count in counts:
        if not (options.folder / f"tiny-{count}").exists():
            images.draw(options.folder / f"tiny-{count}", count, width=SIDE, height=SIDE)
    settings = {"workers": decoders, "seconds": seconds}
    ways = [functools.partial(_way, options.folder, name, group, settings) for name in NAMED]
    rows = slopes(ways, counts, options)
    bound = Row(name=BOUND, group=group, count=1, wall_seconds=(seconds / decoders,) * options.repeats)
    return [bound, *(dataclasses.replace(row, note=_on_real_cores(row, decoders, seconds)) for row in rows)]


def _counts(options: Options, decoders: int, seconds: float) -> tuple[int, int]:
    """Return two image counts for a few seconds of work, in whole batches per decoder."""
    whole = decoders * BATCH
    upper = math.ceil(options.pick(6, 3) / (BATCH * seconds))
    more = max(min(upper, options.pick(98_304, 32_768) // whole), 2)
    return max(more // 4, 1) * whole, more * whole


def _on_real_cores(row: Row, cores: int, seconds: float) -> str:
    if not row.measured or not row.cpu or not row.driver or row.driver <= 0:  # too small to measure
        return row.note
    return f"{min(cores / (seconds + row.cpu), 1 / row.driver):,.0f} / s on {plural(cores, 'core')}"


def _way(folder: Path, name: str, group: str, settings: Mapping[str, object], count: int) -> Way:
    arguments = {"folder": str(folder / f"tiny-{count}"), **settings}
    if name not in (PLAIN, BARE):
        run_name = "-".join(str(value) for value in (NAMED[name], count, *settings.values()))
        arguments["out"] = str(folder / f"runs-{run_name}" / "run")
    return Way(name=name, group=group, program=f"{WAYS}:{NAMED[name]}", arguments=arguments)
