"""The arrays that every run stores beside its products, in one table for all that plan, fill, verify or document them.

A product is an array of its own: its name, type and axes are the user's (`encoding.products`).
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final, Literal

from genenc_core import statuses

STATUS: Final = "status"
POINT_STATUS: Final = "point_status"
POINT: Final = "point"
REGION: Final = "region"
REGION_STATUS: Final = "region_status"
INDIVIDUAL: Final = "individual"
LIKELIHOOD: Final = "point_likelihood"
CONVENTIONS: Final = "zarr_conventions"
"""Attribute of a run's group: the conventions that its attributes follow; runs of earlier versions have none."""
Writer = Literal["creator", "encoder", "store"]


@dataclass(frozen=True, slots=True)
class StoredArray:
    """One array: what it is called, how it is stored, who writes it."""

    name: str
    dtype: str
    """A numpy name, or `string`."""
    dims: tuple[str, ...]
    writer: Writer
    """`creator`: whole, before any image is read; `encoder`: with the features of a shard; `store`: last of a shard."""
    fill: float | int | None = None
    """What a reader sees where no shard is committed; None: the creator has written every row."""
    attributes: Mapping[str, object] = field(default_factory=dict)
    unreadable: float | int | None = None
    """What a committed row holds whose image gave no features; None: the fill."""
    coordinate: bool = False
    """Whether products name it among their `coordinates`."""
    later: Mapping[str, object] = field(default_factory=dict)
    """Further attributes in runs with `CONVENTIONS`: those of creators are no part of a run's plan."""

    @property
    def of_points(self) -> bool:
        """Whether only runs with points have it."""
        return POINT in self.dims

    @property
    def of_regions(self) -> bool:
        """Whether only runs with regions have it."""
        return REGION in self.dims

    @property
    def of_individuals(self) -> bool:
        """Whether only runs with points of several individuals have it."""
        return self.name == INDIVIDUAL

    @property
    def of_likelihoods(self) -> bool:
        """Whether only runs with points that have likelihoods have it."""
        return self.name == LIKELIHOOD


@dataclass(frozen=True, slots=True)
class Companion:
    """An array `PRODUCT_SUFFIX` beside a product that is stored as integers: a float32 for each of its vectors.

    NaN where nothing is committed, where the image is unreadable, and at missing points.
    """

    suffix: str
    meaning: str


SCALE: Final = Companion("scale", "factor of the stored integers of a vector")
OFFSET: Final = Companion("offset", "what the stored integers of a vector, times their scale, are added to")
QUANTIZED: Final[Mapping[str, tuple[Companion, ...]]] = {"int8": (SCALE,), "uint8": (SCALE, OFFSET)}
"""Types of products that are stored as integers, with the arrays beside them."""

LENGTHS: Final[Mapping[str, int]] = {"affine": 4}
"""Lengths of axes that are the same in every run; those of `image`, `point` and `region` are the run's own."""


def _named(meaning: str, units: str = "") -> Mapping[str, object]:
    return {"long_name": meaning, "units": units} if units else {"long_name": meaning}


_IMAGE, _IMAGE_POINT, _NAN = ("image",), ("image", POINT), float("nan")
_AFFINE = "scale x, scale y, offset x, offset y: model pixel = source pixel * scale + offset"
_ORIENTATION = "EXIF orientation found and applied, 1 to 8; 0 not read"
_HEIGHT, _WIDTH = (f"{side} of the image in pixels, after EXIF orientation" for side in ("height", "width"))
_X, _Y = (f"{axis} of the point in the source image" for axis in "xy")
_ONE = {"units": "1"}
_SURE = "likelihood that the points file gives the point; NaN for none"
_WHOSE = 'animal or person that the point is of; "" for none'
_ROWS = {**_named("state of the image's row"), **statuses.flags(statuses.ROWS)}
_POINTS = {**_named("state of the point"), **statuses.flags(statuses.POINTS)}
_REGION = (REGION,)
_REGIONS = {**_named("state of the region"), **statuses.flags(statuses.REGIONS)}
_EDGES = {
    f"region_{axis}_{end}": f"{side} edge of the region's box in the source image"
    for end, sides in (("min", ("left", "top")), ("max", ("right", "bottom")))
    for axis, side in zip("xy", sides, strict=True)
}

TABLE: Final = (
    StoredArray("image_id", "string", _IMAGE, "creator", None, _named("name of the image"), coordinate=True),
    StoredArray("path", "string", _IMAGE, "creator", None, _named("path below the source root"), coordinate=True),
    StoredArray("image_height", "int32", _IMAGE, "encoder", -1, _named(_HEIGHT, "pixel"), coordinate=True),
    StoredArray("image_width", "int32", _IMAGE, "encoder", -1, _named(_WIDTH, "pixel"), coordinate=True),
    StoredArray("image_orientation", "uint8", _IMAGE, "encoder", 0, _named(_ORIENTATION), coordinate=True),
    StoredArray("image_affine", "float64", (*_IMAGE, "affine"), "encoder", _NAN, _named(_AFFINE)),
    StoredArray(POINT, "string", (POINT,), "creator", later=_named("name of the point")),
    StoredArray(INDIVIDUAL, "string", (POINT,), "creator", None, _named(_WHOSE), coordinate=True),
    StoredArray("point_x", "float64", _IMAGE_POINT, "creator", None, _named(_X), coordinate=True),
    StoredArray("point_y", "float64", _IMAGE_POINT, "creator", None, _named(_Y), coordinate=True),
    StoredArray(LIKELIHOOD, "float64", _IMAGE_POINT, "creator", None, _named(_SURE), coordinate=True, later=_ONE),
    StoredArray(
        POINT_STATUS,
        "uint8",
        _IMAGE_POINT,
        "encoder",
        statuses.NOT_WRITTEN,
        _POINTS,
        unreadable=statuses.POINT_UNREADABLE,
    ),
    StoredArray(
        "region_image",
        "int64",
        _REGION,
        "creator",
        None,
        _named("row of its image; -1: no region"),
        coordinate=True,
    ),
    StoredArray(
        "region_image_id", "string", _REGION, "creator", None, _named("name of the region's image"), coordinate=True
    ),
    StoredArray("region_name", "string", _REGION, "creator", None, _named("name within its image"), coordinate=True),
    StoredArray("region_category", "string", _REGION, "creator", None, _named("class, or none"), coordinate=True),
    StoredArray("region_individual", "string", _REGION, "creator", None, _named(_WHOSE), coordinate=True),
    StoredArray("region_kind", "string", _REGION, "creator", None, _named("box, mask or crowd"), coordinate=True),
    StoredArray(
        "region_score", "float64", _REGION, "creator", None, _named("score of a detector"), coordinate=True, later=_ONE
    ),
    *(
        StoredArray(name, "float64", _REGION, "creator", None, _named(meaning), coordinate=True)
        for name, meaning in _EDGES.items()
    ),
    StoredArray(
        REGION_STATUS,
        "uint8",
        _REGION,
        "encoder",
        statuses.NOT_WRITTEN,
        _REGIONS,
        unreadable=statuses.REGION_UNREADABLE,
    ),
    StoredArray(STATUS, "uint8", _IMAGE, "store", statuses.NOT_WRITTEN, _ROWS),
)
"""In the order in which a shard's arrays are planned and promoted."""


def written_by(
    writer: Writer,
    *,
    with_points: bool,
    with_individuals: bool = False,
    with_likelihoods: bool = False,
    with_regions: bool = False,
) -> Iterator[StoredArray]:
    """Yield the arrays of a writer, in the table's order; those of points, regions and what is known of them if any."""
    every = _of_run(with_points, with_individuals, with_likelihoods, with_regions)
    return (array for array in every if array.writer == writer)


def _of_run(
    with_points: bool, with_individuals: bool, with_likelihoods: bool, with_regions: bool
) -> Iterator[StoredArray]:
    for array in TABLE:
        if array.of_regions:
            there = with_regions
        elif array.of_individuals:
            there = with_individuals
        elif array.of_likelihoods:
            there = with_likelihoods
        else:
            there = with_points or not array.of_points
        if there:
            yield array


def get(name: str) -> StoredArray:
    """Return the array of that name."""
    return next(array for array in TABLE if array.name == name)


def coordinates(*, with_points: bool, with_individuals: bool = False, with_likelihoods: bool = False) -> str:
    """Return the attribute `coordinates` of a product per image or point."""
    every = _of_run(with_points, with_individuals, with_likelihoods, with_regions=False)
    return " ".join(array.name for array in every if array.coordinate)


def region_coordinates() -> str:
    """Return the attribute `coordinates` of a product per region."""
    return " ".join(array.name for array in TABLE if array.of_regions and array.coordinate)


def is_of_points_alone(name: str) -> bool:
    """Return whether a run has one array of this name for all its images, with a value for each point."""
    return any(array.name == name and array.dims == (POINT,) for array in TABLE)
