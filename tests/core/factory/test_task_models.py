"""Task models: padding and cutting back, rescaling, and what a decoder may do to its features."""

from typing import Any

import pytest
import torch
from torch import nn

import tiny_backbones
from genenc_core import errors
from genenc_core.factory import build_model, task_models


class Seen(nn.Module):
    """A backbone of one map, the image itself, that keeps what it was shown."""

    out_channels = (3,)

    def __init__(self) -> None:
        super().__init__()
        self.shown = torch.zeros(())

    def forward(self, images: torch.Tensor) -> list[torch.Tensor]:
        self.shown = images
        return [images]


def model(task: str = "segmentation", **options: Any) -> Any:
    torch.manual_seed(0)
    options = {"num_classes": None if task == "regression" else 4, **options}
    return build_model.build_model(task, options.pop("backbone", Seen()), "IdentityDecoder", **options).eval()


@pytest.mark.parametrize(
    ("patch", "size", "padded"),
    [
        (16, (224, 224), (224, 224)),
        (16, (225, 250), (256, 256)),
        ([16], (33, 32), (64, 32)),
        ([8, 16], (30, 30), (32, 32)),
        ([1, 8, 16], (30, 33), (32, 64)),
        (None, (33, 35), (33, 35)),
    ],
)
def test_images_are_padded_to_twice_the_patch_size(patch: Any, size: tuple[int, int], padded: tuple[int, int]) -> None:
    """At the bottom and right, by reflection; the output is cut back to the image."""
    made = model(backbone_patch_size=patch)
    images = torch.rand(2, 3, *size)
    assert tuple(made(images).output.shape) == (2, 4, *size)
    shown = made.encoder.shown
    assert tuple(shown.shape[2:]) == padded == made.padded_size(size)
    assert torch.equal(shown[:, :, : size[0], : size[1]], images)
    if padded[0] > size[0]:
        assert torch.equal(shown[:, :, size[0], : size[1]], images[:, :, size[0] - 2])


@pytest.mark.slow
def test_padding_does_not_change_pixel_wise_outputs() -> None:
    """The identity backbone and a 1 x 1 head: the padded model gives what the unpadded one gives."""
    images = torch.rand(2, 3, 20, 27)
    assert torch.equal(model(backbone_patch_size=8)(images).output, model()(images).output)


def test_the_patch_size_is_found_in_the_backbone() -> None:
    assert model(backbone=tiny_backbones.Patches(known=False)).patch == (8, 8)
    assert model(backbone=tiny_backbones.Patches()).patch == (8, 8)
    assert model(backbone=tiny_backbones.Pyramid()).patch is None


def test_images_too_small_for_reflection_are_refused() -> None:
    with pytest.raises(errors.InputError, match=r"too small to be padded by reflection.*replicate"):
        model(backbone_patch_size=16)(torch.rand(1, 3, 10, 40))
    assert tuple(
        model(backbone_patch_size=16, backbone_padding="replicate")(torch.rand(1, 3, 10, 40)).output.shape
    ) == (1, 4, 10, 40)


def test_temporal_patches_need_temporal_images() -> None:
    made = model(backbone_patch_size=[2, 8, 8])
    with pytest.raises(errors.InputError, match="span 2 time steps"):
        made(torch.rand(1, 3, 16, 16))
    made._padded(torch.rand(1, 3, 3, 16, 16))
    assert tuple(made._padded(torch.rand(1, 3, 3, 15, 16)).shape) == (1, 3, 4, 16, 16)


def test_rescaling_is_bilinear_to_the_padded_size() -> None:
    made = model(backbone=tiny_backbones.Pyramid(), backbone_patch_size=16)
    images = torch.rand(1, 3, 50, 64)
    padded = nn.functional.pad(images, (0, 0, 0, 14), mode="reflect")
    mask = nn.functional.interpolate(made.head(made.encoder(padded)[-1]), size=(64, 64), mode="bilinear")
    assert torch.equal(made(images).output, mask[:, :, :50])


def test_output_without_rescaling_excludes_padding() -> None:
    made = model(backbone=tiny_backbones.Pyramid(), rescale=False)
    assert tuple(made(torch.rand(1, 3, 64, 96)).output.shape) == (1, 4, 4, 6)
    padded = model(backbone=tiny_backbones.Pyramid(), rescale=False, backbone_patch_size=16)
    assert tuple(padded(torch.rand(1, 3, 33, 64)).output.shape) == (1, 4, 3, 4)


def test_single_channel_output_is_squeezed() -> None:
    assert tuple(model("regression")(torch.rand(2, 3, 8, 8)).output.shape) == (2, 8, 8)
    assert tuple(model(num_classes=1)(torch.rand(2, 3, 8, 8)).output.shape) == (2, 8, 8)


def test_a_classifier_pads_too() -> None:
    made = model("classification", backbone_patch_size=16)
    assert tuple(made(torch.rand(2, 3, 40, 40)).output.shape) == (2, 4)
    assert tuple(made.encoder.shown.shape[2:]) == (64, 64)


def test_decoders_may_work_in_place() -> None:
    """Each gets copies: the auxiliary decoder sees what the backbone gave, not what the first one left."""

    class InPlace(nn.Module):
        out_channels = 3

        def forward(self, features: list[torch.Tensor]) -> torch.Tensor:
            return features[0].zero_()

    torch.manual_seed(0)
    made = build_model.build_model(
        "segmentation", Seen(), InPlace(), num_classes=2, aux_decoders=[{"name": "a", "decoder": "IdentityDecoder"}]
    ).eval()
    images = torch.rand(1, 3, 8, 8)
    kept = images.clone()
    assert torch.equal(made(images).auxiliary_heads["a"], made.aux_heads["a"][1](kept))


def test_decoder_must_return_a_tensor() -> None:
    class Two(nn.Module):
        out_channels = 3

        def forward(self, features: list[torch.Tensor]) -> list[torch.Tensor]:
            return features

    made = build_model.build_model("segmentation", Seen(), Two(), num_classes=2)
    with pytest.raises(errors.EncoderError, match="must return one tensor"):
        made(torch.rand(1, 3, 8, 8))


@pytest.mark.parametrize("given", [0, [], [1, 2, 3, 4], "16", [8.0, 8.0]])
def test_bad_patch_sizes(given: Any) -> None:
    with pytest.raises(errors.InputError, match="patch size"):
        task_models.patch_sides(given)
