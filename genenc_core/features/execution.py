"""How a run was executed, by its records: the device, and the images per batch of each shard."""

import collections
from collections.abc import Mapping
from typing import Any

from genenc_core import errors
from genenc_core.run import records
from genenc_core.run.folder import RunFolder, batch_size_key
from genenc_core.store.commit_record import CommitRecord


def device(record: CommitRecord) -> str:
    """Return the device that made a shard, such as `cuda:0`; "" if that is not recorded."""
    found = record.details.get("device")
    return found if isinstance(found, str) else ""


def batch_sizes(record: CommitRecord) -> dict[int, int]:
    """Return how many batches of each size a shard was encoded in; {} if that is not recorded."""
    found: Any = record.details.get("batch_sizes")
    if not isinstance(found, Mapping):
        return {}
    return {int(size): int(count) for size, count in found.items() if str(size).isdigit() and isinstance(count, int)}


def batch_size(record: CommitRecord) -> int | None:
    """Return the size of most batches of a shard; None if that is not recorded."""
    found = batch_sizes(record)
    return max(found, key=lambda size: (found[size], size)) if found else None


def usual(run: RunFolder, *, most: int = 64) -> tuple[str, int | None]:
    """Return the device and batch size of most of the first shards of a run; "" and None where not recorded."""
    devices: collections.Counter[str] = collections.Counter()
    sizes: collections.Counter[int] = collections.Counter()
    for shard in sorted(run.store.committed())[:most]:
        record = run.store.record(shard)
        if record is not None:
            devices[device(record)] += 1
            sizes.update(batch_sizes(record))
    kind = devices.most_common(1)[0][0] if devices else ""
    return kind, sizes.most_common(1)[0][0] if sizes else searched_size(run, kind)


def searched_size(run: RunFolder, kind: str) -> int | None:
    """Return the batch size that was found once for a kind of device, or given; None if neither is recorded."""
    if run.given.batch_size != "auto":
        return run.given.batch_size
    key = batch_size_key(kind or "cpu")
    try:
        found = records.read_json(run.objects, key).get("size") if run.objects.size(key) is not None else None
    except errors.StoreError:  # informative
        return None
    return found if isinstance(found, int) else None
