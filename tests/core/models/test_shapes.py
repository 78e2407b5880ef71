"""Shapes without weights: the same as those of the model that is built and run, and nothing of it is left behind."""

import pytest
import timm
import torch
from torchvision import models as zoo

from genenc_core import errors
from genenc_core.models import resolve, shapes


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("resnet18", (96, 64)),
        ("vit_b_16", (64, 64)),
        ("swin_t", (64, 96)),
        ("inception_v3", (96, 96)),
        ("timm/resnet18", (96, 64)),
        ("swin_tiny_patch4_window7_224", None),
        ("vit_tiny_patch16_224", (64, 64)),
        ("yolov3_tiny", (64, 96)),
        ("cspdarknet53_fpn", (64, 96)),
        ("tiny_models:two_maps", (32, 40)),
    ],
)
def test_measured_shapes_equal_the_built_model(name: str, size: tuple[int, int] | None) -> None:
    found = shapes.measure(name, image_size=size)
    built = resolve.build_encoder(resolve.ModelRequest(name=name, weights="random:0", image_size=size))
    assert found.outputs == built.outputs
    assert found.preprocessing == built.preprocessing
    assert (found.mean, found.std, found.parameters, found.kind) == (
        built.mean,
        built.std,
        built.parameters,
        built.kind,
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("convnext_tiny", (768, 7, 7)),
        ("convnext_base", (1024, 7, 7)),
        ("convnext_large", (1536, 7, 7)),
        ("resnet50", (2048, 7, 7)),
        ("samvit_huge", (256, 64, 64)),
        ("deepseek_sam", (1024, 16, 16)),
    ],
)
def test_known_shapes(name: str, shape: tuple[int, ...]) -> None:
    assert shapes.measure(name).outputs[0].shape == shape


@pytest.mark.slow
def test_measuring_large_models_needs_no_memory() -> None:
    with pytest.MonkeyPatch.context() as patch:
        # 637 million parameters and a 1024 x 1024 pass: were one tensor real, its making would show here.
        patch.setattr(torch.Tensor, "numpy", lambda _self: pytest.fail("numbers were asked for"))
        assert shapes.measure("samvit_huge").parameters == 637_026_048


def test_unsupported_size_is_refused_as_when_built() -> None:
    with pytest.raises(errors.InputError, match="multiple of 16"):
        shapes.measure("samvit_base", image_size=(100, 100))
    with pytest.raises(errors.InputError, match="no model 'resnet81'"):
        shapes.measure("resnet81")


def test_model_that_needs_values_is_refused() -> None:
    with pytest.raises(errors.InputError, match="cannot be determined without running it"):
        shapes.measure("tiny_models:raises_for_dark", image_size=(32, 32))


def test_later_models_are_not_fake() -> None:
    shapes.measure("tiny_models:conv", image_size=(32, 32))
    built = resolve.build_encoder(
        resolve.ModelRequest(name="tiny_models:conv", weights="random:0", image_size=(32, 32))
    )
    assert type(next(built.module.trunk.parameters())) is torch.nn.Parameter
    assert built.module(torch.rand(1, 3, 32, 32))[0].isfinite().all()


def test_catalogue_names_are_unique_and_resolve() -> None:
    listed = list(resolve.model_entries())
    names = [item.name for item in listed]
    assert len(set(names)) == len(names)
    assert sorted(names) == resolve.model_names()
    counts = {source: sum(item.source == source for item in listed) for source in ("genenc", "torchvision", "timm")}
    assert counts["torchvision"] == len(zoo.list_models(module=zoo))
    assert counts["timm"] == len(timm.list_models())
    for item in listed[:: len(listed) // 40]:
        assert resolve.resolve_name(item.name)[0] == item.source


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "size"), [("resnet18", (224, 224)), ("inception_v3", (299, 299)), ("samvit_base", (1024, 1024))]
)
def test_catalogue_sizes_match_the_models(name: str, size: tuple[int, int]) -> None:
    (item,) = [item for item in resolve.model_entries() if item.name == name]
    assert item.input_size == size
    found = shapes.measure(name).preprocessing
    assert (found.height, found.width) == size
