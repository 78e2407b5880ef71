"""The decoders of mmsegmentation, known by name so that their absence is said in words."""

import inspect
from collections.abc import Iterator
from typing import Any

from torch import nn

from genenc_core import errors


class MmsegDecoders:
    """The prefix `mmseg`, recognised so that its absence is said in words."""

    def build(self, name: str, *_: Any, **__: Any) -> nn.Module:
        """Refuse.

        Raises:
            InputError: always.
        """
        raise errors.InputError(_no_mmseg(name))

    def signature(self, name: str) -> inspect.Signature:
        """Refuse.

        Raises:
            InputError: always.
        """
        raise errors.InputError(_no_mmseg(name))

    def includes_head(self, name: str) -> bool:
        """Refuse.

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
        f"decoder {name!r} is mmsegmentation's, which genenc does not bring, so its decoders are "
        "not offered. UperNetDecoder is its UPerHead, ASPPSegmentationHead its ASPPHead, FCNDecoder comes near its "
        f"FCNHead."
    )
