"""A run's group says what its vectors are, by a convention with a schema; earlier runs keep their attributes."""

import json
from collections.abc import Callable, Iterator
from importlib import resources
from pathlib import Path
from typing import Any

import pytest

from genenc_core import spec, stored_arrays
from genenc_core.encoding import products
from genenc_core.images.labels import reading, region_reading
from genenc_core.images.sources import image_source, manifest
from genenc_core.run import driver, emb, planning, status, store_plan
from genenc_core.run.folder import RunFolder
from genenc_core.store import layout, run_store, store_keys

IDENTITY = {
    "model": "torchvision/resnet18",
    "weights": "0" * 64,
    "backend": "eager",
    "artifact": None,
    "preprocessing": spec.Preprocessing(height=8, width=8).model_dump(mode="json"),
    "tiles": {"size": [8, 8], "overlap": 2, "trim": 0, "blend": "cosine"},
    "execution": {"precision": "bfloat16"},
    "cells": {"features": {"stride": [4.0, 4.0], "first": [2.0, 2.0]}},
}
PRODUCTS = (
    "features=global_avg_pool+l2_normalize@uint8",
    "probes=spatial_point(cell)@int8",
    "regions=region_mean@float16",
    "maps=none",
)
POINTS = "image,point,individual,x,y\na.png,ear,m1,1,2\na.png,eye,m1,3,4\n"


@pytest.fixture(scope="module")
def group(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The group's `zarr.json` of a store with all that the convention knows."""
    folder = tmp_path_factory.mktemp("emb")
    (folder / "a.png").write_bytes(b"x")
    (folder / "points.csv").write_text(POINTS)
    (folder / "boxes.csv").write_text("image,x,y,width,height\na.png,1,2,1,1\n")
    areas = region_reading.read_regions([folder / "boxes.csv"])
    points = reading.read_points(folder / "points.csv")
    source = image_source.open_source(str(folder / "*.png"))
    listed = manifest.write_manifest(folder / "images.parquet", source, points=points, regions=areas)
    found = planning.write_regions(folder / "regions.parquet", areas, listed)
    slots = [spec.SlotSpec(name="features", shape=(3, 2, 2))]
    asked = [products.parse_product(text) for text in PRODUCTS]
    wanted = products.build_products(asked, slots, point_count=2, region_count=1)
    made = {"fingerprint": "f"}
    plan = store_plan.make_plan(wanted, listed, identity=IDENTITY, made=made, shard_rows=1, regions=found)
    run_store.RunStore.create(folder / "run", plan, coordinates=store_plan.coordinates(listed, plan, found))
    return _group(folder / "run")


def _group(run: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run / store_keys.GROUP / "zarr.json").read_text())
    return found


def problems(document: dict[str, Any]) -> list[str]:
    """What the schema finds, and arrays that the attributes name and the group lacks."""
    jsonschema = pytest.importorskip("jsonschema")
    schema = json.loads((resources.files("genenc_core.run") / "emb.schema.json").read_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    found = [str(error.message) for error in jsonschema.Draft202012Validator(schema).iter_errors(document)]
    return found + [name for name in _named(document["attributes"], schema) if name not in _arrays(document)]


def _arrays(document: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = document["consolidated_metadata"]["metadata"]
    return found


def _named(attributes: dict[str, Any], schema: dict[str, Any]) -> Iterator[str]:
    """Yield the arrays that are named where the schema says that an array is."""
    properties = schema["properties"]["attributes"]["properties"]
    for part in ("emb:images", "emb:points", "emb:regions"):
        for key, value in attributes.get(part, {}).items():
            if str(properties[part]["properties"][key].get("description", "")).startswith("Array"):
                yield from value if isinstance(value, list) else [value]
    for name, vectors in attributes["emb:vectors"].items():
        yield name
        yield from (
            vectors["quantization"][key] for key in ("scale", "offset") if key in vectors.get("quantization", ())
        )


def test_the_group_fits_the_schema(group: dict[str, Any]) -> None:
    assert problems(group) == []
    attributes = group["attributes"]
    assert attributes["zarr_conventions"] == [emb.CONVENTION]
    vectors = attributes["emb:vectors"]
    assert {name: each["of"] for name, each in vectors.items()} == {
        "features": "image",
        "probes": "point",
        "regions": "region",
        "maps": "cell",
    }
    assert vectors["features"]["pooling"] == ["global_avg_pool", "l2_normalize"]
    assert vectors["features"]["quantization"]["values"] == "stored * features_scale + features_offset"
    for name, each in vectors.items():
        assert each["channel_dimension"] in _arrays(group)[name]["dimension_names"]
    assert attributes["emb:model"]["precision"] == "bfloat16"
    assert {"emb:points", "emb:regions", "emb:cells", "emb:tiles"} <= attributes.keys()


@pytest.mark.parametrize(
    "wrong",
    [
        lambda attributes: attributes["zarr_conventions"][0].update(more="x"),
        lambda attributes: attributes["zarr_conventions"][0].pop("uuid"),
        lambda attributes: attributes["emb:vectors"]["probes"].update(of="pixels"),
        lambda attributes: attributes["emb:vectors"].update(other=attributes["emb:vectors"]["maps"]),
        lambda attributes: attributes["emb:points"].update(x="point_z"),
        lambda attributes: attributes["emb:regions"]["box"].pop(),
        lambda attributes: attributes.update({"emb:modle": {}}),
        lambda attributes: attributes.pop("emb:model"),
    ],
)
def test_what_does_not_fit_is_found(group: dict[str, Any], wrong: Callable[[dict[str, Any]], object]) -> None:
    damaged = json.loads(json.dumps(group))
    wrong(damaged["attributes"])
    assert problems(damaged)


def test_arrays_have_meanings_and_quantities_units(group: dict[str, Any]) -> None:
    for name, array in _arrays(group).items():
        attributes = array["attributes"]
        assert attributes["long_name"], name
        quantity = array["data_type"] not in ("string", "int64") and "flag_values" not in attributes
        if quantity and name not in ("image_orientation", "image_affine"):
            assert attributes["units"] in ("pixel", "1"), name
        if name in group["attributes"]["emb:vectors"]:
            assert "output slot 'features' of torchvision/resnet18" in attributes["description"]


def test_the_schema_shipped_is_the_page_s() -> None:
    page = (Path(emb.__file__).with_name("EMB.md")).read_text()
    schema = json.loads((resources.files("genenc_core.run") / "emb.schema.json").read_text())
    assert emb.CONVENTION["uuid"] in page
    assert schema["$id"].endswith(emb.CONVENTION["uuid"])
    for name in schema["properties"]["attributes"]["properties"]:
        assert name == stored_arrays.CONVENTIONS or f"| `{name}` |" in page


@pytest.mark.slow
def test_an_earlier_run_is_repaired_to_its_own_bytes(
    extract: Callable[..., driver.Result], photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run without the convention keeps every byte, also of metadata that is written again."""
    real = store_plan.make_plan

    def earlier(*given: Any, **options: Any) -> layout.StorePlan:
        plan = real(*given, **options)
        kept = {name: value for name, value in plan.attributes.items() if name in ("title", "genenc")}
        return layout.plan_from_json({**layout.plan_to_json(plan), "attributes": kept})

    (tmp_path / "points.csv").write_text("image,point,x,y\nimg_000.png,nose,5,6\n")
    with monkeypatch.context() as patch:
        patch.setattr(store_plan, "make_plan", earlier)
        extract(points=str(tmp_path / "points.csv"))
    files = sorted((tmp_path / "run" / store_keys.GROUP).rglob("*.json"))
    whole = {file: file.read_bytes() for file in files}
    assert not json.loads(whole[tmp_path / "run" / store_keys.GROUP / "point" / "zarr.json"])["attributes"]
    assert stored_arrays.CONVENTIONS not in _group(tmp_path / "run")["attributes"]
    for file in files:
        file.write_bytes(b"{}")
    repaired = status.repair_run(RunFolder(tmp_path / "run"))
    assert len(repaired.restored) == len(files)
    assert {file: file.read_bytes() for file in files} == whole
