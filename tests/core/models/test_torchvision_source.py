"""torchvision encoders: the maps are what the model itself pools, with its own evaluation transform's numbers."""

import re
import shutil
import urllib.error
import warnings
from pathlib import Path

import pytest
import torch
import torchvision.models as zoo

from genenc_core import errors
from genenc_core.models import resolve
from genenc_core.models.sources import torchvision_source

POOLED = [  # models with a pooling layer of their own: name, image side
    ("alexnet", 64),
    ("convnext_tiny", 64),
    ("efficientnet_b0", 64),
    ("googlenet", 64),
    ("inception_v3", 96),
    ("maxvit_t", 224),
    ("mobilenet_v3_small", 64),
    ("regnet_y_400mf", 64),
    ("resnet18", 64),
    ("swin_t", 64),
    ("vgg11", 64),
]
HEADS = {  # models that pool in their forward: what they do with the maps
    "densenet121": lambda model, maps: model.classifier(maps.mean((2, 3))),
    "mnasnet0_5": lambda model, maps: model.classifier(maps.mean((2, 3))),
    "mobilenet_v2": lambda model, maps: model.classifier(maps.mean((2, 3))),
    "shufflenet_v2_x0_5": lambda model, maps: model.fc(maps.mean((2, 3))),
    "squeezenet1_1": lambda model, maps: model.classifier(maps).flatten(1),
}


def build(name: str, *, weights: str = "random:3", side: int | None = None) -> resolve.BuiltEncoder:
    size = None if side is None else (side, side)
    return resolve.build_encoder(resolve.ModelRequest(name=name, weights=weights, image_size=size))


def plain(name: str, **options: object) -> torch.nn.Module:
    torch.manual_seed(3)
    return zoo.get_model(name, weights=None, **options).eval()


def normalized(built: resolve.BuiltEncoder, images: torch.Tensor) -> torch.Tensor:
    mean, std = (torch.tensor(values).reshape(1, 3, 1, 1) for values in (built.mean, built.std))
    return (images - mean) / std


@pytest.mark.slow
@pytest.mark.usefixtures("shallow")
@pytest.mark.parametrize(("name", "side"), POOLED)
def test_maps_equal_the_input_of_pooling(name: str, side: int) -> None:
    built = build(name, side=side)
    options = {"init_weights": True} if name in ("googlenet", "inception_v3") else {}
    model = plain(name, **options)
    seen: list[torch.Tensor] = []
    pool = model.classifier[0] if name == "maxvit_t" else model.avgpool
    pool.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    images = torch.rand(2, 3, side, side)
    with torch.inference_mode():
        model(normalized(built, images))
        (maps,) = built.module(images)
    assert torch.equal(maps, seen[0])
    assert maps.is_contiguous()
    assert built.outputs[0].shape == tuple(seen[0].shape[1:])


@pytest.mark.slow
@pytest.mark.parametrize("name", HEADS)
def test_head_applied_to_the_maps_gives_logits(name: str) -> None:
    built = build(name, side=64)
    model = plain(name)
    images = torch.rand(2, 3, 64, 64)
    with torch.inference_mode():
        (maps,) = built.module(images)
        torch.testing.assert_close(HEADS[name](model, maps), model(normalized(built, images)), rtol=1e-5, atol=1e-6)


@pytest.mark.slow
@pytest.mark.usefixtures("shallow")
def test_vit_slots_are_patch_map_and_class_token() -> None:
    built = build("vit_b_32", side=96)
    model = plain("vit_b_32", image_size=96)
    seen: list[torch.Tensor] = []
    model.encoder.register_forward_hook(lambda *hook: seen.append(hook[2]))
    images = torch.rand(2, 3, 96, 96)
    with torch.inference_mode():
        model(normalized(built, images))
        maps, cls = built.module(images)
    assert [slot.name for slot in built.outputs] == ["features", "cls"]
    assert torch.equal(cls, seen[0][:, 0])
    assert maps.shape == (2, 768, 3, 3)
    for row in range(3):
        for column in range(3):
            assert torch.equal(maps[:, :, row, column], seen[0][:, 1 + 3 * row + column])


@pytest.mark.slow
def test_googlenet_converts_its_input_for_pretrained_weights(tmp_path: Path) -> None:
    """torchvision's own weights of GoogLeNet want the input conversion; a downloaded file must get it too."""
    torch.manual_seed(3)
    model = zoo.googlenet(weights=None, init_weights=True, transform_input=True).eval()
    torch.save(model.state_dict(), tmp_path / "googlenet.pth")
    built = build("googlenet", weights=str(tmp_path / "googlenet.pth"), side=64)
    seen: list[torch.Tensor] = []
    model.avgpool.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    images = torch.rand(2, 3, 64, 64)
    with torch.inference_mode():
        model(normalized(built, images))
        (maps,) = built.module(images)
    assert torch.equal(maps, seen[0])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("file", "side", "words"),
    [
        ("resnet50-0676ba61.pth", 256, None),
        ("resnet50-11ad3fa6 (1).pth", 232, None),
        ("mine.pth", 232, "resized as for IMAGENET1K_V2 .232, cut to 224; IMAGENET1K_V1 256"),
    ],
)
def test_torchvision_weights_are_known_by_name(tmp_path: Path, file: str, side: int, words: str | None) -> None:
    torch.save(zoo.resnet50(weights=None).state_dict(), tmp_path / file)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        built = build("resnet50", weights=str(tmp_path / file), side=None)
    assert built.preprocessing.resize_short == side
    said = [text for text in map(str, (one.message for one in caught)) if "its name does not identify" in text]
    assert len(said) == (words is not None)
    assert words is None or re.search(words, said[0])


@pytest.mark.slow
def test_inception_weights_file_warns_of_colour_conversion(tmp_path: Path) -> None:
    for name, file, said in (("googlenet", "mine.pth", 1), ("googlenet", "googlenet-1378be20.pth", 0)):
        torch.save(zoo.googlenet(weights=None, init_weights=False).state_dict(), tmp_path / file)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            build(name, weights=str(tmp_path / file), side=64)
        assert sum("transform_input" in str(one.message) for one in caught) == said


@pytest.mark.slow
@pytest.mark.usefixtures("shallow")
def test_a_pretrained_vit_at_another_size_has_interpolated_position_embeddings() -> None:
    model = zoo.vit_b_32(weights=None, image_size=96).eval()
    resized = torchvision_source._resized("vit_b_32", model, (64, 64))
    assert resized.encoder.pos_embedding.shape == (1, 5, 768)
    assert torch.equal(resized.conv_proj.weight, model.conv_proj.weight)
    assert torch.equal(resized.encoder.pos_embedding[:, :1], model.encoder.pos_embedding[:, :1])


@pytest.mark.slow
def test_every_classification_model_has_a_known_trunk(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (name for name in vars(torch.nn.init) if name.endswith("_") and not name.startswith("_")):
        monkeypatch.setattr(torch.nn.init, name, lambda tensor, *_arguments, **_options: tensor)
    for name in torchvision_source.names():
        if name.startswith("regnet_"):  # cannot be built without memory; one of them is run above
            continue
        with torch.device("meta"):
            options = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
            model = zoo.get_model(name, weights=None, **options)
        assert isinstance(torchvision_source._trunk(model), torch.nn.Module), name


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "side", "expected"),
    [
        ("resnet18", None, (224, 256, "bilinear")),
        ("convnext_tiny", None, (224, 236, "bilinear")),
        ("efficientnet_b0", None, (224, 256, "bicubic")),
        ("resnet18", 64, (64, 73, "bilinear")),
    ],
)
def test_preprocessing_is_the_evaluation_transform(name: str, side: int | None, expected: tuple[int, int, str]) -> None:
    found = build(name, side=side).preprocessing
    assert (found.height, found.resize_short, found.interpolation) == expected
    assert (found.width, found.fit, found.antialias) == (found.height, "crop", True)


@pytest.mark.parametrize(
    ("name", "size", "words"),
    [
        ("vit_b_32", (64, 96), "square"),
        ("vit_b_32", (65, 65), "indivisible"),
        ("inception_v3", (32, 32), "cannot encode images of 32 x 32"),
    ],
)
def test_unsupported_size_is_refused(name: str, size: tuple[int, int], words: str) -> None:
    with pytest.raises(errors.InputError, match=words):
        resolve.build_encoder(resolve.ModelRequest(name=name, weights="random:0", image_size=size))


def test_convolutional_models_accept_non_square_sizes() -> None:
    built = resolve.build_encoder(resolve.ModelRequest(name="resnet18", weights="random:0", image_size=(64, 96)))
    assert built.outputs[0].shape == (512, 2, 3)
    assert built.preprocessing.resize_short == 73


def test_pretrained_offline_error_gives_a_remedy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def offline(*args: object, **options: object) -> None:
        raise urllib.error.URLError("no network")

    monkeypatch.setattr(torch.hub, "download_url_to_file", offline)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(errors.InputError, match=r"no network.*--weights FILE.*random:0"):
        build("squeezenet1_1", weights="pretrained")


def test_pretrained_loads_downloaded_weights(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    torch.save(plain("squeezenet1_1").state_dict(), tmp_path / "served.pth")

    def download(url: str, target: str, *args: object, **options: object) -> None:
        shutil.copy(tmp_path / "served.pth", target)

    monkeypatch.setattr(torch.hub, "download_url_to_file", download)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    assert build("squeezenet1_1", weights="pretrained").weights_sha256 == build("squeezenet1_1").weights_sha256


def test_an_unknown_tag_lists_the_known_ones() -> None:
    with pytest.raises(errors.InputError, match="IMAGENET1K_V1, IMAGENET1K_V2"):
        build("resnet50", weights="pretrained:NOPE")
