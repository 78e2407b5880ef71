"""For tests of reports: options of a tiny model, and a stand-in for the vectors that a run stores."""

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np

MODEL: dict[str, Any] = {
    "model": "tiny_models:conv",
    "weights": "random:0",
    "image_size": "32",
    "device": "cpu",
    "batch_size": 2,
    "shard_rows": 4,
    "decode_workers": 1,
    "trust": True,
}


class Values:
    """What an audit reads of a run: vectors `[n, C]` or `[n, K, C]` in shards of some rows."""

    def __init__(self, vectors: np.ndarray, shard_rows: int = 8, states: np.ndarray | None = None) -> None:
        self.vectors, self.shard_rows, self.states = vectors, shard_rows, states
        self.ok = np.arange(len(vectors))
        self.point_names = tuple(f"point {at}" for at in range(vectors.shape[1])) if vectors.ndim == 3 else ()
        dims = ("point", "v_channel") if vectors.ndim == 3 else ("v_channel",)
        self.product: Any = SimpleNamespace(
            name="v", dims=dims, shape=vectors.shape[1:], row_bytes=vectors[0].nbytes, of_points=vectors.ndim == 3
        )

    def groups(self, rows: np.ndarray) -> tuple[np.ndarray, list[str]]:
        """Return shards of rows."""
        return rows // self.shard_rows, [str(at) for at in range(-(-len(self.vectors) // self.shard_rows))]

    def read(self, name: str, rows: np.ndarray) -> np.ndarray:
        """Return rows."""
        if name == "point_status":
            assert self.states is not None
            return np.asarray(self.states[rows])
        return np.asarray(self.vectors[rows])

    def blocks(self, name: str, rows: np.ndarray, row_bytes: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield rows, five at a time."""
        assert row_bytes > 0
        for start in range(0, len(rows), 5):
            yield rows[start : start + 5], self.read(name, rows[start : start + 5])
