"""Where cells are drawn: a map that holds the image itself must lie on it, pixel by pixel."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from genenc_core import api, errors
from genenc_core.encoding.cells import Cells
from genenc_core.report import maps, pictures
from genenc_core.report.subject import open_rows
from reported import MODEL


def blocks(height: int, width: int) -> np.ndarray:
    """Return an image of 8 x 8 blocks, each of a colour of its own."""
    small = np.random.default_rng(3).permutation(256)[: height // 8 * (width // 8)].reshape(height // 8, width // 8)
    colours = np.stack([small, 255 - small, small[::-1, ::-1]], axis=-1).astype(np.uint8)
    return colours.repeat(8, axis=0).repeat(8, axis=1)


@pytest.mark.parametrize("size", [(32, 64), (64, 32), (64, 64)])
def test_a_map_of_colours_is_drawn_where_the_colours_are(tmp_path: Path, size: tuple[int, int]) -> None:
    """The model returns the mean colour of each block of 8 x 8 pixels; there are bars above and below, or beside."""
    (tmp_path / "photos").mkdir()
    Image.fromarray(blocks(*size)).save(tmp_path / "photos" / "a.png")
    given = {**MODEL, "model": "tiny_models:colours", "image_size": "64", "fit": "pad", "batch_size": 1}
    run = api.extract(str(tmp_path / "photos"), out=str(tmp_path / "run"), products=["maps=none@float32"], **given)
    source = open_rows(run.place)
    product, rows = maps.require_map(source), np.array([0])
    where, placed = maps.Geometry.of(source, product), maps.place(source, rows)
    pixels = pictures.load(source, rows).pixels[0]
    cells = maps.channels_last(source.read("maps", rows))
    colours = np.round(255 * cells[0]).astype(np.uint8)
    layer = maps.Layer(
        where=where, cells=cells[0], valid=maps.in_view(where, placed.views)[0], view=placed.views[0], base=pixels
    )
    covered = where.covered(placed.views[0], (64, 64))
    assert covered.sum() == size[0] * size[1]
    drawn = layer.over(colours, 1.0)
    np.testing.assert_array_equal(drawn, pixels)
    alone = layer.alone(colours)
    np.testing.assert_array_equal(alone[covered], pixels[covered])
    assert (alone[~covered] == 128).all()
    # In a larger picture each pixel shows the cell below it.
    large = where.spread(colours, (192, 192))
    np.testing.assert_array_equal(
        large[covered.repeat(3, 0).repeat(3, 1)], pixels.repeat(3, 0).repeat(3, 1)[covered.repeat(3, 0).repeat(3, 1)]
    )


@pytest.mark.parametrize("shown", [(21, 30), (42, 60), (10, 15)])
def test_a_pixel_shows_the_cell_with_the_nearest_centre(shown: tuple[int, int]) -> None:
    """As after unpadded convolutions: cells closer than an even division, the first not at half a stride."""
    where = maps.Geometry(cells=Cells(stride=(4.0, 4.0), first=(4.5, 5.25)), grid=(4, 5), size=(21, 30))
    found = where.index(shown)
    for axis, indices in enumerate(found):
        centres = where.cells.first[axis] + where.cells.stride[axis] * np.arange(where.grid[axis])
        for pixel, index in enumerate(indices.tolist()):
            at = (pixel + 0.5) * where.size[axis] / shown[axis]
            distance = np.abs(centres - at)
            assert distance[index] == distance.min()


def test_the_cell_of_a_point_is_the_one_that_the_run_stored(mapped: api.Run) -> None:
    source = open_rows(mapped.place)
    rows = source.ok
    where, placed = maps.Geometry.of(source, maps.require_map(source)), maps.place(source, rows)
    cells = maps.channels_last(source.read("maps", rows)).astype(np.float32)
    probes = source.read("probes", rows)
    for row in range(len(rows)):
        for point in range(2):
            at = where.cell_of(placed.points[row, point])
            np.testing.assert_allclose(cells[row][at], probes[row, point], rtol=1e-3, atol=1e-3)


def test_colours_are_the_principal_components() -> None:
    cells = np.random.default_rng(0).normal(size=(500, 8)) * np.arange(8, 0, -1)
    colours = maps.Colours.of(cells)
    singular = np.linalg.svd(cells - cells.mean(0), compute_uv=False) ** 2
    np.testing.assert_allclose(colours.explained, singular[:3] / singular.sum())
    np.testing.assert_allclose(colours.axes @ colours.axes.T, np.eye(3), atol=1e-9)
    wide = np.random.default_rng(1).normal(size=(5, 40))
    axes, variances, total = maps.principal_axes(wide - wide.mean(0), 3)
    own = np.linalg.svd(wide - wide.mean(0), full_matrices=False)
    np.testing.assert_allclose(variances, own[1][:3] ** 2)
    np.testing.assert_allclose(np.abs(np.sum(axes * own[2][:3], axis=1)), 1)
    assert np.isclose(total, (own[1] ** 2).sum())
    assert maps.Colours.of(np.ones((4, 6))).rgb(np.ones((2, 6))).tolist() == [[128] * 3] * 2


def test_similarity_is_the_cosine_and_zero_for_zeros() -> None:
    cells = np.array([[3.0, 4.0], [-4.0, 3.0], [0.0, 0.0], [6.0, 8.0]])
    assert maps.cosine(np.array([3.0, 4.0]), cells).round(12).tolist() == [1.0, 0.0, 0.0, 1.0]
    assert maps.viridis(np.array([0.0, 1.0, np.nan]), 0, 1).tolist() == [[68, 1, 84], [253, 231, 37], [128, 128, 128]]


def test_a_run_without_maps_says_how_to_store_them(extract: Any) -> None:
    with pytest.raises(errors.InputError, match=r"no feature map is stored in .*make a run with --maps"):
        maps.require_map(open_rows(extract().place))
