"""Verify finds every way in which a run folder can differ from what it says, and nothing in one that does not."""

import shutil
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import zarr

from genenc_core.store import records, run_store, verify

Damage = Callable[[run_store.RunStore], object]


def flip(path: Path, *, at: int = 3) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(bytes(data))


def rewrite_record(store: run_store.RunStore, **changes: object) -> None:
    """Change a record with a right seal, as only somebody who means to can."""
    record = store.record(1)
    fields = {name: getattr(record, name) for name in records.CommitRecord.__dataclass_fields__}
    path = store.places.record(1)
    path.write_bytes(records.CommitRecord(**{**fields, **changes}).to_json())


def rewrite_through_zarr(store: run_store.RunStore) -> None:
    zarr.open_array(store.zarr_path / "features", mode="r+")[8:16] = 0


def swap_data(store: run_store.RunStore) -> None:
    shutil.copy(store.zarr_path / "features/c.0.0", store.zarr_path / "features/c.1.0")


def folder_instead(store: run_store.RunStore) -> None:
    path = store.zarr_path / "status/c.1"
    path.unlink()
    path.mkdir()


CASES: dict[str, tuple[Damage, int | None, str, str]] = {
    "flipped bit": (lambda s: flip(s.zarr_path / "features/c.1.0"), 1, "features/c.1.0", "sha256 is"),
    "deleted object": (lambda s: (s.zarr_path / "probes/c.1.0.0").unlink(), 1, "probes/c.1.0.0", "missing"),
    "deleted status": (lambda s: (s.zarr_path / "status/c.1").unlink(), 1, "status/c.1", "missing"),
    "zero-length object": (
        lambda s: (s.zarr_path / "features/c.1.0").write_bytes(b""),
        1,
        "features/c.1.0",
        "has 0 bytes instead of",
    ),
    "truncated object": (
        lambda s: (s.zarr_path / "features/c.1.0").write_bytes((s.zarr_path / "features/c.1.0").read_bytes()[:-1]),
        1,
        "features/c.1.0",
        "bytes instead of",
    ),
    "rewritten through zarr": (rewrite_through_zarr, 1, "features/c.1.0", "changed since it was committed"),
    "another shard's object": (swap_data, 1, "features/c.1.0", "changed since it was committed"),
    "object is a folder": (
        folder_instead,
        1,
        "status/c.1",
        "cannot be read",
    ),
    "edited record": (
        lambda s: s.places.record(1).write_text(s.places.record(1).read_text().replace('"salt": 0', '"salt": 9')),
        1,
        "s0000001.json",
        "changed after it was written",
    ),
    "empty record": (lambda s: s.places.record(1).write_bytes(b""), 1, "s0000001.json", "damaged"),
    "record of another run": (
        lambda s: rewrite_record(s, fingerprint="f9"),
        1,
        "s0000001.json",
        "of another run: fingerprint f9",
    ),
    "record of another shard": (
        lambda s: s.places.record(1).write_bytes(s.places.record(0).read_bytes()),
        1,
        "s0000001.json",
        "the record is of shard 0",
    ),
    "record without an object": (
        lambda s: rewrite_record(s, objects=s.record(1).objects[1:]),  # type: ignore[union-attr]
        1,
        "s0000001.json",
        "names other objects",
    ),
    "record with other counts": (
        lambda s: rewrite_record(s, status_counts={"ok": 8, "unreadable": 0}),
        1,
        "status/c.1",
        "status says {'ok': 7, 'unreadable': 1}, the record says {'ok': 8}",
    ),
    "changed metadata": (lambda s: flip(s.zarr_path / "features/zarr.json"), None, "features/zarr.json", "sha256 is"),
    "changed coordinate": (lambda s: flip(s.zarr_path / "image_id/c.0"), None, "image_id/c.0", "sha256 is"),
    "deleted coordinate": (lambda s: (s.zarr_path / "point_x/c.0.0").unlink(), None, "point_x/c.0.0", "missing"),
    "foreign file": (lambda s: (s.zarr_path / "notes.txt").write_text("x"), None, "notes.txt", "foreign file"),
    "foreign record": (
        lambda s: (s.places.commits / "s0000009.json").write_text("{}"),
        None,
        "s0000009.json",
        "foreign file among the commit records",
    ),
}


@pytest.mark.parametrize("content", [False, True])
def test_an_untouched_run_has_no_problem(full: run_store.RunStore, content: bool) -> None:
    assert verify.verify_store(full, content=content) == verify.VerifyReport(
        shards_checked=3, pending=(), unpromoted=(), problems=()
    )
    assert verify.verify_store(full).ok


@pytest.mark.parametrize("case", CASES)
def test_damage_is_found_and_named_alone(full: run_store.RunStore, case: str) -> None:
    """With its shard and rows; nothing else is blamed."""
    damage, shard, key, what = CASES[case]
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
    zarr.open_array(store.zarr_path / "features", mode="r+")[8:16] = 1
    store.places.record(0).unlink()
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
def test_a_shard_that_is_not_in_place_yet_is_unpromoted_not_damaged(
    small: ModuleType, store: run_store.RunStore, point: str
) -> None:
    class Stop(Exception):
        pass

    def stop(passed: str) -> None:
        if passed == point:
            raise Stop

    stopped = run_store.RunStore.open(store.root, observer=stop)
    with pytest.raises(Stop):
        small.commit(stopped, 1)
    report = verify.verify_store(store)
    assert report.ok
    assert (report.unpromoted, report.pending) == ((1,), (0, 2))
    assert store.recover() == [1]
    assert verify.verify_store(store).unpromoted == ()


def test_content_finds_metadata_that_gives_the_same_bytes_another_meaning(full: run_store.RunStore) -> None:
    path = full.zarr_path / "image_height" / "zarr.json"
    path.write_text(path.read_text().replace('"little"', '"big"', 1))  # the values', not the shard index's
    assert {p.key for p in verify.verify_store(full).problems} == {"image_height/zarr.json"}
    keys = {p.key for p in verify.verify_store(full, content=True).problems if "other values" in p.what}
    assert keys == {"image_height/c.0", "image_height/c.1", "image_height/c.2"}


def test_what_zarr_reads_silently_as_fill_values_is_found(full: run_store.RunStore) -> None:
    """A zero-length shard, as a power loss leaves without fsync, reads as NaN without any error."""
    path = full.zarr_path / "features" / "c.0.0"
    path.write_bytes(b"")
    assert np.isnan(zarr.open_array(full.zarr_path / "features", mode="r")[0:8]).all()
    assert [p.key for p in verify.verify_store(full).problems] == ["features/c.0.0"]


def test_recover_finishes_the_others_and_names_a_lost_shard(small: ModuleType, store: run_store.RunStore) -> None:
    small.commit(store, 0)
    small.commit(store, 2)
    (store.zarr_path / "status/c.0").unlink()
    with pytest.raises(Exception, match=r"shard 00000: object 'status/c\.0' is committed but neither in place nor"):
        store.recover()
    assert [p.key for p in verify.verify_store(store).problems] == ["status/c.0"]
