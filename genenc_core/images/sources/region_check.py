"""Early check of regions: masks of another size than their images, and coordinates as `label_check` checks points."""

import contextlib
import dataclasses
import warnings
from collections.abc import Mapping

import numpy as np

from genenc_core import errors, spec
from genenc_core.images.containers.reader import ContainerReader
from genenc_core.images.labels import matching, region_table
from genenc_core.images.labels.region_table import RegionTable
from genenc_core.images.sources import label_check, manifest
from genenc_core.images.sources.label_check import ImageSize, Sizes, SuspiciousLabels
from genenc_core.images.sources.regions import Regions

CHECKED_MASKS = 1000
"""Images with masks, evenly spread, whose sizes are read."""


def check(
    listed: manifest.Manifest,
    regions: Regions,
    *,
    scale_given: bool,
    sizes: Sizes | None = None,
    channels: spec.Channels | None = None,
) -> None:
    """Check the regions of a manifest's images against the sizes of some of them, and warn of problems.

    Arguments as for `label_check.check`.

    Raises:
        InputError: a mask has another size than its image; or the coordinates look normalised, swapped or scaled.
    """
    _check_masks(listed, regions, sizes, channels)
    if scale_given and regions.scale.text is None:
        return
    sample, xy, rows = _sampled(listed, regions)
    if not len(xy):
        return

    def of_sample(wanted: list[int]) -> dict[int, ImageSize]:
        assert sizes is not None
        found = sizes([int(rows[at]) for at in wanted])
        return {at: found[int(rows[at])] for at in wanted if int(rows[at]) in found}

    for finding in label_check.examine(sample, xy, None if sizes is None else of_sample, channels):
        message = _words(finding.message)
        if finding.refuse and not scale_given:
            raise errors.InputError(message)
        warnings.warn(message, SuspiciousLabels, stacklevel=3)


def rasterised(
    table: RegionTable,
    listed: manifest.Manifest,
    placed: matching.Placement,
    *,
    sizes: Sizes | None = None,
    channels: spec.Channels | None = None,
) -> RegionTable:
    """Return regions with masks in place of polygons in fractions of images whose sizes no file states.

    Arguments as for `check`, and where the regions belong. Reads the header of every image with such a polygon.
    """
    if not table.outlines:
        return table
    of_images = {int(table.image[at]) for at in table.outlines}
    rows = sorted(row for row, index in placed.rows.items() if index in of_images)
    known = _sizes(listed, rows, channels) if sizes is None else sizes(rows)
    return region_table.rasterised(table, {placed.rows[row]: found.shown for row, found in known.items()})


def _words(message: str) -> str:
    """Return a message about points as one about the corners of regions."""
    for before, after in (
        ("the points file", "the regions file"),
        ("--points-scale", "--regions-scale"),
        ("--points-columns", "--regions-columns"),
        ("points", "corners"),
    ):
        message = message.replace(before, after)
    return message


def _sampled(listed: manifest.Manifest, regions: Regions) -> tuple[manifest.Manifest, np.ndarray, np.ndarray]:
    """Return a manifest of some images with regions, the corners of their boxes `[n, K, 2]`, and their rows."""
    rows = np.unique(regions.rows[np.isfinite(regions.boxes).all(1)])
    rows = np.array(label_check.spread_over(rows.tolist()), np.int64) if len(rows) else rows
    if not len(rows):
        return listed, np.empty((0, 0, 2)), rows
    sample = manifest.write_selection(listed.path.with_name("regions-sample.parquet"), listed, rows)
    scale = {} if regions.scale.text is None else {"scale": regions.scale.text}
    stated = {at: regions.frame_sizes[row] for at, row in enumerate(rows.tolist()) if row in regions.frame_sizes}
    corners = [regions.of_rows(row, row + 1).boxes.reshape(-1, 2) for row in rows.tolist()]
    xy = np.full((len(rows), max(map(len, corners)), 2), np.nan)
    for at, each in enumerate(corners):
        xy[at, : len(each)] = each
    return dataclasses.replace(sample, labels=scale, frame_sizes=stated), xy, rows


def _check_masks(
    listed: manifest.Manifest, regions: Regions, sizes: Sizes | None, channels: spec.Channels | None
) -> None:
    with_mask = regions.mask_sizes[:, 0] > 0
    rows, first = np.unique(regions.rows[with_mask], return_index=True)
    if not len(rows):
        return
    own = regions.mask_sizes[with_mask][first]
    chosen = np.unique(np.linspace(0, len(rows) - 1, min(len(rows), CHECKED_MASKS)).astype(int))
    known = _sizes(listed, rows[chosen].tolist(), channels) if sizes is None else sizes(rows[chosen].tolist())
    wrong = [at for at in chosen.tolist() if _differs(known.get(int(rows[at])), own[at])]
    if not wrong:
        return
    height, width = own[wrong[0]].tolist()
    row = int(rows[wrong[0]])
    found = known[row]
    turned = found.stored == (width, height)
    remedy = (
        "they are turned: make them from the upright image, as its EXIF orientation shows it"
        if turned
        else "make them from these images, or give the images that they were made from"
    )
    raise errors.InputError(
        f"masks have another size than their images, {len(wrong)} of {len(chosen)} checked: that of "
        f"{listed.read(row, row + 1).image_ids[0]!r} is {width} x {height}, and the image {found.shown[0]} x "
        f"{found.shown[1]} pixels: {remedy}"
    )


def _differs(found: ImageSize | None, mask: np.ndarray) -> bool:
    return found is not None and found.shown != (int(mask[1]), int(mask[0]))


def _sizes(listed: manifest.Manifest, rows: list[int], channels: spec.Channels | None) -> Mapping[int, ImageSize]:
    with contextlib.closing(ContainerReader(channels)) as reader:
        found = {row: label_check.row_size(listed, row, reader) for row in rows}
    return {row: size for row, size in found.items() if size is not None}
