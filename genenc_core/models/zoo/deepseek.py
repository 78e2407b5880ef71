"""First stage of DeepSeek-OCR's DeepEncoder: SAM's ViT-B and two strided convolutions that compress its map."""

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import nn

from genenc_core import errors, spec
from genenc_core.models import state_files
from genenc_core.models.encoder_module import Parts
from genenc_core.models.weights import WeightsChoice, construction_rng, load_state, read_state
from genenc_core.models.zoo import sam

CHANNELS = 1024

# The reference pads with int(0.5 * 255).
PAD_VALUE = (127, 127, 127)

MAX_STRETCHED_SIDE = 640
MAX_STRETCHED_SIDE_OF_2 = 768
"""That of DeepSeek-OCR-2, which has 896 channels."""


def build(name: str, choice: WeightsChoice, image_size: tuple[int, int] | None) -> Parts:
    """Build the SAM stage: [B, 3, H, W] -> `features` [B, 1024, h, w], h = ceil(ceil((H / 16) / 2) / 2), w alike.

    DeepSeek-OCR's sizes are 512, 640, 1024 and 1280; as in SAM, any other multiple of 16 works, square or not. As in
    its modes, images are stretched for inputs up to 640 pixels, and padded with grey around the centre for larger
    ones (DeepSeek-OCR-2: up to 768). The original's tokens are this map in row-major order:
    `features.flatten(2).permute(0, 2, 1)`.

    Weights are a file: DeepSeek-OCR's safetensors file (only this stage is read), a Vary or GOT checkpoint, or this
    stage's own state dict. The file determines the width of the last convolution (DeepSeek-OCR-2: 896 channels).

    Raises:
        InputError: timm is not installed, a side is not a multiple of 16, `pretrained`, or the weights do not fit.
    """
    height, width = sam.checked_size(name, image_size)
    if choice.kind == "pretrained":
        raise errors.InputError(
            f"the weights of {name!r} are not downloaded: they are part of DeepSeek-OCR's file of several gigabytes. "
            "Download the .safetensors file of deepseek-ai/DeepSeek-OCR and give it with --weights FILE (only this "
            "part is read), or try the rest with --weights random:0, whose features mean nothing."
        )
    state = None if choice.path is None else read_state(choice, functools.partial(_checkpoint_names, choice.path))
    with construction_rng(choice):
        model = sam.construct(sam.ARCHITECTURES["samvit_base"], choice, name=name)
        compress(model, _channels(state))
    model.eval().requires_grad_(False)
    trunk = DeepSeekTrunk(model)
    if choice.path is not None and state is not None:
        load_state(state, choice, model=model, trunk=trunk)
    return Parts(
        model=model,
        trunk=trunk,
        preprocessing=_preprocessing(height, width, _channels(state)),
        mean=(0.5, 0.5, 0.5),
        std=(0.5, 0.5, 0.5),
        stages=(*sam.block_names(model), "neck", "net_2", "net_3"),
    )


def compress(model: nn.Module, channels: int) -> None:
    """Add the convolutions after the neck to SAM's encoder, named as in DeepSeek's checkpoint."""
    model.net_2 = nn.Conv2d(256, 512, 3, stride=2, padding=1, bias=False)
    model.net_3 = nn.Conv2d(512, channels, 3, stride=2, padding=1, bias=False)


class DeepSeekTrunk(nn.Module):
    """SAM's map, halved twice by convolutions without activations."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return [B, 1024, h, w] for normalised images [B, 3, H, W]."""
        maps: torch.Tensor = self.model.forward_features(images)  # type: ignore[operator]
        return self.model.net_3(self.model.net_2(maps))  # type: ignore[operator, no-any-return]


def _channels(state: Mapping[str, torch.Tensor] | None) -> int:
    last = None if state is None else state.get("net_3.weight")
    return CHANNELS if last is None or last.ndim != 4 else int(last.shape[0])


def _checkpoint_names(path: Path, names: Sequence[str]) -> Mapping[str, str]:
    """Map names as `sam.checkpoint_names`; warn of models that take images prepared in another way."""
    found = sam.checkpoint_names(names)
    if any("vision_tower_high" in name for name in found):
        state_files.warn_of(
            path,
            "the encoder of Vary or GOT-OCR2: images are prepared as for DeepSeek-OCR, but these models stretch them "
            "to 1024 x 1024 and take CLIP's mean and std; wrap the model in a factory that declares it",
        )
    return found


def _preprocessing(height: int, width: int, channels: int) -> spec.Preprocessing:
    """Return the reference preprocessing: Pillow's bicubic, stretched for small sizes, centre-padded for large ones."""
    largest = MAX_STRETCHED_SIDE if channels == CHANNELS else MAX_STRETCHED_SIDE_OF_2
    fit: spec.Fit = "stretch" if max(height, width) <= largest else "pad"
    # The pad value also applies to small sizes if the user chooses to pad.
    return spec.Preprocessing(
        height=height, width=width, fit=fit, pad_position="center", pad_value=PAD_VALUE, interpolation="bicubic"
    )
