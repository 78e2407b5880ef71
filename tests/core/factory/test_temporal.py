"""Backbones over several times: every step on its own, then pooled."""

from typing import Any

import pytest
import torch

import tiny_backbones
from genenc_core import errors
from genenc_core.factory import build_model, temporal


def steps_apart(backbone: Any, images: torch.Tensor) -> list[torch.Tensor]:
    """Return, per feature, [T, B, ...] of the steps encoded one by one."""
    found = [backbone(images[:, :, step]) for step in range(images.shape[2])]
    return [torch.stack(item) for item in zip(*found, strict=True)]


@pytest.mark.parametrize("kind", [tiny_backbones.Pyramid, tiny_backbones.Patches])
@pytest.mark.parametrize("pooling", ["mean", "max", "diff", "keep", "concat"])
def test_pooling_of_maps_and_tokens(kind: Any, pooling: Any) -> None:
    backbone = kind().eval()
    images = torch.rand(2, 3, 2, 32, 48)
    wrapped = temporal.TemporalWrapper(backbone, pooling=pooling, n_timestamps=2)
    apart = steps_apart(backbone, images)
    for feature, steps, channels in zip(wrapped(images), apart, wrapped.out_channels, strict=True):
        axis = 1 if steps.ndim == 5 else 2
        expected = {
            "mean": steps.mean(0),
            "max": steps.max(0).values,
            "diff": steps[0] - steps[1],
            "keep": steps.transpose(0, 1),
            "concat": torch.cat(list(steps), axis),
        }[pooling]
        torch.testing.assert_close(feature, expected)
        assert feature.shape[axis + (pooling == "keep")] == channels
    assert wrapped.out_channels == [2 * width if pooling == "concat" else width for width in backbone.out_channels]


def test_subsets_are_averaged_before_pooling() -> None:
    """Theirs declares channels x timestamps even then; two subsets of five steps give twice the channels."""
    backbone = tiny_backbones.Pyramid().eval()
    images = torch.rand(1, 3, 5, 32, 32)
    steps = steps_apart(backbone, images)[0]
    first, last = steps[:2].mean(0), steps[2:].mean(0)
    diff = temporal.TemporalWrapper(backbone, pooling="diff", subset_lengths=[2, 3])
    torch.testing.assert_close(diff(images)[0], first - last)
    both = temporal.TemporalWrapper(backbone, pooling="concat", subset_lengths=[2, 3])
    torch.testing.assert_close(both(images)[0], torch.cat((first, last), 1))
    assert both.out_channels == [8, 16, 32, 64]


@pytest.mark.parametrize("pooling", ["mean", "concat", "keep"])
def test_permuted_features_are_permuted_back(pooling: Any) -> None:
    class ChannelsLast(tiny_backbones.Pyramid):
        def forward(self, images: torch.Tensor) -> list[torch.Tensor]:
            return [item.permute(0, 2, 3, 1) for item in super().forward(images)]

    torch.manual_seed(0)
    turned = ChannelsLast()
    plain = tiny_backbones.Pyramid()
    plain.load_state_dict(turned.state_dict())
    images = torch.rand(2, 3, 3, 16, 32)
    options: Any = {"pooling": pooling, "n_timestamps": 3}
    ours = temporal.TemporalWrapper(turned, features_permute_op=[0, 3, 1, 2], **options)(images)[1]
    expected = temporal.TemporalWrapper(plain, **options)(images)[1]
    torch.testing.assert_close(ours, expected.movedim(-3, -1))


def test_temporal_backbone_in_a_model() -> None:
    model = build_model.build_model(
        "segmentation",
        "tiny_backbones:pyramid",
        "IdentityDecoder",
        num_classes=2,
        backbone_use_temporal=True,
        backbone_temporal_concat=True,
        backbone_temporal_n_timestamps=3,
    ).eval()
    assert model.channel_list == [12, 24, 48, 96]
    assert tuple(model(torch.rand(2, 3, 3, 32, 32)).output.shape) == (2, 2, 32, 32)


def test_invalid_temporal_options_are_refused() -> None:
    backbone = tiny_backbones.Pyramid()
    with pytest.raises(errors.InputError, match="mean, max, diff, keep, concat"):
        temporal.TemporalWrapper(backbone, pooling="median")  # type: ignore[arg-type]
    with pytest.raises(errors.InputError, match="temporal_n_timestamps"):
        temporal.TemporalWrapper(backbone, pooling="concat")
    with pytest.raises(errors.InputError, match="add up to 5, not to temporal_n_timestamps 4"):
        temporal.TemporalWrapper(backbone, n_timestamps=4, subset_lengths=[2, 3])
    with pytest.raises(errors.InputError, match="at least 1"):
        temporal.TemporalWrapper(backbone, subset_lengths=[])
    wrapped = temporal.TemporalWrapper(backbone, pooling="diff")
    with pytest.raises(errors.InputError, match=r"takes \[B, C, T, H, W\]"):
        wrapped(torch.rand(1, 3, 16, 16))
    with pytest.raises(errors.InputError, match="takes 2 steps"):
        wrapped(torch.rand(1, 3, 3, 16, 16))
    with pytest.raises(errors.InputError, match="3 time steps, but 2 were declared"):
        temporal.TemporalWrapper(backbone, n_timestamps=2)(torch.rand(1, 3, 3, 16, 16))
