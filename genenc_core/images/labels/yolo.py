"""Objects of YOLO's text files as regions: boxes and polygons; and their keypoints as points."""

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from genenc_core import errors
from genenc_core.images.labels import yolo_files
from genenc_core.images.labels.point_table import Label
from genenc_core.images.labels.region_table import Region
from genenc_core.images.labels.yolo_files import Keypoints, Line

_BOX, _TRIANGLE = 5, 7
"""Words of a class with a box, and with three corners."""
_VISIBILITIES = (0, 1, 2)


def regions(files: Sequence[Path], root: Path) -> Iterator[Region]:
    """Yield the objects of files below `root`, of images named as they are, whatever their endings.

    A line is `class x_center y_center width height`, a box, whose keypoints may follow, or `class x1 y1 x2 y2 ...`, a
    polygon; a confidence may be last. The classes' names are those of `classes.txt` or `data.yaml` beside the files
    or above them.

    Raises:
        InputError: a line of another form, or numbers that are no fractions.
    """
    for line in yolo_files.read_lines(files, root, what="regions"):
        words, keypoints = len(line.words), line.form.keypoints
        polygons: tuple[np.ndarray, ...] = ()
        box = None
        if keypoints is not None and keypoints.fits(words):
            box, own = yolo_files.box(line), _BOX + keypoints.count * keypoints.size
        elif words <= _BOX + 1:
            box, own = yolo_files.box(line), _BOX
        elif words >= _TRIANGLE and keypoints is None:
            own = words - (words % 2 == 0)
            polygons = (yolo_files.fractions(line, line.numbers()[: own - 1].reshape(-1, 2)),)
        else:
            raise _of_other_length(line)
        yield Region(
            file=str(line.path),
            row=f"line {line.at}",
            image=line.image,
            name=str(line.at),
            box=box,
            polygons=polygons,
            category=line.category,
            score=yolo_files.score(line, own),
        )


def points(files: Sequence[Path], root: Path) -> Iterator[Label]:
    """Yield the keypoints of files below `root`, of images named as they are, whatever their endings.

    A line is `class x_center y_center width height x1 y1 [v1] x2 y2 [v2] ...`; a third number is a visibility, of which
    0 is a missing point, or, in predictions, a likelihood. Without it a point below 0 is missing. Names are those of
    `kpt_names` of `data.yaml`, else `keypoint1`, ... Where an image has several objects, they are individuals, numbered
    in the order of its lines; of several classes the individual begins with the class.

    Raises:
        InputError: a line of another form, numbers that are no fractions, or `data.yaml` does not state `kpt_shape`.
    """
    lines = yolo_files.read_lines(files, root, what="points")
    several = any(count > 1 for count in Counter(line.image for line in lines).values())
    classes = {line.category for line in lines}
    seen: Counter[str] = Counter()
    predicted = any(_is_predicted(line) for line in lines)
    for line in lines:
        keypoints = line.form.keypoints
        if keypoints is None:
            raise errors.InputError(
                f"{line.place} is {line.shown}, and nothing says that keypoints follow a box: put the data.yaml of the "
                "dataset, with kpt_shape: [number of keypoints, 2 or 3], beside the files; boxes and polygons are "
                "--regions"
            )
        if not keypoints.fits(len(line.words)):
            raise _of_other_length(line)
        seen[line.image] += 1
        count = str(seen[line.image]) if several else ""
        individual = " ".join(filter(None, (line.category if len(classes) > 1 else "", count)))
        yield from _labels(line, individual, predicted=predicted)


def _is_predicted(line: Line) -> bool:
    """Return whether the third numbers of keypoints are confidences."""
    keypoints = line.form.keypoints
    if keypoints is None or keypoints.size == 2 or not keypoints.fits(len(line.words)):
        return False
    return not np.isin(_keypoints(line, keypoints)[:, 2], _VISIBILITIES).all()


def _keypoints(line: Line, keypoints: Keypoints) -> np.ndarray:
    return line.numbers()[_BOX - 1 :][: keypoints.count * keypoints.size].reshape(-1, keypoints.size)


def _labels(line: Line, individual: str, *, predicted: bool) -> Iterator[Label]:
    keypoints = line.form.keypoints
    assert keypoints is not None
    found = _keypoints(line, keypoints)
    thirds = found[:, 2] if keypoints.size == 3 else np.full(len(found), math.nan)
    missing = np.any(found[:, :2] < 0, axis=1) if keypoints.size == 2 else np.logical_and(thirds == 0, not predicted)
    if not missing.all():
        yolo_files.fractions(line, found[~missing, :2])
    names = line.form.keypoint_names or [f"keypoint{at}" for at in range(1, keypoints.count + 1)]
    for name, (x, y), third, is_missing in zip(
        names, found[:, :2].tolist(), thirds.tolist(), missing.tolist(), strict=True
    ):
        yield Label(
            file=str(line.path),
            row=f"line {line.at}",
            image=line.image,
            name=name,
            x=math.nan if is_missing else x,
            y=math.nan if is_missing else y,
            individual=individual,
            likelihood=third if predicted else math.nan,
        )


def _of_other_length(line: Line) -> errors.InputError:
    keypoints = line.form.keypoints
    wanted = "" if keypoints is None else f", nor a box with {keypoints.count} keypoints of {keypoints.size} numbers"
    return errors.InputError(
        f"{line.place} is {line.shown}: {len(line.words)} words are neither a class with a box, perhaps with a "
        f"confidence, nor a polygon{wanted}: correct it, or the kpt_shape of data.yaml"
    )
