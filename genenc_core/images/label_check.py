"""Coordinates that look normalised, swapped or of frames of another size, noticed before anything is encoded."""

import dataclasses
import os
import warnings
from fractions import Fraction
from pathlib import Path

import numpy as np

from genenc_core import errors
from genenc_core.images import decode, manifest, names, reading, rows
from genenc_core.images.point_scale import NORMALIZED, PERCENT

SAMPLED_IMAGES = 64
"""Labelled images, evenly spread over the manifest, whose sizes are read."""
MOST_TRIED = 2 * SAMPLED_IMAGES
LARGEST_FILE = 64 * 2**20
MANY = 0.2
FEWEST_OUTSIDE = 5
"""Share and number of points outside their images from which on it is no matter of single labels."""
SOME = 0.02
FEWEST_POINTS = 10
"""From which on a corner without labels says something."""
_FACTORS = (1.5, 2, 2.5, 3, 4, 5, 6, 8, 10, 16)


class OddLabels(UserWarning):
    """Coordinates that may not be pixels of their images."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """What is odd about coordinates, and what to do; `refuse` where they cannot be pixels of these images."""

    words: str
    refuse: bool


def check(listed: manifest.Manifest, *, scale_given: bool) -> None:
    """Look at a manifest's points as a whole, with the sizes of some of its images; warn of what is odd.

    `scale_given`: the user says what the coordinates are, so that nothing is refused.

    Raises:
        InputError: the coordinates look normalised, swapped or scaled.
    """
    scaled = listed.points_scale.text is not None
    finding = None if scale_given and not scaled else examine(listed)
    if finding is None:
        return
    if finding.refuse and not scale_given:
        raise errors.InputError(finding.words)
    warnings.warn(finding.words, OddLabels, stacklevel=2)


def examine(listed: manifest.Manifest) -> Finding | None:
    """Return the most telling thing that is odd about a manifest's points; None: nothing."""
    xy = _points(listed)
    sizes = _sizes(listed, [*np.flatnonzero(np.isfinite(xy).all(axis=-1).any(axis=1))])
    if not sizes:
        return None
    each = np.array([size for row, size in sizes.items() for _ in _finite(xy[row])], dtype=np.float64)
    some = np.concatenate([_finite(xy[row]) for row in sizes])
    scale = listed.points_scale
    if scale.relative:
        some = some * each
    scaled = scale.text is not None
    found = None if scaled else _normalized(_finite(xy), each)
    return found or _outside(some, each, scaled=scaled) or _corner(some, each) or _origin(_finite(xy))


def _finite(xy: np.ndarray) -> np.ndarray:
    """Return the points that are there, float64 [n, 2]."""
    flat = xy.reshape(-1, 2)
    there: np.ndarray = flat[np.isfinite(flat).all(axis=1)]
    return there


def _normalized(xy: np.ndarray, sizes: np.ndarray) -> Finding | None:
    """Whether most coordinates lie in [0, 1]; some tools write (0, 0) for a point that is not there."""
    there = xy[(xy != 0).any(axis=1)]
    inside = ((there >= 0) & (there <= 1)).all(axis=1)
    if not len(there) or inside.mean() < SOME or sizes.max() <= 2:
        return None
    x, y = there[inside][0]
    counted = f"{inside.sum()} of {len(there)} points of the points file lie in [0, 1], such as ({x:g}, {y:g})"
    if inside.mean() < 0.5:
        return Finding(
            words=f"{counted}, as normalised coordinates do, and the others do not: "
            "does the file mix two kinds of labels?",
            refuse=False,
        )
    return Finding(
        words=f"{counted}: they look normalised, not like pixels. Give --points-scale {NORMALIZED} if they are "
        "fractions of the image's width and height, or --points-scale 1 if they are pixels",
        refuse=bool((there[inside] % 1 != 0).any()),
    )


def _outside(xy: np.ndarray, sizes: np.ndarray, *, scaled: bool) -> Finding | None:
    """Whether many points lie outside their images, and what would bring them in."""
    out = _are_outside(xy, sizes)
    if out.mean() < SOME:
        return None
    first = int(np.flatnonzero(out)[0])
    counted = (
        f"{out.sum()} of {len(xy)} points looked at lie outside their images, such as ({xy[first][0]:g}, "
        f"{xy[first][1]:g}) in one of {sizes[first][0]:g} x {sizes[first][1]:g} pixels"
    )
    if scaled:
        return Finding(words=f"{counted}: does --points-scale say what the coordinates are?", refuse=False)
    many, few = bool(out.mean() >= MANY and out.sum() >= FEWEST_OUTSIDE), out.mean() / 10
    if _are_outside(xy[:, ::-1], sizes).mean() <= few:
        return Finding(
            words=f"{counted}, and inside if x and y are swapped: correct the points file (of a tidy table, "
            "--points-columns x=Y,y=X names the columns the other way round), or give --points-scale 1 if they are "
            "right",
            refuse=many,
        )
    factor = next((factor for factor in _FACTORS if _are_outside(xy / factor, sizes).mean() <= few), None)
    if factor is None:
        return Finding(words=f"{counted}: are these the images that were labelled, in their size?", refuse=False)
    return Finding(
        words=f"{counted}, and inside if divided by {factor:g}, as of larger frames: "
        f"give --points-scale {1 / Fraction(factor)} if frames {factor:g} times as large were labelled, or "
        "--points-scale 1 if the coordinates are right",
        refuse=many,
    )


def _are_outside(xy: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    outside: np.ndarray = np.any((xy < 0) | (xy > sizes), axis=1)
    return outside


def _corner(xy: np.ndarray, sizes: np.ndarray) -> Finding | None:
    """Whether the right and lower halves of all images are without a point."""
    reach = (xy / sizes).max(axis=0)
    if len(xy) < FEWEST_POINTS or reach.max() > 0.5:
        return None
    percent = f", or {PERCENT}" if 50 < xy.max() <= 100 else ""
    return Finding(
        words=f"all {len(xy)} points looked at lie in the upper left quarter of their images (x up to {reach[0]:.0%} "
        f"of the width, y up to {reach[1]:.0%} of the height): if smaller frames were labelled, give --points-scale (2 "
        f"for half the size{percent}); --points-scale 1 if the coordinates are right",
        refuse=False,
    )


def _origin(xy: np.ndarray) -> Finding | None:
    """Whether points lie exactly at (0, 0), which COCO and others write for a point that is not visible."""
    count = int((xy == 0).all(axis=1).sum())
    if not count:
        return None
    return Finding(
        words=f"{count} of {len(xy)} points of the points file lie exactly at (0, 0), as some tools write a point that "
        "is not visible: leave x and y empty where there is none, or its vector is that of the image's corner",
        refuse=False,
    )


def _points(listed: manifest.Manifest) -> np.ndarray:
    """Return all points of a manifest, float64 [rows, K, 2]."""
    count = len(listed.point_names)
    batches = listed.iter_columns(rows.POINT_COLUMNS)
    blocks = [np.stack([rows.flat_points(batch.column(axis)) for axis in (0, 1)], axis=-1) for batch in batches]
    return np.concatenate([np.empty((0, 2)), *blocks]).reshape(-1, count, 2)


def _sizes(listed: manifest.Manifest, labelled: list[int]) -> dict[int, tuple[int, int]]:
    """Return row -> (width, height), upright, of some of the rows; of those whose files say it."""
    spread = [labelled[at] for at in np.linspace(0, len(labelled) - 1, min(len(labelled), MOST_TRIED)).astype(int)]
    # Every second one first, so that those that are left when enough were read are spread as well.
    wanted = [*spread[::2], *spread[1::2]]
    at: dict[int, str] = {}
    first = 0
    for batch in listed.iter_columns(["path"]):
        at |= {row: str(batch.column(0)[row - first]) for row in wanted if first <= row < first + batch.num_rows}
        first += batch.num_rows
    found: dict[int, tuple[int, int]] = {}
    for row in wanted:
        size = _upright_size(os.path.join(listed.root, names.to_path(at[row])))  # noqa: PTH118
        if size is not None:
            found[row] = size
        if len(found) == SAMPLED_IMAGES:
            break
    return found


def _upright_size(path: str) -> tuple[int, int] | None:
    """Return what an image's header says of its width and height after its orientation; None: nothing, or not soon."""
    try:
        if Path(path).stat().st_size > LARGEST_FILE:
            return None
        data, _ = reading.read(path)
        return decode.upright_size(data)
    except Exception:  # a header of hostile bytes raises nearly anything; the run says what is wrong with the image
        return None
