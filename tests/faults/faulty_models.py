"""An encoder that does what a test tells it to; its name and weights are the same with and without the fault."""

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import nn

Behaviour = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""Takes the images and the right output of a call, and returns the output or raises."""

_behaviour: list[Behaviour] = []


class Told(nn.Module):
    """[B, 3, H, W] -> [B, 4, H/8, W/8], then what it was told to do."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Conv2d(3, 4, 8, stride=8)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return the maps, or what the behaviour in force makes of them."""
        maps = self.net(images)
        return _behaviour[-1](images, maps) if _behaviour and len(images) else maps


def told() -> nn.Module:
    """Return `Told`."""
    return Told()


@contextmanager
def behaving(behaviour: Behaviour) -> Iterator[None]:
    """Let the encoder behave so while the block runs."""
    _behaviour.append(behaviour)
    try:
        yield
    finally:
        _behaviour.pop()


def is_dark(images: torch.Tensor) -> torch.Tensor:
    """Return bool [B]: which images are black."""
    return images.flatten(1).amax(1) == 0


def nan_for(which: Callable[[torch.Tensor], torch.Tensor]) -> Behaviour:
    """Return NaN for some images."""
    return lambda images, maps: maps.masked_fill(which(images)[:, None, None, None], torch.nan)


def later(behaviour: Behaviour, *, images: int) -> Behaviour:
    """Behave so from the image on that comes after `images` good ones."""
    seen = 0

    def behave(batch: torch.Tensor, maps: torch.Tensor) -> torch.Tensor:
        nonlocal seen
        seen += len(batch)
        return maps if seen <= images else behaviour(batch, maps)

    return behave


def raising(error: Exception, which: Callable[[torch.Tensor], torch.Tensor]) -> Behaviour:
    """Raise when one of some images is in the batch."""

    def behave(images: torch.Tensor, maps: torch.Tensor) -> torch.Tensor:
        if which(images).any():
            raise error
        return maps

    return behave


def fits(most: int, error: Exception) -> Behaviour:
    """Raise for batches of more than `most` images, as a device without memory for them does."""

    def behave(images: torch.Tensor, maps: torch.Tensor) -> torch.Tensor:
        if len(images) > most:
            raise error
        return maps

    return behave


class Hanging(Told):
    """An encoder that never ends on the thread that encodes; it is built and tried on others."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return the maps, or nothing ever."""
        if threading.current_thread().name.startswith("genenc-encoder"):
            sys.stderr.write("hanging\n")
            sys.stderr.flush()
            time.sleep(3600)
        return super().forward(images)


def hangs() -> nn.Module:
    """Return `Hanging`."""
    return Hanging()
