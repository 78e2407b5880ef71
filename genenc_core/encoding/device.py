"""What the engine asks of a device: host memory it copies from, streams, marks in them, copies, and its memory."""

import contextlib
import dataclasses
import logging
import time
from collections.abc import Sequence
from typing import Any, Literal, Protocol

import numpy as np
import torch

from genenc_core import host
from genenc_core.encoding import host_memory

LOGGER = logging.getLogger(__name__)
Stage = Literal["copy_in", "compute", "copy_out"]
STAGES: tuple[Stage, ...] = ("copy_in", "compute", "copy_out")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """Bytes of device memory: the most in use since it was last asked, and how many there are to use in all."""

    peak: int
    limit: int


class Device(Protocol):
    """Runs work in three stages, each a stream of its own, that wait for each other only where they are told to.

    Work is handed over from one thread, the host's from any; `wait` and `seconds` may be called from any. A `Mark` is a
    place in a stream.
    """

    def join(self, parts: Sequence[torch.Tensor]) -> torch.Tensor:
        """Return uint8 images `[k, 3, H, W]` as one `[B, 3, H, W]` in host memory that the device copies from."""
        ...

    def page_lock(self, memory: np.ndarray) -> None:
        """Let the device copy from host memory while the host does other work."""
        ...

    def stage(self, name: Stage) -> contextlib.AbstractContextManager[Any]:
        """Hand what is called inside to this stage's stream."""
        ...

    def mark(self) -> Any:
        """Mark where the current stage's stream is."""
        ...

    def follow(self, mark: Any, *tensors: torch.Tensor) -> None:
        """Let the current stage go on only after `mark`; it then uses `tensors` that another stage made."""
        ...

    def upload(self, tensor: torch.Tensor) -> torch.Tensor:
        """Begin to copy a host tensor to the device, in the current stage."""
        ...

    def download(self, tensor: torch.Tensor) -> torch.Tensor:
        """Begin to copy a tensor to host memory, in the current stage; it is there once a later mark is waited for."""
        ...

    def wait(self, mark: Any) -> None:
        """Return when the work before `mark` is done."""
        ...

    def seconds(self, first: Any, last: Any) -> float:
        """Return the time between two marks that were waited for."""
        ...

    def release(self) -> None:
        """Give back memory that is kept for reuse and not in use."""
        ...

    def memory(self) -> Memory | None:
        """Return what its memory is used for, and count the peak anew; None where it cannot be told."""
        ...


class CpuDevice:
    """The host itself: every stage is done when it is called, and nothing is copied."""

    def join(self, parts: Sequence[torch.Tensor]) -> torch.Tensor:
        """Return `[B, 3, H, W]`.

        Copied by numpy: a thread whose torch operations run in parallel has helpers of its own, and with more threads
        than cores OpenMP lets those of the encoder sleep between its operations.
        """
        return torch.from_numpy(np.concatenate([part.numpy() for part in parts]))

    def page_lock(self, memory: np.ndarray) -> None:
        """Do nothing: it is the host's own."""

    def stage(self, name: Stage) -> contextlib.AbstractContextManager[Any]:  # noqa: ARG002
        """Do nothing."""
        return contextlib.nullcontext()

    def mark(self) -> float:
        """Return the time."""
        return time.perf_counter()

    def follow(self, mark: float, *tensors: torch.Tensor) -> None:
        """Do nothing: it is done."""

    def upload(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return `tensor`."""
        return tensor

    def download(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return `tensor`."""
        return tensor

    def wait(self, mark: float) -> None:
        """Do nothing: it is done."""

    def seconds(self, first: float, last: float) -> float:
        """Return the difference."""
        return last - first

    def release(self) -> None:
        """Give the system what the C library keeps."""
        release(torch.device("cpu"))

    def memory(self) -> Memory | None:
        """Return what this process holds, which is its peak where freed memory is kept, and that and half of the rest.

        The other half is for decoded images, and for what else runs on the host.
        """
        held, left = host.resident_bytes(), host.available_bytes()
        return None if held is None or left is None else Memory(peak=held, limit=held + left // 2)


class CudaDevice:
    """A CUDA device with one stream per stage.

    Page-locked host memory comes from torch's caching host allocator, which allocates it once and hands a block out
    again only when the copies from or to it are done; so does, for the streams told to `follow`, the allocator of the
    device.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        # The model was made on the default stream.
        torch.cuda.synchronize(device)
        self._streams = {name: torch.cuda.Stream(device) for name in STAGES}  # type: ignore[no-untyped-call]

    def join(self, parts: Sequence[torch.Tensor]) -> torch.Tensor:
        """Return `[B, 3, H, W]` in page-locked memory; copied by numpy, for torch starts threads for each part."""
        count = sum(len(part) for part in parts)
        joined = torch.empty((count, *parts[0].shape[1:]), dtype=parts[0].dtype, pin_memory=True)
        np.concatenate([part.numpy() for part in parts], out=joined.numpy())
        return joined

    def page_lock(self, memory: np.ndarray) -> None:
        """Register it with CUDA; where that is refused, copies from it are slower."""
        code = torch.cuda.cudart().cudaHostRegister(memory.ctypes.data, memory.nbytes, 0)  # type: ignore[no-untyped-call]
        if int(code) != 0:
            LOGGER.warning(
                "the memory of decoded images cannot be page-locked (CUDA error %d): copies are slower", code
            )

    def stage(self, name: Stage) -> contextlib.AbstractContextManager[Any]:
        """Make the stage's stream the calling thread's current one."""
        return torch.cuda.stream(self._streams[name])

    def mark(self) -> torch.cuda.Event:
        """Record an event; waiting for it lets other threads have the core."""
        event = torch.cuda.Event(enable_timing=True, blocking=True)  # type: ignore[no-untyped-call]
        event.record(torch.cuda.current_stream(self._device))
        return event

    def follow(self, mark: torch.cuda.Event, *tensors: torch.Tensor) -> None:
        """Let the current stream wait, and the allocator know that it uses `tensors`."""
        stream = torch.cuda.current_stream(self._device)
        stream.wait_event(mark)
        for tensor in tensors:
            tensor.record_stream(stream)

    def upload(self, tensor: torch.Tensor) -> torch.Tensor:
        """Begin to copy; from page-locked memory the host does not wait."""
        return tensor.to(self._device, non_blocking=True)

    def download(self, tensor: torch.Tensor) -> torch.Tensor:
        """Begin to copy to page-locked memory."""
        host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
        return host.copy_(tensor, non_blocking=True)

    def wait(self, mark: torch.cuda.Event) -> None:
        """Wait for an event."""
        mark.synchronize()

    def seconds(self, first: torch.cuda.Event, last: torch.cuda.Event) -> float:
        """Return the device's time between two events."""
        return float(first.elapsed_time(last)) / 1000

    def release(self) -> None:
        """Empty torch's cache of free blocks."""
        release(self._device)

    def memory(self) -> Memory:
        """Return torch's peak, and what torch has or could have: blocks in use or kept, and what is free."""
        peak = torch.cuda.max_memory_allocated(self._device)
        torch.cuda.reset_peak_memory_stats(self._device)
        free, _ = torch.cuda.mem_get_info(self._device)
        return Memory(peak=peak, limit=torch.cuda.memory_reserved(self._device) + free)


def release(device: torch.device) -> None:
    """Give back memory that is kept for reuse and not in use."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
    else:
        host_memory.release()


def device_for(device: torch.device) -> Device:
    """Return how the engine talks to a device."""
    return CudaDevice(device) if device.type == "cuda" else CpuDevice()
