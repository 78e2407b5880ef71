"""Unreadable rows tried again: which ones, and what the shard is when some of them can be read now."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from genenc_core.encoding.shards import EncodedShard
from genenc_core.images.point_states import POINT_STATES
from genenc_core.run import status
from genenc_core.store import layout
from genenc_core.store.records import CommitRecord


def rows(blocks: Mapping[str, np.ndarray], record: CommitRecord, wanted: str) -> list[int]:
    """Return the unreadable rows of a shard that are wanted: `all`, or a list like `5,17-20`."""
    unreadable = (np.flatnonzero(blocks[layout.STATUS] == layout.UNREADABLE) + record.rows[0]).tolist()
    if wanted == "all":
        return unreadable
    ranges = status.numbers(wanted, 2**53, "rows")
    return [row for row in unreadable if any(first <= row <= last for first, last in ranges)]


def merged(
    before: CommitRecord, blocks: Mapping[str, np.ndarray], tried: Sequence[int], done: EncodedShard
) -> tuple[dict[str, np.ndarray], np.ndarray, dict[str, Any]]:
    """Return a shard's arrays, status and details with the rows that could be read now in their place.

    Args:
        before: the shard's record so far.
        blocks: its arrays, [rows_of_shard, ...].
        tried: the rows that were tried again.
        done: what came of them, in their order.
    """
    now = np.flatnonzero(done.status == layout.OK)
    at = np.asarray(tried)[now] - before.rows[0]
    arrays = {name: block.copy() for name, block in blocks.items()}
    for name, block in done.arrays.items():
        arrays[name][at] = block[now]
    state = arrays.pop(layout.STATUS)
    state[at] = layout.OK
    points = arrays.get("point_status", np.zeros(0, dtype=np.uint8))
    details = _details(before, tried, {int(row) for row in np.asarray(tried)[now]}, done)
    details["points"] = {name: int((points == value).sum()) for value, name in POINT_STATES.items()}
    return arrays, state, details


def _details(before: CommitRecord, tried: Sequence[int], healed: set[int], done: EncodedShard) -> dict[str, Any]:
    old, new = before.details, done.details
    failed: Any = new["unreadable"]
    changed: Any = new["changed_since_planned"]
    digests = list(old["input_sha256"])
    for row, digest in zip(tried, _sequence(new["input_sha256"]), strict=True):
        digests[row - before.rows[0]] = digest
    again = {item["row"] for item in failed}
    kept = [item for item in old["unreadable"] if item["row"] not in healed | again]
    return {
        **old,
        "unreadable": sorted([*kept, *failed], key=lambda item: item["row"]),
        "changed_since_planned": [*old.get("changed_since_planned", ()), *changed],
        "input_sha256": digests,
        "batch_sizes": dict(Counter(old["batch_sizes"]) + Counter(_mapping(new["batch_sizes"]))),
        "seconds": {name: old["seconds"].get(name, 0.0) + value for name, value in _mapping(new["seconds"]).items()},
        "healed": sorted(healed),
    }


def _sequence(value: Any) -> Sequence[Any]:
    return list(value)


def _mapping(value: Any) -> dict[str, Any]:
    return dict(value)
