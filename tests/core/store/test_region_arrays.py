"""Arrays of regions: another range of rows than the images', committed, killed, healed, damaged and repaired alike."""

import dataclasses
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import zarr

import store_damage
from genenc_core import errors
from genenc_core.store import layout, repair, run_store, store_keys, transaction, upload, verify
from genenc_core.store.backends import local
from genenc_core.store.backends.objects import Root, is_remote, open_objects
from s3_server import ON_BOTH

POINTS = ("stage:before", "stage:object", "stage:after", "commit:before", "commit:after", "promote:object")
POINTS += ("promote:before-status", "promote:after", "clean:after")
PLACES, SHARDS = 5, 3


def plan(small: ModuleType, **changes: object) -> layout.StorePlan:
    """The plan of the store's tests, and two arrays of 5 places per shard of 8 images."""
    of_regions = tuple(
        layout.ArrayPlan(
            name=name,
            shape=(SHARDS * PLACES, *rest),
            dtype=dtype,
            dims=("region", *dims),
            chunk_rows=PLACES,
            fill=fill,
            attributes={},
            compress=True,
        )
        for name, rest, dtype, dims, fill in (
            ("regions", (4,), "float32", ("regions_channel",), float("nan")),
            ("region_status", (), "uint8", (), 0),
        )
    )
    own = small.plan()
    return dataclasses.replace(own, arrays=(*own.arrays, *of_regions), region_places=PLACES, **changes)


def coordinates(small: ModuleType) -> list[layout.CoordinatePlan]:
    names = [f"r{place}" for place in range(SHARDS * PLACES)]
    return [
        *small.coordinates(),
        layout.CoordinatePlan(name="region_name", dims=("region",), values=names, kind="string"),
    ]


def content(small: ModuleType, shard: int, *, by: int | None = None) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """A shard whose region 1 is of its unreadable image; with `by`, as it is healed."""
    arrays, status = small.content(shard) if by is None else small.healed(shard, by=by)
    values = np.random.default_rng(shard).normal(size=(PLACES, 4)).astype(np.float32)
    state = np.array([1, 3, 2, 1, 4], np.uint8)
    if by is None:
        values[1] = np.nan
    else:
        state[1] = 1
    return {**arrays, "regions": values, "region_status": state}, status


def create(small: ModuleType, root: Path, **options: object) -> run_store.RunStore:
    return run_store.RunStore.create(root, plan(small), coordinates=coordinates(small), **options)  # type: ignore[arg-type]


@ON_BOTH
def test_a_run_on_s3_is_read_healed_and_repaired_alike(small: ModuleType, root: Root, tmp_path: Path) -> None:
    made = tmp_path / "made"
    create(small, made)
    if is_remote(root):
        upload.publish(local.LocalObjects(made), open_objects(root))
    else:
        made.rename(Path(root))
    store = run_store.RunStore.open(root)
    for shard in store.pending():
        arrays, status = content(small, shard)
        store.commit(shard, arrays, status, details={})
    before = store.record(1)
    assert before is not None
    arrays, status = content(small, 1, by=0)
    store.heal(before, arrays, status, details={})
    store_damage.flip(store, "regions/c.2.0")
    assert [problem.key for problem in verify.verify_store(store).problems] == ["regions/c.2.0"]
    repair.repair_store(store, coordinates=coordinates(small))
    arrays, status = content(small, 2)
    store.commit(2, arrays, status, details={})
    assert verify.verify_store(store, content=True).ok
    group = zarr.open_group(store.zarr_store(), mode="r")
    np.testing.assert_array_equal(np.asarray(group["regions"][5:10]), content(small, 1, by=0)[0]["regions"])  # type: ignore[index]


def resume(small: ModuleType, root: Path, **options: object) -> run_store.RunStore:
    store = create(small, root, **options)
    store.recover()
    for shard in store.pending():
        arrays, status = content(small, shard)
        store.commit(shard, arrays, status, details={})
    return store


def test_plans_of_earlier_versions_and_of_regions(small: ModuleType) -> None:
    assert "region_places" not in layout.plan_to_json(small.plan())
    written = layout.plan_to_json(plan(small))
    assert written["region_places"] == PLACES
    read = layout.plan_from_json(written)
    assert (read.region_places, read.region_arrays) == (PLACES, {"regions", "region_status"})
    assert layout.plan_to_json(read) == written
    with pytest.raises(errors.StoreError, match="the first dim must be 'image'"):
        dataclasses.replace(plan(small), region_places=0)
    with pytest.raises(errors.StoreError, match=r"shape must be \(12, ...\)"):
        dataclasses.replace(plan(small), region_places=4)
    with pytest.raises(errors.StoreError, match="cannot be read"):
        layout.plan_from_json({**written, "region_places": "5"})


def test_values_are_read_where_they_belong(small: ModuleType, tmp_path: Path) -> None:
    store = resume(small, tmp_path / "run")
    assert verify.verify_store(store, content=True).ok
    group = zarr.open_group(store.zarr_store(), mode="r")
    for shard in range(SHARDS):
        expected, _ = content(small, shard)
        for name in ("regions", "region_status"):
            own = np.asarray(group[name][shard * PLACES : (shard + 1) * PLACES])  # type: ignore[index]
            np.testing.assert_array_equal(own, expected[name])
        found = store.values(shard, {"regions"})
        assert found is not None
        np.testing.assert_array_equal(found[1]["regions"], expected["regions"])
    arrays, status = content(small, 0)
    with pytest.raises(errors.StoreError, match=r"'regions' must have shape \(5, 4\), got \(8, 4\)"):
        store.commit(0, {**arrays, "regions": np.zeros((8, 4), np.float32)}, status, details={})


@pytest.mark.parametrize("point", POINTS)
def test_a_kill_at_a_named_point_then_resume_gives_the_same_bytes(
    small: ModuleType, tmp_path: Path, point: str
) -> None:
    resume(small, tmp_path / "whole")
    nth = 9 if point in ("stage:object", "promote:object") else 2  # in the middle of the second shard
    observer = small.killer(point, nth)
    code, text = small.in_child(lambda: resume(small, tmp_path / "run", observer=observer))
    assert code == 9, text
    store = resume(small, tmp_path / "run")
    assert store.pending() == []
    assert verify.verify_store(store, content=True).ok
    assert _group(tmp_path / "run") == _group(tmp_path / "whole")
    assert transaction.staged(store.objects) == []


def _group(root: Path) -> dict[str, bytes]:
    group = root / store_keys.GROUP
    return {str(path.relative_to(group)): path.read_bytes() for path in sorted(group.rglob("*")) if path.is_file()}


def test_healing_changes_the_regions_of_healed_images_alone(small: ModuleType, tmp_path: Path) -> None:
    store = resume(small, tmp_path / "run")
    before = store.record(1)
    assert before is not None
    arrays, status = content(small, 1, by=0)
    other = {**arrays, "regions": arrays["regions"].copy()}
    other["regions"][3] += 1
    with pytest.raises(errors.StoreError, match="'regions' differs in rows that were not healed"):
        store.heal(before, other, status, details={})
    record = store.heal(before, arrays, status, details={})
    assert record.generation == 1
    assert verify.verify_store(store, content=True).ok
    np.testing.assert_array_equal(store.blocks(record)["regions"], arrays["regions"])


@pytest.mark.parametrize("what", ["flipped", "removed", "emptied"])
def test_damage_is_found_and_repaired(small: ModuleType, tmp_path: Path, what: str) -> None:
    whole, store = resume(small, tmp_path / "whole"), resume(small, tmp_path / "run")
    key = "regions/c.1.0"
    if what == "flipped":
        store_damage.flip(store, key)
    elif what == "removed":
        store_damage.remove(store, key)
    else:
        store_damage.write(store, key, b"")
    report = verify.verify_store(store)
    assert [(problem.shard, problem.key) for problem in report.problems] == [(1, key)]
    repair.repair_store(store, coordinates=coordinates(small))
    assert store.pending() == [1]
    resume(small, tmp_path / "run")
    assert _group(tmp_path / "run") == _group(Path(str(whole.objects.name)))
