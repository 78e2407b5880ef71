"""Tokens: the patch map, the class token and the registers of every vision transformer, in one pass."""

import pytest
import torch

from genenc_core import errors
from genenc_core.models import resolve, tokens


def build(name: str, size: tuple[int, int] | None) -> resolve.BuiltEncoder:
    return resolve.build_encoder(resolve.ModelRequest(name=name, weights="random:5", image_size=size))


def slots(built: resolve.BuiltEncoder, images: torch.Tensor) -> dict[str, torch.Tensor]:
    with torch.inference_mode():
        found = built.module(images)
    named = dict(zip((slot.name for slot in built.outputs), found, strict=True))
    assert {slot.name: slot.shape for slot in built.outputs} == {
        name: tuple(tensor.shape[1:]) for name, tensor in named.items()
    }
    return named


def images_for(built: resolve.BuiltEncoder) -> torch.Tensor:
    return torch.rand(2, 3, built.preprocessing.height, built.preprocessing.width)


FAMILIES = [  # name, image size, the slots beside the map and how many tokens each has
    ("vit_tiny_patch16_224", (64, 96), {"cls": 1}),
    ("deit_tiny_distilled_patch16_224", (64, 64), {"cls": 1, "dist": 1}),
    ("beit_base_patch16_224", (32, 32), {"cls": 1}),
    ("eva02_tiny_patch14_224", (56, 56), {"cls": 1}),
    ("vit_small_patch14_reg4_dinov2", (56, 56), {"cls": 1, "register": 4}),
    ("vit_small_patch16_dinov3", (64, 64), {"cls": 1, "register": 4}),
    ("vit_little_patch16_reg1_gap_256", (64, 64), {"register": 1}),
    ("flexivit_small", (240, 240), {"cls": 1}),  # 15 x 15 = 225 patches, an odd number, and a class token
    ("cait_xxs24_224", (32, 32), {"cls": 1}),
    ("convit_tiny", (64, 64), {"cls": 1}),
    ("volo_d1_224", (64, 64), {"cls": 1}),
    ("tnt_s_legacy_patch16_224", (64, 64), {"cls": 1}),
    ("levit_128s", (128, 128), {}),
    ("vit_relpos_small_patch16_224", (80, 48), {}),  # 5 x 3 = 15 patches, an odd number, and no class token
    ("mixer_s32_224", (96, 96), {}),
    ("resmlp_12_224", (64, 64), {}),
    ("mvitv2_tiny", (64, 64), {}),
    ("hiera_tiny_224", (224, 224), {}),
    ("pvt_v2_b0", (64, 64), {}),
    ("swin_tiny_patch4_window7_224", (64, 64), {}),
    ("swinv2_tiny_window8_256", (64, 64), {}),
    ("samvit_base_patch16_224", (64, 64), {}),
    ("maxvit_rmlp_pico_rw_256", (64, 64), {}),
]


@pytest.mark.slow
@pytest.mark.usefixtures("shallow")
@pytest.mark.parametrize(("name", "size", "beside"), FAMILIES, ids=[name for name, _, _ in FAMILIES])
def test_map_and_prefix_tokens_are_the_models(name: str, size: tuple[int, int], beside: dict[str, int]) -> None:
    built = build(name, size)
    images = images_for(built)
    found = slots(built, images)
    model = built.module.trunk.model
    normal = (images - built.module.mean) / built.module.std if built.module.normalizes else images
    with torch.inference_mode():
        tokens_of_model = model.forward_features(normal)
        own = model.forward_intermediates(
            normal, indices=1, norm=not name.startswith("hiera"), output_fmt="NCHW", intermediates_only=True
        )[-1]
    assert list(found) == ["features", *beside]
    assert torch.equal(found["features"], own)
    start = 0
    for slot, count in beside.items():
        expected = tokens_of_model[:, start : start + count]
        assert torch.equal(found[slot], expected if slot == "register" else expected[:, 0])
        start += count
    if beside:
        assert start + own.shape[2] * own.shape[3] == tokens_of_model.shape[1]


@pytest.mark.slow
@pytest.mark.usefixtures("shallow")
def test_class_attention_is_part_of_the_map() -> None:
    """XCiT's own map is taken before its class attention; ours are the tokens that the model returns."""
    built = build("xcit_nano_12_p16_224", (64, 48))
    images = images_for(built)
    found = slots(built, images)
    with torch.inference_mode():
        listed = built.module.trunk.model.forward_features((images - built.module.mean) / built.module.std)
    assert listed.shape[1] == 1 + 4 * 3
    assert torch.equal(found["cls"], listed[:, 0])
    assert torch.equal(found["features"][:, :, 2, 1], listed[:, 1 + 2 * 3 + 1])


@pytest.mark.slow
def test_slots_have_descriptions() -> None:
    described = {slot.name: slot.description for slot in build("vit_small_patch14_reg4_dinov2", (28, 28)).outputs}
    assert described == {
        "features": "feature map: channels, height, width",
        "cls": "class token: channels",
        "register": "register tokens: tokens, channels",
    }


@pytest.mark.parametrize(
    ("count", "registers", "distilled", "class_token", "expected"),
    [
        (0, 0, False, False, ()),
        (1, 0, False, True, (("cls", 1),)),
        (2, 0, True, True, (("cls", 1), ("dist", 1))),
        (5, 4, False, True, (("cls", 1), ("register", 4))),
        (4, 4, False, False, (("register", 4),)),
        (3, 0, False, True, (("prefix", 3),)),
        (0, 0, False, True, ()),
    ],
)
def test_prefix_tokens_are_named_by_declaration(
    count: int, registers: int, distilled: bool, class_token: bool, expected: tokens.Prefix
) -> None:
    found = tokens.prefix_of(count, registers=registers, distilled=distilled, class_token=class_token)
    assert found == expected
    assert sum(number for _, number in found) == count


def test_split_equals_manual_split() -> None:
    listed = torch.arange(2 * 9 * 2.0).reshape(2, 9, 2)
    layout = tokens.TokenLayout(grid=(2, 3), prefix=(("cls", 1), ("register", 2)))
    found = tokens.split(listed, layout, base="blocks.3")
    assert list(found) == ["blocks.3", "blocks.3.cls", "blocks.3.register"]
    assert found["blocks.3.cls"].tolist() == [[0, 1], [18, 19]]
    assert found["blocks.3.register"][0].tolist() == [[2, 3], [4, 5]]
    assert found["blocks.3"][0].tolist() == [[[6, 8, 10], [12, 14, 16]], [[7, 9, 11], [13, 15, 17]]]
    # Without the prefix tokens the same patches are the map alone.
    assert torch.equal(tokens.split(listed[:, 3:], layout)["features"], found["blocks.3"])
    with pytest.raises(errors.EncoderError, match="has 7 tokens, but a grid of 2 x 3 patches with 3"):
        tokens.split(listed[:, 2:], layout)


@pytest.mark.parametrize(
    ("shape", "image", "expected"),
    [
        ((2, 768, 7, 7), (224, 224), (True, False)),
        ((2, 7, 7, 768), (224, 224), (False, True)),
        ((2, 64, 64, 64), (256, 256), (True, True)),
        ((2, 96, 15, 20), (480, 640), (True, False)),
        ((2, 15, 20, 96), (480, 640), (False, True)),
        ((2, 96, 3, 4), (100, 130), (True, False)),
        ((2, 3, 197, 64), (224, 224), (False, False)),
    ],
)
def test_sides_of_a_map_tell_axes(shape: tuple[int, ...], image: tuple[int, int], expected: tuple[bool, bool]) -> None:
    assert tokens.map_axes(shape, image) == expected
