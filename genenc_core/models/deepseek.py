"""The first stage of DeepSeek-OCR's DeepEncoder: SAM's ViT-B with two strided convolutions that compress its map."""

from collections.abc import Mapping

import torch
from torch import nn

from genenc_core import errors, spec
from genenc_core.models import sam
from genenc_core.models.encoder import Parts
from genenc_core.models.weights import WeightsChoice, construction_rng, load_state, read_state

CHANNELS = 1024

# The reference pads with int(0.5 * 255).
PAD_VALUE = (127, 127, 127)

LARGEST_STRETCHED = 640


def build(name: str, choice: WeightsChoice, image_size: tuple[int, int] | None) -> Parts:
    """Build the SAM stage: [B, 3, H, W] -> `features` [B, 1024, h, w], h = ceil(ceil((H / 16) / 2) / 2), w alike.

    DeepSeek-OCR's sizes are 512, 640, 1024 and 1280; any other multiple of 16, square or not, works as in SAM. Up to
    640 pixels images are stretched, larger ones padded to the centre with grey, as its modes have it. The tokens of
    the original are this map read row by row: `features.flatten(2).permute(0, 2, 1)`.

    Weights are a file: DeepSeek-OCR's safetensors file, of which only this stage is read, Vary's or GOT's checkpoint,
    or this stage's own state dict. The last convolution is as wide as in the file (DeepSeek-OCR-2: 896 channels).

    Raises:
        InputError: timm is absent, a side that is no multiple of 16, `pretrained`, or weights that do not fit.
    """
    height, width = sam.checked_size(name, image_size)
    if choice.kind == "pretrained":
        raise errors.InputError(
            f"{name!r} is not downloaded: its weights are a part of DeepSeek-OCR's file of several gigabytes. Download "
            "the .safetensors file of deepseek-ai/DeepSeek-OCR and give it with --weights FILE (only this part is "
            "read), or use random weights with --weights random:0."
        )
    state = None if choice.path is None else read_state(choice, sam.checkpoint_names)
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
        preprocessing=_preprocessing(height, width),
        mean=(0.5, 0.5, 0.5),
        std=(0.5, 0.5, 0.5),
        stages=(*sam.block_names(model), "neck", "net_2", "net_3"),
    )


def compress(model: nn.Module, channels: int) -> None:
    """Add to SAM's encoder the convolutions behind its neck, under the names of DeepSeek's checkpoint."""
    model.net_2 = nn.Conv2d(256, 512, 3, stride=2, padding=1, bias=False)
    model.net_3 = nn.Conv2d(512, channels, 3, stride=2, padding=1, bias=False)


class DeepSeekTrunk(nn.Module):
    """SAM's map, halved twice; nothing stands between the convolutions."""

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


def _preprocessing(height: int, width: int) -> spec.Preprocessing:
    """Return the reference's own: Pillow's bicubic, plain for small sizes and padded to the centre for large ones."""
    fit: spec.Fit = "stretch" if max(height, width) <= LARGEST_STRETCHED else "pad"
    # The grey counts for small sizes too, where a user asks for bars.
    return spec.Preprocessing(
        height=height, width=width, fit=fit, pad_position="center", pad_value=PAD_VALUE, interpolation="bicubic"
    )
