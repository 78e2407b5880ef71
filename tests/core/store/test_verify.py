"""Verify finds every way in which a run folder can differ from what it says, and nothing in one that does not."""

import contextlib
import dataclasses
from types import ModuleType

import numpy as np
import pytest
import zarr

import store_damage
from genenc_core.store import run_store, store_keys, verify


@pytest.mark.parametrize("content", [False, True])
def test_an_untouched_run_has_no_problem(full: run_store.RunStore, content: bool) -> None:
    assert verify.verify_store(full, content=content) == verify.VerifyReport(
        shards_checked=3, pending=(), unpromoted=(), problems=()
    )
    assert verify.verify_store(full).ok


@pytest.mark.parametrize("case", store_damage.CASES)
def test_damage_is_found_and_named_alone(full: run_store.RunStore, case: str) -> None:
    """With its shard and rows; nothing else is blamed."""
    damage, shard, key, what = store_damage.CASES[case]
    damage(full)
    report = verify.verify_store(full)
    assert not report.ok
    (problem,) = report.problems
    assert (problem.shard, problem.key) == (shard, key)
    assert problem.rows == (None if shard is None else (8, 16))
    assert what in problem.what


def test_pending_shards_are_no_problem(small: ModuleType, store: run_store.RunStore) -> None:
    small.commit(store, 1)
    report = verify.verify_store(store, content=True)
    assert report.ok
    assert (report.shards_checked, report.pending) == (1, (0, 2))


def test_objects_without_a_record_are_foreign(small: ModuleType, store: run_store.RunStore) -> None:
    """What a program that writes through zarr, or a deleted record, leaves: readers see it, nothing stands for it."""
    small.commit(store, 0)
    zarr.open_array(store.objects.path(store_keys.GROUP) / "features", mode="r+")[8:16] = 1
    store.objects.path(store_keys.record(0)).unlink()
    problems = verify.verify_store(store).problems
    assert {(p.shard, p.rows, p.key) for p in problems} == {
        (0, (0, 8), "features/c.0.0"),
        (0, (0, 8), "probes/c.0.0.0"),
        (0, (0, 8), "image_height/c.0"),
        (0, (0, 8), "status/c.0"),
        (1, (8, 16), "features/c.1.0"),
    }
    assert all("no commit record" in p.what for p in problems)


@pytest.mark.parametrize("point", ["commit:after", "promote:before-status"])
def test_unpromoted_shard_is_not_damaged(small: ModuleType, store: run_store.RunStore, point: str) -> None:
    class Stop(Exception):
        pass

    def stop(passed: str) -> None:
        if passed == point:
            raise Stop

    stopped = run_store.RunStore.open(store.objects.root, observer=stop)
    with pytest.raises(Stop):
        small.commit(stopped, 1)
    report = verify.verify_store(store)
    assert report.ok
    assert (report.unpromoted, report.pending) == ((1,), (0, 2))
    assert store.recover() == [1]
    assert verify.verify_store(store).unpromoted == ()


def test_content_finds_metadata_that_gives_the_same_bytes_another_meaning(full: run_store.RunStore) -> None:
    path = full.objects.path(store_keys.GROUP) / "image_height" / "zarr.json"
    path.write_text(path.read_text().replace('"little"', '"big"', 1))  # the values', not the shard index's
    for content in (False, True):
        assert {p.key for p in verify.verify_store(full, content=content).problems} == {"image_height/zarr.json"}
    size, sha256 = full.objects.digest(f"{store_keys.GROUP}/image_height/zarr.json")
    believed = dataclasses.replace(full, created={**full.created, "image_height/zarr.json": (size, sha256)})
    keys = {p.key for p in verify.verify_store(believed, content=True).problems if "different values" in p.what}
    assert keys == {"image_height/c.0", "image_height/c.1", "image_height/c.2"}


def test_what_zarr_reads_silently_as_fill_values_is_found(full: run_store.RunStore) -> None:
    """A zero-length shard, as a power loss leaves without fsync, reads as NaN without any error in older Zarr."""
    path = full.objects.path(store_keys.GROUP) / "features" / "c.0.0"
    path.write_bytes(b"")
    with contextlib.suppress(ValueError):  # what newer Zarr says of it
        assert np.isnan(zarr.open_array(full.objects.path(store_keys.GROUP) / "features", mode="r")[0:8]).all()
    assert [p.key for p in verify.verify_store(full).problems] == ["features/c.0.0"]


def test_recover_finishes_the_others_and_names_a_lost_shard(small: ModuleType, store: run_store.RunStore) -> None:
    small.commit(store, 0)
    small.commit(store, 2)
    (store.objects.path(store_keys.GROUP) / "status/c.0").unlink()
    with pytest.raises(Exception, match=r"shard 00000: object 'status/c\.0' is committed but neither in place nor"):
        store.recover()
    assert [p.key for p in verify.verify_store(store).problems] == ["status/c.0"]
