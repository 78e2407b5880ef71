"""Backbones by name: what timm and torchvision give themselves, at every stage or layer."""

from typing import Any

import pytest
import timm
import torch
import torchvision

import tiny_backbones
from genenc_core import errors
from genenc_core.factory import features as feats
from genenc_core.factory import registries


def build(name: str, /, **options: Any) -> Any:
    torch.manual_seed(3)
    return registries.BACKBONE_REGISTRY.build(name, **options).eval()


def run(backbone: Any, height: int = 64, width: int = 96, channels: int = 3) -> tuple[torch.Tensor, list[torch.Tensor]]:
    images = torch.rand((2, channels, height, width), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return images, backbone(images)


def test_timm_backbone_returns_timm_features() -> None:
    backbone = build("timm_resnet18", in_chans=6, out_indices=[1, 3])
    torch.manual_seed(3)
    theirs = timm.create_model("resnet18", features_only=True, in_chans=6, out_indices=[1, 3]).eval()
    images, found = run(backbone, channels=6)
    assert backbone.out_channels == [64, 256]
    assert [tuple(item.shape[1:]) for item in found] == [(64, 16, 24), (256, 4, 6)]
    with torch.no_grad():
        assert all(torch.equal(ours, item) for ours, item in zip(found, theirs(images), strict=True))
    assert backbone.inputs.channels == 6


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "size", "prefix", "registers"),
    [("test_vit", (160, 160), 1, 0), ("vit_small_patch14_reg4_dinov2", (56, 56), 5, 4)],
)
def test_timm_backbone_returns_tokens_per_layer(name: str, size: tuple[int, int], prefix: int, registers: int) -> None:
    """Their patches, put on the grid, are timm's own maps; the prefix tokens are in front."""
    options = {"out_indices": [1, 3], "img_size": list(size)}
    tokens = build(f"timm_{name}", output="tokens", **options)
    maps = build(f"timm_{name}", **options)
    rows, columns = tokens.tokens.grid(size)
    assert (tokens.tokens.prefix, tokens.tokens.registers) == (prefix, registers)
    state = {f"model.{key}": value for key, value in tokens.body.state_dict().items()}
    maps.body.load_state_dict({key: value for key, value in state.items() if key in maps.body.state_dict()})
    _, found = run(tokens, *size)
    _, expected = run(maps, *size)
    assert tokens.out_channels == [found[0].shape[2]] * 2
    for listed, laid in zip(found, expected, strict=True):
        assert listed.shape[1] == prefix + rows * columns
        torch.testing.assert_close(listed[:, prefix:].transpose(1, 2).unflatten(2, (rows, columns)), laid)


def test_all_layers_are_the_default_for_tokens() -> None:
    backbone = build("timm_test_vit", output="tokens")
    assert len(run(backbone, 160, 160)[1]) == len(backbone.body.blocks) == 6


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "channels", "sides"),
    [
        ("resnet18", [64, 64, 128, 256, 512], [32, 16, 8, 4, 2]),
        ("swin_t", [96, 192, 384, 768], [16, 8, 4, 2]),
        ("mobilenet_v3_small", [16, 16, 24, 48, 576], [32, 16, 8, 4, 2]),
        ("squeezenet1_1", [64, 128, 256, 512], [31, 15, 7, 3]),
    ],
)
def test_torchvision_returns_last_map_per_resolution(name: str, channels: list[int], sides: list[int]) -> None:
    backbone = build(f"torchvision_{name}", image_size=64)
    _, found = run(backbone, 64, 64)
    assert backbone.out_channels == [item.shape[1] for item in found] == channels
    assert [item.shape[2] for item in found] == sides
    chosen = build(f"torchvision_{name}", out_indices=[-1, 0], image_size=64)
    assert chosen.out_channels == [channels[-1], channels[0]]
    assert all(torch.equal(one, two) for one, two in zip(run(chosen, 64, 64)[1], (found[-1], found[0]), strict=True))


def test_torchvision_maps_equal_the_model() -> None:
    backbone = build("torchvision_resnet18", image_size=64)
    model = backbone.body
    images, found = run(backbone)
    with torch.no_grad():
        stem = model.relu(model.bn1(model.conv1(images)))
        first = model.layer1(model.maxpool(stem))
        last = model.layer4(model.layer3(model.layer2(first)))
    for ours, theirs in zip((found[0], found[1], found[4]), (stem, first, last), strict=True):
        assert torch.equal(ours, theirs)
    dense = build("torchvision_densenet121", out_indices=[-1], image_size=64)
    images, (found_last,) = run(dense, 64, 64)
    with torch.no_grad():
        assert torch.equal(found_last, torch.relu(dense.body.features(images)))


@pytest.mark.slow
def test_torchvision_transformer_returns_tokens_or_maps() -> None:
    tokens = build("torchvision_vit_b_32", output="tokens", out_indices=[0, -1], image_size=64)
    maps = build("torchvision_vit_b_32", out_indices=[0, -1], image_size=64)
    images, found = run(tokens, 64, 64)
    _, laid = run(maps, 64, 64)
    model: torchvision.models.VisionTransformer = tokens.body
    with torch.no_grad():
        whole = model.encoder(torch.cat((model.class_token.expand(2, -1, -1), model._process_input(images)), 1))
    torch.testing.assert_close(model.encoder.ln(found[1]), whole)
    assert tokens.out_channels == [768, 768]
    assert tokens.tokens == feats.PatchTokens(prefix=1, patch=(32, 32))
    assert maps.tokens is None
    for listed, item in zip(found, laid, strict=True):
        assert torch.equal(listed[:, 1:].transpose(1, 2).unflatten(2, (2, 2)), item)


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("timm_resnet18", {"output": "tokens"}, "not a plain transformer"),
        ("timm_resnet18", {"output": "vectors"}, "'maps' or 'tokens'"),
        ("timm_resnet18", {"colour": "RED"}, "timm cannot build the backbone 'resnet18'"),
        ("timm_test_vit", {"output": "tokens", "out_indices": [9]}, "from -6 to 5"),
        ("timm_test_vit", {"output": "tokens", "out_indices": [3, 1]}, "must be ascending, from 0"),
        ("torchvision_resnet18", {"output": "tokens"}, "has no tokens"),
        ("torchvision_resnet18", {"out_indices": [5]}, "from -5 to 4"),
        ("torchvision_vit_b_32", {"out_indices": [12]}, "from -12 to 11"),
        ("torchvision_vit_b_32", {"image_size": [64, 96]}, "only square images"),
        ("torchvision_resnet18", {"image_size": "64"}, "a number of pixels"),
        ("tiny_backbones:absent", {}, "cannot find the backbone factory"),
        ("tiny_backbones:torch", {}, "is not callable"),
        ("builtins:dict", {}, "returned a dict, not a torch module"),
        ("operator:truediv", {"a": 1, "b": 0}, "truediv"),
    ],
)
def test_invalid_backbones_are_refused(name: str, options: dict[str, Any], said: str) -> None:
    with pytest.raises(errors.InputError, match=said):
        build(name, **options)


@pytest.mark.slow
def test_random_backbones_follow_the_callers_generator() -> None:
    one, two = (build("torchvision_resnet18").body.conv1.weight for _ in range(2))
    torch.manual_seed(4)
    other = registries.BACKBONE_REGISTRY.build("torchvision_resnet18").body.conv1.weight
    assert torch.equal(one, two)
    assert not torch.equal(one, other)


def test_a_users_factory_gets_its_arguments() -> None:
    assert isinstance(build("tiny_backbones:pyramid", in_chans=5), tiny_backbones.Pyramid)
    assert build("python_tiny_backbones:pyramid", in_chans=5).stages[0].in_channels == 5
