"""timm encoders: `forward_features` bit for bit, with tokens and NHWC maps in their places."""

import pytest
import torch

from genenc_core import errors
from genenc_core.models import sources

timm = pytest.importorskip("timm")


def build(name: str, size: tuple[int, int] | None = None, *, weights: str = "random:5") -> sources.BuiltEncoder:
    return sources.build_encoder(sources.ModelRequest(name=name, weights=weights, image_size=size))


def plain_features(built: sources.BuiltEncoder, name: str, images: torch.Tensor, **options: object) -> torch.Tensor:
    torch.manual_seed(5)
    model = timm.create_model(name, num_classes=0, **options).eval()
    mean, std = (torch.tensor(values).reshape(1, 3, 1, 1) for values in (built.mean, built.std))
    with torch.inference_mode():
        return model.forward_features((images - mean) / std)


def encode(built: sources.BuiltEncoder, images: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode():
        found = built.module(images)
    assert [slot.shape for slot in built.outputs] == [tuple(tensor.shape[1:]) for tensor in found]
    assert all(tensor.is_contiguous() for tensor in found)
    return found[0]


@pytest.mark.parametrize("name", ["timm/resnet18", "test_byobnet", "test_efficientnet", "test_convnext"])
def test_nchw_maps_are_forward_features(name: str) -> None:
    built = build(name, (64, 64))
    images = torch.rand(2, 3, 64, 64)
    assert torch.equal(encode(built, images), plain_features(built, name.removeprefix("timm/"), images))


@pytest.mark.parametrize("name", ["test_mambaout", "swin_tiny_patch4_window7_224"])
def test_nhwc_maps_come_out_as_nchw(name: str) -> None:
    size = None if name == "test_mambaout" else (64, 64)
    built = build(name, size)
    images = torch.rand(1, 3, built.preprocessing.height, built.preprocessing.width)
    features = plain_features(built, name, images, **({"img_size": size} if size else {}))
    assert features.shape[-1] == built.outputs[0].shape[0]
    assert torch.equal(encode(built, images), features.permute(0, 3, 1, 2))


@pytest.mark.parametrize(
    ("name", "size", "grid", "prefix"),
    [
        ("vit_tiny_patch16_224", (64, 96), (4, 6), 1),
        ("vit_small_patch14_reg4_dinov2", (56, 56), (4, 4), 5),
        ("test_vit_relpos", None, (10, 10), 0),
        ("levit_128", (128, 128), (2, 2), 0),
    ],
)
def test_tokens_lie_on_their_grid_without_class_token_and_registers(
    name: str, size: tuple[int, int] | None, grid: tuple[int, int], prefix: int
) -> None:
    built = build(name, size)
    images = torch.rand(2, 3, built.preprocessing.height, built.preprocessing.width)
    tokens = plain_features(built, name, images, **({"img_size": size} if size else {}))
    maps = encode(built, images)
    assert tokens.shape[1] == prefix + grid[0] * grid[1]
    assert tuple(maps.shape[2:]) == grid
    for row in range(grid[0]):
        for column in range(grid[1]):
            assert torch.equal(maps[:, :, row, column], tokens[:, prefix + grid[1] * row + column])


def test_layers_after_the_maps_are_not_part_of_the_encoder() -> None:
    """MobileNetV3's convolution after pooling stays in timm's model without classes, but makes no map."""
    built = build("mobilenetv3_small_050", (64, 64))
    whole = timm.create_model("mobilenetv3_small_050", num_classes=0)
    outside = sum(parameter.numel() for parameter in whole.conv_head.parameters())
    assert outside > 0
    assert built.parameters == sum(parameter.numel() for parameter in whole.parameters()) - outside


def test_preprocessing_is_timms_evaluation_configuration() -> None:
    built = build("vit_tiny_patch16_224", (112, 112))
    found = built.preprocessing
    assert (found.fit, found.interpolation, found.resize_short) == ("crop", "bicubic", 124)  # floor(224 / 0.9) / 2
    assert (built.mean, built.std) == ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


def test_a_squashing_configuration_stretches_and_says_what_is_left_out() -> None:
    with pytest.warns(UserWarning, match="crop mode 'squash' at 0.9"):
        assert build("dm_nfnet_f0", (32, 32)).preprocessing.fit == "stretch"


def test_a_tag_is_part_of_a_name_and_names_the_same_architecture() -> None:
    assert build("resnet10t.c3_in1k", (64, 64)).weights_sha256 == build("resnet10t", (64, 64)).weights_sha256


def test_an_unknown_tag_lists_the_known_ones() -> None:
    with pytest.raises(errors.InputError, match=r"Known: .*c3_in1k"):
        build("resnet10t", weights="pretrained:NOPE")


@pytest.mark.parametrize(("name", "words"), [("crossvit_tiny_240", "gives a list"), ("pit_ti_224", "state their grid")])
def test_models_without_one_map_are_refused(name: str, words: str) -> None:
    with pytest.raises(errors.InputError, match=words):
        build(name)


def test_pretrained_offline_says_what_failed_and_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*args: object, **options: object) -> None:
        raise OSError("no network")

    monkeypatch.setattr("timm.models._builder.load_state_dict_from_hf", offline)
    with pytest.raises(errors.InputError, match=r"no network.*--weights FILE.*random:0"):
        build("test_byobnet", weights="pretrained")


def test_pretrained_loads_what_was_downloaded(monkeypatch: pytest.MonkeyPatch) -> None:
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
