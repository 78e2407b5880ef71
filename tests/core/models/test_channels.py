"""Models of other channels than three: torchvision, timm, weights files, own modules, and statistics."""

import warnings
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torchvision.models as zoo
from timm.models import _manipulate
from torch import nn

from genenc_core import errors
from genenc_core.models import channels, resolve


def build(name: str, **request: Any) -> resolve.BuiltEncoder:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", channels.AdaptedChannels)
        return resolve.build_encoder(resolve.ModelRequest(name=name, **{"weights": "random:3", **request}))


def plain(name: str, **options: object) -> nn.Module:
    torch.manual_seed(3)
    return zoo.get_model(name, weights=None, **options).eval()


@pytest.mark.parametrize("count", [1, 2, 4, 6, 7])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_weight_is_adapted_as_timm_does(count: int, dtype: torch.dtype) -> None:
    weight = torch.randn(5, 3, 3, 3).to(dtype)
    assert torch.equal(channels.adapted_weight(weight, count), _manipulate.adapt_input_conv(count, weight.clone()))


@pytest.mark.parametrize(
    ("name", "side"),
    [
        *(("resnet18", 64), ("vgg11", 64), ("densenet121", 64), ("mobilenet_v3_small", 64), ("swin_t", 64)),
        *(("convnext_tiny", 64), ("inception_v3", 96), ("squeezenet1_1", 64)),
    ],
)
@pytest.mark.slow
@pytest.mark.usefixtures("shallow")
def test_torchvision_takes_six_channels_by_its_adapted_first_convolution(name: str, side: int) -> None:
    built = build(name, image_size=(side, side), channels=6)
    assert built.preprocessing.channels is not None
    assert built.preprocessing.channels.count == len(built.mean) == len(built.std) == 6
    three = build(name, image_size=(side, side))
    key = f"{channels.first_convolution(three.module.trunk)}.weight"
    own, other = dict(built.module.trunk.named_parameters())[key], dict(three.module.trunk.named_parameters())[key]
    assert torch.equal(own, _manipulate.adapt_input_conv(6, other.detach().clone()))
    images = torch.rand(2, 6, side, side)
    with torch.inference_mode():
        assert [tuple(value.shape[1:]) for value in built.module(images)] == [slot.shape for slot in built.outputs]


def test_a_grey_channel_of_resnet_equals_the_same_in_all_three() -> None:
    three, one = build("resnet18", image_size=(64, 64)), build("resnet18", image_size=(64, 64), channels=1)
    assert one.mean == pytest.approx((sum(three.mean) / 3,))
    grey = torch.rand(1, 1, 64, 64)
    with torch.inference_mode():
        alone = one.module.trunk(grey)
        assert torch.allclose(alone, three.module.trunk(grey.expand(-1, 3, -1, -1)), atol=1e-5)


@pytest.mark.parametrize("name", ["test_resnet", "test_vit", "test_convnext", "vit_tiny_patch16_224"])
def test_timm_is_built_with_in_chans(name: str) -> None:
    built = build(f"timm/{name}", channels=6)
    torch.manual_seed(3)
    own = timm.create_model(name, pretrained=False, num_classes=0, in_chans=6).eval()
    size = built.preprocessing
    images = torch.rand(2, 6, size.height, size.width)
    mean, std = (torch.tensor(values).reshape(1, 6, 1, 1) for values in (built.mean, built.std))
    with torch.inference_mode():
        expected = own.forward_features((images - mean) / std)
        found = built.module(images)[0]
    if expected.ndim == 3:
        count = found.shape[2] * found.shape[3]
        expected = expected[:, -count:].transpose(1, 2).reshape(found.shape)
    assert torch.equal(found, expected)


@pytest.mark.parametrize("name", ["resnet18", "timm/test_resnet"])
def test_a_weights_file_says_the_channels_of_the_model(name: str, tmp_path: Path) -> None:
    six = (
        zoo.get_model("resnet18", weights=None) if name == "resnet18" else timm.create_model("test_resnet", in_chans=6)
    )
    if name == "resnet18":
        six.conv1 = nn.Conv2d(6, 64, 7, stride=2, padding=3, bias=False)
    torch.save(six.state_dict(), tmp_path / "six.pt")
    built = build(name, weights=str(tmp_path / "six.pt"), image_size=(64, 64))
    assert built.preprocessing.channel_count == 6
    assert not [note for note in built.weights_notes if "adapted" in note]
    assert torch.equal(next(built.module.trunk.parameters()), next(six.parameters()))
    with pytest.raises(errors.InputError, match="are for 6 channels, not 4: choose 6 with --channels"):
        build(name, weights=str(tmp_path / "six.pt"), image_size=(64, 64), channels=4)


@pytest.mark.parametrize("name", ["resnet18", "timm/test_resnet"])
def test_weights_of_three_channels_in_a_file_are_adapted_and_noted(name: str, tmp_path: Path) -> None:
    three = zoo.get_model("resnet18", weights=None) if name == "resnet18" else timm.create_model("test_resnet")
    torch.save(three.state_dict(), tmp_path / "three.pt")
    built = build(name, weights=str(tmp_path / "three.pt"), image_size=(64, 64), channels=5)
    first = next(built.module.trunk.parameters())
    assert torch.equal(first, _manipulate.adapt_input_conv(5, next(three.parameters()).detach().clone()))
    assert any("three channels were adapted to 5 as timm does" in note for note in built.weights_notes)
    as_it_is = build(name, weights=str(tmp_path / "three.pt"), image_size=(64, 64))
    assert as_it_is.preprocessing.channels is None
    assert not any("adapted" in note for note in as_it_is.weights_notes)


def test_pretrained_weights_of_torchvision_are_adapted_and_noted(monkeypatch: pytest.MonkeyPatch) -> None:
    made = plain("resnet18")
    monkeypatch.setattr(zoo, "get_model", lambda *_, **__: made)
    before = made.conv1.weight.detach().clone()
    built = build("resnet18", weights="pretrained", image_size=(64, 64), channels=6)
    assert torch.equal(next(built.module.trunk.parameters()), _manipulate.adapt_input_conv(6, before))
    assert any("adapted to 6" in note for note in built.weights_notes)


def test_statistics_repeat_those_of_the_colours_with_a_warning_unless_they_are_given() -> None:
    with pytest.warns(channels.AdaptedChannels, match="Give --mean and --std"):
        built = resolve.build_encoder(
            resolve.ModelRequest(name="resnet18", weights="random:0", image_size=(32, 32), channels=4)
        )
    assert built.mean == (0.485, 0.456, 0.406, 0.485)
    with warnings.catch_warnings():
        warnings.simplefilter("error", channels.AdaptedChannels)
        given = resolve.build_encoder(
            resolve.ModelRequest(
                name="resnet18",
                weights="random:0",
                image_size=(32, 32),
                channels=4,
                statistics=((0.1, 0.2, 0.3, 0.4), (1.0, 2.0, 3.0, 4.0)),
            )
        )
    assert given.std == (1.0, 2.0, 3.0, 4.0)
    with pytest.raises(errors.InputError, match="3 and 3 numbers, but 'resnet18' takes 4 channels"):
        build("resnet18", image_size=(32, 32), channels=4, statistics=((0.1,) * 3, (1.0,) * 3))


def test_an_own_module_declares_its_channels() -> None:
    built = build("tiny_models:six_bands")
    assert built.preprocessing.channel_count == 6
    assert built.mean == (0.1, 0.2, 0.3, 0.4, 0.5, 0.6)
    with pytest.raises(errors.InputError, match="takes 6 channels, not 4"):
        build("tiny_models:six_bands", channels=4)
    with pytest.raises(errors.InputError, match="mean has 3 numbers for 6 channels"):
        build("tiny_models:six_bands_with_three_means")


def test_genenc_s_own_encoders_take_rgb_only() -> None:
    with pytest.raises(errors.InputError, match="'yolov3_tiny' takes three channels, not 6"):
        build("yolov3_tiny", channels=6)


def test_rgb_is_built_exactly_as_before() -> None:
    built = build("resnet18", image_size=(64, 64))
    assert built.preprocessing.channels is None
    assert "channels" not in built.preprocessing.model_dump()
    own = plain("resnet18")
    assert all(torch.equal(a, b) for a, b in zip(built.module.trunk.parameters(), own.parameters(), strict=False))
