"""What post-encoder modules share: the named axes of a value, where a batch is probed, and the module's protocol."""

import dataclasses
from typing import Protocol

import torch

from genenc_core import errors
from genenc_core.encoding.cells import Cells

MAP = ("channel", "y", "x")
TOKENS = ("token", "channel")
VECTOR = ("channel",)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Signature:
    """Named axes and sizes of one value per image, batch axis excluded."""

    dims: tuple[str, ...]
    shape: tuple[int, ...]

    def __str__(self) -> str:
        return "[" + ", ".join(f"{dim} {size}" for dim, size in zip(self.dims, self.shape, strict=True)) + "]"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class PointBatch:
    """Where to probe a batch: model pixels, origin at the top left edge, and which points count.

    Shapes: `xy` float64 `[B, K, 2]`; `valid` bool `[B, K]`. `input_size` is (height, width) of the model input.
    `view` float64 `[B, 4]`: left, top, right, bottom of what each image fills of it; None: all. `cells` is where the
    map's cells lie; None: they divide the input evenly.
    """

    xy: torch.Tensor
    valid: torch.Tensor
    input_size: tuple[int, int]
    view: torch.Tensor | None = None
    cells: Cells | None = None

    def cells_of(self, features: torch.Tensor) -> Cells:
        """Return where the cells of maps `[B, C, h, w]` lie."""
        return self.cells or Cells.regular(features.shape[2:], self.input_size)


class PostEncoder(Protocol):
    """What runs after the encoder on one of its outputs."""

    def output(self, given: Signature) -> Signature:
        """Return the signature after this module; `InputError` when it cannot take `given`."""
        ...

    def apply(self, features: torch.Tensor, points: PointBatch | None) -> torch.Tensor:
        """Return `[B, ...]` of the signature that `output` told.

        Raises:
            InputError: features that are not the given signature's, points that are asked for and missing, a value that
                a cast cannot hold.
        """
        ...


def require_map(name: str, given: Signature) -> None:
    """Check a signature; raises `InputError` for anything but a map without empty axes."""
    if given.dims != MAP or min(given.shape) < 1:
        raise errors.InputError(f"{name} needs a feature map [channel, y, x], but is given {given}")


def require_batched_map(name: str, features: torch.Tensor) -> None:
    """Check a tensor; raises `InputError` for anything but [B, C, h, w] without empty axes."""
    if features.ndim != 4 or min(features.shape) < 1:
        raise errors.InputError(f"{name} needs [B, C, H, W] with no empty axis, but is given {tuple(features.shape)}")
