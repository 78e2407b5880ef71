"""Between float32 RGB [B, 3, H, W] in [0, 1] and what an artifact takes and gives: casts, axes, mean and std."""

from collections.abc import Mapping, Sequence

import torch

from genenc_core import spec
from genenc_core.export import naming
from genenc_core.export.formats import record

_GREY = (0.299, 0.587, 0.114)
"""of ITU-R BT.601, as Pillow's mode L"""
_DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float64": torch.float64, "float32": torch.float32}


def adapted(run: record.FileRunner, block: spec.GenencBlock | None) -> record.Runner:
    """Return a runner that takes float32 RGB [B, 3, H, W] in [0, 1] and gives float32 tensors, as `block` says.

    Images are normalised with `mean` and `std` where `normalization_inside` is false, brought to `input`'s channels,
    type and layout, and outputs of `output_positions` are cast to float32; complex ones stay, and are refused later.
    Outputs with names are found by those of `output_names`; without, as in specs of genenc 0.1.0, they keep the places
    that they have in the first batch.
    """
    block = block or spec.GenencBlock()
    form = block.input or spec.ArtifactInput()
    mean = std = None
    if not block.normalization_inside and block.mean and block.std:
        mean, std = (torch.tensor(values).reshape(1, 3, 1, 1) for values in (block.mean, block.std))
    orders: dict[int, tuple[int, ...]] = dict.fromkeys(block.channels_last_outputs or (), (0, 3, 1, 2))
    orders |= dict.fromkeys(block.channels_first_lists or (), (0, 2, 1))
    positions, names = block.output_positions, list(block.output_names or ())

    def whole(images: torch.Tensor) -> Sequence[torch.Tensor]:
        if mean is not None and std is not None:
            images = (images - mean.to(images.device)) / std.to(images.device)
        found = run(_formed(images, form))
        if isinstance(found, Mapping):
            if not names:
                names.extend(found)
            found = naming.ordered(found, names)
        kept = range(len(found)) if positions is None else [at for at in positions if at < len(found)]
        return [_plain(found[at], orders.get(at)) for at in kept]

    return whole


def _formed(images: torch.Tensor, form: spec.ArtifactInput) -> torch.Tensor:
    if form.channels == 1:
        weights = torch.tensor(_GREY, device=images.device).reshape(1, 3, 1, 1)
        images = (images * weights).sum(1, keepdim=True)
    if form.dtype == "uint8":
        images = (images * 255).round().clamp(0, 255).to(torch.uint8)
    else:
        images = images.to(_DTYPES[form.dtype])
    return images.permute(0, 2, 3, 1).contiguous() if form.layout == "NHWC" else images


def _plain(tensor: torch.Tensor, order: tuple[int, ...] | None) -> torch.Tensor:
    if not isinstance(tensor, torch.Tensor) or tensor.is_complex():
        return tensor
    tensor = tensor.to(torch.float32)
    return tensor if order is None else tensor.permute(order).contiguous()
