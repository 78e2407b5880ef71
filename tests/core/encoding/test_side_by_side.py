"""Batches that are computed at once, each on one core: in order, apart from each other, and as they would be alone."""

import threading
import time
from collections.abc import Callable

import pytest
import torch

from genenc_core import errors, spec
from genenc_core.encoding import batch_size, encoder_threads, engine, products
from genenc_core.models import resolve
from genenc_core.runtime import backends

Images = torch.Tensor


class Given:
    """An encoder that does what it is told with each batch before it gives the images back."""

    device = torch.device("cpu")
    input_size = (4, 4)

    def __init__(self, work: Callable[[int], None]) -> None:
        self.work = work

    def __call__(self, images: Images) -> dict[str, Images]:
        self.work(round(float(images[0, 0, 0, 0]) * 255))
        return {"features": images}


def engine_of(
    encoder: engine.Encoder, slots: tuple[spec.SlotSpec, ...] = (), *, side_by_side: int = 2, size: int = 4
) -> engine.Engine:
    outputs = slots or (spec.SlotSpec(name="features", shape=(3, 4, 4)),)
    wanted = [products.parse_product(f"{slot.name.replace('.', '_')}={slot.name}:none") for slot in outputs]
    sizer = batch_size.BatchSizer(batch_size.Bounds(min=1, max=None), size)
    built = products.build_products(wanted, outputs, point_count=0)
    return engine.Engine(encoder, built, sizer, side_by_side=side_by_side)


def batch_of(pixels: torch.Tensor) -> engine.Batch:
    count = len(pixels)
    points, valid = torch.zeros(count, 0, 2, dtype=torch.float64), torch.ones(count, 0, dtype=torch.bool)
    return engine.Batch(pixels=pixels, points=points, valid=valid)


def numbered(number: int, count: int = 1) -> engine.Batch:
    return batch_of(torch.full((count, 3, 4, 4), number, dtype=torch.uint8))


def number_of(ticket: engine.Ticket) -> int:
    return round(float(ticket.result().arrays["features"][0, 0, 0, 0]) * 255)


def test_batches_are_computed_at_once_each_on_one_core() -> None:
    before = encoder_threads.run_in_thread(torch.get_num_threads)
    both, threads = threading.Barrier(2, timeout=300), set()

    def work(_number: int) -> None:
        threads.add((threading.get_ident(), torch.get_num_threads()))
        both.wait()

    runner = engine_of(Given(work))
    tickets = [runner.submit(numbered(number)) for number in range(10)]
    assert [number_of(ticket) for ticket in tickets] == list(range(10))
    assert [cores for _thread, cores in threads] == [1, 1]
    runner.close()
    assert encoder_threads.run_in_thread(torch.get_num_threads) == before, (
        "threads to come have as many as they would have had"
    )


def test_a_batch_that_is_late_holds_up_no_other() -> None:
    others = threading.Semaphore(0)

    def work(number: int) -> None:
        if number == 0:
            assert all(others.acquire(timeout=300) for _ in range(runner.in_flight - 1))
        else:
            others.release()

    runner = engine_of(Given(work), side_by_side=3)
    tickets = [runner.submit(numbered(number)) for number in range(runner.in_flight)]
    assert [number_of(ticket) for ticket in tickets] == list(range(runner.in_flight))
    runner.close()


def test_a_batch_that_is_given_up_is_not_computed_and_costs_no_other() -> None:
    begun, go_on, seen = threading.Barrier(3, timeout=300), threading.Event(), []

    def work(number: int) -> None:
        seen.append(number)
        if number < 2:
            begun.wait()
            assert go_on.wait(300)

    runner = engine_of(Given(work))
    tickets = [runner.submit(numbered(number)) for number in range(5)]
    begun.wait()
    tickets[2].cancel()
    tickets[3].cancel()
    go_on.set()
    assert [number_of(tickets[at]) for at in (0, 1, 4)] == [0, 1, 4]
    with pytest.raises(errors.Stopped):
        tickets[2].result()
    assert sorted(seen) == [0, 1, 4]
    runner.close()


@pytest.mark.slow
def test_a_closed_engine_ends_its_threads_after_what_they_began() -> None:
    begun, go_on, seen = threading.Barrier(3, timeout=300), threading.Event(), []

    def work(number: int) -> None:
        seen.append(number)
        begun.wait()
        assert go_on.wait(300)

    before = set(threading.enumerate())
    runner = engine_of(Given(work))
    tickets = [runner.submit(numbered(number)) for number in range(6)]
    begun.wait()
    runner.close()
    for ticket in tickets:
        with pytest.raises(errors.Stopped, match="closed"):
            ticket.result()
    go_on.set()
    deadline = time.monotonic() + 300
    while set(threading.enumerate()) - before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert set(threading.enumerate()) <= before
    assert sorted(seen) == [0, 1]


def test_memory_that_runs_out_for_both_halves_once() -> None:
    together, shrunk = threading.Barrier(2, timeout=300), []

    class Full(Given):
        def __call__(self, images: Images) -> dict[str, Images]:
            if len(images) > 2:
                together.wait()
                raise torch.OutOfMemoryError("full")
            return super().__call__(images)

    runner = engine_of(Full(lambda _number: None))
    runner.sizer.on_shrink = shrunk.append
    tickets = [runner.submit(numbered(number, 4)) for number in range(2)]
    found = [ticket.result() for ticket in tickets]
    assert [each.sizes for each in found] == [(2, 2), (2, 2)]
    assert [each.arrays["features"].shape[0] for each in found] == [4, 4]
    assert runner.sizer.size == 2
    assert shrunk == [2]
    runner.close()


@pytest.mark.slow
@pytest.mark.parametrize(("side_by_side", "least"), [(2, 2), (4, 1), (8, 1)])
def test_memory_for_fewer_batches_than_cores_halves_no_further_than_that(side_by_side: int, least: int) -> None:
    """Room for five images at a time: what others hold meanwhile is not taken for want of more, and nothing fails."""
    lock, held = threading.Lock(), [0]

    class Full(Given):
        def __call__(self, images: Images) -> dict[str, Images]:
            with lock:
                if held[0] + len(images) > 5:
                    raise torch.OutOfMemoryError("full")
                held[0] += len(images)
            time.sleep(0.02)
            with lock:
                held[0] -= len(images)
            return super().__call__(images)

    runner = engine_of(Full(lambda _number: None), side_by_side=side_by_side)
    tickets = [runner.submit(numbered(number, 4)) for number in range(20)]
    assert [number_of(ticket) for ticket in tickets] == list(range(20))
    assert runner.sizer.size == least
    runner.close()


def test_a_batch_that_does_not_fit_alone_either_is_the_encoders_fault() -> None:
    def work(_number: int) -> None:
        raise torch.OutOfMemoryError("full")

    runner = engine_of(Given(work))
    for ticket in [runner.submit(numbered(number, 4)) for number in range(4)]:
        with pytest.raises(errors.EncoderError, match="batch size 1"):
            ticket.result()
    runner.close()


def test_a_trial_encodes_a_batch_on_each_core_and_ends_with_the_last() -> None:
    """Also when memory runs out for one of them: what is measured next would share the cores with the other."""
    lock, order, both = threading.Lock(), [], threading.Barrier(2, timeout=300)

    class Full(Given):
        def __call__(self, images: Images) -> dict[str, Images]:
            with lock:
                first = not order
                order.append(len(images))
            if first:
                raise torch.OutOfMemoryError("full")
            both.wait()
            time.sleep(0.1)
            order.append(-1)
            return {"features": images}

    runner = engine_of(Full(lambda _number: None), side_by_side=3)
    with pytest.raises(torch.OutOfMemoryError):
        runner.trial(5, 0)
    assert order == [5, 5, 5, -1, -1]
    runner.close()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "size", "layers"),
    [
        ("resnet50", 64, ()),
        ("resnet18", 64, ("layer2", "layer4")),
        ("swin_t", 64, ()),
        ("timm/levit_128s", 224, ()),  # it fills a cache when it is first called
        ("timm/test_vit", 160, ("blocks.1", "blocks.2")),
        ("yolov3_tiny", 64, ()),
    ],
)
def test_what_a_model_gives_is_what_it_gives_alone_on_one_core(
    monkeypatch: pytest.MonkeyPatch, name: str, size: int, layers: tuple[str, ...]
) -> None:
    """Bit for bit, and so the same on any number of cores; the model is new to all of its threads."""
    request = resolve.ModelRequest(name=name, weights="random:0", image_size=(size, size), layers=layers)
    encoder = backends.eager_encoder(resolve.build_encoder(request))
    assert encoder.concurrent
    drawn = torch.Generator().manual_seed(0)
    batches = [torch.randint(0, 256, (2, 3, size, size), dtype=torch.uint8, generator=drawn) for _ in range(12)]
    runner = engine_of(encoder, encoder.outputs, side_by_side=4)
    found = [ticket.result().arrays for ticket in [runner.submit(batch_of(pixels)) for pixels in batches]]
    runner.close()
    monkeypatch.setattr(encoder_threads, "cores", lambda: 1)
    alone = engine_of(encoder, encoder.outputs, side_by_side=1)
    for pixels, arrays in zip(batches, found, strict=True):
        expected = alone.encode(batch_of(pixels)).arrays
        assert {key: value.tobytes() for key, value in arrays.items()} == {
            key: value.tobytes() for key, value in expected.items()
        }
    alone.close()
