"""Transformers of few blocks: how their tokens become maps does not depend on how many blocks there are.

A pass of fake tensors costs as much for every block. `tests/core/models/test_shapes.py` looks at models of full depth.
"""

from typing import Any

import pytest
import timm
from timm.models import mlp_mixer, volo
from torchvision.models import swin_transformer, vision_transformer

DEPTH = 3
_DEPTH = {"depth": DEPTH}
TIMM: dict[str, dict[str, Any]] = {
    "vit_tiny_patch16_224": _DEPTH,
    "deit_tiny_distilled_patch16_224": _DEPTH,
    "beit_base_patch16_224": _DEPTH,
    "eva02_tiny_patch14_224": _DEPTH,
    "vit_small_patch14_reg4_dinov2": {"depth": 5},
    "vit_small_patch16_dinov3": _DEPTH,
    "vit_little_patch16_reg1_gap_256": _DEPTH,
    "flexivit_small": _DEPTH,
    "cait_xxs24_224": _DEPTH,
    "convit_tiny": {"depth": 3, "local_up_to_layer": 2},
    "tnt_s_legacy_patch16_224": _DEPTH,
    "vit_relpos_small_patch16_224": _DEPTH,
    "swin_tiny_patch4_window7_224": {"depths": (2, 2, 2, 2)},
    "swinv2_tiny_window8_256": {"depths": (2, 2, 2, 2)},
    "samvit_base_patch16_224": {"depth": 3, "global_attn_indexes": (2,)},
    "xcit_nano_12_p16_224": _DEPTH,
}
"""What makes an architecture of timm shallow; others stay as they are."""
FAMILIES: tuple[tuple[Any, str, dict[str, Any]], ...] = (
    (volo, "_create_volo", {"layers": (1, 1, 1, 1)}),
    (mlp_mixer, "_create_mixer", {"num_blocks": DEPTH}),
)
"""The same for those that take no other number of blocks."""


def make(patch: pytest.MonkeyPatch) -> None:
    """Let timm and torchvision build their transformers with few blocks."""
    create, swin, vit = timm.create_model, swin_transformer._swin_transformer, vision_transformer._vision_transformer

    def created(name: str, **options: Any) -> Any:
        return create(name, **{**TIMM.get(name.removeprefix("timm/").partition(".")[0], {}), **options})

    def few(own: Any, shallow: dict[str, Any]) -> Any:
        return lambda *names, **given: own(*names, **{**given, **shallow})

    patch.setattr(timm, "create_model", created)
    for module, name, shallow in FAMILIES:
        patch.setattr(module, name, few(getattr(module, name), shallow))
    patch.setattr(swin_transformer, "_swin_transformer", few(swin, {"depths": [2, 2, 2, 2]}))
    patch.setattr(vision_transformer, "_vision_transformer", few(vit, {"num_layers": DEPTH}))
