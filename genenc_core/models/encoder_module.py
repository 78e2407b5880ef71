"""The common encoder module, which normalises images and returns a tuple of slots, and its dry run."""

import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from genenc_core import errors, spec
from genenc_core.models import fake_run, tokens

PerChannel = tuple[float, ...]
"""mean or std, one number per channel"""
_MAX_UNIT_STATISTIC = 2
"""upper bound of the mean and std of pixels in [0, 1]; larger values are for pixels from 0 to 255"""


class SizeNotStated(UserWarning):
    """A model does not state its image size, and none was given."""


def warn_of_size(name: str, used: spec.Preprocessing) -> None:
    """Warn that images are brought to a size that neither the model states nor the user gave."""
    warnings.warn(
        f"{name!r} does not state its image size: images are brought to {used.height} x {used.width} pixels "
        f"({used.fit}, unless --fit says otherwise). Give --image-size HxW, or let the model state image_size and fit",
        SizeNotStated,
        stacklevel=3,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """Result of a model source: the model (whose state dict names the weights), the trunk to run, preprocessing."""

    model: nn.Module
    trunk: nn.Module
    preprocessing: spec.Preprocessing
    mean: PerChannel
    std: PerChannel
    stages: tuple[str, ...] = ()
    """names of the modules of `model` that stage indices refer to, in order; empty: its children"""
    token_layout: tokens.TokenLayout | None = None
    """layout of the token lists [B, N, C] inside the model; None: it has none, or it is unknown"""
    channels_last: bool | None = None
    """whether maps inside the model are [B, h, w, C]; None: unknown. Used where a map's aspect ratio is ambiguous"""
    weights_entry: str | None = None
    """the entry of the weights file that was loaded; None: no file, or the file itself"""
    weights_notes: tuple[str, ...] = ()
    """how a weights file was read"""
    padded_inside: tuple[int, int] | None = None
    """(height, width) to which the model pads images at the bottom and right; None: it does not pad"""
    statistics_adapted: bool = False
    """whether mean and std of other channels were made of those of three"""

    def __post_init__(self) -> None:
        # Of other channels the values may be used as they are (`--value-range 0,1`), with statistics of any size.
        if self.preprocessing.channels is None and is_for_bytes(self.mean, self.std):
            raise errors.InputError(
                f"the model's mean {list(self.mean)} and std {list(self.std)} are for pixels from 0 to 255, but images "
                "are in [0, 1]: divide both by 255 (for a model that takes 0 to 255: mean 0, std 0.00392157)"
            )


def is_for_bytes(mean: PerChannel, std: PerChannel) -> bool:
    """Return whether mean or std are for pixels from 0 to 255, which would make images in [0, 1] almost constant."""
    return max(map(abs, mean)) > _MAX_UNIT_STATISTIC or max(std) > _MAX_UNIT_STATISTIC


class EncoderModule(nn.Module):
    """Encoder of float32 [B, C, H, W] in [0, 1] to a tuple of contiguous tensors, one per slot; normalises inside.

    The images are RGB unless the model takes other channels.

    A slot is a feature map [B, C, h, w], a vector [B, C] (a class token) or a list [B, N, C] (register tokens).
    """

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, trunk: nn.Module, *, mean: PerChannel, std: PerChannel) -> None:
        super().__init__()
        self.trunk = trunk
        self.slot_names: tuple[str, ...] | None = None
        """Slots in output order, set after the dry run; None: in the trunk's order."""
        self.normalizes = set(mean) != {0.0} or set(std) != {1.0}
        self.channels = len(mean)
        # Not persistent, so that the state dict and its digest cover only the trunk.
        self.register_buffer("mean", torch.tensor(mean).reshape(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).reshape(1, -1, 1, 1), persistent=False)

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Return one tensor per slot, in the order of `slot_names` whatever the order of the trunk's outputs.

        Raises:
            EncoderError: the trunk returns other slots than in the dry run.
        """
        outputs = self.slots(images)
        names = self.slot_names or tuple(outputs)
        if outputs.keys() != set(names):
            raise errors.EncoderError(
                f"the model returned the outputs {', '.join(sorted(outputs))}, but {', '.join(sorted(names))} in the "
                "dry run: it must return the same ones for all images"
            )
        return tuple(outputs[name].contiguous() for name in names)

    def slots(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return the trunk's outputs by slot name.

        Raises:
            EncoderError: the output is not a tensor or a tuple, list or dict of tensors.
        """
        if self.normalizes:
            images = (images - self.mean) / self.std
        return named_outputs(self.trunk(images))


def from_parts(parts: Parts) -> EncoderModule:
    """Return the trunk of `parts` as an `EncoderModule`: evaluation mode, float32, CPU, no gradients."""
    return EncoderModule(parts.trunk, mean=parts.mean, std=parts.std).float().cpu().eval().requires_grad_(False)


def dry_run(module: EncoderModule, *, name: str, height: int, width: int) -> tuple[spec.SlotSpec, ...]:
    """Describe the output slots for two images, on fake tensors if the model's code allows it.

    Raises:
        InputError: the model does not accept this size, or returns anything but maps, vectors or lists of vectors.
    """
    try:
        outputs = fake_run.observe(module, EncoderModule.slots, batch=2, size=(height, width), channels=module.channels)
    except (RuntimeError, AssertionError, ValueError, TypeError, IndexError) as error:
        raise errors.InputError(
            f"model {name!r} cannot encode images of {height} x {width} pixels: {errors.reason(error)}. "
            "Give another --image-size, or a model that accepts this one."
        ) from error
    except errors.EncoderError as error:
        raise errors.InputError(f"model {name!r} is not an encoder: {error}") from error
    return tuple(_slot(slot, tensor, name) for slot, tensor in outputs.items())


def named_outputs(value: object) -> dict[str, torch.Tensor]:
    """Map a model's output to slots: `features`, or `features_0` onward for a sequence, or the keys of a dict.

    Raises:
        EncoderError: the output is not a tensor or a tuple, list or dict of tensors.
    """
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
    if tensor.is_nested or tensor.layout != torch.strided:
        raise errors.InputError(
            f"model {name!r} is not an encoder: output {slot!r} is a nested or sparse tensor; it must be dense."
        )
    shape = tuple(tensor.shape)
    if len(shape) not in _DESCRIPTIONS or shape[0] != 2 or min(shape) < 1 or tensor.dtype != torch.float32:
        raise errors.InputError(
            f"model {name!r} is not an encoder: output {slot!r} for 2 images is {tensor.dtype} {list(shape)}, but must "
            "be float32: feature maps [2, C, h, w], vectors [2, C], or lists of vectors [2, N, C] in a dict."
        )
    if len(shape) == 3 and _UNNAMED.match(slot):
        raise errors.InputError(
            f"model {name!r} returns tokens {list(shape)} without declaring their grid. Return a map, or declare "
            "num_prefix_tokens and patch_size in the model."
        )
    return spec.SlotSpec(
        name=slot,
        shape=shape[1:],
        description=_TOKENS.get((len(shape), slot.rpartition(".")[2]), _DESCRIPTIONS[len(shape)]),
        recommended_decoder="TensorToFeatureVector",
    )


_UNNAMED = re.compile(rf"{tokens.FEATURES}(_\d+)?\Z")
_DESCRIPTIONS = {4: "feature map: channels, height, width", 3: "tokens: tokens, channels", 2: "vector: channels"}
_TOKENS = {
    (2, "cls"): "class token: channels",
    (2, "dist"): "distillation token: channels",
    (3, "register"): "register tokens: tokens, channels",
    (3, "prefix"): "tokens before the patches: tokens, channels",
}
