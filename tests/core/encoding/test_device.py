"""Host memory that a device copies from directly is given back before it goes, whatever became of the work."""

import numpy as np
import pytest
import torch

from genenc_core.encoding import device


class Cudart:
    """CUDA's runtime as far as it page-locks memory."""

    def __init__(self, *, refuses: bool = False) -> None:
        self.refuses = refuses
        self.registered: list[tuple[int, int]] = []
        self.said: list[str] = []

    def cudaHostRegister(self, address: int, size: int, flags: int) -> int:
        assert flags == 0
        if self.refuses:
            return 2
        self.registered.append((address, size))
        return 0

    def cudaHostUnregister(self, address: int) -> int:
        self.said.append("unregistered")
        self.registered = [each for each in self.registered if each[0] != address]
        return 0


def cuda(monkeypatch: pytest.MonkeyPatch, cudart: Cudart) -> device.CudaDevice:
    monkeypatch.setattr(torch.cuda, "cudart", lambda: cudart)
    monkeypatch.setattr(torch.cuda, "Stream", lambda _device: None)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda _device: cudart.said.append("waited"))
    return device.CudaDevice(torch.device("cuda", 0))


def test_memory_is_unlocked_once_the_device_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    cudart = Cudart()
    found = cuda(monkeypatch, cudart)
    memory = np.zeros((2, 3, 4, 5), np.uint8)
    unlock = found.page_lock(memory)
    assert cudart.registered == [(memory.ctypes.data, 120)]
    cudart.said.clear()
    unlock()
    assert cudart.registered == []
    assert cudart.said == ["waited", "unregistered"]


def test_work_that_failed_does_not_keep_memory_locked(monkeypatch: pytest.MonkeyPatch) -> None:
    cudart = Cudart()
    unlock = cuda(monkeypatch, cudart).page_lock(np.zeros(8, np.uint8))

    def fails(_device: torch.device) -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(torch.cuda, "synchronize", fails)
    unlock()
    assert cudart.registered == []


def test_what_was_not_locked_is_not_unlocked(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    cudart = Cudart(refuses=True)
    found = cuda(monkeypatch, cudart)
    cudart.said.clear()
    launched = []
    monkeypatch.setattr(torch, "ones", lambda size, device: launched.append((size, device)))
    found.page_lock(np.zeros(8, np.uint8))()
    assert cudart.said == []
    assert launched == [(1, torch.device("cuda", 0))], "CUDA would blame the next kernel"
    assert "cannot page-lock the memory of decoded images (CUDA error 2)" in caplog.text
