"""How much of each cell of a map a region covers, exact to the area, seen through the fit of its image.

A pixel or box of the source is a rectangle on the model's input (`images.decode.geometry`), and so is a cell: it
extends half a stride to each side of its centre, the outermost to the edges of the input (`cells.Cells`). The area that
they share is the product of the lengths that they share along x and along y.
"""

import numpy as np

from genenc_core.encoding.cells import Cells
from genenc_core.images.labels.masks import Mask


def edges(cells: Cells, size: tuple[int, int], pixels: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Return the edges of a map's rows and columns on the model's input, float64 `[h + 1]` and `[w + 1]`, ascending.

    Args:
        cells: the grid.
        size: (h, w) of the map.
        pixels: (height, width) of the input.
    """
    found = []
    for axis in (0, 1):
        inner = cells.first[axis] + (np.arange(1, size[axis]) - 0.5) * cells.stride[axis]
        found.append(np.clip(np.r_[0.0, inner, float(pixels[axis])], 0, pixels[axis]))
    return found[0], found[1]


def of_box(box: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Return the area of each cell in a box, float64 `[h, w]`.

    Args:
        box: x_min, y_min, x_max, y_max in model pixels.
        rows: edges of the rows.
        columns: edges of the columns.
    """
    return np.outer(_shared(box[1], box[3], rows), _shared(box[0], box[2], columns))


def of_mask(mask: Mask, affine: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Return the area of each cell in a mask, float64 `[h, w]`; arguments as for `of_box`.

    `affine`: scale x, scale y, offset x, offset y from source to model pixels.
    """
    if not len(mask.starts):
        return np.zeros((len(rows) - 1, len(columns) - 1))
    scale_x, scale_y, offset_x, offset_y = affine.tolist()
    column, top, bottom = mask.pieces()
    lengths = _shared(top * scale_y + offset_y, bottom * scale_y + offset_y, rows)
    firsts = np.flatnonzero(np.r_[True, column[1:] != column[:-1]])
    by_column = np.add.reduceat(lengths, firsts, axis=0)
    left = column[firsts] * scale_x + offset_x
    across = _shared(left, left + scale_x, columns)
    area: np.ndarray = by_column.T @ across
    return area


def _shared(start: np.ndarray | float, stop: np.ndarray | float, edges: np.ndarray) -> np.ndarray:
    """Return the lengths that intervals share with those between the edges, float64 `[..., n]`."""
    low, high = np.asarray(start)[..., None], np.asarray(stop)[..., None]
    shared: np.ndarray = np.maximum(np.minimum(high, edges[1:]) - np.maximum(low, edges[:-1]), 0.0)
    return shared
