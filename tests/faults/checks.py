"""What must hold of the small run at any instant and at its end, looked at from outside, here and on S3."""

import contextlib
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import zarr

import store_worker as small
from genenc_core.store import commit_record, layout, run_store, store_keys, transaction, upload, verify
from genenc_core.store.backends import local, objects
from genenc_core.system import digests

Ledger = dict[str, str]
"""What is committed: key -> sha256 of the bytes that it must keep for ever."""


def create(root: objects.Root) -> None:
    """Make the small run, or find it made."""
    if not objects.is_remote(root):
        small.create(Path(root))
        return
    with tempfile.TemporaryDirectory() as scratch:
        made = small.create(Path(scratch))
        upload.publish(made.objects, objects.open_objects(root))


def stands(root: objects.Root) -> bool:
    """Whether readers find a group."""
    return objects.open_objects(root).has_group(store_keys.GROUP)


def read_once(store: run_store.RunStore, group: zarr.Group) -> Iterator[str]:
    """S1 and S2 through plain zarr, beside whatever runs; yield what is wrong.

    `status` is read first, because what it promises must hold for what is read later; the record last, because
    values may be in place only once there is one.
    """
    for shard in range(small.SHARDS):
        start, stop = store.shard_range(shard)
        status = np.asarray(group["status"][start:stop])
        seen = {array.name: np.asarray(group[array.name][start:stop]) for array in store.plan.arrays}
        record = store.record(shard)
        salt = 0 if record is None else int(record.details["salt"])
        arrays, final_status = small.content(shard, salt=salt)
        if status.any() and (record is None or not np.array_equal(status, final_status)):
            yield f"shard {shard}: status {status.tolist()} is not its record's"
        for planned in store.plan.arrays:
            block = seen[planned.name]
            final = record is not None and np.array_equal(block, arrays[planned.name])
            empty = np.array_equal(block, np.full_like(block, planned.fill), equal_nan=planned.dtype != "int32")
            if not final and (status.any() or not empty):
                yield f"shard {shard}: {planned.name} is neither fill nor final with status {status.tolist()}: {block}"


def ledger(store: run_store.RunStore) -> Ledger:
    """Return the digest of every commit record and of every object in its place."""
    keys = [store_keys.record(shard) for shard in sorted(store.committed())]
    keys += [f"{store_keys.GROUP}/{key}" for key, _ in store.objects.walk(store_keys.GROUP)]
    return {key: store.objects.digest(key)[1] for key in keys}


def lost(store: run_store.RunStore) -> Iterator[str]:
    """Yield committed objects that are neither in place nor staged as recorded, and objects without a record."""
    present = {key for key, _ in store.objects.walk(store_keys.GROUP)}
    committed = store.committed()
    for shard in range(store.shard_count):
        objects_of = {layout.chunk_key(array, shard) for array in store.plan.all_arrays}
        if shard not in committed and present & objects_of:
            yield f"shard {shard}: {sorted(present & objects_of)} in place without a record"
    for shard in sorted(committed):
        record = store.record(shard)
        if record is None:
            yield f"record of shard {shard} vanished"
            continue
        for item in record.objects:
            found, algorithm = set(), digests.algorithm(item.digest)
            for key in (f"{store_keys.GROUP}/{item.key}", f"{store_keys.STAGING}/{item.staged}"):
                if store.objects.size(key) is not None:
                    found.add(f"{algorithm}:{store.objects.digest(key, algorithm)[1]}")
            if item.digest not in found:
                yield f"shard {shard}: {item.key} is committed, and its bytes are nowhere"


def changed(before: Ledger, now: Ledger) -> Iterator[str]:
    """Yield what is not as it was once final."""
    yield from (f"{key} changed or vanished after it was final" for key in before if now.get(key) != before[key])


def of_shard(key: str, shard: int) -> bool:
    """Whether a key of the ledger belongs to a shard: its record, or an object of a planned array."""
    if key == store_keys.record(shard):
        return True
    return key in {f"{store_keys.GROUP}/{layout.chunk_key(array, shard)}" for array in small.plan().all_arrays}


def finish(root: objects.Root) -> Iterator[str]:
    """End the run as an uninterrupted command does, and compare it with a run that nobody killed."""
    store = run_store.RunStore.open(root)
    store.recover()
    for shard in store.pending():
        small.commit(store, shard)
    report = verify.verify_store(store, content=True)
    if not report.ok or report.pending or report.unpromoted:
        yield f"verify: {report}"
    with tempfile.TemporaryDirectory() as scratch:
        whole = small.create(Path(scratch))
        for shard in range(small.SHARDS):
            record = store.record(shard)
            small.commit(whole, shard, salt=0 if record is None else int(record.details["salt"]))
        yield from compare(store.objects, whole.objects)
    yield from litter(store.objects)


def compare(found: objects.Objects, whole: objects.Objects) -> Iterator[str]:
    """Yield how the bytes of two groups differ."""
    names = [{key for key, _ in folder.walk(store_keys.GROUP)} for folder in (found, whole)]
    if names[0] != names[1]:
        yield f"other files than an uninterrupted run's: {sorted(names[0] ^ names[1])}"
    for key in sorted(names[0] & names[1]):
        if found.digest(f"{store_keys.GROUP}/{key}") != whole.digest(f"{store_keys.GROUP}/{key}"):
            yield f"{key} has other bytes than an uninterrupted run's"


def litter(folder: objects.Objects) -> Iterator[str]:
    """Yield what a finished run has no use for."""
    allowed = {"commits", "staging", "store.json", "set-aside", "claims"}
    left = set(folder.names(store_keys.TRANSACTIONS)) - allowed
    if left:
        yield f"left in _txn: {sorted(left)}"
    if isinstance(folder, local.LocalObjects) or "staging" in folder.names(store_keys.TRANSACTIONS):
        staged = [key for key, _ in folder.walk(store_keys.STAGING)] + folder.names(store_keys.STAGING)
        if staged:
            yield f"left in staging: {staged}"


def damage(store: run_store.RunStore, shard: int) -> None:
    """Flip a bit of a committed object, in place from now on if a kill left it staged."""
    store.recover()
    key = f"{store_keys.GROUP}/features/c.{shard}.0"
    data = bytearray(store.objects.read(key))
    data[len(data) // 2] ^= 1
    store.objects.replace(key, bytes(data))


BROKEN = ("status-first", "last-wins", "torn-move", "early-clean", "no-record", "no-clean")


def break_protocol(how: str) -> None:
    """Break the protocol of this process on purpose, in a way that the checks must find."""
    real_promote, owners = transaction.promote, _owners()
    if how == "status-first":
        transaction.promote = lambda at, record, **more: real_promote(  # the data waits for its status
            at, _reversed(at, record, more["observe"]), **more
        )
    elif how == "last-wins":
        transaction.read_record = lambda *_: None
        for owner in owners:
            owner.create = _replacing(owner.create)
    elif how == "torn-move":
        for owner in owners:
            owner.move = _torn_move
    elif how == "early-clean":
        transaction.promote = lambda at, record, *, observe, **more: (
            transaction.clean(at, record, observe=observe),
            real_promote(at, record, observe=observe, **more),
        )
    elif how == "no-record":
        transaction.Attempt.commit = lambda self, record: (promote_unrecorded(self, record), record)[1]
    elif how == "no-clean":
        transaction.clean = lambda *_arguments, **_options: None


def promote_unrecorded(attempt: transaction.Attempt, record: commit_record.CommitRecord) -> None:
    """Put objects in place that no record stands for, as a writer with a marker of its own does."""
    transaction.promote(attempt.objects, record, observe=attempt.observe)


def _owners() -> list[type]:
    remote = sys.modules.get("genenc_core.store.backends.s3_objects")
    return [local.LocalObjects, *([remote.S3Objects] if remote else [])]


def _reversed(
    at: objects.Objects, record: commit_record.CommitRecord, observe: store_keys.Observer
) -> commit_record.CommitRecord:
    """Put the status in place before the data."""
    status = record.objects[-1]
    with contextlib.suppress(FileNotFoundError):  # moved before or beside us; only the order is to be broken
        at.move(f"{store_keys.STAGING}/{status.staged}", f"{store_keys.GROUP}/{status.key}")
    observe("promote:object")
    time.sleep(0.005)
    return record


def _replacing(real: Callable[..., None]) -> Callable[..., None]:
    """Replace the commit record that is there."""

    def create(self: objects.Objects, key: str, data: bytes, *, via: str) -> None:
        if key.startswith(store_keys.COMMITS):
            self.replace(key, data)
        else:
            real(self, key, data, via=via)

    return create


def _torn_move(self: objects.Objects, source: str, target: str, *, size: int | None = None) -> None:
    """Write a live object in two steps."""
    data = self.read(source)
    for part in (data[: len(data) // 2], data):
        if isinstance(self, local.LocalObjects):
            self.path(target).write_bytes(part)
        else:
            self.replace(target, part)
        time.sleep(0.005)
    self.remove(source)
