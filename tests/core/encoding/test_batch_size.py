"""Batch sizes: bounds from the spec, halving when memory runs out, and the search, on devices of known speed."""

import math
import random
from collections.abc import Callable

import pytest
import torch

from genenc_core import errors, spec
from genenc_core.encoding import batch_size
from genenc_core.encoding.batch_size import Bounds
from genenc_core.encoding.device import Memory

ANY = Bounds(min=1, max=None)
GIB = 2**30

# Seconds of a batch of n images.
CURVES: dict[str, Callable[[int], float]] = {
    "overhead and slope": lambda n: 5e-3 + 1e-4 * n,
    "hardly any overhead": lambda n: 1e-4 + 5e-2 * n,
    "much overhead": lambda n: 3e-2 + 1e-4 * n,
    "launches, then work": lambda n: max(8e-3, 5e-5 * n),
    "steps of 24": lambda n: 1e-3 + 4e-3 * math.ceil(n / 24),
    "steps of 132": lambda n: 2e-3 + 1e-2 * math.ceil(n / 132),
    "best at 8, worse beyond": lambda n: 1e-2 + 5e-2 * n * (1 + max(0.0, math.log2(n / 8)) * 0.05),
    "best at 1": lambda n: 5e-2 * n**1.1,
}


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
    told: list[int] = []
    sizer = batch_size.BatchSizer(Bounds(min=2, max=None), 16, told.append)
    sizer.out_of_memory(16, MemoryError())
    assert sizer.size == 8
    sizer.out_of_memory(5, MemoryError())
    assert sizer.size == 2
    assert told == [8, 2]
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
    assert batch_size.is_out_of_memory(error) is expected


class Simulated:
    """A device that takes `curve(n)` seconds for n images, on a clock of its own, and has so much memory."""

    def __init__(
        self,
        monkeypatch: pytest.MonkeyPatch,
        curve: Callable[[int], float],
        *,
        largest: int = 10**9,
        noise: float = 0.0,
        first: float = 0.0,
        seed: int = 0,
        kept: int = 0,
    ) -> None:
        """`kept`: MiB that the first batch takes and never gives back."""
        self.curve, self.largest, self.noise, self.first, self.kept = curve, largest, noise, first, kept
        self.now, self.sizes, self.failed, self.used = 0.0, list[int](), 0, 0
        self.random = random.Random(seed)
        monkeypatch.setattr(batch_size.time, "perf_counter", lambda: self.now)

    def run(self, size: int) -> None:
        new = size not in self.sizes
        self.sizes.append(size)
        self.used = size + self.kept
        if size > self.largest:
            self.failed += 1
            raise torch.OutOfMemoryError("full")
        disturbed = 1 + self.noise * self.random.expovariate(1.0)
        self.now += self.curve(size) * disturbed + self.first * new

    def memory(self) -> Memory:
        used, self.used = self.used, self.kept
        return Memory(peak=GIB + used * 2**20, limit=GIB + (self.largest + self.kept) * 2**20)

    def loss(self, size: int, bounds: Bounds = ANY) -> float:
        """Return how much slower than the best batch this one is."""
        most = min(batch_size.LARGEST, self.largest, bounds.max or 10**9)
        return 1 - size / self.curve(size) / max(n / self.curve(n) for n in range(bounds.min, most + 1))


@pytest.mark.parametrize("first", [0.0, 0.1], ids=["", "a new size costs more once"])
@pytest.mark.parametrize("name", CURVES)
def test_search_ends_near_the_best_batch(monkeypatch: pytest.MonkeyPatch, name: str, first: float) -> None:
    device = Simulated(monkeypatch, CURVES[name], first=first)
    found = batch_size.find_size(device.run, ANY, image_budget=10**6)
    assert device.loss(found) <= 0.03, (found, device.sizes)
    assert len(device.sizes) <= 10 or first


@pytest.mark.parametrize("largest", [5, 20, 100, 181, 700])
@pytest.mark.parametrize("name", ["much overhead", "steps of 24", "best at 8, worse beyond"])
def test_known_memory_is_used_and_never_exceeded(monkeypatch: pytest.MonkeyPatch, name: str, largest: int) -> None:
    device = Simulated(monkeypatch, CURVES[name], largest=largest, kept=1000 if largest in (20, 181) else 0)
    found = batch_size.find_size(device.run, ANY, image_budget=10**6, memory=device.memory)
    assert device.failed == 0
    assert len(device.sizes) <= 10
    # A tenth of the memory is left free, and what is tried beside powers of two is a multiple of 8.
    usable = 4 if largest < 20 else int(largest * 0.9) // 8 * 8
    tried = [2**k for k in range(11) if 2**k <= usable] + [usable]
    assert found / device.curve(found) >= 0.97 * max(n / device.curve(n) for n in tried)


@pytest.mark.parametrize("largest", [1, 3, 5, 20, 100, 700])
def test_unknown_memory_runs_out_once_at_most(monkeypatch: pytest.MonkeyPatch, largest: int) -> None:
    device = Simulated(monkeypatch, CURVES["much overhead"], largest=largest)
    found = batch_size.find_size(device.run, ANY, image_budget=10**6)
    assert device.failed == 1
    assert found <= largest


@pytest.mark.parametrize("name", CURVES)
def test_it_is_steady_under_noise(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    curve, found, slow = CURVES[name], list[int](), 0
    for seed in range(100):
        device = Simulated(monkeypatch, curve, noise=0.005, first=0.02, seed=seed)
        found.append(batch_size.find_size(device.run, ANY, image_budget=10**6))
        slow += device.loss(found[-1]) > 0.03
    assert slow <= 5
    usual = max(set(found), key=found.count)
    # Sizes of the same speed are the same answer.
    same = [size for size in found if abs(size / curve(size) / (usual / curve(usual)) - 1) < 0.005]
    assert len(same) >= 90, sorted(found)


@pytest.mark.parametrize("bounds", [(1, None), (1, 24), (5, 5), (8, 64)])
def test_it_stays_within_the_bounds(monkeypatch: pytest.MonkeyPatch, bounds: tuple[int, int | None]) -> None:
    device = Simulated(monkeypatch, lambda _n: 1.0)
    found = batch_size.find_size(device.run, Bounds(min=bounds[0], max=bounds[1]), image_budget=10**6)
    assert found == (bounds[1] or batch_size.LARGEST)
    assert all(bounds[0] <= size <= found for size in device.sizes)


@pytest.mark.parametrize("budget", [0, 5, 40, 400])
def test_it_spends_no_more_images_than_it_may(monkeypatch: pytest.MonkeyPatch, budget: int) -> None:
    device = Simulated(monkeypatch, lambda _n: 1.0)
    batch_size.find_size(device.run, ANY, image_budget=budget)
    assert 0 < sum(device.sizes) <= max(budget, 5)


def test_other_errors_are_not_taken_for_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_size: int) -> None:
        raise RuntimeError("shape mismatch")

    with pytest.raises(RuntimeError, match="shape mismatch"):
        batch_size.find_size(broken, ANY, image_budget=100)


@pytest.mark.parametrize("failing", range(1, batch_size.MAX_BATCHES + 1))
def test_memory_gone_ends_search_below_it(monkeypatch: pytest.MonkeyPatch, failing: int) -> None:
    device = Simulated(monkeypatch, CURVES["steps of 24"])
    refused: list[int] = []

    def run(size: int) -> None:
        # Others take memory while the search goes on: from some batch on its size no longer fits.
        if len(device.sizes) + 1 == failing:
            refused.append(size)
            device.largest = size - 1
        device.run(size)
        assert len(device.sizes) <= batch_size.MAX_BATCHES

    found = batch_size.find_size(run, ANY, image_budget=10**6)
    assert not refused or found < refused[0] or found == 1
