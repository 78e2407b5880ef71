"""Presets give the features that the tools themselves compute from the same weights; each is skipped without its tool.

timm's own code runs in `test_presets.py`. None of these tools is a dependency of genenc: CONTRIBUTING.md says how to
install them into an environment of their own.
"""

import importlib
import importlib.machinery
import json
import logging
import sys
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import timm
import torch
import torchvision.models as zoo
from PIL import Image
from torch import nn

import same_features
import tiny_sam
from genenc_core import api
from genenc_core.models.zoo import sam

CLOSE = 1e-5


@pytest.fixture
def photos(tmp_path: Path) -> list[Path]:
    return same_features.write_photos(tmp_path / "photos")


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    return tmp_path / "weights.pt"


def tool(module: str) -> Any:
    """Import a tool, or skip the test."""
    return pytest.importorskip(module, reason=f"{module} is not installed", exc_type=ImportError)


def check(ours: np.ndarray, theirs: np.ndarray | torch.Tensor, *, close: float = CLOSE) -> None:
    found = same_features.difference(ours, theirs)
    logging.getLogger(__name__).warning("difference %.2g", found)  # shown by --log-cli-level=WARNING
    assert found <= close


@pytest.fixture
def thingsvision(monkeypatch: pytest.MonkeyPatch) -> Any:
    """thingsvision without its Keras half: TensorFlow and torch of today crash in one process."""
    for name in ("tensorflow", "tensorflow.keras", "tensorflow.keras.applications", "tensorflow.keras.layers"):
        stub = mock.MagicMock(__spec__=importlib.machinery.ModuleSpec(name, None))
        monkeypatch.setitem(sys.modules, name, stub)
    # thingsvision 2.7.3 is written for NumPy 1.
    monkeypatch.setattr(np, "AxisError", np.exceptions.AxisError, raising=False)
    return tool("thingsvision")


def things(thingsvision: Any, folder: Path, layer: str, **extractor: Any) -> np.ndarray:
    """Return the features of a layer by thingsvision, as its documentation shows it."""
    data = importlib.import_module("thingsvision.utils.data")
    made = thingsvision.get_extractor(device="cpu", pretrained=False, **extractor)
    dataset = data.ImageDataset(
        root=str(folder), out_path=str(folder.parent / "out"), backend="pt", transforms=made.get_transformations()
    )
    batches = data.DataLoader(dataset=dataset, batch_size=2, backend="pt")
    return np.asarray(made.extract_features(batches=batches, module_name=layer, flatten_acts=True))


@pytest.mark.parametrize("layer", ["avgpool", "layer3.1.conv2"])
def test_thingsvision_and_torchvision(layer: str, thingsvision: Any, photos: list[Path], weights: Path) -> None:
    same_features.seeded(zoo.resnet18, weights)
    expected = things(
        thingsvision, photos[0].parent, layer, model_name="resnet18", source="torchvision", model_path=str(weights)
    )
    found = api.encode(photos, "resnet18", weights=str(weights), like="thingsvision", layers=layer)["features"]
    check(found, expected)


def test_thingsvision_and_class_tokens(thingsvision: Any, photos: list[Path], weights: Path) -> None:
    same_features.seeded(lambda: timm.create_model("vit_tiny_patch16_224"), weights)
    expected = things(
        thingsvision,
        photos[0].parent,
        "blocks.6",
        model_name="vit_tiny_patch16_224",
        source="timm",
        model_path=str(weights),
        model_parameters={"token_extraction": "cls_token"},
    )
    found = api.encode(
        photos,
        "timm/vit_tiny_patch16_224",
        weights=str(weights),
        like="thingsvision",
        layers="blocks.6",
        products=["features=blocks.6:cls_token"],
    )["features"]
    check(found, expected)


@pytest.mark.parametrize("sizes", [((250, 230), (250, 230)), ((180, 200), (180, 200))])
def test_fiftyone(sizes: tuple[tuple[int, int], ...], tmp_path: Path, weights: Path) -> None:
    """Of a zoo model by its entry in the zoo's manifest, but for the weights; small images are enlarged to 224."""
    torch_models = tool("fiftyone.utils.torch")
    paths = same_features.write_photos(tmp_path / "photos", sizes)
    model = same_features.seeded(zoo.resnet18, weights)
    manifest = Path(torch_models.__file__).parents[1] / "zoo/models/manifest-torch.json"
    entries = {entry["base_name"]: entry for entry in json.loads(manifest.read_text())["models"]}
    stated = entries["resnet18-imagenet-torch"]["default_deployment_config_dict"]["config"]
    kept = {name: value for name, value in stated.items() if name.startswith(("image_", "embeddings_"))}
    config = torch_models.TorchImageModelConfig({"model": model, "device": "cpu", **kept})
    with torch_models.TorchImageModel(config) as running:
        load = running.build_get_item()
        running.preprocess = False
        expected = np.stack([running.embed(load({"filepath": str(path)})) for path in paths])
    width, height = sizes[0]
    enlarged = max(1, 224 / min(width, height))
    size = f"{round(height * enlarged)}x{round(width * enlarged)}"
    found = api.encode(paths, "resnet18", weights=str(weights), like="fiftyone", image_size=size)["features"]
    check(found, expected)


def test_clip_retrieval(photos: list[Path], weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its reader and mapper, around open_clip's model and transform, as `all_clip` returns them."""
    mapper, reader = tool("clip_retrieval.clip_inference.mapper"), tool("clip_retrieval.clip_inference.reader")
    wrapper = tool("all_clip.open_clip").OpenClipWrapper
    open_clip = tool("open_clip")
    vision = open_clip.CLIPVisionCfg(layers=10, width=256, head_width=64, patch_size=16, image_size=224)
    words = open_clip.CLIPTextCfg(context_length=8, vocab_size=64, width=64, heads=1, layers=1)
    model = same_features.seeded(lambda: open_clip.CLIP(512, vision, words), weights)
    transform = open_clip.image_transform(
        224, is_train=False, mean=open_clip.OPENAI_DATASET_MEAN, std=open_clip.OPENAI_DATASET_STD
    )
    monkeypatch.setattr(mapper, "load_clip", lambda **_: (wrapper(model, "cpu"), transform, None))
    settings = {"use_mclip": False, "clip_model": "", "use_jit": False, "mclip_model": ""}
    work = mapper.ClipMapper(enable_image=True, enable_text=False, enable_metadata=False, **settings)
    batches = reader.FilesReader(lambda keys: keys, transform, None, photos[0].parent, 2, 0, enable_text=False)
    done = [work(batch) for batch in batches]
    names = [Path(name).name for each in done for name in each["image_filename"]]
    assert names == [path.name for path in photos]
    expected = np.concatenate([each["image_embs"] for each in done])
    assert expected.dtype == np.float16
    name = "vit_xsmall_patch16_clip_224.tinyclip_yfcc15m"
    found = api.encode(photos, name, weights=str(weights), like="clip-retrieval")["features"]
    # float16 rounds either way what is within 1e-5: a step at 0.06 is 3e-5.
    assert np.abs(found - expected.astype(np.float32)).max() <= 2**-14
    assert (found == expected.astype(np.float32)).mean() > 0.98
    with torch.inference_mode():
        batch = torch.stack([transform(Image.open(path)) for path in photos])
        exact = nn.functional.normalize(model.encode_image(batch), dim=-1)
    options = {"weights": str(weights), "like": "clip-retrieval", "products": ["features=l2_normalize"]}
    check(api.encode(photos, name, **options)["features"], exact)


def test_sam(photos: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """SamPredictor at 1024 pixels, with a narrow encoder: the model of full width takes a minute."""
    modeling, predicting = tool("segment_anything.modeling"), tool("segment_anything.predictor")
    monkeypatch.setattr(sam, "construct", tiny_sam.construct)
    encoder = modeling.ImageEncoderViT(
        img_size=1024,
        embed_dim=32,
        depth=4,
        num_heads=tiny_sam.HEADS,
        norm_layer=lambda width: nn.LayerNorm(width, eps=1e-6),
        out_chans=256,
        qkv_bias=True,
        use_rel_pos=True,
        window_size=14,
        global_attn_indexes=tiny_sam.GLOBAL_BLOCKS,
    )
    state = tiny_sam.random_state(tiny_sam.construct("", None, name=""), seed=3)
    encoder.load_state_dict(state)
    torch.save({f"image_encoder.{name}": tensor for name, tensor in state.items()}, tmp_path / "sam_vit_b_01ec64.pth")
    whole = modeling.Sam(encoder, nn.Identity(), nn.Identity()).eval()
    predictor, expected = predicting.SamPredictor(whole), []
    for path in photos:
        predictor.set_image(np.asarray(Image.open(path).convert("RGB")))
        expected.append(predictor.get_image_embedding())
    given = {"weights": str(tmp_path / "sam_vit_b_01ec64.pth"), "like": "sam"}
    found = api.encode(photos, "samvit_base", **given)["features"]
    assert found.shape[1:] == (256, 64, 64)
    check(found, torch.cat(expected))


@pytest.mark.parametrize("name", ["resnet18", "vit_tiny_patch16_224", "convnext_atto"])
def test_terratorch(name: str, tmp_path: Path, weights: Path) -> None:
    """Its task that generates embeddings, behind the normalisation of its data modules."""
    generation = tool("terratorch.tasks.embedding_generation")
    normalize = importlib.import_module("terratorch.datamodules.utils").Normalize([120.0, 110, 100], [60.0, 50, 40])
    paths = same_features.write_photos(tmp_path / "photos", ((224, 224), (224, 224)))
    model = same_features.seeded(lambda: timm.create_model(name), weights)
    arguments = {"backbone": f"timm_{name}", "backbone_pretrained": False}
    task = generation.EmbeddingGenerationTask(arguments, output_dir=str(tmp_path / "out"), layers=[-1])
    task.configure_models()
    task.eval()
    own = task.model.encoder.state_dict()
    state = {key: value for key, value in renamed(model.state_dict(), own).items() if key in own}
    assert state.keys() == own.keys()
    task.model.encoder.load_state_dict(state)
    pixels = np.stack([np.asarray(Image.open(path).convert("RGB")) for path in paths])
    images = torch.from_numpy(pixels.astype(np.float32)).permute(0, 3, 1, 2)
    with torch.inference_mode():
        made = task(normalize({"image": images})["image"])
    expected = made[-1] if isinstance(made, list) else made
    stated = {"image_size": "224", "mean": "120,110,100", "std": "60,50,40"}
    found = api.encode(paths, f"timm/{name}", weights=str(weights), like="terratorch", **stated)["features"]
    check(found, expected)


def renamed(state: dict[str, torch.Tensor], own: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return a state dict under the names that timm gives it with `features_only`."""
    return {
        next((key for key in own if key in (name, f"model.{name}", name.replace(".", "_", 1))), name): value
        for name, value in state.items()
    }
