"""timm encoders: `forward_features` bit for bit, with tokens and NHWC maps in their places."""

import re
import warnings
from pathlib import Path

import pytest
import safetensors.torch
import timm
import torch

from genenc_core import errors
from genenc_core.factory import registries
from genenc_core.models import resolve
from genenc_core.models.sources import timm_source


def build(name: str, size: tuple[int, int] | None = None, *, weights: str = "random:5") -> resolve.BuiltEncoder:
    return resolve.build_encoder(resolve.ModelRequest(name=name, weights=weights, image_size=size))


def plain_features(built: resolve.BuiltEncoder, name: str, images: torch.Tensor, **options: object) -> torch.Tensor:
    torch.manual_seed(5)
    model = timm.create_model(name, num_classes=0, **options).eval()
    mean, std = (torch.tensor(values).reshape(1, 3, 1, 1) for values in (built.mean, built.std))
    with torch.inference_mode():
        return model.forward_features((images - mean) / std)


def encode(built: resolve.BuiltEncoder, images: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode():
        found = built.module(images)
    assert [slot.shape for slot in built.outputs] == [tuple(tensor.shape[1:]) for tensor in found]
    assert all(tensor.is_contiguous() for tensor in found)
    return found[0]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["timm/resnet18", "test_byobnet", "test_efficientnet", "test_convnext"])
def test_nchw_maps_are_forward_features(name: str) -> None:
    built = build(name, (64, 64))
    images = torch.rand(2, 3, 64, 64)
    assert torch.equal(encode(built, images), plain_features(built, name.removeprefix("timm/"), images))


@pytest.mark.slow
@pytest.mark.usefixtures("shallow")
@pytest.mark.parametrize("name", ["test_mambaout", "swin_tiny_patch4_window7_224"])
def test_nhwc_maps_become_nchw(name: str) -> None:
    size = None if name == "test_mambaout" else (64, 64)
    built = build(name, size)
    images = torch.rand(1, 3, built.preprocessing.height, built.preprocessing.width)
    features = plain_features(built, name, images, **({"img_size": size} if size else {}))
    assert features.shape[-1] == built.outputs[0].shape[0]
    assert torch.equal(encode(built, images), features.permute(0, 3, 1, 2))


@pytest.mark.slow
@pytest.mark.usefixtures("shallow")
@pytest.mark.parametrize(
    ("name", "size", "grid", "prefix"),
    [
        ("vit_tiny_patch16_224", (64, 96), (4, 6), 1),
        ("vit_small_patch14_reg4_dinov2", (56, 56), (4, 4), 5),
        ("test_vit_relpos", None, (10, 10), 0),
        ("levit_128", (128, 128), (2, 2), 0),
    ],
)
def test_tokens_lie_on_their_grid(name: str, size: tuple[int, int] | None, grid: tuple[int, int], prefix: int) -> None:
    built = build(name, size)
    images = torch.rand(2, 3, built.preprocessing.height, built.preprocessing.width)
    tokens = plain_features(built, name, images, **({"img_size": size} if size else {}))
    maps = encode(built, images)
    assert tokens.shape[1] == prefix + grid[0] * grid[1]
    assert tuple(maps.shape[2:]) == grid
    for row in range(grid[0]):
        for column in range(grid[1]):
            assert torch.equal(maps[:, :, row, column], tokens[:, prefix + grid[1] * row + column])


@pytest.mark.slow
def test_layers_after_the_maps_are_dropped() -> None:
    """MobileNetV3's convolution after pooling stays in timm's model without classes, but makes no map."""
    built = build("mobilenetv3_small_050", (64, 64))
    whole = timm.create_model("mobilenetv3_small_050", num_classes=0)
    outside = sum(parameter.numel() for parameter in whole.conv_head.parameters())
    assert outside > 0
    assert built.parameters == sum(parameter.numel() for parameter in whole.parameters()) - outside


@pytest.mark.slow
def test_preprocessing_is_timm_evaluation_configuration() -> None:
    built = build("vit_tiny_patch16_224", (112, 112))
    found = built.preprocessing
    assert (found.fit, found.interpolation, found.resize_short) == ("crop", "bicubic", 124)  # floor(224 / 0.9) / 2
    assert (built.mean, built.std) == ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


@pytest.mark.slow
def test_squash_configuration_stretches_with_a_warning() -> None:
    with pytest.warns(UserWarning, match="crop mode 'squash' at 0.9"):
        assert build("dm_nfnet_f0", (32, 32)).preprocessing.fit == "stretch"


def test_tag_in_a_name_keeps_the_architecture() -> None:
    assert build("resnet10t.c3_in1k", (64, 64)).weights_sha256 == build("resnet10t", (64, 64)).weights_sha256


def test_an_unknown_tag_lists_the_known_ones() -> None:
    with pytest.raises(errors.InputError, match=r"Available: .*c3_in1k"):
        build("resnet10t", weights="pretrained:NOPE")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "words"), [("crossvit_tiny_240", "returns a list"), ("pit_ti_224", "without declaring their grid")]
)
def test_models_without_one_map_are_refused(name: str, words: str) -> None:
    with pytest.raises(errors.InputError, match=words):
        build(name)


def test_pretrained_offline_error_gives_a_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*args: object, **options: object) -> None:
        raise OSError("no network")

    monkeypatch.setattr("timm.models._builder.load_state_dict_from_hf", offline)
    with pytest.raises(errors.InputError, match=r"no network.*--weights FILE.*random:0"):
        build("test_byobnet", weights="pretrained")


def test_pretrained_loads_downloaded_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(5)
    state = timm.create_model("test_byobnet").state_dict()

    def download(*args: object, **options: object) -> dict[str, torch.Tensor]:
        return dict(state)

    monkeypatch.setattr("timm.models._builder.load_state_dict_from_hf", download)
    built = build("test_byobnet", weights="pretrained")
    torch.manual_seed(5)
    model = timm.create_model("test_byobnet").eval()
    mean, std = (torch.tensor(values).reshape(1, 3, 1, 1) for values in (built.mean, built.std))
    images = torch.rand(1, 3, 160, 160)
    with torch.inference_mode():
        assert torch.equal(encode(built, images), model.forward_features((images - mean) / std))


HUB = "models--timm--efficientnet_b0.{}/snapshots/0a1b/model.safetensors"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "file", "mean", "words"),
    [
        (
            "timm/efficientnet_b0",
            "mine.safetensors",
            0.485,
            "preprocessed as for efficientnet_b0.ra_in1k .others differ: ra4_",
        ),
        ("timm/efficientnet_b0", HUB.format("ra4_e3600_r224_in1k"), 0.5, None),
        ("timm/efficientnet_b0", HUB.format("ra_in1k"), 0.485, None),
        ("timm/efficientnet_b0.ra4_e3600_r224_in1k", "mine.safetensors", 0.5, None),
    ],
)
def test_timm_weights_are_known_by_name(tmp_path: Path, model: str, file: str, mean: float, words: str | None) -> None:
    (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
    safetensors.torch.save_file(timm.create_model("efficientnet_b0").state_dict(), tmp_path / file)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        built = build(model, (64, 64), weights=str(tmp_path / file))
    assert built.mean[0] == mean
    said = [text for text in map(str, (one.message for one in caught)) if "its name does not identify" in text]
    assert len(said) == (words is not None)
    assert words is None or re.search(words, said[0])


@pytest.mark.slow
def test_tag_of_every_timm_file_name() -> None:
    tags = {full: timm.models.get_pretrained_cfg(full) for full in timm.list_pretrained()}
    files = {full: config.url.rpartition("/")[2] for full, config in tags.items() if config.url}
    assert len(files) > 300
    found = {full: timm_source.tag_of(full.partition(".")[0], Path(file)) for full, file in files.items()}
    assert found == {full: full.partition(".")[2] for full in files}
    assert timm_source.tag_of("vit_small_patch16_224", Path("dino_deitsmall16_pretrain.pth")) == "dino"
    assert timm_source.tag_of("resnet50", Path("resnet50_a1_0-14fe96d1 (1).pth")) == "a1_in1k"
    assert timm_source.tag_of("resnet50", Path("mine/model.safetensors")) is None


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("vit_base_patch16_clip_224.openai", True),
        ("vit_base_patch16_clip_quickgelu_224.openai", False),
        ("vit_base_patch16_clip_224.laion2b", False),
        ("resnet18.a1_in1k", False),
    ],
)
def test_weights_trained_with_another_activation_are_told(name: str, told: bool) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        timm_source._warn_of_activation(name)
    twin = name.partition(".")[0].replace("_clip_", "_clip_quickgelu_")
    assert [f"--model {twin}" in str(each.message) for each in caught] == [True] * told


def test_clip_weights_warn_of_quickgelu() -> None:
    assert "--model vit_base_patch32_clip_quickgelu_224" in (timm_source.assumptions("vit_base_patch32_clip_224") or "")
    assert "QuickGELU" not in (timm_source.assumptions("vit_base_patch32_clip_quickgelu_224") or "")
    assert timm_source.assumptions("resnet10t") is None


@pytest.mark.slow
@pytest.mark.usefixtures("shallow")
def test_positions_of_another_shape_are_rearranged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """7 x 28 patches are as many as 14 x 14, so that shapes do not tell; whatever says which weights they are."""
    name, size = "vit_tiny_patch16_224", (112, 448)
    torch.manual_seed(3)
    state = timm.create_model(name, num_classes=0).state_dict()
    state["pos_embed"] = torch.rand_like(state["pos_embed"])
    own = tmp_path / "models--timm--vit_tiny_patch16_224.augreg_in21k" / "model.safetensors"
    own.parent.mkdir()
    for path in (own, tmp_path / "mine.safetensors"):
        safetensors.torch.save_file(state, path)
    model = timm.create_model(name, num_classes=0, img_size=size).eval()
    prefix, grid = state["pos_embed"][:, :1], state["pos_embed"][:, 1:].reshape(1, 14, 14, -1).permute(0, 3, 1, 2)
    resized = torch.nn.functional.interpolate(grid, size=(7, 28), mode="bicubic", antialias=True)
    moved = torch.cat([prefix, resized.flatten(2).transpose(1, 2)], 1)
    model.load_state_dict(state | {"pos_embed": moved})
    images = torch.rand(1, 3, *size)
    monkeypatch.setattr("timm.models._builder.load_state_dict_from_hf", lambda *_, **__: dict(state))

    def features(asked: str, weights: str) -> torch.Tensor:
        built = build(asked, size, weights=weights)
        return encode(
            built, images * torch.tensor(built.std).reshape(3, 1, 1) + torch.tensor(built.mean).reshape(3, 1, 1)
        )

    with torch.inference_mode():
        tokens = model.forward_features(images)[:, 1:]
    expected = tokens.transpose(1, 2).reshape(1, -1, 7, 28)
    for asked, weights in [(name, str(own)), (f"{name}.augreg_in21k", str(tmp_path / "mine.safetensors"))]:
        with pytest.warns(UserWarning, match="pos_embed is interpolated from 14 x 14 patches to 7 x 28"):
            torch.testing.assert_close(features(asked, weights), expected, rtol=1e-4, atol=1e-4)
    for by_timm in (True, False):
        if not by_timm:  # as versions did that compare the numbers of patches alone
            monkeypatch.setattr("timm.models.vision_transformer.checkpoint_filter_fn", lambda state, *_, **__: state)
        torch.testing.assert_close(features(name, "pretrained"), expected, rtol=1e-4, atol=1e-4)
        backbone = registries.BACKBONE_REGISTRY.build(f"timm_{name}", output="tokens", pretrained=True, img_size=size)
        with torch.inference_mode():
            found = backbone.body.forward_features(images)[:, 1:]
        torch.testing.assert_close(found, tokens, rtol=1e-4, atol=1e-4)
    with pytest.warns(
        UserWarning, match=r"its position embedding is assumed to be for images of 112 x 448 pixels.*\.TAG"
    ):
        assert not torch.allclose(features(name, str(tmp_path / "mine.safetensors")), expected, rtol=1e-2, atol=1e-2)


@pytest.mark.slow
def test_unsupported_position_tables_are_refused() -> None:
    assert timm_source.same_shaped_tables("mixer_s32_224", (224, 224)) == []
    assert timm_source.same_shaped_tables("mixer_s32_224", (128, 384)) == []  # 48 patches
    assert timm_source.same_shaped_tables("mixer_s32_224", (32, 1568))[:1] == ["blocks.0.mlp_tokens.fc1.weight"]
    with pytest.raises(
        errors.InputError, match=r"positions for images of 224 x 224 .* fits 32 x 1568 in shape but not in position"
    ):
        timm_source.rearrange_positions(torch.nn.Module(), "mixer_s32_224", (32, 1568), loaded_by_timm=True)
