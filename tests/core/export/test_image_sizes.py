"""Dynamic sizes: which ranges a model has, artifacts that take them, and models that do not, named."""

from pathlib import Path

import pytest
import torch
from torch import nn

from genenc_core import errors, spec
from genenc_core.export import exporter, image_sizes
from genenc_core.models import resolve
from genenc_core.runtime import backends


def build(name: str, size: tuple[int, int]) -> resolve.BuiltEncoder:
    return resolve.build_encoder(resolve.ModelRequest(name=name, weights="random:0", image_size=size))


@pytest.fixture(scope="module")
def two_maps() -> resolve.BuiltEncoder:
    """[3, 32, 48] -> fine [4, 8, 12], coarse [8, 4, 6]."""
    return build("tiny_models:two_maps", (32, 48))


@pytest.fixture(scope="module")
def exported(
    two_maps: resolve.BuiltEncoder, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, spec.RuntimeModelSpec]:
    found = exporter.export_encoder(
        two_maps,
        out=tmp_path_factory.mktemp("sizes"),
        formats=["torchscript", "exported_program", "onnx", "aotinductor"],
        batch_max=4,
        size_range=image_sizes.size_range(two_maps, None, None),
    )
    names = ["torchscript", "exported_program", "onnx", "aotinductor"]
    return {name: model.spec for name, model in zip(names, found, strict=True)}


def test_default_size_range(two_maps: resolve.BuiltEncoder) -> None:
    assert image_sizes.stride(two_maps) == 8
    found = image_sizes.size_range(two_maps, None, None)
    assert found == spec.SizeRange(min=(16, 24), max=(64, 96), multiple=8)
    assert found.describe() == "16 x 24 to 64 x 96 in steps of 8"
    assert found.takes(16, 96)
    assert not found.takes(20, 96)
    assert not found.takes(72, 96)
    assert not found.takes(96, 16)


@pytest.mark.parametrize(
    ("least", "most"), [((12, 24), None), (None, (64, 92)), ((40, 24), None), (None, (24, 96)), ((32, 48), (32, 48))]
)
def test_impossible_ranges_are_refused(
    two_maps: resolve.BuiltEncoder, least: tuple[int, int] | None, most: tuple[int, int] | None
) -> None:
    with pytest.raises(errors.InputError, match=r"multiples of 8 .*32 x 48"):
        image_sizes.size_range(two_maps, least, most)


def test_other_sizes_are_near_both_ends() -> None:
    """A ViT at 16 x 64 has as many patches as at 32 x 32, and would pass unseen."""
    found = spec.SizeRange(min=(16, 16), max=(64, 64), multiple=16)
    assert image_sizes.other_sizes(found, (32, 32)) == ((16, 16), (64, 48), (48, 64))
    one_axis = spec.SizeRange(min=(32, 64), max=(96, 64), multiple=16)
    assert image_sizes.other_sizes(one_axis, (32, 64)) == ((96, 64),)
    lying = spec.SizeRange(min=(32, 48), max=(128, 192), multiple=8)
    assert image_sizes.other_sizes(lying, (64, 96)) == ((32, 48), (128, 184), (128, 56))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["torchscript", "exported_program", "onnx", "aotinductor"])
@pytest.mark.parametrize("size", [(16, 24), (64, 96), (16, 96), (40, 72), (32, 48)])
def test_sizes_in_the_range_equal_eager(
    exported: dict[str, spec.RuntimeModelSpec], two_maps: resolve.BuiltEncoder, kind: str, size: tuple[int, int]
) -> None:
    assert exported[kind].genenc.dynamic_size == spec.SizeRange(min=(16, 24), max=(64, 96), multiple=8)
    assert exported[kind].inputs[0].shape == (3, 32, 48)
    resized = backends.resized(exported[kind], size, backend=kind, device="cpu")
    assert [slot.shape for slot in resized.outputs] == [
        (4, size[0] // 4, size[1] // 4),
        (8, size[0] // 8, size[1] // 8),
    ]
    encoder = backends.load_encoder(resized, device="cpu")
    assert encoder.input_size == size
    for batch in (1, 3):
        images = torch.rand((batch, 3, *size), generator=torch.Generator().manual_seed(batch))
        for tensor, expected in zip(encoder(images).values(), two_maps.module(images), strict=True):
            torch.testing.assert_close(tensor, expected, rtol=1e-5, atol=1e-6)


def test_eager_accepts_the_same_sizes(exported: dict[str, spec.RuntimeModelSpec]) -> None:
    resized = backends.resized(exported["onnx"], (16, 96), backend="eager", trust=True)
    assert [slot.shape for slot in resized.outputs] == [(4, 4, 24), (8, 2, 12)]
    assert backends.load_encoder(resized, backend="eager", device="cpu", trust=True).input_size == (16, 96)


@pytest.mark.parametrize(
    ("size", "words"), [((20, 48), "in steps of 8"), ((72, 48), "16 x 24 to 64 x 96"), ((8, 48), "outside")]
)
def test_sizes_outside_the_range_are_refused(
    exported: dict[str, spec.RuntimeModelSpec], size: tuple[int, int], words: str
) -> None:
    with pytest.raises(errors.InputError, match=words):
        backends.resized(exported["torchscript"], size, backend="torchscript")


def test_fixed_size_artifact_error_gives_a_remedy(two_maps: resolve.BuiltEncoder, tmp_path: Path) -> None:
    (model,) = exporter.export_encoder(two_maps, out=tmp_path, formats=["torchscript"], batch_max=1)
    with pytest.raises(errors.InputError, match="--dynamic-size"):
        backends.resized(model.spec, (16, 24), backend="torchscript")
    assert backends.resized(model.spec, (32, 48), backend="torchscript") == model.spec


def test_crop_keeps_its_fraction_of_the_image(exported: dict[str, spec.RuntimeModelSpec]) -> None:
    given = exported["torchscript"]
    crop = given.genenc.preprocessing.model_copy(update={"fit": "crop", "resize_short": 40})
    block = given.genenc.model_copy(update={"preprocessing": crop})
    cropped = given.model_copy(update={"genenc": block})
    found = backends.resized(cropped, (64, 96), backend="torchscript", device="cpu").genenc.preprocessing
    assert (found.height, found.width, found.resize_short) == (64, 96, 80)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("vit_b_16", r"'vit_b_16' only supports 32 x 32 pixels.*The size of tensor"),
        ("timm/vit_tiny_patch16_224", r"Input height \(16\) doesn't match model \(32\)"),
    ],
)
def test_transformer_with_fixed_grid_is_refused(tmp_path: Path, name: str, words: str) -> None:
    built = build(name, (32, 32))
    with pytest.raises(errors.ExportError, match=words):
        exporter.export_encoder(
            built, out=tmp_path, formats=["torchscript"], size_range=image_sizes.size_range(built, None, None)
        )
    assert list(tmp_path.iterdir()) == []


class Turning(nn.Module):
    """Convolves upright images lying."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, (3, 5), padding=(1, 2))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        if images.shape[2] > images.shape[3]:
            turned: torch.Tensor = self.conv(images.transpose(2, 3)).transpose(2, 3)
            return turned
        maps: torch.Tensor = self.conv(images)
        return maps


class FrozenGrid(nn.Module):
    """Takes any size in eager mode; a trace keeps the grid of its example."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, 4, 8, 8)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        tokens = self.patch(images).flatten(2)
        return tokens.unflatten(2, (int(images.shape[2]) // 8, int(images.shape[3]) // 8))


class FixedMap(nn.Module):
    """A map of one size whatever the image."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return nn.functional.adaptive_avg_pool2d(images, 4)


class Pooling(nn.Module):
    """Takes another branch at one size."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        maps = nn.functional.avg_pool2d(images, 8)
        return maps * 2 if images.shape[3] == 40 else maps


def own(
    module: type[nn.Module], monkeypatch: pytest.MonkeyPatch, size: tuple[int, int] = (32, 40)
) -> resolve.BuiltEncoder:
    monkeypatch.setattr("tiny_models.for_sizes", module, raising=False)
    return build("tiny_models:for_sizes", size)


def test_map_that_does_not_scale_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    built = own(FixedMap, monkeypatch)
    with pytest.raises(errors.ExportError, match=r"its 'features' is \[3, 4, 4\]"):
        exporter.export_encoder(
            built,
            out=tmp_path,
            formats=["torchscript"],
            size_range=spec.SizeRange(min=(16, 20), max=(64, 80), multiple=1),
        )


@pytest.mark.parametrize("kind", ["exported_program", "torchscript"])
def test_model_that_asks_for_a_size_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    """Its answer at the export is in the file for all sizes."""
    built = own(Pooling, monkeypatch)
    with pytest.raises(errors.ExportError, match=r"differs from its model.* for a batch of 1 of 16 x 16 pixels"):
        exporter.export_encoder(
            built, out=tmp_path, formats=[kind], size_range=image_sizes.size_range(built, None, None)
        )
    assert list(tmp_path.iterdir()) == []


def test_traced_branch_on_size_is_detected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Models for documents and for matching turn upright images."""
    for side in ((32, 48), (48, 32), (32, 32)):
        built = own(Turning, monkeypatch, side)
        with pytest.raises(errors.ExportError, match="differs from its model"):
            exporter.export_encoder(
                built, out=tmp_path, formats=["torchscript"], size_range=image_sizes.size_range(built, None, None)
            )


def test_traced_grid_is_detected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    built = own(FrozenGrid, monkeypatch)
    ranged = image_sizes.size_range(built, None, None)
    with pytest.raises(errors.ExportError, match="fails for a batch of 1 of 16 x 16 pixels"):
        exporter.export_encoder(built, out=tmp_path, formats=["torchscript"], size_range=ranged)
    assert list(tmp_path.iterdir()) == []
    (fixed,) = exporter.export_encoder(built, out=tmp_path, formats=["torchscript"])
    assert fixed.spec.genenc.dynamic_size is None


@pytest.mark.parametrize(
    ("own", "other", "pixels", "grown"),
    [
        ((4, 8, 8), (4, 16, 16), ((64, 64), (128, 128)), True),
        ((4, 27, 27), (4, 59, 59), ((64, 64), (128, 128)), True),
        ((4, 27, 27), (4, 11, 59), ((64, 64), (32, 128)), True),
        ((4, 62, 62), (4, 126, 30), ((64, 64), (128, 32)), True),
        ((4, 27, 27), (4, 27, 27), ((64, 64), (128, 128)), False),
        ((4, 27, 27), (4, 40, 40), ((64, 64), (128, 128)), False),
        ((4, 16, 4), (4, 4, 16), ((64, 64), (128, 32)), False),
        ((4, 8, 8), (5, 16, 16), ((64, 64), (128, 128)), False),
    ],
)
def test_map_scaling_by_image_or_stride(
    own: tuple[int, ...], other: tuple[int, ...], pixels: tuple[tuple[int, int], tuple[int, int]], grown: bool
) -> None:
    assert grown is image_sizes._scales(own, other, *pixels)


@pytest.mark.slow
def test_model_without_padding_exports_with_dynamic_sizes(tmp_path: Path) -> None:
    """As facenet-pytorch's PNet: its map lacks a border, so it is not in proportion to the image."""
    built = build("tiny_models:unpadded", (32, 32))
    found = image_sizes.size_range(built, (24, 24), (48, 48))
    (made, other) = exporter.export_encoder(
        built, out=tmp_path, formats=["torchscript", "exported_program"], batch_max=2, size_range=found
    )
    assert made.spec.outputs[0].shape == (5, 11, 11)
    assert other.spec.genenc is not None
    assert other.spec.genenc.dynamic_size == found
