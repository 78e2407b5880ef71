"""Encoders of several scales: map sizes, weights, letterbox, and agreement with timm's own features."""

from pathlib import Path

import pytest
import timm
import torch

from genenc_core import errors
from genenc_core.models import resolve, weights


def built(name: str, size: tuple[int, int] | None = None, given: str = "random:0") -> resolve.BuiltEncoder:
    return resolve.build_encoder(resolve.ModelRequest(name=name, weights=given, image_size=size))


def shapes(encoder: resolve.BuiltEncoder) -> dict[str, tuple[int, ...]]:
    return {slot.name: slot.shape for slot in encoder.outputs}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["darknet53_maps", "cspdarknet53_maps"])
def test_three_scales_at_yolos_size(name: str) -> None:
    encoder = built(name)
    assert shapes(encoder) == {"p3": (256, 52, 52), "p4": (512, 26, 26), "p5": (1024, 13, 13)}
    assert encoder.preprocessing.describe().startswith("pad to 416 x 416 (center, bars [128, 128, 128])")
    assert encoder.mean == (0.485, 0.456, 0.406)


@pytest.mark.slow
def test_maps_equal_timm_feature_extractor() -> None:
    encoder = built("darknet53_maps", (96, 64), "random:7")
    with weights.construction_rng(weights.parse_weights("random:7")):
        own = timm.create_model("darknet53", num_classes=0)
    extractor = timm.create_model("darknet53", features_only=True, out_indices=(3, 4, 5)).eval()
    extractor.load_state_dict({_flat(name): tensor for name, tensor in own.state_dict().items()})
    images = torch.rand(2, 3, 96, 64, generator=torch.Generator().manual_seed(0))
    mean, std = (torch.tensor(values)[:, None, None] for values in (encoder.mean, encoder.std))
    with torch.inference_mode():
        expected = extractor((images - mean) / std)
        found = encoder.module(images)
    assert [tuple(maps.shape[1:]) for maps in found] == [(256, 12, 8), (512, 6, 4), (1024, 3, 2)]
    for one, other in zip(found, expected, strict=True):
        assert other.std() > 1e-3
        torch.testing.assert_close(one, other)


def _flat(name: str) -> str:
    """Name a weight as timm's extractor does: `stages.0.x` is `stages_0.x` there."""
    head, _, tail = name.partition(".")
    return f"stages_{tail}" if head == "stages" else f"stem_{tail}" if tail.split(".")[0] == "conv1" else name


@pytest.mark.slow
@pytest.mark.parametrize("name", ["darknet53_fpn", "cspdarknet53_fpn"])
def test_a_pyramid_has_256_channels_at_every_scale(name: str) -> None:
    assert shapes(built(name, (416, 416))) == {"p3": (256, 52, 52), "p4": (256, 26, 26), "p5": (256, 13, 13)}


@pytest.mark.slow
def test_pyramid_propagates_coarse_maps_to_fine_ones() -> None:
    """What distinguishes a pyramid from separate taps: top-down sums, p4 = smooth(lateral(c4) + upsampled p5)."""
    encoder = built("cspdarknet53_fpn", (64, 64))
    images = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    mean, std = (torch.tensor(values)[:, None, None] for values in (encoder.mean, encoder.std))
    trunk = encoder.module.trunk
    with torch.inference_mode():
        taps = list(trunk.backbone((images - mean) / std).values())
        merged = None
        for level in (2, 1, 0):
            lateral = trunk.pyramid.inner_blocks[level](taps[level])
            raised = 0 if merged is None else merged.repeat_interleave(2, 2).repeat_interleave(2, 3)
            merged = lateral + raised
            expected = trunk.pyramid.layer_blocks[level](merged)
            torch.testing.assert_close(encoder.module(images)[level], expected)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["cspdarknet53_maps", "cspdarknet53_fpn"])
def test_map_sizes_round_up(name: str) -> None:
    grids = [shape[1:] for shape in shapes(built(name, (100, 150))).values()]
    assert grids == [(13, 19), (7, 10), (4, 5)]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["cspdarknet53_maps", "cspdarknet53_fpn"])
def test_weights_file_must_match_exactly(name: str, tmp_path: Path) -> None:
    _, parts = resolve.build_parts(resolve.ModelRequest(name=name, weights="random:1", image_size=(64, 64)))
    state = {**parts.model.state_dict(), "head.fc.weight": torch.zeros(1000, 1024)}
    torch.save(state, tmp_path / "whole.pth")
    assert (
        built(name, (64, 64), str(tmp_path / "whole.pth")).weights_sha256
        == built(name, (64, 64), "random:1").weights_sha256
    )
    lost = next(key for key in state if "stages.4" in key and key.endswith("conv.weight"))
    del state[lost]
    torch.save(state, tmp_path / "lacking.pth")
    with pytest.raises(errors.InputError, match=f"missing: {lost}"):
        built(name, (64, 64), str(tmp_path / "lacking.pth"))


def test_pretrained_pyramid_is_refused() -> None:
    with pytest.raises(errors.InputError, match="darknet53_maps, which has pretrained weights"):
        built("darknet53_fpn", given="pretrained")


@pytest.mark.slow
@pytest.mark.parametrize(("name", "stage"), [("darknet53_maps", "stages.4"), ("darknet53_fpn", "backbone.stages.4")])
def test_stages_are_modules_of_the_model(name: str, stage: str) -> None:
    _, parts = resolve.build_parts(resolve.ModelRequest(name=name, weights="random:0", image_size=(64, 64)))
    assert len(parts.stages) == 5
    assert parts.stages[-1] == stage
    inside = dict(parts.model.named_modules())
    assert all(item in inside for item in parts.stages)
