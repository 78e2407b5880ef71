"""Task models of backbone, necks, decoder and head: pixel-wise (segmentation, regression) or classification."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from genenc_core import errors
from genenc_core.factory import features as feats


@dataclass(frozen=True, slots=True)
class ModelOutput:
    """Output of a task model: the main output, and one per auxiliary decoder."""

    output: torch.Tensor
    auxiliary_heads: dict[str, torch.Tensor] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Encoded:
    """Features of padded images: those of the backbone, and those of the necks."""

    backbone: list[torch.Tensor]
    necks: list[torch.Tensor]
    padded: feats.Size


class NeckSequence(nn.Sequential):
    """Necks in sequence; the image size is passed to those that accept it."""

    def forward(self, features: Any, image_size: feats.Size | None = None) -> Any:
        """Return the last neck's features."""
        for neck in self:
            features = call_with_size(neck, feats.as_list(features), image_size)
        return features


class TaskModel(nn.Module):
    """Base class of task models: padding, the chain of parts, and auxiliary decoders."""

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

    def encode(self, images: torch.Tensor) -> Encoded:
        """Return the features of [B, C, H, W] (or [B, C, T, H, W]), padded to multiples of twice the patch size."""
        padded = self._padded(images)
        size = feats.image_size(padded)
        backbone = feats.as_list(self.encoder(padded))
        necks = backbone if self.neck is None else feats.as_list(self.neck(backbone, image_size=size))
        feats.check_channels(necks, self.channel_list, who="the backbone" if self.neck is None else "the last neck")
        return Encoded(backbone=backbone, necks=necks, padded=size)

    def decode(self, encoded: Encoded, *, decoder: nn.Module | None = None) -> torch.Tensor:
        """Apply the model's decoder, or `decoder`, to the features.

        Raises:
            EncoderError: it does not return one tensor.
        """
        # Copies, since a decoder may modify in place what others read.
        copies = [feature.clone() for feature in encoded.necks]
        decoded = call_with_size(self.decoder if decoder is None else decoder, copies, encoded.padded)
        if not isinstance(decoded, torch.Tensor):
            raise errors.EncoderError(f"a decoder must return one tensor, not a {type(decoded).__name__}.")
        return decoded

    def auxiliary(self, encoded: Encoded) -> dict[str, torch.Tensor]:
        """Return the output of each auxiliary decoder and its head."""
        outputs = {}
        for name, pair in self.aux_heads.items():
            decoder, head = pair.children()
            outputs[name] = self.apply_head(self.decode(encoded, decoder=decoder), head=head)
        return outputs

    def apply_head(self, decoded: torch.Tensor, *, head: nn.Module | None = None) -> torch.Tensor:
        """Apply the model's head, or `head`, to decoded features."""
        outputs: torch.Tensor = (self.head if head is None else head)(decoded)
        return outputs

    def padded_size(self, size: feats.Size) -> feats.Size:
        """Return height and width after padding."""
        if self.patch is None:
            return size
        return _round_up(size[0], 2 * self.patch[-2]), _round_up(size[1], 2 * self.patch[-1])

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
            behind = _round_up(int(images.shape[2]), self.patch[0]) - int(images.shape[2])
        if not (right or bottom or behind):
            return images
        if self.padding == "reflect" and (right >= size[1] or bottom >= size[0]):
            raise errors.InputError(
                f"images of {size[0]} x {size[1]} pixels are too small to be padded by reflection to "
                f"{self.padded_size(size)}: use larger ones, or backbone_padding 'replicate' or 'constant'."
            )
        amounts = (0, right, 0, bottom) if images.ndim == 4 else (0, right, 0, bottom, 0, behind)
        return functional.pad(images, amounts, mode=self.padding)


class PixelWiseModel(TaskModel):
    """[B, C, H, W] -> ModelOutput of [B, num_classes, H, W] (segmentation) or [B, H, W] (one channel: regression).

    Images are padded at the bottom and right to a multiple of twice the patch size; if `rescale`, the output is resized
    (bilinear) to the padded size and cropped to the images. Without `rescale` it keeps its size, except for cells that
    lie entirely in the padding.
    """

    def __init__(self, *args: Any, rescale: bool = True, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.rescale = rescale

    def forward(self, images: torch.Tensor) -> ModelOutput:
        """Return the main output and the auxiliary ones.

        Raises:
            InputError: images too small to be padded, or of a shape that the backbone does not accept.
            EncoderError: an output of a part differs from its declaration.
        """
        encoded = self.encode(images)
        size = feats.image_size(images)
        auxiliary = {name: _squeezed(self.crop_padding(mask, size)) for name, mask in self.auxiliary(encoded).items()}
        return ModelOutput(_squeezed(self.crop_padding(self.apply_head(self.decode(encoded)), size)), auxiliary)

    def apply_head(self, decoded: torch.Tensor, *, head: nn.Module | None = None) -> torch.Tensor:
        """Apply the model's head, or `head`, to a decoded map.

        Raises:
            EncoderError: `decoded` is not a map.
        """
        if decoded.ndim != 4:
            raise errors.EncoderError(
                f"a model for {self.task} needs a map [B, C, h, w] from its decoder, not {list(decoded.shape)}: for "
                "tokens add the neck ReshapeTokensToImage."
            )
        return super().apply_head(decoded, head=head)

    def crop_padding(self, mask: torch.Tensor, size: feats.Size) -> torch.Tensor:
        """Crop a mask [B, K, h, w] of the padded image to the image (height, width); resized first if `rescale`."""
        padded = self.padded_size(size)
        cells = feats.image_size(mask)
        if self.rescale and cells != padded:
            mask = functional.interpolate(mask, size=padded, mode="bilinear", align_corners=False)
            cells = padded
        kept = [-(-side * count // whole) for side, count, whole in zip(size, cells, padded, strict=True)]
        return mask[..., : kept[0], : kept[1]]


class ScalarOutputModel(TaskModel):
    """[B, C, H, W] -> ModelOutput of logits [B, num_classes]; images are padded as in `PixelWiseModel`."""

    def forward(self, images: torch.Tensor) -> ModelOutput:
        """Return the main output and the auxiliary ones.

        Raises:
            InputError: images too small to be padded, or of a shape that the backbone does not accept.
            EncoderError: an output of a part differs from its declaration.
        """
        encoded = self.encode(images)
        auxiliary = {name: self.checked_logits(logits) for name, logits in self.auxiliary(encoded).items()}
        return ModelOutput(self.checked_logits(self.apply_head(self.decode(encoded))), auxiliary)

    def checked_logits(self, logits: torch.Tensor) -> torch.Tensor:
        """Return the logits unchanged if they have one row per image, else raise an `EncoderError`."""
        if logits.ndim != 2:
            raise errors.EncoderError(
                f"a model for {self.task} needs logits [B, num_classes], not {list(logits.shape)}: the head of this "
                "decoder returns maps. Use a decoder without head, such as IdentityDecoder."
            )
        return logits


def patch_sides(given: Any) -> tuple[int, ...] | None:
    """Parse a patch size: a number, [p], [height, width] or [time, height, width]; None: no padding.

    Raises:
        InputError: not a valid patch size.
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
    """Return the patch size of the backbone, or of the first of its modules that has one; None: there is none."""
    layout = getattr(encoder, "tokens", None)
    if layout is not None:
        return layout.patch
    for module in encoder.modules():
        patch_size = getattr(module, "patch_size", None)
        if isinstance(patch_size, int) or (isinstance(patch_size, tuple | list) and patch_size):
            return patch_size
    return None


def call_with_size(part: Callable[..., Any], features: list[torch.Tensor], size: feats.Size | None) -> Any:
    """Call a neck or decoder, with the image size if its `forward` accepts it."""
    forward = getattr(part, "forward", part)
    return part(features, image_size=size) if feats.takes(inspect.signature(forward), "image_size") else part(features)


def _squeezed(mask: torch.Tensor) -> torch.Tensor:
    return mask.squeeze(1) if mask.shape[1] == 1 else mask


def _round_up(side: int, multiple: int) -> int:
    return -(-side // multiple) * multiple
