"""Reproducible runs: the same bytes for any batch size, part of what a run means, refused where they cannot be."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

from genenc_core import api, errors
from genenc_core.run import decisions, driver, engine_setup, margins, records, status
from genenc_core.run.folder import RunFolder

Extract = Callable[..., driver.Result]
PRODUCTS = ("features=global_avg_pool@int8", "probes=spatial_point(bilinear)@uint8")


@pytest.fixture
def labels(tmp_path: Path, photos: Path) -> str:
    (photos / "img_005.png").write_bytes(b"no image")
    path = tmp_path / "points.csv"
    path.write_text("image,point,x,y\n" + "".join(f"img_{row:03d}.png,tip,{5 + row},{9 + row}\n" for row in range(9)))
    return str(path)


def stored(root: Path) -> dict[str, bytes]:
    group: Any = zarr.open_group(root / "features.zarr", mode="r")
    return {name: np.asarray(array[:]).tobytes() for name, array in group.arrays()}


def details(root: Path, shard: int = 0) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((root / "_txn" / "commits" / f"s{shard:07d}.json").read_text())["details"]
    return found


@pytest.mark.slow
def test_bytes_do_not_depend_on_the_batch_or_on_how_they_were_decided(
    extract: Extract, labels: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = {"points": labels, "products": PRODUCTS, "reproducible": True, "max_failures": "100%"}
    monkeypatch.setattr(margins, "WORTH", np.inf)
    one = extract(out=str(tmp_path / "one"), batch_size=1, **asked)
    extract(out=str(tmp_path / "four"), batch_size=4, **asked)
    assert details(tmp_path / "one")["reproducible"]["again"] < 4, "float32 decided some"
    monkeypatch.setattr(margins, "WORTH", 0.0)
    extract(out=str(tmp_path / "wide"), **asked)
    found = details(tmp_path / "wide")["reproducible"]
    assert (found["images"], found["again"], found["undecided"]) == (4, 4, 0)
    assert stored(tmp_path / "one") == stored(tmp_path / "four") == stored(tmp_path / "wide")

    folder = RunFolder(tmp_path / "one")
    assert folder.identity["reproducible"]["rule"] == margins.RULE
    survey = status.survey(folder)
    assert survey.status.decided is not None
    assert survey.status.decided.images == 10
    assert any("all values are decided" in line for line in status.summary_lines(survey, None))
    assert extract(out=str(tmp_path / "one"), batch_size=1, **asked).status.complete
    with pytest.raises(errors.StoreError, match="reproducible"):
        extract(out=str(tmp_path / "one"), **{**asked, "reproducible": False})
    assert one.status.complete


@pytest.mark.slow
def test_repaired_and_made_again_with_another_batch_size(extract: Extract, tmp_path: Path) -> None:
    asked = {"dtype": "uint8", "reproducible": True, "limit": 8}
    extract(out=str(tmp_path / "run"), batch_size=4, **asked)
    before = stored(tmp_path / "run")
    (tmp_path / "run" / "features.zarr" / "features" / "c.1.0").write_bytes(b"x")
    run = api.Run.open(tmp_path / "run")
    assert run.repair().requeued == (1,)
    assert extract(out=str(tmp_path / "run"), batch_size=1, **asked).status.complete
    assert stored(tmp_path / "run") == before
    again = api.rerun_from(tmp_path / "run", tmp_path / "again")
    assert again.identical
    assert RunFolder(tmp_path / "again").identity == RunFolder(tmp_path / "run").identity


@pytest.mark.slow
def test_float_products_are_rounded_and_an_ordinary_run_says_nothing(extract: Extract, tmp_path: Path) -> None:
    extract(out=str(tmp_path / "plain"))
    assert "reproducible" not in RunFolder(tmp_path / "plain").identity
    assert "reproducible" not in details(tmp_path / "plain")
    for size in (1, 4):
        extract(out=str(tmp_path / str(size)), batch_size=size, reproducible=True)
    assert stored(tmp_path / "1") == stored(tmp_path / "4")
    plain, rounded = (api.Run.open(tmp_path / name).arrays().features.values for name in ("plain", "1"))
    size = np.abs(plain).max(1, keepdims=True)
    np.testing.assert_array_less(np.abs(plain - rounded), np.broadcast_to(size * 2.0**-15, plain.shape))
    steps = rounded / 2 ** np.ceil(np.log2(np.abs(rounded).max(1, keepdims=True))) * 65536
    np.testing.assert_array_equal(steps, np.rint(steps))


@pytest.mark.slow
def test_an_exceeded_margin_fails_the_shard_and_resume_completes_it(
    extract: Extract, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(margins, "WORTH", np.inf)
    real = margins._measured

    def hopeful(*given: Any) -> Any:
        found, shares, seconds = real(*given)
        return {name: margins.Margin(relative=1e-12, absolute=0.0) for name in found}, shares, seconds

    monkeypatch.setattr(margins, "_measured", hopeful)
    asked = {"dtype": "int8", "reproducible": True}
    result = extract(**asked)
    assert result.failures
    assert "resume the run" in result.failures[0].reason
    assert margins.FLOAT64 in {str(path.relative_to(tmp_path / "run")) for path in (tmp_path / "run").rglob("*.json")}
    assert extract(**asked).status.complete
    monkeypatch.undo()
    extract(out=str(tmp_path / "other"), **asked)
    assert stored(tmp_path / "run") == stored(tmp_path / "other")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"backend": "torchscript"}, "--backend torchscript: an artifact computes in float32"),
        ({"precision": "bfloat16"}, "--precision bfloat16"),
        ({"compile": True}, "--compile"),
        ({"canvas": "64"}, "--canvas 64"),
        ({"value_range": "0,255"}, "--channels or --value-range"),
        ({"products": ("v=global_avg_pool+cast(float16)",)}, "leave the cast out"),
        ({"model": "tiny_models:narrow"}, "converts values of the image to a narrower type"),
        ({"model": "tiny_models:of_the_batch"}, "depends on other images"),
    ],
)
def test_what_cannot_be_the_same_anywhere_is_refused(extract: Extract, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(errors.InputError, match=said):
        extract(reproducible=True, **changes)


def test_another_tensor_of_the_model_is_refused(extract: Extract, monkeypatch: pytest.MonkeyPatch) -> None:
    extract(reproducible=True)
    monkeypatch.setattr(margins, "_digest", lambda *_: "f" * 64)
    with pytest.raises(errors.OtherRunError, match="reproducible"):
        extract(reproducible=True)


@pytest.mark.parametrize(("name", "said"), [("_digest", "computes some when it is built"), ("_pixels", "other pixels")])
def test_a_machine_that_computes_otherwise_cannot_continue_a_run(
    extract: Extract, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, said: str
) -> None:
    extract(reproducible=True, limit=1)
    folder = RunFolder(tmp_path / "run")
    monkeypatch.setattr(margins, name, lambda *_: "f" * 64)
    with pytest.raises(errors.StoreError, match=said):
        engine_setup.make_engine(folder, records.Options.of(folder.given))


def test_records_of_retries_add_up() -> None:
    one = {"images": 4, "again": 1, "by_rule": 0, "undecided": 0, "used": 0.25}
    assert decisions.joined([one, {**one, "used": 0.5}]) == {
        "images": 8,
        "again": 2,
        "by_rule": 0,
        "undecided": 0,
        "used": 0.5,
    }
