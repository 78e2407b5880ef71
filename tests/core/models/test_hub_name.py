"""Names of the Hugging Face hub: timm's own are resolved, for others timm's nearest names are offered."""

import pytest

from genenc_core import errors
from genenc_core.models import resolve


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
def test_hub_names_of_timm_resolve_to_its_models(name: str) -> None:
    assert resolve.resolve_name(name) == ("timm", "resnet18.a1_in1k")


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
def test_other_hub_names_offer_closest_timm_names(name: str, near: str) -> None:
    with pytest.raises(errors.InputError, match=f"The closest names are: .*{near}"):
        resolve.resolve_name(name)


@pytest.mark.slow
def test_hub_revision_is_refused() -> None:
    with pytest.raises(errors.InputError, match=r"revision 'v1\.0'.*--weights FILE"):
        resolve.resolve_name("hf-hub:timm/resnet18.a1_in1k@v1.0")


@pytest.mark.parametrize("name", ["mine.models:make", "genenc/samvit_base", "torchvision/resnet18"])
def test_names_of_other_sources_are_unaffected(name: str) -> None:
    assert resolve.resolve_name(name)[0] in ("python", "genenc", "torchvision")
