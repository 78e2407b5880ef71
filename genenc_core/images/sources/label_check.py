"""Early check for coordinates that look normalised, swapped, or made on frames of another size."""

import contextlib
import dataclasses
import warnings
from collections.abc import Callable, Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import tifffile
from PIL import Image

from genenc_core import errors, spec
from genenc_core.images.containers.reader import ContainerReader
from genenc_core.images.decode import decode, load_image
from genenc_core.images.labels.scale import NORMALIZED, PERCENT, PointsScale
from genenc_core.images.sources import manifest, manifest_rows

SAMPLED_IMAGES = 64
"""Labelled images, evenly spread over the manifest, whose sizes are read."""
MAX_TRIED = 2 * SAMPLED_IMAGES
LARGEST_FILE = 64 * 2**20
"""Bytes of files that are read whole."""
_ORIENTATION = 274
"""EXIF and TIFF tag."""
ERROR_SHARE = 0.2
MIN_OUTSIDE = 5
"""Share and number of points outside their images from which it is more than a few wrong labels."""
WARNING_SHARE = 0.02
MIN_POINTS = 10
"""Fewest points for which empty parts of the images are evidence."""
_LARGEST_FACTOR = 16
"""Largest plausible size of the labelled frames relative to the images."""
_ROTATE: Final = (
    "points are pixels of the upright image. Rotate the coordinates as well (orientation 6: x, y -> H - y, x; 8: x, y "
    "-> y, W - x, with W and H of the stored image), or use --points-scale 1 if they are right"
)


class SuspiciousLabels(UserWarning):
    """Coordinates that may not be pixels of their images."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """A problem with the coordinates and its remedy; `refuse` if they cannot be pixels of these images."""

    message: str
    refuse: bool
    whole: bool = True
    """Whether it concerns the labels as a whole, not only some of them."""


class ImageSize(NamedTuple):
    """Width and height of an image in pixels."""

    shown: tuple[int, int]
    """Upright."""
    stored: tuple[int, int]
    """Before the EXIF orientation is applied."""


Sizes = Callable[[list[int]], dict[int, ImageSize]]
"""From rows, ascending, to the sizes of those that have one."""


def check(
    listed: manifest.Manifest,
    *,
    scale_given: bool,
    sizes: Sizes | None = None,
    channels: spec.Channels | None = None,
) -> None:
    """Check all points of a manifest against the sizes of some of its images, and warn of problems.

    `scale_given`: the user stated the scale of the coordinates, so nothing is refused. `sizes` are those of the images
    where they are known; by default the headers of their files are read, of arrays with these `channels`.

    Raises:
        InputError: the coordinates look normalised, swapped or scaled.
    """
    xy = _points(listed)
    at_origin = _origin(_finite(xy))
    wanted = not scale_given or listed.points_scale.text is not None
    findings = [*(examine(listed, xy, sizes, channels) if wanted else ()), *([at_origin] if at_origin else [])]
    for finding in findings:
        if finding.refuse and not scale_given:
            raise errors.InputError(finding.message)
    for finding in findings:
        warnings.warn(finding.message, SuspiciousLabels, stacklevel=2)


def examine(
    listed: manifest.Manifest, xy: np.ndarray, known: Sizes | None, channels: spec.Channels | None
) -> list[Finding]:
    """Return the problems with a manifest's points, float64 `[rows, K, 2]`, as pixels of its images."""
    labelled = np.flatnonzero(np.isfinite(xy).all(axis=-1).any(axis=1)).tolist()
    sizes = _sizes(listed, labelled, channels) if known is None else known(spread_over(labelled))
    if not sizes:
        return []
    shown = np.array([size.shown for row, size in sizes.items() for _ in _finite(xy[row])], dtype=np.float64)
    stored = np.array([size.stored for row, size in sizes.items() for _ in _finite(xy[row])], dtype=np.float64)
    some = np.concatenate([_finite(xy[row]) for row in sizes])
    scale = listed.points_scale
    if scale.relative:
        some = some * shown
    scaled = scale.text is not None
    normalized = None if scaled else _normalized(_finite(xy), shown)
    if normalized is not None and normalized.whole:
        return [normalized]
    other_frames = _other_frames(listed, xy, sizes)
    if other_frames is not None:
        return [finding for finding in (normalized, other_frames) if finding is not None]
    mixed_or_outside = [
        finding for finding in (normalized, _outside(some, shown, stored, scaled=scaled)) if finding is not None
    ]
    corner = _corner(some, shown)
    return mixed_or_outside or ([] if corner is None else [corner])


def _finite(xy: np.ndarray) -> np.ndarray:
    """Return the points that are not missing, float64 `[n, 2]`."""
    flat = xy.reshape(-1, 2)
    finite: np.ndarray = flat[np.isfinite(flat).all(axis=1)]
    return finite


def _normalized(xy: np.ndarray, sizes: np.ndarray) -> Finding | None:
    """Check whether coordinates lie in [0, 1], ignoring (0, 0), which some tools write for a missing point."""
    nonzero = xy[(xy != 0).any(axis=1)]
    inside = ((nonzero >= 0) & (nonzero <= 1)).all(axis=1)
    if not len(nonzero) or inside.mean() < WARNING_SHARE or sizes.max() <= 2:
        return None
    x, y = nonzero[inside][0]
    counted = f"{inside.sum()} of {len(nonzero)} points of the points file lie in [0, 1], such as ({x:g}, {y:g})"
    if inside.mean() < 0.5:
        return Finding(
            message=f"{counted}, like normalised coordinates, while the others do not: "
            "does the file mix two kinds of labels?",
            refuse=False,
            whole=False,
        )
    return Finding(
        message=f"{counted}: they look normalised, not like pixels. Use --points-scale {NORMALIZED} if they are "
        "fractions of the image's width and height, or --points-scale 1 if they are pixels",
        refuse=bool((nonzero[inside] % 1 != 0).any()),
    )


def _other_frames(listed: manifest.Manifest, xy: np.ndarray, sizes: Mapping[int, "ImageSize"]) -> Finding | None:
    """Compare the sizes of images with those that the points file states, and say what makes them equal.

    Args:
        listed: the manifest.
        xy: points of all its rows, float64 `[rows, K, 2]`.
        sizes: those of some of its images, by row.
    """
    stated = {row: listed.frame_sizes[row] for row in sizes if row in listed.frame_sizes}
    scale = listed.points_scale
    if scale.relative:
        return None
    if scale.text is not None:
        other = [row for row, frame in stated.items() if not _makes(scale, frame, sizes[row].shown)]
    else:
        other = [row for row, frame in stated.items() if frame != sizes[row].shown]
    turned = [row for row in other if scale.text is None and stated[row] == sizes[row].shown[::-1]]
    if turned and _are_upright(turned, xy, sizes):
        other, turned = [row for row in other if row not in turned], []
    if not other:
        return None
    frame, size = stated[other[0]], sizes[other[0]].shown
    counted = (
        f"the points file states another size than that of {len(other)} of {len(stated)} images checked, such as "
        f"{frame[0]} x {frame[1]} for one of {size[0]} x {size[1]} pixels"
    )
    if scale.text is not None:
        return Finding(message=f"{counted}: is --points-scale right?", refuse=False)
    if turned == other:
        stored = "as stored, before its EXIF orientation is applied" if frame == sizes[other[0]].stored else "turned"
        return Finding(message=f"{counted}, {stored}: {_ROTATE}", refuse=True)
    factors = Fraction(size[0], frame[0]), Fraction(size[1], frame[1])
    fitting = [PointsScale(*both) for both in ((factors[0],) * 2, (factors[1],) * 2, factors)]
    # The simplest first: sizes are rounded.
    fitting.sort(key=lambda one: one.x.denominator + one.y.denominator)
    scales = [one for one in fitting if all(_makes(one, stated[row], sizes[row].shown) for row in stated)]
    remedy = (
        f"use --points-scale {scales[0].text}"
        if scales
        else "scale those labels in the points file, since --points-scale applies to all"
    )
    return Finding(
        message=f"{counted}: {remedy}; --points-scale 1 if the coordinates are pixels of these images", refuse=True
    )


def _makes(scale: PointsScale, frame: tuple[int, int], size: tuple[int, int]) -> bool:
    """Return whether a scale brings a frame to a size, to less than a pixel: sizes are whole numbers."""
    return bool((np.abs(scale.apply(np.array(frame, dtype=np.float64)) - size) < 1).all())


def _are_upright(rows: list[int], xy: np.ndarray, sizes: Mapping[int, "ImageSize"]) -> bool:
    """Return whether points of some images lie rather inside them than inside frames of exchanged width and height."""
    shown = [_are_outside(_finite(xy[row]), np.array(sizes[row].shown)).sum() for row in rows]
    turned = [_are_outside(_finite(xy[row]), np.array(sizes[row].shown[::-1])).sum() for row in rows]
    return bool(sum(shown) < sum(turned))


def _outside(xy: np.ndarray, sizes: np.ndarray, stored: np.ndarray, *, scaled: bool) -> Finding | None:
    """Check whether many points lie outside their images, and what would bring them inside.

    Args:
        xy: points in pixels, float64 `[n, 2]`.
        sizes: width and height of the upright image of each, float64 `[n, 2]`.
        stored: the same before the EXIF orientation is applied.
        scaled: whether the user stated the scale of the coordinates.
    """
    out = _are_outside(xy, sizes)
    if out.mean() < WARNING_SHARE:
        return None
    first = int(np.flatnonzero(out)[0])
    counted = (
        f"{out.sum()} of {len(xy)} points checked lie outside their images, such as ({xy[first][0]:g}, "
        f"{xy[first][1]:g}) in one of {sizes[first][0]:g} x {sizes[first][1]:g} pixels"
    )
    if scaled:
        return Finding(message=f"{counted}: is --points-scale right?", refuse=False)
    many, few = bool(out.mean() >= ERROR_SHARE and out.sum() >= MIN_OUTSIDE), out.mean() / 10
    turned = (sizes != stored).any(axis=1)
    if _are_outside(xy, stored).mean() <= few:
        also = " (or with x and y swapped)" if _are_outside(xy[:, ::-1], sizes).mean() <= few else ""
        return Finding(
            message=f"{counted}, but inside the images as stored, before their EXIF orientation is applied{also}: "
            f"{_ROTATE}",
            refuse=bool(out[turned].mean() >= ERROR_SHARE and out.sum() >= MIN_OUTSIDE),
        )
    if _are_outside(xy[:, ::-1], sizes).mean() <= few:
        return Finding(
            message=f"{counted}, but inside if x and y are swapped: correct the points file (for a tidy table, "
            "--points-columns x=Y,y=X swaps the columns), or use --points-scale 1 if they are right",
            refuse=many,
        )
    larger = _larger_frames(xy, sizes, out) if many else None
    return Finding(
        message=f"{counted}{larger or ': are these the labelled images, in the same size?'}",
        refuse=larger is not None,
    )


def _larger_frames(xy: np.ndarray, sizes: np.ndarray, out: np.ndarray) -> str | None:
    """Return a message if the labels were made on larger frames, else None.

    Args:
        xy: points in pixels, float64 `[n, 2]`.
        sizes: width and height of the image of each, float64 `[n, 2]`.
        out: whether each lies outside, bool `[n]`.
    """
    needed = float(np.quantile((xy / sizes).max(axis=1), 1 - out.mean() / 10, method="higher"))
    if needed > _LARGEST_FACTOR or _are_outside(xy / needed, sizes).mean() > out.mean() / 10:
        return None
    remedy = (
        "the width of these images divided by that of the labelled frames (1/2 if those were twice as large), or use "
        "--points-scale 1 if the coordinates are right"
    )
    shares = {tuple(size): out[(sizes == size).all(axis=1)].mean() for size in np.unique(sizes, axis=0)}
    kept = [size for size, share in shares.items() if share < WARNING_SHARE]
    if kept:
        other = next(size for size, share in shares.items() if share >= WARNING_SHARE)
        return (
            f"; they belong to images of {other[0]:g} x {other[1]:g} pixels, and hardly any to images of "
            f"{kept[0][0]:g} x {kept[0][1]:g}: --points-scale applies to all. Scale those labels in the points file, "
            f"by {remedy}"
        )
    return (
        f", but inside if divided by {np.ceil(needed * 100) / 100:g} or more, as if made on larger frames: use "
        f"--points-scale, {remedy}"
    )


def _are_outside(xy: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    outside: np.ndarray = np.any((xy < 0) | (xy > sizes), axis=1)
    return outside


def _corner(xy: np.ndarray, sizes: np.ndarray) -> Finding | None:
    """Check whether all points lie in the upper left quarter of their images."""
    reach = (xy / sizes).max(axis=0)
    if len(xy) < MIN_POINTS or reach.max() > 0.5:
        return None
    percent = f", or {PERCENT}" if 50 < xy.max() <= 100 else ""
    return Finding(
        message=f"all {len(xy)} points checked lie in the upper left quarter of their images (x up to {reach[0]:.0%} "
        f"of the width, y up to {reach[1]:.0%} of the height): if smaller frames were labelled, use --points-scale (2 "
        f"for half the size{percent}); --points-scale 1 if the coordinates are right",
        refuse=False,
    )


def _origin(xy: np.ndarray) -> Finding | None:
    """Check for points at exactly (0, 0), which COCO and others write for a point that is not visible."""
    count = int((xy == 0).all(axis=1).sum())
    if not count:
        return None
    return Finding(
        message=f"{count} of {len(xy)} points of the points file lie exactly at (0, 0), which some tools write for a "
        "point that is not visible: leave x and y empty for those, or they get the vector at the image's corner",
        refuse=False,
    )


def _points(listed: manifest.Manifest) -> np.ndarray:
    """Return all points of a manifest, float64 `[rows, K, 2]`."""
    count = len(listed.point_names)
    batches = listed.iter_columns(manifest_rows.POINT_COLUMNS)
    blocks = [
        np.stack([manifest_rows.flat_points(batch.column(axis)) for axis in (0, 1)], axis=-1) for batch in batches
    ]
    return np.concatenate([np.empty((0, 2)), *blocks]).reshape(-1, count, 2)


def spread_over(labelled: list[int]) -> list[int]:
    """Return some of the rows, evenly spread."""
    return [labelled[at] for at in np.linspace(0, len(labelled) - 1, min(len(labelled), MAX_TRIED)).astype(int)]


def _sizes(listed: manifest.Manifest, labelled: list[int], channels: spec.Channels | None) -> dict[int, "ImageSize"]:
    """Return row -> size for a sample of the rows, of files whose headers can be read."""
    spread = spread_over(labelled)
    # Every second one first, so that the sample is still evenly spread if it is full early.
    wanted = [*spread[::2], *spread[1::2]]
    sizes: dict[int, ImageSize] = {}
    with contextlib.closing(ContainerReader(channels)) as reader:
        for row in wanted:
            size = row_size(listed, row, reader)
            if size is not None:
                sizes[row] = size
            if len(sizes) == SAMPLED_IMAGES:
                break
    return sizes


def row_size(listed: manifest.Manifest, row: int, reader: ContainerReader) -> "ImageSize | None":
    """Return the size of a row's image, read of its file or container; None if that is unreadable."""
    found = listed.read(row, row + 1)
    if not found.members[0]:
        return image_size(found.paths[0])
    try:
        (path,), (member,) = listed.places(found)
        return _image_size(*_size_of_member(reader, path, member))
    except Exception:  # damage may raise anything; the run reports the image
        return None


def image_size(path: str) -> "ImageSize | None":
    """Return an image's size from its header, or None if the header is unreadable."""
    try:
        if Path(path).stat().st_size > LARGEST_FILE:
            return _image_size(*_size_of_large(path))
        return _image_size(*decode.size_and_orientation(load_image.read(path)[0]))
    except Exception:  # a damaged header may raise anything; the run reports the image
        return None


def _image_size(shown: tuple[int, int], orientation: int) -> "ImageSize":
    return ImageSize(shown, shown[::-1] if orientation >= 5 else shown)


def _size_of_member(reader: ContainerReader, path: str, member: str) -> tuple[tuple[int, int], int]:
    """Return width and height, upright, and the EXIF orientation of a container's member."""
    content = reader.read(path, member, most_pixels=decode.MAX_PIXELS)
    values = content.pixels if content.samples is None else content.samples.values
    if values is None:
        return decode.size_and_orientation(content.data)
    height, width = values.shape[:2]
    return ((height, width) if content.orientation >= 5 else (width, height)), content.orientation


def _size_of_large(path: str) -> tuple[tuple[int, int], int]:
    """Return width and height, upright, and the EXIF orientation of a file that is not read whole."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if path.lower().endswith((".tif", ".tiff")):
            with tifffile.TiffFile(path) as file:
                page: Any = file.pages[0]
                size, tag = (int(page.imagewidth), int(page.imagelength)), page.tags.get(_ORIENTATION)
                orientation = int(tag.value) if tag is not None else 1
        else:
            with Image.open(path) as opened:
                size, orientation = opened.size, int(opened.getexif().get(_ORIENTATION, 1))
    return (size[::-1] if orientation >= 5 else size), orientation
