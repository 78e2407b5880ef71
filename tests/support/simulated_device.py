"""A device with streams, marks and memory, on a virtual clock: what takes how long is told, what overlaps is found."""

import contextlib
import dataclasses
import threading
import weakref
from collections.abc import Iterator, Sequence

import numpy as np
import torch

from genenc_core.encoding.device import STAGES, Memory, Stage


@dataclasses.dataclass(frozen=True, kw_only=True)
class Latencies:
    """Virtual seconds per image of each stage, and per batch of launching it on the host."""

    copy_in: float = 0.0
    compute: float = 0.0
    copy_out: float = 0.0
    launch: float = 0.0


@dataclasses.dataclass(frozen=True)
class Mark:
    """A place in a stream: when what comes before it is done."""

    stage: Stage
    time: float


class SimulatedDevice:
    """Work is done at once and takes no time; when it would begin and end is worked out per stream.

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
        self.out_of_memory: set[Stage] = set()
        self._lock = threading.RLock()
        self._stage: Stage | None = None
        self._gathered: dict[int, float] = {}

    def gathered(self, pixels: torch.Tensor) -> torch.Tensor:
        """Note that the images of a batch are there now."""
        self._gathered[pixels.untyped_storage().data_ptr()] = self.host
        return pixels

    def join(self, parts: Sequence[torch.Tensor]) -> torch.Tensor:
        return self.gathered(torch.cat(list(parts)))

    def page_lock(self, memory: np.ndarray) -> None:
        pass

    @contextlib.contextmanager
    def stage(self, name: Stage) -> Iterator[None]:
        assert self._stage is None, "stages do not nest"
        self._stage = name
        try:
            yield
        finally:
            self._stage = None

    def spend(self, count: int) -> None:
        """Let the current stream work on `count` images."""
        assert self._stage is not None, "device work outside every stage"
        with self._lock:
            start = max(self.free[self._stage], self.launcher)
            self.free[self._stage] = start + count * getattr(self.latencies, self._stage)
            self.busy.append((self._stage, start, self.free[self._stage]))

    def upload(self, tensor: torch.Tensor) -> torch.Tensor:
        if tensor.dtype == torch.uint8:
            self.fail_if_asked()
            self.launcher = max(self.launcher, self._gathered[tensor.untyped_storage().data_ptr()])
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
            return Mark(self._stage, max(self.free[self._stage], self.launcher))

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
        """Let the gathering thread wait until `time`."""
        with self._lock:
            self.host = max(self.host, time)

    def total(self) -> float:
        """Return when everything is done."""
        return max(self.host, *self.free.values())


class SimulatedEncoder:
    """The mean colour of quarters of the image, in the device's time; out of memory above `largest` images."""

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
