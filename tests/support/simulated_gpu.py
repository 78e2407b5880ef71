"""Stand-in for a GPU's JPEG decoder, with slightly different pixels; for workers forked after it."""

import errno
import os
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from genenc_core.images.decode import decode

REFUSED, LEFT_OUT, FAILS, ABORTS = b"<refused>", b"<left out>", b"<fails>", b"<aborts>"
"""Outcome of a file, by the marker in its comment."""


def brighter(pixels: torch.Tensor) -> torch.Tensor:
    """Return the simulated device's version of the CPU's pixels: every second column is one step brighter."""
    made = pixels.clone()
    made[..., ::2] += (made[..., ::2] < 255).to(torch.uint8)
    return made


class SimulatedGpu:
    """Applies the EXIF orientation, like torchcodec."""

    def __init__(self, device: str) -> None:
        self.device = device
        self.sizes: list[int] = []

    def decode(self, files: Sequence[bytes | bytearray]) -> list[torch.Tensor] | None:
        self.sizes.append(len(files))
        if any(FAILS in file for file in files):
            raise OSError(errno.EIO, f"simulated: {self.device} failed")
        if any(ABORTS in file for file in files):
            os.abort()
        if any(REFUSED in file for file in files):
            return None
        return [self.picture(file) for file in files]

    def picture(self, file: bytes | bytearray) -> torch.Tensor:
        pixels = decode.decode_image(bytes(file)).pixels
        return torch.full_like(pixels, 255) if LEFT_OUT in file else brighter(pixels)


class Shifted(SimulatedGpu):
    """Returns pixels shifted by one column."""

    def picture(self, file: bytes | bytearray) -> torch.Tensor:
        return torch.roll(super().picture(file), 1, 2)


class Refusing(SimulatedGpu):
    """Rejects every file."""

    def decode(self, _files: Sequence[bytes | bytearray]) -> None:
        return None


class Unsteady(SimulatedGpu):
    """Returns pixels that depend on the other images of the batch."""

    def decode(self, files: Sequence[bytes | bytearray]) -> list[torch.Tensor] | None:
        return [decode.decode_image(bytes(file)).pixels for file in files] if len(files) > 1 else super().decode(files)


def slow_to_start(starting: Path, go: Path) -> type[SimulatedGpu]:
    """Return a kind that takes from the first file to the second to start."""

    class SlowToStart(SimulatedGpu):
        def __init__(self, device: str) -> None:
            starting.touch()
            while not go.exists():
                time.sleep(0.01)
            super().__init__(device)

    return SlowToStart


class Other(SimulatedGpu):
    """Another kind of device: correct, but with different pixels."""

    def picture(self, file: bytes | bytearray) -> torch.Tensor:
        return decode.decode_image(bytes(file)).pixels
