"""For tests of reports: options of a tiny model, and a stand-in for the vectors that a run stores."""

from types import SimpleNamespace
from typing import Any

import numpy as np

from genenc_core.stored.rows import Part

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
        self.points = tuple(f"point {at}" for at in range(vectors.shape[1])) if vectors.ndim == 3 else ()
        dims = ("point", "v_channel") if vectors.ndim == 3 else ("v_channel",)
        self.product: Any = SimpleNamespace(
            name="v", dims=dims, shape=vectors.shape[1:], row_bytes=vectors[0].nbytes, of_points=vectors.ndim == 3
        )

    @property
    def parts(self) -> tuple[Part, ...]:
        """Return one run, of which only the shards are there."""
        every = np.arange(len(self.vectors))
        plan = SimpleNamespace(shard_rows=self.shard_rows)
        run: Any = SimpleNamespace(store=SimpleNamespace(plan=plan, shard_count=-(-len(every) // self.shard_rows)))
        return (Part("", run, every, every),)

    def read(self, name: str, rows: np.ndarray) -> np.ndarray:
        """Return rows."""
        if name == "point_status":
            assert self.states is not None
            return np.asarray(self.states[rows])
        return np.asarray(self.vectors[rows])

    take = read
