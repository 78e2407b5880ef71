"""The engine: batches within bounds, padded and trimmed, halved when memory runs out."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from genenc_core import errors, spec
from genenc_core.encoding import batch_size, engine, products

SLOT = spec.SlotSpec(name="features", shape=(3, 2, 2))


class Encoder:
    """Quarters of the image, as a map of 2 x 2 cells; notes the batches it is given."""

    device = torch.device("cpu")
    input_size = (8, 8)

    def __init__(self, *, largest: int = 1000) -> None:
        self.largest = largest
        self.sizes: list[int] = []
        self.inside = 0

    def __call__(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        assert self.inside == 0, "two batches at once"
        self.inside += 1
        time.sleep(0.001)
        self.sizes.append(len(images))
        self.inside -= 1
        if len(images) > self.largest:
            raise torch.OutOfMemoryError("full")
        return {"features": torch.nn.functional.avg_pool2d(images, 4)}


def batch_of(count: int, *, points: int = 0, seed: int = 0) -> engine.Batch:
    generator = torch.Generator().manual_seed(seed)
    return engine.Batch(
        pixels=torch.randint(0, 256, (count, 3, 8, 8), dtype=torch.uint8, generator=generator),
        points=torch.full((count, points, 2), 1.0, dtype=torch.float64),
        valid=torch.ones(count, points, dtype=torch.bool),
    )


def engine_of(encoder: Encoder, bounds: batch_size.Bounds, size: int, *texts: str, points: int = 0) -> engine.Engine:
    specs = [products.parse_product(text) for text in texts or ("v=global_avg_pool",)]
    wanted = products.build_products(specs, [SLOT], point_count=points)
    return engine.Engine(encoder, wanted, batch_size.BatchSizer(bounds, size))


def expected(batch: engine.Batch) -> np.ndarray:
    return (batch.pixels.float() / 255).mean((2, 3)).numpy()


@pytest.mark.parametrize(
    ("bounds", "size", "count", "sizes"),
    [((1, None), 4, 10, [4, 4, 2]), ((4, 4), 4, 10, [4, 4, 4]), ((3, 8), 8, 10, [8, 3]), ((1, 8), 8, 1, [1])],
)
def test_short_batches_are_padded(bounds: tuple[int, int | None], size: int, count: int, sizes: list[int]) -> None:
    encoder, batch = Encoder(), batch_of(count)
    reduced = engine_of(encoder, batch_size.Bounds(min=bounds[0], max=bounds[1]), size).encode(batch)
    assert encoder.sizes == list(reduced.sizes) == sizes
    np.testing.assert_allclose(reduced.arrays["v"], expected(batch), rtol=1e-6)


def test_out_of_memory_halves_goes_on_and_is_remembered() -> None:
    encoder, batch = Encoder(largest=3), batch_of(16)
    runner = engine_of(encoder, batch_size.Bounds(min=1, max=None), 16)
    reduced = runner.encode(batch)
    assert encoder.sizes == [16, 8, 4, 2, 2, 2, 2, 2, 2, 2, 2]
    np.testing.assert_allclose(reduced.arrays["v"], expected(batch), rtol=1e-6)
    assert runner.sizer.size == 2
    runner.encode(batch_of(4))
    assert encoder.sizes[-2:] == [2, 2]


def test_out_of_memory_at_the_smallest_batch_says_what_helps() -> None:
    runner = engine_of(Encoder(largest=1), batch_size.Bounds(min=2, max=None), 4)
    with pytest.raises(errors.EncoderError, match=r"out of memory at batch size 2.*--image-size"):
        runner.encode(batch_of(4))


def test_other_errors_are_not_taken_for_memory() -> None:
    runner = engine_of(Encoder(), batch_size.Bounds(min=1, max=None), 4)
    pixels = torch.zeros(1, 3, 2, 2, dtype=torch.uint8)
    broken = engine.Batch(pixels=pixels, points=torch.zeros(1, 0, 2), valid=torch.ones(1, 0))
    with pytest.raises(RuntimeError, match=r"[Oo]utput size is too small"):
        runner.encode(broken)
    assert runner.sizer.size == 4


def test_threads_take_turns_and_get_their_own_results() -> None:
    runner = engine_of(Encoder(), batch_size.Bounds(min=1, max=None), 2)
    starting = threading.Barrier(4)

    def work(seed: int) -> None:
        starting.wait()
        for _ in range(10):
            batch = batch_of(5, seed=seed)
            np.testing.assert_allclose(runner.encode(batch).arrays["v"], expected(batch), rtol=1e-6)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))


def test_rows_with_nan_are_told_but_not_for_points_that_do_not_count() -> None:
    class Broken(Encoder):
        def __call__(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
            maps = super().__call__(images)["features"]
            maps[1, 0, 0, 0] = float("inf")
            return {"features": maps}

    runner = engine_of(Broken(), batch_size.Bounds(min=1, max=None), 8, "m=none", "p=spatial_point", points=2)
    batch = batch_of(3, points=2)
    batch.valid[2, 1] = False
    reduced = runner.encode(batch)
    assert list(reduced.finite) == [True, False, True]
    assert np.isnan(reduced.arrays["p"][2, 1]).all()
    assert np.isfinite(reduced.arrays["p"][2, 0]).all()


def test_a_model_that_writes_every_output_into_the_same_memory_spoils_no_batch_in_flight() -> None:
    class Thrifty(Encoder):
        def __call__(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
            made = super().__call__(images)["features"]
            self.kept = getattr(self, "kept", torch.empty_like(made))
            return {"features": self.kept.copy_(made)}

    runner = engine_of(Thrifty(), batch_size.Bounds(min=1, max=None), 4, "m=none", "v=global_avg_pool")
    batches = [batch_of(4, seed=seed) for seed in range(3)]
    tickets = [runner.submit(batch) for batch in batches]
    for batch, ticket in zip(batches, [ticket.result() for ticket in tickets], strict=True):
        np.testing.assert_allclose(ticket.arrays["m"].mean((2, 3)), expected(batch), rtol=1e-6)
        np.testing.assert_allclose(ticket.arrays["v"], expected(batch), rtol=1e-6)
