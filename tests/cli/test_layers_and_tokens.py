"""Inner layers and class tokens from the command line: stored values equal plain torch, from models and from specs."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import torchvision
import zarr
from PIL import Image
from torch.nn import functional
from torchvision.transforms.v2 import functional as transforms

MEAN, STD = torch.tensor((0.485, 0.456, 0.406)).view(3, 1, 1), torch.tensor((0.229, 0.224, 0.225)).view(3, 1, 1)
Genenc = Callable[..., Any]


def stored(root: Path) -> zarr.Group:
    return zarr.open_group(root / "features.zarr", mode="r")


def stretched(folder: Path, side: int, interpolation: transforms.InterpolationMode) -> torch.Tensor:
    """Return a folder's images as float [N, 3, side, side] in [0, 1], without any of genenc's code."""
    images = [torch.from_numpy(np.array(Image.open(path))).permute(2, 0, 1) for path in sorted(folder.iterdir())]
    return torch.stack(
        [transforms.resize(image, [side, side], interpolation=interpolation, antialias=True) for image in images]
    ).div(255)


def close(found: object, expected: torch.Tensor) -> None:
    wanted = expected.numpy()
    np.testing.assert_allclose(np.asarray(found), wanted, rtol=1e-5, atol=1e-5 * np.abs(wanted).max())


@pytest.mark.slow
@torch.inference_mode()
def test_two_layers_of_a_resnet_and_a_resume_from_the_folder_alone(
    genenc: Genenc, photos: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    said = genenc(
        "extract", photos, "--model", "resnet18", "--layers", "layer2,layer4", "--weights", "random:0", "--out", run,
        "--image-size", "32", "--fit", "stretch", "--maps", "--shard-rows", "3", "--plain", "--device", "cpu",
    )  # fmt: skip
    assert said.code == 0, said.err
    torch.manual_seed(0)
    model = torchvision.models.resnet18(weights=None).eval()
    images = (stretched(photos, 32, transforms.InterpolationMode.BILINEAR) - MEAN) / STD
    second = model.layer2(model.layer1(model.maxpool(model.relu(model.bn1(model.conv1(images))))))
    fourth = model.layer4(model.layer3(second))
    found = stored(run)
    close(found["features_layer2"][:], second.mean((2, 3)))
    close(found["features_layer4"][:], fourth.mean((2, 3)))
    np.testing.assert_allclose(found["maps_layer2"][:], second.numpy(), rtol=1e-3, atol=1e-3)
    # Without a commit record a shard is pending again; the folder alone says which layers it holds.
    before = found["features_layer2"][:]
    moved = tmp_path / "elsewhere"
    shutil.move(run, moved)
    (commit,) = (moved / "_txn" / "commits").glob("*0001.json")
    commit.unlink()
    resumed = genenc("resume", moved, "--plain")
    assert resumed.code == 0, resumed.err
    assert commit.exists()
    assert np.array_equal(stored(moved)["features_layer2"][:], before)
    refused = genenc(
        "extract", photos, "--model", "resnet18", "--layers", "layer4,layer2", "--weights", "random:0", "--out", moved,
        "--image-size", "32", "--fit", "stretch", "--maps", "--shard-rows", "3", "--plain", "--device", "cpu",
    )  # fmt: skip
    assert refused.code == 2
    assert "layers" in refused.err


@pytest.mark.slow
@torch.inference_mode()
@pytest.mark.parametrize("layers", [None, "-1,-4"])
def test_a_vits_tokens_stored_from_the_model_and_from_its_exported_spec(
    genenc: Genenc, photos: Path, tmp_path: Path, layers: str | None
) -> None:
    model = ["--model", "timm/vit_tiny_patch16_224", "--weights", "random:1", "--image-size", "32"]
    chosen = [] if layers is None else ["--layers", layers]
    wanted = ["--product", "v=cls_token", "--product", "n=vit_mean+l2_normalize", "--product", "g=gem(4)@float16"]
    if layers:
        wanted += ["--product", "deep=blocks.8:cls_token", "--product", "raw=blocks.8.cls:none"]
    rest = [*wanted, "--fit", "stretch", "--plain", "--device", "cpu"]
    said = genenc("extract", photos, *model, *chosen, *rest, "--out", tmp_path / "eager")
    assert said.code == 0, said.err

    torch.manual_seed(1)
    plain = timm.create_model("vit_tiny_patch16_224", num_classes=0, img_size=32).eval()
    seen: dict[str, torch.Tensor] = {}
    for index in (8, 11):
        plain.blocks[index].register_forward_hook(lambda *hook, index=index: seen.__setitem__(index, hook[2]))
    images = (stretched(photos, 32, transforms.InterpolationMode.BICUBIC) - 0.5) / 0.5
    last = plain.forward_features(images)
    tokens = seen[11] if layers else last
    found = stored(tmp_path / "eager")
    close(found["v"][:], tokens[:, 0])
    close(found["n"][:], functional.normalize(tokens[:, 1:].mean(1), dim=1))
    powers = tokens[:, 1:].clamp(min=1e-6).pow(4).mean(1).pow(1 / 4)
    np.testing.assert_allclose(found["g"][:], powers.numpy(), rtol=2e-3, atol=2e-3)
    if layers:
        close(found["deep"][:], seen[8][:, 0])
        assert np.array_equal(found["deep"][:], found["raw"][:])

    exported = genenc(
        "export", *model[1:2], *model[2:], *chosen, "--out", tmp_path / "model", "--formats", "torchscript"
    )
    assert exported.code == 0, exported.err
    (spec,) = (tmp_path / "model").glob("*_spec.json")
    said = genenc("extract", photos, "--model", spec, *rest, "--out", tmp_path / "script")
    assert said.code == 0, said.err
    script = stored(tmp_path / "script")
    for name in ("v", "n"):
        close(script[name][:], torch.from_numpy(found[name][:]))


@pytest.mark.slow
def test_a_token_slot_is_stored_with_its_own_axes(genenc: Genenc, photos: Path, tmp_path: Path) -> None:
    said = genenc(
        "extract", photos, "--model", "timm/vit_small_patch14_reg4_dinov2", "--weights", "random:0", "--image-size",
        "28", "--out", tmp_path / "run", "--product", "r=register:none",
        "--product", "m=register:vit_max(has_cls=false)", "--limit", "2", "--plain", "--device", "cpu",
    )  # fmt: skip
    assert said.code == 0, said.err
    found = stored(tmp_path / "run")
    assert found["r"].shape == (2, 4, 384)
    assert found["r"].metadata.dimension_names == ("image", "r_token", "r_channel")
    assert np.array_equal(found["m"][:], found["r"][:].max(1))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--layers", "layer9"], "closest names are: layer4"),
        (["--layers", "4"], "stages are -4 to 3"),
        (["--layers", "relu,layer1.0.relu"], "is called 2 times"),
        (["--product", "v=cls_token"], "no class token for 'features'"),
        (["--layers", "-1", "--product", "v=layer3:none"], "no output slot 'layer3'; it has layer4"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_made(
    genenc: Genenc, photos: Path, tmp_path: Path, arguments: list[str], words: str
) -> None:
    said = genenc(
        "extract", photos, "--model", "resnet18", "--weights", "random:0", "--image-size", "32", "--out",
        tmp_path / "run", "--plain", "--device", "cpu", *arguments,
    )  # fmt: skip
    assert said.code == 2
    assert words in " ".join(said.err.split())
    assert not (tmp_path / "run").exists()
