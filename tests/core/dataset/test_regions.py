"""Datasets with regions: parts hold them as they hold points; labels that change, versions, compaction, probes."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray

from genenc_core import api, errors
from genenc_core.dataset import compact, update, verify
from genenc_core.dataset.folder import DatasetFolder

pytestmark = pytest.mark.slow
ASKED = ("features=global_avg_pool", "regions=region_mean", "maps=none@float32")
Boxes = dict[str, list[tuple[str, int]]]


def write(path: Path, boxes: Boxes) -> tuple[str, ...]:
    """Write square boxes at (4, 4), by their names and sides."""
    lines = [f"{image},{name},4,4,{side},{side}" for image, of in boxes.items() for name, side in of]
    path.write_text("\n".join(["image,region,x,y,width,height", *lines]) + "\n")
    return (str(path),)


def read(place: Path, version: int | None = None) -> xarray.Dataset:
    return api.Dataset.open(place, version=version).arrays().load()


def by_name(found: xarray.Dataset) -> dict[tuple[str, str], np.ndarray]:
    """Return the vectors by image and name; each region's image is a row of this name."""
    ids = found.image_id.values[found.region_image.values]
    assert ids.tolist() == found.region_image_id.values.tolist()
    names = zip(ids.tolist(), found.region_name.values.tolist(), strict=True)
    assert (found.region_status.values == 1).all()
    return dict(zip(names, found.regions.values, strict=True))


@pytest.fixture
def boxes() -> Boxes:
    return {"img_000.png": [("a", 8), ("b", 20)], "img_002.png": [("a", 12)], "img_005.png": [("a", 16)]}


@pytest.fixture
def grow(updated: Callable[..., update.Updated], tmp_path: Path) -> Callable[[Boxes], update.Updated]:
    """Return a call that updates the dataset with these regions."""

    def run(boxes: Boxes, **more: Any) -> update.Updated:
        return updated(regions=write(tmp_path / "boxes.csv", boxes), products=ASKED, shard_rows=4, **more)

    return run


def test_regions_change_as_points_do(
    grow: Callable[..., update.Updated],
    updated: Callable[..., update.Updated],
    add: Callable[..., Path],
    photos: Path,
    boxes: Boxes,
    tmp_path: Path,
) -> None:
    place = tmp_path / "dataset"
    grow(boxes)
    first = by_name(read(place))
    assert list(first) == [(name, region) for name, of in boxes.items() for region, _ in of]
    # Another file of the same regions in another order is no change.
    same = grow({name: boxes[name] for name in reversed(boxes)})
    assert same.version is not None
    assert not same.made
    # One gains a region, one loses its only one, one is renamed, one is new, and one that was labelled goes.
    add("new.png", 70)
    (photos / "img_005.png").rename(photos / "other.png")
    now: Boxes = {"img_000.png": [*boxes["img_000.png"], ("c", 10)], "other.png": [("a", 16)], "new.png": [("a", 9)]}
    done = grow(now, by="content")
    assert done.version is not None
    counts = {name: count for name, count in done.version.counts.items() if count}
    assert counts == {"rows": 7, "new": 1, "renamed": 1, "points_changed": 2}
    found = read(place)
    assert found.sizes["image"] == 7
    vectors = by_name(found)
    assert sorted(vectors) == sorted((name, region) for name, of in now.items() for region, _ in of)
    for name in (("img_000.png", "a"), ("img_000.png", "b")):
        np.testing.assert_array_equal(vectors[name], first[name])
    np.testing.assert_array_equal(vectors["other.png", "a"], first["img_005.png", "a"])
    # Versions before read as they did, and those of one run over all images are the same.
    before = by_name(read(place, 1))
    assert before.keys() == first.keys()
    assert all((before[name] == first[name]).all() for name in first)
    run = by_name(_run(photos, tmp_path, now))
    assert run.keys() == vectors.keys()
    assert all((run[name] == vectors[name]).all() for name in run)
    # Without --regions they are those of the last update; another scale is another dataset.
    assert not updated().made
    with pytest.raises(errors.OtherRunError, match="coordinates of regions: pixels -> 1/2"):
        updated(regions_scale="1/2")
    assert verify.verify(DatasetFolder(place), content=True).ok


def _run(photos: Path, tmp_path: Path, boxes: Boxes) -> xarray.Dataset:
    options: dict[str, Any] = {
        "model": "tiny_models:conv",
        "weights": "random:0",
        "image_size": "32",
        "trust": True,
        "products": ASKED,
        "regions": write(tmp_path / "again.csv", boxes),
        "device": "cpu",
        "batch_size": 4,
        "decode_workers": 1,
    }
    found = api.extract(str(photos), out=str(tmp_path / "run"), **options).arrays().load()
    return found.isel(region=np.flatnonzero(found.region_image.values >= 0))


def test_compaction_and_probes_take_all_parts(
    grow: Callable[..., update.Updated], add: Callable[..., Path], photos: Path, boxes: Boxes, tmp_path: Path
) -> None:
    place = tmp_path / "dataset"
    grow(boxes)
    (photos / "img_006.png").write_bytes(b"no image")
    grow({**boxes, "img_006.png": [("a", 5)]}, max_failures="100%")
    add("img_007.png", 71)
    boxes |= {"img_002.png": [("z", 11)], "img_007.png": [("a", 7)], "img_006.png": [("a", 5)]}
    grow(boxes)
    before = read(place)
    assert before.region_status.values.tolist().count(1) == len(before.region_status) - 1
    assert len(compact.compact(DatasetFolder(place), below=100).made) == 1
    after = read(place)
    xarray.testing.assert_identical(after.drop_attrs(), before.drop_attrs())
    assert verify.verify(DatasetFolder(place), content=True).ok
    assert DatasetFolder(place).version().parts[0].regions == 6
    # Another part on top of the joined one, and its labels compared with those of its rows.
    add("img_008.png", 72)
    assert [version.counts["new"] for version in grow(boxes).made] == [1]
    # Products of the regions that it has, and other regions, of all parts.
    own = api.probe(str(place), str(tmp_path / "own"), products=["regions=region_mean", "boxes=region_mean(of=box)"])
    found = own.arrays().load().isel(region=np.flatnonzero(own.arrays().region_image.values >= 0))
    np.testing.assert_array_equal(found.regions.values, read(place).regions.values)
    assert found.region_image_id.values.tolist() == read(place).region_image_id.values.tolist()
    other = write(tmp_path / "other.csv", {"img_007.png": [("q", 6)], "img_001.png": [("q", 18)]})
    probed = api.probe(str(place), str(tmp_path / "probed"), regions=other).arrays().load()
    kept = np.flatnonzero(probed.region_image.values >= 0)
    assert probed.region_image_id.values[kept].tolist() == ["img_001.png", "img_007.png"]
    assert np.isfinite(probed.regions.values[kept]).all()
