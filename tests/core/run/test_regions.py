"""Runs with regions: values by hand, other regions, interruptions, healing, damage, probes, tiles, inspection."""

import csv
import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray
from PIL import Image

import command_line
from genenc_core import api, errors, testing
from genenc_core.images.sources.label_check import SuspiciousLabels
from genenc_core.run.folder import REGIONS
from genenc_core.store import store_keys

SIZE = (64, 48)
CELL = testing.CELL
BOXES = (
    ("img_000.png", 0, 0, 8, 8, "one cell"),
    ("img_000.png", 0, 0, 64, 48, "whole"),
    ("img_002.png", 12, 8, 28, 24, "between"),
    ("img_003.png", 16, 16, 24, 24, "one cell"),
    ("img_003.png", 60, 40, 70, 60, "partly out"),
    ("img_003.png", 80, 60, 90, 70, "out"),
    ("img_005.png", 8, 0, 16, 8, "one cell"),
)
EXACT = {"fit": "stretch", "image_size": "48x64", "products": ["features=global_avg_pool", "regions=region_mean"]}


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    testing.sample_images(tmp_path / "photos", 7, size=SIZE)
    with (tmp_path / "boxes.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("image", "x_min", "y_min", "x_max", "y_max", "category"), *BOXES])
    return tmp_path / "photos"


def extract(photos: Path, out: str = "run", **more: Any) -> api.Run:
    regions = more.pop("regions", [str(photos.parent / "boxes.csv")])
    options = {**testing.options(**EXACT), **more, "regions": regions}
    return api.extract(str(photos), out=str(photos.parent / out), **options)


def mean_colour(path: Path, box: tuple[float, ...]) -> np.ndarray:
    """Return the mean over the cells of 8 pixels by the area that a box, in whole pixels, shares with them."""
    pixels = np.asarray(Image.open(path).convert("RGB"), np.float64) / 255
    cells = pixels.reshape(6, CELL, 8, CELL, 3).mean((1, 3))
    left, top, right, bottom = np.clip(box, 0, [*SIZE, *SIZE]).astype(int)
    values = np.repeat(np.repeat(cells, CELL, 0), CELL, 1)[top:bottom, left:right]
    mean: np.ndarray = values.mean((0, 1))
    return mean


def test_values_and_coordinates(photos: Path) -> None:
    run = extract(photos)
    found = run.arrays().load()
    assert (found.sizes["image"], found.sizes["region"]) == (7, 7)
    assert found.region_image_id.values.tolist() == [box[0] for box in BOXES]
    assert found.region_image.values.tolist() == [0, 0, 2, 3, 3, 3, 5]
    assert found.region_name.values.tolist() == ["1", "2", "1", "1", "2", "3", "1"]
    assert found.region_category.values.tolist() == [box[5] for box in BOXES]
    assert set(found.region_kind.values.tolist()) == {"box"}
    assert found.region_x_max.values.tolist() == [box[3] for box in BOXES]
    assert found.region_status.values.tolist() == [1, 1, 1, 1, 1, 5, 1]
    for at, (name, *box, _) in enumerate(BOXES):
        if found.region_status.values[at] == 1:
            np.testing.assert_allclose(found.regions.values[at], mean_colour(photos / name, tuple(box)), atol=1e-6)
        else:
            assert np.isnan(found.regions.values[at]).all()
    np.testing.assert_allclose(found.regions.values[1], found.features.values[0], atol=1e-6)
    mice = found.sel(region=found.region_category == "one cell")
    assert mice.regions.shape == (3, 3)
    status = run.status()
    assert dict(status.regions) == {"ok": 6, "outside_image": 1}
    assert run.verify(content=True).ok
    assert run.identity["images"].keys() == {"rows", "digest", "points", "regions"}


def test_other_readers_see_places_that_are_no_region(photos: Path) -> None:
    """Shards of 2 images have 2, 4, 1 and 0 regions: 4 places each."""
    run = extract(photos)
    stored = xarray.open_zarr(run.folder.store.zarr_store(), consolidated=False).load()
    assert stored.sizes["region"] == 16
    real = stored.region_image.values >= 0
    assert stored.region_status.values[~real].tolist() == [4] * 9
    assert set(stored.region_name.values[~real].tolist()) == {""}
    assert np.isnan(stored.regions.values[~real]).all()
    xarray.testing.assert_identical(stored.isel(region=real), run.arrays().load())
    assert stored.regions.attrs["ancillary_variables"] == "region_status"
    assert "region_image_id" in stored.regions.coords


def test_a_run_without_regions_is_as_before(photos: Path) -> None:
    run = extract(photos, regions=[], products=["features=global_avg_pool"])
    assert run.identity["images"].keys() == {"rows", "digest", "points"}
    assert not (photos.parent / "run" / REGIONS).exists()
    assert not [name for name in run.arrays().variables if str(name).startswith("region")]
    plan = json.loads((photos.parent / "run" / store_keys.STORE_FILE).read_text())
    assert "region_places" not in json.dumps(plan)


def test_an_interrupted_run_is_continued_to_the_same_bytes(photos: Path) -> None:
    extract(photos, "whole")
    with pytest.raises(KeyboardInterrupt), testing.interrupted(after=1):
        extract(photos)
    run = extract(photos)
    assert run.status().complete
    whole, own = (photos.parent / name / store_keys.GROUP for name in ("whole", "run"))
    for path in sorted(whole.rglob("*")):
        if path.is_file():
            assert (own / path.relative_to(whole)).read_bytes() == path.read_bytes(), path
    testing.assert_runs_equal(photos.parent / "whole", run)


def test_other_regions_are_another_run(photos: Path) -> None:
    extract(photos)
    text = (photos.parent / "boxes.csv").read_text()
    (photos.parent / "more.csv").write_text(text + "img_001.png,0,0,8,8,more\n")
    with pytest.raises(errors.OtherRunError, match="regions: 7 -> 8"):
        extract(photos, regions=[str(photos.parent / "more.csv")])
    (photos.parent / "more.csv").write_text(text.replace("one cell", "cell"))
    with pytest.raises(errors.OtherRunError, match="the regions differ"):
        extract(photos, regions=[str(photos.parent / "more.csv")])
    with pytest.raises(errors.OtherRunError, match="regions: 7 -> none"):
        extract(photos, regions=[], products=["features=global_avg_pool"])


def test_unreadable_images_are_healed_with_their_regions(photos: Path) -> None:
    good = (photos / "img_003.png").read_bytes()
    (photos / "img_003.png").write_bytes(good[:40] + b"\0" * (len(good) - 40))
    run = extract(photos)
    before = run.arrays().load()
    assert before.region_status.values.tolist() == [1, 1, 1, 3, 3, 3, 1]
    assert np.isnan(before.regions.values[3:6]).all()
    assert dict(run.status().regions) == {"ok": 4, "image_unreadable": 3}
    (photos / "img_003.png").write_bytes(good)
    healed = api.Run.open(run.place)
    healed.encode("unreadable", accept_changed=True, trust=True)
    after = healed.arrays().load()
    assert after.region_status.values.tolist() == [1, 1, 1, 1, 1, 5, 1]
    np.testing.assert_array_equal(after.regions.values[[0, 1, 2, 6]], before.regions.values[[0, 1, 2, 6]])
    fresh = extract(photos, "fresh").arrays().load()
    np.testing.assert_array_equal(after.regions.values, fresh.regions.values)
    assert dict(healed.status().regions) == {"ok": 6, "outside_image": 1}
    assert healed.verify(content=True).ok


def test_damage_of_the_regions_is_found(photos: Path) -> None:
    run = extract(photos)
    path = photos.parent / "run" / store_keys.GROUP / "regions" / "c.1.0"
    data = bytearray(path.read_bytes())
    data[2] ^= 1
    path.write_bytes(data)
    assert [problem.key for problem in run.verify().problems] == ["regions/c.1.0"]
    run.repair()
    assert extract(photos).verify(content=True).ok
    file = photos.parent / "run" / REGIONS
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    assert any(REGIONS in problem.place for problem in api.Run.open(run.place).verify().problems)
    file.unlink()
    with pytest.raises(errors.StoreError, match=r"regions.parquet.* is missing or damaged"):
        _ = api.Run.open(run.place).folder.regions


def test_a_coordinate_is_repaired(photos: Path) -> None:
    run = extract(photos)
    key = photos.parent / "run" / store_keys.GROUP / "region_category" / "c.0"
    before = key.read_bytes()
    key.write_bytes(b"x")
    run.repair()
    assert key.read_bytes() == before


def test_probes_of_stored_maps_are_those_of_the_first_pass(photos: Path) -> None:
    asked = ["regions=region_mean", "aligned=roi_align_mean+l2_normalize", "grid=roi_align(2)@float16"]
    run = extract(photos, "mapped", products=["maps=none@float32", *asked])
    boxes = str(photos.parent / "boxes.csv")
    probed = api.probe(run.place, str(photos.parent / "probed"), regions=[boxes], products=asked)
    first, later = run.arrays().load(), probed.arrays().load()
    for name in ("regions", "aligned", "grid", "region_status", "region_name", "region_x_min"):
        np.testing.assert_array_equal(first[name].values, later[name].values)
    assert first.grid.dims == ("region", "grid_channel", "grid_y", "grid_x")
    assert probed.verify(content=True).ok
    own = api.probe(run.place, str(photos.parent / "own"), products=["boxes=region_mean(box)"])
    np.testing.assert_array_equal(own.arrays().boxes.values, first.regions.values)
    default = api.probe(run.place, str(photos.parent / "default"), regions=[boxes])
    assert {name for name in map(str, default.arrays().data_vars) if "_" not in name} == {"regions", "path", "status"}
    mapped = extract(photos, "plain", regions=[], products=["maps=none@float32"])
    with pytest.raises(errors.InputError, match=r"a product needs regions, and .* has none of its own: give --regions"):
        api.probe(mapped.place, str(photos.parent / "none"), products=["regions=region_mean"])


def test_masks_and_boxes_with_points_in_one_run(photos: Path) -> None:
    masks = photos.parent / "masks"
    masks.mkdir()
    labels = np.zeros((SIZE[1], SIZE[0]), np.uint8)
    labels[8:16, 8:24], labels[40:, 56:] = 3, 9
    Image.fromarray(labels).save(masks / "img_001.png")
    found = extract(
        photos,
        regions=[str(masks)],
        points=str(photos.parent / "labels.csv"),
        products=["regions=region_mean", "probes=spatial_point(cell)"],
    )
    arrays = found.arrays().load()
    assert arrays.region_name.values.tolist() == ["3", "9"]
    assert arrays.region_kind.values.tolist() == ["mask", "mask"]
    for at, box in enumerate(((8, 8, 24, 16), (56, 40, 64, 48))):
        np.testing.assert_allclose(arrays.regions.values[at], mean_colour(photos / "img_001.png", box), atol=1e-6)
    assert arrays.probes.dims == ("image", "point", "probes_channel")
    stored = found.folder.regions
    assert stored is not None
    first = stored.mask(0)
    assert first is not None
    assert (first.pixels() == (labels == 3)).all()


def test_tiles_are_one_map(photos: Path) -> None:
    plain = extract(photos, "plain", image_size="48x64").arrays().load()
    tiled = extract(photos, "tiled", image_size="24x32", canvas="48x64", tile_overlap=8).arrays().load()
    np.testing.assert_allclose(tiled.regions.values, plain.regions.values, atol=1e-6)
    assert tiled.region_status.values.tolist() == plain.region_status.values.tolist()


def test_a_mask_of_another_size_than_its_image_is_refused(photos: Path) -> None:
    masks = photos.parent / "masks"
    masks.mkdir()
    Image.fromarray(np.ones((10, 12), np.uint8)).save(masks / "img_001.png")
    with pytest.raises(errors.InputError, match=r"that of 'img_001.png' is 12 x 10, and the image 64 x 48 pixels"):
        extract(photos, regions=[str(masks)])
    assert not (photos.parent / "run").exists()


def test_coordinates_that_are_no_pixels_are_refused(photos: Path) -> None:
    fractions = [(name, *np.divide(box, 100), category) for name, *box, category in BOXES]
    with (photos.parent / "boxes.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("image", "x_min", "y_min", "x_max", "y_max", "category"), *fractions])
    with pytest.raises(errors.InputError, match=r"of the regions file lie in .*--regions-scale normalized"):
        extract(photos)
    run = extract(photos, regions_scale="normalized")
    assert run.arrays().region_x_max.attrs["units"] == "1"
    with pytest.warns(SuspiciousLabels, match="corners"):
        extract(photos, "pixels", regions_scale="2")


def test_images_of_the_file_that_are_not_there(photos: Path) -> None:
    with (photos.parent / "boxes.csv").open("a") as file:
        file.write("other.png,0,0,8,8,x\n")
    run = extract(photos)
    done = command_line.call(["status", run.place])
    assert "regions: 6 ok, 1 outside image" in done.stdout
    assert "1 images of the regions file are not among the images" in done.stdout
    assert "regions        7" in command_line.call(["info", run.place]).stdout
    (photos.parent / "boxes.csv").write_text("image,x,y,width,height\nother.png,1,2,3,4\n")
    with pytest.raises(errors.InputError, match="none of the 1 images of the regions file is in the source"):
        extract(photos, "none")


def test_a_limit_leaves_out_regions_of_other_images(photos: Path) -> None:
    run = extract(photos, limit=1)
    assert run.arrays().region_image_id.values.tolist() == ["img_000.png"] * 2


def test_polygons_and_keypoints_of_yolo(photos: Path) -> None:
    """Polygons are COCO's, in pixels of their images; an unreadable image costs its own; keypoints are points."""
    folder, corners = photos.parent / "yolo", np.array([[0.1, 0.2], [0.8, 0.1], [0.5, 0.95]])
    folder.mkdir()
    flat = " ".join(map(str, corners.reshape(-1)))
    for name in ("img_001", "img_004"):
        (folder / f"{name}.txt").write_text(f"0 {flat}\n")
    (folder / "data.yaml").write_text("names: [mouse]\n")
    (photos / "img_004.png").write_bytes(b"no image")
    polygon = (corners * SIZE).reshape(-1).tolist()
    coco = {
        "images": [{"id": 1, "file_name": "img_001.png", "width": SIZE[0], "height": SIZE[1]}],
        "categories": [{"id": 1, "name": "mouse"}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "segmentation": [polygon], "bbox": [0, 0, 1, 1]}],
    }
    (photos.parent / "coco.json").write_text(json.dumps(coco))
    own = extract(photos, regions=[str(folder)], max_failures="100%")
    other = extract(photos, "other", regions=[str(photos.parent / "coco.json")], max_failures="100%")
    found, expected = own.arrays().load(), other.arrays().load()
    assert (found.region_kind.values.tolist(), found.region_status.values.tolist()) == (["mask", "mask"], [1, 3])
    np.testing.assert_array_equal(found.regions.values[0], expected.regions.values[0])
    assert own.folder.regions is not None
    assert other.folder.regions is not None
    assert own.folder.regions.texts("mask")[0] == other.folder.regions.texts("mask")[0]
    (folder / "img_001.txt").write_text("0 0.5 0.5 0.5 0.5 0.25 0.75 2 0 0 0\n")
    (folder / "img_004.txt").unlink()
    (folder / "data.yaml").write_text("kpt_shape: [2, 3]\nkpt_names: {0: [nose, tail]}\n")
    labelled = extract(photos, "points", regions=[], points=str(folder), products=[], max_failures="100%").arrays()
    assert labelled.point.values.tolist() == ["nose", "tail"]
    assert labelled.point_status.values[1].tolist() == [1, 4]
    assert labelled.point_x.attrs["units"] == "1"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"regions": [], "regions_scale": "2"}, "--regions-scale '2' needs --regions FILE"),
        ({"regions": [], "regions_columns": "x=a"}, "--regions-columns 'x=a' needs --regions FILE"),
        ({"regions": []}, "region_mean needs regions, and the run has none: use --regions FILE"),
        ({"regions_scale": "wide"}, "invalid --regions-scale 'wide'"),
        ({"min_score": 0.5}, "--min-score 0.5 needs a score of every region"),
        ({"products": ["region=region_mean"]}, "product 'region' has the name of an axis"),
    ],
)
def test_options_that_are_refused(photos: Path, options: dict[str, Any], words: str) -> None:
    with pytest.raises(errors.InputError, match=words):
        extract(photos, **options)
    assert not (photos.parent / "run").exists()


def test_labels_and_regions_have_a_bound_each(photos: Path) -> None:
    names = [path.name for path in sorted(photos.glob("*.png"))][:2]
    points, areas = photos.parent / "points.csv", photos.parent / "scored.csv"
    points.write_text("image,point,x,y,likelihood\n" + "".join(f"{name},a,9,9,0.2\n" for name in names))
    areas.write_text(
        "image,region,x,y,width,height,score\n"
        + "".join(f"{n},r,1,1,9,9,{s}\n" for n, s in zip(names, (0.9, 0.4), strict=True))
    )
    given: dict[str, Any] = {"points": str(points), "regions": [str(areas)]}
    found = extract(photos, min_likelihood=0.5, **given).arrays()
    assert (int((found.point_status == 1).sum()), len(found.region_name)) == (0, 2)
    found = extract(photos, "scored", min_score=0.5, **given).arrays()
    assert (int((found.point_status == 1).sum()), len(found.region_name)) == (2, 1)


def test_datasets_without_regions_are_probed_with_some(photos: Path) -> None:
    boxes, place = str(photos.parent / "boxes.csv"), str(photos.parent / "set")
    options = testing.options(fit="stretch", image_size="48x64", products=["maps=none@float32"])
    api.update(place, str(photos), **options)
    probed = api.probe(place, str(photos.parent / "probed"), regions=[boxes])
    expected = extract(photos).arrays().load()
    np.testing.assert_array_equal(probed.arrays().regions.values, expected.regions.values)
    with pytest.raises(errors.OtherRunError, match="coordinates of regions: no regions -> pixels"):
        api.update(place, str(photos), regions=[boxes], **options)


def test_an_inspection_counts_and_draws_regions(photos: Path) -> None:
    found = api.inspect(str(photos), regions=[str(photos.parent / "boxes.csv")])
    assert found.regions is not None
    assert (found.regions.count, found.regions.most, found.regions.images_without) == (7, 3, 3)
    assert found.regions.categories == {"one cell": 3, "whole": 1, "between": 1, "partly out": 1, "out": 1}
    assert (found.regions.states["ok"], found.regions.states["outside_image"]) == (6, 1)
    drawn = found.contact_sheet
    assert drawn is not None
    without = api.inspect(str(photos)).contact_sheet
    assert without is not None
    colours = {colour for _, colour in drawn.getcolors(2**20) or ()} - {
        colour for _, colour in without.getcolors(2**20) or ()
    }
    assert (230, 25, 75) in colours
    options = {"model": testing.ENCODER, "trust": True, "device": "cpu", "decode_workers": 1, "fit": "stretch"}
    small = api.inspect(str(photos), regions=[str(photos.parent / "boxes.csv")], **options)
    assert small.regions is not None
    assert small.regions.under_a_cell == 1
    assert json.dumps(dataclasses.asdict(small.regions))
