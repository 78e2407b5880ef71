"""Post-encoder modules: WhiskerToolbox's numbers, invalid points, and chains refused before anything runs."""

import math

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from torch.nn import functional

from genenc_core import errors
from genenc_core.encoding import post_encoder
from genenc_core.encoding.post_encoder import GlobalAvgPool, Pipeline, PointBatch, Signature, SpatialPoint, Step

MAP = Signature(dims=post_encoder.MAP, shape=(3, 4, 5))
ORACLE = torch.arange(120.0).reshape(2, 3, 4, 5)


def at(*points: tuple[float, float], size: tuple[int, int] = (480, 640), batch: int = 2) -> PointBatch:
    xy = torch.tensor([points] * batch, dtype=torch.float64)
    return PointBatch(xy=xy, valid=torch.ones(xy.shape[:2], dtype=torch.bool), input_size=size)


@pytest.mark.parametrize(
    ("point", "nearest", "bilinear"),
    [
        ((0, 0), (0, 20, 40), (0, 20, 40)),
        ((64, 60), (6, 26, 46), (3, 23, 43)),
        ((192, 180), (12, 32, 52), (9, 29, 49)),
        ((320, 240), (13, 33, 53), (12.5, 32.5, 52.5)),
        ((639, 479), (19, 39, 59), (19, 39, 59)),
        ((1000, -50), (4, 24, 44), (4, 24, 44)),
    ],
)
def test_oracle_numbers(point: tuple[float, float], nearest: tuple[float, ...], bilinear: tuple[float, ...]) -> None:
    """Source 640 x 480, map 4 x 5; sample 1 is sample 0 plus 60."""
    for mode, expected in (("nearest", nearest), ("bilinear", bilinear)):
        found = SpatialPoint(mode, 1).apply(ORACLE, at(point))
        wanted = torch.tensor([expected, [value + 60 for value in expected]]).float()[:, None]
        if mode == "nearest":
            assert torch.equal(found, wanted)
        else:
            torch.testing.assert_close(found, wanted, rtol=1e-6, atol=2e-5)


@pytest.mark.parametrize(
    ("pixel", "nearest", "cell"),
    [(16, 1, 0), (48, 2, 1), (80, 3, 2), (208, 6, 6), (207, 6, 6), (15.9, 0, 0), (-5, 0, 0), (31, 1, 0), (32, 1, 1)],
)
def test_half_cells_round_away_from_zero_and_cell_mode_floors(pixel: float, nearest: int, cell: int) -> None:
    ramp = torch.arange(7.0).expand(1, 1, 7, 7)
    points = at((pixel, 0.0), size=(224, 224), batch=1)
    assert SpatialPoint("nearest", 1).apply(ramp, points).item() == nearest
    assert SpatialPoint("cell", 1).apply(ramp, points).item() == cell


def test_bilinear_on_a_ramp_is_exact() -> None:
    ramp = torch.arange(4.0).expand(1, 1, 4, 4)
    assert SpatialPoint("bilinear", 1).apply(ramp, at((1.5, 0.0), size=(4, 4), batch=1)).item() == pytest.approx(1.5)


def test_many_points_of_a_batch_equal_one_by_one() -> None:
    generator = torch.Generator().manual_seed(0)
    maps = torch.rand(4, 6, 5, 7, generator=generator)
    xy = torch.rand(4, 3, 2, generator=generator, dtype=torch.float64) * 100
    valid = torch.ones(4, 3, dtype=torch.bool)
    for mode in post_encoder.INTERPOLATIONS:
        module = SpatialPoint(mode, 3)
        together = module.apply(maps, PointBatch(xy=xy, valid=valid, input_size=(100, 100)))
        for image in range(4):
            for point in range(3):
                one = PointBatch(
                    xy=xy[image : image + 1, point : point + 1], valid=valid[:1, :1], input_size=(100, 100)
                )
                assert torch.equal(together[image, point], module.apply(maps[image : image + 1], one)[0, 0])


PIXELS = st.floats(-50, 400, allow_nan=False)


@hypothesis.given(x=PIXELS, y=PIXELS, mode=st.sampled_from(["nearest", "cell"]))
def test_gathered_cells_follow_the_formula(x: float, y: float, mode: str) -> None:
    """WhiskerToolbox: v = x * (w / width); nearest floor(v + 0.5), cell floor(v); clamped."""
    cells = torch.arange(35.0).reshape(1, 1, 5, 7)
    found = SpatialPoint(mode, 1).apply(cells, at((x, y), size=(300, 350), batch=1)).item()
    half = 0.5 if mode == "nearest" else 0.0
    column = min(max(math.floor(x * (7 / 350) + half), 0), 6)
    row = min(max(math.floor(y * (5 / 300) + half), 0), 4)
    assert found == row * 7 + column


@pytest.mark.parametrize("mode", post_encoder.INTERPOLATIONS)
def test_invalid_points_are_nan_and_disturb_nothing(mode: str) -> None:
    xy = torch.tensor([[[float("nan"), float("nan")], [320.0, 240.0]]] * 2, dtype=torch.float64)
    valid = torch.tensor([[False, True]] * 2)
    found = SpatialPoint(mode, 2).apply(ORACLE, PointBatch(xy=xy, valid=valid, input_size=(480, 640)))
    assert torch.isnan(found[:, 0]).all()
    assert torch.equal(found[:, 1:], SpatialPoint(mode, 1).apply(ORACLE, at((320, 240))))


def test_half_precision_maps_are_sampled_at_full_precision_positions() -> None:
    """A float16 grid would be off by up to a cell on a map of 1024 cells."""
    ramp = torch.arange(1024.0).expand(1, 1, 2, 1024).half()
    found = SpatialPoint("bilinear", 1).apply(ramp, at((701.0, 0.0), size=(1024, 1024), batch=1))
    assert found.item() == 701.0
    assert found.dtype == torch.float16


def test_global_average_pool_numbers() -> None:
    pool = GlobalAvgPool()
    assert torch.equal(pool.apply(ORACLE, None), torch.tensor([[9.5, 29.5, 49.5], [69.5, 89.5, 109.5]]))
    assert torch.equal(pool.apply(torch.full((2, 3, 4, 4), 2.0), None), torch.full((2, 3), 2.0))
    pair = torch.stack([torch.full((2, 2), 1.0), torch.full((2, 2), 5.0)])[None]
    assert torch.equal(pool.apply(pair, None), torch.tensor([[1.0, 5.0]]))
    assert torch.equal(pool.apply(torch.arange(4.0).reshape(1, 4, 1, 1), None), torch.arange(4.0)[None])


@pytest.mark.parametrize("shape", [(2, 8), (1, 4, 0, 4), (0, 4, 2, 2)])
def test_wrong_ranks_and_empty_axes_are_refused_at_run_time(shape: tuple[int, ...]) -> None:
    for module in (GlobalAvgPool(), SpatialPoint("nearest", 1)):
        with pytest.raises(errors.InputError, match=r"needs \[B, C, H, W\]"):
            module.apply(torch.zeros(shape), at((0, 0), batch=shape[0]))


def test_output_signatures() -> None:
    assert GlobalAvgPool().output(MAP) == Signature(dims=("channel",), shape=(3,))
    assert SpatialPoint("nearest", 4).output(MAP) == Signature(dims=("point", "channel"), shape=(4, 3))
    assert Pipeline(()).output(MAP) == MAP


@pytest.mark.parametrize(
    "steps",
    [
        (Step("global_avg_pool"), Step("spatial_point")),
        (Step("spatial_point"), Step("global_avg_pool")),
        (Step("global_avg_pool"), Step("none"), Step("global_avg_pool")),
    ],
)
def test_impossible_chains_are_refused_at_configuration(steps: tuple[Step, ...]) -> None:
    with pytest.raises(errors.InputError, match="needs a feature map"):
        post_encoder.build_pipeline(steps, point_count=2).output(MAP)


def test_bilinear_needs_two_cells_each_way() -> None:
    with pytest.raises(errors.InputError, match="at least 2 x 2 cells"):
        SpatialPoint("bilinear", 1).output(Signature(dims=post_encoder.MAP, shape=(3, 1, 4)))


def test_empty_pipeline_is_the_identity_and_a_pipeline_equals_its_steps() -> None:
    assert Pipeline(()).apply(ORACLE, None) is ORACLE
    assert torch.equal(Pipeline((GlobalAvgPool(),)).apply(ORACLE, None), GlobalAvgPool().apply(ORACLE, None))


@pytest.mark.parametrize(
    ("step", "word"),
    [
        (Step("max"), "known: cast, cls_token, cnn_max, .*gem, global_avg_pool, .*none, .*spatial_point"),
        (Step("spatial_point", (("interpolation", "cubic"),)), "nearest, cell, bilinear, bilinear_corners"),
        (Step("spatial_point", (("mode", "cell"),)), "unknown argument 'mode'"),
        (Step("global_avg_pool", (("size", "2"),)), "unknown argument 'size'"),
    ],
)
def test_unknown_names_list_the_known_ones(step: Step, word: str) -> None:
    with pytest.raises(errors.InputError, match=word):
        post_encoder.build_pipeline([step], point_count=1)


@pytest.mark.slow
def test_points_are_needed() -> None:
    with pytest.raises(errors.InputError, match="--points"):
        post_encoder.build_pipeline([Step("spatial_point")], point_count=0)
    with pytest.raises(errors.InputError, match="--points"):
        SpatialPoint("nearest", 1).apply(ORACLE, None)


@pytest.mark.parametrize("name", ["Nearest", "Bilinear", "nearest", "bilinear"])
def test_their_enum_names_work_too(name: str) -> None:
    step = Step("spatial_point", (("interpolation", name),))
    (module,) = post_encoder.build_pipeline([step], point_count=1).modules
    assert module == SpatialPoint(name.lower(), 1)


def test_bilinear_equals_grid_sample_over_the_formula() -> None:
    generator = np.random.default_rng(1)
    maps = torch.from_numpy(generator.normal(size=(1, 5, 6, 9)).astype(np.float32))
    x, y = 37.3, 81.9
    grid = torch.tensor([2 * (x * 9 / 120) / 8 - 1, 2 * (y * 6 / 90) / 5 - 1]).reshape(1, 1, 1, 2)
    expected = functional.grid_sample(maps, grid, padding_mode="border", align_corners=True)[0, :, 0, 0]
    found = SpatialPoint("bilinear", 1).apply(maps, at((x, y), size=(90, 120), batch=1))[0, 0]
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
