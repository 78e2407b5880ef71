"""Opening and reading a dataset of many small parts, which are copies of one, on a local disk.

Run: `python tests/benchmarks/dataset_open.py [--parts 1000] [--rows 64]`.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

sys.path[:0] = [str(Path(__file__).parents[2]), str(Path(__file__).parents[1] / "support")]

import synthetic_dataset
from genenc_core import api
from genenc_core.store.backends import local

READS: list[str] = []
_OPEN = local.LocalObjects.open


def _observed(self: local.LocalObjects, key: str, **options: Any) -> Any:
    READS.append(key)
    return _OPEN(self, key, **options)


def measured(what: str, work: Callable[[], Any]) -> Any:
    """Do the work and print its seconds and object reads."""
    READS.clear()
    start = time.perf_counter()
    found = work()
    sys.stdout.write(f"| {what} | {time.perf_counter() - start:.4f} | {len(READS)} |\n")
    return found


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--parts", type=int, default=1000)
    parser.add_argument("--rows", type=int, default=64)
    asked = parser.parse_args()
    local.LocalObjects.open = _observed  # type: ignore[method-assign]
    draw = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch) / "dataset"
        synthetic_dataset.copies(root, parts=asked.parts, rows_each=asked.rows, shard_rows=32)
        _ = api.Dataset.open(root).arrays().status[0].values  # imports
        sys.stdout.write(f"{asked.parts} parts of {asked.rows} rows\n\n| | seconds | object reads |\n|---|---|---|\n")
        rows = measured("open the newest version", lambda: api.Dataset.open(root).arrays())
        measured("first row of a part", lambda: rows.features[-1].values)
        measured("another row of it", lambda: rows.features[-40].values)
        few = np.sort(draw.choice(rows.sizes["image"], 100, replace=False))
        measured("100 scattered rows", lambda: rows.features[few].values)
        measured("the same again", lambda: rows.features[few].values)
        measured("first selection by name", lambda: rows.sel(image_id=["p1-3.png"]))
        measured("every row of one product", lambda: rows.features.values)


if __name__ == "__main__":
    main()
