"""CPU of planning by kind of source, and its time on a file system that answers late, by the number of threads.

Run: `python tests/benchmarks/planning.py [--rows 1000000] [--late-rows 100000] [--folder FOLDER]`.
"""

import argparse
import os
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pyarrow as pa
from pyarrow import parquet

sys.path.insert(0, str(Path(__file__).parents[2]))

from genenc_core.images.sources import folders, image_source, listing, manifest

PER_FOLDER = 1000
LATE_FOLDER = 100
FILE_SECONDS, FOLDER_SECONDS = 0.0002, 0.001
_STAT, _SCANDIR = listing._stat_all, os.scandir


def touched(root: Path, rows: int, *, per_folder: int) -> Path:
    """Make empty files, so many in a folder."""
    for first in range(0, rows, per_folder):
        folder = root / f"class{first // per_folder:05d}"
        folder.mkdir(parents=True)
        for number in range(first, min(first + per_folder, rows)):
            os.close(os.open(f"{folder}/image{number:09d}.jpg", os.O_CREAT | os.O_WRONLY))
    return root


def sources(scratch: Path, rows: int) -> Iterator[tuple[str, Path]]:
    """Make each kind of source, of the same number of files."""
    nested = touched(scratch / "nested", rows, per_folder=PER_FOLDER)
    yield f"folders of {PER_FOLDER}", nested
    yield "folders of 10", touched(scratch / "small", rows // 5, per_folder=10)
    yield "one folder", touched(scratch / "flat", rows, per_folder=rows)
    names = [f"{nested}/class{row // PER_FOLDER:05d}/image{row:09d}.jpg" for row in range(rows)]
    parquet.write_table(pa.table({"image": names}), scratch / "list.parquet")
    yield "Parquet list", scratch / "list.parquet"
    with (scratch / "list.csv").open("w") as file:
        file.write("number,image,label\n")
        file.writelines(f"{row},{name},cat\n" for row, name in enumerate(names))
    yield "CSV list", scratch / "list.csv"


def cpu() -> float:
    """Return the CPU seconds of this process."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def measured(source: Path, out: Path) -> tuple[float, float, float]:
    """Plan a source; return microseconds a row: CPU of the thread that drives, of all threads, and wall."""
    before = time.thread_time(), cpu(), time.perf_counter()
    listed = manifest.write_manifest(out, image_source.open_source(str(source)))
    after = time.thread_time(), cpu(), time.perf_counter()
    out.unlink()
    driving, every, wall = ((end - start) / listed.rows * 1e6 for start, end in zip(before, after, strict=True))
    return driving, every, wall


def late(seconds: float, work: Callable[..., Any], count: Callable[[Any], int]) -> Callable[[Any], Any]:
    """Return a function that first takes `seconds` for each thing of its argument."""

    def done(asked: Any) -> Any:
        time.sleep(seconds * count(asked))
        return work(asked)

    return done


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--late-rows", type=int, default=100_000)
    parser.add_argument("--folder", type=Path, help="where to work, in memory at best (the temporary folder)")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=asked.folder, prefix="genenc-bench-") as place:
        scratch, out = Path(place), Path(place) / "images.parquet"
        sys.stdout.write(f"{asked.rows} rows, µs a row\n\n| source | driving thread | all threads | wall |\n")
        sys.stdout.write("|---|---|---|---|\n")
        for name, source in sources(scratch, asked.rows):
            driving, every, wall = measured(source, out)
            sys.stdout.write(f"| {name} | {driving:.2f} | {every:.2f} | {wall:.1f} |\n")
        root = touched(scratch / "late", asked.late_rows, per_folder=LATE_FOLDER)
        sys.stdout.write(
            f"\n{asked.late_rows} rows in folders of {LATE_FOLDER}, {FILE_SECONDS * 1e3:g} ms a file and "
            f"{FOLDER_SECONDS * 1e3:g} ms a folder\n\n| threads | wall, µs a row |\n|---|---|\n"
        )
        for threads in (1, 8, 64):
            with (
                mock.patch.object(listing, "_THREADS", threads),
                mock.patch.object(folders, "_AHEAD", threads),
                mock.patch.object(listing, "_stat_all", late(FILE_SECONDS, _STAT, len)),
                mock.patch.object(os, "scandir", late(FOLDER_SECONDS, _SCANDIR, lambda _: 1)),
            ):
                sys.stdout.write(f"| {threads} | {measured(root, out)[2]:.1f} |\n")


if __name__ == "__main__":
    main()
