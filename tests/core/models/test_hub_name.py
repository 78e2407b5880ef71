"""Names of the Hugging Face hub: timm's own are resolved, for others timm's nearest names are offered."""

import pytest

from genenc_core import errors
from genenc_core.models import sources

pytest.importorskip("timm")


@pytest.mark.parametrize(
    "name",
    [
        "hf-hub:timm/resnet18.a1_in1k",
        "hf_hub:timm/resnet18.a1_in1k",
        "hf://timm/resnet18.a1_in1k",
        "https://huggingface.co/timm/resnet18.a1_in1k",
        "timm/resnet18.a1_in1k",
        "hf-hub:timm/resnet18.a1_in1k@main",
    ],
)
def test_timms_own_repositories_are_its_models(name: str) -> None:
    assert sources.resolve_name(name) == ("timm", "resnet18.a1_in1k")


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("facebook/dinov2-small", "vit_small_patch14_dinov2"),
        ("hf-hub:facebook/dinov2-base", "vit_base_patch14_dinov2"),
        ("openai/clip-vit-base-patch32", "vit_base_patch32_clip_224"),
        ("google/vit-base-patch16-224", "vit_base_patch16_224"),
        ("microsoft/swin-tiny-patch4-window7-224", "swin_tiny_patch4_window7_224"),
        ("facebook/convnext-tiny-224", "convnext_tiny"),
        ("dinov2", "dinov2"),
        ("clip", "clip"),
        ("hf-hub:timm/resnet18_a1", "resnet18"),
    ],
)
def test_other_names_offer_timms_nearest(name: str, near: str) -> None:
    with pytest.raises(errors.InputError, match=f"The nearest names are: .*{near}"):
        sources.resolve_name(name)


@pytest.mark.parametrize("name", ["mine.models:make", "genenc/samvit_base", "torchvision/resnet18"])
def test_other_sources_are_as_they_were(name: str) -> None:
    assert sources.resolve_name(name)[0] in ("python", "genenc", "torchvision")
