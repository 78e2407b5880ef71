"""Regions of the images that were looked at, through the model's geometry."""

import dataclasses
from pathlib import Path

import numpy as np
import pyarrow as pa

from genenc_core import spec, statuses
from genenc_core.encoding.region_batches import RegionBatch, ShardRegions
from genenc_core.images.labels.masks import Mask
from genenc_core.images.sources import regions as region_rows
from genenc_core.images.sources.regions import Regions
from genenc_core.inspection import images
from genenc_core.run import planning

Line = tuple[tuple[float, float], tuple[float, float]]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Placed:
    """Regions of a sample."""

    states: dict[str, int]
    """As `region_status` names them -> count."""
    categories: list[str]
    """In the order of their colours."""
    drawn: dict[int, list[tuple[int, list[Line]]]]
    """Readable image -> its regions: index of the category, and their outlines in model pixels."""
    batch: RegionBatch


def place(found: Regions, rows: np.ndarray, sample: images.Sample, preprocessing: spec.Preprocessing) -> Placed:
    """Place the regions of a sample of images.

    Args:
        found: those of all images.
        rows: rows of the sample's images among all images.
        sample: the images.
        preprocessing: how they are fitted.
    """
    own = rows[sample.rows]
    shard = ShardRegions(found=found, places=len(found))
    batch = shard.on_model(own, sample.affines, sample.sizes, preprocessing)
    names = found.texts("category")
    categories = list(dict.fromkeys(names))
    drawn: dict[int, list[tuple[int, list[Line]]]] = {}
    for image, at in batch.by_image():
        for index in at.tolist():
            lines = _lines(batch.masks[index], batch.boxes[index], batch.affines[index])
            drawn.setdefault(image, []).append((categories.index(names[int(batch.at[index])]), lines))
    counts = statuses.counts(statuses.written(statuses.REGIONS), batch.status)
    return Placed(
        states={name: count for name, count in counts.items() if name != "no_region"},
        categories=categories,
        drawn=drawn,
        batch=batch,
    )


def _lines(mask: Mask | None, box: np.ndarray, affine: np.ndarray) -> list[Line]:
    """Return the outline of a region in model pixels."""
    if mask is None:
        left, top, right, bottom = box.tolist()
        corners = [(left, top), (right, top), (right, bottom), (left, bottom)]
        return list(zip(corners, [*corners[1:], corners[0]], strict=True))
    scale_x, scale_y, offset_x, offset_y = affine.tolist()

    def on_model(at: tuple[int, int]) -> tuple[float, float]:
        return at[0] * scale_x + offset_x, at[1] * scale_y + offset_y

    return [(on_model(one), on_model(other)) for one, other in mask.outline()]


def under_a_cell(placed: Placed, design: planning.Design) -> int | None:
    """Return how many regions are smaller than a cell of the map that products of regions use; None without one."""
    product = next((item for item in design.products if item.needs_regions), None)
    cells = None if product is None or design.cells is None else design.cells.get(product.slot)
    if cells is None:
        return None
    boxes = placed.batch.boxes[placed.batch.valid]
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    return int((areas < cells.stride[0] * cells.stride[1]).sum())


def chosen(found: Regions, rows: np.ndarray, path: Path) -> Regions:
    """Write the regions of some images, ascending, numbered anew, as a file of regions."""
    kept = np.flatnonzero(np.isin(found.rows, rows))
    table = found.table.take(pa.array(kept))
    renumbered = pa.array(np.searchsorted(rows, found.rows[kept]), pa.int64())
    at = table.schema.get_field_index("row")
    return region_rows.write_like(path, table.set_column(at, table.schema.field(at), renumbered), found.labels)
