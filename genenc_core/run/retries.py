"""Retries of unreadable rows: select them, and merge those that can be read now into the shard."""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np

from genenc_core import statuses, stored_arrays
from genenc_core.encoding import shard_encoding
from genenc_core.encoding.shard_encoding import EncodedShard
from genenc_core.run import status
from genenc_core.run.decisions import KEY, joined
from genenc_core.store import layout
from genenc_core.store.commit_record import CommitRecord


def rows(blocks: Mapping[str, np.ndarray], record: CommitRecord, wanted: str) -> list[int]:
    """Return the unreadable rows of a shard selected by `wanted`: `all`, or a list like `5,17-20`."""
    unreadable = (np.flatnonzero(blocks[layout.STATUS] == statuses.UNREADABLE) + record.rows[0]).tolist()
    if wanted == "all":
        return unreadable
    ranges = status.parse_ranges(wanted, 2**53, "rows")
    return [row for row in unreadable if any(first <= row <= last for first, last in ranges)]


def merged(
    before: CommitRecord,
    blocks: Mapping[str, np.ndarray],
    tried: Sequence[int],
    done: EncodedShard,
    *,
    of_regions: Collection[str] = (),
) -> tuple[dict[str, np.ndarray], np.ndarray, dict[str, Any]]:
    """Return a shard's arrays, status and details, updated with the rows that could be read now.

    Args:
        before: the shard's current record.
        blocks: its arrays, [rows_of_shard, ...].
        tried: the rows that were retried.
        done: their results, in the same order.
        of_regions: names of the arrays `[region, ...]`.
    """
    now = np.flatnonzero(done.status == statuses.OK)
    at = np.asarray(tried)[now] - before.rows[0]
    arrays = {name: block.copy() for name, block in blocks.items()}
    readable = _readable_regions(done)
    for name, block in done.arrays.items():
        if name in of_regions:
            arrays[name][readable] = block[readable]
        else:
            arrays[name][at] = block[now]
    state = arrays.pop(layout.STATUS)
    state[at] = statuses.OK
    points = arrays.get(stored_arrays.POINT_STATUS, np.zeros(0, dtype=np.uint8))
    details = _details(before, tried, {int(row) for row in np.asarray(tried)[now]}, done)
    details["points"] = statuses.counts(statuses.written(statuses.POINTS), points)
    details.update(shard_encoding.region_counts(arrays))
    return arrays, state, details


def _readable_regions(done: EncodedShard) -> np.ndarray:
    """Return which places of a shard have a region of an image that was read, bool `[places]`."""
    state = done.arrays.get(stored_arrays.REGION_STATUS, np.zeros(0, np.uint8))
    readable: np.ndarray = ~np.isin(state, (statuses.REGION_UNREADABLE, statuses.NO_REGION))
    return readable


def _details(before: CommitRecord, tried: Sequence[int], healed: set[int], done: EncodedShard) -> dict[str, Any]:
    old, new = before.details, done.details
    failed: Any = new["unreadable"]
    changed: Any = new["changed_since_planned"]
    digests = list(old["input_sha256"])
    for row, digest in zip(tried, _sequence(new["input_sha256"]), strict=True):
        digests[row - before.rows[0]] = digest
    again = {item["row"] for item in failed}
    kept = [item for item in old["unreadable"] if item["row"] not in healed | again]
    further = sorted({*old.get("further_frames", ()), *_sequence(new.get("further_frames", ()))})
    return {
        **old,  # keep `seconds` and `work`: a few retried rows are not representative of the run's speed
        "unreadable": sorted([*kept, *failed], key=lambda item: item["row"]),
        "changed_since_planned": [*old.get("changed_since_planned", ()), *changed],
        "input_sha256": digests,
        "batch_sizes": dict(Counter(old["batch_sizes"]) + Counter(_mapping(new["batch_sizes"]))),
        **({"further_frames": further} if further else {}),
        "healed": sorted(healed),
        **{name: new[name] for name in ("source",) if name in new},  # of probes: what was read this time
        **({KEY: joined([old[KEY], _mapping(new[KEY])])} if KEY in old and KEY in new else {}),
    }


def _sequence(value: Any) -> Sequence[Any]:
    return list(value)


def _mapping(value: Any) -> dict[str, Any]:
    return dict(value)
