"""What integers lose, by where their scale is one; and what a reader of 64 of 768 channels reads.

python tests/benchmarks/stored_products.py losses photos --model convnext_tiny
python tests/benchmarks/stored_products.py chunks
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import zarr
from zarr.abc.store import Store
from zarr.storage import LocalStore, WrapperStore

from genenc_core import api
from genenc_core.encoding import products, quantization
from genenc_core.spec import SlotSpec
from genenc_core.store import layout, run_store, store_keys

ROWS, CHANNELS, WANTED = 4096, 768, 64


class Counting(WrapperStore[Store]):
    """A store that counts requests and bytes of objects."""

    def __init__(self, path: Path) -> None:
        super().__init__(LocalStore(path, read_only=True))
        self.read = self.requests = 0

    async def get(self, key: str, *given: Any, **more: Any) -> Any:
        """Read an object, or a range of it."""
        found = await super().get(key, *given, **more)
        if found is not None and not key.endswith("zarr.json"):
            self.read += len(found)
            self.requests += 1
        return found


def _quantized(vectors: np.ndarray, dtype: str) -> np.ndarray:
    """Return float values of vectors `[n, C]` stored with a scale each."""
    asked = products.parse_product(f"v=none@{dtype}")
    (of,) = products.build_products([asked], [SlotSpec(name="s", shape=vectors.shape[1:])], point_count=0)
    found = {name: array.numpy() for name, array in quantization.stored(of, torch.from_numpy(vectors)).items()}
    values = found["v"].astype(np.float32) * found["v_scale"][:, None]
    return values + found["v_offset"][:, None] if dtype == "uint8" else values


def losses(images: str, model: str, weights: str, size: str) -> Iterator[str]:
    """Yield the loss of vectors and of maps, whose scale is that of a cell or of the whole image."""
    with tempfile.TemporaryDirectory() as folder:
        out = str(Path(folder) / "run")
        asked = ["features=global_avg_pool", "maps=none@float32"]
        run = api.extract(images, model, out, weights=weights, image_size=size, products=asked)
        arrays = run.arrays()
        good = arrays.status.values == 1
        vectors, maps = arrays.features.values[good], arrays.maps.values[good]
    cells = np.moveaxis(maps, 1, -1)
    yield "| what | stored as | cosine, mean | worst | recall@10 |\n|---|---|---|---|---|"
    for dtype in ("int8", "uint8"):
        whole = np.ascontiguousarray(cells.reshape(len(cells), -1))
        for what, exact, kept in (
            ("vectors", vectors, _quantized(vectors, dtype)),
            ("maps, a scale per cell", _flat(cells), _quantized(_flat(cells), dtype)),
            ("maps, a scale per image", _flat(cells), _quantized(whole, dtype).reshape(-1, cells.shape[-1])),
        ):
            found = quantization.loss(exact, kept)
            yield (
                f"| {what} | {dtype} | {found['cosine_mean']:.6f} | {found['cosine_worst']:.6f} | "
                f"{found['recall_at_10']} |"
            )


def _flat(cells: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(cells.reshape(-1, cells.shape[-1]))


def chunks() -> Iterator[str]:
    """Yield what a shard of vectors costs to write and to read, whole and by chunks of 64 channels."""
    yield "| chunks of | written, ms | 64 channels read: bytes, requests, ms | all: bytes, requests, ms |"
    yield "|---|---|---|---|"
    block = np.random.default_rng(0).normal(size=(ROWS, CHANNELS)).astype(np.float32)
    for tail in ((), (WANTED,)):
        with tempfile.TemporaryDirectory() as folder:
            plan = layout.StorePlan(
                rows=ROWS, shard_rows=ROWS, arrays=(_plan(tail),), fingerprint="f", identity={}, attributes={}
            )
            store = run_store.RunStore.create(Path(folder), plan, coordinates=[])
            began = time.perf_counter()
            store.commit(0, {"features": block}, np.ones(ROWS, np.uint8), details={})
            written = 1000 * (time.perf_counter() - began)
            read = [_read(Path(folder), block, slice(0, count)) for count in (WANTED, CHANNELS)]
            yield f"| {(*tail, 'all')[0]} channels | {written:.0f} | {read[0]} | {read[1]} |"


def _plan(tail: tuple[int, ...]) -> layout.ArrayPlan:
    return layout.ArrayPlan(
        name="features",
        shape=(ROWS, CHANNELS),
        dtype="float32",
        dims=("image", "features_channel"),
        chunk_rows=256,
        fill=float("nan"),
        attributes={},
        compress=False,
        chunk_tail=tail,
    )


def _read(folder: Path, block: np.ndarray, channels: slice) -> str:
    counting = Counting(folder / store_keys.GROUP)
    array: Any = zarr.open_group(counting, mode="r")["features"]
    began = time.perf_counter()
    found = array[:, channels]
    took = 1000 * (time.perf_counter() - began)
    np.testing.assert_array_equal(found, block[:, channels])
    return f"{counting.read:,}, {counting.requests}, {took:.0f}"


def main() -> None:
    """Print one of the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("table", choices=("losses", "chunks"))
    parser.add_argument("images", nargs="?", default="photos")
    parser.add_argument("--model", default="resnet18")
    parser.add_argument("--weights", default="random:0")
    parser.add_argument("--image-size", default="224")
    given = parser.parse_args()
    found = losses(given.images, given.model, given.weights, given.image_size) if given.table == "losses" else chunks()
    sys.stdout.write("".join(f"{line}\n" for line in found))


if __name__ == "__main__":
    main()
