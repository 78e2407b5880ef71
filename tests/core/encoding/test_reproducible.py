"""The engine of reproducible runs: float32 whose errors depend on the batch, and the same bytes all the same."""

from collections.abc import Callable

import numpy as np
import pytest
import torch

from genenc_core import errors, spec
from genenc_core.encoding import batch_size, engine, products
from genenc_core.encoding.reproducible import SAFETY, Margin, Reproducible

SLOT = spec.SlotSpec(name="features", shape=(64,))
PRODUCTS = ("whole=none@int8", "unsigned=none@uint8")


class Exact:
    """A layer in float64."""

    device = torch.device("cpu")
    input_size = (8, 8)
    dtype = torch.float64

    def __init__(self) -> None:
        self.weight = torch.randn(64, 192, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        self.asked = 0

    def __call__(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        self.asked += len(images)
        return {"features": images.double().flatten(1) @ self.weight.T}


class Rough(Exact):
    """The same with an error of float32 that differs with the size of the batch."""

    dtype = torch.float32

    def __init__(self, error: float) -> None:
        super().__init__()
        self.error = error

    def __call__(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        value = super().__call__(images)["features"]
        draw = torch.Generator().manual_seed(len(images))
        size = value.abs().amax(1, keepdim=True)
        wrong = torch.rand(value.shape, dtype=torch.float64, generator=draw) * 2 - 1
        return {"features": (value + wrong * size * self.error).float()}


def batch_of(count: int) -> engine.Batch:
    generator = torch.Generator().manual_seed(3)
    return engine.Batch(
        pixels=torch.randint(0, 256, (count, 3, 8, 8), dtype=torch.uint8, generator=generator),
        points=torch.zeros(count, 0, 2, dtype=torch.float64),
        valid=torch.zeros(count, 0, dtype=torch.bool),
    )


def engine_of(encoder: Exact, decides: Reproducible | None, size: int) -> engine.Engine:
    specs = [products.parse_product(text) for text in PRODUCTS]
    wanted = products.build_products(specs, [SLOT], point_count=0)
    sizer = batch_size.BatchSizer(batch_size.Bounds(min=1, max=None), size)
    return engine.Engine(encoder, wanted, sizer, reproducible=decides)


def in_float32(error: float, *, on_exceeded: Callable[[str], None] = lambda _why: None) -> Reproducible:
    margin = Margin(relative=SAFETY * error, absolute=0.0)
    return Reproducible(Exact(), {"whole": margin, "unsigned": margin}, on_exceeded=on_exceeded)


def content(runner: engine.Engine, count: int = 200) -> tuple[dict[str, np.ndarray], engine.Reduced]:
    try:
        reduced = runner.encode(batch_of(count))
    finally:
        runner.close()
    return {name: array.copy() for name, array in reduced.arrays.items()}, reduced


def test_bytes_are_those_of_float64_whatever_the_batch() -> None:
    exact, _ = content(engine_of(Exact(), Reproducible(Exact(), None), 50))
    plain = [content(engine_of(Rough(1e-5), None, size))[0] for size in (7, 64)]
    assert any((plain[0][name] != plain[1][name]).any() for name in exact), "the error would show"
    for size in (1, 7, 64):
        decides = in_float32(1e-5)
        found, reduced = content(engine_of(Rough(1e-5), decides, size))
        for name, array in exact.items():
            np.testing.assert_array_equal(found[name], array)
        assert reduced.decided is not None
        assert reduced.decided.images == 200
        assert 200 / 32 <= reduced.decided.again == decides.encoder.asked < 200  # type: ignore[attr-defined]
        assert 0 < reduced.decided.used <= 1.01 / SAFETY


def test_an_error_above_the_margin_stops_the_shard_and_then_float64_decides_all() -> None:
    said: list[str] = []
    decides = in_float32(1e-6, on_exceeded=said.append)
    runner = engine_of(Rough(1e-5), decides, 8)
    with pytest.raises(errors.EncoderError, match="nothing of this shard is stored: resume the run"):
        runner.encode(batch_of(40))
    assert len(said) == 1
    exact, _ = content(engine_of(Exact(), Reproducible(Exact(), None), 50), 40)
    found, reduced = content(runner, 40)
    for name, array in exact.items():
        np.testing.assert_array_equal(found[name], array)
    assert reduced.decided is not None
    assert reduced.decided.again == 40


def test_an_image_that_only_float32_cannot_hold_is_asked_again() -> None:
    class Overflowing(Rough):
        def __call__(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
            value = super().__call__(images)["features"]
            value[0] = torch.inf
            return {"features": value}

    exact, _ = content(engine_of(Exact(), Reproducible(Exact(), None), 50), 6)
    found, reduced = content(engine_of(Overflowing(1e-5), in_float32(1e-5), 6), 6)
    assert reduced.finite.all()
    np.testing.assert_array_equal(found["whole"], exact["whole"])
