"""Stored rows as a torch Dataset; apart, since importing it imports torch."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch.utils import data

from genenc_core.store.backends.objects import Root
from genenc_core.stored import rows as stored_rows
from genenc_core.stored.rows import Stored


class Rows(data.Dataset[dict[str, Any]]):
    """Rows of a product by position; each process opens the store itself."""

    def __init__(self, place: Root, version: int | None, product: str, point: int | None, rows: np.ndarray) -> None:
        self.place = place
        self.version = version
        self.product = product
        self.point = point
        self.rows = rows
        """Positions of the rows in the run or version, int64."""
        self._opened: Stored | None = None

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[dict[str, Any]]:
        """Return the items of a batch, which a DataLoader asks for at once."""
        wanted = self.rows[np.asarray(indices, np.int64)]
        values = self._stored.read(self.product, wanted)
        values = values if self.point is None else values[:, self.point]
        names = self._stored.images.text("image_id", wanted)
        items = zip(values, wanted.tolist(), names, strict=True)
        return [{self.product: torch.from_numpy(value), "row": row, "image_id": name} for value, row, name in items]

    @property
    def _stored(self) -> Stored:
        if self._opened is None:
            self._opened = stored_rows.open_rows(self.place, self.version)
        return self._opened

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_opened": None}
