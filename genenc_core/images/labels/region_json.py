"""Regions in JSON: boxes and segmentations of COCO, rectangles, polygons, circles and masks of LabelMe."""

import base64
import binascii
import io
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
from PIL import Image

from genenc_core import errors
from genenc_core.images.labels import json_labels
from genenc_core.images.labels.masks import Mask
from genenc_core.images.labels.point_table import Unused, number
from genenc_core.images.labels.region_table import Region

_WHAT: Final = "regions"
_CIRCLE_CORNERS: Final = 64


def regions(path: Path, *, unused: Unused, folder: str = "") -> Iterator[Region]:
    """Yield the regions of a COCO or LabelMe file.

    COCO: an annotation is a mask if it has a segmentation (polygons, or run lengths, compressed or not), else a box;
    its id is the name, `track_id` the individual. LabelMe: shapes of the types rectangle, polygon, circle and mask;
    `label` is the category, `group_id` the individual.

    Args:
        path: the file.
        unused: what is not used is added to it.
        folder: that of the file below the one of all files, which its images' paths begin with.

    Raises:
        InputError: unreadable, damaged, or JSON of another form.
    """
    read = json_labels.read_json(path, what=_WHAT)
    if isinstance(read, dict) and {"images", "annotations"} <= read.keys():
        return _coco(path, read, unused=unused)
    if isinstance(read, dict) and {"shapes", "imagePath"} <= read.keys():
        return _labelme(path, read, unused=unused, folder=folder)
    if isinstance(read, list) and read and isinstance(read[0], dict) and {"image_id", "category_id"} <= read[0].keys():
        raise errors.InputError(
            f"the regions file {str(path)!r} holds results of COCO, which name images by the ids of another file: "
            'write {"images": ..., "annotations": these, "categories": ...} with the images of that file'
        )
    keys = ", ".join(map(repr, list(read)[:6])) if isinstance(read, dict) else f"a {type(read).__name__}"
    raise errors.InputError(
        f"the regions file {str(path)!r} is JSON, but neither COCO (images, annotations, categories) nor LabelMe "
        f"(imagePath, shapes): it holds {keys}. Write a table of image, region, x, y, width, height from it"
    )


def _coco(path: Path, read: Mapping[str, Any], *, unused: Unused) -> Iterator[Region]:
    try:
        names, sizes = json_labels.coco_images(path, read["images"], what=_WHAT)
        categories = {item["id"]: str(item.get("name", item["id"])) for item in read.get("categories", ())}
        annotations = list(read["annotations"])
        with_region = [item for item in annotations if item.get("segmentation") or item.get("bbox")]
    except (KeyError, TypeError, AttributeError) as error:
        raise json_labels.damaged(path, error, what=_WHAT) from error
    if annotations and not with_region:
        raise errors.InputError(
            f"the regions file {str(path)!r} is COCO without regions: none of its {len(annotations)} annotations has a "
            "bbox or a segmentation. Keypoints are points: --points"
        )
    if len(with_region) < len(annotations):
        count = len(annotations) - len(with_region)
        unused.add(path.name, f"{count} annotations without bbox and segmentation", "They are no regions")
    for at, item in enumerate(with_region):
        place = f"{path}: annotation {item.get('id', at)}"
        try:
            image, size = names[item["image_id"]], sizes[item["image_id"]]
            category = categories[item["category_id"]] if categories else ""
        except (KeyError, TypeError) as error:
            raise errors.InputError(f"{place} names an image or category that the file lacks: {error}") from error
        polygons, mask = _segmentation(place, item.get("segmentation"), size)
        yield Region(
            file=str(path),
            row=f"annotation {item.get('id', at)}",
            image=image,
            name=str(item.get("id", at)),
            box=_bbox(place, item["bbox"]) if item.get("bbox") else None,
            polygons=polygons,
            mask=mask,
            category=category,
            individual="" if item.get("track_id") is None else str(item["track_id"]),
            score=number(place, "score", item.get("score")),
            crowd=bool(item.get("iscrowd")),
            frame_size=size,
        )


def _bbox(place: str, found: object) -> tuple[float, float, float, float]:
    if not isinstance(found, list) or len(found) != 4:
        raise errors.InputError(f"{place} has the bbox {found!r}, not four numbers: x, y, width, height")
    x, y, width, height = (number(place, "bbox", each) for each in found)
    return x, y, x + width, y + height


def _segmentation(
    place: str, found: object, size: tuple[int, int] | None
) -> tuple[tuple[np.ndarray, ...], Mask | None]:
    """Return the polygons, or the mask, of a COCO annotation; neither if it has no segmentation."""
    if not found:
        return (), None
    if isinstance(found, list):
        return tuple(_polygon(place, each) for each in found), None
    if not isinstance(found, dict) or not {"counts", "size"} <= found.keys():
        raise errors.InputError(f"{place} has a segmentation that is neither polygons nor run lengths (counts, size)")
    try:
        height, width = (int(side) for side in found["size"])
    except (TypeError, ValueError) as error:
        raise errors.InputError(f"{place} has run lengths of the size {found['size']!r}, not two numbers") from error
    if size is not None and size != (width, height):
        raise errors.InputError(
            f"{place} has run lengths of {width} x {height} pixels, but the file states {size[0]} x {size[1]} for the "
            "image: a mask must have the size of its image"
        )
    try:
        counts = found["counts"]
        if isinstance(counts, str):
            return (), Mask.from_text(counts, (height, width))
        if not isinstance(counts, list) or not all(type(count) is int for count in counts):
            raise ValueError("its run lengths are neither text nor whole numbers")
        return (), Mask.from_counts(counts, (height, width))
    except (ValueError, OverflowError) as error:
        raise errors.InputError(f"{place}: {error}") from error


def _polygon(place: str, found: object) -> np.ndarray:
    flat = [number(place, "segmentation", each) for each in found] if isinstance(found, list) else []
    if len(flat) < 6 or len(flat) % 2 or any(map(math.isnan, flat)):
        raise errors.InputError(f"{place} has a polygon that is not x, y of at least three corners: {str(found)[:80]}")
    return np.array(flat, np.float64).reshape(-1, 2)


def _labelme(path: Path, read: Mapping[str, Any], *, unused: Unused, folder: str) -> Iterator[Region]:
    image = json_labels.image_path(f"{folder}/{read['imagePath']}")
    size = json_labels.frame_size(read.get("imageWidth"), read.get("imageHeight"))
    try:
        shapes = [(str(each.get("shape_type", "polygon")), each) for each in read["shapes"]]
        labels = [str(each["label"] or "") for _, each in shapes]
    except (KeyError, TypeError, AttributeError) as error:
        raise json_labels.damaged(path, error, what=_WHAT) from error
    known = ("rectangle", "polygon", "circle", "mask")
    others = sorted({kind for kind, _ in shapes} - {*known})
    if others:
        unused.add(path.name, f"shapes that are no regions ({', '.join(others)})", f"Shapes of {', '.join(known)} are")
    for at, ((kind, shape), label) in enumerate(zip(shapes, labels, strict=True), start=1):
        if kind not in known:
            continue
        place = f"{path}: shape {at}"
        corners = _corners(place, shape.get("points"))
        box, polygons, mask = _shape(place, kind, corners, shape, size)
        yield Region(
            file=str(path),
            row=f"shape {at}",
            image=image,
            name=str(at),
            box=box,
            polygons=polygons,
            mask=mask,
            category=label,
            individual="" if shape.get("group_id") is None else str(shape["group_id"]),
            frame_size=size,
        )


def _corners(place: str, found: object) -> np.ndarray:
    if not isinstance(found, list) or not all(isinstance(each, list) and len(each) == 2 for each in found):
        raise errors.InputError(f"{place} has points that are not pairs of numbers")
    flat = [number(place, "a point", each) for pair in found for each in pair]
    if any(map(math.isnan, flat)):
        raise errors.InputError(f"{place} has a point without a number")
    return np.array(flat, np.float64).reshape(-1, 2)


def _shape(
    place: str, kind: str, corners: np.ndarray, shape: Mapping[str, Any], size: tuple[int, int] | None
) -> tuple[tuple[float, float, float, float] | None, tuple[np.ndarray, ...], Mask | None]:
    """Return the box, or polygons, or mask of a LabelMe shape."""
    least = 3 if kind == "polygon" else 2
    if len(corners) < least or (kind != "polygon" and len(corners) > 4):
        raise errors.InputError(f"{place} is a {kind} of {len(corners)} points, which has {least} or more corners")
    if kind == "polygon":
        return None, (corners,), None
    if kind == "circle":
        angles = np.linspace(0, 2 * math.pi, _CIRCLE_CORNERS, endpoint=False)
        around = np.stack([np.cos(angles), np.sin(angles)], 1) * np.linalg.norm(corners[1] - corners[0])
        return None, (corners[0] + around,), None
    left, top = corners.min(0).tolist()
    right, bottom = corners.max(0).tolist()
    if kind == "rectangle":
        return (left, top, right, bottom), (), None
    return None, (), _labelme_mask(place, shape.get("mask"), (int(left), int(top)), size)


def _labelme_mask(place: str, found: object, corner: Sequence[int], size: tuple[int, int] | None) -> Mask:
    """Return the mask in a shape: a PNG in base64 of its bounding box."""
    if size is None:
        raise errors.InputError(f"{place} is a mask, and the file states no size of its image: add imageWidth, Height")
    try:
        with Image.open(io.BytesIO(base64.b64decode(str(found), validate=True))) as opened:
            inside = np.asarray(opened.convert("L")) > 0
    except (binascii.Error, OSError, ValueError, Image.DecompressionBombError) as error:
        raise errors.InputError(f"{place} has a mask that is no PNG in base64") from error
    left, top = corner
    if min(left, top) < 0 or top + inside.shape[0] > size[1] or left + inside.shape[1] > size[0]:
        raise errors.InputError(f"{place} has a mask that reaches beyond its image of {size[0]} x {size[1]} pixels")
    columns, tops, bottoms = Mask.from_pixels(inside).pieces()
    firsts = (columns + left) * size[1] + top
    return Mask.from_intervals(firsts + tops, firsts + bottoms, (size[1], size[0]))
