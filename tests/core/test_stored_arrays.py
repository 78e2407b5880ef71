"""The tables of stored arrays, statuses and digests: what a run writes, and what the pages say, is what they say."""

import math
from pathlib import Path

import numpy as np
import pytest
import zarr

from genenc_core import statuses, stored_arrays
from genenc_core.encoding import products, shard_encoding
from genenc_core.images.labels import reading, region_reading
from genenc_core.images.sources import image_source, manifest
from genenc_core.run import planning, store_plan
from genenc_core.spec import SlotSpec
from genenc_core.store import run_store, store_keys
from genenc_core.system import digests

ROOT = Path(__file__).parents[2]
IN_PIXELS = ("point_x", "point_y", "region_x", "region_y", "image_height", "image_width")
PAGE = ROOT / "genenc_core" / "store" / "README.md"


def made(
    folder: Path, *, with_points: bool, with_regions: bool = False
) -> tuple[run_store.RunStore, list[products.Product]]:
    """Create a store of two images; return it and its products."""
    for name in ("a.png", "b.png"):
        (folder / name).write_bytes(b"x")
    points = None
    if with_points:
        (folder / "points.csv").write_text("image,point,x,y\na.png,ear,1,2\na.png,eye,3,4\n")
        points = reading.read_points(folder / "points.csv")
    areas = None
    if with_regions:
        (folder / "boxes.csv").write_text("image,x,y,width,height\na.png,1,2,1,1\na.png,3,4,1,1\n")
        areas = region_reading.read_regions([folder / "boxes.csv"])
    listed = manifest.write_manifest(
        folder / "images.parquet", image_source.open_source(str(folder / "*.png")), points=points, regions=areas
    )
    found = planning.write_regions(folder / "regions.parquet", areas, listed)
    asked = ["features=global_avg_pool", *(["probes=spatial_point(cell)@uint8"] if with_points else [])]
    asked += ["regions=region_mean"] if with_regions else []
    slots = [SlotSpec(name="features", shape=(3, 2, 2))]
    wanted = products.build_products(
        [products.parse_product(text) for text in asked],
        slots,
        point_count=2 if with_points else 0,
        region_count=int(with_regions),
    )
    identity = {"model": "m"}
    made_of = {"fingerprint": "f"}
    plan = store_plan.make_plan(wanted, listed, identity=identity, made=made_of, shard_rows=2, regions=found)
    coordinates = store_plan.coordinates(listed, plan, found)
    store = run_store.RunStore.create(folder / "run", plan, coordinates=coordinates)
    return store, list(wanted)


@pytest.mark.parametrize(("with_points", "with_regions"), [(True, False), (False, False), (False, True), (True, True)])
def test_a_runs_arrays_are_those_of_the_table(tmp_path: Path, with_points: bool, with_regions: bool) -> None:
    _, wanted = made(tmp_path, with_points=with_points, with_regions=with_regions)
    group = zarr.open_group(tmp_path / "run" / store_keys.GROUP, mode="r")
    expected = {
        array.name: array
        for array in stored_arrays.TABLE
        if (with_points or not array.of_points)
        and (with_regions or not array.of_regions)
        and not array.of_individuals
        and not array.of_likelihoods
    }
    of_products = [array for product in wanted for array in product.arrays]
    assert set(group.array_keys()) == {*expected, *(array.name for array in of_products)}
    for beside in of_products:
        found = group[beside.name]
        assert isinstance(found, zarr.Array)
        dims = beside.dims if beside.dims[0] == "region" else ("image", *beside.dims)
        assert (str(found.dtype), found.metadata.dimension_names) == (beside.dtype, dims)
        assert found.fill_value == beside.empty or math.isnan(beside.empty)
    for name, array in expected.items():
        found = group[name]
        assert isinstance(found, zarr.Array)
        assert found.metadata.dimension_names == array.dims
        assert array.dtype == "string" or str(found.dtype) == array.dtype
        assert {key: found.attrs[key] for key in array.attributes} == dict(array.attributes)
        assert (found.attrs.get("units") == "pixel") == name.startswith(IN_PIXELS)
        if array.fill is not None:
            assert found.fill_value == array.fill or math.isnan(array.fill)
    for product in wanted:
        coordinates = str(group[product.name].attrs["coordinates"]).split()
        assert set(coordinates) < set(expected)
        assert ("point_x" in coordinates) == product.needs_points
        assert ("region_x_min" in coordinates) == product.needs_regions


def test_the_encoder_fills_every_planned_array(tmp_path: Path) -> None:
    store, wanted = made(tmp_path, with_points=True)
    arrays = shard_encoding.empty_arrays(2, wanted, 2)
    assert list(arrays) == [array.name for array in store.plan.arrays]
    assert (arrays[stored_arrays.POINT_STATUS] == statuses.POINT_UNREADABLE).all()
    store.commit(0, arrays, np.full(2, statuses.UNREADABLE, np.uint8), details={})
    assert store.record(0).status_counts == {"ok": 0, "unreadable": 2}  # type: ignore[union-attr]


def test_no_product_takes_the_name_of_a_stored_array() -> None:
    assert {array.name for array in stored_arrays.TABLE} < products.RESERVED


def test_the_page_of_the_store_shows_the_tables() -> None:
    lines = set(PAGE.read_text(encoding="utf-8").splitlines())
    for array in stored_arrays.TABLE:
        fill = "" if array.fill is None else str(array.fill)
        what = str(array.attributes.get("long_name", "names of the points"))
        assert (
            f"| `{array.name}` | {array.dtype} | {', '.join(array.dims)} | {fill} | {array.writer} | {what} |" in lines
        )
    for companion in (stored_arrays.SCALE, stored_arrays.OFFSET):
        kinds = ", ".join(kind for kind, beside in stored_arrays.QUANTIZED.items() if companion in beside)
        assert f"| `PRODUCT_{companion.suffix}` | float32 | {kinds} | {companion.meaning} |" in lines
    for name, table in (
        (stored_arrays.STATUS, statuses.ROWS),
        (stored_arrays.POINT_STATUS, statuses.POINTS),
        (stored_arrays.REGION_STATUS, statuses.REGIONS),
    ):
        for value, word, meaning in table:
            assert f"| `{name}` | {value} | `{word}` | {meaning} |" in lines
    for digest in digests.TABLE:
        assert f"| {digest.of} | {digest.algorithm} | {digest.recorded} |" in lines
