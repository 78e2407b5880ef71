"""Unreadable rows that are stored later: a new record, the other rows bit for bit, killed and raced anywhere."""

import subprocess
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import zarr

from genenc_core import errors
from genenc_core.store import repair, run_store, store_keys, transaction, verify
from genenc_core.store.backends.objects import Root
from s3_server import ON_BOTH

POINTS = ("stage:before", "stage:object", "stage:after", "commit:before", "commit:after", "promote:object")
POINTS += ("promote:before-status", "promote:after", "clean:after")
SHARD = 1


def check_rows(small: ModuleType, store: run_store.RunStore, *by: int) -> None:
    """S1, S2, S3 through plain zarr: no other row differs; the healed one is whole where its status says so."""
    group = zarr.open_group(store.zarr_store(), mode="r")
    start, stop = store.shard_range(SHARD)
    status = group["status"][start:stop]  # first: what it promises must hold for what is read later
    old, old_status = small.content(SHARD)
    news = [small.healed(SHARD, by=each)[0] for each in by]
    others, healed = old_status == 1, old_status == 2
    assert (status[others] == 1).all()
    whole = list(news)
    for name, was in old.items():
        seen = group[name][start:stop]
        assert np.array_equal(seen[others], was[others]), name
        whole = [new for new in whole if np.array_equal(seen[healed], new[name][healed])]
        known = [was, *(new[name] for new in news)]
        assert any(np.array_equal(seen[healed], each[healed]) for each in known), name
    assert (status[healed] == 2).all() or whole


def check_whole(small: ModuleType, store: run_store.RunStore) -> None:
    """The first record and the next one, verified, and nothing else."""
    assert verify.verify_store(store, content=True).ok
    assert [record.generation for record in transaction.history(store.objects, SHARD)] == [0, 1]
    assert small.litter(store) == [store_keys.record(SHARD, 1).removeprefix("_txn/")]


@pytest.mark.slow
@ON_BOTH
def test_a_row_is_healed_by_a_new_record_and_the_old_one_stays(small: ModuleType, full: run_store.RunStore) -> None:
    first = full.objects.read(store_keys.record(SHARD))
    before = full.record(SHARD)
    assert before is not None
    small.heal(full, SHARD)
    after = full.record(SHARD)
    assert after is not None
    assert (after.generation, after.status_counts) == (1, {"ok": 8, "unreadable": 0})
    assert full.objects.read(store_keys.record(SHARD)) == first
    assert after.previous == transaction.record_digest(full.objects, before)
    check_rows(small, full, 0)
    check_whole(small, full)
    assert full.committed() == {0, 1, 2}
    assert full.recover() == []


@pytest.mark.slow
@ON_BOTH
def test_the_points_are_passed_in_this_order(small: ModuleType, full: run_store.RunStore) -> None:
    passed: list[str] = []
    small.heal(run_store.RunStore.open(full.objects, observer=passed.append), SHARD)
    begin = passed.index("stage:before")
    assert list(dict.fromkeys(passed[begin:])) == list(POINTS)


@pytest.mark.slow
@pytest.mark.parametrize("point", POINTS)
def test_a_kill_at_a_named_point_then_anybody_finishes(
    small: ModuleType, start: Callable[..., subprocess.Popen[str]], full: run_store.RunStore, point: str
) -> None:
    # What is in place already is looked at first, by the same steps.
    seen: list[str] = []
    probe = run_store.RunStore.open(full.objects, observer=seen.append)
    record = probe.record(SHARD)
    assert record is not None
    probe.blocks(record)
    nth = seen.count(point) + (2 if point in ("stage:object", "promote:object") else 1)
    process = start("heal", full.objects.root, "--point", point, "--nth", str(nth))  # type: ignore[attr-defined]
    _, error = process.communicate(timeout=300)
    assert process.returncode == -9, error
    check_rows(small, full, 0)
    done = POINTS.index(point) >= POINTS.index("commit:after")
    store = run_store.RunStore.open(full.objects)
    found = store.record(SHARD)
    assert found is not None
    assert found.generation == int(done)
    problems = verify.verify_store(store).problems
    assert problems == ()
    store.recover()
    check_rows(small, store, 0)
    small.heal(store, SHARD)
    check_rows(small, store, 0)
    check_whole(small, store)


@pytest.mark.slow
@ON_BOTH
def test_healers_that_race_leave_one_winner(
    small: ModuleType, start: Callable[..., subprocess.Popen[str]], full: run_store.RunStore, root: Root, tmp_path: Path
) -> None:
    go = tmp_path / "go"
    racers = [start("heal", root, "--go", str(go), "--salt", str(salt)) for salt in (1, 2, 3)]
    go.touch()
    for racer in racers:
        _, error = racer.communicate(timeout=300)
        assert racer.returncode == 0, error
    record = full.record(SHARD)
    assert record is not None
    check_rows(small, full, record.details["by"])
    check_whole(small, full)


def test_a_beaten_healer_finishes_the_winner(small: ModuleType, full: run_store.RunStore) -> None:
    """Another process heals the shard just before our link."""
    mine = run_store.RunStore.open(
        full.objects, observer=lambda point: point == "commit:before" and small.heal(full, SHARD, by=7)
    )
    small.heal(mine, SHARD, by=8)
    record = full.record(SHARD)
    assert record is not None
    assert record.details["by"] == 7
    check_rows(small, full, 7)
    check_whole(small, full)


def test_a_late_promotion_of_the_record_before_changes_nothing(small: ModuleType, full: run_store.RunStore) -> None:
    before = full.record(SHARD)
    assert before is not None
    small.heal(full, SHARD)
    tree = small.tree(full.objects.root)  # type: ignore[attr-defined]
    full._finish(before)
    assert small.tree(full.objects.root) == tree  # type: ignore[attr-defined]
    check_whole(small, full)


@pytest.mark.parametrize("change", ["another row", "nothing", "a row back to unreadable", "a wrong shape"])
def test_impossible_healing_is_refused_first(small: ModuleType, full: run_store.RunStore, change: str) -> None:
    before = full.record(SHARD)
    assert before is not None
    arrays, status = small.healed(SHARD)
    if change == "another row":
        arrays["features"][3] += 1
    elif change == "nothing":
        arrays, status = small.content(SHARD)
    elif change == "a row back to unreadable":
        status[3] = 2
    else:
        arrays["features"] = arrays["features"][:, :3]
    tree = small.tree(full.objects.root)  # type: ignore[attr-defined]
    with pytest.raises(errors.StoreError):
        full.heal(before, arrays, status, details={})
    assert small.tree(full.objects.root) == tree  # type: ignore[attr-defined]
    assert small.litter(full) == []


@pytest.mark.parametrize("damage", ["first vanished", "first edited", "second edited", "second vanished", "object"])
def test_damage_to_a_healed_shard_is_repaired(small: ModuleType, full: run_store.RunStore, damage: str) -> None:
    small.heal(full, SHARD)
    root = full.objects.root  # type: ignore[attr-defined]
    first, second = root / store_keys.record(SHARD), root / store_keys.record(SHARD, 1)
    if damage == "first vanished":
        first.unlink()
    elif damage == "second vanished":
        second.unlink()
    elif damage == "object":
        (root / "features.zarr" / "features" / "c.1.0").write_bytes(b"x")
    else:
        path = first if damage == "first edited" else second
        path.write_bytes(path.read_bytes().replace(b'"salt":0', b'"salt":9'))
    assert not verify.verify_store(full).ok
    repair.repair_store(full, coordinates=small.coordinates())
    assert full.pending() == [SHARD]
    small.resume(root)
    assert verify.verify_store(full, content=True).ok
    assert small.litter(full)
    assert all("set-aside" in name for name in small.litter(full))
