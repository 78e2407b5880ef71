"""Runs that store int8 or uint8: the nearest integers of what a float32 run stores, read as values, their loss said."""

import json
import pickle
import shutil
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray
import zarr

import pictures
import s3_server
from genenc_core import api, errors, testing
from genenc_core.run import driver, status
from genenc_core.run.folder import RunFolder
from genenc_core.store import layout, store_keys

Extract = Callable[..., driver.Result]
PRODUCTS = ("features=global_avg_pool", "probes=spatial_point(cell)", "maps=none")
TOP = {"int8": 127, "uint8": 255}


@pytest.fixture
def labels(tmp_path: Path, photos: Path) -> Path:
    """Points of most images, one of them missing; and an image that cannot be read."""
    (photos / "img_005.png").write_bytes(b"no image")
    lines = [f"img_{row:03d}.png,tip,{5 + row},{9 + row}\n" for row in range(9)]
    path = tmp_path / "points.csv"
    path.write_text("image,point,x,y\n" + "".join(lines) + "img_000.png,base,3,4\n")
    return path


@pytest.fixture
def both(extract: Extract, labels: Path, tmp_path: Path) -> Callable[[str], tuple[api.Run, api.Run]]:
    """Return a call that makes a run of float32 and one of another type."""

    def make(dtype: str) -> tuple[api.Run, api.Run]:
        for name, kind in (("exact", "float32"), ("whole", dtype)):
            extract(points=str(labels), products=PRODUCTS, dtype=kind, out=str(tmp_path / name), max_failures="100%")
        return api.Run.open(tmp_path / "exact"), api.Run.open(tmp_path / "whole")

    return make


def stored(run: api.Run) -> dict[str, np.ndarray]:
    """Every array as plain Zarr reads it."""
    group: Any = zarr.open_group(run.folder.store.zarr_store(), mode="r")
    return {name: np.asarray(array[:]) for name, array in group.arrays()}


def axis_of(product: str) -> int:
    return 2 if product == "probes" else 1


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["int8", "uint8"])
def test_integers_are_the_nearest_of_the_float_run(both: Any, dtype: str) -> None:
    exact, whole = (stored(run) for run in both(dtype))
    for name in ("features", "probes", "maps"):
        values, integers, axis = exact[name], whole[name], axis_of(name)
        low = np.zeros((), np.float32) if dtype == "int8" else values.min(axis, keepdims=True)
        size = np.abs(values).max(axis, keepdims=True) if dtype == "int8" else values.max(axis, keepdims=True) - low
        scale = size / np.float32(TOP[dtype])
        known = np.isfinite(scale)
        assert 0 < known.sum() < known.size
        np.testing.assert_array_equal(np.squeeze(scale, axis), whole[f"{name}_scale"])
        if dtype == "uint8":
            np.testing.assert_array_equal(np.squeeze(low, axis), whole[f"{name}_offset"])
        expected = np.where(known, np.rint((values - low) / scale), 0)
        np.testing.assert_array_equal(integers, expected)
        assert integers.dtype == dtype
    assert set(whole) - set(exact) == {
        f"{name}_{suffix}"
        for name in ("features", "probes", "maps")
        for suffix in (("scale",) if dtype == "int8" else ("scale", "offset"))
    }
    for name in exact.keys() - {"features", "probes", "maps"}:
        np.testing.assert_array_equal(exact[name], whole[name])


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["int8", "uint8"])
def test_the_api_gives_values(both: Any, dtype: str) -> None:
    exact, whole = both(dtype)
    opened, raw, floats = whole.arrays(), whole.arrays(raw=True), exact.arrays()
    assert set(opened.variables) == set(floats.variables)
    for name in ("features", "probes", "maps"):
        assert (opened[name].dtype, opened[name].dims) == (np.float32, floats[name].dims)
        assert raw[name].dtype == dtype
        assert "genenc_scale" not in opened[name].attrs
        assert opened[name].attrs["ancillary_variables"] == floats[name].attrs["ancillary_variables"]
        by_formula = raw[name].astype("float32") * raw[f"{name}_scale"]
        if dtype == "uint8":
            by_formula = by_formula + raw[f"{name}_offset"]
        np.testing.assert_array_equal(opened[name].values, by_formula.values)
        assert by_formula.dims == raw[name].dims
        step = np.expand_dims(raw[f"{name}_scale"].values, axis_of(name)).astype(np.float64)
        # The product and the sum are rounded to float32, too.
        rounding = 2**-22 * np.nanmax(np.abs(floats[name].values))
        far = np.abs(opened[name].values.astype(np.float64) - floats[name].values)
        assert (far <= step * (0.5 + 2**-15) + rounding)[np.isfinite(far)].all()
        assert (np.isnan(opened[name].values) == np.isnan(floats[name].values)).all()
    assert np.isnan(opened.features[5].values).all()
    assert whole.verify(content=True).ok
    loaded = pickle.loads(pickle.dumps(opened)).isel(image=[9, 0], maps_channel=3, maps_x=slice(None, None, -1))
    np.testing.assert_array_equal(loaded.maps.values, opened.maps.values[[9, 0], 3, :, ::-1])
    one = opened.features[2, 1]
    assert (one.shape, float(one)) == ((), float(opened.features.values[2, 1]))
    empty = opened.probes[3:3]
    assert empty.values.shape == (0, *opened.probes.shape[1:])


@pytest.mark.slow
def test_with_and_without_dask(both: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("dask")
    _, whole = both("uint8")
    lazy = whole.arrays()
    assert lazy.features.chunks is not None
    real = xarray.open_zarr
    monkeypatch.setattr(xarray, "open_zarr", lambda *given, **more: real(*given, **{**more, "chunks": None}))
    plain = whole.arrays()
    assert plain.features.chunks is None
    assert plain.features.variable._in_memory is False
    xarray.testing.assert_identical(lazy.load(), plain.load())


@pytest.mark.slow
def test_the_loss_is_stored_and_said(both: Any, genenc_status: Callable[[api.Run], str]) -> None:
    exact, whole = both("int8")
    values, read = exact.arrays(), whole.arrays()
    good = np.flatnonzero(values.status.values == 1)
    found = whole.status().quantized
    assert list(found) == ["features", "probes", "maps"]
    one, other = (each.features.values[good].astype(np.float64) for each in (values, read))
    cosines = (one * other).sum(1) / np.linalg.norm(one, axis=1) / np.linalg.norm(other, axis=1)
    loss = found["features"]
    assert (loss.dtype, loss.vectors, loss.recall_at_10) == ("int8", 10, None)
    assert loss.cosine_mean == pytest.approx(cosines.mean(), abs=1e-8)
    assert loss.cosine_worst == pytest.approx(cosines.min(), abs=1e-8)
    assert found["probes"].vectors == int((values.point_status.values == 1).sum())
    cells = 10 * int(np.prod(values.maps.shape[2:]))
    assert found["maps"].vectors == cells
    assert found["maps"].recall_at_10 is not None
    assert found["maps"].recall_at_10 > 0.8
    said = genenc_status(whole)
    assert f"features: stored as int8, cosine to the exact vectors {loss.cosine_mean:.5f} on average" in said
    assert "too few in a shard to compare neighbours" in said
    assert "few, so that says little" in said
    record = json.loads((Path(whole.place) / store_keys.record(0)).read_text())
    assert "quantized" in json.dumps(record)
    assert exact.status().quantized == {}
    (Path(whole.place) / "provenance" / "tally.jsonl").unlink()
    assert whole.status().quantized == found
    assert "features_scale" in (Path(whole.place) / "README.md").read_text()


@pytest.fixture
def genenc_status() -> Callable[[api.Run], str]:
    """Return what `genenc status` prints."""
    return lambda run: "\n".join(status.summary_lines(status.survey(run.folder), None))


@pytest.mark.slow
def test_the_readme_opens_the_values(both: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    _, whole = both("uint8")
    text = (Path(whole.place) / "README.md").read_text()
    code = text.split("```python\n")[1].split("```")[0]
    monkeypatch.chdir(whole.place)
    found: dict[str, Any] = {}
    exec(code, found)
    np.testing.assert_array_equal(found["good"].values, whole.arrays().features.values[whole.arrays().status == 1])


@pytest.mark.slow
def test_continuing_healing_and_repair(extract: Extract, photos: Path, labels: Path, tmp_path: Path) -> None:
    given: dict[str, Any] = {"points": str(labels), "products": PRODUCTS, "dtype": "int8", "max_failures": "100%"}
    assert extract(**given).status.unreadable == 1
    run, path = api.Run.open(tmp_path / "run"), tmp_path / "run"
    before = stored(run)
    assert extract(**given).asked == 0
    with pytest.raises(errors.StoreError, match=r"differs in products: .*@int8'.* -> .*@float32'"):
        extract(**{**given, "dtype": "float32"})
    shutil.copy(pictures.write_folder(tmp_path / "more", 1, seed=9) / "img_000.png", photos / "img_005.png")
    healed = run.encode("unreadable", accept_changed=True, max_failures="100%")
    assert healed.status.unreadable == 0
    now = stored(run)
    others = np.arange(11) != 5
    for name in ("features", "features_scale", "probes", "maps", "maps_scale"):
        np.testing.assert_array_equal(now[name][others], before[name][others])
    assert np.isfinite(run.arrays().features[5].values).all()
    assert list(run.status().quantized) == ["features", "probes", "maps"]
    (path / "features.zarr" / "features_scale" / "c.1").write_bytes(b"")
    report = run.verify()
    assert any("features_scale" in str(problem.key) for problem in report.problems)
    assert run.repair().requeued == (1,)
    run.encode(accept_changed=True)
    again = stored(run)
    for name in ("features", "probes", "maps"):  # other batches than before: a last bit, or the next integer
        np.testing.assert_allclose(again[f"{name}_scale"], now[f"{name}_scale"], rtol=1e-5)
        np.testing.assert_allclose(again[name], now[name], atol=1)
        assert (again[name] == now[name]).mean() > 0.99


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["int8", "uint8"])
def test_encode_in_memory_gives_values(extract: Extract, photos: Path, dtype: str) -> None:
    given: dict[str, Any] = {"weights": "random:0", "image_size": 32, "device": "cpu"}
    paths = [photos / "img_000.png", photos / "img_001.png"]
    exact = api.encode(paths, "tiny_models:conv", trust=True, **given)["features"]
    whole = api.encode(paths, "tiny_models:conv", trust=True, dtype=dtype, **given)["features"]
    assert whole.dtype == np.float32
    assert 0 < np.abs(exact - whole).max() <= np.ptp(exact, axis=1).max() / TOP["int8"]


@pytest.mark.slow
def test_probes_of_integers(extract: Extract, labels: Path, tmp_path: Path) -> None:
    """What is probed is the stored value: within half a step of a cell's scale, and a mean within that of its cells."""
    for name, kind in (("exact", "float32"), ("whole", "int8")):
        extract(products=(f"maps=none@{kind}",), out=str(tmp_path / name), max_failures="100%", fit="pad")
    asked = ("probes=spatial_point(cell)", "pool=global_avg_pool", "again=spatial_point(cell)@int8")
    made = {
        name: api.probe(tmp_path / name, str(tmp_path / f"{name}-probes"), points=str(labels), products=asked)
        for name in ("exact", "whole")
    }
    raw = api.Run.open(tmp_path / "whole").arrays(raw=True)
    largest = raw.maps_scale.max(("maps_y", "maps_x")).values
    one, other = (made[name].arrays() for name in ("exact", "whole"))
    for name in ("probes", "pool"):
        step = largest.reshape(-1, *[1] * (one[name].ndim - 1))
        far = np.abs(one[name].values - other[name].values)
        assert (far <= step * (0.5 + 2**-15) + 1e-6)[np.isfinite(far)].all()
        assert np.nanmax(far) > 0
    # An integer cell that is stored as integers again is the same integers.
    integers, source = made["whole"].arrays(raw=True), raw
    assert integers.again.dtype == np.int8
    cells = source.maps.values.transpose(0, 2, 3, 1).reshape(11, -1, source.maps.shape[1])
    assert any((cells[0] == integers.again.values[0, 0]).all(1))
    assert "values of" in (tmp_path / "whole-probes" / "README.md").read_text()
    assert "were rounded to int8 before" in (tmp_path / "whole-probes" / "README.md").read_text()
    assert list(made["whole"].status().quantized) == ["again"]
    assert made["whole"].verify(content=True).ok
    record = made["whole"].folder.store.record(0)
    assert record is not None
    assert set(record.details["source"][0]["objects"]) == {"maps", "maps_scale"}


@pytest.mark.slow
def test_maps_follow_the_type(extract: Extract, tmp_path: Path) -> None:
    extract(dtype="uint8", maps=True)
    run = RunFolder(tmp_path / "run")
    kinds = {array.name: array.dtype for array in run.store.plan.arrays}
    assert (kinds["features"], kinds["maps"], kinds["maps_offset"]) == ("uint8", "uint8", "float32")
    assert run.identity["products"] == ["features=global_avg_pool@uint8", "maps=none@uint8"]


@pytest.mark.slow
def test_on_s3(extract: Extract, s3: s3_server.Server, tmp_path: Path) -> None:
    place = f"s3://{s3.bucket}/quantized/{uuid.uuid4().hex[:12]}"
    given: dict[str, Any] = {"dtype": "uint8", "maps": True, "chunk_channels": 3}
    extract(**given)
    extract(**given, out=place)
    local, remote = api.Run.open(tmp_path / "run"), api.Run.open(place)
    testing.assert_runs_equal(local, remote)
    assert remote.verify(content=True).ok
    assert remote.status().quantized == local.status().quantized
    xarray.testing.assert_equal(
        remote.arrays()[["features", "maps"]].load(), local.arrays()[["features", "maps"]].load()
    )
    plans = [layout.plan_to_json(run.folder.store.plan) for run in (remote, local)]
    assert plans[0] == plans[1]
