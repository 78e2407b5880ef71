"""Positions of a feature map's cells on the model's input."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from genenc_core import errors

if TYPE_CHECKING:  # a run's cells are read without torch
    import torch

Pair = tuple[float, float]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Cells:
    """Grid of a map's cells, (y, x) in pixels of the model input from its top-left edge.

    Cell k is centred at `first + k * stride` and extends half a stride to each side; the outermost cells extend to the
    edges of the input.
    """

    stride: Pair
    first: Pair

    @classmethod
    def regular(cls, cells: Sequence[int], pixels: Sequence[int]) -> "Cells":
        """Return the grid of a map of `cells` (h, w) that evenly divides an input of `pixels` (height, width)."""
        stride = pixels[0] / cells[0], pixels[1] / cells[1]
        return cls(stride=stride, first=(stride[0] / 2, stride[1] / 2))

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> "Cells":
        """Inverse of `as_json`."""
        (y, x), (top, left) = stored["stride"], stored["first"]
        return cls(stride=(float(y), float(x)), first=(float(top), float(left)))

    def as_json(self) -> dict[str, list[float]]:
        """Return the JSON form that a run's identity records."""
        return {"stride": list(self.stride), "first": list(self.first)}

    def index(self, xy: "torch.Tensor") -> "torch.Tensor":
        """Convert points `[..., 2]` (x, y in model pixels) to cell coordinates, where k is the centre of cell k."""
        import torch

        return torch.stack([(xy[..., at] - self.first[1 - at]) / self.stride[1 - at] for at in (0, 1)], -1)

    def inside(self, view: "torch.Tensor", size: tuple[int, int]) -> "torch.Tensor":
        """Return which cells of a map have their centre in the view, bool `[B, h, w]`.

        If a view is too thin to contain a centre, the row or column of cells nearest to its middle counts.

        Args:
            view: left, top, right, bottom of the part of the model input that each image covers, in pixels, `[B, 4]`.
            size: (h, w) of the map.
        """
        rows, columns = (
            _axis_inside(
                view[:, at], view[:, at + 2], first=self.first[axis], stride=self.stride[axis], cells=size[axis]
            )
            for axis, at in ((0, 1), (1, 0))
        )
        return rows[:, :, None] & columns[:, None, :]


def _axis_inside(
    start: "torch.Tensor", stop: "torch.Tensor", *, first: float, stride: float, cells: int
) -> "torch.Tensor":
    import torch

    centres = first + stride * torch.arange(cells, dtype=torch.float64, device=start.device)
    inside = (centres >= start[:, None]) & (centres <= stop[:, None])
    distance = (centres - ((start + stop) / 2)[:, None]).abs()
    nearest = distance <= distance.amin(1, keepdim=True)
    return torch.where(inside.any(1, keepdim=True), inside, nearest)


def require_regular(cells: Cells, shape: Sequence[int], pixels: Sequence[int], *, subject: str) -> None:
    """Raise `InputError`, naming `subject`, unless the stride of the cells divides the input evenly."""
    even = Cells.regular(shape, pixels)
    if any(abs(a - b) > 1e-6 for a, b in zip(cells.stride, even.stride, strict=True)):
        raise errors.InputError(
            f"{subject} has a cell every {cells.stride[0]:g} x {cells.stride[1]:g} pixels, and its map of "
            f"{shape[0]} x {shape[1]} cells does not fill the {pixels[0]} x {pixels[1]} pixels of a tile, so the maps "
            "of tiles cannot be stitched: use another --image-size, or remove --canvas"
        )
