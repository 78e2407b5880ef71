"""The module every encoder becomes: normalisation, then feature maps as a tuple; and the dry run that measures it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from genenc_core import errors, spec
from genenc_core.models import wording

Triple = tuple[float, float, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """What a source hands over: the model (names its weights), the trunk that is run, and its preprocessing."""

    model: nn.Module
    trunk: nn.Module
    preprocessing: spec.Preprocessing
    mean: Triple
    std: Triple
    stages: tuple[str, ...] = ()
    """names of `model`'s modules that a stage index stands for, first to last; empty: its children"""


class EncoderModule(nn.Module):
    """float32 RGB [B, 3, H, W] in [0, 1] -> tuple of contiguous feature maps [B, C, h, w]; normalisation inside."""

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, trunk: nn.Module, *, mean: Triple, std: Triple) -> None:
        super().__init__()
        self.trunk = trunk
        self.normalizes = mean != (0.0, 0.0, 0.0) or std != (1.0, 1.0, 1.0)
        # Not persistent: the state dict, and with it the digest of the weights, is the trunk's alone.
        self.register_buffer("mean", torch.tensor(mean).reshape(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).reshape(1, 3, 1, 1), persistent=False)

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Return one map per output slot."""
        if self.normalizes:
            images = (images - self.mean) / self.std
        return tuple(tensor.contiguous() for tensor in _tensors(self.trunk(images)).values())


def finished(parts: Parts) -> EncoderModule:
    """Return the trunk of `parts` as an `EncoderModule`: evaluation mode, float32, CPU, no gradients."""
    return EncoderModule(parts.trunk, mean=parts.mean, std=parts.std).float().cpu().eval().requires_grad_(False)


def dry_run(module: EncoderModule, *, name: str, height: int, width: int) -> tuple[spec.SlotSpec, ...]:
    """Run two random images and describe the output slots found.

    Raises:
        InputError: the model cannot take this size, or gives something else than maps [B, C, h, w].
    """
    images = torch.rand((2, 3, height, width), generator=torch.Generator().manual_seed(0))
    try:
        with torch.inference_mode():
            normalized = (images - module.mean) / module.std if module.normalizes else images
            outputs = _tensors(module.trunk(normalized))
    except (RuntimeError, AssertionError, ValueError, TypeError, IndexError) as error:
        raise errors.InputError(
            f"model {name!r} cannot encode images of {height} x {width} pixels: {wording.reason(error)}. "
            "Give another --image-size, or a model that takes this one."
        ) from error
    except errors.EncoderError as error:
        raise errors.InputError(f"model {name!r} is no encoder: {error}") from error
    return tuple(_slot(slot, tensor, name) for slot, tensor in outputs.items())


def _tensors(value: object) -> dict[str, torch.Tensor]:
    """Return a trunk's output as slot name -> tensor."""
    if isinstance(value, Mapping):
        named = dict(value)
    elif isinstance(value, Sequence) and len(value) != 1:
        named = {f"features_{index}": item for index, item in enumerate(value)}
    else:
        named = {"features": value[0] if isinstance(value, Sequence) else value}
    if not named:
        raise errors.EncoderError("it returns nothing; it must return a tensor [B, C, h, w], or several.")
    for slot, item in named.items():
        if not (isinstance(slot, str) and slot and isinstance(item, torch.Tensor)):
            raise errors.EncoderError(
                f"its output {slot!r} is a {type(item).__name__}; it must return a tensor [B, C, h, w], or a tuple, "
                "list or dict (slot name -> tensor) of them."
            )
    return named


def _slot(slot: str, tensor: torch.Tensor, name: str) -> spec.SlotSpec:
    if tensor.ndim != 4 or tensor.shape[0] != 2 or min(tensor.shape) < 1 or tensor.dtype != torch.float32:
        raise errors.InputError(
            f"model {name!r} is no encoder: output {slot!r} of two images is {tensor.dtype} {list(tensor.shape)}, but "
            "must be float32 feature maps [2, C, h, w]. Let it return the maps before pooling; tokens [B, N, C] must "
            "be put on their grid first."
        )
    return spec.SlotSpec(
        name=slot,
        shape=tuple(tensor.shape[1:]),
        description="feature map: channels, height, width",
        recommended_decoder="TensorToFeatureVector",
    )
