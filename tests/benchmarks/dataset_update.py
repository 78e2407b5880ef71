"""What 1 % of new images cost in an update of a large dataset, and what they cost alone; on a local disk.

Run: `python tests/benchmarks/dataset_update.py [--rows 1000000] [--new 10000] [--parts 10] [--repeat 3]`.

The images are hard links to a few small files. Rows of the dataset are planned and committed by `genenc update` but not
encoded; the new ones are encoded by a tiny model.
"""

import argparse
import functools
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

sys.path[:0] = [str(Path(__file__).parents[2]), str(Path(__file__).parents[1] / "support")]

import pictures
from genenc_core.dataset import comparison, parts, publishing, rows, update
from genenc_core.dataset.folder import DatasetFolder
from genenc_core.dataset.parameters import UpdateParameters
from genenc_core.images.sources import manifest
from genenc_core.run import driver, planning, records, status
from genenc_core.run.folder import RunFolder
from genenc_core.run.parameters import ExtractParameters

GIVEN = {
    "model": "tiny_models:pooled",
    "weights": "random:0",
    "image_size": "32",
    "device": "cpu",
    "decode_workers": 1,
    "trust": True,
}
DETAILS = {
    "unreadable": [],
    "changed_since_planned": [],
    "points": {},
    "input_sha256": [],
    "batch_sizes": {},
    "seconds": {},
}
PER_FOLDER, FILES = 10_000, 64
STEPS: dict[str, tuple[Any, str]] = {
    "listing": (manifest, "write_manifest"),
    "rows of the newest version": (rows, "current"),
    "comparing": (comparison, "compare"),
    "choosing a part": (parts, "unfinished"),
    "planning": (planning, "publish"),
    "encoding": (driver.Session, "work"),
    "making a version": (publishing, "next_version"),
}


class Filling:
    """Stands for the session that encodes a part; commits rows of zeros."""

    def __init__(self, run: RunFolder, *_: Any, **__: Any) -> None:
        self.run = run

    def work(self, _shards: str) -> records.Result:
        """Commit all shards."""
        store = self.run.store
        for shard in store.pending():
            start, stop = store.shard_range(shard)
            arrays = {
                array.name: np.zeros((stop - start, *array.shape[1:]), array.dtype) for array in store.plan.arrays
            }
            store.commit(shard, arrays, np.ones(stop - start, np.uint8), details=DETAILS)
        return records.Result(run=self.run, status=status.run_status(self.run), asked=1, failures=())


def link(photos: Path, sources: list[Path], numbers: range) -> None:
    """Link images, at most 10,000 in a folder."""
    for number in numbers:
        folder = photos / f"{number // PER_FOLDER:04d}"
        if number % PER_FOLDER == 0 or number == numbers[0]:
            folder.mkdir(parents=True, exist_ok=True)
        os.link(sources[number % len(sources)], folder / f"i{number:08d}.png")


def fill(root: Path, photos: Path, link_to: Callable[[int], None], parts_count: int, count: int) -> None:
    """Make a dataset of so many parts and rows."""
    for part in range(parts_count):
        link_to(count * (part + 1) // parts_count)
        with mock.patch.object(driver, "Session", Filling):
            update.update(UpdateParameters(images=str(photos), out=str(root), shard_rows=8192, **GIVEN))  # type: ignore[arg-type]


def timed(seconds: dict[str, float], what: str, real: Callable[..., Any]) -> Callable[..., Any]:
    """Return a call that adds what it takes."""

    @functools.wraps(real)
    def call(*given: Any, **options: Any) -> Any:
        start = time.perf_counter()
        try:
            return real(*given, **options)
        finally:
            seconds[what] += time.perf_counter() - start

    return call


def measured(work: Callable[[], Any]) -> dict[str, float]:
    """Do the work; return the seconds of its steps and of `all`."""
    seconds: dict[str, float] = defaultdict(float)
    patches = [
        mock.patch.object(owner, name, timed(seconds, what, getattr(owner, name)))
        for what, (owner, name) in STEPS.items()
    ]
    for patch in patches:
        patch.start()
    try:
        timed(seconds, "all", work)()
    finally:
        for patch in patches:
            patch.stop()
    return seconds


def runs(scratch: Path, asked: argparse.Namespace) -> Iterator[tuple[str, dict[str, float]]]:
    """Yield what was measured, and its seconds, in turns."""
    sources = [pictures.write_folder(scratch / f"file{n}", 1, seed=n, sizes=((32, 32),)) for n in range(FILES)]
    files, photos = [folder / "img_000.png" for folder in sources], scratch / "photos"
    linked = 0

    def link_to(count: int) -> None:
        nonlocal linked
        link(photos, files, range(linked, count))
        linked = count

    fill(scratch / "dataset", photos, link_to, asked.parts, asked.rows)
    link(scratch / "alone", files, range(asked.rows, asked.rows + asked.new))
    link(photos, files, range(asked.rows, asked.rows + asked.new))
    given: dict[str, Any] = {**GIVEN, "shard_rows": asked.shard_rows}

    def alone(out: Path) -> Any:
        return driver.extract(ExtractParameters(images=str(scratch / "alone"), out=str(out), **given))

    alone(scratch / "first")  # imports
    for turn in range(asked.repeat):
        yield "alone", measured(functools.partial(alone, scratch / f"run{turn}"))
        for name, images, more in (
            ("update", photos, {}),
            ("update of a folder per day", scratch / "alone", {"vanished": "keep"}),
        ):
            copy = shutil.copytree(scratch / "dataset", scratch / "copy")
            values = {**given, **more, "images": str(images), "out": str(copy)}
            before = DatasetFolder(copy).version().counts["rows"]
            yield name, measured(lambda values=values: update.update(UpdateParameters.model_validate(values)))
            assert DatasetFolder(copy).version().counts["rows"] == before + asked.new
            shutil.rmtree(copy)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--new", type=int, default=10_000)
    parser.add_argument("--parts", type=int, default=10)
    parser.add_argument("--shard-rows", type=int, default=1024)
    parser.add_argument("--repeat", type=int, default=3)
    asked = parser.parse_args()
    found: dict[str, list[dict[str, float]]] = defaultdict(list)
    with tempfile.TemporaryDirectory() as scratch:
        for name, seconds in runs(Path(scratch), asked):
            found[name].append(seconds)
            sys.stderr.write(f"{name}: {dict(seconds)}\n")
    sys.stdout.write(f"{asked.rows:,} rows in {asked.parts} parts, {asked.new:,} new; median seconds\n\n")
    sys.stdout.write(f"| | {' | '.join(found)} |\n|---|{'---|' * len(found)}\n")
    for step in (*STEPS, "all"):
        values = [statistics.median(each[step] for each in turns) for turns in found.values()]
        sys.stdout.write(f"| {step} | {' | '.join(f'{value:.2f}' for value in values)} |\n")


if __name__ == "__main__":
    main()
