"""Pixels land where torchvision, SAM and PIL put them, and points go with them."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps
from torchvision.transforms import v2

from genenc_core import spec
from genenc_core.images.decode import decoded, geometry

MODES = {"bilinear": v2.InterpolationMode.BILINEAR, "bicubic": v2.InterpolationMode.BICUBIC}
SIDES = st.integers(1, 300)
POSITIONS = st.floats(-50, 350)


def map_points(
    points: np.ndarray, affine: geometry.Affine, source_size: tuple[int, int], preprocessing: spec.Preprocessing
) -> tuple[np.ndarray, np.ndarray]:
    """Carry the points of one image, [K, 2], through its geometry."""
    found, status = geometry.map_points(points[None], np.array([affine.row]), np.array([source_size]), preprocessing)
    return found[0], status[0]


@st.composite
def preprocessings(draw: st.DrawFn) -> spec.Preprocessing:
    height, width = draw(st.integers(1, 96)), draw(st.integers(1, 96))
    shorter = min(height, width)
    return spec.Preprocessing(
        height=height,
        width=width,
        fit=draw(st.sampled_from(["stretch", "crop", "pad"])),
        resize_short=draw(st.none() | st.integers(1, 2 * shorter)),
        pad_position=draw(st.sampled_from(["corner", "center"])),
        pad_value=(1, 2, 3),
    )


def noise(height: int, width: int, *, channels_last: bool = True) -> torch.Tensor:
    pixels = torch.randint(0, 256, (height, width, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return pixels.permute(2, 0, 1) if channels_last else pixels.permute(2, 0, 1).contiguous()


def fitted(pixels: torch.Tensor, preprocessing: spec.Preprocessing) -> torch.Tensor:
    plan = geometry.plan_fit(pixels.shape[1], pixels.shape[2], preprocessing)
    return geometry.apply_fit(pixels, plan, preprocessing)


@pytest.mark.parametrize(
    "size", [(375, 500), (500, 375), (480, 640), (333, 777), (224, 224), (256, 300), (100, 90), (1, 9)]
)
@pytest.mark.parametrize(
    ("short", "side"), [(256, 224), (232, 224), (224, 224), (235, 224), (None, 96), (64, 80), (61, 96)]
)
def test_crop_equals_torchvision(size: tuple[int, int], short: int | None, side: int) -> None:
    """Bit for bit Resize + CenterCrop, also where the crop is larger than the image and is filled with black."""
    for channels_last in (True, False):
        pixels = noise(*size, channels_last=channels_last)
        for interpolation in ("bilinear", "bicubic"):
            for antialias in (True, False):
                wanted = v2.Compose(
                    [v2.Resize(short or side, MODES[interpolation], antialias=antialias), v2.CenterCrop(side)]
                )(pixels)
                preprocessing = spec.Preprocessing(
                    height=side,
                    width=side,
                    fit="crop",
                    resize_short=short,
                    interpolation=interpolation,
                    antialias=antialias,
                )
                got = fitted(pixels, preprocessing)
                assert torch.equal(got, wanted)
                assert got.is_contiguous()


@pytest.mark.parametrize("size", [(375, 500), (7, 5), (224, 224)])
def test_stretch_equals_torchvision_resize(size: tuple[int, int]) -> None:
    pixels = noise(*size)
    wanted = v2.Resize((96, 160), MODES["bilinear"], antialias=True)(pixels)
    assert torch.equal(fitted(pixels, spec.Preprocessing(height=96, width=160)), wanted)


def test_whiskertoolbox_resize() -> None:
    """stretch without antialias is WhiskerToolbox's resize of a ramp, rounded instead of cut (reference 1.13)."""
    ramp = (torch.arange(8, dtype=torch.uint8) * 10).expand(3, 8, 8).contiguous()
    preprocessing = spec.Preprocessing(height=4, width=4, antialias=False)
    assert fitted(ramp, preprocessing)[0, 0].tolist() == [5, 25, 45, 65]
    smooth = fitted(ramp, spec.Preprocessing(height=4, width=4))
    assert smooth[0, 0].tolist() == [7, 25, 45, 63]


@given(SIDES, SIDES, st.integers(1, 200), st.none() | st.integers(1, 250))
def test_crop_plan_equals_torchvision_sizes(height: int, width: int, side: int, short: int | None) -> None:
    """Resized size and offsets equal torchvision's own arithmetic for any size."""
    preprocessing = spec.Preprocessing(height=side, width=side, fit="crop", resize_short=short)
    plan = geometry.plan_fit(height, width, preprocessing)
    target = short or side
    long = int(target * max(height, width) / min(height, width))
    assert plan.resized == ((target, long) if height <= width else (long, target))
    assert plan.crop_top == round(max(plan.resized[0] - side, 0) / 2.0)
    assert plan.crop_left == round(max(plan.resized[1] - side, 0) / 2.0)


@given(SIDES, SIDES, st.integers(1, 200), st.integers(1, 200))
def test_crop_just_covers_any_shape(height: int, width: int, rows: int, columns: int) -> None:
    """Without resize_short the resized image covers the target, and equals it on the binding side."""
    plan = geometry.plan_fit(height, width, spec.Preprocessing(height=rows, width=columns, fit="crop"))
    assert plan.resized[0] >= rows
    assert plan.resized[1] >= columns
    assert plan.resized[0] == rows or plan.resized[1] == columns
    assert (plan.pad_top, plan.pad_left) == (0, 0)


def test_resize_short_of_a_non_square_model() -> None:
    """resize_short counts on the model's shorter side, the longer one follows in proportion."""
    preprocessing = spec.Preprocessing(height=224, width=448, fit="crop", resize_short=256)
    plan = geometry.plan_fit(500, 1000, preprocessing)
    assert plan.resized == (256, 512)
    assert (plan.crop_top, plan.crop_left) == (16, 32)


@pytest.mark.parametrize("size", [(1200, 1800), (1800, 1200), (683, 1024), (333, 1000), (1, 5000), (64, 64)])
def test_pad_corner_is_sams_rule(size: tuple[int, int]) -> None:
    """int(side * 1024 / max(side) + 0.5), bottom and right filled."""
    preprocessing = spec.Preprocessing(height=1024, width=1024, fit="pad", pad_position="corner")
    plan = geometry.plan_fit(*size, preprocessing)
    scale = 1024 * 1.0 / max(size)
    assert plan.resized == tuple(max(1, int(side * scale + 0.5)) for side in size)
    assert (plan.pad_top, plan.pad_left, plan.crop_top, plan.crop_left) == (0, 0, 0, 0)


@pytest.mark.parametrize("size", [(300, 400), (401, 299), (50, 60), (640, 640)])
def test_pad_center_lies_where_pil_puts_it(size: tuple[int, int]) -> None:
    """As PIL.ImageOps.pad, DeepSeek's way: same box on the canvas, the pad colour around it."""
    preprocessing = spec.Preprocessing(height=96, width=96, fit="pad", pad_value=(10, 20, 30))
    got = fitted(torch.full((3, *size), 200, dtype=torch.uint8), preprocessing)
    image = Image.new("RGB", size[::-1], (200, 200, 200))
    wanted = torch.from_numpy(np.array(ImageOps.pad(image, (96, 96), color=(10, 20, 30)))).permute(2, 0, 1)
    assert torch.equal(got, wanted)


@settings(deadline=None)
@given(st.integers(20, 150), st.integers(20, 150), preprocessings())
def test_fit_gives_the_models_size(height: int, width: int, preprocessing: spec.Preprocessing) -> None:
    """For any image and any preprocessing the result is contiguous uint8 of the model's size."""
    got = fitted(noise(height, width), preprocessing)
    assert got.shape == (3, preprocessing.height, preprocessing.width)
    assert got.dtype == torch.uint8
    assert got.is_contiguous()


@settings(deadline=None, max_examples=200)
@given(st.integers(20, 250), st.integers(20, 250), preprocessings(), st.sampled_from([0, 1]))
def test_affine_says_where_pixels_went(height: int, width: int, preprocessing: spec.Preprocessing, axis: int) -> None:
    """In an image whose value is its x (or y), the value at a model pixel is the source position the affine names."""
    ramp = (
        torch.arange(width).expand(height, width) if axis == 0 else torch.arange(height)[:, None].expand(height, width)
    )
    plan = geometry.plan_fit(height, width, preprocessing)
    got = geometry.apply_fit(ramp.to(torch.uint8).expand(3, -1, -1).contiguous(), plan, preprocessing)[0]
    affine = plan.affine
    scale, offset = (affine.scale_x, affine.offset_x) if axis == 0 else (affine.scale_y, affine.offset_y)
    middle_row = plan.pad_top + min(plan.resized[0], preprocessing.height) // 2
    middle_column = plan.pad_left + min(plan.resized[1], preprocessing.width) // 2
    line = got[middle_row] if axis == 0 else got[:, middle_column]
    centres = (np.arange(len(line)) + 0.5 - offset) / scale
    reach = 1 + 1 / scale  # within the filter's reach of an edge the ramp bends
    side = width if axis == 0 else height
    inner = (centres > reach) & (centres < side - reach)
    np.testing.assert_allclose(line.numpy()[inner], centres[inner] - 0.5, atol=1.0)


@given(SIDES, SIDES, preprocessings(), st.lists(st.tuples(POSITIONS, POSITIONS), min_size=1, max_size=5))
def test_map_points_is_the_affine_inside_and_nan_outside(
    height: int, width: int, preprocessing: spec.Preprocessing, points: list[tuple[float, float]]
) -> None:
    """Status 1 exactly where the point lies in the image and in the model's view; then the way back gives the point."""
    plan = geometry.plan_fit(height, width, preprocessing)
    affine = plan.affine
    mapped, status = map_points(np.array(points), affine, (height, width), preprocessing)
    assert mapped.shape == (len(points), 2)
    assert status.dtype == np.uint8
    for (x, y), (model_x, model_y), code in zip(points, mapped, status, strict=True):
        expected_x, expected_y = x * affine.scale_x + affine.offset_x, y * affine.scale_y + affine.offset_y
        in_image = 0 <= x <= width and 0 <= y <= height
        in_view = (
            -1e-6 <= expected_x <= preprocessing.width + 1e-6 and -1e-6 <= expected_y <= preprocessing.height + 1e-6
        )
        if code == geometry.POINT_OK:
            assert in_image
            assert in_view
            assert model_x == pytest.approx(expected_x, abs=1e-6)
            assert model_y == pytest.approx(expected_y, abs=1e-6)
            assert 0 <= model_x <= preprocessing.width
            assert 0 <= model_y <= preprocessing.height
        else:
            assert code == (geometry.POINT_OUTSIDE if in_image else geometry.POINT_OUTSIDE_IMAGE)
            assert np.isnan([model_x, model_y]).all()
            clear = 1e-6 < expected_x < preprocessing.width - 1e-6 and 1e-6 < expected_y < preprocessing.height - 1e-6
            assert not (in_image and clear)


@given(SIDES, SIDES, preprocessings())
def test_corners_of_the_image_are_inside(height: int, width: int, preprocessing: spec.Preprocessing) -> None:
    """A point exactly on the right or bottom edge belongs to the image; only a crop can take it out of view."""
    corners = np.array([[0, 0], [width, 0], [0, height], [width, height]], dtype=np.float64)
    plan = geometry.plan_fit(height, width, preprocessing)
    mapped, status = map_points(corners, plan.affine, (height, width), preprocessing)
    uncut = plan.resized[0] <= preprocessing.height and plan.resized[1] <= preprocessing.width
    if uncut:
        assert (status == geometry.POINT_OK).all()
        size = mapped[3] - mapped[0]
        np.testing.assert_allclose(size, [plan.resized[1], plan.resized[0]], atol=1e-9)
    else:
        assert (status == geometry.POINT_OUTSIDE).any()


def test_point_status() -> None:
    """NaN in either coordinate is no point; beyond the edge is outside the image, cut away is outside the view."""
    preprocessing = spec.Preprocessing(height=100, width=100, fit="crop")
    points = np.array(
        [
            [150, 50],
            [np.nan, 3],
            [3, np.nan],
            [np.inf, 5],
            [-0.001, 5],
            [200.001, 5],
            [20, 50],
            [50, 100],
            [151, 100.001],
        ]
    )
    plan = geometry.plan_fit(100, 200, preprocessing)
    mapped, status = map_points(points, plan.affine, (100, 200), preprocessing)
    assert status.tolist() == [1, 4, 4, 5, 5, 5, 2, 1, 5]
    assert mapped[0].tolist() == [100, 50]
    assert mapped[7].tolist() == [0, 100]
    assert np.isnan(mapped[status != 1]).all()


def test_no_points_is_fine() -> None:
    preprocessing = spec.Preprocessing(height=8, width=8)
    plan = geometry.plan_fit(9, 9, preprocessing)
    mapped, status = map_points(np.empty((0, 2)), plan.affine, (9, 9), preprocessing)
    assert mapped.shape == (0, 2)
    assert status.shape == (0,)


def test_endless_strip_is_refused_before_allocation() -> None:
    """A 1 x 1000000 image would become 224 x 224000000 pixels before its crop."""
    preprocessing = spec.Preprocessing(height=224, width=224, fit="crop")
    plan = geometry.plan_fit(1, 1_000_000, preprocessing)
    with pytest.raises(decoded.ImageUnreadable, match="aspect ratio is too extreme"):
        geometry.apply_fit(torch.zeros((3, 1, 1_000_000), dtype=torch.uint8), plan, preprocessing)


def test_size_zero_is_a_programming_error() -> None:
    with pytest.raises(ValueError, match="must be at least 1"):
        geometry.plan_fit(0, 5, spec.Preprocessing(height=8, width=8))


@pytest.mark.parametrize("position", ["center", "corner"])
@pytest.mark.parametrize("size", [(100, 200), (200, 100), (480, 640), (3, 4), (97, 194)])
@pytest.mark.parametrize("side", [128, 224, 256])
def test_a_point_on_the_edge_beside_bars_is_of_the_image(position: str, size: tuple[int, int], side: int) -> None:
    """Labels that are clamped to the image, or normalised to 1, lie on its far edges."""
    height, width = size
    preprocessing = spec.Preprocessing(height=side, width=side, fit="pad", pad_position=position)
    affine = np.array([geometry.plan_fit(height, width, preprocessing).affine.row])
    corners = np.array([[[width, height], [np.nextafter(width, 0), np.nextafter(height, 0)], [0, 0]]], np.float64)
    points, status = geometry.map_points(corners, affine, np.array([size]), preprocessing)
    assert (status == 1).all()
    left, top, right, bottom = geometry.views(affine, np.array([size]), preprocessing)[0]
    shorter = 1 if height < width else 0
    assert (points[0, :2, shorter] < (right, bottom)[shorter]).all()
    np.testing.assert_allclose(points[0, :2], [[right, bottom]] * 2, atol=1e-6)
    np.testing.assert_allclose(points[0, 2], [left, top], atol=1e-9)
