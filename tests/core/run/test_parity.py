"""The sharded run equals one straight pass with plain torch, for every source of models and every fit."""

import csv
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import torchvision
import zarr
from PIL import Image
from torch import nn
from torch.nn import functional
from torchvision.transforms.v2 import functional as transforms

import pictures
from genenc_core.run import driver

Extract = Callable[..., driver.Result]

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def arrays(root: Path) -> zarr.Group:
    return zarr.open_group(root / "features.zarr", mode="r")


def pixels(path: Path) -> torch.Tensor:
    """Return an image file as uint8 [3, H, W], without any of genenc's code."""
    return torch.from_numpy(np.array(Image.open(path).convert("RGB"))).permute(2, 0, 1)


def cropped(path: Path, *, resize: int, size: int) -> torch.Tensor:
    """Return torchvision's own evaluation transform, as uint8."""
    resized = transforms.resize(pixels(path), [resize], antialias=True)
    return transforms.center_crop(resized, [size, size])


def straight(model: nn.Module, images: list[torch.Tensor], *, rows: int, batch: int) -> torch.Tensor:
    """Return the plain loop's output, batches never crossing a shard of `rows`."""
    found = []
    for start in range(0, len(images), rows):
        shard = images[start : start + rows]
        for at in range(0, len(shard), batch):
            block = torch.stack(shard[at : at + batch]).float() / 255
            normal = (block - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
            found.append(model(normal))
    return torch.cat(found)


@pytest.mark.slow
@torch.inference_mode()
def test_resnet18_equals_the_plain_loop_bit_for_bit(extract: Extract, photos: Path, tmp_path: Path) -> None:
    """torchvision eager, the model's own crop, several shards, short last batches."""
    extract(model="resnet18", weights="random:3", image_size="64", dtype="float32", maps=True)
    torch.manual_seed(3)
    model = torchvision.models.resnet18(weights=None).eval()
    trunk = nn.Sequential(*list(model.children())[:-2])
    resize = round(256 * 64 / 224)
    images = [cropped(path, resize=resize, size=64) for path in sorted(photos.iterdir())]
    maps = straight(trunk, images, rows=4, batch=3)
    stored = arrays(tmp_path / "run")
    assert len(images) == 11
    assert maps.shape == (11, 512, 2, 2)
    assert np.array_equal(stored["features"][:], functional.adaptive_avg_pool2d(maps, 1).flatten(1).numpy())
    assert np.array_equal(stored["maps"][:], maps.half().numpy())


@pytest.mark.slow
@torch.inference_mode()
def test_timm_vit_equals_its_patch_tokens(extract: Extract, photos: Path, tmp_path: Path) -> None:
    """timm eager with tokens: the class token is not part of the map."""
    extract(model="timm/vit_tiny_patch16_224", weights="random:1", fit="stretch", image_size="32")
    torch.manual_seed(1)
    model = timm.create_model("vit_tiny_patch16_224", num_classes=0, img_size=32).eval()
    images = [
        transforms.resize(pixels(path), [32, 32], interpolation=transforms.InterpolationMode.BICUBIC, antialias=True)
        for path in sorted(photos.iterdir())
    ]
    block = [(image.float() / 255 - 0.5) / 0.5 for image in images]
    tokens = torch.cat([model.forward_features(image[None])[:, 1:] for image in block])
    stored = arrays(tmp_path / "run")["features"][:]
    np.testing.assert_allclose(stored, tokens.mean(1).numpy(), rtol=1e-5, atol=1e-5 * float(tokens.abs().max()))


@pytest.mark.slow
@torch.inference_mode()
def test_exported_spec_equals_eager_model(extract: Extract, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """TorchScript through its spec, all paths relative, other batch size: within 1e-5 relative."""
    monkeypatch.chdir(tmp_path)
    from genenc_core.run import model_export

    given = model_export.ExportParameters(model="tiny_models:conv", out="model", weights="random:0", image_size="32")
    (done,) = model_export.export(given)
    extract(out="eager")
    own = {"model": str(done.spec_path), "weights": None, "image_size": None}
    extract(out="script", batch_size=2, shard_rows=6, **own)
    eager, script = (arrays(tmp_path / name)["features"][:] for name in ("eager", "script"))
    np.testing.assert_allclose(script, eager, rtol=1e-5, atol=1e-5 * np.abs(eager).max())
    assert np.isfinite(eager).all()


LOOKED_AT: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "nearest": lambda cell: np.floor(cell + 0.5),
    "bilinear": lambda cell: cell - 0.5,
    "bilinear_corners": lambda cell: cell,
    "cell": np.floor,
}
"""Where each rule looks, in cells."""


@pytest.mark.slow
@pytest.mark.parametrize("fit", ["stretch", "crop", "pad"])
@pytest.mark.parametrize("size", ["64", "48x96"])
def test_points_follow_the_pixels(extract: Extract, tmp_path: Path, fit: str, size: str) -> None:
    """Every image is a ramp whose colour is its position; the vector found at a point is where it looked."""
    folder = tmp_path / "ramps"
    folder.mkdir()
    sizes = {"wide.png": (320, 160), "tall.png": (150, 300), "square.png": (240, 240)}
    rows = []
    for name, (width, height) in sizes.items():
        Image.fromarray(pictures.ramp(width, height)).save(folder / name)
        rows += [(name, "centre", width * 0.5, height * 0.5), (name, "off", width * 0.4, height * 0.62)]
        rows += [(name, "outside", width * 1.01, height * 0.5)]
    with (tmp_path / "points.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("image", "point", "x", "y"), *rows])
    extract(
        images=str(folder),
        model="tiny_models:colours",
        points=str(tmp_path / "points.csv"),
        image_size=size,
        fit=fit,
        products=tuple(f"{rule}=spatial_point({rule})" for rule in LOOKED_AT),
        shard_rows=2,
    )
    stored = arrays(tmp_path / "run")
    names = list(stored["image_id"][:])
    height, width = (int(side) for side in (size.split("x") * 2)[:2])
    for name, point, x, y in rows:
        row, column = names.index(name), list(stored["point"][:]).index(point)
        outside = point == "outside"
        assert stored["point_status"][row, column] == (5 if outside else 1)
        scale, offset = stored["image_affine"][row][:2], stored["image_affine"][row][2:]
        for rule, place in LOOKED_AT.items():
            found = stored[rule][row, column]
            if outside:
                assert np.isnan(found).all()
                continue
            looked_at = np.clip(place((np.array([x, y]) * scale + offset) / 8), 0, (width // 8 - 1, height // 8 - 1))
            # A cell's colour is that of its centre; back from model pixels to the source, as a share of its size.
            expected = ((looked_at + 0.5) * 8 - offset) / scale / sizes[name]
            np.testing.assert_allclose(found[:2], expected, atol=1.5 / 255)
