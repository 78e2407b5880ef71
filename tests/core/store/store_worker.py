"""A small run that tests create, kill, resume and check; also the program that their processes run."""

import argparse
import importlib
import importlib.util
import json
import os
import pickle
import random
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import zarr

from genenc_core import errors
from genenc_core.store import creation, layout, repair, run_store, store_keys, upload, verify
from genenc_core.store.backends import local
from genenc_core.store.backends.objects import Objects, Root, is_remote, join, open_objects

ROWS, SHARD_ROWS, SHARDS = 20, 8, 3


def plan(**changes: object) -> layout.StorePlan:
    """A plan of 20 rows in shards of 8 (the last has 4), with a compressed, an uncompressed and an integer array.

    The chunks of the first divide its channels.
    """
    arrays = (
        layout.ArrayPlan(
            name="features",
            shape=(ROWS, 6),
            dtype="float16",
            dims=("image", "feature"),
            chunk_rows=4,
            fill=float("nan"),
            attributes={"coordinates": "image_id point_x"},
            compress=True,
            chunk_tail=(4,),
        ),
        layout.ArrayPlan(
            name="probes",
            shape=(ROWS, 2, 5),
            dtype="float32",
            dims=("image", "point", "feature_probe"),
            chunk_rows=2,
            fill=float("nan"),
            attributes={},
            compress=False,
        ),
        layout.ArrayPlan(
            name="image_height",
            shape=(ROWS,),
            dtype="int32",
            dims=("image",),
            chunk_rows=8,
            fill=-1,
            attributes={},
            compress=True,
        ),
    )
    fields = {
        "rows": ROWS,
        "shard_rows": SHARD_ROWS,
        "arrays": arrays,
        "fingerprint": "f1",
        "identity": {"model": {"name": "resnet18", "weights": "random:0"}, "images": "d1"},
        "attributes": {"title": "a test"},
    }
    return layout.StorePlan(**{**fields, **changes})


def coordinates() -> list[layout.CoordinatePlan]:
    """Ids in uneven blocks, point names, positions with a missing one."""
    names = [f"images/ä{row:03d}.png" for row in range(ROWS)]
    xy = np.arange(ROWS * 2, dtype=np.float64).reshape(ROWS, 2)
    xy[3, 1] = np.nan
    return [
        layout.CoordinatePlan(name="image_id", dims=("image",), values=iter([names[:7], names[7:]]), kind="string"),
        layout.CoordinatePlan(name="point", dims=("point",), values=["nose", "tail"], kind="string"),
        layout.CoordinatePlan(name="point_x", dims=("image", "point"), values=xy, kind="float64"),
    ]


def content(shard: int, *, salt: int = 0) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Every array of a shard and its status; another salt gives other bytes in every array, status included."""
    start, stop = shard * SHARD_ROWS, min((shard + 1) * SHARD_ROWS, ROWS)
    draw = np.random.default_rng([shard, salt])
    status = np.ones(stop - start, np.uint8)
    status[salt % len(status)] = 2
    arrays = {
        "features": draw.normal(size=(stop - start, 6)).astype(np.float16),
        "probes": draw.normal(size=(stop - start, 2, 5)).astype(np.float32),
        "image_height": draw.integers(1, 1000, stop - start, dtype=np.int32),
    }
    return arrays, status


def create(root: Root, *, observer: store_keys.Observer = store_keys.silent, **changes: object) -> run_store.RunStore:
    """Create or open the run; on S3 it is made in a local folder and published."""
    if not is_remote(root):
        return run_store.RunStore.create(Path(root), plan(**changes), coordinates=coordinates(), observer=observer)
    if not run_store.RunStore.exists(root):
        with tempfile.TemporaryDirectory() as scratch:
            run_store.RunStore.create(Path(scratch), plan(**changes), coordinates=coordinates())
            upload.publish(local.LocalObjects(Path(scratch)), open_objects(root))
    store = run_store.RunStore.open(root, observer=observer)
    creation.refuse_other(store.objects, store.plan, plan(**changes))
    return store


def commit(store: run_store.RunStore, shard: int, *, salt: int = 0) -> None:
    """Commit one shard's content."""
    arrays, status = content(shard, salt=salt)
    store.commit(shard, arrays, status, details={"salt": salt})


def healed(shard: int, *, salt: int = 0, by: int = 0) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """The content of a shard when its unreadable row is healed: other values in that row alone."""
    arrays, status = content(shard, salt=salt)
    for name, values in content(shard, salt=1000 + by)[0].items():
        arrays[name][status == 2] = values[status == 2]
    return arrays, np.ones_like(status)


def heal(store: run_store.RunStore, shard: int, *, by: int = 0) -> None:
    """Heal one shard, unless it is."""
    before = store.record(shard)
    if before is not None and not before.generation:
        arrays, status = healed(shard, salt=before.details["salt"], by=by)
        store.heal(before, arrays, status, details={**before.details, "by": by})


def resume(root: Root, *, observer: store_keys.Observer = store_keys.silent) -> run_store.RunStore:
    """What a user's second command does: create or open, recover, commit what is pending."""
    store = create(root, observer=observer)
    store.recover()
    for shard in store.pending():
        commit(store, shard)
    return store


def tree(root: Root) -> dict[str, bytes]:
    """Every file of the Zarr group."""
    objects = open_objects(root)
    return {key: objects.read(f"{store_keys.GROUP}/{key}") for key, _ in sorted(objects.walk(store_keys.GROUP))}


def check_readable(root: Root) -> None:
    """S1 and S2 through plain zarr: fill or final values; a row with a status is whole and is its record's."""
    if not open_objects(root).has_group(store_keys.GROUP):
        return
    store = run_store.RunStore.open(root)
    group = zarr.open_group(store.zarr_store(), mode="r")
    for shard in range(SHARDS):
        start, stop = store.shard_range(shard)
        status = group["status"][start:stop]  # first: what it promises must hold for what is read later
        seen = {array.name: group[array.name][start:stop] for array in store.plan.arrays}
        record = store.record(shard)
        salt = record.details["salt"] if record else 0
        arrays, final_status = content(shard, salt=salt)
        whole = bool(status.any())
        assert not whole or np.array_equal(status, final_status), f"{shard=} {status=}"
        for planned in store.plan.arrays:
            block = seen[planned.name]
            final = record is not None and np.array_equal(block, arrays[planned.name])
            empty = np.array_equal(block, np.full_like(block, planned.fill), equal_nan=planned.dtype != "int32")
            assert final or (empty and not whole), f"{shard=} {planned.name} {status=} {block=}"


def check_finished(root: Root, expected: dict[str, bytes]) -> None:
    """S4: the same bytes as an uninterrupted run, verified, and nothing left in staging."""
    assert tree(root) == expected
    store = run_store.RunStore.open(root)
    report = verify.verify_store(store, content=True)
    assert report.ok, report.problems
    assert not report.pending
    assert not report.unpromoted
    assert litter(store) == []


def litter(store: run_store.RunStore) -> list[str]:
    """What lies in `_txn/` beside the documents of a finished run."""
    allowed = {"store.json", *(store_keys.record(shard).removeprefix("_txn/") for shard in range(SHARDS))}
    return sorted({key for key, _ in store.objects.walk(store_keys.TRANSACTIONS)} - allowed | _folders(store))


def _folders(store: run_store.RunStore) -> set[str]:
    """What lies in staging as folders, which a walk over files does not show."""
    if not isinstance(store.objects, local.LocalObjects):
        return set()
    kept = {"commits", "staging", "store.json"}
    return {*store.objects.names(store_keys.STAGING), *store.objects.names(store_keys.TRANSACTIONS)} - kept


def kill_self() -> None:
    """Die as by kill -9: no handler, no cleanup, no flush."""
    os.kill(os.getpid(), signal.SIGKILL)


def killer(name: str, nth: int) -> store_keys.Observer:
    """An observer that kills this process the nth time it passes `name`."""
    seen = 0

    def observe(point: str) -> None:
        nonlocal seen
        seen += point == name
        if seen == nth and point == name:
            kill_self()

    return observe


CALLS = ("mkdir", "rmdir", "unlink", "link", "rename", "replace")
"""The calls between which a kill can be told apart from outside; an fsync changes nothing that a process sees."""
REQUESTS = ("put", "copy", "delete")
"""The same of S3; one deletion may be of many objects."""


def count_calls(root: Root, on_call: Callable[[int], object]) -> None:
    """Call `on_call(n)` before the nth call in this process that changes a folder."""
    made = 0

    def wrap(real: Callable[..., object]) -> Callable[..., object]:
        def call(*arguments: object, **options: object) -> object:
            nonlocal made
            made += 1
            on_call(made)
            return real(*arguments, **options)

        return call

    changing, module = (REQUESTS, importlib.import_module("obstore")) if is_remote(root) else (CALLS, os)
    for name in changing:
        setattr(module, name, wrap(getattr(module, name)))


def start_child(work: Callable[[], object]) -> tuple[int, int]:
    """Run `work` in a forked process; return its id and the pipe that its traceback goes to."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(read)
        code = 1
        try:
            work()
            code = 0
        except BaseException:
            os.write(write, traceback.format_exc()[-3000:].encode())
        finally:
            os._exit(code)
    os.close(write)
    return child, read


def end_child(child: int, read: int) -> tuple[int, str]:
    """Wait for a forked process; return its wait status and its traceback."""
    with os.fdopen(read, "rb") as pipe:
        text = pipe.read().decode()
    return os.waitpid(child, 0)[1], text


def in_child(work: Callable[[], object]) -> tuple[int, str]:
    """Run `work` in a forked process to its end; return its wait status and its traceback."""
    return end_child(*start_child(work))


def ask(work: Callable[[], Any]) -> Any:
    """Return what `work` returns in a forked process: a process that talked to S3 cannot be forked any more."""
    read, write = os.pipe()
    child, errors_of = start_child(lambda: os.fdopen(write, "wb").write(pickle.dumps(work())))
    os.close(write)
    with os.fdopen(read, "rb") as pipe:
        data = pipe.read()
    status, text = end_child(child, errors_of)
    assert status == 0, text
    return pickle.loads(data)


def exhaust(scratch: Root, stage: str, *, every: int) -> Iterator[str]:
    """Kill before the folder-changing calls of a stage, check, resume, check; yield what is wrong, then `points N`.

    A commit is killed before every call; a create before each of its last calls, and before every fifth of the many
    that only build what nobody can see yet. `every` leaves more out.
    """
    ready, whole = below(scratch, "ready"), below(scratch, "whole")
    results = [in_child(lambda: resume(whole)), in_child(lambda: create(ready))]
    assert all(status == 0 for status, _ in results), results
    expected = ask(lambda: tree(whole))

    def victim(root: Root, on_call: Callable[[int], object]) -> None:
        count_calls(root, on_call)
        if stage == "create":
            create(root)
        else:
            commit(run_store.RunStore.open(root), SHARDS - 1)

    def survivor(root: Root) -> None:
        check_readable(root)
        resume(root)
        check_finished(root, expected)
        open_objects(root).remove_tree("")

    def prepare(name: str) -> Root:
        root = below(scratch, name)
        if stage != "create":
            assert in_child(lambda: create(root)) == (0, "")
        return root

    def count() -> int:
        calls = []
        victim(prepared, calls.append)
        return len(calls)

    prepared = prepare("counted")
    made = ask(count)
    chosen = [n for n in range(1, made + 1) if stage == "commit" or n > made - 10 or n % 5 == 0][::every]
    for at in chosen:
        root = prepare(f"at{at:03d}")
        status, text = in_child(lambda root=root, at=at: victim(root, lambda n: kill_self() if n == at else None))
        if not os.WIFSIGNALED(status):
            yield f"victim {at} was not killed: {text}"
        status, text = in_child(lambda root=root: survivor(root))
        if status:
            yield f"killed before call {at}: {text}"
    yield f"points {len(chosen)}"


def below(root: Root, name: str) -> Root:
    """Return a place for a run below a folder."""
    return join(root, name) if is_remote(root) else Path(root) / name


def want_all(root: Root, *, salt: int) -> None:
    """Commit every shard in an order of its own, dawdling at every point so that others come between."""
    draw = random.Random(salt)
    store = run_store.RunStore.open(root, observer=lambda _: time.sleep(draw.uniform(0, 0.004)))
    for shard in draw.sample(range(SHARDS), SHARDS):
        commit(store, shard, salt=salt)


def _finish_and_check(root: Root) -> None:
    run_store.RunStore.open(root).recover()
    check_readable(root)
    check_finished(root, tree(root))
    open_objects(root).remove_tree("")


def status_first(real: Callable[..., None]) -> Callable[..., None]:
    """A deliberately broken promotion, which the checker must find."""

    def promote(at: Objects, record: object, *, observe: store_keys.Observer, check_staged: bool = True) -> None:
        status = record.objects[-1]
        staged = f"{store_keys.STAGING}/{status.staged}"
        if at.size(staged) is not None:
            at.move(staged, f"{store_keys.GROUP}/{status.key}")
        real(at, record, observe=observe, check_staged=check_staged)

    return promote


def race(root: Root, *, salt: int, go: Path) -> None:
    """Create the run and want every shard with own bytes; start together with the other racers."""
    while not go.exists():
        time.sleep(0.001)
    create(root)
    want_all(root, salt=salt)


def main() -> None:
    """Run one of the programs above."""
    parser = argparse.ArgumentParser()
    parser.add_argument("program", choices=["resume", "exhaust", "race", "create", "repair", "heal"])
    parser.add_argument("root", type=lambda text: text if is_remote(text) else Path(text))
    parser.add_argument("--point", default="")
    parser.add_argument("--nth", type=int, default=1)
    parser.add_argument("--stage", default="commit")
    parser.add_argument("--salt", type=int, default=0)
    parser.add_argument("--every", type=int, default=1)
    parser.add_argument("--go", type=Path)
    parser.add_argument("--fingerprint", default="f1")
    asked = parser.parse_args()
    if asked.program == "resume":
        resume(asked.root, observer=killer(asked.point, asked.nth))
    elif asked.program == "heal":
        store = run_store.RunStore.open(asked.root, observer=killer(asked.point, asked.nth))
        while asked.go is not None and not asked.go.exists():
            time.sleep(0.001)
        heal(store, 1, by=asked.salt)
    elif asked.program == "repair":
        mended = run_store.RunStore.open(asked.root, observer=killer(asked.point, asked.nth))
        repair.repair_store(mended, coordinates=coordinates())
    elif asked.program == "exhaust":
        json.dump(list(exhaust(asked.root, asked.stage, every=asked.every)), sys.stdout)
    elif asked.program == "race":
        race(asked.root, salt=asked.salt, go=asked.go)
    else:
        while not asked.go.exists():
            time.sleep(0.001)
        try:
            create(asked.root, fingerprint=asked.fingerprint)
        except errors.StoreError as error:
            sys.exit(f"refused: {error}")


if __name__ == "__main__":
    main()
