"""Creation of timm models for built-in encoders, with clear errors when it fails."""

from collections.abc import Mapping
from typing import Any

from torch import nn

from genenc_core import errors
from genenc_core.models.weights import WeightsChoice


def create(architecture: str, choice: WeightsChoice, *, name: str, options: Mapping[str, Any]) -> nn.Module:
    """Create timm's `architecture` without classifier for the encoder `name`; downloads weights for `pretrained`.

    Raises:
        InputError: timm is not installed, the tag is unknown, or the download failed.
    """
    try:
        import timm
    except ImportError as error:
        raise errors.InputError(
            f"model {name!r} needs timm, which is not installed: pip install 'genenc[timm]'."
        ) from error
    full_name = f"{architecture}.{choice.tag}" if choice.tag else architecture
    if choice.tag and not timm.models.is_model_pretrained(full_name):
        known = ", ".join(tag.partition(".")[2] for tag in timm.list_pretrained(f"{architecture}.*"))
        raise errors.InputError(f"there are no weights {choice.tag!r} for {name!r}. Available: {known or 'none'}.")
    try:
        model: nn.Module = timm.create_model(
            full_name, pretrained=choice.kind == "pretrained", num_classes=0, **options
        )
    except (OSError, RuntimeError, ValueError) as error:
        raise errors.InputError(
            f"cannot get the pretrained weights of {name!r}: {errors.reason(error)}. Connect to the network, give a "
            "downloaded file with --weights FILE, or try the rest with --weights random:0, whose features mean nothing."
        ) from error
    return model


def configuration(architecture: str) -> Mapping[str, Any]:
    """Return the pretrained configuration of `architecture` in timm: `mean`, `std`, `interpolation`."""
    import timm

    config = timm.models.get_pretrained_cfg(architecture)
    assert config is not None  # every architecture used here has one
    values: Mapping[str, Any] = config.to_dict()  # type: ignore[no-untyped-call]
    return values
