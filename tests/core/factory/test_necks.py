"""All nine necks: the numbers of their outputs, and channel lists that are true."""

from collections import OrderedDict
from typing import Any

import pytest
import torch
from torch import nn

from genenc_core import errors
from genenc_core.factory import features as feats
from genenc_core.factory import necks, registries, task_models


def build(name: str, channels: list[int], /, **options: Any) -> Any:
    return registries.NECK_REGISTRY.build(name, channels, **options).eval()


def maps(count: int = 4, channels: int = 32, side: int = 14) -> list[torch.Tensor]:
    return [torch.rand(2, channels, side, side) for _ in range(count)]


def tokens(count: int = 4, number: int = 197, channels: int = 32) -> list[torch.Tensor]:
    return [torch.rand(2, number, channels) for _ in range(count)]


CASES: list[tuple[str, dict[str, Any], list[torch.Tensor]]] = [
    ("SelectIndices", {"indices": [0, -1, 2]}, maps()),
    ("AggregateTokens", {}, tokens()),
    ("AggregateTokens", {"pooling": "CLS", "index": 1}, tokens()),
    ("AggregateTokens", {"pooling": "max"}, maps()),
    ("AggregateTokens", {"pooling": 5}, tokens()),
    ("PermuteDims", {"new_order": [0, 3, 1, 2]}, [item.permute(0, 2, 3, 1) for item in maps()]),
    ("InterpolateToPyramidal", {}, maps()),
    ("MaxpoolToPyramidal", {}, maps()),
    ("ReshapeTokensToImage", {}, tokens()),
    ("ReshapeTokensToImage", {"effective_time_dim": 3}, tokens(number=1 + 3 * 196)),
    ("AddBottleneckLayer", {}, maps()),
    ("LearnedInterpolateToPyramidal", {}, maps()),
    ("FeaturePyramidNetworkNeck", {}, maps()),
    ("FeaturePyramidNetworkNeck", {"out_channel": 8, "output_ordered_dict": False}, maps()),
]


@pytest.mark.parametrize(("name", "options", "given"), CASES, ids=[f"{name}-{opts}" for name, opts, _ in CASES])
def test_channel_list_matches_the_outputs(name: str, options: dict[str, Any], given: list[torch.Tensor]) -> None:
    """Theirs is wrong for AggregateTokens, and for ReshapeTokensToImage over several times."""
    channels = [32] * len(given)
    neck = build(name, channels, **options)
    copies = [item.clone() for item in given]
    out = feats.as_list(neck(list(given)))
    assert neck.process_channel_list(channels) == [feats.channels_of(item) for item in out]
    assert channels == [32] * len(given)
    assert all(torch.equal(item, copy) for item, copy in zip(given, copies, strict=True))
    assert {name for name, _, _ in CASES} == {item.removeprefix("genenc_") for item in registries.NECK_REGISTRY}


@pytest.mark.parametrize(
    ("name", "sides"),
    [
        ("InterpolateToPyramidal", [224, 112, 56, 28]),
        ("MaxpoolToPyramidal", [14, 7, 3, 1]),
        ("LearnedInterpolateToPyramidal", [56, 28, 14, 7]),
        ("FeaturePyramidNetworkNeck", [14, 14, 14, 14]),
    ],
)
def test_pyramid_sizes_match_terratorch(name: str, sides: list[int]) -> None:
    out = feats.as_list(build(name, [32] * 4)(maps()))
    assert [tuple(item.shape[2:]) for item in out] == [(side, side) for side in sides]


def test_pyramid_channels_match_terratorch() -> None:
    assert build("LearnedInterpolateToPyramidal", [32] * 4).process_channel_list([32] * 4) == [8, 16, 32, 32]
    assert build("FeaturePyramidNetworkNeck", [32] * 3).process_channel_list([32] * 3) == [256] * 3
    assert build("AddBottleneckLayer", [8, 32]).process_channel_list([8, 32]) == [8, 32, 16]


def test_pyramid_values() -> None:
    """Interpolation repeats cells (nearest), pooling takes the largest of each block."""
    ramp = torch.arange(16.0).reshape(1, 1, 4, 4)
    (first, second) = build("InterpolateToPyramidal", [1, 1])([ramp, ramp])
    assert torch.equal(first, ramp.repeat_interleave(4, 2).repeat_interleave(4, 3))
    assert torch.equal(second, ramp.repeat_interleave(2, 2).repeat_interleave(2, 3))
    _, pooled = build("MaxpoolToPyramidal", [1, 1])([ramp, ramp])
    assert pooled.flatten().tolist() == [5, 7, 13, 15]


def test_feature_pyramid_returns_dict_or_list() -> None:
    out = build("FeaturePyramidNetworkNeck", [32] * 2, out_channel=4)(maps(2))
    assert isinstance(out, OrderedDict)
    assert list(out) == ["feat0", "feat1"]
    assert isinstance(build("FeaturePyramidNetworkNeck", [32], output_ordered_dict=False)(maps(1)), list)


def test_add_bottleneck_does_not_modify_its_input() -> None:
    """Theirs appends to the list that it was given."""
    given = maps(2)
    out = build("AddBottleneckLayer", [32, 32])(given)
    assert (len(given), len(out)) == (2, 3)
    assert tuple(out[2].shape) == (2, 16, 14, 14)


@pytest.mark.parametrize("pooling", ["mean", "max", "min", "CLS", 3, -1])
def test_aggregated_tokens(pooling: str | int) -> None:
    """Theirs: a token's number is a NameError."""
    given = tokens(2)
    (vector,) = build("AggregateTokens", [32, 32], pooling=pooling, index=0)(given)
    expected = {
        "mean": given[0].mean(1),
        "max": given[0].max(1).values,
        "min": given[0].min(1).values,
        "CLS": given[0][:, 0],
        3: given[0][:, 3],
        -1: given[0][:, -1],
    }[pooling]
    assert torch.equal(vector, expected)


def test_a_map_is_aggregated_over_its_cells() -> None:
    given = maps(1)
    (vector,) = build("AggregateTokens", [32])(given)
    torch.testing.assert_close(vector, given[0].mean((2, 3)))


def test_tokens_are_row_major_and_times_become_channels() -> None:
    """Token 1 + t * h * w + y * w + x, channel e -> channel t * E + e, row y, column x."""
    steps, height, width, channels = 3, 2, 4, 5
    given = torch.rand(2, 1 + steps * height * width, channels)
    (image,) = build("ReshapeTokensToImage", [channels], effective_time_dim=steps, h=height)([given])
    assert tuple(image.shape) == (2, steps * channels, height, width)
    for step, row, column in ((0, 0, 0), (1, 1, 2), (2, 0, 3)):
        token = given[:, 1 + step * height * width + row * width + column]
        assert torch.equal(image[:, step * channels : (step + 1) * channels, row, column], token)


def test_non_square_grid_from_rows_or_image() -> None:
    """Theirs: with image_size a NameError; an explicit h works: [2, 1 + 14 * 28, 32] -> 14 x 28."""
    given = tokens(1, number=1 + 14 * 28)
    (by_rows,) = build("ReshapeTokensToImage", [32], h=14)(given)
    neck = build("ReshapeTokensToImage", [32])
    neck.tokens = feats.PatchTokens(prefix=1, patch=(16, 8))
    (by_image,) = neck(given, image_size=(224, 224))
    assert tuple(by_rows.shape) == (2, 32, 14, 28)
    assert torch.equal(by_rows, by_image)
    with pytest.raises(errors.EncoderError, match="392 tokens do not fill a grid of 19 x 19"):
        build("ReshapeTokensToImage", [32])(given)


def test_prefix_tokens_are_not_guessed() -> None:
    """15 x 15 = 225 patches without class token stay 225; theirs takes the odd count for a class token elsewhere."""
    neck = build("ReshapeTokensToImage", [32])
    neck.tokens = feats.PatchTokens(prefix=0, patch=(8, 8))
    (image,) = neck(tokens(1, number=225), image_size=(120, 120))
    assert tuple(image.shape) == (2, 32, 15, 15)
    neck.tokens = feats.PatchTokens(prefix=5, patch=(8, 8), registers=4)
    given = tokens(1, number=5 + 16)
    assert torch.equal(neck(given, image_size=(32, 32))[0][:, :, 0, 0], given[0][:, 5])
    (image,) = build("ReshapeTokensToImage", [32], prefix_tokens=5)(given)
    assert torch.equal(image[:, :, 0, 0], given[0][:, 5])
    (image,) = build("ReshapeTokensToImage", [32], remove_cls_token=False)(tokens(1, number=16))
    assert tuple(image.shape) == (2, 32, 4, 4)


def test_calls_are_independent() -> None:
    """Theirs: tokens without class token flip remove_cls_token for good."""
    neck = build("ReshapeTokensToImage", [32])
    with pytest.raises(errors.EncoderError):
        neck(tokens(1, number=196))
    given = tokens(1)
    assert torch.equal(neck(given)[0][:, :, 0, 0], given[0][:, 1])


@pytest.mark.parametrize(
    ("name", "channels", "options", "said"),
    [
        ("SelectIndices", [3, 3], {"indices": [2]}, "from -2 to 1"),
        ("SelectIndices", [3, 3], {"indices": []}, "one or more"),
        ("AggregateTokens", [3], {"pooling": "median"}, "mean, max, min, CLS"),
        ("AggregateTokens", [3], {"index": 1}, "no feature 1 among 1"),
        ("PermuteDims", [3], {"new_order": [0, 1, 1]}, "every axis once"),
        ("ReshapeTokensToImage", [3], {"effective_time_dim": 0}, "at least 1"),
        ("InterpolateToPyramidal", [3], {"scale_factor": 0}, "at least 1"),
        ("MaxpoolToPyramidal", [3], {"kernel_size": 0}, "at least 1"),
        ("LearnedInterpolateToPyramidal", [3] * 5, {}, "exactly 4 features, not 5"),
        ("FeaturePyramidNetworkNeck", [3], {"out_channel": 0}, "at least 1"),
    ],
)
def test_bad_arguments(name: str, channels: list[int], options: dict[str, Any], said: str) -> None:
    with pytest.raises(errors.InputError, match=said):
        build(name, channels, **options)


def test_features_of_the_wrong_kind() -> None:
    with pytest.raises(errors.EncoderError, match="omit this neck"):
        build("ReshapeTokensToImage", [32])(maps(1))
    with pytest.raises(errors.EncoderError, match="no token 300 among 197"):
        build("AggregateTokens", [32], pooling=300)(tokens(1))
    neck = build("AggregateTokens", [32], pooling="CLS")
    for registers in (0, 4):
        neck.tokens = feats.PatchTokens(prefix=registers, registers=registers, patch=(8, 8))
        with pytest.raises(errors.EncoderError, match="no class token"):
            neck(tokens(1))
    with pytest.raises(errors.EncoderError, match="effective_time_dim 3"):
        build("ReshapeTokensToImage", [32], effective_time_dim=3)(tokens(1))


def test_a_type_error_inside_a_neck_is_not_hidden() -> None:
    """Theirs: NeckSequential calls again without image_size on any TypeError."""
    calls = []

    class Broken(necks.Neck):
        def process_channel_list(self, channel_list: Any) -> list[int]:
            return list(channel_list)

        def forward(self, features: Any, image_size: Any = None) -> Any:  # noqa: ARG002
            calls.append(image_size)
            raise TypeError("inside")

    class Plain(nn.Module):
        def forward(self, features: list[torch.Tensor]) -> list[torch.Tensor]:
            return features[:1]

    with pytest.raises(TypeError, match="inside"):
        task_models.NeckSequence(Plain(), Broken([32]))(maps(), image_size=(224, 224))
    assert calls == [(224, 224)]
