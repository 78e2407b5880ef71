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


@pytest.fixture
def runs(extract: Extract, labels: Path, tmp_path: Path) -> dict[str, api.Run]:
    """Return a run of floats, and the same as integers, with points and regions."""
    boxes = tmp_path / "boxes.csv"
    boxes.write_text("image,region,x,y,width,height\nimg_000.png,a,3,4,30,20\nimg_004.png,a,1,1,9,9\n")
    given: dict[str, Any] = {"points": str(labels), "regions": (str(boxes),)}
    return {kind: extract(kind, dtype=kind, **given) for kind in ("float32", "int8", "uint8")}


@pytest.mark.parametrize("kind", ["int8", "uint8"])
def test_values_are_those_of_the_arrays(runs: dict[str, api.Run], kind: str, tmp_path: Path) -> None:
    run = runs[kind]
    wanted = run.arrays()
    opened = api.open(run.folder.root)
    for name in ("features", "probes"):
        values = wanted[name].values
        assert values.dtype == np.float32
        np.testing.assert_array_equal(opened.numpy(name), values)
        np.testing.assert_array_equal(opened.xarray()[name].values, values)
        steps = np.nanmax(np.abs(runs["float32"].arrays()[name].values)) / 100
        np.testing.assert_allclose(values, runs["float32"].arrays()[name].values, atol=steps)
    api.export_features(run.folder.root, str(tmp_path / "out"), format="parquet")
    table = parquet.read_table(next((tmp_path / "out").rglob("images*.parquet")))
    np.testing.assert_array_equal(np.stack(table["features"].to_numpy()), wanted.features.values)
    audited = api.audit(run.folder.root)
    assert [each.product for each in audited] == ["features", "probes"]


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
