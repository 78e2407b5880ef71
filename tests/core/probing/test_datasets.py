"""Probes of a dataset: all parts, current rows only, under their names now, of the version that is asked for."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import pictures
from genenc_core import api, errors, testing
from genenc_core.dataset.folder import DatasetFolder
from genenc_core.run import probe_source, status

MODEL: dict[str, Any] = {
    "model": "tiny_models:conv",
    "weights": "random:0",
    "image_size": "32",
    "fit": "pad",
    "device": "cpu",
    "batch_size": 1,
    "decode_workers": 1,
    "shard_rows": 4,
    "trust": True,
}
MAPS = "maps=none@float32"
PRODUCTS = ("probes=spatial_point(cell)", "pool=global_avg_pool")


@pytest.fixture
def grown(tmp_path: Path, photos: Path) -> Path:
    """A dataset of three versions and parts: images are added, changed, renamed, removed, and one is unreadable."""

    def update(**more: Any) -> api.Dataset:
        return api.update(str(tmp_path / "dataset"), str(photos), products=[MAPS], **MODEL, **more)

    update()
    pictures.write_folder(tmp_path / "more", 3, seed=90)
    shutil.move(tmp_path / "more" / "img_000.png", photos / "new_0.png")
    shutil.move(tmp_path / "more" / "img_001.png", photos / "img_003.png")
    (photos / "bad.png").write_bytes(b"no image")
    update()
    shutil.move(photos / "img_007.png", photos / "renamed.png")
    (photos / "img_001.png").unlink()
    shutil.move(tmp_path / "more" / "img_002.png", photos / "new_1.png")
    assert update(by="content", max_failures="100%").version == 3
    return tmp_path / "dataset"


@pytest.fixture
def labels(tmp_path: Path) -> Path:
    """Two points in every image that is there in the end."""
    names = [f"img_{at:03d}.png" for at in (0, 2, 3, 4, 5, 6, 8, 9, 10)] + ["new_0.png", "new_1.png", "renamed.png"]
    lines = [f"{name},{point},{5 + at},{x + at}" for at, name in enumerate(names) for point, x in (("a", 7), ("b", 22))]
    path = tmp_path / "labels.csv"
    path.write_text("\n".join(["image,point,x,y", *lines]) + "\n")
    return path


def test_all_parts_are_probed(grown: Path, photos: Path, labels: Path, tmp_path: Path) -> None:
    before = {str(path): path.read_bytes() for path in sorted(grown.rglob("*")) if path.is_file()}
    probes = api.probe(grown, str(tmp_path / "probes"), points=str(labels), products=PRODUCTS)
    assert before == {str(path): path.read_bytes() for path in sorted(grown.rglob("*")) if path.is_file()}
    # The same images, in another order, with everything from the start.
    first = api.extract(
        str(photos),
        out=str(tmp_path / "first"),
        points=str(labels),
        products=PRODUCTS,
        max_failures="100%",
        **MODEL,
    )
    found, expected = probes.arrays().load(), first.arrays().load()
    rows = api.Dataset.open(grown).arrays()
    assert list(found.image_id.values) == list(rows.image_id.values)
    assert list(found.status.values) == list(rows.status.values)
    order = np.argsort(found.image_id.values)
    assert list(found.image_id.values[order]) == sorted(expected.image_id.values)
    other = np.argsort(expected.image_id.values)
    for name in ("probes", "pool", "point_status", "point_x", "image_affine", "status"):
        assert found[name].values[order].tobytes() == expected[name].values[other].tobytes(), name
    assert probes.status().unreadable == 1
    (record,) = (probes.folder.store.record(shard) for shard in range(probes.folder.store.shard_count))
    assert record is not None
    assert {origin["part"] for origin in record.details["source"]} == {"p000001", "p000002", "p000003"}
    assert probes.verify(content=True).ok
    assert status.survey(probes.folder).source == ()


def test_a_version_by_number_or_tag(grown: Path, labels: Path, tmp_path: Path) -> None:
    for version, out in ((1, "one"), (None, "newest")):
        probes = api.probe(grown, str(tmp_path / out), points=str(labels), version=version and str(version))
        rows = api.Dataset.open(grown, version).arrays()
        assert list(probes.arrays().image_id.values) == list(rows.image_id.values)
        assert probe_source.read(probes.folder.objects).version == (version or 3)
    with pytest.raises(errors.InputError, match="has no version 9"):
        api.probe(grown, str(tmp_path / "none"), points=str(labels), version="9")
    with pytest.raises(errors.OtherRunError, match="the version of the dataset: 1 -> 3"):
        api.probe(grown, str(tmp_path / "one"), points=str(labels))


def test_smaller_shards_than_pieces(grown: Path, labels: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from genenc_core.run import store_plan

    whole = api.probe(grown, str(tmp_path / "whole"), points=str(labels), products=PRODUCTS)
    monkeypatch.setattr(store_plan, "choose_shard_rows", lambda *_given, **_more: 5)
    cut = api.probe(grown, str(tmp_path / "cut"), points=str(labels), products=PRODUCTS)
    assert (whole.folder.store.shard_count, cut.folder.store.shard_count) == (1, 3)
    testing.assert_runs_equal(whole, cut)


def test_a_part_that_is_gone(grown: Path, labels: Path, tmp_path: Path) -> None:
    with testing.failing_shards([0]), pytest.raises(api.Incomplete):
        api.probe(grown, str(tmp_path / "probes"), points=str(labels))
    shutil.rmtree(grown / "parts" / "p000002")
    with pytest.raises(errors.StoreError, match="the source of the probes is not there"):
        api.Run.open(tmp_path / "probes").encode()
    (note,) = status.survey(api.Run.open(tmp_path / "probes").folder).source
    assert "p000002" in note


def test_a_place_in_a_dataset_is_refused(grown: Path, labels: Path) -> None:
    with pytest.raises(errors.InputError, match="where nothing may change"):
        api.probe(grown, str(grown / "probes"), points=str(labels))


def test_own_points_of_a_dataset(tmp_path: Path, photos: Path, labels: Path) -> None:
    api.update(
        str(tmp_path / "dataset"),
        str(photos),
        points=str(labels),
        products=[MAPS, PRODUCTS[0]],
        **MODEL,
    )
    probes = api.probe(tmp_path / "dataset", str(tmp_path / "probes"), products=PRODUCTS[:1])
    rows = api.Dataset.open(tmp_path / "dataset").arrays()
    assert probes.arrays().probes.values.tobytes() == rows.probes.values.tobytes()
    assert list(probes.arrays().point.values) == DatasetFolder(tmp_path / "dataset").meaning.points == ["a", "b"]
