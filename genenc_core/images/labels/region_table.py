"""Labels of regions, and the flat table that they make: one row per region, any number per image."""

import math
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Final, Literal

import numpy as np

from genenc_core import errors
from genenc_core.images.labels import matching
from genenc_core.images.labels.masks import LARGEST_SIDE, Mask
from genenc_core.images.labels.scale import PIXELS, PointsScale

Kind = Literal["box", "mask", "crowd"]
LARGEST_TABLE: Final = 2**25
"""Regions."""
_FARTHEST: Final = 2 * LARGEST_SIDE
"""Pixels from the image's corner at which a polygon's corner may lie."""
_ROUNDING: Final = 1e-6
"""Of scores in 32 bits."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Region:
    """One region of one image, as a file has it: a box, polygons, or a mask of pixels."""

    file: str
    row: str
    """Where it is in the file, for messages: `row 5`."""
    image: str
    name: str
    """Unique within its image; "" to number the regions of an image from 1."""
    box: tuple[float, float, float, float] | None = None
    """x_min, y_min, x_max, y_max; None if it follows from the polygons or the mask."""
    polygons: tuple[np.ndarray, ...] = ()
    """float64 `[k, 2]` of x and y each."""
    mask: Mask | None = None
    category: str = ""
    individual: str = ""
    score: float = math.nan
    crowd: bool = False
    frame_size: tuple[int, int] | None = None
    """Width and height of the image, where the file states them."""

    @property
    def place(self) -> str:
        """The file and the row."""
        return f"{self.file}: {self.row}"


@dataclass(frozen=True, slots=True, kw_only=True)
class RegionTable:
    """Regions in the order of the files; every column has one entry per region.

    Boxes are in pixels of the source image, origin at its top-left edge; if `scale` is relative, in fractions of its
    width and height.
    """

    images: tuple[str, ...]
    """Normalised by `matching.normal`, or, with `by_stem`, without their endings."""
    image: np.ndarray
    """Index into `images`, int64 `[R]`."""
    names: tuple[str, ...]
    categories: tuple[str, ...]
    individuals: tuple[str, ...]
    kinds: tuple[Kind, ...]
    scores: np.ndarray
    """float64 `[R]`; NaN for none."""
    boxes: np.ndarray
    """float64 `[R, 4]`: x_min, y_min, x_max, y_max."""
    masks: tuple[Mask | None, ...]
    scale: PointsScale = PIXELS
    uncertain: Mapping[int, int] = field(default_factory=dict)
    """Regions left out because of their score, by the index of their image."""
    by_stem: bool = False
    """Whether images are named without their endings, as masks in files of their own do."""
    frame_sizes: Mapping[int, tuple[int, int]] = field(default_factory=dict)
    """Width and height of the images, by their index, where the file states them."""
    folders: Mapping[int, frozenset[str]] = field(default_factory=dict)
    """As in `PointTable`."""
    outlines: Mapping[int, tuple[np.ndarray, ...]] = field(default_factory=dict)
    """Polygons by the index of their region, in fractions of an image whose size no file states: see `rasterised`."""

    def __len__(self) -> int:
        return len(self.names)


@dataclass(slots=True)
class _Building:
    scale: PointsScale
    images: dict[str, int] = field(default_factory=dict)
    seen: dict[tuple[int, str], tuple[str, str]] = field(default_factory=dict)
    """(image, name) -> (file, row)."""
    counts: dict[int, int] = field(default_factory=dict)
    rows: list[tuple[int, str, Region, tuple[float, float, float, float], Mask | None]] = field(default_factory=list)
    uncertain: Counter[int] = field(default_factory=Counter)
    frame_sizes: dict[int, tuple[int, int]] = field(default_factory=dict)
    folders: dict[int, frozenset[str]] = field(default_factory=dict)
    outlines: dict[int, tuple[np.ndarray, ...]] = field(default_factory=dict)
    """Index of the row -> polygons."""


def build(
    regions: Iterable[Region],
    *,
    scale: PointsScale = PIXELS,
    min_score: float | None = None,
    by_stem: bool = False,
    folders: Mapping[str, str] = MappingProxyType({}),
) -> RegionTable:
    """Return the table of regions; `scale` applies to boxes and polygons, `min_score` leaves out regions below it.

    Raises:
        InputError: a repeated name in an image, a box whose edges are exchanged or missing, polygons of an image of
            unknown size, a mask of another size than stated, a scale for masks of pixels, or too many regions.
    """
    made = _Building(scale)
    for region in regions:
        _add(made, region, min_score, folders)
    for name in (*made.images, *(row[1] for row in made.rows)):
        _refuse_surrogates(name)
    rows = made.rows
    return RegionTable(
        images=tuple(made.images),
        image=np.array([row[0] for row in rows], np.int64),
        names=tuple(row[1] for row in rows),
        categories=tuple(unicodedata.normalize("NFC", row[2].category) for row in rows),
        individuals=tuple(unicodedata.normalize("NFC", row[2].individual) for row in rows),
        kinds=tuple(
            "crowd" if row[2].crowd else "mask" if row[4] is not None or row[2].polygons else "box" for row in rows
        ),
        scores=np.array([row[2].score for row in rows], np.float64),
        boxes=np.array([row[3] for row in rows], np.float64).reshape(-1, 4),
        masks=tuple(row[4] for row in rows),
        scale=scale,
        uncertain=made.uncertain,
        by_stem=by_stem,
        frame_sizes=made.frame_sizes,
        folders=made.folders,
        outlines=made.outlines,
    )


def rasterised(table: RegionTable, sizes: Mapping[int, tuple[int, int]]) -> RegionTable:
    """Return the table with masks in place of outlines, by the width and height of the images, by their index.

    Those of an image of unknown size, which is unreadable, become masks of another size than any image.
    """
    masks, boxes = list(table.masks), table.boxes.copy()
    for at, polygons in table.outlines.items():
        size = sizes.get(int(table.image[at]))
        if size is None:
            masks[at] = Mask.from_polygons((), (1, 1))
            continue
        masks[at] = found = Mask.from_polygons([each * np.array(size, np.float64) for each in polygons], size[::-1])
        boxes[at] = np.array(found.box) / np.array([*size, *size])
    return replace(table, masks=tuple(masks), boxes=boxes, outlines={})


def _add(made: _Building, region: Region, min_score: float | None, folders: Mapping[str, str]) -> None:
    if not region.image:
        raise errors.InputError(f"{region.place} names no image")
    image = made.images.setdefault(matching.normal(region.image), len(made.images))
    made.counts[image] = made.counts.get(image, 0) + 1
    name = unicodedata.normalize("NFC", region.name) or str(made.counts[image])
    if (image, name) in made.seen:
        file, row = made.seen[image, name]
        where = row if file == region.file else f"{file}: {row}"
        raise errors.InputError(
            f"{region.place} repeats the region {name!r} of {region.image!r} from {where}: keep one, or give each "
            "region of an image a name of its own"
        )
    made.seen[image, name] = region.file, region.row
    size = _scaled_size(region.frame_size, made.scale)
    if region.frame_size is not None and made.frame_sizes.setdefault(image, region.frame_size) != region.frame_size:
        (width, height), (other_width, other_height) = region.frame_size, made.frame_sizes[image]
        raise errors.InputError(
            f"{region.place}: the image {region.image!r} is {width} x {height} pixels here and {other_width} x "
            f"{other_height} before: bring its labels to one size"
        )
    if folders and "/" not in region.image.replace("\\", "/"):
        made.folders[image] = made.folders.get(image, frozenset()) | {folders[region.file]}
    if _is_uncertain(region, min_score):
        made.uncertain[image] += 1
        return
    if region.polygons and size is None and made.scale.relative:
        made.outlines[len(made.rows)] = tuple(made.scale.apply(each) for each in region.polygons)
        made.rows.append((image, name, region, _box_of(made.outlines[len(made.rows)]), None))
    else:
        mask = _mask(region, made.scale, size)
        made.rows.append((image, name, region, _box(region, made.scale, mask), mask))
    if len(made.rows) > LARGEST_TABLE:
        raise errors.InputError(f"{region.place}: more than {LARGEST_TABLE:,} regions: make several runs")


def _scaled_size(size: tuple[int, int] | None, scale: PointsScale) -> tuple[int, int] | None:
    """Return the width and height, in pixels of the source image, that a file states."""
    if size is None or scale.relative:
        return size
    width, height = np.rint(scale.apply(np.array(size, np.float64))).astype(int).tolist()
    return max(width, 1), max(height, 1)


def _mask(region: Region, scale: PointsScale, size: tuple[int, int] | None) -> Mask | None:
    sides = size or (0, 0) if region.mask is None else region.mask.size
    if (region.mask is not None or region.polygons) and max(sides) > LARGEST_SIDE:
        raise errors.InputError(
            f"{region.place}: the image {region.image!r} would be {sides[0]} x {sides[1]} pixels, of which masks are "
            f"at most {LARGEST_SIDE} to a side: correct the size in the file"
        )
    if region.mask is not None:
        if scale.text is not None:
            raise errors.InputError(
                f"{region.place} is a mask of pixels, which --regions-scale {scale.text} cannot scale: leave it out, "
                "and give masks of the size of their images"
            )
        height, width = region.mask.size
        if size is not None and size != (width, height):
            raise errors.InputError(
                f"{region.place}: the mask of {region.image!r} is {width} x {height} pixels, but the file states "
                f"{size[0]} x {size[1]} for the image: a mask must have the size of its image"
            )
        return region.mask
    if not region.polygons:
        return None
    if size is None:
        raise errors.InputError(
            f"{region.place} is a polygon, and the file does not state the size of {region.image!r}: add the image's "
            "width and height to the file"
        )
    corners = [_in_pixels(each, scale, size) for each in region.polygons]
    if any(np.abs(each).max() > _FARTHEST for each in corners):
        raise errors.InputError(
            f"{region.place}: a corner of the polygon lies more than {_FARTHEST} pixels from {region.image!r}: "
            "correct it"
        )
    return Mask.from_polygons(corners, (size[1], size[0]))


def _in_pixels(corners: np.ndarray, scale: PointsScale, size: tuple[int, int]) -> np.ndarray:
    scaled = scale.apply(corners)
    return scaled * np.array(size, np.float64) if scale.relative else scaled


def _box(region: Region, scale: PointsScale, mask: Mask | None) -> tuple[float, float, float, float]:
    if mask is not None:
        found = np.array(mask.box)
        if scale.relative:
            found = found / np.array([mask.size[1], mask.size[0]] * 2)
        return _four(found.tolist())
    numbers = region.box
    assert numbers is not None
    if any(math.isnan(each) for each in numbers):
        raise errors.InputError(
            f"{region.place}: the box of {region.image!r} lacks a number: give all four, or remove the row"
        )
    if numbers[2] < numbers[0] or numbers[3] < numbers[1]:
        raise errors.InputError(
            f"{region.place}: the box of {region.image!r} ends before it begins (x {numbers[0]:g} to {numbers[2]:g}, y "
            f"{numbers[1]:g} to {numbers[3]:g}): x_min and y_min come before x_max and y_max, and sizes are not "
            "negative"
        )
    return _four(scale.apply(np.array(numbers).reshape(2, 2)).reshape(-1).tolist())


def _box_of(polygons: Sequence[np.ndarray]) -> tuple[float, float, float, float]:
    corners = np.concatenate(polygons)
    return _four([*corners.min(0).tolist(), *corners.max(0).tolist()])


def _four(numbers: Sequence[float]) -> tuple[float, float, float, float]:
    left, top, right, bottom = numbers
    return left, top, right, bottom


def _is_uncertain(region: Region, least: float | None) -> bool:
    if least is None:
        return False
    if math.isnan(region.score):
        raise errors.InputError(
            f"--min-score {least:g} needs a score of every region, and {region.place} has none: leave the option "
            "out, or add a column `score`"
        )
    if not -_ROUNDING <= region.score <= 1 + _ROUNDING:
        raise errors.InputError(
            f"{region.place}: the score is {region.score:g}, not between 0 and 1 as --min-score {least:g} needs "
            "it: divide percent by 100, or leave the option out"
        )
    return region.score < least


def _refuse_surrogates(name: str) -> None:
    try:
        name.encode()
    except UnicodeEncodeError as error:
        raise errors.InputError(f"the name {name!r} in the regions file is not valid text: correct it") from error


def in_order(table: RegionTable, rows: Mapping[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Return the regions of placed images by row, then by their order in the files: their indices and their rows.

    Args:
        table: the regions.
        rows: row -> index of the image, of `matching.Placement`.
    """
    of_image = np.full(len(table.images), -1, np.int64)
    for row, index in rows.items():
        of_image[index] = row
    row_of = of_image[table.image] if len(table) else np.zeros(0, np.int64)
    placed = np.flatnonzero(row_of >= 0)
    order = placed[np.argsort(row_of[placed], kind="stable")]
    return order, row_of[order]
