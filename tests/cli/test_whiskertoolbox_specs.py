"""Specs as WhiskerToolbox writes them, through `genenc extract --trust`; and ours by its rules."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
import zarr
from PIL import Image
from torch import nn
from torchvision.transforms.v2 import functional as transforms

import pictures
from genenc_core import spec

CONVNEXT = {
    "model_id": "convnext_tiny_encoder",
    "display_name": "ConvNeXt-Tiny Encoder",
    "description": "torchvision features without pooling and classifier",
    "weights_path": "convnext_tiny_encoder.pt",
    "backend": "torchscript",
    "preferred_batch_size": 1,
    "batch_mode": {"dynamic": {"min": 1, "max": 32}},
    "inputs": [{"name": "image", "shape": [3, 224, 224], "recommended_encoder": "ImageEncoder"}],
    "outputs": [{"name": "features", "shape": [768, 7, 7], "recommended_decoder": "TensorToFeatureVector"}],
    "recommended_post_encoder": "global_avg_pool",
    "post_encoder": [{"module": "spatial_point", "interpolation": "bilinear"}],
}
# Their required keys and types; every other key may be absent, and unknown ones are not looked at.
REQUIRED: dict[str, Any] = {"model_id": str, "display_name": str, "inputs": list, "outputs": list}
SLOT = {"name": str, "shape": list}
VARIANT = {"path": str, "batch_size": int}


@pytest.fixture(scope="module")
def convnext(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, nn.Module]:
    """Their recipe: torchvision's `.features`, traced with one image, beside a spec that knows nothing of us."""
    folder = tmp_path_factory.mktemp("convnext")
    torch.manual_seed(0)
    model = torchvision.models.convnext_tiny(weights=None).features.eval()
    with torch.no_grad(), pytest.warns((FutureWarning, DeprecationWarning)):
        torch.jit.trace(model, torch.rand(1, 3, 224, 224)).save(folder / "convnext_tiny_encoder.pt")
    (folder / "convnext_tiny_encoder_spec.json").write_text(json.dumps(CONVNEXT))
    return folder / "convnext_tiny_encoder_spec.json", model


@pytest.mark.slow
def test_their_convnext_spec_runs_and_gives_their_numbers(
    genenc: Callable[..., Any], convnext: tuple[Path, nn.Module], tmp_path: Path
) -> None:
    """Stretched to the input, bilinear without antialias, [0, 1], no mean and std: what their ImageEncoder does."""
    path, model = convnext
    photos = pictures.write_folder(tmp_path / "photos", 3, sizes=((300, 200), (180, 260)))
    arguments = ("extract", photos, "--model", path, "--out", tmp_path / "run", "--device", "cpu", "--batch-size", 3)
    refused = genenc(*arguments)
    assert (refused.code, "--trust" in refused.err) == (2, True)
    assert not (tmp_path / "run").exists()
    said = genenc(*arguments, "--trust")
    assert said.code == 0
    assert said.err.startswith("warning: ")
    assert "does not declare whether it expects normalised images" in said.err
    found = zarr.open_group(tmp_path / "run" / "features.zarr", mode="r")["features"][:]
    assert found.shape == (3, 768)
    for row, image in zip(found, sorted(photos.iterdir()), strict=True):
        pixels = torch.from_numpy(np.array(Image.open(image).convert("RGB"))).permute(2, 0, 1)
        resized = transforms.resize(pixels, [224, 224], antialias=False).float() / 255
        with torch.inference_mode():
            expected = model(resized[None]).mean((2, 3))[0].numpy()
        np.testing.assert_allclose(row, expected, rtol=1e-3, atol=1e-3 * np.abs(expected).max())


def small(tmp_path: Path, **changes: object) -> Path:
    """Write one of their specs for a small traced network; return it."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 8, 8), nn.ReLU()).eval()
    with torch.no_grad(), pytest.warns((FutureWarning, DeprecationWarning)):
        torch.jit.trace(model, torch.rand(1, 3, 32, 32)).save(tmp_path / "weights.pt")
    own = {
        **CONVNEXT,
        "weights_path": "weights.pt",
        "inputs": [{"name": "image", "shape": [3, 32, 32]}],
        "outputs": [{"name": "features", "shape": [4, 4, 4]}],
        **changes,
    }
    path = tmp_path / "spec.json"
    path.write_text(json.dumps({key: value for key, value in own.items() if value is not None}))
    return path


@pytest.mark.parametrize(
    ("changes", "code", "words"),
    [
        ({}, 0, ""),
        ({"backend": None, "batch_mode": None, "max_batch_size": 4}, 0, ""),
        ({"backend": "JIT"}, 0, ""),
        ({"batch_mode": {"fixed": 3}}, 0, ""),
        ({"batch_mode": {"recurrent_only": True}}, 0, ""),
        ({"weights_variants": [{"path": "weights.pt", "batch_size": 2}]}, 0, ""),
        ({"their_next_field": 1}, 0, "their_next_field"),
        ({"backend": "aotinductor"}, 2, "not an AOTInductor file but a TorchScript file"),
        ({"backend": "executorch"}, 2, "ExecuTorch"),
        ({"outputs": [{"name": "features", "shape": [384, 4, 4]}]}, 2, "declares float32"),
        ({"model_id": ""}, 2, "model_id must not be empty"),
        ({"batch_mode": {"dynamic": {"min": 4, "max": 2}}}, 2, "batch_mode.dynamic.max must be >= min"),
        (
            {"inputs": [{"name": "image", "shape": [3, 32, 32]}, {"name": "memory", "shape": [4, 3, 32, 32]}]},
            2,
            "one input slot",
        ),
    ],
)
def test_their_specs_run_or_say_why_not(
    genenc: Callable[..., Any], photos: Path, tmp_path: Path, changes: dict[str, object], code: int, words: str
) -> None:
    path = small(tmp_path, **changes)
    arguments = ("--model", path, "--out", tmp_path / "run", "--device", "cpu", "--trust", "--plain")
    said = genenc("extract", photos, *arguments)
    assert said.code == code
    assert words in said.err
    assert (tmp_path / "run").exists() == (code == 0)


@pytest.mark.slow
@pytest.mark.parametrize(
    "options", [(), ("--variants", "1,2"), ("--dynamic-size",), ("--batch-min", "2", "--batch-max", "2")]
)
def test_our_specs_keep_their_rules(genenc: Callable[..., Any], tmp_path: Path, options: tuple[str, ...]) -> None:
    formats = "torchscript" if options else "torchscript,exported_program,onnx"
    model = ("tiny_models:two_maps", "--weights", "random:0", "--image-size", "32")
    assert genenc("export", *model, "--out", tmp_path, "--formats", formats, "--plain", *options).code == 0
    paths = sorted(tmp_path.glob("*_spec.json"))
    assert len(paths) == len(formats.split(","))
    for path in paths:
        written = json.loads(path.read_text())
        assert spec.load_spec(path).problems() == []
        assert all(isinstance(written[key], kind) for key, kind in REQUIRED.items())
        for slot in (*written["inputs"], *written["outputs"]):
            assert all(isinstance(slot[key], kind) for key, kind in SLOT.items())
            assert all(isinstance(size, int) and size > 0 for size in slot["shape"])
        for variant in written.get("weights_variants", ()):
            assert all(isinstance(variant[key], kind) for key, kind in VARIANT.items())
        assert set(written["batch_mode"]) in ({"fixed"}, {"dynamic"})
        assert set(written["batch_mode"].get("dynamic", {"min": 1, "max": 1})) == {"min", "max"}
        # Their loader takes this one file, relative to the spec, with the batch that batch_mode tells.
        assert (tmp_path / written["weights_path"]).is_file()
        assert set(written) <= {*spec.RuntimeModelSpec.model_fields}
