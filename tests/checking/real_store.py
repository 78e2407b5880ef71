"""The real code of the store over the simulated one: its run, its tasks, its scenes."""

import atexit
import contextlib
import dataclasses
import functools
import tempfile
import uuid
from collections.abc import Callable, Hashable, Iterable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

from genenc_core import errors
from genenc_core.store import (
    commit_record,
    layout,
    leases,
    repair,
    run_store,
    store_keys,
    upload,
    verify,
    zarr_bytes,
)
from genenc_core.store.backends import local
from genenc_core.system import digests, proc
from simulated_store import LOCAL, PROCESS, Contents, Ended, SimulatedObjects, Task, same_names
from store_promises import Lens, Record

ROWS_OF_SHARD = 2


def plan(fingerprint: str = "f1") -> layout.StorePlan:
    """Two shards of two rows, one array beside `status`."""
    features = layout.ArrayPlan(
        name="features",
        shape=(2 * ROWS_OF_SHARD,),
        dtype="float32",
        dims=("image",),
        chunk_rows=ROWS_OF_SHARD,
        fill=float("nan"),
        attributes={},
        compress=False,
    )
    return layout.StorePlan(
        rows=2 * ROWS_OF_SHARD,
        shard_rows=ROWS_OF_SHARD,
        arrays=(features,),
        fingerprint=fingerprint,
        identity={"model": fingerprint},
        attributes={"title": fingerprint},
    )


@functools.cache
def created(fingerprint: str = "f1") -> Contents:
    """The files of a created run."""
    with tempfile.TemporaryDirectory() as scratch:
        made = run_store.RunStore.create(Path(scratch), plan(fingerprint), coordinates=[])
        return {key: made.objects.read(key, most=None) for key, _ in made.objects.walk("")}


FOLDERS = {f"{folder}/": b"" for folder in (store_keys.TRANSACTIONS, store_keys.COMMITS, store_keys.STAGING)}


def content(worker: str, shard: int) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Rows of a shard that tell who made them; the second row is unreadable."""
    values = np.array([ord(worker) + shard / 10, np.nan], np.float32)
    return {"features": values}, np.array([1, 2], np.uint8)


def commit(shard: int) -> Task:
    """Commit a shard; returns the attempt that won."""

    def run(objects: SimulatedObjects) -> Hashable:
        arrays, status = content(objects.worker[0], shard)
        return opened(objects).commit(shard, arrays, status, details={}).attempt

    return Task(f"commit {shard}", run)


def heal(shard: int) -> Task:
    """Heal the second row of a shard, unless it is; returns the attempt that won."""

    def run(objects: SimulatedObjects) -> Hashable:
        store = opened(objects)
        current = store.current(shard)
        assert current is not None
        before, arrays = current
        status = arrays.pop(layout.STATUS)
        if (status == 1).all():
            return before.attempt
        arrays["features"][1], status[1] = ord(objects.worker[0]), 1
        return store.heal(before, arrays, status, details={}).attempt

    return Task(f"heal {shard}", run)


def recover() -> Task:
    """What every command begins with."""
    return Task("recover", lambda objects: tuple(opened(objects).recover()))


def resume(*, mending: bool = False, healing: bool = False) -> Task:
    """Recover, then commit what is pending: the same command again; before it repair, or after it heal, if asked."""

    def run(objects: SimulatedObjects) -> Hashable:
        if mending:
            mend().run(objects)
        store = opened(objects)
        store.recover()
        for shard in store.pending():
            arrays, status = content("z", shard)
            store.commit(shard, arrays, status, details={})
        if healing:
            heal(0).run(objects)
        return "done"

    return Task("resume", run)


def verified(kind: str) -> Callable[[Contents], str]:
    """S4 and S8: `verify` finds nothing, nothing pending and nothing left to put in place."""

    def check(contents: Contents) -> str:
        objects = SimulatedObjects(kind, "z", (), created(), dict(contents))
        report = verify.verify_store(opened(objects), content=True)
        fine = report.ok and not report.pending and not report.unpromoted
        return "" if fine else f"S4: verify finds {report}"

    return check


def mend() -> Task:
    """Repair; on S3 after removing the lock of a killed repair, as its message says."""

    def run(objects: SimulatedObjects) -> Hashable:
        if not objects.is_local and objects.worker == "finisher":
            objects.remove(store_keys.REPAIR)
        return repair.repair_store(opened(objects), coordinates=[]).requeued

    return Task("repair", run)


def share(shard: int) -> Task:
    """Take the claim of a shard, work, and release it; `process/<worker>/works:<shard>` is there meanwhile."""

    def run(objects: SimulatedObjects) -> Hashable:
        works = f"{PROCESS}/{objects.worker}/works:{shard}"
        with processes(objects):
            lease = _Leases(objects)
            if not lease.take(shard):
                lease.close()
                return "left"
            if claimed := bool(lease._held[shard]):
                objects.replace(works, b"")
                objects.remove(works)
            lease.close()
            return "done" if claimed else "done without a claim"

    return Task(f"share {shard}", run)


@contextlib.contextmanager
def processes(objects: SimulatedObjects) -> Iterator[None]:
    """Let workers be processes, whose ends others can see."""

    def has_ended(process: Any) -> bool:
        return objects.size(f"{PROCESS}/{process['worker']}/alive") is None

    own = {"worker": objects.worker}
    with mock.patch.object(proc, "identity", lambda: own), mock.patch.object(proc, "has_ended", has_ended):
        yield


class _Leases(leases.Leases):
    """Leases with one heartbeat and no thread."""

    def _start(self) -> None:
        self._objects.make_folder(store_keys.CLAIMS)
        self._beat()


def one_holder(contents: Contents) -> str:
    """A shard is worked on by at most one of those that hold a claim and live."""
    for shard in range(2):
        working = [key for key in contents if key.startswith(f"{PROCESS}/") and key.endswith(f"/works:{shard}")]
        if len(working) > 1:
            return f"claims: {working} at once"
    return ""


def publish(fingerprint: str, *others: str) -> Task:
    """Create the run of this fingerprint; those of `others` if it belongs to them."""

    def run(objects: SimulatedObjects) -> Hashable:
        for each in (fingerprint, *others):
            try:
                upload.publish(local.LocalObjects(_local(each)), objects)
            except errors.OtherRunError:
                if each == (fingerprint, *others)[-1]:
                    raise
            else:
                return each
        raise AssertionError

    return Task(f"create {fingerprint}", run)


@functools.cache
def _local(fingerprint: str) -> Path:
    """A created run on the disk."""
    scratch = tempfile.TemporaryDirectory()
    atexit.register(scratch.cleanup)
    run_store.RunStore.create(Path(scratch.name), plan(fingerprint), coordinates=[])
    return Path(scratch.name)


def group_is_its_owners(contents: Contents) -> str:
    """S6: every file is of the run that `store.json` names; the last one comes last."""
    if store_keys.STORE_FILE not in contents:
        early = [key for key in contents if not key.startswith(f"{PROCESS}/")]
        return f"S6: {early} before store.json" if early else ""
    owner = next(
        each for each in ("f1", "f2") if created(each)[store_keys.STORE_FILE] == contents[store_keys.STORE_FILE]
    )
    files = {key: data for key, data in contents.items() if not key.startswith(f"{PROCESS}/")}
    wrong = [key for key, data in files.items() if created(owner).get(key) != data]
    if wrong:
        return f"S6: {wrong} are of another run than {owner}"
    last = f"{store_keys.GROUP}/zarr.json"
    missing = created(owner).keys() - files.keys()
    return f"S6: the group is complete without {sorted(missing)}" if last in files and missing else ""


def owner_stays(before: Contents, after: Contents) -> str:
    """S6: `store.json` never changes."""
    key = store_keys.STORE_FILE
    return "S6: store.json changed" if key in before and before[key] != after.get(key) else ""


def created_is_there(ended: Ended, contents: Contents) -> str:
    """S6: who created a run has it, whole."""
    if ended.error:
        return ""
    missing = [key for key, data in created(str(ended.value)).items() if contents.get(key) != data]
    return f"S6: {ended.task} returned, and {missing} are not its own" if missing else ""


def opened(objects: SimulatedObjects) -> run_store.RunStore:
    """Open the run; its `store.json` is read once for all, since nothing changes it."""
    return dataclasses.replace(_template(objects.kind_of_store), objects=objects)


@functools.cache
def _template(kind: str) -> run_store.RunStore:
    return run_store.RunStore.open(SimulatedObjects(kind, "z", (), created(), {}))


@functools.cache
def _record(data: bytes) -> Record | None:
    try:
        record = commit_record.CommitRecord.from_json(data, subject="record")
    except errors.StoreError:
        return None
    return Record(record.attempt, tuple(item.digest for item in record.objects))


@functools.cache
def _digest(data: bytes) -> str:
    return digests.of([data], digests.OBJECT.algorithm)


LENS = Lens(_record, _digest)


class Inline:
    """A pool without threads."""

    def __init__(self, **_options: object) -> None:
        pass

    def __enter__(self) -> "Inline":
        return self

    def __exit__(self, *_error: object) -> None:
        pass

    def map(self, function: Callable[..., Any], items: Iterable[Any]) -> list[Any]:
        return list(map(function, items))


@contextlib.contextmanager
def steady() -> Iterator[None]:
    """Let code take the same steps whenever it runs: no threads, no waiting, one time of day."""
    with contextlib.ExitStack() as patched:
        for module in (verify, upload):
            patched.enter_context(mock.patch.object(module, "ThreadPoolExecutor", Inline))
        patched.enter_context(mock.patch("genenc_core.store.repair.time.strftime", lambda *_: "now"))
        patched.enter_context(mock.patch("genenc_core.store.creation.wait_for_group", lambda _: None))
        patched.enter_context(mock.patch("genenc_core.run.records.now", lambda: "now"))
        patched.enter_context(mock.patch.object(leases.LOGGER, "disabled", True))
        patched.enter_context(mock.patch("secrets.token_hex", lambda _: uuid.uuid4().hex))
        patched.enter_context(mock.patch.object(zarr_bytes, "decode", lambda *asked: _decoded(*asked).copy()))
        yield


_decoded = functools.cache(zarr_bytes.decode)


def after(contents: Contents, *tasks: Task, kind: str = LOCAL) -> dict[str, Any]:
    """Return the contents after tasks, one after the other."""
    changed = dict(contents)
    for number, task in enumerate(tasks):
        with same_names(f"z{number}"):
            task.run(SimulatedObjects(kind, "z", (), created(), changed))
    return changed
