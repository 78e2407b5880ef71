"""The order of fsync, link and rename: what a power loss may take, and what it may not."""

import errno
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from genenc_core import errors
from genenc_core.store import store_keys, transaction
from genenc_core.store.backends import local
from genenc_core.system import files
from power_loss import power_losses, restore, without_building


def test_calls_of_a_commit_are_in_order(small: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Observer points and operating system calls, interleaved as they happened."""
    log: list[str] = []
    root = (tmp_path / "run").resolve()
    store = small.create(root, observer=log.append)

    def name(path: object) -> str:
        text = str(Path(os.fsdecode(path)).resolve().relative_to(root))  # type: ignore[arg-type]
        parts = ["ATTEMPT" if part.startswith("s0000001-") else part for part in text.split("/")]
        return "/".join(parts)

    def record(call: str, describe: Callable[..., str]) -> None:
        real = getattr(os, call)

        def wrapped(*arguments: Any, **options: Any) -> Any:
            log.append(f"{call} {describe(*arguments)}")
            return real(*arguments, **options)

        monkeypatch.setattr(os, call, wrapped)

    record("fsync", lambda fd: name(Path(f"/proc/self/fd/{fd}").readlink()))
    record("mkdir", lambda path, *_: name(path))
    record("unlink", lambda path, *_: name(path))
    for call in ("link", "replace", "rename"):
        record(call, lambda source, target, *_: f"{name(source)} -> {name(target)}")
    small.commit(store, 1)
    monkeypatch.undo()

    zarr, txn = "features.zarr", "_txn"
    staged = f"{txn}/staging/ATTEMPT"
    data = ["features/c.1.0", "probes/c.1.0.0", "image_height/c.1"]
    expected = ["stage:before", f"mkdir {staged}", f"fsync {txn}/staging"]
    for index in range(4):
        expected += [f"fsync {staged}/{index}", "stage:object"]
    expected += [f"fsync {staged}", "stage:after", "commit:before", f"fsync {staged}/record.json"]
    expected += [f"link {staged}/record.json -> {txn}/commits/s0000001.json"]
    expected += [f"unlink {staged}/record.json"]
    expected += [f"fsync {txn}/commits", "commit:after"]
    for index, key in enumerate(data):
        expected += [f"replace {staged}/{index} -> {zarr}/{key}", "promote:object"]
    expected += [f"fsync {zarr}/{array}" for array in ("features", "image_height", "probes")]
    expected += ["promote:before-status", f"replace {staged}/3 -> {zarr}/status/c.1", f"fsync {zarr}/status"]
    expected += ["promote:after", "clean:after"]
    assert log == expected


@pytest.mark.parametrize("how", ["commit", "recover"])
def test_found_record_is_synced(small: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    """Its writer may have been killed before it fsynced the folder of the records."""
    log: list[str] = []
    store = small.create(tmp_path / "run", observer=log.append)
    real = local.LocalObjects.sync

    def sync(self: local.LocalObjects, *folders: str) -> None:
        log.extend(f"fsync {folder}" for folder in folders)
        if folders == (store_keys.COMMITS,) and "commit:before" in log:
            raise OSError(errno.EIO, "killed here")
        real(self, *folders)

    monkeypatch.setattr(local.LocalObjects, "sync", sync)
    with pytest.raises(errors.StoreError, match="killed here"):
        small.commit(store, 1)
    assert store.committed() == {1}
    log.clear()
    if how == "commit":
        small.commit(store, 1)
    else:
        assert store.recover() == [1]
    assert log[:2] == [f"fsync {store_keys.COMMITS}", "promote:object"]


@pytest.fixture
def whole(small: ModuleType, tmp_path: Path) -> dict[str, bytes]:
    """The bytes of a run that nothing happened to."""
    return small.tree(small.resume(tmp_path / "whole").objects.root)  # type: ignore[no-any-return]


def violations(
    small: ModuleType, trees: list[dict[str, bytes | None]], whole: dict[str, bytes], at: Path
) -> Iterator[str]:
    """Check each tree as a reader, then resume it and compare with `whole`; yield what is wrong."""
    for index, tree in enumerate(trees):
        root = restore(tree, at / f"lost{index}")
        try:
            small.check_readable(root)
            small.resume(root)
            small.check_finished(root, whole)
        except Exception as error:
            yield f"{sorted(tree)}: {error!r}"


@pytest.mark.slow
@pytest.mark.parametrize("threads", [False, True])
def test_a_power_loss_in_a_commit_loses_no_promise(
    small: ModuleType, whole: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, threads: bool
) -> None:
    if threads:
        monkeypatch.setattr(transaction, "_WORTH_THREADS", 0)
    store = small.create(tmp_path / "run")
    trees = power_losses(store.objects.root, lambda: small.commit(store, 1), monkeypatch)
    assert len(trees) > 12
    assert list(violations(small, trees, whole, tmp_path)) == []


@pytest.mark.slow
def test_a_power_loss_in_create_loses_no_promise(
    small: ModuleType, whole: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "run"
    root.mkdir()
    trees = power_losses(root, lambda: small.create(root), monkeypatch)
    different = without_building(trees)
    assert len(different) > 5
    assert list(violations(small, different, whole, tmp_path)) == []


@pytest.mark.slow
def test_the_power_loss_check_sees_a_group_that_was_not_fsynced(
    small: ModuleType, whole: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "run"
    root.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files, "sync_tree", lambda _: None)
        trees = power_losses(root, lambda: small.create(root), monkeypatch)
    assert next(violations(small, without_building(trees), whole, tmp_path), None)


@pytest.mark.slow
@pytest.mark.parametrize("broken", ["no fsync of staged files", "no fsync of folders", "status first"])
def test_the_power_loss_check_sees_a_broken_order(
    small: ModuleType, whole: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    store = small.create(tmp_path / "run")
    with pytest.MonkeyPatch.context() as patch:
        if broken == "no fsync of staged files":
            patch.setattr(files, "write_new", lambda path, *parts: path.write_bytes(b"".join(parts)))
        elif broken == "no fsync of folders":
            patch.setattr(files, "sync_folder", lambda _: None)
        else:
            patch.setattr(transaction, "promote", small.status_first(transaction.promote))
        trees = power_losses(store.objects.root, lambda: small.commit(store, 1), monkeypatch)
    assert next(violations(small, trees, whole, tmp_path), None)
