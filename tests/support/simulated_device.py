"""Simulated device with streams, marks and memory on a virtual clock, from given latencies."""

import contextlib
import dataclasses
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch

from genenc_core.encoding.device import STAGES, Memory, Stage


@dataclasses.dataclass(frozen=True, kw_only=True)
class Latencies:
    """Virtual seconds per image for each stage, and per batch for launching on the host."""

    copy_in: float = 0.0
    compute: float = 0.0
    copy_out: float = 0.0
    launch: float = 0.0


@dataclasses.dataclass
class Mark:
    """An event in a stream: the time when all earlier work is done."""

    stage: Stage
    time: float


class SimulatedDevice:
    """Computes work immediately and schedules its virtual begin and end per stream.

    A stream begins a piece of work when the one before it is done, it is launched, and all marks that it follows are
    reached. `host` is the time of the thread that gathers batches and waits for them; the thread that launches begins
    with a batch when it was gathered and the last one is launched.
    """

    def __init__(self, latencies: Latencies, *, limit: int = 10**9) -> None:
        self.latencies, self.limit = latencies, limit
        self.host = 0.0
        self.launcher = 0.0
        self.free = dict.fromkeys(STAGES, 0.0)
        self.busy: list[tuple[Stage, float, float]] = []
        self.alive: list[int] = []
        self.peak = 0
        self.releases = 0
        self.followed: set[int] = set()
        self.locked: set[int] = set()
        self.out_of_memory: set[Stage] = set()
        self._lock = threading.RLock()
        self._stage: Stage | None = None
        self._gathered: dict[int, float] = {}
        self._first: Mark | None = None
        """First mark of the current stage, before its batch is known."""

    def gathered(self, pixels: torch.Tensor) -> torch.Tensor:
        """Record that the images of a batch have arrived."""
        self._gathered[pixels.untyped_storage().data_ptr()] = self.host
        return pixels

    def join(self, parts: Sequence[torch.Tensor]) -> torch.Tensor:
        return self.gathered(torch.cat(list(parts)))

    def page_lock(self, memory: np.ndarray) -> Callable[[], None]:
        self.locked.add(memory.ctypes.data)
        return lambda: self.locked.remove(memory.ctypes.data)

    @contextlib.contextmanager
    def stage(self, name: Stage) -> Iterator[None]:
        assert self._stage is None, "stages do not nest"
        self._stage = name
        try:
            yield
        finally:
            self._stage = self._first = None

    def spend(self, count: int) -> None:
        """Schedule work on `count` images in the current stream."""
        assert self._stage is not None, "device work outside every stage"
        with self._lock:
            start = max(self.free[self._stage], self.launcher)
            self.free[self._stage] = start + count * getattr(self.latencies, self._stage)
            self.busy.append((self._stage, start, self.free[self._stage]))

    def upload(self, tensor: torch.Tensor) -> torch.Tensor:
        if tensor.dtype == torch.uint8:
            self.fail_if_asked()
            self.launcher = max(self.launcher, self._gathered[tensor.untyped_storage().data_ptr()])
            if self._first is not None:
                self._first.time = max(self._first.time, self.launcher)
            used = sum(self.alive) + len(tensor)
            if used > self.limit:
                raise torch.OutOfMemoryError(f"simulated: {used} images of {self.limit}")
            self.peak = max(self.peak, used)
            self.alive.append(len(tensor))
            self.spend(len(tensor))
        uploaded = tensor.clone()
        if tensor.dtype == torch.uint8:
            weakref.finalize(uploaded, self.alive.remove, len(tensor))
        return uploaded

    def fail_if_asked(self) -> None:
        assert self._stage is not None
        if self._stage in self.out_of_memory:
            self.out_of_memory.remove(self._stage)
            raise torch.OutOfMemoryError(f"simulated in {self._stage}")

    def mark(self) -> Mark:
        assert self._stage is not None, "a mark outside every stage"
        with self._lock:
            mark = Mark(self._stage, max(self.free[self._stage], self.launcher))
            self._first = self._first or mark
            return mark

    def follow(self, mark: Mark, *tensors: torch.Tensor) -> None:
        assert self._stage is not None
        assert mark.stage != self._stage
        with self._lock:
            self.free[self._stage] = max(self.free[self._stage], mark.time)
        self.followed.update(id(tensor) for tensor in tensors)

    def download(self, tensor: torch.Tensor) -> torch.Tensor:
        assert self._stage == "copy_out"
        assert id(tensor) in self.followed, "the allocator does not know that this stage uses the tensor"
        self.fail_if_asked()
        if tensor.ndim > 1:
            self.spend(len(tensor))
        return tensor.clone()

    def wait(self, mark: Mark) -> None:
        with self._lock:
            self.host = max(self.host, mark.time)

    def seconds(self, first: Mark, last: Mark) -> float:
        return last.time - first.time

    def release(self) -> None:
        self.releases += 1

    def memory(self) -> Memory:
        peak, self.peak = self.peak, sum(self.alive)
        return Memory(peak=peak, limit=self.limit)

    def deliver(self, time: float) -> None:
        """Make the gathering thread wait until `time`."""
        with self._lock:
            self.host = max(self.host, time)

    def total(self) -> float:
        """Return the time when all work is done."""
        return max(self.host, *self.free.values())


class SimulatedEncoder:
    """Mean colour of the image's quarters, with the device's latencies; out of memory above `largest` images."""

    device = torch.device("cpu")
    input_size = (8, 8)

    def __init__(self, device: SimulatedDevice, *, largest: int = 10**9) -> None:
        self.simulated, self.largest = device, largest
        self.sizes: list[int] = []

    def __call__(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        self.simulated.fail_if_asked()
        if len(images) > self.largest:
            raise torch.OutOfMemoryError(f"simulated: a batch of {len(images)}")
        self.sizes.append(len(images))
        self.simulated.launcher += self.simulated.latencies.launch
        self.simulated.spend(len(images))
        return {"features": torch.nn.functional.avg_pool2d(images, 4)}
