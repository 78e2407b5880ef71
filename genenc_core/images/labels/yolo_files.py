"""YOLO's text files: a file per image, a line per object, in fractions of the image's width and height.

Boxes, polygons and keypoints are told apart by `kpt_shape` of `data.yaml`, as Ultralytics does, else by the lines.
"""

import dataclasses
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import yaml

from genenc_core import errors
from genenc_core.images.labels.point_table import number

SUFFIX: Final = ".txt"
NAMES: Final = ("classes.txt", "obj.names")
"""Files with a class per line."""
SLACK: Final = 0.01
"""By which coordinates may exceed their image: files have few digits."""
_DOCUMENTS: Final = ("data.yaml", "data.yml", "dataset.yaml")
_BOX: Final = 5
"""Words of a class and a box."""
_MOST_KEYPOINTS: Final = 10_000


@dataclasses.dataclass(frozen=True, slots=True)
class Keypoints:
    """How the keypoints of a line are written, after its class and box."""

    count: int
    size: int
    """Numbers of each: 2 for x and y, 3 with a visibility or confidence."""

    def fits(self, words: int) -> bool:
        """Return whether a line has so many words, with a confidence of the object or without."""
        return words - _BOX - self.count * self.size in (0, 1)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Form:
    """What the files beside a folder's labels, or above it, say of them."""

    names: Sequence[str] = ()
    """Of the classes."""
    keypoints: Keypoints | None = None
    keypoint_names: Sequence[str] = ()
    described: bool = False
    """Whether there is a `data.yaml`: without `kpt_shape` there are no keypoints."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One object."""

    path: Path
    at: int
    """From 1."""
    words: Sequence[str]
    image: str
    """Without its ending."""
    form: Form

    @property
    def place(self) -> str:
        """Where it is, for messages."""
        return f"{self.path}: line {self.at}"

    @property
    def shown(self) -> str:
        """The line, for messages."""
        return repr(" ".join(self.words)[:80])

    @property
    def category(self) -> str:
        """Name of its class, or its number."""
        found = int(self.words[0][:9])
        return self.form.names[found] if found < len(self.form.names) else self.words[0]

    def numbers(self) -> np.ndarray:
        """Return the numbers after the class, float64."""
        return np.array([number(self.place, "the object", word) for word in self.words[1:]], np.float64)


def is_labels(path: Path) -> bool:
    """Return whether a file is one of objects, by its name."""
    return path.suffix.lower() == SUFFIX and path.name not in NAMES


def has_numbers(path: Path) -> bool:
    """Return whether a file begins as one of objects, with a number and four further words."""
    try:
        with path.open(encoding="utf-8-sig") as file:
            words = file.readline(2**16).split()
        return len(words) >= _BOX and words[0].isdecimal()
    except (OSError, ValueError):
        return False


def read_lines(files: Sequence[Path], root: Path, *, what: str) -> list[Line]:
    """Return the lines of files below `root`, of images named as they are; `what` the files are, for messages.

    Where no `data.yaml` says whether there are keypoints, they are taken for some if all lines have equally many
    numbers, of which every third after the box is a visibility (0, 1 or 2).

    Raises:
        InputError: unreadable; a line that begins with no class; or keypoints and polygons cannot be told apart.
    """
    forms = {folder: _form(folder) for folder in dict.fromkeys(path.parent for path in files)}
    found = [line for path in files for line in _lines_of(path, root, forms[path.parent], what=what)]
    plain = [line for line in found if not line.form.described]
    guessed = _guessed(plain)
    if guessed is None:
        _refuse_ambiguous(plain)
        return found
    form = {
        folder: dataclasses.replace(form, keypoints=guessed) for folder, form in forms.items() if not form.described
    }
    return [line if line.form.described else dataclasses.replace(line, form=form[line.path.parent]) for line in found]


def _lines_of(path: Path, root: Path, form: Form, *, what: str) -> Iterator[Line]:
    image = (path.parent.relative_to(root) / path.stem).as_posix()
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise errors.InputError(f"cannot read the {what} file {str(path)!r}: {errors.reason(error)}") from error
    for at, text in enumerate(lines, start=1):
        if text.strip():
            line = Line(path=path, at=at, words=text.split(), image=image, form=form)
            if len(line.words) < _BOX or not line.words[0].isdecimal():
                raise errors.InputError(
                    f"{line.place} is {line.shown}, not a class number and x_center, y_center, width, height, perhaps "
                    "a confidence or keypoints, or a polygon, as YOLO writes them"
                )
            yield line


def _guessed(lines: Sequence[Line]) -> Keypoints | None:
    """Return the form of keypoints with visibilities; None if these are none."""
    counts = {len(line.words) - _BOX for line in lines}
    if len(counts) != 1 or not (count := counts.pop()) or count % 3:
        return None
    visibilities = {word for line in lines for word in line.words[_BOX + 2 :: 3]}
    return Keypoints(count // 3, 3) if {_text(word) for word in visibilities} <= {"0", "1", "2"} else None


def _text(word: str) -> str:
    head, dot, tail = word.partition(".")
    return head if dot and not tail.strip("0") else word


def _refuse_ambiguous(lines: Sequence[Line]) -> None:
    """Raise `InputError` if lines may be polygons, or boxes and the keypoints in them."""
    counts = {len(line.words) - _BOX for line in lines}
    if len(counts) != 1 or (count := counts.pop()) < 2:
        return
    for size in (2, 3):
        kept = count - (count % size if count % size == 1 else 0)
        if kept % size == 0 and kept and all(_is_in_box(line, size, kept) for line in lines):
            raise errors.InputError(
                f"{lines[0].place} is a polygon, or a box with keypoints in it, as all lines may be: put the "
                "data.yaml of the dataset beside the files, with `kpt_shape: [count, 2 or 3]` if they are keypoints, "
                "without it if they are polygons"
            )


def _is_in_box(line: Line, size: int, count: int) -> bool:
    numbers = line.numbers()
    centre, half = numbers[:2], numbers[2:4] / 2
    points = numbers[4 : 4 + count].reshape(-1, size)[:, :2]
    seen = points[(points != 0).any(1)]
    return bool((np.abs(seen - centre) <= half + SLACK).all())


def fractions(line: Line, xy: np.ndarray) -> np.ndarray:
    """Return coordinates, float64 `[n, 2]`, of a line.

    Raises:
        InputError: they are no fractions of an image's size.
    """
    if not np.isfinite(xy).all() or xy.min() < -SLACK or xy.max() > 1 + SLACK:
        raise errors.InputError(
            f"{line.place} is {line.shown}, which are no fractions of an image's size: write boxes in pixels as a "
            "table of image, x_center, y_center, width, height; and if these are keypoints, put the data.yaml with "
            "their kpt_shape beside the files"
        )
    return xy


def box(line: Line) -> tuple[float, float, float, float]:
    """Return x_min, y_min, x_max, y_max of the four numbers after the class; raises as `fractions`."""
    x, y, width, height = (float(each) for each in line.numbers()[:4])
    found = x - width / 2, y - height / 2, x + width / 2, y + height / 2
    fractions(line, np.array(found).reshape(2, 2))
    return found


def score(line: Line, words: int) -> float:
    """Return the confidence that follows so many words; NaN for none."""
    return number(line.place, "the confidence", line.words[words]) if len(line.words) == words + 1 else math.nan


def _form(folder: Path) -> Form:
    """Return what is said beside the files of a folder, or in the two folders above."""
    names: Sequence[str] | None = None
    for place in (folder, *folder.absolute().parents[:2]):
        for name in NAMES:
            if names is None and (place / name).is_file():
                names = [line.strip() for line in (place / name).read_text(encoding="utf-8").splitlines()]
        for name in _DOCUMENTS:
            if (place / name).is_file():
                found = _of_document(place / name)
                return found if names is None else dataclasses.replace(found, names=names)
    return Form(names=names or ())


def _of_document(path: Path) -> Form:
    try:
        read = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise errors.InputError(f"cannot read the class names of {str(path)!r}: {errors.reason(error)}") from error
    read = read if isinstance(read, dict) else {}
    keypoints = _keypoints(path, read.get("kpt_shape"))
    of_classes = _listed(read.get("kpt_names"))
    first = of_classes[0] if of_classes and isinstance(of_classes[0], list) else of_classes
    named = keypoints is not None and len({*map(str, first)}) == keypoints.count == len(first)
    return Form(
        names=[str(name) for name in _listed(read.get("names"))],
        keypoints=keypoints,
        keypoint_names=[str(name) for name in first] if named else (),
        described=True,
    )


def _keypoints(path: Path, shape: Any) -> Keypoints | None:
    if shape is None:
        return None
    whole = isinstance(shape, list) and len(shape) == 2 and all(type(each) is int for each in shape)
    if not whole or not 0 < shape[0] <= _MOST_KEYPOINTS or shape[1] not in (2, 3):
        raise errors.InputError(
            f"{str(path)!r} has a kpt_shape that is {str(shape)[:80]}, not [number of keypoints, 2 or 3]: correct it"
        )
    return Keypoints(*shape)


def _listed(found: Any) -> list[Any]:
    """Return a list, or the values of a mapping from whole numbers, by these."""
    if isinstance(found, dict) and all(type(key) is int and 0 <= key < 10**6 for key in found):
        return [found.get(at, at) for at in range(max(found, default=-1) + 1)]
    return found if isinstance(found, list) else []
