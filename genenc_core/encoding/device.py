"""Devices of the engine: host memory for copies, streams, events, and memory statistics, on the CPU and CUDA."""

import contextlib
import dataclasses
import logging
import time
from collections.abc import Callable, Sequence
from typing import Any, Literal, Protocol

import numpy as np
import torch

from genenc_core.system import host_memory, limits, proc

LOGGER = logging.getLogger(__name__)
Stage = Literal["copy_in", "compute", "copy_out"]
STAGES: tuple[Stage, ...] = ("copy_in", "compute", "copy_out")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """Bytes of device memory: peak use since the last query, and the total available."""

    peak: int
    limit: int


class Device(Protocol):
    """Runs work in three stages with separate streams, synchronised only explicitly.

    Work is submitted from one thread (on the host, from any); `wait` and `seconds` may be called from any thread. A
    mark is a position in a stream.
    """

    def join(self, parts: Sequence[torch.Tensor]) -> torch.Tensor:
        """Concatenate images `[k, C, H, W]` to `[B, C, H, W]` in host memory that the device copies from."""
        ...

    def page_lock(self, memory: np.ndarray) -> Callable[[], None]:
        """Page-lock host memory for asynchronous copies; return a function that unlocks it.

        That function must be called before the memory is freed.
        """
        ...

    def stage(self, name: Stage) -> contextlib.AbstractContextManager[Any]:
        """Return a context that submits work to this stage's stream."""
        ...

    def mark(self) -> Any:
        """Mark the current position of the current stage's stream."""
        ...

    def follow(self, mark: Any, *tensors: torch.Tensor) -> None:
        """Make the current stage wait for `mark`, before it uses `tensors` from another stage."""
        ...

    def upload(self, tensor: torch.Tensor) -> torch.Tensor:
        """Start copying a host tensor to the device in the current stage."""
        ...

    def download(self, tensor: torch.Tensor) -> torch.Tensor:
        """Start copying a tensor to host memory in the current stage; valid after waiting for a later mark."""
        ...

    def wait(self, mark: Any) -> None:
        """Wait until the work before `mark` is done."""
        ...

    def seconds(self, first: Any, last: Any) -> float:
        """Return the time between two marks that have been waited for."""
        ...

    def release(self) -> None:
        """Free cached memory that is not in use."""
        ...

    def memory(self) -> Memory | None:
        """Return memory statistics and reset the peak; None if unknown."""
        ...


class CpuDevice:
    """The host: every stage is synchronous, and nothing is copied."""

    def join(self, parts: Sequence[torch.Tensor]) -> torch.Tensor:
        """Return `[B, C, H, W]`.

        Copied by NumPy: parallel torch operations would give this thread its own OpenMP workers, and with more threads
        than cores OpenMP lets the encoder's workers sleep between operations.
        """
        return torch.from_numpy(np.concatenate([part.numpy() for part in parts]))

    def page_lock(self, memory: np.ndarray) -> Callable[[], None]:  # noqa: ARG002
        """Do nothing: host memory needs no copy."""
        return lambda: None

    def stage(self, name: Stage) -> contextlib.AbstractContextManager[Any]:  # noqa: ARG002
        """Do nothing."""
        return contextlib.nullcontext()

    def mark(self) -> float:
        """Return the current time."""
        return time.perf_counter()

    def follow(self, mark: float, *tensors: torch.Tensor) -> None:
        """Do nothing: the work is done."""

    def upload(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return `tensor`."""
        return tensor

    def download(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return `tensor`."""
        return tensor

    def wait(self, mark: float) -> None:
        """Do nothing: the work is done."""

    def seconds(self, first: float, last: float) -> float:
        """Return the difference."""
        return last - first

    def release(self) -> None:
        """Return memory cached by the C library to the system."""
        release(torch.device("cpu"))

    def memory(self) -> Memory | None:
        """Return this process's resident memory (its peak if freed memory is kept), and that plus half of the rest.

        The other half is left for decoded images and other processes.
        """
        held, left = proc.resident_bytes(), limits.available_bytes()
        return None if held is None or left is None else Memory(peak=held, limit=held + left // 2)


class CudaDevice:
    """A CUDA device with one stream per stage.

    Page-locked host memory comes from torch's caching host allocator, which reuses a block only after the copies from
    or to it are done; the device allocator does the same for streams passed to `follow`.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        # The model was created on the default stream.
        torch.cuda.synchronize(device)
        self._streams = {name: torch.cuda.Stream(device) for name in STAGES}  # type: ignore[no-untyped-call]

    def join(self, parts: Sequence[torch.Tensor]) -> torch.Tensor:
        """Return `[B, C, H, W]` in page-locked memory; copied by NumPy, since torch starts threads for each part."""
        count = sum(len(part) for part in parts)
        joined = torch.empty((count, *parts[0].shape[1:]), dtype=parts[0].dtype, pin_memory=True)
        np.concatenate([part.numpy() for part in parts], out=joined.numpy())
        return joined

    def page_lock(self, memory: np.ndarray) -> Callable[[], None]:
        """Register the memory with CUDA; if that fails, copies from it are slower."""
        cudart = torch.cuda.cudart()  # type: ignore[no-untyped-call]
        address = memory.ctypes.data
        code = int(cudart.cudaHostRegister(address, memory.nbytes, 0))
        if code != 0:
            LOGGER.warning("cannot page-lock the memory of decoded images (CUDA error %d): copies are slower", code)
            self._clear_error()
            return lambda: None

        def unlock() -> None:
            with contextlib.suppress(RuntimeError):  # errors of the work are raised where it is waited for
                torch.cuda.synchronize(self._device)  # copies from it may still be in progress
            code = int(cudart.cudaHostUnregister(address))
            if code != 0:
                LOGGER.warning("cannot unlock the page-locked memory of decoded images (CUDA error %d)", code)
                self._clear_error()

        return unlock

    def _clear_error(self) -> None:
        """Clear CUDA's pending error, which would otherwise be raised by the next kernel."""
        with contextlib.suppress(RuntimeError):
            torch.ones(1, device=self._device)

    def stage(self, name: Stage) -> contextlib.AbstractContextManager[Any]:
        """Make the stage's stream the calling thread's current one."""
        return torch.cuda.stream(self._streams[name])

    def mark(self) -> torch.cuda.Event:
        """Record an event; waiting for it blocks without using the core."""
        event = torch.cuda.Event(enable_timing=True, blocking=True)  # type: ignore[no-untyped-call]
        event.record(torch.cuda.current_stream(self._device))
        return event

    def follow(self, mark: torch.cuda.Event, *tensors: torch.Tensor) -> None:
        """Make the current stream wait, and tell the allocator that it uses `tensors`."""
        stream = torch.cuda.current_stream(self._device)
        stream.wait_event(mark)
        for tensor in tensors:
            tensor.record_stream(stream)

    def upload(self, tensor: torch.Tensor) -> torch.Tensor:
        """Start copying, without waiting if the memory is page-locked."""
        return tensor.to(self._device, non_blocking=True)

    def download(self, tensor: torch.Tensor) -> torch.Tensor:
        """Start copying to page-locked memory."""
        host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
        return host.copy_(tensor, non_blocking=True)

    def wait(self, mark: torch.cuda.Event) -> None:
        """Wait for an event."""
        mark.synchronize()

    def seconds(self, first: torch.cuda.Event, last: torch.cuda.Event) -> float:
        """Return the device time between two events."""
        return float(first.elapsed_time(last)) / 1000

    def release(self) -> None:
        """Empty torch's cache of free blocks."""
        release(self._device)

    def memory(self) -> Memory:
        """Return torch's peak, and the memory it has reserved plus what is free."""
        peak = torch.cuda.max_memory_allocated(self._device)
        torch.cuda.reset_peak_memory_stats(self._device)
        free, _ = torch.cuda.mem_get_info(self._device)
        return Memory(peak=peak, limit=torch.cuda.memory_reserved(self._device) + free)


def release(device: torch.device) -> None:
    """Free cached memory that is not in use."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
    else:
        host_memory.release()


def device_for(device: torch.device) -> Device:
    """Return the `Device` for a torch device."""
    return CudaDevice(device) if device.type == "cuda" else CpuDevice()
