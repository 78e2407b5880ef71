"""Poolings, class tokens, normalisation and casts: numbers worked out by hand."""

import math

import pytest
import torch

from genenc_core import errors
from genenc_core.encoding import post_encoder
from genenc_core.encoding.post_encoder import Signature, Step

MAPS = torch.tensor([[[[1.0, 2.0], [3.0, 4.0]], [[-1.0, -8.0], [5.0, 0.0]]]])  # [1, 2, 2, 2]
TOKENS = torch.tensor([[[9.0, -9.0], [1.0, -1.0], [2.0, -8.0], [3.0, 5.0], [4.0, 0.0]]])  # a class token, 4 patches
MAP = Signature(dims=post_encoder.MAP, shape=(2, 2, 2))
LIST = Signature(dims=post_encoder.TOKENS, shape=(5, 2))


def pipeline(*steps: tuple[str, str]) -> post_encoder.Pipeline:
    parsed = [Step(name, (tuple(text.split("=")),) if text else ()) for name, text in steps]  # type: ignore[arg-type]
    return post_encoder.build_pipeline(parsed, point_count=0)


def applied(values: torch.Tensor, given: Signature, *steps: tuple[str, str]) -> torch.Tensor:
    found = pipeline(*steps)
    result = found.apply(values, None)
    assert tuple(result.shape[1:]) == found.output(given).shape
    return result


@pytest.mark.parametrize(
    ("module", "argument", "expected"),
    [
        ("global_max_pool", "", [4.0, 5.0]),
        ("global_min_pool", "", [1.0, -8.0]),
        ("cnn_mean", "", [2.5, -1.0]),
        ("cnn_max", "", [4.0, 5.0]),
        ("cnn_min", "", [1.0, -8.0]),
        ("vit_mean", "", [2.5, -1.0]),
        ("vit_max", "has_cls=false", [4.0, 5.0]),
        ("vit_min", "", [1.0, -8.0]),
        ("flatten", "", [1.0, 2.0, 3.0, 4.0, -1.0, -8.0, 5.0, 0.0]),
    ],
)
def test_poolings_of_a_map(module: str, argument: str, expected: list[float]) -> None:
    assert applied(MAPS, MAP, (module, argument)).tolist() == [expected]


@pytest.mark.parametrize(
    ("module", "argument", "expected"),
    [
        ("flatten", "", [9.0, -9.0, 1.0, -1.0, 2.0, -8.0, 3.0, 5.0, 4.0, 0.0]),
        ("vit_mean", "has_cls=true", [2.5, -1.0]),
        ("vit_max", "has_cls=true", [4.0, 5.0]),
        ("vit_min", "has_cls=true", [1.0, -8.0]),
        ("vit_mean", "has_cls=false", [3.8, -2.6]),
        ("vit_max", "has_cls=false", [9.0, 5.0]),
        ("vit_min", "has_cls=false", [1.0, -9.0]),
        ("vit_cls", "has_cls=true", [9.0, -9.0]),
        ("cls_token", "has_cls=True", [9.0, -9.0]),
    ],
)
def test_token_pooling_knows_the_class_token(module: str, argument: str, expected: list[float]) -> None:
    """5 tokens: an odd number, with a class token or without."""
    torch.testing.assert_close(applied(TOKENS, LIST, (module, argument)), torch.tensor([expected]))


@pytest.mark.parametrize("module", ["vit_mean", "vit_max", "vit_min", "vit_cls", "cls_token"])
def test_tokens_need_has_cls(module: str) -> None:
    with pytest.raises(errors.InputError, match=rf"{module}\(has_cls=true\)"):
        pipeline((module, "")).output(LIST)


def test_nothing_is_left_of_a_class_token_alone() -> None:
    with pytest.raises(errors.InputError, match="leaves nothing"):
        pipeline(("vit_mean", "has_cls=true")).output(Signature(dims=post_encoder.TOKENS, shape=(1, 2)))


def test_generalised_mean_numbers() -> None:
    """Channel 0: (1 + 8 + 27 + 64) / 4 = 25; channel 1: 5^3 / 4, the rest of it being at most 1e-6."""
    torch.testing.assert_close(
        applied(MAPS, MAP, ("gem", "")), torch.tensor([[25 ** (1 / 3), 5 * 0.25 ** (1 / 3)]]), rtol=1e-6, atol=0
    )
    torch.testing.assert_close(applied(MAPS, MAP, ("gem", "p=1"))[0, 0], torch.tensor(2.5))
    torch.testing.assert_close(applied(MAPS, MAP, ("gem", "p=2"))[0, 0], torch.tensor(math.sqrt(30 / 4)))


def test_generalised_mean_of_large_features_is_finite() -> None:
    """x^8 of a million is no float32."""
    found = applied(torch.full((1, 2, 2, 2), 1e6), MAP, ("gem", "p=8"))
    torch.testing.assert_close(found, torch.full((1, 2), 1e6))
    nothing = applied(torch.zeros(1, 2, 2, 2), MAP, ("gem", ""))
    torch.testing.assert_close(nothing, torch.full((1, 2), 1e-6))


POOLINGS = ["global_avg_pool", "global_max_pool", "global_min_pool", "gem", "cnn_mean", "cnn_max", "cnn_min", "vit_max"]


@pytest.mark.parametrize("module", POOLINGS)
def test_a_nan_cell_makes_its_channel_nan_and_no_other(module: str) -> None:
    broken = MAPS.clone()
    broken[0, 0, 1, 0] = math.nan
    found = applied(broken, MAP, (module, ""))
    assert torch.isnan(found).tolist() == [[True, False]]


@pytest.mark.parametrize("module", POOLINGS[:-1])
@pytest.mark.parametrize("shape", [(2, 8), (1, 4, 0, 4), (0, 4, 2, 2)])
def test_wrong_ranks_and_empty_axes_are_refused(module: str, shape: tuple[int, ...]) -> None:
    with pytest.raises(errors.InputError, match=rf"{module} needs \[B, C, H, W\]"):
        pipeline((module, "")).apply(torch.zeros(shape), None)


def test_vectors_of_length_one_along_the_channels_of_every_form() -> None:
    vector = torch.tensor([[3.0, 4.0], [0.0, 0.0], [math.nan, 1.0]])
    found = applied(vector, Signature(dims=post_encoder.VECTOR, shape=(2,)), ("l2_normalize", ""))
    torch.testing.assert_close(found[:2], torch.tensor([[0.6, 0.8], [0.0, 0.0]]))
    assert torch.isnan(found[2]).all()
    tokens = applied(TOKENS, LIST, ("l2_normalize", ""))
    torch.testing.assert_close(tokens.square().sum(2), torch.ones(1, 5))
    maps = applied(MAPS, MAP, ("l2_normalize", ""))
    torch.testing.assert_close(maps.square().sum(1), torch.ones(1, 2, 2))
    torch.testing.assert_close(maps[0, :, 1, 0], torch.tensor([3.0, 5.0]) / math.sqrt(34))


@pytest.mark.parametrize("size", [6e4, 1e-7])
def test_lengths_that_half_precision_does_not_hold(size: float) -> None:
    vector = torch.full((2, 64), size)
    found = applied(
        vector, Signature(dims=post_encoder.VECTOR, shape=(64,)), ("cast", "dtype=float16"), ("l2_normalize", "")
    )
    torch.testing.assert_close(found.float(), torch.full((2, 64), 1 / 8), rtol=1e-3, atol=0)


def test_a_cast_rounds_and_later_modules_compute_in_it() -> None:
    """1 + 2^-11 is half way between two float16 numbers, and rounds to even."""
    values = torch.full((1, 2, 2, 2), 1 + 2**-11)
    assert applied(values, MAP, ("cast", "dtype=float16"), ("cast", "dtype=float32")).eq(1).all()
    assert applied(values, MAP, ("cast", "dtype=bfloat16")).dtype == torch.bfloat16
    pooled = applied(values, MAP, ("cast", "dtype=float16"), ("global_max_pool", ""))
    assert pooled.dtype == torch.float16
    with pytest.raises(errors.InputError, match=r"cast\(float16\): a value of 7e\+04 overflows"):
        applied(torch.full((1, 2, 2, 2), 7e4), MAP, ("cast", "dtype=float16"))


@pytest.mark.parametrize("module", post_encoder.POOLINGS)
def test_cells_on_bars_stay_out_of_a_pooling_over_the_view(module: str) -> None:
    """Those whose centres lie in the view count, as a direct computation has them; a sliver has its nearest cells."""
    maps = torch.rand(2, 3, 4, 4, generator=torch.Generator().manual_seed(0)) + 0.1
    view = torch.tensor([[0.0, 13.0, 64.0, 51.0], [30.0, 0.0, 34.0, 64.0]], dtype=torch.float64)
    none = torch.zeros(2, 0, 2, dtype=torch.float64)
    batch = post_encoder.PointBatch(xy=none, valid=none[..., 0].bool(), input_size=(64, 64), view=view)
    seen = [maps[0:1, :, 1:3], maps[1:2, :, :, 1:3]]
    for over, parts in (("view", seen), ("bars", [maps[0:1], maps[1:2]])):
        found = pipeline((module, f"over={over}")).apply(maps, batch)
        expected = torch.cat([pipeline((module, "")).apply(part, None) for part in parts])
        torch.testing.assert_close(found, expected)
    assert torch.equal(pipeline((module, "")).apply(maps, batch), pipeline((module, "")).apply(maps, None))
