"""Batches in flight on a device with streams: what overlaps, what waits, what memory holds; on a virtual clock."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch

from genenc_core import errors, spec
from genenc_core.encoding import batch_size, device, engine, products, shard_encoding
from genenc_core.encoding.shard_encoding import FailureBudget
from genenc_core.images.load import loader
from loading import batch_of
from simulated_device import Latencies, SimulatedDevice, SimulatedEncoder

SLOT = spec.SlotSpec(name="features", shape=(3, 2, 2))
SIZE = 8
PREPROCESSING = spec.Preprocessing(height=8, width=8, fit="stretch")


def engine_of(simulated: SimulatedDevice, size: int = SIZE, *, largest: int = 10**9) -> engine.Engine:
    wanted = products.build_products([products.parse_product("v=global_avg_pool")], [SLOT], point_count=0)
    sizer = batch_size.BatchSizer(batch_size.Bounds(min=1, max=None), size)
    return engine.Engine(SimulatedEncoder(simulated, largest=largest), wanted, sizer, simulated)


def drawn(count: int) -> torch.Tensor:
    return torch.randint(0, 256, (count, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def batches(count: int, simulated: SimulatedDevice, size: int, *, decode: float = 0.0) -> Iterator[loader.LoadedBatch]:
    """Yield images as the loader does: decoded beside everything else, `decode` virtual seconds each, ahead by two
    batches at most."""
    pixels = drawn(count)
    taken, ready = [0.0] * (2 * size), 0.0
    for row in range(count):
        ready = max(ready, taken[row]) + decode
        simulated.deliver(ready)
        taken.append(simulated.host)
        if (row + 1) % size == 0 or row + 1 == count:
            first = row // size * size
            yield batch_of(range(first, row + 1), simulated.gathered(pixels[first : row + 1].clone()))


def shard_of(
    count: int, simulated: SimulatedDevice, runner: engine.Engine, *, decode: float = 0.0
) -> shard_encoding.EncodedShard:
    """Run one shard."""
    ids = [str(row) for row in range(count)]
    given = shard_encoding.ShardInput(shard=0, rows=range(count), image_ids=ids, points=np.zeros((count, 0, 2)))
    shard = shard_encoding.ShardEncoder(given, runner, PREPROCESSING, FailureBudget())
    done = shard.run(batches(count, simulated, runner.sizer.size, decode=decode))
    assert done.status.all()
    return done


def encoded(count: int, simulated: SimulatedDevice, runner: engine.Engine, *, decode: float = 0.0) -> np.ndarray:
    """Run one shard; return its vectors."""
    return shard_of(count, simulated, runner, decode=decode).arrays["v"]


def expected(count: int) -> np.ndarray:
    return (drawn(count).float() / 255).mean((2, 3)).numpy()


@pytest.mark.parametrize(
    ("latencies", "decode"),
    [
        (Latencies(copy_in=1, compute=4, copy_out=1), 0.0),
        (Latencies(copy_in=4, compute=1, copy_out=1), 0.0),
        (Latencies(copy_in=1, compute=1, copy_out=4), 0.0),
        (Latencies(copy_in=3, compute=3, copy_out=3), 0.0),
        (Latencies(copy_in=1, compute=1, copy_out=1), 4.0),
        (Latencies(copy_in=1, compute=4, copy_out=1), 3.5),
    ],
)
def test_the_whole_takes_as_long_as_its_slowest_stage(latencies: Latencies, decode: float) -> None:
    simulated = SimulatedDevice(latencies)
    count = 50 * SIZE
    vectors = encoded(count, simulated, engine_of(simulated), decode=decode)
    np.testing.assert_allclose(vectors, expected(count), rtol=1e-6)
    stages = [latencies.copy_in, latencies.compute, latencies.copy_out, decode]
    slowest, ramp = count * max(stages), SIZE * sum(stages)
    assert slowest <= simulated.total() <= slowest + ramp
    assert simulated.total() < 0.8 * count * sum(stages)


def test_a_stage_never_begins_before_the_one_it_needs() -> None:
    simulated = SimulatedDevice(Latencies(copy_in=2, compute=3, copy_out=1))
    encoded(10 * SIZE, simulated, engine_of(simulated))
    per = {name: [span[1:] for span in simulated.busy if span[0] == name] for name in device.STAGES}
    for copied, computed, returned in zip(*(per[name] for name in device.STAGES), strict=True):
        assert copied[1] <= computed[0]
        assert computed[1] <= returned[0]
    assert per["copy_in"][1][0] < per["compute"][0][1], "the next batch is copied in while one is computed"


def test_the_seconds_of_a_shard_are_those_of_the_streams() -> None:
    """Whatever overlaps: each stage has its own, and of the two directions the busier counts."""
    simulated = SimulatedDevice(Latencies(copy_in=1, compute=3, copy_out=2))
    count = 20 * SIZE
    seconds = shard_of(count, simulated, engine_of(simulated)).details["seconds"]
    assert isinstance(seconds, dict)
    assert seconds["encode"] + seconds["reduce"] == pytest.approx(3 * count)
    assert seconds["copy"] == pytest.approx(2 * count)


def test_launching_on_the_host_is_hidden_behind_the_device() -> None:
    simulated = SimulatedDevice(Latencies(compute=1, launch=6))
    encoded(50 * SIZE, simulated, engine_of(simulated))
    assert simulated.total() <= 50 * SIZE + 2 * SIZE


def test_memory_holds_no_more_than_the_batches_in_flight() -> None:
    simulated = SimulatedDevice(Latencies(copy_in=1, compute=1, copy_out=1))
    runner = engine_of(simulated)
    simulated.limit = runner.in_flight * SIZE
    encoded(20 * SIZE, simulated, runner)
    assert runner.sizer.size == SIZE
    assert simulated.releases == 0


@pytest.mark.parametrize("stage", device.STAGES)
def test_out_of_memory_in_any_stage_halves_once_and_loses_nothing(stage: device.Stage) -> None:
    simulated = SimulatedDevice(Latencies(copy_in=1, compute=1, copy_out=1))
    runner = engine_of(simulated)
    simulated.out_of_memory.add(stage)
    count = 5 * SIZE + 3
    np.testing.assert_allclose(encoded(count, simulated, runner), expected(count), rtol=1e-6)
    assert runner.sizer.size == SIZE // 2
    assert simulated.releases == 1


def test_after_out_of_memory_the_failed_batch_is_gone_before_the_next_try() -> None:
    simulated = SimulatedDevice(Latencies(compute=1), limit=16)
    runner = engine_of(simulated, 16, largest=8)
    alive: list[int] = []
    simulated.release = lambda: alive.append(sum(simulated.alive))
    encoded(16, simulated, runner)
    assert alive == [0]


def test_the_search_on_a_device_with_little_memory_never_exceeds_it() -> None:
    simulated = SimulatedDevice(Latencies(copy_in=0.01, compute=0.1, launch=2.0), limit=100)
    runner = engine_of(simulated, 4)
    refused: list[int] = []
    runner.sizer.on_shrink = refused.append
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(batch_size.time, "perf_counter", lambda: simulated.host)
        found = batch_size.find_size(
            lambda count: runner.trial(count, 0), runner.sizer.bounds, image_budget=10**5, memory=simulated.memory
        )
    assert found == 88
    assert not refused


def test_a_value_that_float16_cannot_hold_is_told_when_it_is_back() -> None:
    simulated = SimulatedDevice(Latencies(compute=1))

    class Huge(SimulatedEncoder):
        def __call__(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"features": super().__call__(images)["features"] * 0 + 123456.0}

    wanted = products.build_products([products.parse_product("v=global_avg_pool@float16")], [SLOT], point_count=0)
    runner = engine.Engine(
        Huge(simulated), wanted, batch_size.BatchSizer(batch_size.Bounds(min=1, max=None), 4), simulated
    )
    with pytest.raises(errors.InputError, match=r"'v': a value of 1.235e\+05 overflows float16"):
        encoded(4, simulated, runner)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_cuda_device_gives_the_same_as_the_host() -> None:
    where = torch.device("cuda", 0)

    class Pooling:
        device, input_size = where, (8, 8)

        def __call__(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
            assert images.device == where
            return {"features": torch.nn.functional.avg_pool2d(images, 4)}

    wanted = products.build_products([products.parse_product("v=global_avg_pool")], [SLOT], point_count=0)
    sizer = batch_size.BatchSizer(batch_size.Bounds(min=1, max=None), SIZE)
    runner = engine.Engine(Pooling(), wanted, sizer)
    idle = SimulatedDevice(Latencies())
    for _ in range(20):
        np.testing.assert_allclose(encoded(50 * SIZE + 3, idle, runner), expected(50 * SIZE + 3), rtol=1e-5)
    used = runner.device.memory()
    assert used is not None
    assert 0 < used.peak < used.limit
