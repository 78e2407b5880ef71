"""A power loss at any instant of a repair, of a record that is replaced, and of the making of a whole run folder."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import checks
import pictures
import store_damage
import store_worker as small
import tiny_models
from genenc_core.run import driver, status
from genenc_core.run.parameters import ExtractParameters
from genenc_core.store import repair, run_store, store_keys
from genenc_core.store.backends import local
from genenc_core.system import digests, files, proc
from power_loss import power_losses, restore

Tree = dict[str, bytes | None]


def replaced(root: Path, monkeypatch: pytest.MonkeyPatch) -> list[Tree]:
    """Return what a power loss may leave while a record is replaced."""
    objects = local.LocalObjects(root)
    objects.replace("provenance/runs/a.json", b"old")
    return power_losses(root, lambda: objects.replace("provenance/runs/a.json", b"new and longer"), monkeypatch)


def test_a_replaced_record_is_whole_old_or_whole_new(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trees = replaced(tmp_path, monkeypatch)
    assert {tree.get("provenance/runs/a.json") for tree in trees} == {b"old", b"new and longer"}


def test_the_check_of_a_replaced_record_sees_a_missing_fsync(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files, "write_new", lambda path, *parts: path.write_bytes(b"".join(parts)))
        trees = replaced(tmp_path, monkeypatch)
    assert b"" in {tree.get("provenance/runs/a.json") for tree in trees}


def test_a_created_record_is_there_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    objects = local.LocalObjects(tmp_path)
    objects.make_folder("provenance")
    trees = power_losses(
        tmp_path, lambda: objects.create("provenance/b.json", b"size", via="provenance/.b.partial"), monkeypatch
    )
    assert {tree.get("provenance/b.json") for tree in trees} == {None, b"size"}


@pytest.mark.slow
@pytest.mark.parametrize("case", ["flipped bit", "edited record", "changed coordinate"])
def test_a_power_loss_in_a_repair_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str) -> None:
    store = small.resume(tmp_path / "run")
    whole = small.tree(tmp_path / "run")
    intact = checks.ledger(store)
    damage, shard, *_ = store_damage.CASES[case]
    damage(store)
    found = _contents(tmp_path / "run")
    broken = {data for key, data in found.items() if intact.get(key) != digests.CREATED.hex(data)}
    trees = power_losses(
        tmp_path / "run", lambda: repair.repair_store(store, coordinates=small.coordinates()), monkeypatch
    )
    assert len(trees) > 4
    for number, tree in enumerate(trees):
        assert broken <= set(tree.values()), "what was damaged is kept"
        lost = run_store.RunStore.open(restore(tree, tmp_path / f"lost{number}"))
        untouched = {key: digest for key, digest in intact.items() if shard is None or not checks.of_shard(key, shard)}
        done = repair.repair_store(lost, coordinates=small.coordinates())
        assert done.unrepaired == ()
        small.resume(tmp_path / f"lost{number}")
        assert small.tree(tmp_path / f"lost{number}") == whole
        now = checks.ledger(lost)
        assert {key: now[key] for key in untouched} == untouched


def _contents(root: Path) -> dict[str, bytes]:
    paths = [*(root / store_keys.GROUP).rglob("*"), *(root / store_keys.COMMITS).iterdir()]
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in paths if path.is_file()}


@pytest.fixture
def extract(tmp_path: Path) -> Callable[[Path], driver.Result]:
    """Return a call that makes a run by a model with weights of its own, one shard."""
    photos = pictures.write_folder(tmp_path / "photos", 3)
    torch.manual_seed(7)
    torch.save(tiny_models.conv().state_dict(), tmp_path / "weights.pt")

    def run(root: Path) -> driver.Result:
        given = {"images": str(photos), "model": "tiny_models:conv", "weights": str(tmp_path / "weights.pt")}
        more = {"image_size": "32", "out": str(root), "batch_size": 3, "device": "cpu"}
        return driver.extract(ExtractParameters.model_validate({**given, **more}))

    return run


@pytest.mark.slow
def test_a_power_loss_while_a_run_is_made_leaves_a_whole_run_or_one_that_is_made_again(
    extract: Callable[[Path], driver.Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    extract(tmp_path / "whole")
    root = tmp_path / "run"
    root.mkdir()
    own = proc.identity
    with monkeypatch.context() as patch:
        # The process that lost power has ended, and nobody waits for its lease to expire.
        patch.setattr(proc, "identity", lambda: {**own(), "began": "0"})
        trees = power_losses(root, lambda: extract(root), monkeypatch)
    names = {"images.parquet", "model_spec.json", "README.md", "provenance/parameters.json"}
    names |= {path.relative_to(root).as_posix() for path in (root / "model").iterdir()}
    assert len(names) == 5
    stand = [tree for tree in trees if tree.get(store_keys.STORE_FILE) and store_keys.GROUP in tree]
    assert stand
    for tree in stand:
        assert {name for name in names if not tree.get(name)} == set(), "a store stands, so the run is whole"
    for chosen, kind in ((stand, "stand"), ([tree for tree in trees if tree not in stand], "begun")):
        for number, tree in enumerate(chosen[:: max(1, len(chosen) // 4)]):
            again = restore(tree, tmp_path / f"{kind}{number}")
            assert extract(again).status.complete
            assert small.tree(again) == small.tree(tmp_path / "whole")
            assert status.verify_place(again, content=True).ok


def test_the_check_of_a_run_that_is_made_sees_weights_that_are_not_durable(
    extract: Callable[[Path], driver.Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "run"
    root.mkdir()
    real = files.sync_folder
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files, "sync_folder", lambda path: None if path.name == "model" else real(path))
        trees = power_losses(root, lambda: extract(root), monkeypatch)
    stand = [tree for tree in trees if tree.get(store_keys.STORE_FILE) and store_keys.GROUP in tree]
    weights = next(path.relative_to(root).as_posix() for path in (root / "model").iterdir())
    assert any(not tree.get(weights) for tree in stand)
