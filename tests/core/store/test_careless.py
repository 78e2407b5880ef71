"""What a careless administrator does to a run folder, beside its workers: nothing wrong is stored or told."""

import shutil
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from genenc_core import errors
from genenc_core.store import creation, leases, run_store, store_keys, upload, verify
from genenc_core.store.backends import local

OTHER = {"fingerprint": "f2", "identity": {"model": {"name": "resnet18", "weights": "random:1"}, "images": "d1"}}


def test_worker_of_a_removed_run_stores_nothing(small: ModuleType, store: run_store.RunStore) -> None:
    """Both runs have arrays of the same names, types and shapes: nothing else keeps their rows apart."""
    root = store.objects.root
    shutil.rmtree(root)
    other = small.create(root, **OTHER)
    before = small.tree(root)
    with pytest.raises(errors.StoreError, match="no longer the run that this process opened"):
        small.commit(store, 0)
    assert small.tree(root) == before
    assert other.committed() == set()
    assert list(root.joinpath(store_keys.STAGING).iterdir()) == []


def test_a_run_that_was_moved_away_does_not_come_back(small: ModuleType, store: run_store.RunStore) -> None:
    root = store.objects.root
    worker = leases.Leases(store.objects)
    assert worker.take(0)
    root.rename(root.with_name("elsewhere"))
    with pytest.raises(errors.StoreError):
        small.commit(store, 0)
    for write in (worker._beat, lambda: store.objects.make_folder("provenance/failed")):
        with pytest.raises(FileNotFoundError):
            write()
    worker.close()
    assert not root.exists()


@pytest.mark.slow
@pytest.mark.parametrize("strange", ["shard", "run"])
def test_others_record_is_damage(small: ModuleType, full: run_store.RunStore, tmp_path: Path, strange: str) -> None:
    source = full
    if strange == "run":
        source = small.create(tmp_path / "other", **OTHER)
        small.commit(source, 0)
    record = source.objects.path(store_keys.record(0)).read_bytes()
    full.objects.path(store_keys.record(1)).write_bytes(record)
    (full.objects.path(store_keys.GROUP) / "status/c.1").unlink()
    for use in (lambda: full.record(1), full.recover, lambda: small.commit(full, 1)):
        with pytest.raises(errors.StoreError, match=rf"the record is of (another )?{strange}.*verify --repair"):
            use()
    assert [problem.shard for problem in verify.verify_store(full).problems if problem.key == "s0000001.json"] == [1]


def test_a_copy_without_empty_folders_is_continued(small: ModuleType, full: run_store.RunStore) -> None:
    full.objects.path(store_keys.STAGING).rmdir()
    assert full.recover() == []
    small.commit(full, 1, salt=3)
    assert verify.verify_store(full).ok


@pytest.mark.parametrize("gone", [store_keys.GROUP, store_keys.STORE_FILE])
def test_the_rest_of_a_run_is_not_taken_for_an_empty_folder(full: run_store.RunStore, gone: str) -> None:
    full.objects.path(gone).rename(full.objects.root.with_name("elsewhere"))
    with pytest.raises(errors.StoreError, match="restore it"):
        creation.refuse_remains(full.objects, OTHER["identity"])


def test_records_without_an_owner_are_not_inherited(small: ModuleType, full: run_store.RunStore) -> None:
    shutil.rmtree(full.objects.path(store_keys.GROUP))
    full.objects.path(store_keys.STORE_FILE).unlink()
    with pytest.raises(errors.StoreError, match="holds features or commit records"):
        small.create(full.objects.root, **OTHER)


@pytest.mark.parametrize("gone", [store_keys.COMMITS, store_keys.GROUP])
def test_ownerless_folder_is_refused(small: ModuleType, full: run_store.RunStore, tmp_path: Path, gone: str) -> None:
    full.objects.path(store_keys.STORE_FILE).unlink()
    shutil.rmtree(full.objects.path(gone))
    other = small.create(tmp_path / "other", **OTHER)
    with pytest.raises(errors.StoreError, match="holds features or commit records"):
        upload.publish(other.objects, full.objects)


@pytest.mark.parametrize("after", range(3))
def test_new_run_is_no_remains(small: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: int) -> None:
    """Another process creates the run after so many of our looks at the folder."""
    objects = local.LocalObjects(tmp_path / "run")
    objects.root.mkdir()
    looks = 0

    def looking(name: str) -> Callable[..., Any]:
        look = getattr(objects, name)

        def looked(*arguments: str) -> Any:
            nonlocal looks
            if looks == after:
                small.create(objects.root)
            looks += 1
            return look(*arguments)

        return looked

    for name in ("names", "has_group", "size"):
        monkeypatch.setattr(objects, name, looking(name))
    creation.refuse_ownerless(objects)
    assert looks > after, "it was created between two looks"


class LostAnswers(local.LocalObjects):
    """A folder whose creations happen, but are answered as if another had been first, as a repeated PUT is on S3."""

    def create(self, key: str, data: bytes, *, via: str) -> None:
        super().create(key, data, via=via)
        super().create(key, data, via=via)


def test_a_claim_whose_answer_was_lost_is_held(tmp_path: Path) -> None:
    worker = leases.Leases(LostAnswers(tmp_path))
    assert worker.take(3)
    worker.release(3)
    assert worker.holder(3) == ""
    worker.close()


def test_a_worker_does_not_wait_for_its_own_claim(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A claim that could not be given up, as when S3 does not answer, is its own again."""
    objects = local.LocalObjects(tmp_path)
    worker = leases.Leases(objects)
    assert worker.take(3)

    def fail(key: str) -> None:
        raise ConnectionError(key)

    with monkeypatch.context() as patch:
        patch.setattr(objects, "remove", fail)
        worker.release(3)
    assert worker.take(3)
    worker.close()
    assert objects.names(store_keys.CLAIMS) == []
