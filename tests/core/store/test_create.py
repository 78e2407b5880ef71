"""Creating a run folder: once, whole, by whoever is first, killed anywhere."""

import dataclasses
import itertools
import json
import shutil
import subprocess
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import xarray
import zarr

from genenc_core import errors
from genenc_core.store import creation, layout, run_store, store_keys, zarr_bytes


def test_xarray_shows_named_dimensions_and_coordinates(small: ModuleType, full: run_store.RunStore) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # e.g. a foreign file in the group, or a data type outside the specification
        data = xarray.open_zarr(full.objects.path(store_keys.GROUP), consolidated=False, chunks=None)
    assert data["features"].dims == ("image", "feature")
    assert data["probes"].dims == ("image", "point", "feature_probe")
    assert {"image_id", "point", "point_x"} <= set(data["features"].coords) | set(data.coords)
    assert data["image_id"].values.tolist() == [f"images/ä{row:03d}.png" for row in range(small.ROWS)]
    assert data["point"].values.tolist() == ["nose", "tail"]
    assert np.isnan(data["point_x"].values[3, 1])
    assert data["point_x"].values[4, 1] == 9.0
    assert data["status"].attrs["flag_meanings"] == "not_written ok unreadable"
    assert data.attrs == {"title": "a test"}
    arrays, _ = small.content(1)
    np.testing.assert_array_equal(data["features"].values[8:16], arrays["features"])


def test_an_empty_run_reads_as_fill_values(store: run_store.RunStore) -> None:
    group = zarr.open_group(store.objects.path(store_keys.GROUP), mode="r")
    assert np.isnan(group["features"][:]).all()
    assert (group["image_height"][:] == -1).all()
    assert (group["status"][:] == 0).all()
    assert store.pending() == [0, 1, 2]
    assert store.committed() == set()


def test_only_zarr_nodes_lie_in_the_group(full: run_store.RunStore) -> None:
    for path in full.objects.path(store_keys.GROUP).rglob("*"):
        assert path.is_dir() or path.name == "zarr.json" or path.name.startswith("c.")


def test_arrays_have_the_stated_codecs(store: run_store.RunStore) -> None:
    codecs = {
        name: json.loads((store.objects.path(store_keys.GROUP) / name / "zarr.json").read_text())["codecs"]
        for name in ("features", "probes")
    }
    inner = {name: [codec["name"] for codec in found[0]["configuration"]["codecs"]] for name, found in codecs.items()}
    assert inner == {"features": ["bytes", "zstd", "crc32c"], "probes": ["bytes", "crc32c"]}
    index = [codec["name"] for codec in codecs["features"][0]["configuration"]["index_codecs"]]
    assert index == ["bytes", "crc32c"]
    assert codecs["features"][0]["configuration"]["codecs"][1]["configuration"]["level"] == 1


def test_create_again_opens_and_keeps_what_is_stored(small: ModuleType, full: run_store.RunStore) -> None:
    before = small.tree(full.objects.root)

    def never() -> Iterator[list[str]]:
        raise AssertionError("coordinates are not consumed when the run exists")
        yield []

    lazy = layout.CoordinatePlan(name="image_id", dims=("image",), values=never(), kind="string")
    again = run_store.RunStore.create(full.objects.root, small.plan(), coordinates=[lazy])
    assert repr(again) == repr(full) == repr(run_store.RunStore.open(full.objects.root))
    assert small.tree(full.objects.root) == before
    assert again.pending() == []


def test_an_existing_run_keeps_its_own_shard_size(small: ModuleType, store: run_store.RunStore) -> None:
    other = small.plan(shard_rows=16)
    assert run_store.RunStore.create(store.objects.root, other, coordinates=[]).plan.shard_rows == 8


def test_other_fingerprint_is_refused_with_differences(small: ModuleType, store: run_store.RunStore) -> None:
    other = small.plan(fingerprint="f2", identity={"model": {"name": "vit", "weights": "random:0"}, "images": "d1"})
    with pytest.raises(errors.StoreError, match=r"model\.name: 'resnet18' -> 'vit'") as caught:
        run_store.RunStore.create(store.objects.root, other, coordinates=[])
    assert "images" not in str(caught.value)
    assert "--out" in str(caught.value)


def test_the_same_fingerprint_with_other_arrays_is_refused(small: ModuleType, store: run_store.RunStore) -> None:
    other = small.plan(arrays=small.plan().arrays[:1])
    with pytest.raises(errors.StoreError, match="same fingerprint but different arrays"):
        run_store.RunStore.create(store.objects.root, other, coordinates=[])


def test_a_group_that_no_run_owns_is_left_alone(small: ModuleType, tmp_path: Path) -> None:
    mine = tmp_path / "features.zarr" / "mine"
    mine.mkdir(parents=True)
    with pytest.raises(errors.StoreError, match="choose another --out"):
        small.create(tmp_path)
    assert mine.is_dir()


def test_a_folder_that_cannot_be_written_is_an_input_error(small: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for root in (tmp_path / "file", tmp_path / "file" / "run", Path("/proc/genenc")):
        with pytest.raises(errors.InputError, match="cannot create a run in"):
            small.create(root)


def test_open_refuses_what_is_not_a_finished_run(small: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(errors.StoreError, match="not a run folder"):
        run_store.RunStore.open(tmp_path)
    store = small.create(tmp_path / "run")
    shutil.rmtree(store.objects.path(store_keys.GROUP))
    with pytest.raises(errors.StoreError, match="creation was interrupted"):
        run_store.RunStore.open(store.objects.root)


def test_an_edited_store_file_is_refused(store: run_store.RunStore) -> None:
    path = store.objects.path(store_keys.STORE_FILE)
    path.write_text(path.read_text().replace('"rows": 20', '"rows": 30'))
    with pytest.raises(errors.StoreError, match="changed after it was written"):
        run_store.RunStore.open(store.objects.root)


@pytest.mark.parametrize("sizes", [[20], [1] * 20, [7, 7, 6], [3, 0, 17]])
def test_coordinates_come_in_blocks_of_any_size(
    small: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sizes: list[int]
) -> None:
    """Every chunk is written once, whole, whatever the blocks."""
    monkeypatch.setattr(zarr_bytes, "COORDINATE_ROWS", 6)
    values = np.arange(20, dtype=np.int64)
    ends = list(itertools.accumulate(sizes))
    blocks = (values[end - size : end] for size, end in zip(sizes, ends, strict=True))
    coordinate = layout.CoordinatePlan(name="n", dims=("image",), values=blocks, kind="int64")
    store = run_store.RunStore.create(tmp_path / "run", small.plan(), coordinates=[coordinate])
    array = zarr.open_group(store.objects.path(store_keys.GROUP), mode="r")["n"]
    assert array.chunks == (6,)
    np.testing.assert_array_equal(array[:], values)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"values": list("abc")}, "has 3 rows, the plan has 20"),
        ({"values": iter([["a"] * 15, ["b"] * 15])}, "has 30 rows, the plan has 20"),
        ({"values": iter([])}, "has no values"),
        ({"name": "features"}, "already used"),
        ({"name": "status"}, "is reserved"),
        ({"dims": ("image", "point")}, "dims must be 1 unique names"),
        ({"dims": ()}, "at least one dim"),
        ({"kind": "complex64"}, "kind must be"),
        ({"kind": "int32", "values": np.ones(20)}, "Cannot cast"),
    ],
)
def test_bad_coordinate_is_refused(small: ModuleType, tmp_path: Path, changes: dict[str, object], message: str) -> None:
    good = layout.CoordinatePlan(name="n", dims=("image",), values=list("abcdefghijklmnopqrst"), kind="string")
    with pytest.raises(errors.StoreError, match=message):
        run_store.RunStore.create(tmp_path / "run", small.plan(), coordinates=[dataclasses.replace(good, **changes)])
    assert not (tmp_path / "run" / "features.zarr").exists()
    run_store.RunStore.create(tmp_path / "run", small.plan(), coordinates=[good])


@pytest.mark.slow
def test_kill_anywhere_in_create_is_made_good(report: Callable[..., list[str]], tmp_path: Path) -> None:
    *violations, count = report("exhaust", tmp_path / "scratch", "--stage", "create")
    assert violations == []
    assert int(count.split()[1]) >= 15


def test_a_claim_without_a_group_is_finished_with_the_first_plan(small: ModuleType, tmp_path: Path) -> None:
    """Killed between its two last steps, a creation is finished as begun, whatever shard size the next one asks."""
    store = small.create(tmp_path / "run")
    whole = small.tree(store.objects.root)
    shutil.rmtree(store.objects.path(store_keys.GROUP))
    asked = small.plan(shard_rows=16, attributes={"title": "another"})
    again = run_store.RunStore.create(store.objects.root, asked, coordinates=small.coordinates())
    assert again.plan.shard_rows == 8
    assert small.tree(store.objects.root) == whole


def test_claim_keeps_its_coordinates(small: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = small.create(tmp_path / "run")
    shutil.rmtree(store.objects.path(store_keys.GROUP))
    monkeypatch.setattr(creation, "wait_for_group", lambda _: None)
    with pytest.raises(errors.StoreError, match="would write different bytes"):
        run_store.RunStore.create(store.objects.root, small.plan(), coordinates=[])
    assert not store.objects.path(store_keys.GROUP).exists()


@pytest.mark.slow
def test_creators_may_race(small: ModuleType, start: Callable[..., subprocess.Popen[str]], tmp_path: Path) -> None:
    root, go = tmp_path / "run", tmp_path / "go"
    racers = [start("create", root, "--go", str(go)) for _ in range(4)]
    go.touch()
    ends = [(racer.communicate(timeout=300)[1], racer.returncode) for racer in racers]
    assert ends == [("", 0)] * 4
    assert small.tree(root) == small.tree(small.create(tmp_path / "alone").objects.root)
    assert sorted(path.name for path in (root / "_txn").iterdir()) == ["commits", "staging", "store.json"]


@pytest.mark.slow
def test_of_racing_runs_one_wins(start: Callable[..., subprocess.Popen[str]], tmp_path: Path) -> None:
    root, go = tmp_path / "run", tmp_path / "go"
    racers = {name: start("create", root, "--go", str(go), "--fingerprint", name) for name in ("f1", "f2", "f3")}
    go.touch()
    errors_of = {name: racer.communicate(timeout=300)[1] for name, racer in racers.items()}
    won = [name for name, racer in racers.items() if racer.returncode == 0]
    assert len(won) == 1
    assert run_store.RunStore.open(root).plan.fingerprint == won[0]
    assert all("refused" in text and "another run" in text for name, text in errors_of.items() if name not in won)
