"""Programs of the suite `scale`: planning many rows, and the status of many shards; see `worker.py`."""

import contextlib
import itertools
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa
from pyarrow import parquet

from genenc_core.bench import data_ways
from genenc_core.encoding import shard_encoding
from genenc_core.images.sources import image_source, manifest
from genenc_core.run import planning as run_planning
from genenc_core.run import status, store_plan
from genenc_core.run.bound import Work
from genenc_core.store import commit_record, layout, run_store, store_keys
from genenc_core.system import digests

Once = Callable[[], float]
FILES = 100
BLOCK = 100_000


def write_list(folder: Path, count: int) -> Path:
    """Write a few files and a list of `count` rows with unique ids that refer to them."""
    folder.mkdir(parents=True)
    for number in range(FILES):
        (folder / f"image{number:02d}.jpg").write_bytes(b"x" * number)
    schema = pa.schema([("image", pa.string()), ("image_id", pa.string())])
    with parquet.ParquetWriter(folder / "list.parquet", schema) as file:
        for first in range(0, count, BLOCK):
            rows = range(first, min(first + BLOCK, count))
            names = [f"image{row % FILES:02d}.jpg" for row in rows]
            ids = [f"class{row // 1000:05d}/image{row:09d}.jpg" for row in rows]
            file.write_table(pa.table([names, ids], schema=schema))
    return folder / "list.parquet"


@contextlib.contextmanager
def planning(count: int, out: str) -> Iterator[Once]:
    """List the images, write the manifest and create the store."""
    source = image_source.open_source(str(write_list(Path(out), count)))
    numbers = itertools.count()

    def once() -> float:
        folder = Path(out) / f"run{next(numbers)}"
        folder.mkdir()
        listed = manifest.write_manifest(folder / "images.parquet", source)
        array = layout.ArrayPlan(
            name="features",
            shape=(count, 768),
            dtype="float32",
            dims=("image", "channel"),
            chunk_rows=256,
            fill=float("nan"),
            attributes={},
            compress=False,
        )
        plan = layout.StorePlan(
            rows=count, shard_rows=4096, arrays=(array,), fingerprint="bench", identity={}, attributes={}
        )
        run_store.RunStore.create(folder, plan, coordinates=store_plan.coordinates(listed, plan))
        return float(count)

    yield once


@contextlib.contextmanager
def surveying(count: int, out: str) -> Iterator[Once]:
    """Query the status of a run with a record for each one-row shard; no objects are needed."""
    listed = write_list(Path(out), count)
    run = run_planning.create_run(data_ways.parameters(str(listed), f"{out}/run", 1, shard_rows=1, batch_size=1))
    store = run.store
    for shard in range(count):
        (Path(run.root) / store_keys.record(shard)).write_bytes(_record(store, shard).to_json())

    def once() -> float:
        found = status.run_status(run)
        return float(found.ok)

    once()
    yield once


def _record(store: run_store.RunStore, shard: int) -> commit_record.CommitRecord:
    digest = digests.OBJECT.named(b"object")
    return commit_record.CommitRecord(
        shard=shard,
        attempt="0" * 32,
        fingerprint=store.plan.fingerprint,
        rows=store.shard_range(shard),
        status_counts={"ok": 1, "unreadable": 0},
        objects=tuple(
            commit_record.ObjectRecord(
                key=layout.chunk_key(array, shard),
                staged=f"s{shard:07d}-{'0' * 32}/{at}",
                size=100,
                digest=digest,
                content_digest=digest,
            )
            for at, array in enumerate(store.plan.all_arrays)
        ),
        details={
            "points": {},
            "unreadable": [],
            "seconds": dict.fromkeys(shard_encoding.SECONDS, 0.1),
            "work": dict.fromkeys(Work._fields, 1.0),
            "input_sha256": [""],
        },
    )
