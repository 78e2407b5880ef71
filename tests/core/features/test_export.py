"""Exports hold what is stored, row by row; a killed one leaves nothing under the final name."""

import csv
import hashlib
import importlib
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray
from pyarrow import dataset, parquet

from genenc_core import api, errors
from genenc_core.features import export

Call = Callable[..., api.Run]
FORMATS = ("parquet", "npy", "hdf5", "hub")
PRODUCTS = ("features=global_avg_pool", "probes=spatial_point(cell)", "maps=none@float16")


@pytest.fixture
def run(extract: Call, photos: Path, labels: Path, tmp_path: Path) -> api.Run:
    """Return a run with an unreadable image, labels, maps, and a column of its list."""
    (photos / "img_003.png").write_bytes(b"no image")
    with (tmp_path / "list.csv").open("w", newline="") as file:
        rows = [[path.name, str(path), f"day {at}", at] for at, path in enumerate(sorted(photos.iterdir()))]
        csv.writer(file).writerows([["image_id", "path", "session", "trial"], *rows])
    return extract("run", *PRODUCTS, images=str(tmp_path / "list.csv"), points=str(labels), max_failures="100%")


def expected(run: api.Run | api.Dataset) -> xarray.Dataset:
    return run.arrays().load()


def stacked(table: Any, name: str) -> np.ndarray:
    return np.stack(table[name].to_numpy(zero_copy_only=False))


def equal(found: np.ndarray, values: np.ndarray) -> None:
    assert found.dtype == values.dtype
    np.testing.assert_array_equal(found.reshape(values.shape), values)


@pytest.mark.slow
@pytest.mark.parametrize("memory_bytes", [1, 2**20])
@pytest.mark.parametrize("format", ["parquet", "hub"])
def test_tables(
    run: api.Run,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    format: str,
    memory_bytes: int,
    unchanged: Callable[[Path], Callable[[], None]],
) -> None:
    monkeypatch.setattr(export, "MEBIBYTE", memory_bytes)
    check = unchanged(tmp_path / "run")
    done = api.export_features(tmp_path / "run", tmp_path / "out", format=format, memory=1)
    check()
    stored = expected(run)
    place = tmp_path / "out"
    names = {
        name: f"data/{name}-00000-of-00001.parquet" if format == "hub" else f"{name}.parquet"
        for name in ("images", "probes")
    }
    more = ["croissant.json"] if format == "parquet" else []
    assert done.files == tuple(sorted(["README.md", "metadata.json", *more, *names.values()]))
    assert (done.rows, done.without_features, done.left_out) == (11, {"unreadable": 1}, {})
    images, probes = (parquet.read_table(place / names[name]) for name in ("images", "probes"))
    assert images.schema.field("features").type.list_size == stored.features.shape[1]
    for name in ("features", "maps", "image_affine"):
        equal(stacked(images, name), stored[name].values)
    for name in ("status", "image_width", "trial"):
        equal(images[name].to_numpy(), stored[name].values)
    for name in ("image_id", "path", "session"):
        assert images[name].to_pylist() == stored[name].values.tolist()
    assert images["row"].to_pylist() == list(range(11))
    assert probes["image_id"].to_pylist() == np.repeat(stored.image_id.values, 2).tolist()
    assert probes["point"].to_pylist() == ["nose", "tail"] * 11
    equal(stacked(probes, "probes"), stored.probes.values)
    for name in ("point_x", "point_y", "point_status"):
        equal(probes[name].to_numpy(), stored[name].values)
    metadata = json.loads((place / "metadata.json").read_text())
    assert metadata["identity"]["weights"] == run.identity["weights"]
    assert json.loads(images.schema.metadata[b"genenc"]) == metadata


@pytest.mark.slow
@pytest.mark.parametrize("memory_bytes", [1, 2**20])
def test_arrays(run: api.Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, memory_bytes: int) -> None:
    h5py = pytest.importorskip("h5py")
    monkeypatch.setattr(export, "MEBIBYTE", memory_bytes)
    api.export_features(tmp_path / "run", tmp_path / "npy", format="npy", memory=1)
    done = api.export_features(tmp_path / "run", tmp_path / "all.h5", format="hdf5", memory=1)
    assert done.files == ("all.h5",)
    stored = expected(run)
    with h5py.File(tmp_path / "all.h5") as file:
        assert set(file) == set(stored.variables)
        for name, array in stored.variables.items():
            flat = np.load(tmp_path / "npy" / f"{name}.npy", allow_pickle=False)
            if array.dtype.kind in "fiu":
                equal(flat, array.values)
                equal(file[name][:], array.values)
                assert [dim.label for dim in file[name].dims] == list(array.dims)
            else:
                assert flat.tolist() == array.values.tolist()
                assert file[name].asstr()[:].tolist() == array.values.tolist()
        assert json.loads(file.attrs["genenc"])["points"] == ["nose", "tail"]


@pytest.mark.slow
def test_only_rows_with_features_and_chosen_products(run: api.Run, tmp_path: Path) -> None:
    for format in ("parquet", "npy"):
        options = {"format": format, "only_ok": True, "products": ["features"]}
        done = api.export_features(tmp_path / "run", tmp_path / format, **options)
        assert (done.rows, done.left_out, done.without_features) == (10, {"unreadable": 1}, {})
    stored = expected(run)
    kept = [row for row in range(11) if row != 3]
    table = parquet.read_table(tmp_path / "parquet" / "images.parquet")
    assert table["row"].to_pylist() == kept
    assert "maps" not in table.column_names
    assert not (tmp_path / "parquet" / "probes.parquet").exists()
    equal(stacked(table, "features"), stored.features.values[kept])
    equal(np.load(tmp_path / "npy" / "features.npy"), stored.features.values[kept])
    assert not (tmp_path / "npy" / "maps.npy").exists()


@pytest.mark.slow
@pytest.mark.parametrize("format", ["parquet", "npy"])
def test_odd_columns_likelihoods_and_scaled_integers(extract: Call, photos: Path, tmp_path: Path, format: str) -> None:
    """A column `row` of the list is not the run's; a scale is not written beside values that it is in already."""
    names = sorted(path.name for path in photos.iterdir())
    with (tmp_path / "list.csv").open("w", newline="") as file:
        rows = [[str(photos / name), 100 - at, "stain"] for at, name in enumerate(names)]
        csv.writer(file).writerows([["path", "row", "channel"], *rows])
    lines = [f"{name},nose,{9 + at},9,0.{at}5\n" for at, name in enumerate(names[:9])]
    (tmp_path / "p.csv").write_text("image,point,x,y,likelihood\n" + "".join(lines))
    run = extract("odd", *PRODUCTS[:2], images=str(tmp_path / "list.csv"), points=str(tmp_path / "p.csv"), dtype="int8")
    made = api.export_features(run.place, str(tmp_path / "out"), format=format)
    likely = run.arrays().point_likelihood.values
    if format == "npy":
        assert not [name for name in made.files if "scale" in name]
        equal(np.load(tmp_path / "out" / "point_likelihood.npy"), likely)
        return
    images = parquet.read_table(tmp_path / "out" / "images.parquet")
    assert images["row"].to_pylist() == list(range(len(names)))
    assert images["row_column"].to_pylist() == [100 - at for at in range(len(names))]
    points = parquet.read_table(tmp_path / "out" / "probes.parquet")
    equal(points["point_likelihood"].to_numpy(), likely.ravel())
    assert not [name for name in (*images.column_names, *points.column_names) if "scale" in name]
    opened = api.open(run.place).xarray()
    assert (opened.features.dims, opened.channel_column.values[0]) == (("image", "channel"), "stain")


@pytest.mark.slow
def test_versions_and_s3(grown: Path, extract: Call, bucket: str, tmp_path: Path) -> None:
    for version in (1, 3):
        api.export_features(grown, tmp_path / f"v{version}", version=version)
        stored = expected(api.Dataset.open(grown, version))
        table = parquet.read_table(tmp_path / f"v{version}" / "images.parquet")
        assert table["image_id"].to_pylist() == stored.image_id.values.tolist()
        equal(stacked(table, "features"), stored.features.values)
    run = extract(f"{bucket}/run")
    api.export_features(f"{bucket}/run", tmp_path / "from-s3")
    table = parquet.read_table(tmp_path / "from-s3" / "images.parquet")
    equal(stacked(table, "features"), run.arrays().features.values)


@pytest.mark.slow
def test_the_code_of_the_card_and_other_readers(run: api.Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stored = expected(run)
    for format in ("parquet", "hub"):
        api.export_features(tmp_path / "run", tmp_path / format, format=format)
        monkeypatch.chdir(tmp_path / format)
        card = (tmp_path / format / "README.md").read_text()
        assert "| rows without features: unreadable | 1 |" in card
        names: dict[str, Any] = {}
        exec(card.split("```python\n")[1].split("```")[0], names)
        equal(names["values"], stored.features.values)
    with_pandas = dataset.dataset(tmp_path / "parquet" / "images.parquet").to_table().to_pandas()
    assert with_pandas.image_id.tolist() == stored.image_id.values.tolist()


@pytest.mark.slow
def test_with_duckdb_and_polars(run: api.Run, tmp_path: Path) -> None:
    duckdb, polars = (pytest.importorskip(name) for name in ("duckdb", "polars"))
    api.export_features(tmp_path / "run", tmp_path / "out")
    place = tmp_path / "out" / "images.parquet"
    query = f"SELECT array_length(features), status FROM '{place}' WHERE row = 2"
    values = expected(run).features.values
    assert duckdb.sql(query).fetchall()[0] == (values.shape[1], 1)
    equal(polars.read_parquet(place)["features"].to_numpy(), values)


@pytest.mark.slow
def test_with_datasets_of_hugging_face(run: api.Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    datasets = pytest.importorskip("datasets")
    api.export_features(tmp_path / "run", tmp_path / "out", format="hub")
    images, probes = (
        datasets.load_dataset(str(tmp_path / "out"), name, split="train", cache_dir=str(tmp_path / "cache"))
        for name in ("images", "probes")
    )
    equal(np.array(images["features"], np.float32), expected(run).features.values)
    assert len(probes) == 22


KILLED = """
import os, signal, sys
from genenc_core import api
from genenc_core.features import export
from genenc_core.stored import rows as stored_rows
place, out, format, when = sys.argv[1:]
def killed(*arguments, **options):
    os.kill(os.getpid(), signal.SIGKILL)
if when == "rename":
    export._claim = killed
else:
    own, count = stored_rows._OfRun.take, []
    def take(self, name, positions):
        count.append(name)
        if name == "features" and len(positions) and positions[0] >= 8:
            killed()
        return own(self, name, positions)
    stored_rows._OfRun.take = take
    export.MEBIBYTE = 1
api.export_features(place, out, format=format, memory=1)
"""


@pytest.mark.slow
@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("when", ["reading", "rename"])
def test_a_killed_export_leaves_nothing_under_its_name(extract: Call, tmp_path: Path, format: str, when: str) -> None:
    if format == "hdf5":
        pytest.importorskip("h5py")
    extract("run")
    out = tmp_path / "out"
    command = [sys.executable, "-c", KILLED, str(tmp_path / "run"), str(out), format, when]
    assert subprocess.run(command, check=False).returncode == -9
    assert not out.exists()
    assert [path.name for path in tmp_path.glob(".out.*.partial")]  # it had begun
    done = api.export_features(tmp_path / "run", out, format=format)
    assert out.exists()
    assert done.rows == 11


@pytest.mark.slow
def test_what_cannot_be_written_is_named(run: api.Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "there").mkdir()
    cases: list[tuple[dict[str, Any], str]] = [
        ({"out": tmp_path / "there"}, "exists: give a new name"),
        ({"out": "s3://bucket/prefix"}, "is not local"),
        ({"out": tmp_path / "run" / "features.zarr" / "out"}, "is inside the run"),
        ({"out": tmp_path / "list.csv" / "out"}, "is not a writable folder"),
        ({"out": tmp_path / "new", "products": ["maps", "nothing"]}, "has no product 'nothing'"),
        ({"out": tmp_path / "new", "format": "csv"}, "format 'csv' is not valid"),
        ({"out": tmp_path / "new", "version": 2}, "single run"),
    ]
    for options, words in cases:
        with pytest.raises(errors.InputError, match=words):
            api.export_features(tmp_path / "run", **options)
    (tmp_path / "run" / "features.zarr" / "maps" / "c.1.0.0.0").unlink()
    with pytest.raises(errors.StoreError, match="is missing"):
        api.export_features(tmp_path / "run", tmp_path / "new")
    monkeypatch.setitem(sys.modules, "h5py", None)
    importlib.invalidate_caches()
    with pytest.raises(errors.InputError, match=r"pip install 'genenc\[hdf5\]'"):
        api.export_features(tmp_path / "run", tmp_path / "new", format="hdf5")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["labels.csv", "list.csv", "photos", "run", "there"]


@pytest.mark.slow
def test_croissant_describes_the_tables(run: api.Run, tmp_path: Path) -> None:
    api.export_features(tmp_path / "run", tmp_path / "out", license="CC-BY-4.0")
    found = json.loads((tmp_path / "out" / "croissant.json").read_text())
    assert (found["conformsTo"], found["license"]) == (
        "http://mlcommons.org/croissant/1.1",
        "https://spdx.org/licenses/CC-BY-4.0",
    )
    kinds = {"sc:Text": "string", "cr:Float16": "halffloat", "cr:Float32": "float", "cr:Float64": "double"}
    for file, records in zip(found["distribution"], found["recordSet"], strict=True):
        data = (tmp_path / "out" / file["contentUrl"]).read_bytes()
        assert (file["sha256"], file["contentSize"]) == (hashlib.sha256(data).hexdigest(), f"{len(data)} B")
        schema = parquet.read_schema(tmp_path / "out" / file["contentUrl"])
        assert [field["name"] for field in records["field"]] == schema.names
        for field, column in zip(records["field"], schema, strict=True):
            of_list = "arrayShape" in field
            assert of_list == str(column.type).startswith("fixed_size_list")
            of = column.type.value_type if of_list else column.type
            assert kinds.get(field["dataType"], field["dataType"].removeprefix("cr:").lower()) == str(of)
            assert not of_list or field["arrayShape"] == str(column.type.list_size)
    maps = next(field for field in found["recordSet"][0]["field"] if field["name"] == "maps")
    assert "in C order" in maps["description"]
    api.export_features(tmp_path / "run", tmp_path / "hub", format="hub", license="ask the lab")
    assert 'license: other\nlicense_name: "ask the lab"' in (tmp_path / "hub" / "README.md").read_text()


@pytest.mark.slow
def test_mlcroissant_loads_the_records(run: api.Run, tmp_path: Path) -> None:
    mlcroissant = pytest.importorskip("mlcroissant")
    api.export_features(tmp_path / "run", tmp_path / "out", license="CC-BY-4.0")
    dataset = mlcroissant.Dataset(jsonld=str(tmp_path / "out" / "croissant.json"))
    assert not dataset.metadata.ctx.issues.errors
    stored = expected(run)
    images = list(dataset.records("images"))
    assert [each["images/image_id"].decode() for each in images] == stored.image_id.values.tolist()
    np.testing.assert_array_equal([each["images/features"] for each in images], stored.features.values)
    probes = list(dataset.records("probes"))
    assert [each["probes/point"].decode() for each in probes] == ["nose", "tail"] * 11
    np.testing.assert_array_equal([each["probes/probes"] for each in probes], stored.probes.values.reshape(22, -1))
