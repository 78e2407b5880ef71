"""Multi-scale encoders: Darknet-53 backbones, optionally with a feature pyramid; one slot per scale."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torchvision import ops

from genenc_core import errors, spec
from genenc_core.models.encoder_module import Parts
from genenc_core.models.weights import WeightsChoice, construction_rng, load_file
from genenc_core.models.zoo import timm_create

SLOTS = ("p3", "p4", "p5")
CHANNELS = (256, 512, 1024)
PYRAMID_CHANNELS = 256
NATIVE = (416, 416)

# YOLO's letterbox uses grey 0.5, which lies between two byte values.
LETTERBOX_VALUE = (128, 128, 128)

_MAPS: Mapping[str, str] = {"darknet53_maps": "darknet53", "cspdarknet53_maps": "cspdarknet53"}
_PYRAMIDS: Mapping[str, str] = {"darknet53_fpn": "darknet53", "cspdarknet53_fpn": "cspdarknet53"}
MAPS, PYRAMIDS = tuple(_MAPS), tuple(_PYRAMIDS)


def build_maps(name: str, choice: WeightsChoice, image_size: tuple[int, int] | None) -> Parts:
    """Build a YOLO backbone: [B, 3, H, W] -> `p3` [B, 256, H/8, W/8], `p4` with 512 at /16, `p5` with 1024 at /32.

    For sides that are not multiples of 32 map sizes are rounded up. Weights are timm's ImageNet classifiers or a file
    with the same names; mean, standard deviation and interpolation are theirs, the letterbox is YOLO's.

    Raises:
        InputError: timm is not installed, or the weights do not fit.
    """
    with construction_rng(choice):
        model = timm_create.create(_MAPS[name], choice, name=name, options={})
    return _parts(_Stages(model), model, _MAPS[name], choice, image_size, prefix="")


def build_pyramid(name: str, choice: WeightsChoice, image_size: tuple[int, int] | None) -> Parts:
    """Build a backbone with a feature pyramid (FPN, arXiv 1612.03144): slots as `build_maps`, 256 channels each.

    A weights file holds `backbone.*` (timm's names) and `pyramid.*` (torchvision's `FeaturePyramidNetwork`).

    Raises:
        InputError: timm is not installed, `pretrained` (not published for this neck), or the weights do not fit.
    """
    if choice.kind == "pretrained":
        raise errors.InputError(
            f"there are no pretrained weights for {name!r}: its pyramid is trained for a task. Give a state dict with "
            f"--weights FILE, try the rest with --weights random:0, or use {_PYRAMIDS[name]}_maps, which has "
            "pretrained weights."
        )
    with construction_rng(choice):
        model = _Pyramid(timm_create.create(_PYRAMIDS[name], choice, name=name, options={}))
    return _parts(model, model, _PYRAMIDS[name], choice, image_size, prefix="backbone.")


class _Stages(nn.Module):
    """The last three stages of a timm CspNet."""

    def __init__(self, backbone: Any) -> None:
        super().__init__()
        self.stem, self.stages = backbone.stem, backbone.stages

    def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return the maps by slot, finest first."""
        maps, outputs = self.stem(images), []
        for stage in self.stages:
            maps = stage(maps)
            outputs.append(maps)
        return dict(zip(SLOTS, outputs[-len(SLOTS) :], strict=True))


class _Pyramid(nn.Module):
    """The stages merged from coarse to fine by a feature pyramid."""

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = _Stages(backbone)
        self.pyramid = ops.FeaturePyramidNetwork(list(CHANNELS), PYRAMID_CHANNELS)

    def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return the maps by slot, finest first."""
        return dict(self.pyramid(self.backbone(images)))


def _parts(
    trunk: nn.Module,
    model: nn.Module,
    architecture: str,
    choice: WeightsChoice,
    image_size: tuple[int, int] | None,
    *,
    prefix: str,
) -> Parts:
    model.eval().requires_grad_(False)
    trunk.eval()
    if choice.path is not None:
        load_file(choice, model=model, trunk=trunk)
    trained = timm_create.configuration(architecture)
    height, width = image_size or NATIVE
    return Parts(
        model=model,
        trunk=trunk,
        preprocessing=spec.Preprocessing(
            height=height,
            width=width,
            fit="pad",
            pad_position="center",
            pad_value=LETTERBOX_VALUE,
            interpolation="bicubic" if trained["interpolation"] == "bicubic" else "bilinear",
        ),
        mean=trained["mean"],
        std=trained["std"],
        stages=tuple(f"{prefix}stages.{index}" for index in range(5)),
    )
