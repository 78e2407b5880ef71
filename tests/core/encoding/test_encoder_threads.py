"""The encoder's threads, and what becomes of calls when it is closed or they fail."""

import contextvars
import gc
import threading
import weakref

import pytest
import torch

from genenc_core import errors, spec
from genenc_core.encoding import batch_size, encoder_threads, engine, products, shard_encoding

SLOT = spec.SlotSpec(name="features", shape=(3, 4, 4))


def engine_of(encoder: engine.Encoder) -> engine.Engine:
    wanted = products.build_products([products.parse_product("v=global_avg_pool")], [SLOT], point_count=0)
    return engine.Engine(encoder, wanted, batch_size.BatchSizer(batch_size.Bounds(min=1, max=None), 4))


def batch_of(count: int) -> engine.Batch:
    return engine.Batch(
        pixels=torch.zeros(count, 3, 4, 4, dtype=torch.uint8),
        points=torch.zeros(count, 0, 2, dtype=torch.float64),
        valid=torch.ones(count, 0, dtype=torch.bool),
    )


class Hanging:
    """An encoder that is at its first batch until it is told to go on."""

    device = torch.device("cpu")
    input_size = (4, 4)

    def __init__(self) -> None:
        self.begun, self.go_on = threading.Event(), threading.Event()

    def __call__(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        self.begun.set()
        assert self.go_on.wait(300)
        return {"features": images}


@pytest.mark.slow
def test_batches_of_a_closed_engine_are_stopped_and_no_image_is_blamed() -> None:
    encoder = Hanging()
    runner = engine_of(encoder)
    begun, waiting, batch = runner.submit(batch_of(2)), runner.submit(batch_of(3)), batch_of(3)
    assert encoder.begun.wait(300)
    runner.close()
    with pytest.raises(errors.Stopped, match="closed"):
        list(shard_encoding.encode_pieces(runner, batch, waiting, may_fail=10))
    with pytest.raises(errors.Stopped, match="closed"):
        runner.submit(batch)
    with pytest.raises(errors.Stopped, match="closed"):
        begun.result()
    encoder.go_on.set()


class Refusing:
    """An encoder that raises for more than one image; `held` tells whether the large batches are still in memory."""

    device = torch.device("cpu")
    input_size = (4, 4)

    def __init__(self) -> None:
        self.failed: list[weakref.ref[torch.Tensor]] = []
        self.held: list[bool] = []

    def __call__(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        self.held.append(any(item() is not None for item in self.failed))
        if len(images) > 1:
            self.failed.append(weakref.ref(images))
            raise ValueError("too many")
        return {"features": images}


def test_the_memory_of_a_failed_batch_is_free_before_its_parts_are_tried() -> None:
    encoder = Refusing()
    runner, batch = engine_of(encoder), batch_of(4)
    whole = runner.submit(batch)
    gc.disable()
    try:
        pieces = list(shard_encoding.encode_pieces(runner, batch, whole, may_fail=4))
    finally:
        gc.enable()
    assert [piece.stop - piece.start for piece in pieces] == [1, 1, 1, 1]
    assert encoder.held == [False] * 7
    runner.close()


def test_a_thread_that_cannot_start_is_not_taken_for_a_closed_one(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(_self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refused)
    with pytest.raises(RuntimeError, match="new thread"):
        encoder_threads.CallThreads(torch.device("cpu")).submit(len, ())


@pytest.mark.slow
def test_alone_gives_and_raises_what_the_work_does_in_the_callers_context() -> None:
    variable = contextvars.ContextVar("variable", default=0)
    variable.set(7)
    assert encoder_threads.run_in_thread(lambda more: variable.get() + more, 1) == 8
    assert encoder_threads.run_in_thread(threading.current_thread) is not threading.current_thread()

    class Held:
        pass

    gone: list[weakref.ref[Held]] = []

    def fails() -> None:
        held = Held()
        gone.append(weakref.ref(held))
        raise KeyError("x")

    with pytest.raises(KeyError):
        encoder_threads.run_in_thread(fails)
    gc.collect()
    assert gone[0]() is None
