"""The module every encoder becomes: normalisation, then its slots as a tuple; and the dry run that measures it."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from genenc_core import errors, spec
from genenc_core.models import probing, tokens, wording

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
    token_layout: tokens.TokenLayout | None = None
    """how the token lists [B, N, C] inside the model lie; None: it has none, or does not tell"""
    channels_last: bool | None = None
    """whether maps inside the model are [B, h, w, C]; None: it does not tell. Asked where a map's sides do not say"""
    weights_entry: str | None = None
    """the entry of a weights file that was taken; None: no file, or the file itself"""
    weights_notes: tuple[str, ...] = ()
    """how a weights file was read"""
    padded_inside: tuple[int, int] | None = None
    """(height, width) to which the model itself pads its images at the bottom and right; None: it does not"""


class EncoderModule(nn.Module):
    """float32 RGB [B, 3, H, W] in [0, 1] -> tuple of contiguous tensors, one per slot; normalisation inside.

    A slot is a feature map [B, C, h, w], a vector [B, C] (a class token) or a list [B, N, C] (register tokens).
    """

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, trunk: nn.Module, *, mean: Triple, std: Triple) -> None:
        super().__init__()
        self.trunk = trunk
        self.slot_names: tuple[str, ...] | None = None
        """The slots in the order in which they are given; None: as the trunk gives them, before it was looked at."""
        self.normalizes = mean != (0.0, 0.0, 0.0) or std != (1.0, 1.0, 1.0)
        # Not persistent: the state dict, and with it the digest of the weights, is the trunk's alone.
        self.register_buffer("mean", torch.tensor(mean).reshape(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).reshape(1, 3, 1, 1), persistent=False)

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Return one tensor per output slot, each in its own place whatever the order in which the trunk gives them.

        Raises:
            EncoderError: the trunk gives other slots than when it was looked at.
        """
        found = self.slots(images)
        names = self.slot_names or tuple(found)
        if found.keys() != set(names):
            raise errors.EncoderError(
                f"the model gave the outputs {', '.join(sorted(found))}, and {', '.join(sorted(names))} when it was "
                "looked at: it must give the same ones for all images"
            )
        return tuple(found[name].contiguous() for name in names)

    def slots(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return the trunk's output by slot name.

        Raises:
            EncoderError: it is no tensor, and no tuple, list or dict of them.
        """
        if self.normalizes:
            images = (images - self.mean) / self.std
        return named_outputs(self.trunk(images))


def finished(parts: Parts) -> EncoderModule:
    """Return the trunk of `parts` as an `EncoderModule`: evaluation mode, float32, CPU, no gradients."""
    return EncoderModule(parts.trunk, mean=parts.mean, std=parts.std).float().cpu().eval().requires_grad_(False)


def dry_run(module: EncoderModule, *, name: str, height: int, width: int) -> tuple[spec.SlotSpec, ...]:
    """Describe the output slots for two images, worked out without numbers where the model's code allows it.

    Raises:
        InputError: the model cannot take this size, or gives something else than maps, vectors or lists of vectors.
    """
    try:
        outputs = probing.observe(module, EncoderModule.slots, batch=2, size=(height, width))
    except (RuntimeError, AssertionError, ValueError, TypeError, IndexError) as error:
        raise errors.InputError(
            f"model {name!r} cannot encode images of {height} x {width} pixels: {wording.reason(error)}. "
            "Give another --image-size, or a model that takes this one."
        ) from error
    except errors.EncoderError as error:
        raise errors.InputError(f"model {name!r} is not an encoder: {error}") from error
    return tuple(_slot(slot, tensor, name) for slot, tensor in outputs.items())


def named_outputs(value: object) -> dict[str, torch.Tensor]:
    """Return what a model returns as slot name -> tensor: `features`, or `features_0` onward, or its own names.

    Raises:
        EncoderError: it is no tensor, and no tuple, list or dict of them.
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
            f"model {name!r} is not an encoder: output {slot!r} of 2 images is {tensor.dtype} {list(shape)}, but must "
            "be float32: feature maps [2, C, h, w], vectors [2, C], or lists of vectors [2, N, C] in a dict."
        )
    if len(shape) == 3 and _UNNAMED.match(slot):
        raise errors.InputError(
            f"model {name!r} gives tokens {list(shape)} and does not state their grid. Put them on it, "
            "or let the model declare num_prefix_tokens and patch_size."
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
