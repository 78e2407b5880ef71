"""Peak memory and time of planning many rows: lists of files, and tars of many members.

Run: `python tests/benchmarks/planning_memory.py [--rows 10000000] [--members 1000000] [--folder FOLDER]`. Each source
is planned by a process of its own, at a tenth of the rows first: what grows with them shows as a difference.
"""

import argparse
import io
import re
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
from pyarrow import parquet

sys.path.insert(0, str(Path(__file__).parents[2]))

from genenc_core.images.sources import image_source, manifest

BLOCK = 1_000_000
ARCHIVES = 10


def write_csv(folder: Path, rows: int) -> Path:
    """Write a list of names that are not there, with a further column."""
    path = folder / "list.csv"
    with path.open("w") as file:
        file.write("image,label\n")
        file.writelines(f"class{row // 1000:05d}/image{row:09d}.jpg,{row % 10}\n" for row in range(rows))
    return path


def write_parquet(folder: Path, rows: int) -> Path:
    """Write the same list as Parquet."""
    path = folder / "list.parquet"
    schema = pa.schema([("image", pa.string()), ("label", pa.int64())])
    with parquet.ParquetWriter(path, schema) as writer:
        for first in range(0, rows, BLOCK):
            numbers = range(first, min(first + BLOCK, rows))
            names = [f"class{row // 1000:05d}/image{row:09d}.jpg" for row in numbers]
            writer.write_table(pa.table({"image": names, "label": [row % 10 for row in numbers]}, schema))
    return path


def write_tars(folder: Path, members: int) -> str:
    """Write archives of small members, each with its label."""
    for at in range(ARCHIVES):
        with tarfile.open(folder / f"train-{at:04}.tar", "w", format=tarfile.USTAR_FORMAT) as archive:
            for number in range(members // ARCHIVES):
                for name in (f"{at:04}/{number:09d}.jpg", f"{at:04}/{number:09d}.cls"):
                    info = tarfile.TarInfo(name)
                    info.size = 1
                    archive.addfile(info, io.BytesIO(b"x"))
    return f"{folder}/train-{{0000..{ARCHIVES - 1:04}}}.tar"


def peak() -> float:
    """Return the most memory that this process had, in MB; `getrusage` begins with its parent's."""
    return float(re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())[1]) / 1e3  # type: ignore[index]


def plan(images: str, out: str) -> None:
    """Plan a source, and say what it took: rows, seconds, and MB at the start and at most."""
    began, before = time.perf_counter(), peak()
    listed = manifest.write_manifest(Path(out), image_source.open_source(images))
    sys.stdout.write(f"{listed.rows} {time.perf_counter() - began:.1f} {before:.0f} {peak():.0f}\n")


def main() -> None:
    """Print a row per source and size."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--members", type=int, default=1_000_000)
    parser.add_argument("--folder", type=Path, help="where to work (the temporary folder)")
    parser.add_argument("--plan", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--only", help="one of the sources")
    asked = parser.parse_args()
    if asked.plan:
        plan(*asked.plan)
        return
    sys.stdout.write("| source | rows | seconds | µs a row | MB before | MB at most |\n|---|---|---|---|---|---|\n")
    kinds: list[tuple[str, Callable[[Path, int], object], int]] = [
        ("CSV list", write_csv, asked.rows),
        ("Parquet list", write_parquet, asked.rows),
        ("tar members", write_tars, asked.members),
    ]
    for name, write, most in kinds:
        if asked.only not in (None, name):
            continue
        for rows in (most // 10, most):
            with tempfile.TemporaryDirectory(dir=asked.folder, prefix="genenc-bench-") as place:
                images = str(write(Path(place), rows))
                command = [sys.executable, __file__, "--plan", images, f"{place}/images.manifest"]
                found = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
            seconds = float(found[1])
            sys.stdout.write(
                f"| {name} | {int(found[0]):,} | {seconds:.1f} | {seconds / int(found[0]) * 1e6:.2f} | {found[2]} | "
                f"{found[3]} |\n"
            )
            sys.stdout.flush()


if __name__ == "__main__":
    main()
