"""The suite `memory`: memory of a run's processes, with shared memory counted once."""

import dataclasses
import statistics
from typing import NamedTuple

from genenc_core.bench import data, images
from genenc_core.bench.measure import Way, measure_in_new_processes
from genenc_core.bench.report import Options, Row, Table
from genenc_core.system import proc
from genenc_core.text import plural

WORKERS = (1, 2, 4)
IMAGES = (2560, 640)
"""Images per run, without and with --quick."""


class Sizes(NamedTuple):
    """Proportional set sizes of a process, its children and its grandchildren, in bytes."""

    driver: int
    children: tuple[int, ...]
    grandchildren: tuple[int, ...]

    @property
    def total(self) -> int:
        """Total in bytes."""
        return self.driver + sum(self.children) + sum(self.grandchildren)

    def describe(self) -> str:
        """Describe the parts in MiB."""
        driver, servers, *workers = (
            round(each / 2**20) for each in (self.driver, sum(self.children), *self.grandchildren)
        )
        each = statistics.mean(workers) if workers else 0
        return f"driving process {driver}, decode server {servers}, each decode worker {each:.0f}"


def run(options: Options) -> list[Table]:
    """Measure whole runs with an increasing number of decode workers."""
    count = options.pick(*IMAGES)
    photos = str(images.draw(options.folder / "photos", count))
    rows = [_row(options, photos, workers) for workers in WORKERS]
    return [
        Table(
            name="memory",
            title="Memory, processes together",
            settings=f"Whole runs of {count} JPEG files of 500 x 375, batches of 32, with a network that is a mean; "
            "the maximum of repeated samples over all processes of a run, with shared memory counted once (PSS). The "
            "decode server forks the decode workers.",
            kind="memory",
            rows=tuple(rows),
        )
    ]


def _row(options: Options, photos: str, workers: int) -> Row:
    way = Way(
        name=f"genenc, {plural(workers, 'decode worker')}",
        program=f"{data.WAYS}:extraction",
        arguments={"folder": photos, "workers": workers, "out": str(options.folder / f"runs-{workers}" / "run")},
    )
    samples: list[Sizes] = []
    (row,) = measure_in_new_processes([way], options, poll=lambda process: samples.extend(sizes(process)))
    if not row.measured:
        return row
    if not samples:
        return Row(name=row.name, note="unknown on this system")
    peak = max(samples, key=lambda each: each.total)
    return dataclasses.replace(row, peak_bytes=peak.total, note=peak.describe())


def sizes(process: int) -> list[Sizes]:
    """Return the sizes of a process tree; empty if it ended or the system does not provide them."""
    driver = proc.proportional_bytes(process)
    children = proc.children(process)
    grandchildren = [each for child in children for each in proc.children(child)]
    sizes_of = (tuple(proc.proportional_bytes(each) or 0 for each in some) for some in (children, grandchildren))
    return [Sizes(driver, *sizes_of)] if driver else []
