"""Shapes without weights: the same as those of the model that is built and run, and nothing of it is left behind."""

import pytest
import timm
import torch
from torchvision import models as zoo

from genenc_core import errors, spec
from genenc_core.models import catalogue, shapes, sources


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
def test_what_is_found_is_what_the_built_model_has(name: str, size: tuple[int, int] | None) -> None:
    found = shapes.measure(name, image_size=size)
    built = sources.build_encoder(sources.ModelRequest(name=name, weights="random:0", image_size=size))
    assert found.outputs == built.outputs
    assert found.preprocessing == built.preprocessing
    assert (found.mean, found.std, found.parameters, found.kind) == (
        built.mean,
        built.std,
        built.parameters,
        built.kind,
    )


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
def test_known_numbers(name: str, shape: tuple[int, ...]) -> None:
    assert shapes.measure(name).outputs[0].shape == shape


def test_large_models_cost_no_memory() -> None:
    with pytest.MonkeyPatch.context() as patch:
        # 637 million parameters and a 1024 x 1024 pass: were one tensor real, its making would show here.
        patch.setattr(torch.Tensor, "numpy", lambda _self: pytest.fail("numbers were asked for"))
        assert shapes.measure("samvit_huge").parameters == 637_026_048


def test_a_size_that_cannot_be_is_refused_as_when_built() -> None:
    with pytest.raises(errors.InputError, match="multiple of 16"):
        shapes.measure("samvit_base", image_size=(100, 100))
    with pytest.raises(errors.InputError, match="no model 'resnet81'"):
        shapes.measure("resnet81")


def test_a_model_that_needs_numbers_is_said_so() -> None:
    with pytest.raises(errors.InputError, match="are not known without running it"):
        shapes.measure("tiny_models:raises_for_dark", image_size=(32, 32))


def test_models_built_afterwards_are_real() -> None:
    shapes.measure("tiny_models:conv", image_size=(32, 32))
    built = sources.build_encoder(
        sources.ModelRequest(name="tiny_models:conv", weights="random:0", image_size=(32, 32))
    )
    assert type(next(built.module.trunk.parameters())) is torch.nn.Parameter
    assert built.module(torch.rand(1, 3, 32, 32))[0].isfinite().all()


def test_strides() -> None:
    size = spec.Preprocessing(height=100, width=150)
    assert shapes.stride(spec.SlotSpec(name="m", shape=(8, 4, 5)), size) == (25.0, 30.0)
    assert shapes.stride(spec.SlotSpec(name="v", shape=(8,)), size) is None


def test_the_catalogue_lists_every_name_once_and_each_resolves() -> None:
    listed = list(catalogue.listed())
    names = [item.name for item in listed]
    assert len(set(names)) == len(names)
    assert sorted(names) == sources.model_names()
    counts = {source: sum(item.source == source for item in listed) for source in ("genenc", "torchvision", "timm")}
    assert counts["torchvision"] == len(zoo.list_models(module=zoo))
    assert counts["timm"] == len(timm.list_models())
    for item in listed[:: len(listed) // 40]:
        assert sources.resolve_name(item.name)[0] == item.source


@pytest.mark.parametrize(
    ("name", "size"), [("resnet18", (224, 224)), ("inception_v3", (299, 299)), ("samvit_base", (1024, 1024))]
)
def test_the_catalogue_tells_the_size_that_the_model_will_have(name: str, size: tuple[int, int]) -> None:
    (item,) = [item for item in catalogue.listed() if item.name == name]
    assert item.input_size == size
    found = shapes.measure(name).preprocessing
    assert (found.height, found.width) == size
