"""Presets give the features of other tools from the same weights: compared with transforms and hooks written anew.

`test_preset_tools.py` runs the tools themselves, where they are installed.
"""

from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import torchvision.models as zoo
from PIL import Image
from timm.data import create_transform, resolve_data_config
from torch import nn
from torchvision import transforms
from torchvision.transforms import functional

import sam_reference
import same_features
import tiny_sam
from genenc_core import api, errors
from genenc_core.models.zoo import sam
from genenc_core.run import presets
from genenc_core.run.parameters import ExtractParameters

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
NORMALISED = transforms.Compose([transforms.ToTensor(), transforms.Normalize(*IMAGENET)])
CLOSE = 1e-5


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return same_features.write_photos(tmp_path_factory.mktemp("photos"))


def encoded(paths: list[Path], model: str, weights: Path, like: str, **options: object) -> dict[str, np.ndarray]:
    given = {"weights": str(weights), "like": like, "batch_size": len(paths), "decode_workers": 1}
    return api.encode(paths, model, **{**given, **options})


def opened(paths: list[Path]) -> list[Image.Image]:
    return [Image.open(path).convert("RGB") for path in paths]


def outputs(model: nn.Module, batches: list[torch.Tensor], layer: str, *, given: bool = False) -> torch.Tensor:
    """Return what a layer returns, or is given."""
    seen: list[torch.Tensor] = []
    hook = model.get_submodule(layer).register_forward_hook(
        lambda _module, inputs, output: seen.append((inputs[0] if given else output).clone())
    )
    with hook, torch.inference_mode():
        for batch in batches:
            model(batch)
    return torch.cat(seen)


@pytest.mark.parametrize("name", ["test_resnet", "test_vit", "test_convnext"])
def test_timm(name: str, photos: list[Path], tmp_path: Path) -> None:
    """timm's own code, as its documentation shows it; a ConvNeXt normalises after its pooling."""
    model = same_features.seeded(lambda: timm.create_model(name), tmp_path / "weights.pt")
    transform = create_transform(**resolve_data_config({}, model=model))
    with torch.inference_mode():
        features = model.forward_features(torch.stack([transform(image) for image in opened(photos)]))
        expected = model.forward_head(features, pre_logits=True)
    found = encoded(photos, f"timm/{name}", tmp_path / "weights.pt", "timm")["features"]
    assert same_features.difference(found, expected) <= CLOSE


def test_thingsvision(photos: list[Path], tmp_path: Path) -> None:
    model = same_features.seeded(zoo.resnet18, tmp_path / "weights.pt")
    transform = transforms.Compose([transforms.Resize(256), transforms.CenterCrop(224), NORMALISED])
    batch = torch.stack([transform(image) for image in opened(photos)])
    layers = "layer4.0.conv1,avgpool"
    found = encoded(photos, "resnet18", tmp_path / "weights.pt", "thingsvision", layers=layers)
    for layer, name in (("layer4.0.conv1", "features_layer4_0_conv1"), ("avgpool", "features_avgpool")):
        assert same_features.difference(found[name], outputs(model, [batch], layer).flatten(1)) <= CLOSE


def test_labels_do_not_change_the_fit(photos: list[Path]) -> None:
    """With labels images are padded, unless they are to be prepared as a tool does."""
    points = np.full((2, 1, 2), 20.0)
    given = {"weights": "random:0", "image_size": "64", "batch_size": 2, "decode_workers": 1, "like": "timm"}
    found, labelled = (
        api.encode(photos[1:3], "timm/test_resnet", points=each, **given)["features"] for each in (None, points)
    )
    assert np.array_equal(found, labelled)


def test_fiftyone(tmp_path: Path) -> None:
    """Images of one size are not resized at all; without it the preset says what is missing."""
    paths = same_features.write_photos(tmp_path / "photos", ((250, 230), (250, 230)))
    model = same_features.seeded(zoo.resnet18, tmp_path / "weights.pt")
    batches = [NORMALISED(image)[None] for image in opened(paths)]
    found = encoded(paths, "resnet18", tmp_path / "weights.pt", "fiftyone", image_size="230x250")["features"]
    assert same_features.difference(found, outputs(model, batches, "fc", given=True)) <= CLOSE
    with pytest.raises(errors.InputError, match="--like fiftyone needs --image-size: it gives"):
        encoded(paths, "resnet18", tmp_path / "weights.pt", "fiftyone")


def test_clip_retrieval(photos: list[Path], tmp_path: Path) -> None:
    """The projection, length 1, float16; with the product given in float32, within 1e-5."""
    photos = photos[:2]
    name = "vit_xsmall_patch16_clip_224.tinyclip_yfcc15m"
    model = same_features.seeded(lambda: timm.create_model(name), tmp_path / "weights.pt")
    resize = transforms.Resize(224, interpolation=transforms.InterpolationMode.BICUBIC)
    normalize = transforms.Normalize((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
    transform = transforms.Compose([resize, transforms.CenterCrop(224), transforms.ToTensor(), normalize])
    with torch.inference_mode():
        projected = model(torch.stack([transform(image) for image in opened(photos)]))
    expected = projected / projected.norm(dim=-1, keepdim=True)
    both = ["features=l2_normalize", "half=l2_normalize@float16"]
    found = encoded(photos, name, tmp_path / "weights.pt", "clip-retrieval", products=both)
    assert same_features.difference(found["features"], expected) <= CLOSE
    assert np.abs(found["half"] - expected.half().float().numpy()).max() <= 2**-14, "a step of float16 below 0.5"


def test_sam(photos: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The long side resized by Pillow, normalised in 0 to 255, then padded with 0."""
    monkeypatch.setattr(sam, "construct", tiny_sam.construct)
    state = tiny_sam.random_state(tiny_sam.construct("", None, name=""), seed=3)
    torch.save(state, tmp_path / "sam_vit_b_01ec64.pth")
    mean, std = (torch.tensor(values)[:, None, None] for values in ((123.675, 116.28, 103.53), (58.395, 57.12, 57.375)))
    batch = torch.zeros(len(photos), 3, 128, 128)
    for row, image in zip(batch, opened(photos), strict=True):
        scale = 128 / max(image.size)
        height, width = (int(side * scale + 0.5) for side in (image.height, image.width))
        resized = functional.resize(image, [height, width])
        row[:, :height, :width] = (functional.pil_to_tensor(resized) - mean) / std
    expected = sam_reference.encode(state, batch, heads=tiny_sam.HEADS, global_blocks=tiny_sam.GLOBAL_BLOCKS)
    weights = tmp_path / "sam_vit_b_01ec64.pth"
    found = encoded(photos, "samvit_base", weights, "sam", image_size="128")["features"]
    assert same_features.difference(found, expected) <= CLOSE


def test_terratorch(tmp_path: Path) -> None:
    """The last map of `features_only`, without a final norm, of values normalised in their own units."""
    paths = same_features.write_photos(tmp_path / "photos", ((160, 160), (160, 160)))
    model = same_features.seeded(lambda: timm.create_model("test_vit"), tmp_path / "weights.pt")
    backbone = timm.create_model("test_vit", features_only=True).eval()
    backbone.load_state_dict({f"model.{name}": value for name, value in model.state_dict().items()}, strict=False)
    pixels = np.stack([np.asarray(image, dtype=np.float32) for image in opened(paths)])
    normalised = (pixels - np.float32([120, 110, 100])) / np.float32([60, 50, 40])
    with torch.inference_mode():
        expected = backbone(torch.from_numpy(normalised).permute(0, 3, 1, 2))[-1]
    stated = {"image_size": "160", "mean": "120,110,100", "std": "60,50,40"}
    found = encoded(paths, "timm/test_vit", tmp_path / "weights.pt", "terratorch", **stated)["features"]
    assert same_features.difference(found, expected) <= CLOSE


def parameters(**given: object) -> ExtractParameters:
    return ExtractParameters.model_validate({"images": "photos", "model": "resnet18", "out": "run", **given})


def test_a_preset_is_its_options() -> None:
    """What is recorded are ordinary options, and the name: repeating the record gives the same."""
    given = parameters(like="timm", advanced={"image_size_and_tiles": {"fit": "crop"}}, layers=[])
    assert given.layers == ("pre_logits",)
    assert given.products == ("features=none",)
    assert (given.resampling, given.antialias, given.fit) == ("pillow", True, "crop")
    assert parameters(**given.model_dump(mode="json")) == given
    assert parameters().model_dump(exclude={"like"}) == parameters(like=None).model_dump(exclude={"like"})


def test_options_beside_a_preset_win() -> None:
    given = parameters(like="timm", resampling="torch", products=["maps=none@float16"], antialias=False)
    assert (given.resampling, given.products, given.antialias) == ("torch", ("maps=none@float16",), False)
    assert given.layers == ("pre_logits",)


@pytest.mark.parametrize(
    ("like", "said"),
    [
        ("sam", "--like sam is for samvit_base, samvit_large, samvit_huge, not for 'resnet18'"),
        ("clip-retrieval", "--like clip-retrieval is for CLIP's vision transformers of timm"),
        ("thingsvision", "--like thingsvision needs --layers: it takes the features of modules"),
    ],
)
def test_what_a_preset_lacks_is_said(like: str, said: str) -> None:
    with pytest.raises(errors.InputError, match=said):
        presets.check(parameters(like=like))


def test_a_model_file_states_what_it_outputs() -> None:
    given = parameters(like="terratorch", model="seg.yaml")
    assert (given.value_range, given.fit) == ("0,1", "stretch")
    assert (given.layers, given.products) == ((), ())
    presets.check(given)
    with pytest.raises(errors.InputError, match="needs --image-size: it does not resize images"):
        presets.check(parameters(like="terratorch"))


def test_flags_that_are_shown_are_the_preset() -> None:
    """`genenc presets` shows what a person can type instead."""
    expected = {
        "timm": "--resampling pillow --antialias --layers=pre_logits --product 'features=none'",
        "thingsvision": "--resampling pillow --antialias --product 'features=flatten'",
        "terratorch": "--fit stretch --value-range 0,1 --layers=-1 --product 'features=none'",
    }
    for name, typed in expected.items():
        assert " ".join(presets.flags(presets.PRESETS[name])) == typed


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"resampling": "pillow", "antialias": False}, "--resampling pillow always antialiases"),
        ({"resampling": "pillow", "channels": "0,1,2"}, "--resampling pillow resizes 8-bit RGB"),
        ({"crop_share": 0.5, "fit": "pad"}, "--crop-share 0.5 is for --fit crop, but images are fitted by pad"),
        ({"crop_share": 0.5, "canvas": "128"}, "--crop-share 0.5 has no meaning with a canvas"),
    ],
)
def test_what_cannot_be_resized_so_is_refused(
    given: dict[str, object], said: str, photos: list[Path], tmp_path: Path
) -> None:
    with pytest.raises(errors.InputError, match=said):
        api.encode(photos, "resnet18", weights="random:0", image_size="64", **given)
