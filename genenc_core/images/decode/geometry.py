"""Fitting of images and points to the model's input, through one affine map from source to model pixels."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch

from genenc_core import spec
from genenc_core.images.decode import decode, decoded, resize
from genenc_core.statuses import POINT_MISSING, POINT_OK, POINT_OUTSIDE, POINT_OUTSIDE_IMAGE


@dataclass(frozen=True, slots=True, kw_only=True)
class Affine:
    """model = source * scale + offset, per axis, in pixels from the top-left edge of the top-left pixel."""

    scale_x: float
    scale_y: float
    offset_x: float
    offset_y: float

    @property
    def row(self) -> tuple[float, float, float, float]:
        """(scale x, scale y, offset x, offset y), as stored."""
        return self.scale_x, self.scale_y, self.offset_x, self.offset_y


@dataclass(frozen=True, slots=True, kw_only=True)
class FitPlan:
    """How to bring one image to the model's size: resize, then crop, then pad."""

    resized: tuple[int, int]
    """(height, width) after the resize."""
    used: tuple[int, int]
    """Rows and columns of it from the top left to the last one that is not cropped."""
    crop_top: int
    crop_left: int
    pad_top: int
    pad_left: int
    affine: Affine

    @property
    def target(self) -> resize.Target:
        """The resize target."""
        return resize.Target(self.resized, self.used)


class Fitter:
    """Fits decoded images to the size of one preprocessing; plans are cached by image size."""

    def __init__(self, preprocessing: spec.Preprocessing) -> None:
        plan = functools.lru_cache(maxsize=1024)(functools.partial(plan_fit, preprocessing=preprocessing))
        self._preprocessing = preprocessing
        self._plan: Callable[[int, int], FitPlan] = plan
        self.hint = decoded.ResizeHint(
            target=lambda height, width: plan(height, width).target,
            reduce=preprocessing.decode == "scaled",
        )
        """For the decoder."""
        self.channels = preprocessing.channels
        """Likewise."""

    def fit(self, image: decoded.Decoded, *, into: np.ndarray | None = None) -> tuple[torch.Tensor, Affine]:
        """Return contiguous pixels `[C, model height, model width]`, and the map from source to model pixels.

        They are uint8 RGB, or float32 of other channels.

        The pixels are written to `into`, if given.

        Raises:
            ImageUnreadable: as in `apply_fit`.
        """
        plan = self._plan(*image.size)
        if image.reduction > 1:
            plan = _plan_reduced(image, plan)
        return apply_fit(image.pixels, plan, self._preprocessing, into=into), plan.affine


def plan_fit(height: int, width: int, preprocessing: spec.Preprocessing) -> FitPlan:
    """Plan how to fit an upright image of `height` x `width` pixels to the model's size.

    stretch: each axis with its own scale. crop: torchvision's Resize (the binding side equals the target, the other is
    truncated to an integer) and CenterCrop (offset round((size - target) / 2), half to even; black where the image is
    smaller); without `resize_short` it just covers the target. pad: the whole image, sides `int(side * scale + 0.5)`
    as in SAM, in the corner or centred as in PIL.ImageOps.pad. The affine has the effective scales after rounding.

    Raises:
        ValueError: a side is below 1.
    """
    if height < 1 or width < 1:
        raise ValueError(f"invalid image size {height} x {width}: both sides must be at least 1")
    rows, columns = preprocessing.height, preprocessing.width
    resized = _RESIZED[preprocessing.fit](height, width, preprocessing)
    spare_rows, spare_columns = rows - resized[0], columns - resized[1]
    pad_top, pad_left = _padding(spare_rows, preprocessing), _padding(spare_columns, preprocessing)
    crop_top, crop_left = round(max(-spare_rows, 0) / 2), round(max(-spare_columns, 0) / 2)
    affine = Affine(
        scale_x=resized[1] / width,
        scale_y=resized[0] / height,
        offset_x=float(pad_left - crop_left),
        offset_y=float(pad_top - crop_top),
    )
    return FitPlan(
        resized=resized,
        used=(min(resized[0], crop_top + rows), min(resized[1], crop_left + columns)),
        crop_top=crop_top,
        crop_left=crop_left,
        pad_top=pad_top,
        pad_left=pad_left,
        affine=affine,
    )


def _plan_reduced(image: decoded.Decoded, plan: FitPlan) -> FitPlan:
    """Return the plan of a reduced image, from that of its source, with the overhang of its outer pixels."""
    scale_y, scale_x = (
        resized / (side * image.reduction) for resized, side in zip(plan.resized, image.pixels.shape[1:], strict=True)
    )
    affine = Affine(
        scale_x=scale_x,
        scale_y=scale_y,
        offset_x=plan.affine.offset_x + image.overhang[1] * scale_x,
        offset_y=plan.affine.offset_y + image.overhang[0] * scale_y,
    )
    return dataclasses.replace(plan, affine=affine)


def apply_fit(
    pixels: torch.Tensor, plan: FitPlan, preprocessing: spec.Preprocessing, *, into: np.ndarray | None = None
) -> torch.Tensor:
    """Fit uint8 or float32 `[C, H, W]` to contiguous `[C, model height, model width]` according to `plan`.

    The result is written to `into`, if given.

    Raises:
        ImageUnreadable: the aspect ratio is so extreme that the resized image would exceed the decoder's pixel limit.
    """
    if plan.resized[0] * plan.resized[1] > decode.MAX_PIXELS:
        raise decoded.ImageUnreadable(
            f"{pixels.shape[2]} x {pixels.shape[1]} pixels would be resized to {plan.resized[1]} x {plan.resized[0]} "
            "before the crop: the aspect ratio is too extreme"
        )
    if preprocessing.resampling == "pillow":
        resized = resize.by_pillow(pixels, plan.resized, interpolation=preprocessing.interpolation)
    else:
        resized = resize.resize(
            pixels, plan.target, interpolation=preprocessing.interpolation, antialias=preprocessing.antialias
        )
    return place(resized, plan, preprocessing, into=into)


def place(
    resized: torch.Tensor, plan: FitPlan, preprocessing: spec.Preprocessing, *, into: np.ndarray | None = None
) -> torch.Tensor:
    """Crop and pad a resized image `[C, H, W]` to contiguous `[C, model height, model width]` of the same type.

    The image may lack rows and columns that would be cropped at the bottom and right.
    """
    rows, columns = preprocessing.height, preprocessing.width
    visible = resized.numpy()[:, plan.crop_top : plan.crop_top + rows, plan.crop_left : plan.crop_left + columns]
    fitted = np.empty((len(visible), rows, columns), dtype=visible.dtype) if into is None else into
    if visible.shape[1:] != (rows, columns):
        fitted[:] = _bars(preprocessing)[:, None, None]
    bottom, right = plan.pad_top + visible.shape[1], plan.pad_left + visible.shape[2]
    # NumPy deinterleaves the colours three times faster than torch's contiguous().
    fitted[:, plan.pad_top : bottom, plan.pad_left : right] = visible
    return torch.from_numpy(fitted)


def _bars(preprocessing: spec.Preprocessing) -> np.ndarray:
    """Return the value of each channel where no image is; channels beyond three repeat those of red, green and blue."""
    colour = preprocessing.pad_value if preprocessing.fit == "pad" else (0, 0, 0)
    if preprocessing.channels is None:
        return np.array(colour, dtype=np.uint8)
    return np.resize(np.array(colour, dtype=np.float32) / 255, preprocessing.channels.count)


def map_points(
    points: np.ndarray, affines: np.ndarray, source_sizes: np.ndarray, preprocessing: spec.Preprocessing
) -> tuple[np.ndarray, np.ndarray]:
    """Map points from source to model pixels.

    Args:
        points: float64 `[N, K, 2]`, x and y in pixels of the upright sources; NaN in either = missing point.
        affines: float64 `[N, 4]`, the images' maps: scale x and y, offset x and y.
        source_sizes: `[N, 2]`, (height, width) of the upright sources, whose right and bottom edges are inclusive.
        preprocessing: defines the model's size.

    Returns:
        Model pixels, float64 `[N, K, 2]`, NaN unless ok, and not beyond the image where bars follow; and status, uint8
        `[N, K]`: 1 ok, 2 outside the part of the image that the model sees, 4 missing point, 5 outside the image.
    """
    scale, offset = affines[:, None, :2], affines[:, None, 2:]
    mapped = points * scale + offset
    source_edge = source_sizes[:, None, ::-1].astype(np.float64)
    model_edge = np.array([preprocessing.width, preprocessing.height], dtype=np.float64)
    slack = 1e-9 * model_edge  # the far edge times a rounded scale may exceed the model's edge slightly
    on_image = ((points >= 0) & (points <= source_edge)).all(axis=2)
    in_view = ((mapped >= -slack) & (mapped <= model_edge + slack)).all(axis=2)
    missing = np.isnan(points).any(axis=2)
    states = [POINT_MISSING, POINT_OUTSIDE_IMAGE, POINT_OUTSIDE]
    status = np.select([missing, ~on_image, ~in_view], states, POINT_OK).astype(np.uint8)
    # The image's far edges are its own: a cell that begins there is one of bars.
    far = source_edge * scale + offset
    inside = np.where(far < model_edge, np.maximum(far - slack, 0), model_edge)
    model_points = np.where((status == POINT_OK)[..., None], np.clip(mapped, 0, inside), np.nan)
    return model_points, status


def views(affines: np.ndarray, source_sizes: np.ndarray, preprocessing: spec.Preprocessing) -> np.ndarray:
    """Return the part of the model's input that each image covers; `affines` and `source_sizes` as in `map_points`.

    float64 `[N, 4]`: left, top, right, bottom in model pixels.
    """
    near = affines[:, 2:]
    far = near + source_sizes[:, ::-1] * affines[:, :2]
    edge = np.array([preprocessing.width, preprocessing.height] * 2, dtype=np.float64)
    clipped: np.ndarray = np.clip(np.hstack([near, far]), 0, edge)
    return clipped


def leaves_bars(preprocessing: spec.Preprocessing) -> bool:
    """Return whether images may leave part of the model's input uncovered."""
    if preprocessing.fit == "crop" and preprocessing.resize_short is not None:
        return preprocessing.resize_short < min(preprocessing.height, preprocessing.width)
    return preprocessing.fit == "pad"


def _stretched(height: int, width: int, preprocessing: spec.Preprocessing) -> tuple[int, int]:  # noqa: ARG001
    return preprocessing.height, preprocessing.width


def _covering(height: int, width: int, preprocessing: spec.Preprocessing) -> tuple[int, int]:
    rows, columns = preprocessing.height, preprocessing.width
    short = preprocessing.resize_short or min(rows, columns)
    rows, columns = short * rows // min(rows, columns), short * columns // min(rows, columns)
    if rows * width >= columns * height:  # the height needs the larger scale
        return rows, max(1, int(rows * width / height))
    return max(1, int(columns * height / width)), columns


def _contained(height: int, width: int, preprocessing: spec.Preprocessing) -> tuple[int, int]:
    scale = min(preprocessing.height / height, preprocessing.width / width)
    return max(1, int(height * scale + 0.5)), max(1, int(width * scale + 0.5))


_RESIZED: Mapping[str, Callable[[int, int, spec.Preprocessing], tuple[int, int]]] = {
    "stretch": _stretched,
    "crop": _covering,
    "pad": _contained,
}


def _padding(spare: int, preprocessing: spec.Preprocessing) -> int:
    """Return the padding before the image on an axis with `spare` pixels to fill."""
    if spare <= 0 or (preprocessing.fit == "pad" and preprocessing.pad_position == "corner"):
        return 0
    return round(spare * 0.5) if preprocessing.fit == "pad" else spare // 2
