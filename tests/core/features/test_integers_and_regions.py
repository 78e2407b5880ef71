"""Features that are stored as integers, or per region, are read as their values everywhere."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pyarrow import parquet

import reported
from genenc_core import api, errors
from genenc_core.stored import rows as stored_rows

Extract = Callable[..., api.Run]


def boxes(folder: Path) -> tuple[str, ...]:
    path = folder / "boxes.csv"
    path.write_text("image,region,x,y,width,height\nimg_000.png,a,3,4,30,20\nimg_004.png,a,1,1,9,9\n")
    return (str(path),)


@pytest.fixture
def runs(extract: Extract, labels: Path, tmp_path: Path) -> dict[str, api.Run]:
    """Return a run of floats, and the same as integers, with points and regions."""
    given: dict[str, Any] = {"points": str(labels), "regions": boxes(tmp_path)}
    return {kind: extract(kind, dtype=kind, **given) for kind in ("float32", "int8", "uint8")}


@pytest.mark.parametrize("kind", ["int8", "uint8"])
def test_values_are_those_of_the_arrays(runs: dict[str, api.Run], kind: str, tmp_path: Path) -> None:
    run = runs[kind]
    wanted = run.arrays()
    opened = api.open(run.folder.root)
    for name in ("features", "probes", "regions"):
        values = wanted[name].values
        assert values.dtype == np.float32
        if name != "regions":
            np.testing.assert_array_equal(opened.numpy(name), values)
        np.testing.assert_array_equal(opened.xarray()[name].values, values)
        steps = np.nanmax(np.abs(runs["float32"].arrays()[name].values)) / 100
        np.testing.assert_allclose(values, runs["float32"].arrays()[name].values, atol=steps)
    api.export_features(run.folder.root, str(tmp_path / "out"), format="parquet")
    table = parquet.read_table(next((tmp_path / "out").rglob("images*.parquet")))
    np.testing.assert_array_equal(np.stack(table["features"].to_numpy()), wanted.features.values)
    audited = api.audit(run.folder.root)
    assert [each.product for each in audited] == ["features", "probes"]


@pytest.mark.parametrize("kind", ["int8", "uint8"])
def test_regions_are_integers_with_a_scale_each(extract: Extract, kind: str, tmp_path: Path) -> None:
    given: dict[str, Any] = {"regions": boxes(tmp_path), "maps": True}
    run, exact = extract("whole", dtype=kind, **given), extract("exact", **given).arrays().regions.values
    raw = run.arrays(raw=True)
    assert raw.regions.dtype == kind
    scale = raw.regions_scale.values[:, None]
    assert scale.shape == (len(exact), 1)
    low = raw.regions_offset.values[:, None] if kind == "uint8" else 0
    assert (np.abs(raw.regions.values * scale + low - exact) <= scale * 0.5001).all()
    loss = run.status().quantized["regions"]
    assert (loss.dtype, loss.vectors) == (kind, len(exact))
    assert loss.cosine_mean is not None
    assert 0.999 < loss.cosine_mean < 1
    # A region that the model does not see has no scale; other regions of stored maps, likewise.
    other = tmp_path / "other.csv"
    other.write_text("image,region,x,y,width,height\nimg_001.png,a,3,4,30,20\nimg_001.png,out,300,4,9,9\n")
    probed = api.probe(run.folder.root, str(tmp_path / "probed"), regions=(str(other),), dtype=kind)
    found = probed.arrays(raw=True).load()
    assert found.region_status.values.tolist() == [1, 5]
    assert np.isnan(found.regions_scale.values).tolist() == [False, True]
    assert not found.regions.values[1].any()
    assert probed.status().quantized["regions"].vectors == 1
    assert probed.verify(content=True).ok


def test_search_and_compare_take_values(runs: dict[str, api.Run]) -> None:
    exact = api.search(runs["float32"].folder.root, row="#2", metric="l2", top=4)
    near = api.search(runs["uint8"].folder.root, row="#2", metric="l2", top=4)
    assert near.rows.tolist() == exact.rows.tolist()
    np.testing.assert_allclose(near.distances, exact.distances, rtol=0.1)
    compared = api.compare(runs["float32"].folder.root, runs["int8"].folder.root)
    assert compared.cka == pytest.approx(1, abs=1e-3)


def test_a_run_of_integers_and_regions_is_made_again(runs: dict[str, api.Run], tmp_path: Path) -> None:
    root = Path(runs["int8"].folder.root)
    api.rerun_from(str(root), str(tmp_path / "again"))
    for path in sorted((root / "features.zarr").rglob("*")):
        if path.is_file():
            assert (tmp_path / "again" / path.relative_to(root)).read_bytes() == path.read_bytes(), path


def test_a_report_looks_at_products_per_image(runs: dict[str, api.Run]) -> None:
    found = stored_rows.open_rows(runs["int8"].folder.root)
    assert {each.name: each.dtype for each in found.product_arrays} == {"features": "float32", "probes": "float32"}
    assert found.columns == ()  # scales are no columns of the list


def test_an_image_is_searched_for_in_a_run_with_regions(extract: Extract, photos: Path, tmp_path: Path) -> None:
    run = extract("run", regions=boxes(tmp_path))
    found = api.search(run.place, like=photos / "img_004.png", top=1, trust=True)
    assert (found.rows.tolist(), found.distances.tolist()) == ([4], [0.0])


GIVEN = {**reported.MODEL, "fit": "pad", "batch_size": 1}
BOXES = (
    "image,region,x,y,width,height,category\n"
    "img_000.png,a,3,4,30,20,mouse\nimg_000.png,b,0,0,9,9,rat\nimg_004.png,a,3,4,30,20,mouse\n"
    "img_005.png,a,8,8,5,5,rat\nimg_005.png,out,300,0,9,9,rat\n"
)


@pytest.fixture
def grown(tmp_path: Path, photos: Path) -> api.Dataset:
    """A dataset of two parts with regions; an image of the first changed its regions, and one is a copy."""
    given: dict[str, Any] = {"products": ["features=global_avg_pool", "regions=region_mean@int8"], **GIVEN}
    place, path = str(tmp_path / "dataset"), tmp_path / "grown.csv"
    path.write_text(BOXES.replace("img_000.png,b", "img_001.png,b"))
    api.update(place, str(photos), regions=[str(path)], **given)
    path.write_text(BOXES)
    shutil.copy(photos / "img_000.png", photos / "copy.png")
    path.write_text(BOXES + "copy.png,z,3,4,30,20,mouse\n")
    return api.update(place, str(photos), regions=[str(path)], **given)


def test_regions_are_searched(grown: api.Dataset) -> None:
    place = grown.folder.root
    arrays = grown.arrays().load()
    found = api.search(place, row="img_000.png", region="a", metric="l2", top=9)
    assert (found.found[0].image_id, found.found[0].region, found.found[0].distance) == ("copy.png", "z", 0)
    assert found.headings() == ["rank", "l2", "row", "image_id", "number", "region", "category"]
    assert found.left_out == {"outside_image": 1}
    ids, names = arrays.region_image_id.values.tolist(), arrays.region_name.values.tolist()
    own = list(zip(ids, names, strict=True)).index(("img_000.png", "a"))
    distances = np.linalg.norm(arrays.regions.values.astype(np.float64) - arrays.regions.values[own], axis=1)
    expected = [at for at in np.argsort(distances, kind="stable").tolist() if at != own and np.isfinite(distances[at])]
    assert [each.region_number for each in found.found] == expected
    np.testing.assert_allclose(found.distances, distances[expected])
    assert [each.row for each in found.found] == arrays.region_image.values[expected].tolist()
    again = api.search(place, region=f"#{own}", metric="l2", top=9)
    assert again.found == found.found
    vector = api.search(place, vector=arrays.regions.values[own], product="regions", metric="l2", top=2)
    assert ({each.region_number for each in vector.found} >= {own}, vector.distances.tolist()) == (True, [0, 0])
    for options, words in (
        ({"region": "a"}, "is a name within an image: give --row IMAGE_ID too"),
        ({"region": "q", "row": "img_005.png"}, "has no region 'q': its regions are a, out"),
        ({"region": "#99"}, r"is no region: .* has regions #0 to #5"),
        ({"region": "out", "row": "img_005.png"}, "it is outside image"),
        ({"region": "a", "row": "img_005.png", "product": "features"}, "'features' has no vector for each region"),
        ({"row": "img_005.png", "product": "regions"}, "has a row for each region, not for each image"),
    ):
        with pytest.raises(errors.InputError, match=words):
            api.search(place, **options)


def test_regions_are_exported(grown: api.Dataset, tmp_path: Path) -> None:
    place, arrays = grown.folder.root, grown.arrays().load()
    api.export_features(place, str(tmp_path / "tables"), format="parquet")
    table = parquet.read_table(tmp_path / "tables" / "regions.parquet")
    images = parquet.read_table(tmp_path / "tables" / "images.parquet")
    assert "regions" not in images.column_names
    assert table["row"].to_pylist() == arrays.region_image.values.tolist()
    assert table["image_id"].to_pylist() == arrays.region_image_id.values.tolist()
    for name in ("region_name", "region_category", "region_x_max", "region_status"):
        assert table[name].to_pylist() == arrays[name].values.tolist()
    np.testing.assert_array_equal(np.stack(table["regions"].to_numpy()), arrays.regions.values)
    hub = api.export_features(place, str(tmp_path / "hub"), format="hub", products=("regions",), only_ok=True)
    assert "data/regions-00000-of-00001.parquet" in hub.files
    kept = parquet.read_table(tmp_path / "hub" / "data" / "regions-00000-of-00001.parquet")
    assert kept["region_status"].to_pylist() == [1] * (len(table) - 1)
    assert "| `regions` | regions | " in (tmp_path / "hub" / "README.md").read_text()
    api.export_features(place, str(tmp_path / "npy"), format="npy")
    own = {name: np.load(tmp_path / "npy" / f"{name}.npy") for name in ("regions", "region_image", "image_id")}
    np.testing.assert_array_equal(own["regions"], arrays.regions.values)
    assert own["image_id"][own["region_image"]].tolist() == arrays.region_image_id.values.tolist()
    h5py = pytest.importorskip("h5py")
    api.export_features(place, str(tmp_path / "all.h5"), format="hdf5")
    with h5py.File(tmp_path / "all.h5") as file:
        np.testing.assert_array_equal(file["regions"][:], arrays.regions.values)
        assert file["region_name"].dims[0].label == "region"


def test_a_missing_object_of_regions_is_damage(extract: Extract, tmp_path: Path) -> None:
    root = Path(extract("run", regions=boxes(tmp_path)).folder.root)
    (root / "features.zarr" / "regions" / "c.0.0").unlink()
    with pytest.raises(errors.StoreError, match=r"'regions' of .* is damaged .*vectors of stored regions are missing"):
        api.export_features(str(root), str(tmp_path / "tables"), format="npy")
