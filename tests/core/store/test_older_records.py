"""Records of earlier versions, whose digests are sha256 without a name, stay true: read, verified, repaired."""

from types import ModuleType
from typing import Any

import pytest

import store_damage
from genenc_core import errors
from genenc_core.store import commit_record, documents, repair, run_store, store_keys, verify


def as_written_before(store: run_store.RunStore, shard: int) -> dict[str, Any]:
    """Put the record that an earlier version writes in the place of a shard's record; return its content."""
    record = store.record(shard)
    assert record is not None
    objects = []
    for item in record.objects:
        size, digest = store.objects.digest(f"{store_keys.GROUP}/{item.key}", "sha256")
        array = next(array for array in store.plan.all_arrays if item.key.startswith(f"{array.name}/"))
        block = store_damage.decoded(store, array.name, item.key, record.rows)
        names = {"key": item.key, "staged": item.staged, "size": size, "sha256": digest}
        objects.append({**names, "content_sha256": store_damage.sha256(block.tobytes())})
    told = {name: getattr(record, name) for name in ("shard", "attempt", "fingerprint", "rows", "status_counts")}
    content = {**told, "objects": objects, "details": dict(record.details)}
    store.objects.replace(store_keys.record(shard), documents.dumps("genenc.commit/1", content))
    return content


def test_earlier_versions_run_is_read_and_continued(small: ModuleType, store: run_store.RunStore) -> None:
    small.commit(store, 0)
    as_written_before(store, 0)
    record = store.record(0)
    assert record is not None
    assert all(item.digest.startswith("sha256:") for item in record.objects)
    assert verify.verify_store(store, content=True).ok
    small.commit(store, 1)
    small.commit(store, 0, salt=5)
    assert store.record(0) == record
    assert verify.verify_store(store, content=True).ok


@pytest.mark.parametrize("case", ["flipped bit", "truncated object", "rewritten through zarr", "changed metadata"])
def test_damage_below_earlier_record_is_repaired(small: ModuleType, full: run_store.RunStore, case: str) -> None:
    whole = small.tree(full.objects.root)
    for shard in range(small.SHARDS):
        as_written_before(full, shard)
    store_damage.CASES[case][0](full)
    assert len(verify.verify_store(full).problems) == 1
    repair.repair_store(full, coordinates=small.coordinates())
    small.resume(full.objects.root)
    assert small.tree(full.objects.root) == whole
    assert verify.verify_store(full, content=True).ok


def test_an_earlier_record_that_decodes_to_other_values_is_found(full: run_store.RunStore) -> None:
    content = as_written_before(full, 1)
    content["objects"][0]["content_sha256"] = "0" * 64
    full.objects.replace(store_keys.record(1), documents.dumps("genenc.commit/1", content))
    assert [item.key for item in verify.verify_store(full, content=True).problems] == ["features/c.1.0"]


@pytest.mark.parametrize("schema", ["genenc.commit/0", "genenc.commit/3", "genenc.store/1"])
def test_records_of_unknown_versions_are_refused(full: run_store.RunStore, schema: str) -> None:
    content = as_written_before(full, 1)
    with pytest.raises(errors.StoreError, match="has schema"):
        commit_record.CommitRecord.from_json(documents.dumps(schema, content))


def test_a_record_of_a_later_version_is_no_damage(full: run_store.RunStore) -> None:
    """A repair by this version would take a whole shard down."""
    content = as_written_before(full, 1)
    later = documents.dumps("genenc.commit/3", {**content, "new": 1})
    full.objects.replace(store_keys.record(1), later)
    for use in (
        lambda: full.record(1),
        lambda: verify.verify_store(full),
        lambda: repair.repair_store(full, coordinates=[]),
    ):
        with pytest.raises(errors.StoreError, match=r"commit/3.*use the version of genenc that wrote it$"):
            use()
    assert full.objects.read(store_keys.record(1)) == later
    full.objects.replace(store_keys.record(1), later.replace(b'"new": 1', b'"new": 2'))
    assert [problem.shard for problem in verify.verify_store(full).problems] == [1]
