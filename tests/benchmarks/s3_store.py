"""Requests and time of shard commits on S3 and in a local folder: two products and probes, counted at a proxy.

Run: `AWS_ENDPOINT_URL=... AWS_ACCESS_KEY_ID=... AWS_SECRET_ACCESS_KEY=... python tests/benchmarks/s3_store.py BUCKET`;
without `AWS_ENDPOINT_URL` it starts Ceph's gateway, as the tests do.
"""

import argparse
import contextlib
import os
import statistics
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import numpy as np

sys.path[:0] = [str(Path(__file__).parents[2]), str(Path(__file__).parents[1] / "support")]

import ceph
import s3_proxy
import s3_server
from genenc_core.store import layout, run_store, upload, verify
from genenc_core.store.backends import local
from genenc_core.store.backends.objects import open_objects

CHANNELS, POINTS, MAP = 512, 4, (64, 7, 7)


def plan(shard_rows: int, shards: int) -> layout.StorePlan:
    """Vectors, maps and probes, as an extraction with points and `--maps` stores them."""
    rows = shard_rows * shards

    def array(name: str, shape: tuple[int, ...], dims: tuple[str, ...], dtype: str) -> layout.ArrayPlan:
        return layout.ArrayPlan(
            name=name,
            shape=(rows, *shape),
            dtype=dtype,
            dims=("image", *dims),
            chunk_rows=min(256, shard_rows),
            fill=float("nan"),
            attributes={},
            compress=name != "maps",
        )

    arrays = (
        array("features", (CHANNELS,), ("channel",), "float32"),
        array("maps", MAP, ("map_channel", "y", "x"), "float16"),
        array("probes", (POINTS, CHANNELS), ("point", "channel"), "float32"),
    )
    return layout.StorePlan(
        rows=rows, shard_rows=shard_rows, arrays=arrays, fingerprint="benchmark", identity={}, attributes={}
    )


def commit_all(store: run_store.RunStore, blocks: dict[str, np.ndarray]) -> tuple[list[float], list[float]]:
    """Commit every shard; return wall and CPU seconds of each."""
    status = np.ones(store.plan.shard_rows, np.uint8)
    walls, cpus = [], []
    for shard in range(store.shard_count):
        wall, cpu = time.perf_counter(), time.process_time()
        store.commit(shard, blocks, status, details={})
        walls.append(time.perf_counter() - wall)
        cpus.append(time.process_time() - cpu)
    return walls, cpus


@contextlib.contextmanager
def server() -> Iterator[str]:
    """Yield an S3 endpoint: the environment's, or a new one."""
    if os.environ.get("AWS_ENDPOINT_URL"):
        yield os.environ["AWS_ENDPOINT_URL"]
        return
    with tempfile.TemporaryDirectory() as folder:
        users = s3_server.begin(Path(folder))
        found = s3_server.wait(Path(folder))
        os.environ.update(found.environment)
        yield found.endpoint
        users.close()


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("bucket", nargs="?", default=ceph.BUCKET)
    parser.add_argument("--shards", type=int, default=8)
    parser.add_argument("--rows", type=int, nargs="+", default=[64, 512, 2048])
    asked = parser.parse_args()
    write = sys.stdout.write
    write("| rows per shard | MB per shard | place | ms per shard | MB/s | CPU ms |\n|---|---|---|---|---|---|\n")
    counts = ""
    with server() as endpoint, tempfile.TemporaryDirectory() as scratch:
        for rows in asked.rows:
            draw, planned = np.random.default_rng(0), plan(rows, asked.shards)
            blocks = {a.name: draw.random((rows, *a.shape[1:]), np.float32).astype(a.dtype) for a in planned.arrays}
            made = run_store.RunStore.create(Path(scratch) / str(rows), planned, coordinates=[])
            prefix = f"benchmark/{uuid.uuid4().hex[:8]}"
            target = open_objects(f"s3://{asked.bucket}/{prefix}")
            assert isinstance(made.objects, local.LocalObjects)
            upload.publish(made.objects, target)
            size = sum(block.nbytes for block in blocks.values()) / 1e6
            for name, store in (("local", made), ("S3", run_store.RunStore.open(target))):
                walls, cpus = commit_all(store, blocks)
                wall, cpu = statistics.median(walls), statistics.median(cpus)
                write(f"| {rows} | {size:.1f} | {name} | {wall * 1000:.0f} | {size / wall:.0f} | {cpu * 1000:.0f} |\n")
                assert verify.verify_store(store).ok
            target.remove_tree("")
        with s3_proxy.proxy(endpoint) as (address, seen):
            os.environ["AWS_ENDPOINT_URL"] = address
            target = open_objects(f"s3://{asked.bucket}/benchmark/{uuid.uuid4().hex[:8]}")
            small = run_store.RunStore.create(Path(scratch) / "counted", plan(64, 4), coordinates=[])
            assert isinstance(small.objects, local.LocalObjects)
            upload.publish(small.objects, target)
            created = sum(seen.count().values())
            seen.seen.clear()
            store = run_store.RunStore.open(target)
            draw = np.random.default_rng(0)
            blocks = {a.name: draw.random((64, *a.shape[1:]), np.float32).astype(a.dtype) for a in store.plan.arrays}
            seen.seen.clear()
            commit_all(store, blocks)
            counts = ", ".join(f"{count / 4:g} {kind}" for kind, count in sorted(seen.count().items()))
            total = sum(seen.count().values()) / 4
            target.remove_tree("")
    write(f"\nRequests: {created} of the creation; {total:g} per shard of four objects: {counts}.\n")


if __name__ == "__main__":
    main()
