"""Boxes as YOLO writes them: a text file per image, a line per box, fractions of the image's width and height."""

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

import yaml

from genenc_core import errors
from genenc_core.images.labels.point_table import number
from genenc_core.images.labels.region_table import Region

SUFFIX: Final = ".txt"
NAMES: Final = ("classes.txt", "obj.names")
"""Files with a class per line."""
_DOCUMENTS: Final = ("data.yaml", "data.yml", "dataset.yaml")
_SLACK: Final = 0.01
"""By which a box may exceed its image: files have few digits."""


def is_labels(path: Path) -> bool:
    """Return whether a file is one of boxes, by its name."""
    return path.suffix.lower() == SUFFIX and path.name not in NAMES


def regions(files: Sequence[Path], root: Path) -> Iterator[Region]:
    """Yield the boxes of files below `root`, of images named as they are, whatever their endings.

    A line is `class x_center y_center width height [confidence]`; the classes' names are those of `classes.txt` or
    `data.yaml` beside the files or above them.

    Raises:
        InputError: a line of another form, or numbers that are no fractions.
    """
    names: dict[Path, Sequence[str]] = {}
    for path in files:
        if path.parent not in names:
            names[path.parent] = _class_names(path.parent)
        image = (path.parent.relative_to(root) / path.stem).as_posix()
        try:
            lines = path.read_text(encoding="utf-8-sig").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise errors.InputError(f"cannot read the regions file {str(path)!r}: {errors.reason(error)}") from error
        for at, line in enumerate(lines, start=1):
            if line.strip():
                yield _region(path, at, line.split(), image, names[path.parent])


def _region(path: Path, line: int, words: Sequence[str], image: str, names: Sequence[str]) -> Region:
    place = f"{path}: line {line}"
    if len(words) > 6 and len(words) % 2:
        raise errors.InputError(
            f"{place} is a polygon in fractions of the image's size, which the file does not state: export the labels "
            "as COCO, whose polygons are pixels"
        )
    if len(words) not in (5, 6) or not words[0].isdecimal():
        raise errors.InputError(
            f"{place} is {' '.join(words)[:80]!r}, not a class number and x_center, y_center, width, height, perhaps a "
            "confidence, as YOLO writes them"
        )
    x, y, width, height, *score = (number(place, "the box", word) for word in words[1:])
    box = x - width / 2, y - height / 2, x + width / 2, y + height / 2
    if any(math.isnan(each) for each in box) or min(box) < -_SLACK or max(box) > 1 + _SLACK:
        raise errors.InputError(
            f"{place} is {' '.join(words)[:80]!r}, which are no fractions of an image's size: write boxes in pixels as "
            "a table of image, x_center, y_center, width, height"
        )
    number_of_class = int(words[0][:9])
    return Region(
        file=str(path),
        row=f"line {line}",
        image=image,
        name=str(line),
        box=box,
        category=names[number_of_class] if number_of_class < len(names) else words[0],
        score=score[0] if score else math.nan,
    )


def _class_names(folder: Path) -> Sequence[str]:
    """Return the names of the classes beside the files or in the two folders above; [] if there are none."""
    for place in (folder, *folder.absolute().parents[:2]):
        for name in NAMES:
            if (place / name).is_file():
                return [line.strip() for line in (place / name).read_text(encoding="utf-8").splitlines()]
        for name in _DOCUMENTS:
            if (place / name).is_file():
                return _of_document(place / name)
    return []


def _of_document(path: Path) -> Sequence[str]:
    try:
        read = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise errors.InputError(f"cannot read the class names of {str(path)!r}: {errors.reason(error)}") from error
    names = read.get("names") if isinstance(read, dict) else None
    if isinstance(names, dict) and all(type(key) is int and 0 <= key < 10**6 for key in names):
        return [str(names.get(at, at)) for at in range(max(names, default=-1) + 1)]
    return [str(name) for name in names] if isinstance(names, list) else []
