"""Batch sizes: bounds from the spec, a size found by measuring, halving when memory runs out."""

import pytest
import torch

from genenc_core import errors, spec
from genenc_core.encoding import batching
from genenc_core.encoding.batching import Bounds


def test_bounds_of_batch_modes() -> None:
    def of(mode: dict[str, object]) -> Bounds:
        return Bounds.of(spec.BatchMode.model_validate(mode))

    assert of({"kind": "fixed", "min": 4, "max": 4}) == Bounds(min=4, max=4)
    assert of({"kind": "dynamic", "min": 2, "max": 0}) == Bounds(min=2, max=None)


@pytest.mark.parametrize(("size", "clamped"), [(1, 2), (2, 2), (9, 8), (5, 5)])
def test_clamp(size: int, clamped: int) -> None:
    assert Bounds(min=2, max=8).clamp(size) == clamped


def test_size_outside_the_bounds_is_refused_naming_them() -> None:
    with pytest.raises(errors.InputError, match="batch size 9 is outside the model's bounds 2 to 8"):
        Bounds(min=2, max=8).refuse_outside(9)
    Bounds(min=1, max=None).refuse_outside(10_000)


def test_out_of_memory_halves_and_remembers_down_to_the_smallest() -> None:
    sizer = batching.BatchSizer(Bounds(min=2, max=None), 16)
    sizer.out_of_memory(16, MemoryError())
    assert sizer.size == 8
    sizer.out_of_memory(5, MemoryError())
    assert sizer.size == 2
    with pytest.raises(errors.EncoderError, match="out of memory at batch size 2"):
        sizer.out_of_memory(2, MemoryError())


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (torch.OutOfMemoryError("x"), True),
        (MemoryError(), True),
        (RuntimeError("CUDA error: out of memory"), True),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), True),
        (RuntimeError("shape mismatch"), False),
        (ValueError("out of memory"), False),
    ],
)
def test_what_counts_as_out_of_memory(error: BaseException, expected: bool) -> None:
    assert batching.is_out_of_memory(error) is expected


class Clock:
    """A fake device: seconds per image by batch size, and a largest batch that fits."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, seconds: dict[int, float], largest: int = 10**6) -> None:
        self.now, self.seconds, self.largest, self.sizes = 0.0, seconds, largest, []
        monkeypatch.setattr(batching.time, "perf_counter", lambda: self.now)

    def run(self, size: int) -> None:
        self.sizes.append(size)
        if size > self.largest:
            raise torch.OutOfMemoryError("full")
        self.now += size * self.seconds.get(size, min(self.seconds.values()))


def test_search_stops_where_a_larger_batch_gains_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch, {1: 4.0, 4: 2.0, 8: 1.0, 16: 0.5, 32: 0.49, 64: 0.4})
    assert batching.find_size(clock.run, Bounds(min=1, max=None), image_budget=10_000) == 16
    assert clock.sizes == [1, 4, 8, 16, 32]


def test_search_stops_at_memory_and_at_the_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    rising = {2**k: 1.0 / 2**k for k in range(12)}
    for largest, bounds, expected in ((20, (1, None), 16), (9999, (1, 24), 24), (9999, (5, 5), 5)):
        clock = Clock(monkeypatch, rising, largest=largest)
        found = batching.find_size(clock.run, Bounds(min=bounds[0], max=bounds[1]), image_budget=9999)
        assert found == expected


def test_search_spends_no_more_than_its_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch, {2**k: 1.0 / 2**k for k in range(12)})
    found = batching.find_size(clock.run, Bounds(min=1, max=None), image_budget=40)
    assert sum(clock.sizes) <= 40
    assert found == clock.sizes[-1] == 16


def test_search_lets_other_errors_through(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_size: int) -> None:
        raise RuntimeError("shape mismatch")

    with pytest.raises(RuntimeError, match="shape mismatch"):
        batching.find_size(broken, Bounds(min=1, max=None), image_budget=100)
