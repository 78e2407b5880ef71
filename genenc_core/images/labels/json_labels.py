"""Labels in JSON: keypoints of COCO, and points of LabelMe."""

import json
import math
import posixpath
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from genenc_core import errors
from genenc_core.images.labels import other_tools
from genenc_core.images.labels.point_table import Label, Unused, number

LARGEST_FILE: Final = 2**30
"""Bytes; the keypoints of COCO's 118,000 training images take a quarter of that."""
_LARGEST_SIDE: Final = 10**9


def labels(path: Path, *, unused: Unused, folder: str = "", one_of_several: bool = False) -> Iterator[Label]:
    """Yield the points of a COCO or LabelMe file.

    COCO: a keypoint of visibility 0 is missing. Where an image has several annotations, or there are several files,
    they are individuals, numbered from 1 in the order of the file; of several categories with keypoints the individual
    begins with the category. LabelMe: shapes of the type `point`; `group_id` is the individual. Both state the size of
    the labelled image.

    Args:
        path: the file.
        unused: what is not used is added to it.
        folder: that of the file below the one of all files, which its images' paths begin with.
        one_of_several: whether there are several files.

    Raises:
        InputError: unreadable, damaged, or JSON of another form.
    """
    read = read_json(path)
    if isinstance(read, dict) and {"images", "annotations"} <= read.keys():
        return _coco(path, read, one_of_several=one_of_several)
    if isinstance(read, dict) and {"shapes", "imagePath"} <= read.keys():
        return _labelme(path, read, unused=unused, folder=folder)
    if other := other_tools.of_json(read):
        raise errors.InputError(f"the points file {str(path)!r} seems to be {other}")
    keys = ", ".join(map(repr, list(read)[:6])) if isinstance(read, dict) else f"a {type(read).__name__}"
    raise errors.InputError(
        f"the points file {str(path)!r} is JSON, but neither COCO (images, annotations, categories) nor LabelMe "
        f"(imagePath, shapes): it holds {keys}. Write a table of image, point, x, y from it"
    )


def read_json(path: Path, *, what: str = "points") -> Any:
    """Return the content of a JSON file of labels, which messages call the `what` file.

    Raises:
        InputError: unreadable, too large, or not JSON.
    """
    try:
        if path.stat().st_size > LARGEST_FILE:
            raise errors.InputError(
                f"the {what} file {str(path)!r} is larger than {LARGEST_FILE:,} bytes: write it as Parquet"
            )
        return json.loads(path.read_bytes())
    except OSError as error:
        raise errors.InputError(f"cannot read the {what} file {str(path)!r}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise errors.InputError(f"the {what} file {str(path)!r} is not JSON: {error}") from error


def _coco(path: Path, read: Mapping[str, Any], *, one_of_several: bool) -> Iterator[Label]:
    try:
        names, sizes = coco_images(path, read["images"])
        categories = {
            item["id"]: (str(item.get("name", item["id"])), [str(name) for name in item["keypoints"]])
            for item in read.get("categories", ())
            if item.get("keypoints")
        }
        annotations = [item for item in read["annotations"] if item.get("keypoints")]
        of_image = Counter(item["image_id"] for item in annotations)
    except (KeyError, TypeError, AttributeError) as error:
        raise damaged(path, error) from error
    if not annotations:
        raise errors.InputError(
            f"the points file {str(path)!r} is COCO without keypoints: its annotations are "
            f"{'boxes or masks' if read['annotations'] else 'none'}. Points need `keypoints` in annotations and "
            "categories"
        )
    several = one_of_several or any(count > 1 for count in of_image.values())
    seen: Counter[object] = Counter()
    for at, item in enumerate(annotations):
        place = f"{path}: annotation {item.get('id', at)}"
        try:
            category, points = categories[item["category_id"]]
            image, flat = names[item["image_id"]], item["keypoints"]
        except (KeyError, TypeError) as error:
            raise errors.InputError(f"{place} names an image or category that the file lacks: {error}") from error
        if not isinstance(flat, list):
            raise errors.InputError(f"{place} has keypoints that are {flat!r}, not a list")
        if len(flat) != 3 * len(points):
            raise errors.InputError(
                f"{place} has {len(flat)} numbers as keypoints; its category {category!r} has {len(points)} "
                "keypoints of x, y, visibility"
            )
        seen[item["image_id"]] += 1
        count = str(seen[item["image_id"]]) if several else ""
        individual = " ".join(filter(None, (category if len(categories) > 1 else "", count)))
        for index, name in enumerate(points):
            x, y, visibility = flat[3 * index : 3 * index + 3]
            there = _is_labelled(place, name, int(visibility) if isinstance(visibility, bool) else visibility)
            yield Label(
                file=str(path),
                row=f"annotation {item.get('id', at)}",
                image=image,
                name=name,
                x=number(place, "x", x) if there else math.nan,
                y=number(place, "y", y) if there else math.nan,
                individual=individual,
                frame_size=sizes[item["image_id"]],
            )


def coco_images(
    path: Path, items: Any, *, what: str = "points"
) -> tuple[dict[object, str], dict[object, tuple[int, int] | None]]:
    """Return the name, and the width and height if stated, of the images of a COCO file, by their ids.

    Raises:
        InputError: two images have one id.
        KeyError, TypeError, AttributeError: the file is damaged.
    """
    names: dict[object, str] = {}
    sizes: dict[object, tuple[int, int] | None] = {}
    for item in items:
        if names.setdefault(item["id"], str(item["file_name"])) != str(item["file_name"]):
            raise errors.InputError(
                f"the {what} file {str(path)!r} gives the image id {item['id']!r} to {names[item['id']]!r} and to "
                f"{item['file_name']!r}: give each image an id of its own"
            )
        sizes[item["id"]] = frame_size(item.get("width"), item.get("height"))
    return names, sizes


def _is_labelled(place: str, name: str, visibility: object) -> bool:
    """Return whether a keypoint is not missing.

    Raises:
        InputError: the visibility is not 0, 1 or 2.
    """
    value = number(place, f"the visibility of {name!r}", visibility)
    if visibility is not None and value not in (0, 1, 2):
        raise errors.InputError(
            f"{place}: the visibility of {name!r} is {visibility!r}, not 0 (missing), 1 or 2 (labelled): if it is a "
            "score, write a table of image, point, x, y, likelihood from the file"
        )
    return value in (1, 2)


def _labelme(path: Path, read: Mapping[str, Any], *, unused: Unused, folder: str) -> Iterator[Label]:
    image = image_path(f"{folder}/{read['imagePath']}")
    size = frame_size(read.get("imageWidth"), read.get("imageHeight"))
    try:
        kinds = {str(shape.get("shape_type", "polygon")) for shape in read["shapes"]} - {"point"}
        points = [shape for shape in read["shapes"] if shape.get("shape_type") == "point"]
        found = [(str(shape["label"] or ""), shape["points"][0], shape.get("group_id")) for shape in points]
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        raise damaged(path, error) from error
    if kinds:
        unused.add(path.name, f"shapes that are no points ({', '.join(sorted(kinds))})", "Shapes of the type point are")
    for at, (name, xy, group) in enumerate(found, start=1):
        place = f"{path}: point {at}"
        if not isinstance(xy, list) or len(xy) != 2:
            raise errors.InputError(f"{place} is {xy!r}, not two numbers")
        yield Label(
            file=str(path),
            row=f"point {at}",
            image=image,
            name=name,
            x=number(place, "x", xy[0]),
            y=number(place, "y", xy[1]),
            individual="" if group is None else str(group),
            frame_size=size,
        )


def frame_size(width: Any, height: Any) -> tuple[int, int] | None:
    """Return the size that a file states; None if it states none, or fills it in with 0."""
    try:
        found = int(width), int(height)
    except (TypeError, ValueError, OverflowError):
        return None
    return found if min(found) > 0 and max(found) <= _LARGEST_SIDE else None


def image_path(text: str) -> str:
    """Return a path below the folder in which both the file and the image are, as far as it is known."""
    path = posixpath.normpath(text.replace("\\", "/"))
    return "/".join(part for part in path.split("/") if part not in ("..", ".", ""))


def damaged(path: Path, error: Exception, *, what: str = "points") -> errors.InputError:
    """Return the error of a file of labels that lacks an entry, or has one of another type."""
    reason = f"it lacks {error}" if isinstance(error, KeyError) else str(error)
    return errors.InputError(f"the {what} file {str(path)!r} is damaged: {reason}")
