"""Backbone, necks, decoder and head as one model: pixel-wise (segmentation, regression) or scalar (classification)."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from genenc_core import errors
from genenc_core.models.factory import features as feats


@dataclass(frozen=True, slots=True)
class ModelOutput:
    """What a task model returns: the main output, and one per auxiliary decoder."""

    output: torch.Tensor
    auxiliary_heads: dict[str, torch.Tensor] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Encoded:
    """The features of a padded image: the backbone's, and what the necks made of them."""

    backbone: list[torch.Tensor]
    necks: list[torch.Tensor]
    padded: feats.Size


class NeckSequence(nn.Sequential):
    """Necks in order; those that ask for it are told the size of the image."""

    def forward(self, features: Any, image_size: feats.Size | None = None) -> Any:
        """Return the last neck's features."""
        for neck in self:
            features = told(neck, feats.listed(features), image_size)
        return features


class TaskModel(nn.Module):
    """What both kinds of model share: padding, the chain of parts, and auxiliary decoders."""

    def __init__(
        self,
        task: str,
        encoder: nn.Module,
        decoder: nn.Module,
        head: nn.Module,
        *,
        channel_list: Sequence[int],
        patch_size: Any = None,
        padding: str = "reflect",
        neck: nn.Module | None = None,
        aux_heads: Mapping[str, nn.Module] | None = None,
    ) -> None:
        super().__init__()
        self.task = task
        self.encoder = encoder
        self.decoder = decoder
        self.head = head
        self.neck = neck
        self.aux_heads = nn.ModuleDict(dict(aux_heads or {}))
        self.channel_list = list(channel_list)
        self.patch = patch_sides(patch_size)
        self.padding = padding

    def encoded(self, images: torch.Tensor) -> Encoded:
        """Return the features of [B, C, H, W] (or [B, C, T, H, W]), padded to multiples of twice the patch size."""
        padded = self._padded(images)
        size = feats.image_size(padded)
        backbone = feats.listed(self.encoder(padded))
        necks = backbone if self.neck is None else feats.listed(self.neck(backbone, image_size=size))
        feats.check_channels(necks, self.channel_list, who="the backbone" if self.neck is None else "the last neck")
        return Encoded(backbone=backbone, necks=necks, padded=size)

    def decoded(self, found: Encoded, *, decoder: nn.Module | None = None) -> torch.Tensor:
        """Return what the decoder, or another one, makes of the features.

        Raises:
            EncoderError: something else than one tensor.
        """
        # Copies, as a decoder may work in place on what others read too.
        copies = [feature.clone() for feature in found.necks]
        decoded = told(self.decoder if decoder is None else decoder, copies, found.padded)
        if not isinstance(decoded, torch.Tensor):
            raise errors.EncoderError(f"a decoder must give one tensor; this one gave a {type(decoded).__name__}.")
        return decoded

    def auxiliary(self, found: Encoded) -> dict[str, torch.Tensor]:
        """Return what every auxiliary decoder and its head make of the features."""
        outputs = {}
        for name, pair in self.aux_heads.items():
            decoder, head = pair.children()
            outputs[name] = self.headed(self.decoded(found, decoder=decoder), head=head)
        return outputs

    def headed(self, decoded: torch.Tensor, *, head: nn.Module | None = None) -> torch.Tensor:
        """Return what the head, or another one, makes of decoded features."""
        outputs: torch.Tensor = (self.head if head is None else head)(decoded)
        return outputs

    def padded_size(self, size: feats.Size) -> feats.Size:
        """Return height and width after padding."""
        if self.patch is None:
            return size
        return _up(size[0], 2 * self.patch[-2]), _up(size[1], 2 * self.patch[-1])

    def freeze_encoder(self) -> None:
        """Take the backbone's weights out of training."""
        self.encoder.requires_grad_(False)

    def freeze_decoder(self) -> None:
        """Take the weights of decoder and head out of training."""
        self.decoder.requires_grad_(False)
        self.head.requires_grad_(False)

    def _padded(self, images: torch.Tensor) -> torch.Tensor:
        if self.patch is None:
            return images
        size = feats.image_size(images)
        right, bottom = self.padded_size(size)[1] - size[1], self.padded_size(size)[0] - size[0]
        behind = 0
        if len(self.patch) == 3 and self.patch[0] > 1:
            if images.ndim != 5:
                raise errors.InputError(
                    f"the backbone's patches span {self.patch[0]} time steps, so it takes [B, C, T, H, W], not "
                    f"{list(images.shape)}."
                )
            behind = _up(int(images.shape[2]), self.patch[0]) - int(images.shape[2])
        if not (right or bottom or behind):
            return images
        if self.padding == "reflect" and (right >= size[1] or bottom >= size[0]):
            raise errors.InputError(
                f"images of {size[0]} x {size[1]} pixels are too small to be padded by reflection to "
                f"{self.padded_size(size)}: give larger ones, or backbone_padding 'replicate' or 'constant'."
            )
        amounts = (0, right, 0, bottom) if images.ndim == 4 else (0, right, 0, bottom, 0, behind)
        return functional.pad(images, amounts, mode=self.padding)


class PixelWiseModel(TaskModel):
    """[B, C, H, W] -> ModelOutput of [B, num_classes, H, W] (segmentation) or [B, H, W] (one channel: regression).

    Images are padded at the bottom and right to a multiple of twice the patch size; the output is resized
    (bilinear) to the padded size if `rescale`, and cut to the images. Without `rescale` it keeps its own size, less
    the cells that lie in the padding altogether.
    """

    def __init__(self, *args: Any, rescale: bool = True, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.rescale = rescale

    def forward(self, images: torch.Tensor) -> ModelOutput:
        """Return the main output and the auxiliary ones.

        Raises:
            InputError: images too small to be padded, or not in the backbone's form.
            EncoderError: a part gave something else than it declares.
        """
        found = self.encoded(images)
        size = feats.image_size(images)
        auxiliary = {name: _squeezed(self.fitted(mask, size)) for name, mask in self.auxiliary(found).items()}
        return ModelOutput(_squeezed(self.fitted(self.headed(self.decoded(found)), size)), auxiliary)

    def headed(self, decoded: torch.Tensor, *, head: nn.Module | None = None) -> torch.Tensor:
        """Return what the head, or another one, makes of a decoded map.

        Raises:
            EncoderError: it is no map.
        """
        if decoded.ndim != 4:
            raise errors.EncoderError(
                f"a model for {self.task} needs a map [B, C, h, w] from its decoder, not {list(decoded.shape)}: tokens "
                "become maps with the neck ReshapeTokensToImage."
            )
        return super().headed(decoded, head=head)

    def fitted(self, mask: torch.Tensor, size: feats.Size) -> torch.Tensor:
        """Return a mask [B, K, h, w] of the padded image as one of the image (height, width)."""
        padded = self.padded_size(size)
        made = feats.image_size(mask)
        if self.rescale and made != padded:
            mask = functional.interpolate(mask, size=padded, mode="bilinear", align_corners=False)
            made = padded
        kept = [-(-side * cells // whole) for side, cells, whole in zip(size, made, padded, strict=True)]
        return mask[..., : kept[0], : kept[1]]


class ScalarOutputModel(TaskModel):
    """[B, C, H, W] -> ModelOutput of logits [B, num_classes]; images are padded as in `PixelWiseModel`."""

    def forward(self, images: torch.Tensor) -> ModelOutput:
        """Return the main output and the auxiliary ones.

        Raises:
            InputError: images too small to be padded, or not in the backbone's form.
            EncoderError: a part gave something else than it declares.
        """
        found = self.encoded(images)
        auxiliary = {name: self.scalar(logits) for name, logits in self.auxiliary(found).items()}
        return ModelOutput(self.scalar(self.headed(self.decoded(found))), auxiliary)

    def scalar(self, logits: torch.Tensor) -> torch.Tensor:
        """Return the logits as they are, once it is sure that there is one row per image."""
        if logits.ndim != 2:
            raise errors.EncoderError(
                f"a model for {self.task} needs logits [B, num_classes], not {list(logits.shape)}: this decoder's own "
                "head makes maps. Take a decoder without head, such as IdentityDecoder."
            )
        return logits


def patch_sides(given: Any) -> tuple[int, ...] | None:
    """Read a patch size: a number, [p], [height, width] or [time, height, width]; None is no padding.

    Raises:
        InputError: anything else.
    """
    if given is None:
        return None
    sides = (given,) if isinstance(given, int) else tuple(given) if isinstance(given, Sequence) else ()
    if not 1 <= len(sides) <= 3 or not all(isinstance(side, int) and side >= 1 for side in sides):
        raise errors.InputError(
            f"patch size {given!r} must be a number of pixels, or a list of 1 to 3: [p], [height, width] or [time, "
            "height, width]."
        )
    return (sides[0], sides[0]) if len(sides) == 1 else sides


def patch_size_of(encoder: nn.Module) -> Any:
    """Return the patch size that the backbone, or the first of its modules that has one, tells."""
    layout = getattr(encoder, "tokens", None)
    if layout is not None:
        return layout.patch
    for module in encoder.modules():
        found = getattr(module, "patch_size", None)
        if isinstance(found, int) or (isinstance(found, tuple | list) and found):
            return found
    return None


def told(part: Callable[..., Any], features: list[torch.Tensor], size: feats.Size | None) -> Any:
    """Call a neck or decoder, with the size of the image if its `forward` takes it."""
    forward = getattr(part, "forward", part)
    return part(features, image_size=size) if feats.takes(forward, "image_size") else part(features)


def _squeezed(mask: torch.Tensor) -> torch.Tensor:
    return mask.squeeze(1) if mask.shape[1] == 1 else mask


def _up(side: int, multiple: int) -> int:
    return -(-side // multiple) * multiple
