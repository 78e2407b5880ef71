"""Further columns of a list are coordinates of the run, typed by what is in them."""

import dataclasses
import decimal
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import xarray
from pyarrow import parquet

import containers
import pictures
from genenc_core import errors
from genenc_core.images.sources import image_source, json_lines, tables
from genenc_core.run import driver, parameters, status
from genenc_core.run.folder import RunFolder

NAN = float("nan")
CELLS = {
    "label": ["3", "-1", "0"],
    "weight": ["1.5", "", "2e-3"],
    "count": ["7", "", "9"],
    "subject": ["m 1", "", "é,\n"],
    "code": ["007", "1", "2"],
    "status": ["good", "bad", "good"],
    "features": ["a", "b", "c"],
    "features_channel": ["1", "2", "3"],
    "time (s)": ["0.1", "0.2", "nan"],
    "time [s]": ["1", "2", "3"],
    "nothing": ["", "", ""],
    "t_ns": ["1700000000123456789", "1700000000123456790", "-9223372036854775808"],
    "beyond": ["9223372036854775808", "1", "2"],
    "inexact": ["9007199254740993", "", "1"],
    "mixed": ["9007199254740993", "0.5", "1"],
    "version": ["1.1", "1.10", "2.0"],
    "decimals": ["1.10", "0.20", "3.00"],
    "plain": ["1.0", "0.25", "10"],
    "well": ["1E0", "2E1", "3E2"],
    "power": ["1e-07", "2.5e3", "1E+05"],
}
WANTED: dict[str, list[object]] = {
    "label": [3, -1, 0],
    "weight": [1.5, NAN, 0.002],
    "count": [7.0, NAN, 9.0],
    "subject": ["m 1", "", "é,"],
    "code": ["007", "1", "2"],
    "status_column": ["good", "bad", "good"],
    "features_column": ["a", "b", "c"],
    "features_channel_column": [1, 2, 3],
    "time_s": [0.1, 0.2, NAN],
    "time_s_column": [1, 2, 3],
    "nothing": ["", "", ""],
    "t_ns": [1700000000123456789, 1700000000123456790, -(2**63)],
    "beyond": ["9223372036854775808", "1", "2"],
    "inexact": ["9007199254740993", "", "1"],
    "mixed": ["9007199254740993", "0.5", "1"],
    "version": ["1.1", "1.10", "2.0"],
    "decimals": [1.1, 0.2, 3.0],
    "plain": [1.0, 0.25, 10.0],
    "well": ["1E0", "2E1", "3E2"],
    "power": [1e-7, 2500.0, 1e5],
}


def given(tmp_path: Path, images: str = "list.csv", **more: object) -> parameters.ExtractParameters:
    values = {"model": "tiny_models:conv", "weights": "random:0", "image_size": "32", "shard_rows": 2}
    out = str(tmp_path / "run")
    return parameters.ExtractParameters.model_validate({**values, "images": str(tmp_path / images), "out": out, **more})


def write_list(folder: Path, cells: dict[str, list[str]]) -> None:
    """Write a CSV of the images beside it."""
    columns = {"image": [f"{path.name}" for path in sorted(folder.glob("*.png"))], **cells}
    rows = [list(columns), *zip(*columns.values(), strict=True)]
    quoted = ("\n".join(",".join('"' + cell.replace('"', '""') + '"' for cell in row) for row in rows)) + "\n"
    (folder / "list.csv").write_text(quoted, encoding="utf-8")


@pytest.fixture
def made(tmp_path: Path) -> RunFolder:
    """A run of a list with many kinds of columns."""
    pictures.write_folder(tmp_path, 3)
    write_list(tmp_path, CELLS)
    return driver.extract(given(tmp_path)).run


def test_columns_are_coordinates(made: RunFolder, tmp_path: Path) -> None:
    run = xarray.open_zarr(tmp_path / "run/features.zarr", consolidated=False)
    assert {*WANTED} < {*run.features.coords}
    for name, values in WANTED.items():
        found = run[name]
        assert found.dims == ("image",)
        if isinstance(values[0], str):
            assert found.values.tolist() == values
            continue
        np.testing.assert_array_equal(found.values, values)
        assert found.dtype == np.array(values).dtype
    assert run.weight.attrs["long_name"] == "column 'weight' of the list"
    assert status.run_status(made).complete


def test_a_damaged_column_is_found_and_restored(made: RunFolder, tmp_path: Path) -> None:
    place = next(path for path in (tmp_path / "run/features.zarr/label").iterdir() if path.name != "zarr.json")
    whole = place.read_bytes()
    place.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    assert any("label" in str(problem) for problem in status.verify_run(made, content=True).problems)
    status.repair_run(made)
    assert place.read_bytes() == whole


def test_another_value_is_another_run(made: RunFolder, tmp_path: Path) -> None:
    assert not driver.extract(given(tmp_path)).asked
    for cells, words in (
        ({**CELLS, "label": ["3", "-1", "1"]}, "column 'label' has other values"),
        ({name: values for name, values in CELLS.items() if name != "label"}, "column 'label' was removed"),
        ({**CELLS, "more": ["1", "2", "3"]}, "column 'more' was added"),
    ):
        write_list(tmp_path, cells)
        with pytest.raises(errors.OtherRunError, match=words):
            driver.extract(given(tmp_path))
    assert made.manifest.content_digest() == made.manifest.digest


def test_a_run_of_an_earlier_version_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pictures.write_folder(tmp_path, 3)
    write_list(tmp_path, CELLS)
    real = image_source.open_source
    with monkeypatch.context() as earlier:
        earlier.setattr(image_source, "open_source", lambda *a, **k: dataclasses.replace(real(*a, **k), columns=False))
        before = driver.extract(given(tmp_path)).run.manifest
    assert before.columns == ()
    assert not driver.extract(given(tmp_path)).asked


def test_columns_of_parquet_and_of_frames(tmp_path: Path) -> None:
    pictures.write_folder(tmp_path, 3)
    names = [path.name for path in sorted(tmp_path.glob("*.png"))]
    table = {"image": names, "n": [1, None, 3], "f": [0.1, 1e300, None], "t": pa.array([1, 2, 3], pa.timestamp("s"))}
    table |= {
        "good": [True, False, True],
        "list": [[1], [2], [3]],
        "price": [decimal.Decimal("1.25"), None, decimal.Decimal("2.50")],
        "word": pa.array(["a", "b", "a"]).dictionary_encode(),
    }
    parquet.write_table(pa.table(table), tmp_path / "list.parquet")
    with pytest.warns(tables.ColumnsLeftOut, match="'list' \\(it holds no texts"):
        run = driver.extract(given(tmp_path, "list.parquet", out=str(tmp_path / "one"))).run
    assert run.manifest.columns == ("n", "f", "t", "good", "price", "word")
    found = xarray.open_zarr(tmp_path / "one/features.zarr", consolidated=False)
    np.testing.assert_array_equal(found.n, [1, NAN, 3])
    np.testing.assert_array_equal(found.f, [0.1, 1e300, NAN])
    assert found.good.values.tolist() == ["True", "False", "True"]
    assert found.word.values.tolist() == ["a", "b", "a"]
    assert found.price.values.tolist()[::2] == [1.25, 2.5]
    assert found.t.values.tolist()[0] == "1970-01-01 00:00:01"
    containers.write_npy(tmp_path, containers.frames(5))
    driver.extract(given(tmp_path, "stack.npy", out=str(tmp_path / "two"), frames="::2"))
    assert xarray.open_zarr(tmp_path / "two/features.zarr", consolidated=False).frame.values.tolist() == [0, 2, 4]
    containers.write_parquet(tmp_path, containers.frames(3))
    driver.extract(given(tmp_path, "rows.parquet", out=str(tmp_path / "three")))
    assert xarray.open_zarr(tmp_path / "three/features.zarr", consolidated=False).label.values.tolist() == [0, 1, 2]


def test_keys_that_the_first_line_lacks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = [path.name for path in sorted(pictures.write_folder(tmp_path, 3).glob("*.png"))]
    rows = [{"image": names[0]}, {"image": names[1], "label": 3}, {"image": names[2], "label": 4, "good": True}]
    (tmp_path / "list.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert driver.extract(given(tmp_path, "list.jsonl")).run.manifest.columns == ("label", "good")
    found = xarray.open_zarr(tmp_path / "run/features.zarr", consolidated=False)
    np.testing.assert_array_equal(found.label, [NAN, 3, 4])
    assert found.good.values.tolist() == ["", "", "True"]
    monkeypatch.setattr(json_lines, "_LOOKED_AT", 2)
    with pytest.raises(errors.InputError, match="line 3 has the key 'good'"):
        driver.extract(given(tmp_path, "list.jsonl", out=str(tmp_path / "other")))
