"""What a shard must be to be stored: the planned arrays, shapes and types, and a status in every row."""

from collections.abc import Iterator, Mapping

import numpy as np

from genenc_core import errors
from genenc_core.store import layout


def problems(
    plan: layout.StorePlan, blocks: Mapping[str, np.ndarray], status: np.ndarray, *, rows: int
) -> Iterator[str]:
    """Yield why a shard's arrays and its status do not fit the plan."""
    planned = {array.name: array for array in plan.arrays}
    yield from (f"array {name!r} is missing" for name in planned if name not in blocks)
    yield from (f"array {name!r} is not planned" for name in blocks if name not in planned)
    for name in sorted(planned.keys() & blocks.keys()):
        yield from _block_problems(name, blocks[name], (rows, *planned[name].shape[1:]), planned[name].dtype)
    wrong = list(_block_problems(layout.STATUS, status, (rows,), "uint8"))
    yield from wrong
    if not wrong and not np.isin(status, (layout.OK, layout.UNREADABLE)).all():
        yield f"status must be {layout.OK} (ok) or {layout.UNREADABLE} (unreadable) in every row"


def _block_problems(name: str, block: object, shape: tuple[int, ...], dtype: str) -> Iterator[str]:
    if not isinstance(block, np.ndarray):
        yield f"{name!r} must be a numpy array, got {type(block).__name__}"
        return
    if block.shape != shape:
        yield f"{name!r} must have shape {shape}, got {block.shape}"
    if block.dtype != np.dtype(dtype):
        yield f"{name!r} must be {dtype}, got {block.dtype}"


def refuse_other_changes(shard: int, before: Mapping[str, np.ndarray], after: Mapping[str, np.ndarray]) -> None:
    """Raise when a healed shard differs from what it was in any row but those that went from unreadable to ok.

    Raises:
        StoreError: another row differs, or no row was healed.
    """
    healed = (before[layout.STATUS] == layout.UNREADABLE) & (after[layout.STATUS] == layout.OK)
    if not healed.any():
        raise errors.StoreError(f"shard {shard:05d}: no row of it was healed")
    for name, block in before.items():
        kept, now = (np.ascontiguousarray(item[~healed]) for item in (block, after[name]))
        if kept.tobytes() != now.tobytes():
            raise errors.StoreError(f"shard {shard:05d}: {name!r} differs in rows that are not healed")
