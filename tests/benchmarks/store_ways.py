"""Programs of the suite `store`: each writes `shards` shards per call and removes their files; see `worker.py`."""

import contextlib
import itertools
import os
import secrets
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from genenc_core.store import layout, run_store, store_keys

Once = Callable[[], float]
SHARDS = 10_000


def blocks(rows: int, shape: Sequence[int], dtype: str) -> dict[str, np.ndarray]:
    """Return the arrays of a shard of a run with one product."""
    values = np.random.default_rng(0).standard_normal((rows, *shape), dtype=np.float32)
    return {
        "features": values.astype(dtype),
        "image_height": np.full(rows, 375, np.int32),
        "image_width": np.full(rows, 500, np.int32),
        "image_orientation": np.ones(rows, np.uint8),
        "image_affine": np.tile([0.6, 0.6, 0.0, 0.0], (rows, 1)),
    }


def details(rows: int) -> dict[str, Any]:
    """Return the details of a shard's record: mostly the digest of every input."""
    return {"session": "", "unreadable": [], "points": {}, "input_sha256": [secrets.token_hex(32) for _ in range(rows)]}


@contextlib.contextmanager
def plain(rows: int, shape: list[int], dtype: str, shards: int, sync: bool, out: str) -> Iterator[Once]:
    """Write the bytes of every array to a file."""
    made = {**blocks(rows, shape, dtype), layout.STATUS: np.ones(rows, np.uint8)}
    views = {Path(out) / name: block.reshape(-1).view(np.uint8).data for name, block in made.items()}
    Path(out).mkdir()

    def once() -> None:
        for path, view in views.items():
            with path.open("xb") as file:
                file.write(view)
                file.flush()
                if sync:
                    os.fsync(file.fileno())
        for path in views:
            path.unlink()

    yield _repeated(once, shards)


@contextlib.contextmanager
def commit(rows: int, shape: list[int], dtype: str, shards: int, chunk_rows: int, out: str) -> Iterator[Once]:
    """Commit a new shard."""
    made = blocks(rows, shape, dtype)
    arrays = tuple(
        layout.ArrayPlan(
            name=name,
            shape=(rows * SHARDS, *block.shape[1:]),
            dtype=block.dtype.name,
            dims=("image", *(f"{name}_{axis}" for axis in range(1, block.ndim))),
            chunk_rows=chunk_rows if name == "features" else rows,
            fill=float("nan") if block.dtype.kind == "f" else 0,
            attributes={},
            compress=name != "features",
        )
        for name, block in made.items()
    )
    plan = layout.StorePlan(
        rows=rows * SHARDS, shard_rows=rows, arrays=arrays, fingerprint="bench", identity={}, attributes={}
    )
    store = run_store.RunStore.create(Path(out), plan, coordinates=[])
    status, told, numbers = np.ones(rows, np.uint8), details(rows), itertools.count()

    def once() -> None:
        shard = next(numbers)
        record = store.commit(shard, made, status, details=told)
        for item in record.objects:
            (Path(out) / store_keys.GROUP / item.key).unlink()

    yield _repeated(once, shards)


@contextlib.contextmanager
def zarr(rows: int, shape: list[int], dtype: str, shards: int, out: str) -> Iterator[Once]:
    """Assign a whole shard to a zarr-python array."""
    import zarr
    from zarr.codecs import BytesCodec, Crc32cCodec

    block, numbers = blocks(rows, shape, dtype)["features"], itertools.count()
    array: Any = zarr.create_array(
        zarr.storage.LocalStore(out),
        shape=(rows * SHARDS, *shape),
        shards=(rows, *shape),
        chunks=(_chunk(rows, shape), *shape),
        dtype=dtype,
        serializer=BytesCodec(endian="little"),
        compressors=[Crc32cCodec()],
        fill_value=float("nan"),
        config={"write_empty_chunks": True},
    )

    def once() -> None:
        shard = next(numbers)
        array[shard * rows : (shard + 1) * rows] = block
        _object(out, shard, block.ndim).unlink()

    yield _repeated(once, shards)


@contextlib.contextmanager
def tensorstore(rows: int, shape: list[int], dtype: str, shards: int, out: str) -> Iterator[Once]:
    """Assign a whole shard to a TensorStore array."""
    import tensorstore

    block, numbers = blocks(rows, shape, dtype)["features"], itertools.count()
    little, crc32c = {"name": "bytes", "configuration": {"endian": "little"}}, {"name": "crc32c"}
    inner = {"chunk_shape": [_chunk(rows, shape), *shape], "codecs": [little, crc32c], "index_codecs": [little, crc32c]}
    grid = {"name": "regular", "configuration": {"chunk_shape": [rows, *shape]}}
    metadata = {
        "shape": [rows * SHARDS, *shape],
        "data_type": dtype,
        "fill_value": "NaN",
        "chunk_grid": grid,
        "codecs": [{"name": "sharding_indexed", "configuration": inner}],
    }
    kvstore = {"driver": "file", "path": out, "file_io_sync": False}
    spec = {"driver": "zarr3", "kvstore": kvstore, "metadata": metadata, "create": True}
    array = tensorstore.open({**spec, "store_data_equal_to_fill_value": True}).result()

    def once() -> None:
        shard = next(numbers)
        array[shard * rows : (shard + 1) * rows].write(block).result()
        _object(out, shard, block.ndim).unlink()

    yield _repeated(once, shards)


def _repeated(once: Callable[[], None], times: int) -> Once:
    """Return a function that repeats the call, since one takes only milliseconds."""

    def repeated() -> float:
        for _ in range(times):
            once()
        return float(times)

    return repeated


def _chunk(rows: int, shape: Sequence[int]) -> int:
    return min(rows, 256 if len(shape) == 1 else 64)


def _object(out: str, shard: int, rank: int) -> Path:
    return Path(out, "c", str(shard), *["0"] * (rank - 1))
