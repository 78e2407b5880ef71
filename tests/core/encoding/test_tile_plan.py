"""Tile plans: every cell covered once in weight, on the grid of the maps, for every size; the rest refused by name."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from genenc_core import errors, spec
from genenc_core.encoding import tile_plan

BLENDS: tuple[tile_plan.Blend, ...] = ("cosine", "average", "none")


def slot(*shape: int, name: str = "features") -> spec.SlotSpec:
    return spec.SlotSpec(name=name, shape=shape)


def axis(
    canvas: int, tile: int, overlap: int, *, stride: int = 1, trim: int = 0, blend: tile_plan.Blend = "cosine"
) -> tuple[tile_plan.TilePlan, tuple[tile_plan.Segment, ...]]:
    """Return a square plan and the segments of one of its axes."""
    shape = slot(1, tile // stride, tile // stride)
    plan = tile_plan.make_plan(
        [shape], canvas=(canvas, canvas), tile=(tile, tile), overlap=overlap, trim=trim, blend=blend
    )
    rows, columns = plan.segments(shape.shape)
    assert [(row.start, row.stop, row.first) for row in rows] == [(at.start, at.stop, at.first) for at in columns]
    return plan, rows


def check_cover(segments: tuple[tile_plan.Segment, ...], *, cells: int, tile_cells: int) -> None:
    """Weights are positive, add up to 1 in every cell, and belong to cells that the tile has."""
    total = np.zeros(cells)
    for segment in segments:
        assert 0 <= segment.start <= segment.stop <= cells
        assert 0 <= segment.first <= segment.first + segment.stop - segment.start <= tile_cells
        assert segment.weights.dtype == np.float32
        assert (segment.weights > 0).all()
        total[segment.start : segment.stop] += segment.weights
    np.testing.assert_allclose(total, 1.0, atol=3e-7)


@pytest.mark.parametrize(
    ("canvas", "tile", "overlap", "offsets"),
    [
        (512, 224, 32, (0, 192, 288)),  # nine tiles a canvas, eighteen for two
        (224, 224, 32, (0,)),
        (225, 224, 32, (0, 1)),  # one pixel more than a tile
        (416, 224, 32, (0, 192)),  # exactly two steps
        (417, 224, 32, (0, 192, 193)),
        (448, 224, 0, (0, 224)),  # nothing shared
        (672, 224, 112, (0, 112, 224, 336, 448)),
    ],
)
def test_where_tiles_lie(canvas: int, tile: int, overlap: int, offsets: tuple[int, ...]) -> None:
    plan, _ = axis(canvas, tile, overlap)
    assert plan.offsets == (offsets, offsets)
    assert plan.count == len(offsets) ** 2


def test_rows_and_columns_are_counted_apart() -> None:
    plan = tile_plan.make_plan([slot(1, 14, 14)], canvas=(1024, 1536), tile=(224, 224))
    assert plan.overlap == 32
    assert [len(offsets) for offsets in plan.offsets] == [6, 8]
    assert plan.count == 48
    assert plan.describe() == "6 x 8 of 224 x 224, overlap 32, trim 0, blend cosine"


@pytest.mark.parametrize("blend", BLENDS)
@pytest.mark.parametrize("trim", [0, 8, 16])
def test_every_canvas_size_of_a_224_pixel_model_is_covered(blend: tile_plan.Blend, trim: int) -> None:
    """209, 225 and every other size up to past the third tile; 0 and all of the possible trim."""
    for canvas in range(224, 640):
        _, segments = axis(canvas, 224, 32, trim=trim, blend=blend)
        check_cover(segments, cells=canvas, tile_cells=224)


@pytest.mark.slow
@settings(max_examples=300, deadline=None)
@given(data=st.data(), stride=st.integers(1, 9), tile_cells=st.integers(1, 24), blend=st.sampled_from(BLENDS))
def test_any_plan_covers(data: st.DataObject, stride: int, tile_cells: int, blend: tile_plan.Blend) -> None:
    overlap = data.draw(st.integers(0, tile_cells - 1), "overlap cells")
    trim = data.draw(st.integers(0, overlap // 2), "trim cells")
    cells = data.draw(st.integers(tile_cells, 5 * tile_cells), "canvas cells")
    _, segments = axis(
        cells * stride, tile_cells * stride, overlap * stride, stride=stride, trim=trim * stride, blend=blend
    )
    check_cover(segments, cells=cells, tile_cells=tile_cells)


def test_trimmed_cells_count_for_nothing_except_at_the_canvas_border() -> None:
    _, (first, last) = axis(40, 24, 8, trim=2)
    assert (first.start, first.stop) == (0, 22)
    assert (last.start, last.stop, last.first) == (18, 40, 2)


def test_cosine_ramps_meet_in_the_middle_and_are_flat_elsewhere() -> None:
    _, (first, last) = axis(44, 24, 4)
    expected = np.cos(np.pi / 2 * (np.arange(4) + 0.5) / 4) ** 2
    np.testing.assert_array_equal(first.weights[:20], 1.0)
    np.testing.assert_allclose(first.weights[20:], expected, rtol=1e-6)
    np.testing.assert_allclose(last.weights[:4], expected[::-1], rtol=1e-6)
    np.testing.assert_array_equal(last.weights[4:], 1.0)


def test_average_weighs_alike_and_none_cuts_in_the_middle() -> None:
    _, (first, _) = axis(44, 24, 4, blend="average")
    np.testing.assert_array_equal(first.weights[20:], 0.5)
    _, (first, last) = axis(44, 24, 4, blend="none")
    assert (first.stop, last.start) == (22, 22)
    assert (first.weights == 1).all()


def test_maps_of_several_strides_share_one_grid() -> None:
    slots = [slot(4, 12, 16, name="a"), slot(8, 8, 16, name="b"), slot(6, name="cls")]
    plan = tile_plan.make_plan(slots, canvas=(72, 96), tile=(48, 64))
    assert plan.strides(slots[0].shape) == (4, 4)
    assert plan.strides(slots[1].shape) == (6, 4)
    assert plan.overlap == 12  # an eighth of 48 is 6; the common step of 4, 6 and 4 pixels is 12
    assert plan.offsets == ((0, 24), (0, 32))
    assert [plan.stitched(item).shape for item in slots] == [(4, 18, 24), (8, 12, 24), (6,)]


@pytest.mark.parametrize("upright", [True, False])
def test_the_common_step_counts_on_either_axis(upright: bool) -> None:
    shapes = [(1, 12, 48), (1, 8, 48)] if upright else [(1, 48, 12), (1, 48, 8)]
    slots = [slot(*shape, name=str(shape)) for shape in shapes]
    assert tile_plan.make_plan(slots, canvas=(96, 96), tile=(48, 48)).overlap == 12
    with pytest.raises(errors.InputError, match="use 0 or 12"):
        tile_plan.make_plan(slots, canvas=(96, 96), tile=(48, 48), overlap=6)


def test_a_map_of_one_cell_can_only_lie_side_by_side() -> None:
    pooled = [slot(5, 1, 1)]
    assert tile_plan.make_plan(pooled, canvas=(64, 96), tile=(32, 32)).overlap == 0
    with pytest.raises(errors.InputError, match=r"--tile-overlap 8 is out of range: it must be 0 to 0 pixels"):
        tile_plan.make_plan(pooled, canvas=(64, 96), tile=(32, 32), overlap=8)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"canvas": (100, 100)}, r"canvas of 100 x 100 pixels is smaller than the model's input of 224 x 224"),
        ({"canvas": (209, 209)}, r"canvas of 209 x 209 pixels is smaller"),
        ({"canvas": (448, 208)}, r"canvas of 448 x 208 pixels is smaller than the model's input of 224 x 224"),
        ({"canvas": (500, 512)}, r"--canvas 500x512 is not a multiple .* 16 x 16 pixels: use 496x512 or 512x512"),
        ({"canvas": (225, 230)}, r"use 224x224 or 240x240"),
        ({"overlap": 30}, r"--tile-overlap 30 is not a multiple .* 16 pixels: use 16 or 32"),
        ({"overlap": 224}, r"--tile-overlap 224 is out of range: it must be 0 to 208 pixels"),
        ({"overlap": -16}, r"--tile-overlap -16 is out of range"),
        ({"trim": 32}, r"--tile-trim 32 is out of range: it must be 0 to half the overlap of 32 pixels"),
        ({"trim": 8}, r"--tile-trim 8 is not a multiple .* use 0 or 16"),
        ({"slots": [slot(3, 13, 13)]}, r"'features' is a map of 13 x 13 cells for 224 x 224 pixels.*--image-size"),
        ({"slots": [slot(4, 192, name="register")]}, r"'register' has shape \[4, 192\].*maps \[C, h, w\]"),
    ],
)
def test_what_cannot_be_tiled_is_refused_with_what_would_do(change: dict[str, object], said: str) -> None:
    values = {"slots": [slot(3, 14, 14)], "canvas": (512, 512), "tile": (224, 224), **change}
    with pytest.raises(errors.InputError, match=said):
        tile_plan.make_plan(values.pop("slots"), **values)  # type: ignore[arg-type]
