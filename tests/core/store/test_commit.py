"""A commit stores a whole shard once and for ever, or refuses before anything is written."""

import json
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import zarr

from genenc_core import errors
from genenc_core.store import commit_record, layout, run_store, store_keys, transaction
from genenc_core.system import digests, files


def test_objects_are_the_bytes_that_zarr_writes(small: ModuleType, full: run_store.RunStore, tmp_path: Path) -> None:
    """Whole shards and the short last one, compressed or not, sharded or not."""
    other = small.create(tmp_path / "zarr")
    for name in ("features", "probes", "image_height", "status"):
        array = zarr.open_array(other.objects.path(store_keys.GROUP) / name, mode="r+").with_config(
            {"write_empty_chunks": True}
        )
        for shard in range(small.SHARDS):
            arrays, status = small.content(shard)
            array[slice(*full.shard_range(shard))] = {**arrays, "status": status}[name]
    assert small.tree(full.objects.root) == small.tree(other.objects.root)


def test_a_shard_of_fill_values_is_a_real_object(small: ModuleType, store: run_store.RunStore) -> None:
    arrays, _ = small.content(0)
    nothing = {p.name: np.full_like(arrays[p.name], p.fill) for p in store.plan.arrays}
    record = store.commit(0, nothing, np.full(8, 2, np.uint8), details={})
    assert [item.key for item in record.objects] == [
        "features/c.0.0",
        "probes/c.0.0.0",
        "image_height/c.0",
        "status/c.0",
    ]
    for item in record.objects:
        size, digest = files.digest(store.objects.path(store_keys.GROUP) / item.key, digests.BLAKE3)
        assert (size, f"blake3:{digest}") == (item.size, item.digest)
        assert item.size > 0
    assert record.status_counts == {"ok": 0, "unreadable": 8}


def test_arrays_that_are_not_contiguous_are_stored_by_value(small: ModuleType, store: run_store.RunStore) -> None:
    arrays, status = small.content(0)
    strided = {name: np.asfortranarray(block) for name, block in arrays.items()}
    doubled = np.repeat(status, 2)[::2]
    store.commit(0, strided, doubled, details={})
    group = zarr.open_group(store.objects.path(store_keys.GROUP), mode="r")
    for name, block in arrays.items():
        np.testing.assert_array_equal(group[name][:8], block)


def test_inputs_are_neither_changed_nor_kept(small: ModuleType, store: run_store.RunStore) -> None:
    arrays, status = small.content(0)
    given = {name: block.copy() for name, block in arrays.items()}
    store.commit(0, given, status, details={})
    for name, block in given.items():
        np.testing.assert_array_equal(block, arrays[name])
        block[...] = 0
    np.testing.assert_array_equal(
        zarr.open_array(store.zarr_store(), path="features", mode="r")[:8], arrays["features"]
    )


def test_the_first_commit_wins_for_ever(small: ModuleType, full: run_store.RunStore) -> None:
    before, first = small.tree(full.objects.root), full.record(1)
    arrays, status = small.content(1, salt=5)
    again = full.commit(1, arrays, status, details={"salt": 5})
    assert again == first
    assert again.details == {"salt": 0}
    assert small.tree(full.objects.root) == before


def wrong(small: ModuleType, change: str) -> tuple[dict[str, np.ndarray], np.ndarray, dict[str, object]]:
    arrays, status = small.content(0)
    details: dict[str, object] = {}
    if change == "missing":
        del arrays["probes"]
    elif change == "surplus":
        arrays["more"] = arrays["probes"]
    elif change == "rows":
        arrays["features"] = arrays["features"][:4]
    elif change == "dtype":
        arrays["features"] = arrays["features"].astype(np.float32)
    elif change == "byte order":
        arrays["features"] = arrays["features"].astype(">f2")
    elif change == "list":
        arrays["features"] = arrays["features"].tolist()
    elif change == "status 0":
        status[2] = 0
    elif change == "status dtype":
        status = status.astype(np.int64)
    elif change == "status rows":
        status = status[:3]
    elif change == "details":
        details = {"seconds": float("nan")}
    return arrays, status, details


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("missing", "array 'probes' is missing"),
        ("surplus", "array 'more' is not planned"),
        ("rows", r"'features' must have shape \(8, 6\), got \(4, 6\)"),
        ("dtype", "'features' must be float16, got float32"),
        ("byte order", "'features' must be float16, got >f2"),
        ("list", "'features' must be a numpy array, got list"),
        ("status 0", "status must be 1"),
        ("status dtype", "'status' must be uint8, got int64"),
        ("status rows", r"'status' must have shape \(8,\)"),
        ("details", "must be JSON"),
    ],
)
def test_what_does_not_fit_is_refused(small: ModuleType, store: run_store.RunStore, change: str, message: str) -> None:
    before = sorted(store.objects.root.rglob("*"))
    arrays, status, details = wrong(small, change)
    with pytest.raises(errors.StoreError, match=message):
        store.commit(0, arrays, status, details=details)
    assert sorted(store.objects.root.rglob("*")) == before


@pytest.mark.parametrize("shard", [-1, 3])
def test_a_shard_that_does_not_exist_is_refused(small: ModuleType, store: run_store.RunStore, shard: int) -> None:
    arrays, status = small.content(0)
    with pytest.raises(errors.StoreError, match="does not exist"):
        store.commit(shard, arrays, status, details={})


def test_nothing_is_written_with_changed_metadata(small: ModuleType, store: run_store.RunStore) -> None:
    path = store.objects.path(store_keys.GROUP) / "features" / "zarr.json"
    path.write_text(path.read_text().replace('"level": 1', '"level": 9'))
    with pytest.raises(errors.StoreError, match="changed since the run was created"):
        small.commit(store, 0)
    assert store.pending() == [0, 1, 2]


@pytest.mark.parametrize("threads", [False, True])
def test_a_disk_that_fails_while_staging_leaves_no_trace_and_can_be_tried_again(
    small: ModuleType, store: run_store.RunStore, monkeypatch: pytest.MonkeyPatch, threads: bool
) -> None:
    real = files.write_new

    def full_disk(path: Path, *parts: bytes) -> None:
        if path.name == "1":
            raise OSError(28, "No space left on device", str(path))
        real(path, *parts)

    if threads:
        monkeypatch.setattr(transaction, "_WORTH_THREADS", 0)
    with monkeypatch.context() as patch:
        patch.setattr(files, "write_new", full_disk)
        with pytest.raises(errors.StoreError, match=r"No space left on device.*resume"):
            small.commit(store, 0)
    assert store.pending() == [0, 1, 2]
    assert list(store.objects.path(store_keys.STAGING).iterdir()) == []
    small.commit(store, 0)
    assert store.committed() == {0}


def test_missing_hard_links_are_named(small: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_links(source: Path, target: Path) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr("os.link", no_links)
    with pytest.raises(errors.StoreError, match="hard link"):
        small.create(tmp_path / "run")


@pytest.mark.parametrize("made", [True, False])
def test_an_uncertain_link_is_resolved_by_reading_the_record(
    small: ModuleType, store: run_store.RunStore, monkeypatch: pytest.MonkeyPatch, made: bool
) -> None:
    """A lost answer looks like a conflict: with the record made by us the commit stands, without it nothing does."""
    real = files.link_exclusive

    def lost(source: Path, target: Path) -> None:
        if made:
            real(source, target)
        raise FileExistsError(17, "File exists", str(target))

    with monkeypatch.context() as patch:
        patch.setattr(files, "link_exclusive", lost)
        if made:
            small.commit(store, 0)
        else:
            with pytest.raises(errors.StoreError, match="File exists"):
                small.commit(store, 0)
            assert [path.name[:8] for path in store.objects.path(store_keys.STAGING).iterdir()] == ["s0000000"]
    assert store.committed() == ({0} if made else set())
    small.resume(store.objects.root)
    small.check_readable(store.objects.root)
    assert store.pending() == []
    assert list(store.objects.path(store_keys.STAGING).iterdir()) == []


def test_a_record_says_what_was_stored(small: ModuleType, full: run_store.RunStore) -> None:
    record = full.record(2)
    assert record is not None
    assert (record.shard, record.rows, record.fingerprint) == (2, (16, 20), "f1")
    assert record.details == {"salt": 0}
    assert record.status_counts == {"ok": 3, "unreadable": 1}
    assert commit_record.CommitRecord.from_json(record.to_json()) == record
    arrays, _ = small.content(2)
    by_key = {item.key: item for item in record.objects}
    assert by_key["features/c.2.0"].content_digest == digests.VALUES.named(arrays["features"].tobytes())


def test_a_damaged_or_edited_record_is_refused(full: run_store.RunStore) -> None:
    path = full.objects.path(store_keys.record(0))
    text = path.read_text()
    value = json.loads(text)
    for damaged in (
        "",
        text[:100],
        "[]",
        text.replace('"salt":0', '"salt":1'),
        json.dumps({**value, "schema": "genenc.commit/3"}),
        json.dumps({key: value[key] for key in value if key != "sha256"}),
    ):
        path.write_text(damaged)
        with pytest.raises(errors.StoreError, match=r"s0000000\.json"):
            full.record(0)
    path.write_text(json.dumps(value, indent=1))  # other white space is no edit
    assert full.record(0) is not None


def test_rows_are_counted_by_state_from_the_records(small: ModuleType, store: run_store.RunStore) -> None:
    small.commit(store, 0)
    small.commit(store, 2)
    counts = [dict(store.record(shard).status_counts) for shard in sorted(store.committed())]
    assert sum(count["ok"] for count in counts) == 10
    assert sum(count["unreadable"] for count in counts) == 2
    assert store.pending() == [1]


def test_one_array_of_one_row_is_a_run(tmp_path: Path) -> None:
    array = layout.ArrayPlan(
        name="features",
        shape=(1, 1),
        dtype="float32",
        dims=("image", "feature"),
        chunk_rows=1,
        fill=float("nan"),
        attributes={},
        compress=False,
    )
    plan = layout.StorePlan(rows=1, shard_rows=1, arrays=(array,), fingerprint="f", identity={}, attributes={})
    store = run_store.RunStore.create(tmp_path, plan, coordinates=[])
    store.commit(0, {"features": np.array([[2.5]], np.float32)}, np.ones(1, np.uint8), details={})
    assert zarr.open_array(store.objects.path(store_keys.GROUP) / "features")[0, 0] == 2.5
