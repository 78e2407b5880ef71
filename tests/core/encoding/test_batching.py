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
    told: list[int] = []
    sizer = batching.BatchSizer(Bounds(min=2, max=None), 16, told.append)
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
    assert batching.is_out_of_memory(error) is expected
