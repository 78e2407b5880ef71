"""Modules of regions: those of a cell, of a view, of torchvision, and pixels counted one by one."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision import ops

from genenc_core import errors, spec, statuses
from genenc_core.encoding import post_encoder, region_weights
from genenc_core.encoding.cells import Cells
from genenc_core.encoding.pooling import PointBatch, Signature
from genenc_core.encoding.region_batches import RegionBatch, ShardRegions
from genenc_core.images.decode import geometry
from genenc_core.images.labels import matching, region_table
from genenc_core.images.labels.masks import Mask
from genenc_core.images.labels.region_table import Region
from genenc_core.images.labels.scale import PointsScale
from genenc_core.images.sources import regions as region_rows

PATCHES = Cells(stride=(16.0, 16.0), first=(8.0, 8.0))
"""Of a ViT."""
RESNET = Cells(stride=(32.0, 32.0), first=(16.0, 16.0))
"""Of a CNN whose map does not divide an input of 112 x 80."""


def module(text: str) -> post_encoder.PostEncoder:
    name, _, argument = text.partition("(")
    key = {"region_mean": "of", "roi_align": "size"}.get(name, "")
    step = post_encoder.Step(name, ((key, argument[:-1]),) if argument else ())
    return post_encoder.build_pipeline([step], point_count=1, region_count=1).modules[0]


def found(regions: list[Region], rows: int, path: Path, scale: str | None = None) -> region_rows.Regions:
    table = region_table.build(regions, scale=PointsScale.parse(scale))
    placed = {int(name.removesuffix(".png")): at for at, name in enumerate(table.images)}
    placement = matching.Placement(rows={row: placed[row] for row in sorted(placed)}, absent=(), elsewhere=())
    region_rows.write(path, table, placement)
    return region_rows.Regions.open(path, rows=rows)


def box(image: int, *numbers: float) -> Region:
    left, top, right, bottom = numbers
    return Region(file="f", row="r", image=f"{image}.png", name="", box=(left, top, right, bottom))


def batch_of(
    regions: region_rows.Regions, sizes: list[tuple[int, int]], preprocessing: spec.Preprocessing
) -> tuple[RegionBatch, np.ndarray]:
    affines = np.array([geometry.plan_fit(*size, preprocessing).affine.row for size in sizes])
    shard = ShardRegions(found=regions, places=max(len(regions), 1))
    rows = np.arange(len(sizes))
    return shard.on_model(rows, affines, np.array(sizes), preprocessing), affines


def points(batch: RegionBatch, cells: Cells, xy: torch.Tensor | None = None) -> PointBatch:
    xy = torch.zeros(1, 0, 2) if xy is None else xy
    return PointBatch(
        xy=xy, valid=torch.ones(xy.shape[:2]).bool(), input_size=batch.input_size, cells=cells, regions=batch
    )


def stretched(height: int, width: int) -> spec.Preprocessing:
    return spec.Preprocessing(height=height, width=width, fit="stretch")


@pytest.mark.parametrize("name", ["region_mean", "roi_align_mean"])
@pytest.mark.parametrize(("cells", "size"), [(PATCHES, (112, 80)), (RESNET, (96, 64))])
def test_a_region_of_one_cell_is_the_probe_there(
    tmp_path: Path, name: str, cells: Cells, size: tuple[int, int]
) -> None:
    shape = size[0] // int(cells.stride[0]), size[1] // int(cells.stride[1])
    maps = torch.randn(1, 5, *shape, generator=torch.Generator().manual_seed(0))
    step = cells.stride[0]
    corners = [(x * step, y * step) for y in range(shape[0]) for x in range(shape[1])]
    regions = found([box(0, x, y, x + step, y + step) for x, y in corners], 1, tmp_path / "r")
    batch, _ = batch_of(regions, [size], stretched(*size))
    centres = torch.tensor([[x + step / 2, y + step / 2] for x, y in corners], dtype=torch.float64)[None]
    where = points(batch, cells, centres)
    probes = post_encoder.SpatialPoint("cell", len(corners)).apply(maps, where)[0]
    values = module(name).apply(maps, where)
    if name == "region_mean":
        assert torch.equal(values, probes)
    else:
        torch.testing.assert_close(values, probes, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("text", ["region_mean", "region_mean(box)", "roi_align_mean"])
@pytest.mark.parametrize("image", [(96, 64), (192, 128), (48, 32)])
def test_the_whole_view_is_the_pool(tmp_path: Path, text: str, image: tuple[int, int]) -> None:
    """The image fills 96 x 64 of a model of 96 x 96 pixels, with a bar of one cell at each side."""
    preprocessing = spec.Preprocessing(height=96, width=96, fit="pad")
    maps = torch.randn(1, 4, 6, 6, generator=torch.Generator().manual_seed(1))
    whole = Mask.from_pixels(np.ones(image, bool))
    regions = [box(0, 0, 0, image[1], image[0]), Region(file="f", row="r", image="0.png", name="m", mask=whole)]
    batch, affines = batch_of(found(regions, 1, tmp_path / "r"), [image], preprocessing)
    view = torch.from_numpy(geometry.views(affines, np.array([image]), preprocessing))
    where = dataclasses.replace(points(batch, PATCHES), view=view)
    pool = post_encoder.GlobalAvgPool(over="view").apply(maps, where)
    torch.testing.assert_close(module(text).apply(maps, where), pool.expand(2, -1), rtol=1e-6, atol=1e-6)
    plain = post_encoder.GlobalAvgPool().apply(maps, None)
    assert not torch.allclose(pool, plain)


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 10**6))
def test_roi_align_is_that_of_torchvision(seed: int) -> None:
    drawn = np.random.default_rng(seed)
    height, width = (int(each) * 16 for each in drawn.integers(2, 9, 2))
    boxes = np.sort(drawn.uniform(0, 1, (6, 2, 2)), axis=1).reshape(6, 4) * [width, height, width, height]
    batch = RegionBatch(
        image=np.array([0, 0, 0, 1, 1, 1]),
        at=np.arange(6),
        boxes=boxes,
        affines=np.tile([1.0, 1.0, 0.0, 0.0], (6, 1)),
        status=np.full(6, statuses.REGION_OK, np.uint8),
        masks=(None,) * 6,
        input_size=(height, width),
    )
    maps = torch.randn(2, 3, height // 16, width // 16, generator=torch.Generator().manual_seed(seed))
    rois = torch.from_numpy(np.column_stack([batch.image, boxes])).float()
    for text, size in (("roi_align", 7), ("roi_align(3)", 3), ("roi_align_mean", 1)):
        theirs = ops.roi_align(maps, rois, size, spatial_scale=1 / 16, sampling_ratio=-1, aligned=True)
        ours = module(text).apply(maps, points(batch, PATCHES))
        torch.testing.assert_close(ours.reshape(theirs.shape), theirs, rtol=1e-4, atol=1e-4)


def counted(mask: np.ndarray, affine: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Return the area of each cell in a mask, pixel by pixel."""
    area = np.zeros((len(rows) - 1, len(columns) - 1))
    scale_x, scale_y, offset_x, offset_y = affine.tolist()
    for y, x in np.argwhere(mask).tolist():
        left, right = x * scale_x + offset_x, (x + 1) * scale_x + offset_x
        top, bottom = y * scale_y + offset_y, (y + 1) * scale_y + offset_y
        for row, column in np.ndindex(area.shape):
            tall = min(bottom, rows[row + 1]) - max(top, rows[row])
            wide = min(right, columns[column + 1]) - max(left, columns[column])
            area[row, column] += max(tall, 0) * max(wide, 0)
    return area


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 10**6), st.sampled_from(("stretch", "pad", "crop")))
def test_masks_are_their_pixels_one_by_one(seed: int, fit: spec.Fit) -> None:
    drawn = np.random.default_rng(seed)
    size = drawn.integers(3, 14, 2)
    inside = drawn.random(size) < 0.4
    preprocessing = spec.Preprocessing(height=20, width=28, fit=fit)
    affine = np.array(geometry.plan_fit(int(size[0]), int(size[1]), preprocessing).affine.row)
    cells = Cells(stride=(6.0, 7.0), first=(float(drawn.uniform(0, 6)), 3.5))
    rows, columns = region_weights.edges(cells, (3, 4), (20, 28))
    assert (rows[0], rows[-1], columns[0], columns[-1]) == (0, 20, 0, 28)
    found = region_weights.of_mask(Mask.from_pixels(inside), affine, rows, columns)
    np.testing.assert_allclose(found, counted(inside, affine, rows, columns), atol=1e-9)


def test_a_box_and_the_mask_of_its_pixels_are_the_same(tmp_path: Path) -> None:
    inside = np.zeros((50, 70), bool)
    inside[10:33, 5:61] = True
    regions = [
        box(0, 5, 10, 61, 33),
        Region(file="f", row="r", image="0.png", name="m", mask=Mask.from_pixels(inside)),
        Region(
            file="f",
            row="r",
            image="0.png",
            name="p",
            polygons=(np.array([[5, 10], [61, 10], [61, 33], [5, 33]], float),),
            frame_size=(70, 50),
        ),
    ]
    batch, _ = batch_of(found(regions, 1, tmp_path / "r"), [(50, 70)], stretched(96, 96))
    values = module("region_mean").apply(torch.randn(1, 4, 6, 6), points(batch, PATCHES))
    torch.testing.assert_close(values[1:], values[:1].expand(2, -1), rtol=1e-12, atol=1e-7)


def test_a_mean_is_weighted_by_area_by_hand(tmp_path: Path) -> None:
    maps = torch.tensor([[[[1.0, 10.0], [100.0, 1000.0]]]])
    batch, _ = batch_of(found([box(0, 8, 12, 24, 20)], 1, tmp_path / "r"), [(32, 32)], stretched(32, 32))
    assert module("region_mean").apply(maps, points(batch, PATCHES)).item() == pytest.approx((1 + 10 + 100 + 1000) / 4)
    half, _ = batch_of(found([box(0, 0, 12, 8, 20)], 1, tmp_path / "h"), [(32, 32)], stretched(32, 32))
    assert module("region_mean").apply(maps, points(half, PATCHES)).item() == pytest.approx((1 + 100) / 2)


def test_what_the_model_does_not_see(tmp_path: Path) -> None:
    """A square is cut out of an image of 100 x 300: the model sees x from 100 to 200."""
    other = Mask.from_pixels(np.ones((3, 3), bool))
    beside = np.zeros((100, 300), bool)
    beside[:, :100] = True
    regions = [
        box(0, 120, 10, 180, 90),
        box(0, 50, 0, 150, 100),
        box(0, 10, 10, 90, 90),
        box(0, 300, 10, 340, 90),
        box(0, 120, 10, 120, 90),
        Region(file="f", row="r", image="0.png", name="m", mask=other),
        Region(file="f", row="r", image="0.png", name="b", mask=Mask.from_pixels(beside)),
        Region(file="f", row="r", image="0.png", name="n", mask=Mask.from_pixels(np.zeros((100, 300), bool))),
        box(0, -50, -50, 400, 400),
    ]
    preprocessing = spec.Preprocessing(height=32, width=32, fit="crop")
    batch, _ = batch_of(found(regions, 1, tmp_path / "r"), [(100, 300)], preprocessing)
    names = {each.value: each.name for each in statuses.REGIONS}
    assert [names[state] for state in batch.status] == [
        *("ok", "ok", "outside_view", "outside_image", "empty", "other_size", "outside_view", "empty", "ok")
    ]
    values = module("region_mean").apply(torch.randn(1, 3, 2, 2), points(batch, PATCHES))
    assert torch.isfinite(values).all(1).tolist() == batch.valid.tolist()
    assert batch.boxes[1].tolist() == pytest.approx([0, 0, 16, 32])


def test_fractions_are_of_each_image(tmp_path: Path) -> None:
    regions = found([box(0, 0.25, 0, 0.5, 1), box(1, 0.25, 0, 0.5, 1)], 2, tmp_path / "r", scale="normalized")
    batch, _ = batch_of(regions, [(100, 200), (40, 30)], stretched(32, 32))
    assert batch.boxes.tolist() == [[8, 0, 16, 32]] * 2


def test_parts_of_a_batch_are_its_images(tmp_path: Path) -> None:
    regions = found([box(row, 0, 0, 10 + row, 20) for row in (0, 0, 2, 3, 3)], 4, tmp_path / "r")
    batch, _ = batch_of(regions, [(32, 32)] * 4, stretched(32, 32))
    maps = torch.randn(4, 3, 2, 2)
    whole = module("region_mean").apply(maps, points(batch, PATCHES))
    parts = [
        module("region_mean").apply(maps[a:b], points(batch.part(a, b), PATCHES)) for a, b in ((0, 1), (1, 2), (2, 4))
    ]
    assert [len(part) for part in parts] == [2, 0, 3]
    assert torch.equal(torch.cat(parts), whole)
    assert batch.part(2, 4).at.tolist() == [2, 3, 4]


def test_maps_that_end_before_the_input(tmp_path: Path) -> None:
    """The last cell reaches to the edge: a box beyond its regular extent has that cell's vector."""
    cells = Cells(stride=(16.0, 16.0), first=(8.0, 8.0))
    maps = torch.arange(4.0).reshape(1, 1, 2, 2)
    batch, _ = batch_of(found([box(0, 36, 36, 40, 40)], 1, tmp_path / "r"), [(40, 40)], stretched(40, 40))
    for text in ("region_mean", "roi_align_mean"):
        assert module(text).apply(maps, points(batch, cells)).item() == pytest.approx(3.0)


@pytest.mark.parametrize(
    ("step", "words"),
    [
        (("region_mean", (("of", "edge"),)), "of='edge' is unknown; known: mask, box"),
        (("roi_align", (("size", "0"),)), "size='0' is not a number from 1 to 64"),
        (("roi_align_mean", (("size", "2"),)), "unknown argument 'size'"),
    ],
)
def test_arguments_that_are_refused(step: tuple[str, tuple[tuple[str, str], ...]], words: str) -> None:
    with pytest.raises(errors.InputError, match=words):
        post_encoder.build_pipeline([post_encoder.Step(*step)], point_count=0, region_count=1)
    with pytest.raises(errors.InputError, match="needs regions, and the run has none: use --regions FILE"):
        post_encoder.build_pipeline([post_encoder.Step("roi_align_mean")], point_count=0)


def test_shapes() -> None:
    signature = Signature(dims=("channel", "y", "x"), shape=(5, 6, 7))
    assert module("region_mean").output(signature).shape == (1, 5)
    assert module("roi_align").output(signature) == Signature(dims=("region", "channel", "y", "x"), shape=(1, 5, 7, 7))
    with pytest.raises(errors.InputError, match="needs a feature map"):
        module("region_mean").output(Signature(dims=("channel",), shape=(5,)))
    assert module("roi_align_mean").apply(torch.zeros(2, 5, 3, 3), None).shape == (0, 5)


def test_the_file_of_regions(tmp_path: Path) -> None:
    mask = Mask.from_pixels(np.eye(4, dtype=bool))
    regions = [box(2, 0, 0, 1, 1), Region(file="f", row="r", image="1.png", name="m", mask=mask), box(2, 1, 1, 3, 3)]
    opened = found(regions, 3, tmp_path / "r")
    assert opened.rows.tolist() == [1, 2, 2]
    first = opened.mask(0)
    assert first is not None
    assert (first.pixels() == np.eye(4)).all()
    places, each = region_rows.positions(opened, 3, 2)
    assert (places.tolist(), each) == ([0, 2, 3], 2)
    assert opened.of_rows(2, 3).boxes.tolist() == [[0, 0, 1, 1], [1, 1, 3, 3]]
    with pytest.raises(errors.StoreError, match="not those of the images"):
        region_rows.Regions.open(tmp_path / "r", rows=2)
    data = bytearray((tmp_path / "r").read_bytes())
    data[len(data) // 2 :] = b""
    (tmp_path / "r").write_bytes(data)
    with pytest.raises(errors.StoreError, match="missing or damaged"):
        region_rows.Regions.open(tmp_path / "r", rows=3)
