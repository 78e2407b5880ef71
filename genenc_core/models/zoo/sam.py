"""Image encoders of Segment Anything (ViT-B, -L and -H with their neck), built from timm to match SAM."""

import re
from collections.abc import Mapping, Sequence
from functools import partial

import torch
from torch import nn

from genenc_core import errors, spec
from genenc_core.models import state_files
from genenc_core.models.encoder_module import Parts
from genenc_core.models.weights import WeightsChoice, construction_rng, load_state, read_state
from genenc_core.models.zoo import timm_create

ARCHITECTURES: Mapping[str, str] = {
    "samvit_base": "samvit_base_patch16",
    "samvit_large": "samvit_large_patch16",
    "samvit_huge": "samvit_huge_patch16",
}
PATCH = 16
NATIVE = (1024, 1024)

# SAM's (123.675, 116.28, 103.53) and (58.395, 57.12, 57.375), divided by 255.
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)

# SAM pads with 0 after normalisation, which is its mean colour. Images are bytes, so the colour is rounded here and the
# trunk restores the 0.
PAD_VALUE = (124, 116, 104)

_OWN_FILES = r"sam_vit_[blh]_[0-9a-f]{6}\.pth"
_PREPARED = (
    "images are prepared as for Segment Anything: the long side resized, bars below or to the right, its mean and "
    "std. If the weights were trained on images prepared in another way (MedSAM stretches them, and scales each to its "
    "own range), wrap the model in a factory that declares it"
)
# Only SAM's blocks have these tensors, so the text before the name is the encoder's prefix in a larger checkpoint.
_ANCHORS = ("blocks.0.attn.rel_pos_h", "blocks.1.attn.rel_pos_h")


def build(name: str, choice: WeightsChoice, image_size: tuple[int, int] | None) -> Parts:
    """Build `samvit_base`, `samvit_large` or `samvit_huge`: [B, 3, H, W] -> `features` [B, 256, H/16, W/16].

    For sizes other than 1024 x 1024, square or not, position embeddings are interpolated (absolute: bicubic,
    antialiased; relative: linear). Weights are timm's, or a file: a Segment Anything checkpoint, of which only the
    image encoder is read, or a state dict of timm's model.

    Raises:
        InputError: timm is not installed, a side is not a multiple of 16, or the weights do not fit.
    """
    height, width = checked_size(name, image_size)
    with construction_rng(choice):
        model = construct(ARCHITECTURES[name], choice, name=name)
    model.eval().requires_grad_(False)
    trunk = SamTrunk(model)
    if choice.path is not None:
        load_state(read_state(choice, checkpoint_names), choice, model=model, trunk=trunk)
        if not re.fullmatch(_OWN_FILES, choice.path.name):
            state_files.warn_of(choice.path, _PREPARED)
    preprocessing = spec.Preprocessing(
        height=height, width=width, fit="pad", pad_position="corner", pad_value=PAD_VALUE, interpolation="bilinear"
    )
    return Parts(
        model=model, trunk=trunk, preprocessing=preprocessing, mean=MEAN, std=STD, stages=block_names(trunk.model)
    )


class SamTrunk(nn.Module):
    """timm's model up to its neck, with padding set to exactly 0 as in Segment Anything.

    Rounding the pad colour to bytes leaves up to 0.0082, which layer normalisation amplifies in uniform areas. Image
    pixels of exactly that colour are set to 0 too, a change of less than half a grey level.
    """

    bar: torch.Tensor

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        colour = [(value / 255 - mean) / std for value, mean, std in zip(PAD_VALUE, MEAN, STD, strict=True)]
        self.register_buffer("bar", torch.tensor(colour).reshape(1, 3, 1, 1), persistent=False)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return [B, 256, H/16, W/16] for normalised images [B, 3, H, W]."""
        # One grey level is 0.017.
        images = images.masked_fill((images - self.bar).abs().amax(1, keepdim=True) < 1e-3, 0.0)
        return self.model.forward_features(images)  # type: ignore[operator, no-any-return]


def construct(architecture: str, choice: WeightsChoice, *, name: str) -> nn.Module:
    """Create timm's model with SAM's epsilon of 1e-6 in every LayerNorm; timm uses 1e-5 outside the neck."""
    return timm_create.create(architecture, choice, name=name, options={"norm_layer": partial(nn.LayerNorm, eps=1e-6)})


def checked_size(name: str, image_size: tuple[int, int] | None) -> tuple[int, int]:
    """Return the input size (height, width), by default 1024 x 1024.

    Raises:
        InputError: a side is not a multiple of 16.
    """
    height, width = image_size or NATIVE
    if height % PATCH or width % PATCH:
        near = "x".join(str(max(round(side / PATCH), 1) * PATCH) for side in (height, width))
        raise errors.InputError(
            f"{name!r} does not accept {height} x {width} pixels: its patches have {PATCH} pixels, so each side must "
            f"be a multiple of {PATCH}. Give, for example, --image-size {near}."
        )
    return height, width


def block_names(model: nn.Module) -> tuple[str, ...]:
    """Return the names of the transformer blocks, used as stages."""
    blocks = model.get_submodule("blocks")
    return tuple(f"blocks.{name}" for name, _ in blocks.named_children())


def checkpoint_names(names: Sequence[str]) -> Mapping[str, str]:
    """Map the encoder's names in a checkpoint to timm's; other entries of a larger model are omitted.

    The encoder's prefix is detected: `image_encoder.` (Segment Anything), `model.sam_model.` (DeepSeek-OCR),
    `...vision_tower_high...` (Vary, GOT), or none. `mlp.lin1` becomes timm's `mlp.fc1`.

    Raises:
        InputError: the checkpoint holds several such encoders.
    """
    candidates = [{name.removesuffix(anchor) for name in names if name.endswith(anchor)} for anchor in _ANCHORS]
    prefixes = next((item for item in candidates if item), {""})
    if len(prefixes) > 1:
        raise errors.InputError(
            f"the weights hold several SAM encoders, under {', '.join(map(repr, sorted(prefixes)))}: save the one to "
            "use in a separate file."
        )
    (prefix,) = prefixes
    return {name: name.removeprefix(prefix).replace("mlp.lin", "mlp.fc") for name in names if name.startswith(prefix)}
