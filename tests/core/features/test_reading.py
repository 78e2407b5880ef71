"""What is opened has axes and coordinates that fit each other; xarray opens a run's folder without a warning."""

import csv
import json
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import xarray
import zarr

from genenc_core import api, errors

Call = Callable[..., api.Run]
PRODUCTS = ("features=global_avg_pool", "maps=none@float32", "probes=spatial_point(cell)", "peaks=global_max_pool")


@pytest.fixture
def run(extract: Call, photos: Path, labels: Path, tmp_path: Path) -> api.Run:
    """Return a run with an unreadable image, labels, and a column of its list."""
    (photos / "img_003.png").write_bytes(b"no image")
    with (tmp_path / "list.csv").open("w", newline="") as file:
        rows = [[path.name, str(path), f"day {at}"] for at, path in enumerate(sorted(photos.iterdir()))]
        csv.writer(file).writerows([["image_id", "path", "session"], *rows])
    return extract("run", *PRODUCTS, images=str(tmp_path / "list.csv"), points=str(labels), max_failures="100%")


@pytest.mark.slow
def test_one_axis_for_each_output(run: api.Run) -> None:
    opened, stored = api.open(run.place), run.arrays()
    found = opened.xarray()
    assert found.maps.dims == ("image", "channel", "y", "x")
    assert found.probes.dims == ("image", "point", "channel")
    assert found.features.dims == found.peaks.dims == ("image", "channel")
    similar = (found.maps * found.probes).sum("channel", skipna=False)
    assert set(similar.dims) == {"image", "point", "y", "x"}
    expected = np.einsum("icyx,ipc->ipyx", stored.maps.values, stored.probes.values)
    np.testing.assert_allclose(similar.transpose("image", "point", "y", "x").values, expected, rtol=1e-4, atol=1e-6)
    one = found.probes.sel(image_id="img_006.png", point="tail")
    np.testing.assert_array_equal(one.values, stored.probes.values[6, 1])
    assert found.session.sel(image_id="img_006.png").item() == "day 6"
    with pytest.raises(KeyError, match=r"no image_id 'img_06\.png': did you mean 'img_006\.png'"):
        found.sel(image_id=["img_001.png", "img_06.png"])
    assert "session" in found.features.coords
    for name in (*opened.products, "status", "point_x"):
        np.testing.assert_array_equal(found[name].values, stored[name].values)


@pytest.mark.slow
def test_axes_of_several_outputs_are_told_apart(extract: Call) -> None:
    layers = {"model": "resnet18", "layers": ("layer1", "layer2"), "image_size": "64", "batch_size": 1}
    slots = [slot["name"] for slot in extract("run", **layers).identity["slots"][1:]]
    products = [f"a={slots[0]}:global_avg_pool", f"m={slots[0]}:none", f"b={slots[1]}:none"]
    found = api.open(extract("other", *products, **layers).place).xarray()
    assert found.a.dims == ("image", f"{slots[0]}_channel")
    assert found.m.dims == ("image", *(f"{slots[0]}_{axis}" for axis in ("channel", "y", "x")))
    assert found.b.dims == ("image", *(f"{slots[1]}_{axis}" for axis in ("channel", "y", "x")))


@pytest.mark.slow
def test_numpy(run: api.Run) -> None:
    opened, stored = api.open(run.place), run.arrays()
    np.testing.assert_array_equal(opened.numpy("features"), stored.features.values)
    np.testing.assert_array_equal(opened.numpy("probes", rows=[7, 2, 7]), stored.probes.values[[7, 2, 7]])
    assert opened.status().tolist() == [1, 1, 1, 2, *[1] * 7]
    assert opened.image_ids() == stored.image_id.values.tolist()
    assert opened.identity == run.identity
    with pytest.raises(errors.InputError, match="has no row 11: it has 11 rows"):
        opened.numpy("features", rows=[11])
    with pytest.raises(errors.InputError, match="did you mean 'features'"):
        opened.numpy("feature")


@pytest.mark.slow
@pytest.mark.parametrize(("workers", "start"), [(0, None), (2, "fork"), (2, "spawn")])
def test_torch(run: api.Run, workers: int, start: str | None) -> None:
    stored = run.arrays()
    opened = api.open(run.place)
    rows = opened.torch("features")
    assert len(rows) == 10
    assert len(opened.numpy("features")) == 11  # read before processes are forked
    assert rows[0]["row"] == 0
    loader = torch.utils.data.DataLoader(
        rows, batch_size=4, num_workers=workers, multiprocessing_context=start, timeout=120 if workers else 0
    )
    batches = list(loader)
    kept = [row for row in range(11) if row != 3]
    assert torch.cat([batch["row"] for batch in batches]).tolist() == kept
    np.testing.assert_array_equal(torch.cat([batch["features"] for batch in batches]), stored.features.values[kept])
    assert [name for batch in batches for name in batch["image_id"]] == stored.image_id.values[kept].tolist()
    at_tail = pickle.loads(pickle.dumps(api.open(run.place).torch("probes", point="tail")))
    expected = np.flatnonzero(stored.point_status.values[:, 1] == 1)
    assert [at_tail[index]["row"] for index in range(len(at_tail))] == expected.tolist()
    np.testing.assert_array_equal(at_tail[2]["probes"], stored.probes.values[expected[2], 1])
    with pytest.raises(errors.InputError, match="leave the point out"):
        api.open(run.place).torch("features", point="tail")


@pytest.mark.slow
def test_versions(grown: Path) -> None:
    for version in (1, 2, 3, None):
        opened, stored = api.open(grown, version), api.Dataset.open(grown, version)
        assert opened.version == stored.version
        arrays, found = stored.arrays(), opened.xarray()
        assert found.features.dims == ("image", "channel")
        np.testing.assert_array_equal(opened.numpy("features"), arrays.features.values)
        np.testing.assert_array_equal(
            found.features.sel(image_id="img_005.png"), arrays.features.sel(image_id="img_005.png")
        )
        assert len(api.open(grown, version).torch("features")) == int((arrays.status == 1).sum())


@pytest.mark.slow
def test_xarray_opens_the_folder_without_a_warning(run: api.Run, tmp_path: Path) -> None:
    place = tmp_path / "run" / "features.zarr"
    code = f"import xarray; print(xarray.open_zarr({str(place)!r}).features.shape)"
    said = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False)
    assert (said.returncode, said.stderr) == (0, "")
    group = zarr.open_group(place, mode="r")
    assert group.metadata.consolidated_metadata is not None
    for name, array in group.arrays():
        own = zarr.open_array(place / name, mode="r")
        assert json.dumps(own.metadata.to_dict(), default=str) == json.dumps(array.metadata.to_dict(), default=str)
    xarray.testing.assert_identical(xarray.open_zarr(place).load(), xarray.open_zarr(place, consolidated=False).load())
