"""Tiled runs: stored maps and points equal a plain computation, survive interruption, and say what they are."""

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import zarr
from PIL import Image
from torch.nn import functional
from torchvision.transforms.v2 import functional as transforms

import pictures
import tiny_models
from genenc_core import errors
from genenc_core.encoding import cancellation, products, tile_plan
from genenc_core.run import driver, map_cells, model_export, status, store_plan
from genenc_core.run.folder import RunFolder
from genenc_core.spec import SlotSpec

Extract = Callable[..., driver.Result]
TILES: dict[str, object] = {"image_size": "32", "canvas": "64x96", "tile_overlap": 16}


def objects(root: Path) -> dict[str, bytes]:
    store = root / "features.zarr"
    return {str(path.relative_to(store)): path.read_bytes() for path in sorted(store.rglob("*")) if path.is_file()}


def stored(root: Path) -> zarr.Group:
    return zarr.open_group(root / "features.zarr", mode="r")


def pixels(path: Path, size: tuple[int, int]) -> torch.Tensor:
    """Return an image file stretched to `size`, float32 [3, H, W] in [0, 1], without any of genenc's code."""
    image = torch.from_numpy(np.array(Image.open(path).convert("RGB"))).permute(2, 0, 1)
    return transforms.resize(image, list(size), antialias=True).float() / 255


def plain_stitch(model: torch.nn.Module, image: torch.Tensor, *, tile: int, step: int, stride: int) -> torch.Tensor:
    """Return the map of one canvas `[3, H, W]`: a plain loop over tiles, sin^2 windows, weights divided out."""
    height, width = image.shape[1:]
    tops, lefts = ([*range(0, side - tile, step), side - tile] for side in (height, width))
    cells = tile // stride
    total = torch.zeros(6, height // stride, width // stride, dtype=torch.float64)
    weight = torch.zeros(height // stride, width // stride, dtype=torch.float64)

    def window(offsets: list[int], at: int) -> torch.Tensor:
        ramp = torch.ones(cells, dtype=torch.float64)
        for neighbour, flip in ((at - 1, False), (at + 1, True)):
            if 0 <= neighbour < len(offsets):
                shared = (tile - abs(offsets[at] - offsets[neighbour])) // stride
                rise = torch.sin(torch.pi / 2 * (torch.arange(shared) + 0.5) / shared) ** 2
                side = slice(cells - shared, cells) if flip else slice(0, shared)
                ramp[side] *= rise.flip(0) if flip else rise
        return ramp

    for row, top in enumerate(tops):
        for column, left in enumerate(lefts):
            found = model(image[None, :, top : top + tile, left : left + tile])[0]
            counts = window(tops, row)[:, None] * window(lefts, column)[None]
            y, x = slice(top // stride, top // stride + cells), slice(left // stride, left // stride + cells)
            total[:, y, x] += found * counts
            weight[y, x] += counts
    return (total / weight).float()


@pytest.mark.slow
@torch.inference_mode()
def test_a_tiled_run_stores_what_a_plain_loop_computes(extract: Extract, photos: Path, tmp_path: Path) -> None:
    """Maps, pooled vectors and points, several shards, tiles of several images in one batch."""
    names = sorted(path.name for path in photos.iterdir())
    with (tmp_path / "points.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("image", "point", "x", "y"), *((name, "nose", 31.0, 22.5) for name in names)])
    wanted = ("v=global_avg_pool", "p=spatial_point(bilinear_corners)", "m=none@float32")
    extract(**TILES, products=wanted, points=str(tmp_path / "points.csv"), batch_size=7, fit="stretch")
    torch.manual_seed(0)
    model = tiny_models.conv().eval()
    images = [pixels(photos / name, (64, 96)) for name in names]
    maps = torch.stack([plain_stitch(model, image, tile=32, step=16, stride=8) for image in images])
    found = stored(tmp_path / "run")
    assert maps.shape == found["m"].shape == (11, 6, 8, 12)
    np.testing.assert_allclose(found["m"][:], maps, atol=1e-6)
    np.testing.assert_allclose(found["v"][:], maps.mean((2, 3)), atol=1e-6)
    for row, name in enumerate(names):
        width, height = Image.open(photos / name).size
        x, y = 31.0 / width * 12, 22.5 / height * 8
        x0, y0 = int(x), int(y)
        corners = maps[row][:, y0 : y0 + 2, x0 : x0 + 2]
        expected = functional.interpolate(corners[None], size=(2, 2))[0]
        top = expected[:, 0, 0] * (1 - x + x0) + expected[:, 0, 1] * (x - x0)
        bottom = expected[:, 1, 0] * (1 - x + x0) + expected[:, 1, 1] * (x - x0)
        np.testing.assert_allclose(found["p"][row, 0], top * (1 - y + y0) + bottom * (y - y0), atol=1e-6)
    sizes = RunFolder(tmp_path / "run").store.record(0).details["batch_sizes"]
    assert sizes == {"7": 8, "3": 1, "1": 1}  # 15 tiles an image: 45 of three images, then 15 of the shard's last


@pytest.mark.slow
def test_a_run_without_overlap_of_one_tile_equals_the_untiled_run(extract: Extract, tmp_path: Path) -> None:
    extract(out=str(tmp_path / "plain"), maps=True)
    extract(out=str(tmp_path / "tiled"), maps=True, canvas="32", tile_overlap=0)
    for name in ("features", "maps"):
        assert np.array_equal(stored(tmp_path / "tiled")[name][:], stored(tmp_path / "plain")[name][:])


@pytest.mark.slow
def test_interrupted_and_resumed_gives_the_same_bytes(extract: Extract, tmp_path: Path) -> None:
    extract(**TILES, maps=True, out=str(tmp_path / "whole"))
    watch = cancellation.Control()
    watch.on_rows = lambda _done, _failed: watch.stop()
    with cancellation.use(watch), pytest.raises(errors.Stopped):
        extract(**TILES, maps=True)
    assert not status.run_status(RunFolder(tmp_path / "run")).complete
    moved = (tmp_path / "run").rename(tmp_path / "moved")
    assert driver.resume(RunFolder(moved), "pending").status.complete
    assert objects(moved) == objects(tmp_path / "whole")
    assert status.verify_place(moved, content=True).ok


@pytest.mark.slow
@pytest.mark.parametrize("fit", ["stretch", "crop", "pad"])
def test_points_follow_the_pixels_of_the_canvas(extract: Extract, tmp_path: Path, fit: str) -> None:
    """Every image is a ramp whose colour is its position; the vector found at a point is where it looked."""
    folder = tmp_path / "ramps"
    folder.mkdir()
    sizes = {"wide.png": (320, 160), "tall.png": (150, 300)}
    for name, (width, height) in sizes.items():
        Image.fromarray(pictures.ramp(width, height)).save(folder / name)
    rows = [(name, "off", width * 0.41, height * 0.57) for name, (width, height) in sizes.items()]
    with (tmp_path / "points.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("image", "point", "x", "y"), *rows])
    extract(
        images=str(folder),
        model="tiny_models:colours",
        points=str(tmp_path / "points.csv"),
        fit=fit,
        products=("probes=spatial_point(cell)",),
        **{**TILES, "canvas": "96x128"},
    )
    found = stored(tmp_path / "run")
    names = list(found["image_id"][:])
    for name, _, x, y in rows:
        row = names.index(name)
        scale, offset = found["image_affine"][row][:2], found["image_affine"][row][2:]
        looked_at = np.floor((np.array([x, y]) * scale + offset) / 8)
        expected = ((looked_at + 0.5) * 8 - offset) / scale / sizes[name]
        np.testing.assert_allclose(found["probes"][row, 0, :2], expected, atol=1.5 / 255)


@pytest.mark.slow
@pytest.mark.parametrize("batches", [{"batch_min": 1, "batch_max": 8}, {"batch_min": 4, "batch_max": 4}])
def test_artifact_is_tiled_at_its_own_size(extract: Extract, tmp_path: Path, batches: dict[str, int]) -> None:
    """TorchScript through its spec, also one of a single batch size; the same maps as eager."""
    given = model_export.ExportParameters(
        model="tiny_models:conv", out=str(tmp_path / "model"), weights="random:0", image_size="32", **batches
    )
    (done,) = model_export.export(given)
    extract(out=str(tmp_path / "eager"), maps=True, **TILES)
    own = {"model": str(done.spec_path), "weights": None, "image_size": None, "batch_size": 4}
    extract(out=str(tmp_path / "script"), maps=True, **{**TILES, **own})
    for name, limit in (("features", 1e-6), ("maps", 1e-3)):
        eager, script = (stored(tmp_path / run)[name][:] for run in ("eager", "script"))
        np.testing.assert_allclose(script, eager, atol=limit)


@pytest.mark.slow
def test_a_model_of_fixed_size_with_attention_is_tiled(extract: Extract, photos: Path, tmp_path: Path) -> None:
    """A ViT at its one size: cells that one tile alone covers are that tile's own tokens."""
    extract(
        model="timm/vit_tiny_patch16_224",
        weights="random:1",
        image_size="32",
        fit="stretch",
        canvas="64",
        tile_overlap=0,
        products=("m=none@float32",),
        limit=2,
    )
    import timm

    torch.manual_seed(1)
    model = timm.create_model("vit_tiny_patch16_224", num_classes=0, img_size=32).eval()
    first = sorted(photos.iterdir())[0]
    image = torch.from_numpy(np.array(Image.open(first).convert("RGB"))).permute(2, 0, 1)
    bicubic = transforms.InterpolationMode.BICUBIC
    canvas = (transforms.resize(image, [64, 64], interpolation=bicubic, antialias=True).float() / 255 - 0.5) / 0.5
    found = stored(tmp_path / "run")["m"][0]
    for top in (0, 32):
        for left in (0, 32):
            with torch.inference_mode():
                tokens = model.forward_features(canvas[None, :, top : top + 32, left : left + 32])[0, 1:]
            cells = found[:, top // 16 : top // 16 + 2, left // 16 : left // 16 + 2]
            np.testing.assert_allclose(cells.reshape(192, 4).T, tokens, atol=2e-5)


def test_batch_size_in_tiles_is_kept(extract: Extract, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    def find(run: Callable[[int], None], _bounds: object, *, image_budget: int, **_memory: object) -> int:
        run(3)
        asked.append(image_budget)
        return 5

    monkeypatch.setattr("genenc_core.encoding.batch_size.find_size", find)
    extract(**TILES, batch_size="auto", limit=4)
    assert asked == [4 * 15 // 50]
    assert json.loads((tmp_path / "run" / "provenance" / "batch_size-cpu.json").read_text())["size"] == 5
    assert RunFolder(tmp_path / "run").store.record(0).details["batch_sizes"] == {"5": 12}


@pytest.mark.slow
def test_other_tiles_are_another_run(extract: Extract) -> None:
    extract(**TILES)
    changes: tuple[tuple[dict[str, object], str], ...] = (
        ({"tile_overlap": 8}, r"tiles.overlap: 16 -> 8"),
        ({"tile_trim": 8}, r"tiles.trim: 0 -> 8"),
        ({"tile_blend": "none"}, r"tiles.blend: 'cosine' -> 'none'"),
        ({"canvas": "64x104"}, r"preprocessing.width: 96 -> 104"),
        ({"image_size": "40"}, r"tiles.size: \[32, 32\] -> \[40, 40\]"),
        ({"canvas": None, "tile_overlap": None}, r"tiles.overlap: 16 -> 'none'"),
    )
    for change, word in changes:
        with pytest.raises(errors.StoreError, match=word):
            extract(**{**TILES, **change})
    assert extract(**TILES, tile_trim=0, tile_blend="cosine").asked == 0


def test_a_run_without_tiles_means_what_it_meant(extract: Extract, tmp_path: Path) -> None:
    extract()
    assert "tiles" not in RunFolder(tmp_path / "run").identity
    assert RunFolder(tmp_path / "run").tiles is None


@pytest.mark.slow
def test_the_canvas_keeps_what_a_models_own_crop_would_cut(extract: Extract, tmp_path: Path) -> None:
    """torchvision resizes to 256 and cuts 224 out; of a canvas nothing but another aspect is cut."""
    extract(model="resnet18", image_size="64", canvas="96x128", limit=1)
    found = RunFolder(tmp_path / "run").preprocessing
    assert (found.fit, found.height, found.width, found.resize_short) == ("crop", 96, 128, None)


@pytest.mark.parametrize("product", ["m=none", "m=global_avg_pool(bars)", "m=global_avg_pool"])
def test_maps_that_do_not_fill_tiles_are_refused(extract: Extract, tmp_path: Path, product: str) -> None:
    """16 cells, 3 pixels apart, look as if they were 4 apart in 64 pixels."""
    with pytest.raises(errors.InputError, match=r"a cell every 3 x 3 .* the maps of tiles cannot be stitched"):
        extract(model="tiny_models:every_third", image_size="64", canvas="128", products=(product,), fit="stretch")
    assert not (tmp_path / "run").exists()


def test_old_run_of_unjoined_tiles_warns(extract: Extract, monkeypatch: pytest.MonkeyPatch) -> None:
    """An earlier version made it; the same command and `resume` answer alike."""
    given = {"model": "tiny_models:every_third", "image_size": "64", "canvas": "128", "fit": "stretch"}
    with monkeypatch.context() as earlier:
        # It neither compared the tiles nor recorded where the cells of a map lie that is only stored.
        earlier.setattr(map_cells, "find", lambda *_args: {})
        made = extract(**given, products=("m=none",))
    with pytest.warns(UserWarning, match=r"maps of this run are wrong at tile borders, extract again to another --out"):
        again = extract(**given, products=("m=none",))
    assert (again.asked, again.status) == (0, made.status)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"tile_overlap": 8}, r"--tile-overlap 8 has no effect without tiles: add --canvas"),
        ({"tile_trim": 8}, r"--tile-trim 8 has no effect"),
        ({"tile_blend": "average"}, r"--tile-blend average has no effect"),
        ({"canvas": "big"}, r"canvas 'big' is not of the form H or HxW"),
        ({"canvas": "0x64"}, r"canvas '0x64' is out of range"),
        ({"canvas": "24"}, r"canvas of 24 x 24 pixels is smaller than the model's input of 32 x 32"),
        ({"canvas": "65x96"}, r"--canvas 65x96 is not a multiple .* use 64x96 or 72x96"),
        ({"canvas": "64", "tile_overlap": 12}, r"--tile-overlap 12 is not a multiple .* use 8 or 16"),
        ({"canvas": "64", "tile_overlap": 16, "tile_trim": 16}, r"--tile-trim 16 is out of range"),
        ({"canvas": "64", "products": ("m=nothere:none",)}, r"no output slot 'nothere'; it has features"),
    ],
)
def test_untileable_options_are_refused(extract: Extract, tmp_path: Path, change: dict[str, object], said: str) -> None:
    with pytest.raises(errors.InputError, match=said):
        extract(**change)
    assert not (tmp_path / "run").exists()


def made_of(shape: tuple[int, ...]) -> list[products.Product]:
    wanted = [products.parse_product("maps=none@float16"), products.parse_product("v=global_avg_pool")]
    return list(products.build_products(wanted, [SlotSpec(name="features", shape=shape)], point_count=0))


@pytest.mark.parametrize(
    ("rows", "shape", "device", "tiles", "expected"),
    [
        (20, (256, 64, 96), "cpu", 1, 32),
        (20, (256, 64, 96), "cpu", 48, 3),  # an eighth of the images: they are work for seconds
        (10_000, (256, 64, 96), "cpu", 48, 5),
        (10_000, (256, 64, 96), "cuda:0", 48, 85),
        (10_000, (256, 64, 96), "cuda:0", 1, 160),  # 3.1 MB a row, 512 MiB a shard
        (10_000, (768, 256, 256), "cuda:0", 400, 5),  # 100 MB a row
        (10_000, (4096, 512, 512), "cpu", 400, 1),  # a row alone is above 512 MiB
        (10_000, (8, 2, 2), "cuda:0", 4, 1250),
    ],
)
def test_shards_of_maps_fit_memory(rows: int, shape: tuple[int, ...], device: str, tiles: int, expected: int) -> None:
    wanted = made_of(shape)
    chosen = store_plan.choose_shard_rows(rows, wanted, device=device, smallest_batch=1, tiles=tiles)
    assert chosen == expected if chosen < 256 else chosen == expected // 256 * 256


def test_a_fixed_batch_of_tiles_is_less_than_one_image(tmp_path: Path) -> None:
    """32 tiles at once are one image of 48, not 32 images of one shard."""
    assert store_plan.choose_shard_rows(20, made_of((6, 8, 8)), device="cpu", smallest_batch=32, tiles=48) == 3


@pytest.mark.slow
def test_twenty_rows_of_three_megabyte_maps_are_stored_and_read_back(extract: Extract, tmp_path: Path) -> None:
    folder: Any = pictures.write_folder(tmp_path / "many", 20, sizes=((96, 64),))
    result = extract(
        images=str(folder),
        model="tiny_models:wide",
        image_size="64",
        canvas="128x192",
        tile_overlap=16,
        maps=True,
        shard_rows=None,
        batch_size=16,
    )
    assert result.status.complete
    maps = stored(tmp_path / "run")["maps"]
    assert maps.shape == (20, 256, 64, 96)
    assert (maps.shards[0], maps.chunks[0]) == (3, 1)
    assert status.verify_place(tmp_path / "run", content=True).ok
    image = pixels(sorted(folder.iterdir())[19], (128, 192))
    expected = functional.avg_pool2d(image[None], 2)[0].repeat(86, 1, 1)[:256]
    np.testing.assert_allclose(maps[19], expected, atol=1e-3)


def test_geometry_and_identity_say_the_same(extract: Extract, tmp_path: Path) -> None:
    extract(**TILES, tile_trim=8, tile_blend="average")
    folder = RunFolder(tmp_path / "run")
    assert folder.tiles == tile_plan.TilePlan(canvas=(64, 96), tile=(32, 32), overlap=16, trim=8, blend="average")
    assert folder.identity["tiles"] == {"size": [32, 32], "overlap": 16, "trim": 8, "blend": "average"}
    attributes = dict(stored(tmp_path / "run").attrs)["genenc"]
    assert attributes["tiles"] == folder.identity["tiles"]
    assert "tiles of 32 x 32 pixels (overlap 16, trim 8, blend average)" in (tmp_path / "run" / "README.md").read_text()
