"""The tiled encoder: equal to the untiled one where it can be, whatever the batches; tiles shared between canvases."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from genenc_core import errors, spec
from genenc_core.encoding import batch_size, cancellation, engine, products, tile_plan, tiling

ANY = batch_size.Bounds(min=1, max=None)


class Inner:
    """A guarded encoder of one tile: takes nothing but its size and bounds; notes its batches."""

    device = torch.device("cpu")

    def __init__(
        self, module: nn.Module, tile: tuple[int, int], *, bounds: batch_size.Bounds = ANY, largest: int = 10**6
    ) -> None:
        self.module = module.eval().requires_grad_(False)
        self.input_size = tile
        self.bounds = bounds
        self.largest = largest
        self.sizes: list[int] = []

    def __call__(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        assert images.shape[1:] == (3, *self.input_size)
        assert images.is_contiguous()
        assert self.bounds.clamp(len(images)) == len(images)
        self.sizes.append(len(images))
        if len(images) > self.largest:
            raise torch.OutOfMemoryError("full")
        found = self.module(images)
        return found if isinstance(found, dict) else {"features": found}


def slots_of(inner: Inner) -> list[spec.SlotSpec]:
    found = inner.module(torch.zeros(1, 3, *inner.input_size))
    found = found if isinstance(found, dict) else {"features": found}
    return [spec.SlotSpec(name=name, shape=tuple(value.shape[1:])) for name, value in found.items()]


def tiled(
    inner: Inner,
    canvas: tuple[int, int],
    *,
    overlap: int | None = None,
    trim: int = 0,
    blend: tile_plan.Blend = "cosine",
    batch: int = 4,
) -> tiling.TiledEncoder:
    slots = slots_of(inner)
    plan = tile_plan.make_plan(slots, canvas=canvas, tile=inner.input_size, overlap=overlap, trim=trim, blend=blend)
    return tiling.TiledEncoder(inner, plan, slots, batch_size.BatchSizer(inner.bounds, batch))


def noise(count: int, canvas: tuple[int, int], seed: int = 0) -> torch.Tensor:
    return torch.rand(count, 3, *canvas, generator=torch.Generator().manual_seed(seed))


def assert_close(found: torch.Tensor, expected: torch.Tensor, limit: float) -> None:
    assert found.shape == expected.shape
    assert float((found - expected).abs().max()) <= limit


@pytest.mark.parametrize("blend", ["cosine", "average", "none"])
@pytest.mark.parametrize(
    ("canvas", "overlap", "trim"),
    [
        (512, 32, 8),
        (512, 32, 0),  # nothing trimmed
        (448, 0, 0),  # step equal to the tile
        (224, 32, 8),  # one tile
        (225, 32, 8),  # one pixel more
        (417, 32, 16),
    ],
)
def test_pixels_come_back_as_they_were(canvas: int, overlap: int, trim: int, blend: tile_plan.Blend) -> None:
    """A model that returns its input, stride 1: the stitched map is the canvas."""
    images = noise(2, (canvas, canvas))
    encoder = tiled(Inner(nn.Identity(), (224, 224)), images.shape[2:], overlap=overlap, trim=trim, blend=blend)
    found = encoder(images)["features"]
    assert_close(found, images, 0.0 if blend == "none" else 2e-7)


def test_a_tile_of_209_pixels_and_a_canvas_one_step_further() -> None:
    for tile, canvas in ((208, 209), (209, 225), (100, 101)):
        images = noise(1, (canvas, canvas))
        encoder = tiled(Inner(nn.Identity(), (tile, tile)), (canvas, canvas), overlap=16, trim=8)
        assert_close(encoder(images)["features"], images, 2e-7)


@pytest.mark.parametrize("overlap", [0, 2, 8])
def test_every_canvas_size_gives_the_untiled_map(overlap: int) -> None:
    """Blocks of 2 x 3 pixels averaged: exact for every size in rows and columns from one tile to five."""
    module = nn.AvgPool2d((2, 3))
    overlap *= 3  # a multiple of both strides
    inner = Inner(module, (30, 36))
    for rows in range(15, 70):
        canvas = (rows * 2, 36 + (rows % 40) * 3)
        images = noise(1, canvas, seed=rows)
        assert_close(tiled(inner, canvas, overlap=overlap, batch=64)(images)["features"], module(images), 2e-7)


@settings(max_examples=60, deadline=None)
@given(
    data=st.data(),
    stride=st.sampled_from([1, 2, 4]),
    count=st.integers(1, 3),
    batch=st.integers(1, 9),
    blend=st.sampled_from(["cosine", "average", "none"]),
)
def test_any_plan_gives_the_untiled_map(
    data: st.DataObject, stride: int, count: int, batch: int, blend: tile_plan.Blend
) -> None:
    def cells(low: int, high: int) -> int:
        return data.draw(st.integers(low, high))

    tile = (cells(2, 8) * stride, cells(2, 8) * stride)
    canvas = (tile[0] + cells(0, 14) * stride, tile[1] + cells(0, 14) * stride)
    overlap = cells(0, min(tile) // stride - 1)
    trim = cells(0, overlap // 2)
    module, images = nn.AvgPool2d(stride), noise(count, canvas)
    encoder = tiled(Inner(module, tile), canvas, overlap=overlap * stride, trim=trim * stride, blend=blend, batch=batch)
    # Values in [0, 1] are weighted, summed over n tiles, and divided: (2 n + 1) roundings of 2^-24 at most.
    assert_close(encoder(images)["features"], module(images), (encoder.plan.count + 1) * 2**-23)


def convolutions() -> nn.Module:
    """Return a net of stride 4 whose cells see 11 pixels to each side of their own."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 5, padding=2), nn.GELU(), nn.Conv2d(8, 8, 4, stride=4), nn.GELU(), nn.Conv2d(8, 6, 3, padding=1)
    )


def test_a_convolutional_net_equals_the_untiled_one_when_the_trim_covers_its_field() -> None:
    """Each tile's own zero padding reaches 8 pixels in; those are trimmed, and the canvas border is the same border."""
    module, images = convolutions(), noise(2, (116, 88))
    encoder = tiled(Inner(module, (48, 48)), (116, 88), overlap=24, trim=8)
    assert_close(encoder(images)["features"], module(images), 1e-5)


def test_a_convolutional_net_differs_only_in_cells_that_saw_a_tiles_border() -> None:
    """The interior is equal; what the blend leaves at the seams is there, and small trims show it."""
    module, images = convolutions(), noise(1, (88, 88))
    whole = module(images)
    found = tiled(Inner(module, (48, 48)), (88, 88), overlap=8)(images)["features"]
    differs = ((found - whole).abs().amax((0, 1)) > 1e-5).numpy()
    seams = np.zeros(22, dtype=bool)
    seams[8:14] = True  # tiles are cells 0-11 and 10-21; a border reaches two cells in
    assert differs.any()
    assert not differs[~seams][:, ~seams].any()


class Several(nn.Module):
    """Two maps of other strides, logits of every pixel, a class vector."""

    def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        return {
            "fine": nn.functional.avg_pool2d(images, 2),
            "coarse": nn.functional.avg_pool2d(images, 6),
            "logits": images * 2 - 1,
            "cls": images.mean((2, 3)),
        }


def test_every_map_is_stitched_on_its_own_grid_and_vectors_are_means_over_tiles() -> None:
    images = noise(3, (36, 42))
    encoder = tiled(Inner(Several(), (24, 24)), (36, 42), overlap=6, batch=5)
    found, whole = encoder(images), Several()(images)
    for name in ("fine", "coarse", "logits"):
        assert_close(found[name], whole[name], 2e-7 if name != "logits" else 4e-7)
    tops, lefts = encoder.plan.offsets
    assert (tops, lefts) == ((0, 12), (0, 18))
    means = [images[:, :, y : y + 24, x : x + 24].mean((2, 3)) for y in tops for x in lefts]
    torch.testing.assert_close(found["cls"], torch.stack(means).mean(0), rtol=1e-6, atol=1e-7)


def test_one_tile_is_the_model_itself_bit_for_bit() -> None:
    module, images = convolutions(), noise(2, (48, 48))
    assert torch.equal(tiled(Inner(module, (48, 48)), (48, 48))(images)["features"], module(images))


@pytest.mark.parametrize(
    ("canvases", "batch", "bounds", "sizes"),
    [
        (2, 16, ANY, [16, 2]),  # nine tiles of each of two canvases
        (1, 16, ANY, [9]),
        (2, 4, ANY, [4, 4, 4, 4, 2]),
        (1, 4, batch_size.Bounds(min=4, max=4), [4, 4, 4]),  # the last padded and trimmed
        (2, 8, batch_size.Bounds(min=3, max=8), [8, 8, 3]),
    ],
)
def test_tiles_fill_common_batches(canvases: int, batch: int, bounds: batch_size.Bounds, sizes: list[int]) -> None:
    inner = Inner(nn.AvgPool2d(16), (224, 224), bounds=bounds)
    encoder = tiled(inner, (512, 512), overlap=32, batch=batch)
    images = noise(canvases, (512, 512))
    assert_close(encoder(images)["features"], nn.functional.avg_pool2d(images, 16), 2e-7)
    assert inner.sizes == list(encoder.calls) == sizes


def test_the_result_does_not_depend_on_the_batch() -> None:
    """Not even in the order in which overlaps are added: the same bits, where the model itself gives the same."""
    images = noise(3, (44, 60))
    inner = Inner(nn.AvgPool2d(4), (24, 24))
    expected = tiled(inner, (44, 60), overlap=12, batch=1)(images)["features"]
    for batch in (2, 3, 5, 7, 100):
        assert torch.equal(tiled(inner, (44, 60), overlap=12, batch=batch)(images)["features"], expected)
    alone = torch.cat([tiled(inner, (44, 60), overlap=12)(image[None])["features"] for image in images])
    assert torch.equal(alone, expected)


def test_out_of_memory_halves_the_tiles_and_goes_on() -> None:
    inner = Inner(nn.AvgPool2d(4), (16, 16), largest=3)
    encoder = tiled(inner, (40, 40), overlap=4, batch=8)
    images = noise(1, (40, 40))
    assert_close(encoder(images)["features"], nn.functional.avg_pool2d(images, 4), 2e-7)
    assert inner.sizes == [8, 4, 2, 2, 2, 2, 1]
    assert encoder.calls == (2, 2, 2, 2, 1)
    assert encoder.sizer.size == 2


def engine_of(encoder: tiling.TiledEncoder, together: int, *texts: str, points: int = 0) -> engine.Engine:
    slots = [encoder.plan.stitched(slot) for slot in slots_of(encoder._inner)]  # type: ignore[arg-type]
    wanted = products.build_products([products.parse_product(text) for text in texts], slots, point_count=points)
    return engine.Engine(encoder, wanted, batch_size.BatchSizer(ANY, together))


def test_out_of_memory_at_one_tile_takes_fewer_canvases_then_says_what_helps() -> None:
    class Full(Inner):
        canvases = 4

        def __call__(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
            if self.canvases > 1:
                self.canvases //= 2
                raise torch.OutOfMemoryError("full")
            return super().__call__(images)

    batch = engine.Batch(
        pixels=torch.full((4, 3, 24, 24), 51, dtype=torch.uint8),
        points=torch.zeros(4, 0, 2, dtype=torch.float64),
        valid=torch.zeros(4, 0, dtype=torch.bool),
    )
    runner = engine_of(tiled(Full(nn.AvgPool2d(4), (16, 16)), (24, 24), batch=1), 4, "v=global_avg_pool")
    np.testing.assert_allclose(runner.encode(batch).arrays["v"], 0.2, rtol=1e-6)
    assert runner.sizer.size == 1
    hopeless = tiled(Inner(nn.AvgPool2d(4), (16, 16), largest=0), (24, 24), batch=1)
    with pytest.raises(errors.EncoderError, match=r"out of memory at batch size 1.*--image-size"):
        engine_of(hopeless, 1, "v=global_avg_pool").encode(batch)


def test_other_errors_pass_through() -> None:
    class Broken(nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            if images.any():
                raise RuntimeError("weights are gone")
            return images

    with pytest.raises(RuntimeError, match="weights are gone"):
        tiled(Inner(Broken(), (16, 16)), (24, 24))(noise(1, (24, 24)))


def test_a_stop_ends_between_two_batches_of_tiles() -> None:
    watch = cancellation.Control()

    class Stopping(nn.AvgPool2d):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            if images.any():
                watch.stop()
            return super().forward(images)

    inner = Inner(Stopping(4), (16, 16))
    with cancellation.use(watch), pytest.raises(errors.Stopped):
        tiled(inner, (40, 40), overlap=4, batch=2)(noise(1, (40, 40)))
    assert inner.sizes == [2]


def test_the_engine_probes_points_of_the_canvas_on_the_stitched_map() -> None:
    encoder = tiled(Inner(nn.AvgPool2d(8), (32, 32)), (64, 96), overlap=8)
    assert encoder.input_size == (64, 96)
    pixels = torch.randint(0, 256, (3, 3, 64, 96), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    points = torch.tensor([[[90.0, 3.0], [40.0, 60.0]]], dtype=torch.float64).expand(3, -1, -1)
    batch = engine.Batch(pixels=pixels, points=points, valid=torch.ones(3, 2, dtype=torch.bool))
    reduced = engine_of(encoder, 2, "maps=none", "probes=spatial_point(cell)", points=2).encode(batch)
    whole = nn.functional.avg_pool2d(pixels.float() / 255, 8)
    np.testing.assert_allclose(reduced.arrays["maps"], whole, atol=2e-7)
    expected = torch.stack([whole[:, :, 0, 11], whole[:, :, 7, 5]], dim=1)
    np.testing.assert_allclose(reduced.arrays["probes"], expected, atol=2e-7)
    assert encoder.plan.count == 12
    assert reduced.sizes == (4,) * 9


@pytest.mark.parametrize(
    ("canvas", "batch", "together"),
    [
        (512, 9, 1),  # nine tiles fill it
        (512, 36, 4),
        (512, 16, 5),  # 45 tiles in three batches of 16
        (512, 1, 1),
        (224, 32, 29),  # 29 of 32 are nine tenths
    ],
)
def test_as_many_canvases_go_together_as_fill_the_batches(canvas: int, batch: int, together: int) -> None:
    slots = [spec.SlotSpec(name="features", shape=(8, 14, 14))]
    plan = tile_plan.make_plan(slots, canvas=(canvas, canvas), tile=(224, 224), overlap=32)
    assert tiling.canvases_per_call(plan, slots, batch) == together


def test_large_canvases_go_alone() -> None:
    """4096 x 4096 pixels in float32 and bytes are 240 MiB."""
    slots = [spec.SlotSpec(name="features", shape=(8, 14, 14))]
    plan = tile_plan.make_plan(slots, canvas=(4096, 4096), tile=(224, 224))
    assert tiling.canvases_per_call(plan, slots, 1024) == 1


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_cuda_stitches_the_same_maps() -> None:
    images = noise(2, (36, 42))
    inner = Inner(Several(), (24, 24))
    expected = tiled(inner, (36, 42), overlap=6)(images)
    inner.device = torch.device("cuda", 0)
    encoder = tiled(inner, (36, 42), overlap=6)
    found = encoder(images.cuda())
    for name, value in expected.items():
        assert found[name].is_cuda
        torch.testing.assert_close(found[name].cpu(), value, rtol=1e-6, atol=1e-6)
    encoder.trial(3)
    assert inner.sizes[-1] == 3
