"""Probes and poolings of stored maps are those of a run that had them from the start; nothing in the source changes."""

import json
import re
import shutil
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

import containers
import store_damage
from genenc_core import api, errors, testing
from genenc_core.run import driver, parameters, probe_source, records, status
from genenc_core.run.folder import RunFolder
from genenc_core.store import repair, run_store, verify
from genenc_core.store.backends.local import LocalObjects

Call = Callable[..., api.Run]
PROBES = (
    "probes=spatial_point(cell)",
    "soft=spatial_point(bilinear)",
    "near=spatial_point(nearest)+l2_normalize",
    "corners=spatial_point(bilinear_corners)@float16",
)
POOLINGS = (
    "pool=global_avg_pool",
    "all=global_avg_pool(bars)",
    "peak=global_max_pool",
    "low=cnn_min",
    "gem=gem(p=3)",
    "unit=vit_mean+cast(bfloat16)+l2_normalize",
)


def files(root: Path) -> dict[str, bytes]:
    """Return every file below a folder."""
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def values(run: api.Run) -> dict[str, np.ndarray]:
    """Return all arrays of a run."""
    group: Any = zarr.open_group(run.folder.store.zarr_store(), mode="r")
    return {name: np.asarray(array[:]) for name, array in group.arrays()}


def test_the_bits_of_the_first_pass(extract: Call, probe: Call, labels: Path, tmp_path: Path) -> None:
    first = extract("first", *PROBES, *POOLINGS, points=str(labels))
    source = extract("source", "maps=none@float32")
    before = files(tmp_path / "source")
    probes = probe("source", "probes", *PROBES, *POOLINGS, points=str(labels))
    assert first.folder.store.shard_count == probes.folder.store.shard_count == 3
    testing.assert_runs_equal(first, probes)
    assert probes.status().points == {"ok": 18, "no_such_point": 3, "outside_image": 1} == first.status().points
    assert probes.folder.manifest.digest == first.folder.manifest.digest
    assert files(tmp_path / "source") == before
    assert source.verify(content=True).ok
    assert probes.verify(content=True).ok


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "scale"),
    [
        ({"fit": "stretch"}, None),
        ({"fit": "crop"}, None),
        ({"fit": "pad", "image_size": "40x56"}, None),
        ({"canvas": "64x96", "tile_overlap": 16}, None),
        ({"fit": "stretch"}, "normalized"),
    ],
)
def test_every_geometry(
    extract: Call, probe: Call, labels: Path, tmp_path: Path, changes: dict[str, Any], scale: str | None
) -> None:
    if scale:
        lines = [line.split(",") for line in labels.read_text().splitlines()[1:]]
        shares = [f"{name},{point},{float(x) / 100},{float(y) / 100}" for name, point, x, y in lines]
        labels.write_text("image,point,x,y\n" + "\n".join(shares) + "\n")
    kept = [text for text in (*PROBES, *POOLINGS) if "bars" not in text]
    first = extract("first", *kept, points=str(labels), points_scale=scale, **changes)
    extract("source", "maps=none@float32", **changes)
    testing.assert_runs_equal(first, probe("source", "probes", *kept, points=str(labels), points_scale=scale))


def test_float16_is_the_rounding_of_the_map_alone(extract: Call, probe: Call, labels: Path, tmp_path: Path) -> None:
    first = values(extract("first", "probes=spatial_point(cell)", "maps=none@float32", points=str(labels)))
    extract("source", maps=True)
    probes = probe("source", "probes", "probes=spatial_point(cell)", "pool=global_avg_pool(bars)", points=str(labels))
    found = values(probes)
    rounded = first["probes"].astype(np.float16).astype(np.float32)
    assert rounded.tobytes() == found["probes"].tobytes()
    assert rounded.tobytes() != first["probes"].tobytes()
    expected = first["maps"].astype(np.float16).astype(np.float32).mean((2, 3))
    np.testing.assert_allclose(found["pool"], expected, rtol=1e-6)
    assert "were rounded to float16 before" in (tmp_path / "probes" / "README.md").read_text()
    assert probes.identity["probed"]["slots"] == {"features": "maps=none@float16"}


def test_float32_is_taken_where_both_are_stored(extract: Call, probe: Call, labels: Path) -> None:
    first = values(extract("source", "a=none@float16", "b=none@float32", "c=none@float16"))
    found = values(probe("source", "probes", "pool=global_max_pool(bars)"))
    assert found["pool"].tobytes() == first["b"].max((2, 3)).tobytes()


def test_named_slots(extract: Call, probe: Call, labels: Path) -> None:
    products = ("deep=coarse:spatial_point(cell)", "peak=fine:global_max_pool")
    model = {"model": "tiny_models:two_maps"}
    first = extract("first", *products, points=str(labels), **model)
    extract("source", "one=fine:none@float32", "two=coarse:none@float32", **model)
    testing.assert_runs_equal(first, probe("source", "probes", *products, points=str(labels)))


def test_points_of_the_source_with_another_interpolation(extract: Call, probe: Call, labels: Path) -> None:
    extract("source", "probes=spatial_point(cell)", "maps=none@float32", points=str(labels))
    found = values(probe("source", "probes", "soft=spatial_point(bilinear)"))
    first = values(extract("first", "soft=spatial_point(bilinear)", points=str(labels)))
    assert found["soft"].tobytes() == first["soft"].tobytes()
    assert found["point_x"].tobytes() == first["point_x"].tobytes()


def test_poolings_alone_have_no_points(extract: Call, probe: Call, labels: Path) -> None:
    extract("source", "maps=none@float32", points=str(labels))
    assert "point_x" not in values(probe("source", "probes", "pool=global_avg_pool"))


def test_the_record_says_what_was_read(extract: Call, probe: Call, labels: Path) -> None:
    source = extract("source", "maps=none@float32").folder
    probes = probe("source", "probes", points=str(labels)).folder
    for shard in range(3):
        of_source, own = source.store.record(shard), probes.store.record(shard)
        assert of_source is not None
        assert own is not None
        (origin,) = own.details["source"]
        (maps,) = (item for item in of_source.objects if item.key.startswith("maps/"))
        assert origin["objects"] == {"maps": maps.digest}
        assert origin["attempt"] == of_source.attempt
        assert own.details["input_sha256"] == of_source.details["input_sha256"]
    record = probe_source.read(probes.objects)
    assert record.parts[0].fingerprint == source.store.plan.fingerprint
    assert json.loads(probes.objects.read("provenance/probe.json"))["points"] == str(labels)


def test_unreadable_rows_keep_their_reason(extract: Call, probe: Call, photos: Path, labels: Path) -> None:
    (photos / "img_002.png").write_bytes(b"no image")
    first = extract("first", *PROBES, *POOLINGS, points=str(labels))
    extract("source", "maps=none@float32")
    probes = probe("source", "probes", *PROBES, *POOLINGS, points=str(labels))
    testing.assert_runs_equal(first, probes)
    assert probes.status().unreadable == 1
    both = [status.survey(run.folder).unreadable for run in (first, probes)]
    assert both[0] == both[1]
    assert both[0][0]["image_id"] == "img_002.png"


def test_what_is_not_committed_waits(extract: Call, probe: Call, labels: Path, tmp_path: Path) -> None:
    with testing.failing_shards([1]), pytest.raises(api.Incomplete):
        extract("source", "maps=none@float32")
    probes = probe("source", "probes", *PROBES, points=str(labels))
    assert sorted(probes.folder.store.committed()) == [0, 2]
    assert (values(probes)["status"] == [1] * 4 + [0] * 4 + [1] * 3).all()
    assert np.isnan(values(probes)["probes"][4:8]).all()
    (note,) = status.survey(probes.folder).source
    assert "1 shard not committed there yet: genenc resume" in note
    assert probes.encode().asked == 0
    api.Run.open(tmp_path / "source").encode(trust=True)
    assert probes.encode().asked == 1
    testing.assert_runs_equal(extract("first", *PROBES, points=str(labels)), probes)
    assert status.survey(probes.folder).source == ()


@pytest.fixture
def healed(extract: Call, probe: Call, photos: Path, labels: Path, tmp_path: Path) -> tuple[api.Run, api.Run]:
    """Return a source of which a row was healed after it was probed, and the probe set."""
    whole = (photos / "img_002.png").read_bytes()
    (photos / "img_002.png").write_bytes(b"no image")
    source = extract("source", "maps=none@float32")
    probes = probe("source", "probes", *PROBES, points=str(labels))
    (photos / "img_002.png").write_bytes(whole)
    assert source.encode("unreadable", accept_changed=True, trust=True).status.unreadable == 0
    return source, probes


def test_a_healed_row_is_named_and_taken_over(
    healed: tuple[api.Run, api.Run], extract: Call, labels: Path, tmp_path: Path
) -> None:
    _, probes = healed
    (note,) = status.survey(probes.folder).source
    assert "1 row healed there since: genenc resume" in note
    assert "--shards unreadable" in note
    assert probes.verify(content=True).ok
    before = values(probes)
    assert probes.encode("unreadable").status.unreadable == 0
    after = values(probes)
    assert not np.isnan(after["probes"][2]).any()
    assert all(
        np.delete(before[name], 2, 0).tobytes() == np.delete(after[name], 2, 0).tobytes() for name in ("probes", "soft")
    )
    # A retried image is encoded in a batch of its own, which rounds differently.
    testing.assert_runs_equal(extract("first", *PROBES, points=str(labels)), probes, atol=1e-5)
    assert status.survey(probes.folder).source == ()
    record = probes.folder.store.record(0)
    assert record is not None
    assert record.details["source"][0]["generation"] == 1
    assert probes.verify(content=True).ok
    assert list(probe_source.changes(probes.folder)) == []


def encode_again(run: RunFolder, shard: int, **changed: float) -> None:
    """Let a shard of a run be damaged, repaired, and committed with other values of some arrays."""
    record = run.store.record(shard)
    assert record is not None
    blocks = run.store.blocks(record)
    store_damage.flip(run.store, record.objects[0].key, at=100)
    repair.repair_store(run.store, coordinates=[])
    state = blocks.pop("status")
    arrays = {name: block + np.float32(changed.get(name, 0)).astype(block.dtype) for name, block in blocks.items()}
    run.store.commit(shard, arrays, state, details=record.details)


def test_the_same_values_again_are_no_change(extract: Call, probe: Call, labels: Path) -> None:
    source = extract("source", "maps=none@float32")
    probes = probe("source", "probes", points=str(labels))
    encode_again(source.folder, 1)
    assert list(probe_source.changes(probes.folder)) == []


def test_other_values_are_named_and_not_mixed(healed: tuple[api.Run, api.Run]) -> None:
    source, probes = healed
    encode_again(source.folder, 0, maps=1.0)
    (said,) = probe_source.changes(probes.folder)
    assert said.endswith("was encoded again, with other values")
    before = values(probes)
    with pytest.raises(api.Incomplete) as caught:
        probes.encode("unreadable")
    assert "cannot be completed: probe it again to another --out" in str(caught.value.result.failures[0])
    assert values(probes)["probes"].tobytes() == before["probes"].tobytes()


def test_another_run_in_the_place_of_the_source(extract: Call, probe: Call, labels: Path, tmp_path: Path) -> None:
    with testing.failing_shards([1]), pytest.raises(api.Incomplete):
        extract("source", "maps=none@float32")
    probes = probe("source", "probes", points=str(labels))
    shutil.move(tmp_path / "source", tmp_path / "moved")
    (note,) = status.survey(probes.folder).source
    assert "the source of the probes is not there" in note
    extract("source", "maps=none@float32", weights="random:1")
    (note,) = status.survey(probes.folder).source
    assert "is another run than the one that was probed (fingerprint" in note
    with pytest.raises(errors.OtherRunError, match="is another run than the one that was probed"):
        probes.encode()
    with pytest.raises(errors.OtherRunError, match=r"weights: .*; the source: .* is another run"):
        probe("source", "probes", points=str(labels))
    assert probes.verify(content=True).ok
    # In its new place it is the same source.
    api.Run.open(tmp_path / "moved").encode(trust=True)
    assert probe("moved", "probes", points=str(labels)).status().complete
    assert probe_source.place(probes.folder.objects) == str(tmp_path / "moved")
    assert probes.verify(content=True).ok


def test_the_same_run_made_anew_is_another_source(extract: Call, probe: Call, labels: Path, tmp_path: Path) -> None:
    extract("source", "maps=none@float32", shard_rows=4)
    probes = probe("source", "probes", points=str(labels))
    shutil.rmtree(tmp_path / "source")
    extract("source", "maps=none@float32", shard_rows=6)
    (note,) = status.survey(probes.folder).source
    assert "the same command created it again" in note


def test_damage_in_the_source_fails_its_shard_alone(extract: Call, probe: Call, labels: Path, tmp_path: Path) -> None:
    source = extract("source", "maps=none@float32").folder
    record = source.store.record(1)
    assert record is not None
    (maps,) = (item for item in record.objects if item.key.startswith("maps/"))
    store_damage.flip(source.store, maps.key, at=200)
    with pytest.raises(api.Incomplete) as caught:
        probe("source", "probes", points=str(labels))
    (failure,) = caught.value.result.failures
    assert "is missing, or differs from the committed object" in str(failure)
    probes = RunFolder(tmp_path / "probes")
    assert sorted(probes.store.committed()) == [0, 2]
    store_damage.flip(source.store, maps.key, at=200)
    assert probe("source", "probes", points=str(labels)).status().complete


@pytest.mark.parametrize("name", ["probes", "point_status", "image_affine", "point_x"])
def test_a_flipped_bit_is_found(extract: Call, probe: Call, labels: Path, tmp_path: Path, name: str) -> None:
    extract("source", "maps=none@float32")
    probes = probe("source", "probes", points=str(labels)).folder
    key = next(
        path.name for path in sorted((tmp_path / "probes/features.zarr" / name).iterdir()) if path.name != "zarr.json"
    )
    store_damage.flip(probes.store, f"{name}/{key}", at=5)
    (problem,) = status.verify_run(probes).problems
    assert problem.key == f"{name}/{key}"


def test_damage_is_repaired_from_the_source(extract: Call, probe: Call, labels: Path, tmp_path: Path) -> None:
    extract("source", "maps=none@float32")
    probes = probe("source", "probes", *PROBES, points=str(labels))
    before = values(probes)
    store_damage.flip(probes.folder.store, "probes/c.1.0.0", at=5)
    (tmp_path / "probes" / "README.md").unlink()
    done = probes.repair()
    assert (done.requeued, done.restored, done.unrepaired) == ((1,), ("README.md",), ())
    assert probes.encode().status.complete
    assert {name: block.tobytes() for name, block in values(probes).items()} == {
        name: block.tobytes() for name, block in before.items()
    }


def test_every_file_of_a_probe_set_is_checked(extract: Call, probe: Call, labels: Path, tmp_path: Path) -> None:
    extract("source", "maps=none@float32")
    probes = probe("source", "probes", points=str(labels)).folder
    for key in ("provenance/source.json", "provenance/source_place.json", "provenance/probe.json", "images.parquet"):
        path = tmp_path / "probes" / key
        whole = path.read_bytes()
        path.write_bytes(whole[:20] + bytes([whole[20] ^ 1]) + whole[21:])
        report = status.verify_place(tmp_path / "probes")
        assert key in [problem.place for problem in report.problems], key
        path.write_bytes(whole)
    assert status.verify_run(probes).ok


def test_shards_are_smaller_where_products_are_large(
    extract: Call, probe: Call, labels: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from genenc_core.run import store_plan

    first = extract("first", *PROBES, points=str(labels))
    extract("source", "maps=none@float32")
    monkeypatch.setattr(store_plan, "SHARD_BYTES", 500)
    probes = probe("source", "probes", *PROBES, points=str(labels))
    assert probes.folder.store.plan.shard_rows < 4
    one, other = values(first), values(probes)
    assert all(one[name].tobytes() == other[name].tobytes() for name in one)


def test_pieces_of_a_shard(extract: Call, probe: Call, labels: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is computed at once, and also row by row, the values are the same."""
    from genenc_core.encoding import map_probing

    first = extract("first", *PROBES, *POOLINGS, points=str(labels))
    extract("source", "maps=none@float32")
    monkeypatch.setattr(map_probing, "BATCH_BYTES", 1)
    testing.assert_runs_equal(first, probe("source", "probes", *PROBES, *POOLINGS, points=str(labels)))


def test_a_value_too_large_for_float16(extract: Call, probe: Call) -> None:
    source = extract("source", "maps=none@float32").folder
    encode_again(source, 0, maps=1e6)
    with pytest.raises(api.Incomplete) as caught:
        probe("source", "probes", "pool=global_avg_pool@float16")
    assert "overflows float16 (largest 65504): store it as --product 'pool=global_avg_pool" in str(
        caught.value.result.failures[0]
    )


@pytest.mark.parametrize(
    ("products", "options", "message"),
    [
        ((), {}, "nothing to probe: give --points FILE, --regions FILE, or --product such as 'peaks=global_max_pool'"),
        (("made=spatial_point",), {}, "spatial_point needs points, and the run has none: use --points FILE"),
        (("made=layer9:gem",), {}, r"the encoder has no output slot 'layer9'; it has fine, coarse"),
        (
            ("made=gem",),
            {},
            r"needs the output slot 'fine', which .* does not store as it is; it stores coarse \(as maps\)",
        ),
        (("made=coarse:gem(q=1)",), {}, "unknown argument 'q'"),
        (("made=coarse:gem",), {"version": "3"}, "--version '3' is for datasets, and .* is none"),
        (("made=coarse:gem",), {"points_scale": "2"}, "--points-scale '2' needs --points FILE"),
        (("status=coarse:gem",), {}, "reserved by the store"),
        (("made=coarse:gem",), {"points": "none.csv"}, "the points file does not exist: 'none.csv'"),
        (
            ("made=coarse:gem",),
            {"out": "source/x"},
            "is in the source .*, where nothing may change: give a folder",
        ),
        (("made=coarse:gem",), {"out": "source"}, "is in the source"),
        (("made=coarse:gem",), {"out": "photos"}, "is not empty and not a run folder"),
        (("made=coarse:gem",), {"out": "first"}, "holds a run that was extracted, not a probe set: give another --out"),
    ],
)
def test_bad_input_is_refused_and_leaves_nothing(
    extract: Call, tmp_path: Path, products: tuple[str, ...], options: dict[str, Any], message: str
) -> None:
    extract("source", "maps=coarse:none@float32", model="tiny_models:two_maps")
    if options.get("out") == "first":
        extract("first")
    before = files(tmp_path)
    given = {"out": str(tmp_path / options.get("out", "probes"))}
    with pytest.raises(errors.GenencError, match=message):
        api.probe(tmp_path / "source", products=products, **{**options, **given})
    assert files(tmp_path) == before


def test_sources_without_maps(extract: Call, probe: Call, labels: Path, tmp_path: Path) -> None:
    extract("source")
    with pytest.raises(errors.InputError, match=r"--maps \(float16\), or --product 'maps=features:none@float32'"):
        probe("source", "probes", points=str(labels))
    extract("mapped", maps=True)
    probe("mapped", "probes", points=str(labels))
    with pytest.raises(errors.InputError, match=r"is a probe set, which stores no maps: give the run .*mapped"):
        probe("probes", "more", points=str(labels))
    with pytest.raises(errors.InputError, match="is not a run folder"):
        probe("photos", "more", points=str(labels))


def test_points_of_other_images(extract: Call, probe: Call, tmp_path: Path) -> None:
    extract("source", maps=True)
    other = tmp_path / "other.csv"
    other.write_text("image,point,x,y\nelsewhere.png,nose,1,2\n")
    with pytest.raises(errors.InputError, match="none of the 1 images of the points file is in the source"):
        probe("source", "probes", points=str(other))
    other.write_text("image,point,x,y\n" + "".join(f"img_{at:03d}.png,nose,0.{at}5,0.5\n" for at in range(9)))
    with pytest.raises(errors.InputError, match="they look normalised, not like pixels"):
        probe("source", "probes", points=str(other))
    assert not (tmp_path / "probes").exists()


def test_other_points_in_the_same_place(extract: Call, probe: Call, labels: Path, tmp_path: Path) -> None:
    extract("source", maps=True)
    probe("source", "probes", points=str(labels))
    other = tmp_path / "other.csv"
    other.write_text("image,point,x,y\nimg_000.png,nose,10,12\n")
    with pytest.raises(errors.OtherRunError, match=r"holds another probe set.*point names differ.*Give another --out"):
        probe("source", "probes", points=str(other))
    with pytest.raises(errors.OtherRunError, match="products: "):
        probe("source", "probes", "soft=spatial_point(bilinear)", points=str(labels))


def test_an_unpromoted_shard_is_read_where_it_is(extract: Call, probe: Call, labels: Path, tmp_path: Path) -> None:
    """A source whose process was killed between record and promotion: it is probed, and nothing is written there."""
    source = extract("source", "maps=none@float32").folder
    expected = probe("source", "expected", points=str(labels))
    record = source.store.record(2)
    assert record is not None
    objects = LocalObjects(tmp_path / "source")
    for item in record.objects[:-2]:
        staged = objects.path(f"_txn/staging/{item.staged}")
        staged.parent.mkdir(parents=True, exist_ok=True)
        objects.path(f"features.zarr/{item.key}").rename(staged)
    before = files(tmp_path / "source")
    testing.assert_runs_equal(expected, probe("source", "probes", points=str(labels)))
    assert files(tmp_path / "source") == before
    api.Run.open(tmp_path / "source").encode(trust=True)
    assert verify.verify_store(source.store, content=True).ok


def test_images_inside_a_file_and_columns_of_a_list(tmp_path: Path) -> None:
    """A probe set has the rows of its source: members of a container, and further columns as coordinates."""
    containers.write_npy(tmp_path, containers.frames(5, 40, 40))
    given = {"model": "tiny_models:conv", "weights": "random:0", "image_size": "32", "device": "cpu", "maps": True}
    (tmp_path / "points.csv").write_text("image,point,x,y\nstack#1,nose,5,6\nstack.npy#4,nose,30,8\n")
    for name, more in (("maps", {}), ("first", {"points": str(tmp_path / "points.csv"), "fit": "crop"})):
        values = {**given, **more, "fit": "crop", "images": str(tmp_path / "stack.npy"), "out": str(tmp_path / name)}
        driver.extract(parameters.ExtractParameters.model_validate(values))
    api.probe(tmp_path / "maps", points=tmp_path / "points.csv", out=tmp_path / "probes")
    first, second = (zarr.open_group(str(tmp_path / name / "features.zarr"), mode="r") for name in ("first", "probes"))
    for name in ("image_id", "frame", "point_status", "point_x"):
        np.testing.assert_array_equal(np.asarray(second[name]), np.asarray(first[name]))
    probes, wanted = np.asarray(second["probes"]), np.asarray(first["probes"])
    np.testing.assert_array_equal(np.isnan(probes), np.isnan(wanted))
    np.testing.assert_allclose(probes, wanted, rtol=2**-10, atol=1e-6)  # the maps are stored as float16


def test_a_shard_that_is_healed_while_it_is_read(
    healed: tuple[api.Run, api.Run], labels: Path, probe: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The record that was current when reading began has no objects any more."""
    store = healed[0].folder.store
    real, calls = run_store.RunStore.history, list[int]()

    def history(self: run_store.RunStore, shard: int) -> Any:
        calls.append(shard)
        return real(self, shard)[: 1 if len(calls) == 1 else None]

    monkeypatch.setattr(run_store.RunStore, "history", history)
    found = store.values(0, {"status", "maps"})
    assert found is not None
    assert [record.generation for record in found[0]] == [0, 1]
    assert (found[1]["status"] == 1).all()
    assert calls == [0, 0]


@pytest.mark.parametrize(
    ("key", "changes", "message"),
    [
        ("source.json", {"parts": [{"name": "../x", "store": "s", "fingerprint": "f"}]}, "is damaged: .*name"),
        ("source.json", {"rows": [[0, 0, 2**60]]}, "is damaged"),
        ("source.json", {"rows": [[0, 0, 12]]}, "has another number of rows"),
        ("source.json", {"rows": [[3, 0, 11]]}, "it has rows of no part"),
        ("source.json", {"slots": {"features": "none"}}, "has no array 'none'"),
        ("source.json", {"schema": "genenc.probe-source/2"}, "is damaged"),
        ("source_place.json", {"place": ""}, "it names no place"),
        ("source_place.json", {"place": "/nowhere"}, "the source of the probes is not there"),
    ],
)
def test_records_that_say_something_else(
    extract: Call, probe: Call, labels: Path, key: str, changes: dict[str, Any], message: str
) -> None:
    extract("source", "maps=none@float32")
    probes = probe("source", "probes", points=str(labels)).folder
    content = records.read_json(probes.objects, f"provenance/{key}")
    records.write_json(probes.objects, f"provenance/{key}", {**content, **changes})
    (note,) = status.survey(probes).source
    assert re.search(message, note)
    with pytest.raises(errors.StoreError, match=message):
        probe_source.ready(probes, [0])


@pytest.mark.slow
def test_source_and_probes_on_s3(extract: Call, labels: Path, request: pytest.FixtureRequest) -> None:
    place = f"s3://{request.getfixturevalue('s3').bucket}/tests/{uuid.uuid4().hex[:12]}"
    first = extract("first", *PROBES, *POOLINGS, points=str(labels))
    extract(f"{place}/source", "maps=none@float32")
    probes = api.probe(f"{place}/source", f"{place}/probes", points=str(labels), products=(*PROBES, *POOLINGS))
    one, other = values(first), values(probes)
    assert {name: block.tobytes() for name, block in one.items() if block.dtype.kind != "T"} == {
        name: block.tobytes() for name, block in other.items() if block.dtype.kind != "T"
    }
    assert probes.verify(content=True).ok
    assert probe_source.place(probes.folder.objects) == f"{place}/source"
    with pytest.raises(errors.InputError, match=r"is in the source .*, where nothing may change"):
        api.probe(f"{place}/source", f"{place}/source/probes", points=str(labels))
    with pytest.raises(errors.OtherRunError, match="products: "):
        api.probe(f"{place}/source", f"{place}/probes", points=str(labels), products=PROBES[:1])


def test_labels_are_checked_as_in_the_first_pass(extract: Call, probe: Call, tmp_path: Path) -> None:
    extract("run", "maps=none")
    for folder, name in (("one", "img_000.png"), ("photos", "img_002.png")):
        (tmp_path / "labels" / folder).mkdir(parents=True)
        (tmp_path / "labels" / folder / "l.csv").write_text(f"image,point,x,y\n{name},a,5,5\n")
    (tmp_path / "labels" / "one" / "l.csv").write_text("image,point,x,y\nimg_002.png,b,5,5\n")
    with pytest.raises(errors.InputError, match="of the points file in 'photos'"):
        probe("run", "probes", points=str(tmp_path / "labels" / "*" / "l.csv"))
    images = [{"id": at, "file_name": f"img_{at:03d}.png", "width": 160, "height": 120} for at in (0, 2)]
    category = {"id": 1, "name": "mouse", "keypoints": ["a"]}
    labelled = [{"id": at, "image_id": at, "category_id": 1, "keypoints": [20, 30, 2]} for at in (0, 2)]
    coco = {"images": images, "categories": [category], "annotations": labelled}
    (tmp_path / "coco.json").write_text(json.dumps(coco))
    with pytest.raises(errors.InputError, match="--points-scale 1/2"):
        probe("run", "probes", points=str(tmp_path / "coco.json"))
