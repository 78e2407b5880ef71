"""Repair re-queues exactly the damaged shards, restores metadata, keeps what it took away, may be killed anywhere."""

import subprocess
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

import s3_proxy
import s3_server
import store_damage
from genenc_core import errors
from genenc_core.store import repair, run_store, store_keys, verify
from genenc_core.store.backends.objects import Root
from s3_server import ON_BOTH, ON_S3


def mend(small: ModuleType, store: run_store.RunStore) -> repair.Repaired:
    return repair.repair_store(store, coordinates=small.coordinates(), content=True)


@pytest.mark.parametrize("case", store_damage.CASES)
def test_every_damage_is_repaired_alone(small: ModuleType, full: run_store.RunStore, case: str) -> None:
    before = small.tree(full.objects.root)
    damage, shard, *_ = store_damage.CASES[case]
    damage(full)
    untouched = {number: full.objects.path(store_keys.record(number)).read_bytes() for number in (0, 2)}
    done = mend(small, full)
    assert done.unrepaired == ()
    assert done.requeued == (() if shard is None else (shard,))
    report = verify.verify_store(full, content=True)
    assert report.problems == ()
    assert report.pending == done.requeued
    small.check_readable(full.objects.root)
    assert {number: full.objects.path(store_keys.record(number)).read_bytes() for number in (0, 2)} == untouched
    assert small.resume(full.objects.root).pending() == []
    assert small.tree(full.objects.root) == before
    assert verify.verify_store(full, content=True).ok


STAGED = {
    "flip": lambda path, data: path.write_bytes(data[:-1] + bytes([data[-1] ^ 1])),
    "cut": lambda path, data: path.write_bytes(data[:-1]),
    "empty": lambda path, _: path.write_bytes(b""),
    "gone": lambda path, _: path.unlink(),
    "folder": lambda path, _: (path.unlink(), path.mkdir()),
    "link": lambda path, _: (path.unlink(), path.symlink_to("/etc/hostname")),
}


@pytest.mark.parametrize("how", STAGED)
@pytest.mark.parametrize("point", ["commit:after", "promote:object", "promote:before-status"])
def test_staged_damage_is_repaired(small: ModuleType, store: run_store.RunStore, point: str, how: str) -> None:
    class Killed(Exception):
        pass

    def kill(passed: str) -> None:
        if passed == point:
            raise Killed

    small.commit(store, 0)
    with pytest.raises(Killed):
        small.commit(run_store.RunStore.open(store.objects.root, observer=kill), 1)
    (attempt,) = store.objects.path(store_keys.STAGING).iterdir()
    victim = max(attempt.iterdir(), key=lambda path: path.name)
    STAGED[how](victim, victim.read_bytes())
    report = verify.verify_store(store)
    assert [problem.shard for problem in report.problems] == [1]
    with pytest.raises(errors.StoreError):
        store.recover()
    assert mend(small, store).requeued == (1,)
    assert verify.verify_store(store, content=True).problems == ()
    assert small.resume(store.objects.root).pending() == []
    assert verify.verify_store(store, content=True).ok
    assert not list(store.objects.path(store_keys.STAGING).iterdir())


def test_an_intact_run_is_not_touched(small: ModuleType, full: run_store.RunStore) -> None:
    before = {path: path.stat().st_mtime_ns for path in sorted(full.objects.root.rglob("*"))}
    done = mend(small, full)
    assert (done.requeued, done.restored, done.set_aside) == ((), (), ())
    assert {path: path.stat().st_mtime_ns for path in sorted(full.objects.root.rglob("*"))} == before


def test_what_was_wrong_is_kept(small: ModuleType, full: run_store.RunStore) -> None:
    store_damage.flip(full, "features/c.1.0")
    wrong = (full.objects.path(store_keys.GROUP) / "features/c.1.0").read_bytes()
    record = full.objects.path(store_keys.record(1)).read_bytes()
    done = mend(small, full)
    assert (full.objects.path(done.folder) / "features.zarr/features/c.1.0").read_bytes() == wrong
    assert (full.objects.path(done.folder) / "commits/s0000001.json").read_bytes() == record
    assert sorted(done.set_aside) == [
        "commits/s0000001.json",
        "features.zarr/features/c.1.0",
        "features.zarr/image_height/c.1",
        "features.zarr/probes/c.1.0.0",
        "features.zarr/status/c.1",
    ]


def test_objects_without_record_are_taken_away(small: ModuleType, store: run_store.RunStore) -> None:
    small.commit(store, 0)
    small.commit(store, 1)
    store.objects.path(store_keys.record(0)).unlink()
    done = mend(small, store)
    assert done.requeued == (0,)
    assert not (store.objects.path(store_keys.GROUP) / "status/c.0").exists()
    assert verify.verify_store(store).ok


def test_metadata_that_would_come_out_otherwise_is_left_and_named(small: ModuleType, full: run_store.RunStore) -> None:
    """Coordinates that are not the run's own do not replace what is there."""
    store_damage.flip(full, "image_id/c.0")
    other = [item for item in small.coordinates() if item.name != "image_id"]
    done = repair.repair_store(full, coordinates=other)
    (problem,) = done.unrepaired
    assert problem.key == "image_id/c.0"
    assert "restore it from a copy" in problem.what
    assert (full.objects.path(store_keys.GROUP) / "image_id/c.0").exists()
    assert not list(full.objects.path(store_keys.TRANSACTIONS).glob("creating-*"))


@pytest.mark.parametrize("nth", range(1, 6))
def test_a_kill_during_repair_leaves_fill_or_final_values_and_the_next_repair_goes_on(
    small: ModuleType, start: Callable[..., subprocess.Popen[str]], tmp_path: Path, nth: int
) -> None:
    root = tmp_path / "run"
    store = small.resume(root)
    whole = small.tree(root)
    store_damage.CASES["edited record"][0](store)
    process = start("repair", root, "--point", "repair:moved", "--nth", str(nth))
    _, error = process.communicate(timeout=300)
    assert process.returncode == -9, error
    assert not (store.objects.path(store_keys.GROUP) / "status/c.1").exists()
    if nth < 5:
        with pytest.raises(errors.StoreError, match=r"s0000001\.json|genenc verify --repair"):
            store.recover()
    (root / store_keys.TRANSACTIONS / "taken-down-killed").write_bytes(b"a mark on its way")
    done = mend(small, store)
    assert done.requeued == (() if nth == 5 else (1,))
    assert set(store.objects.names(store_keys.TRANSACTIONS)) == {"commits", "staging", "store.json", "set-aside"}
    small.check_readable(root)
    small.resume(root)
    assert small.tree(root) == whole
    assert verify.verify_store(store, content=True).ok


def test_failing_disk_is_told(small: ModuleType, full: run_store.RunStore, monkeypatch: pytest.MonkeyPatch) -> None:
    store_damage.flip(full, "features/c.1.0")

    def fail(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device", "x")

    monkeypatch.setattr(Path, "rename", fail)
    with pytest.raises(errors.StoreError, match=r"repair of .*No space left"):
        repair.repair_store(full, coordinates=small.coordinates())


def test_live_commits_are_left(small: ModuleType, store: run_store.RunStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Verifying takes minutes on a large run, and a shard without a record is what workers take up."""
    small.commit(store, 0)
    small.commit(store, 1)
    store.objects.path(store_keys.record(0)).unlink()
    look = verify.verify_store

    def look_slowly(*given: run_store.RunStore, **options: bool) -> verify.VerifyReport:
        report = look(*given, **options)
        small.commit(store, 0)
        return report

    monkeypatch.setattr(verify, "verify_store", look_slowly)
    done = mend(small, store)
    assert (done.requeued, done.set_aside) == ((), ())
    assert store.committed() == {0, 1}
    assert look(store, content=True).ok


@pytest.mark.slow
@ON_S3
def test_damage_on_s3_is_found_and_put_right(small: ModuleType, full: run_store.RunStore) -> None:
    """One run, damaged, mended and resumed again and again."""
    whole = small.tree(full.name)
    for cases in (
        ("zero-length object", "deleted status", "deleted coordinate", "foreign file"),
        ("flipped bit",),
        ("edited record",),
    ):
        damages = [store_damage.CASES[case] for case in cases]
        for damage, *_ in damages:
            damage(full)
        found = {(problem.shard, problem.key): problem.what for problem in verify.verify_store(full).problems}
        assert found.keys() == {(shard, key) for _, shard, key, _ in damages}
        assert all(what in found[shard, key] for _, shard, key, what in damages)
        done = mend(small, full)
        assert (done.requeued, done.unrepaired) == ((1,), ())
        small.check_readable(full.name)
        small.resume(full.name)
        assert small.tree(full.name) == whole
    assert verify.verify_store(full, content=True).ok
    assert full.objects.size(store_keys.REPAIR) is None


@pytest.mark.slow
@ON_BOTH
def test_a_second_repair_at_the_same_time_is_refused(small: ModuleType, full: run_store.RunStore, root: Root) -> None:
    """Late, it would take down what was committed after the first."""
    refusals = []

    def second(_point: str) -> None:
        if full.objects.size(store_keys.record(1)) is None:
            return  # the last step is done
        with pytest.raises(errors.StoreError, match=r"another repair of .* is running .*process \d+ on") as refused:
            mend(small, full)
        refusals.append(refused.value)

    store_damage.CASES["edited record"][0](full)
    mend(small, run_store.RunStore.open(root, observer=second))
    assert len(refusals) == 4
    assert full.pending() == [1]
    assert mend(small, full).requeued == ()


@pytest.mark.slow
@ON_BOTH
def test_shard_in_repair_cannot_be_committed(small: ModuleType, store: run_store.RunStore, root: Root) -> None:
    """Its objects would go as they come: a status would stand for rows that are not there."""
    small.commit(store, 1)
    store.objects.remove(store_keys.record(1))
    tried = []

    def worker(_point: str) -> None:
        if store.objects.size(store_keys.record(1)) is not None:
            with pytest.raises(errors.StoreError, match="taken-down"):
                small.commit(store, 1, salt=5)
            tried.append(1)

    done = mend(small, run_store.RunStore.open(root, observer=worker))
    assert done.requeued == (1,)
    assert len(tried) == 4
    small.commit(store, 1, salt=6)
    small.check_readable(root)
    assert verify.verify_store(store, content=True).ok


@pytest.mark.slow
@ON_BOTH
def test_a_shard_that_is_committed_before_it_is_marked_is_left_alone(
    small: ModuleType, store: run_store.RunStore, root: Root, monkeypatch: pytest.MonkeyPatch
) -> None:
    small.commit(store, 1)
    store.objects.remove(store_keys.record(1))
    look = verify.verify_store

    def look_then_commit(*given: run_store.RunStore, **options: bool) -> verify.VerifyReport:
        found = look(*given, **options)
        small.commit(store, 1, salt=6)
        return found

    monkeypatch.setattr(verify, "verify_store", look_then_commit)
    assert mend(small, store).requeued == ()
    assert look(store, content=True).ok
    small.check_readable(root)


@pytest.mark.slow
@ON_S3
def test_a_repair_killed_on_s3_is_named_with_the_remedy(
    small: ModuleType, start: Callable[..., subprocess.Popen[str]], full: run_store.RunStore, root: Root
) -> None:
    whole = small.tree(root)
    store_damage.CASES["edited record"][0](full)
    process = start("repair", root, "--point", "repair:moved", "--nth", "2")
    _, error = process.communicate(timeout=300)
    assert process.returncode == -9, error
    with pytest.raises(errors.StoreError, match=rf"process {process.pid} on .*delete '{root}/_txn/repair\.json'"):
        mend(small, full)
    full.objects.remove(store_keys.REPAIR)
    assert mend(small, full).requeued == (1,)
    small.resume(root)
    assert small.tree(root) == whole


@pytest.mark.slow
@ON_S3
def test_what_is_taken_away_is_deleted_by_one_request(
    small: ModuleType, s3: s3_server.Server, root: Root, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A deletion whose answer was lost, sent again, could meet the record of a worker that was faster."""
    with s3_proxy.proxy(s3.endpoint) as (endpoint, plan):
        monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
        store = small.resume(root)
        store_damage.CASES["edited record"][0](store)
        plan.seen.clear()
        rules = [plan.fail("DELETE", "drop", times=9, part=part) for part in ("/features.zarr/", "/commits/")]
        assert mend(small, store).requeued == (1,)
        assert [rule.used for rule in rules] == [4, 1]
