"""Decoders from segmentation_models_pytorch, and the names of those from mmsegmentation."""

import importlib
import inspect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from genenc_core import errors

_NORM = {"decoder_use_norm": "use_norm"}
_BLOCKS = {**_NORM, "decoder_channels": "decoder_channels", "decoder_interpolation": "interpolation_mode"}
_ATTENTION = {**_BLOCKS, "decoder_attention_type": "attention_type"}
_ATROUS = {
    "decoder_channels": "out_channels",
    "decoder_atrous_rates": "atrous_rates",
    "decoder_aspp_separable": "aspp_separable",
    "decoder_aspp_dropout": "aspp_dropout",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Entry:
    """One decoder class: its import path, the model's argument names -> its own, and the model's defaults."""

    place: str
    names: dict[str, str]
    width: Callable[[dict[str, Any]], int]
    """output channels, given the model's arguments"""
    defaults: dict[str, Any] = field(default_factory=dict)
    depth: str | None = None
    """its argument for the number of stages, which is one less than the number of features"""
    last_only: bool = False
    """whether it takes the channels of the last feature only"""


_ENTRIES = {
    "Unet": _Entry(
        place="unet.decoder:UnetDecoder",
        names=_ATTENTION,
        depth="n_blocks",
        defaults={"decoder_channels": (256, 128, 64, 32, 16)},
        width=lambda options: options["decoder_channels"][-1],
    ),
    "UnetPlusPlus": _Entry(
        place="unetplusplus.decoder:UnetPlusPlusDecoder",
        names=_ATTENTION,
        depth="n_blocks",
        defaults={"decoder_channels": (256, 128, 64, 32, 16)},
        width=lambda options: options["decoder_channels"][-1],
    ),
    "MAnet": _Entry(
        place="manet.decoder:MAnetDecoder",
        names={**_BLOCKS, "decoder_pab_channels": "pab_channels"},
        depth="n_blocks",
        defaults={"decoder_channels": (256, 128, 64, 32, 16)},
        width=lambda options: options["decoder_channels"][-1],
    ),
    "Linknet": _Entry(
        place="linknet.decoder:LinknetDecoder",
        names=_NORM,
        depth="n_blocks",
        width=lambda _: 32,
    ),
    "FPN": _Entry(
        place="fpn.decoder:FPNDecoder",
        names={
            "decoder_pyramid_channels": "pyramid_channels",
            "decoder_segmentation_channels": "segmentation_channels",
            "decoder_merge_policy": "merge_policy",
            "decoder_dropout": "dropout",
            "decoder_interpolation": "interpolation_mode",
        },
        depth="encoder_depth",
        defaults={"decoder_segmentation_channels": 128, "decoder_merge_policy": "add"},
        width=lambda options: (
            options["decoder_segmentation_channels"] * (4 if options["decoder_merge_policy"] == "cat" else 1)
        ),
    ),
    "PSPNet": _Entry(
        place="pspnet.decoder:PSPDecoder",
        names={**_NORM, "psp_out_channels": "out_channels", "psp_dropout": "dropout"},
        defaults={"psp_out_channels": 512},
        width=lambda options: options["psp_out_channels"],
    ),
    "DeepLabV3": _Entry(
        place="deeplabv3.decoder:DeepLabV3Decoder",
        names=_ATROUS,
        last_only=True,
        defaults={
            "decoder_channels": 256,
            "decoder_atrous_rates": (12, 24, 36),
            "decoder_aspp_separable": False,
            "decoder_aspp_dropout": 0.5,
        },
        width=lambda options: options["decoder_channels"],
    ),
    "DeepLabV3Plus": _Entry(
        place="deeplabv3.decoder:DeepLabV3PlusDecoder",
        names={**_ATROUS, "encoder_output_stride": "output_stride"},
        depth="encoder_depth",
        defaults={
            "decoder_channels": 256,
            "decoder_atrous_rates": (12, 24, 36),
            "decoder_aspp_separable": True,
            "decoder_aspp_dropout": 0.5,
            "encoder_output_stride": 16,
        },
        width=lambda options: options["decoder_channels"],
    ),
    "PAN": _Entry(
        place="pan.decoder:PANDecoder",
        names={"decoder_channels": "decoder_channels", "decoder_interpolation": "interpolation_mode"},
        depth="encoder_depth",
        defaults={"decoder_channels": 32},
        width=lambda options: options["decoder_channels"],
    ),
    "UPerNet": _Entry(
        place="upernet.decoder:UPerNetDecoder",
        names={**_NORM, "decoder_channels": "decoder_channels"},
        depth="encoder_depth",
        defaults={"decoder_channels": 256},
        width=lambda options: options["decoder_channels"],
    ),
    "Segformer": _Entry(
        place="segformer.decoder:SegformerDecoder",
        names={"decoder_segmentation_channels": "segmentation_channels"},
        depth="encoder_depth",
        defaults={"decoder_segmentation_channels": 256},
        width=lambda options: options["decoder_segmentation_channels"],
    ),
}


def _fpn_width(channels: int, policy: str) -> int:
    """Return the channels of the four levels of smp's FPN, added or concatenated."""
    return 4 * channels if policy == "cat" else channels


class SmpDecoder(nn.Module):
    """A decoder from segmentation_models_pytorch with `out_channels`."""

    def __init__(self, decoder: nn.Module, out_channels: int, *, name: str) -> None:
        super().__init__()
        self._smp_decoder = decoder
        self.out_channels = out_channels
        self.name = name

    def forward(self, features: list[torch.Tensor]) -> torch.Tensor:
        """Return the decoded map.

        Raises:
            EncoderError: the sizes of the features do not halve from one to the next as this decoder expects.
        """
        try:
            decoded: torch.Tensor = self._smp_decoder(features)
        except RuntimeError as error:
            shapes = [list(feature.shape[1:]) for feature in features]
            raise errors.EncoderError(
                f"smp_{self.name} cannot decode features of the shapes {shapes}: {errors.reason(error)}. It expects "
                "the first at the image's size and each next half as large: add the necks InterpolateToPyramidal and "
                "AddBottleneckLayer."
            ) from error
        return decoded


class SmpDecoders:
    """The source `smp`; its names are known even if segmentation_models_pytorch is not installed."""

    def build(self, name: str, channel_list: Sequence[int], /, **kwargs: Any) -> nn.Module:
        """Build the decoder of the model `name` for features with these channels.

        Raises:
            InputError: the package is not installed, or rejects the arguments.
        """
        entry = _ENTRIES[name]
        options = {**entry.defaults, **kwargs}
        own = {entry.names[key]: value for key, value in options.items()}
        if entry.depth is not None:
            own[entry.depth] = len(channel_list) - 1
        first: Any = channel_list[-1] if entry.last_only else list(channel_list)
        try:
            decoder = _class(entry.place)(first, **own)
        except (ValueError, TypeError, KeyError, IndexError) as error:
            raise errors.InputError(
                f"decoder smp_{name} cannot be built for features with {list(channel_list)} channels and "
                f"{kwargs or 'its defaults'}: {errors.reason(error)}."
            ) from error
        return SmpDecoder(decoder, entry.width(options), name=name)

    def signature(self, name: str) -> inspect.Signature:
        """Return the arguments of `build`."""
        entry = _ENTRIES[name]
        first = inspect.Parameter("channel_list", inspect.Parameter.POSITIONAL_OR_KEYWORD)
        others = [inspect.Parameter(key, inspect.Parameter.KEYWORD_ONLY, default=None) for key in entry.names]
        return inspect.Signature([first, *others])

    def includes_head(self, name: str) -> bool:  # noqa: ARG002
        """Return False, since a head follows."""
        return False

    def __contains__(self, name: object) -> bool:
        return name in _ENTRIES

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(_ENTRIES))

    def __len__(self) -> int:
        return len(_ENTRIES)


def _class(place: str) -> Any:
    module, _, name = place.partition(":")
    try:
        return getattr(importlib.import_module(f"segmentation_models_pytorch.decoders.{module}"), name)
    except ImportError as error:
        raise errors.InputError(
            "smp_ decoders need segmentation_models_pytorch, which cannot be imported "
            f"({errors.reason(error)}): pip install 'genenc[smp]'."
        ) from error


class MmsegDecoders:
    """The prefix `mmseg`, known only to report that it is not supported."""

    def build(self, name: str, *_: Any, **__: Any) -> nn.Module:
        """Raise an error.

        Raises:
            InputError: always.
        """
        raise errors.InputError(_no_mmseg(name))

    def signature(self, name: str) -> inspect.Signature:
        """Raise an error.

        Raises:
            InputError: always.
        """
        raise errors.InputError(_no_mmseg(name))

    def includes_head(self, name: str) -> bool:
        """Raise an error.

        Raises:
            InputError: always.
        """
        raise errors.InputError(_no_mmseg(name))

    def __contains__(self, name: object) -> bool:
        return name in _MMSEG_HEADS

    def __iter__(self) -> Iterator[str]:
        return iter(())

    def __len__(self) -> int:
        return 0


_MMSEG_HEADS = (
    *("ANNHead", "APCHead", "ASPPHead", "CCHead", "DAHead", "DMHead", "DNLHead", "DPTHead", "EMAHead", "EncHead"),
    *("DepthwiseSeparableASPPHead", "DepthwiseSeparableFCNHead", "FCNHead", "FPNHead", "GCHead", "ISAHead"),
    *("LRASPPHead", "Mask2FormerHead", "MaskFormerHead", "NLHead", "OCRHead", "PSAHead", "PSPHead", "PointHead"),
    *("SETRMLAHead", "SETRUPHead", "SegformerHead", "SegmenterMaskTransformerHead", "UPerHead"),
)


def _no_mmseg(name: str) -> str:
    return (
        f"decoder {name!r} is from mmsegmentation, which genenc does not support. Use UperNetDecoder for its UPerHead, "
        "ASPPSegmentationHead for its ASPPHead, or FCNDecoder, which is similar to its FCNHead."
    )
