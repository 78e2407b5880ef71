"""Features that are stored as integers, or per region, are read as their values everywhere."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pyarrow import parquet

from genenc_core import api
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
