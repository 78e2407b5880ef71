"""A task model as an encoder of the pipeline: which of its stages become output slots."""

from collections.abc import Sequence

import torch
from torch import nn

from genenc_core import errors
from genenc_core.models.factory import features as feats
from genenc_core.models.factory import task_models

OUTPUTS = ("logits", "decoder", "necks", "backbone")


class TaskTrunk(nn.Module):
    """Normalised images [B, 3, H, W] -> slots: `logits`, `decoder`, `neck_0` ..., `backbone_0` ..., as asked for.

    Logits are maps [K, h, w] for pixel-wise tasks (one channel for regression), vectors [K] for classification.
    Token lists whose layout is known come as a map, with `.cls` and `.register` beside it.
    """

    def __init__(self, model: task_models.TaskModel, outputs: Sequence[str], *, size: feats.Size) -> None:
        super().__init__()
        self.model = model
        self.outputs = tuple(outputs)
        self.layout: feats.TokenLayout | None = getattr(model.encoder, "tokens", None)
        _check_padding(model, outputs, size)

    def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return the slots by name."""
        found = self.model.encoded(images)
        slots: dict[str, torch.Tensor] = {}
        if "logits" in self.outputs or "decoder" in self.outputs:
            decoded = self.model.decoded(found)
            if "logits" in self.outputs:
                slots["logits"] = self._logits(decoded, feats.image_size(images))
            if "decoder" in self.outputs:
                slots["decoder"] = decoded
        for word, prefix, listed in (("necks", "neck", found.necks), ("backbone", "backbone", found.backbone)):
            if word in self.outputs:
                features = self._backbone(listed) if word == "backbone" else listed
                for index, feature in enumerate(features):
                    slots.update(self._named(f"{prefix}_{index}", feature, found.padded))
        return slots

    def _backbone(self, features: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Return the backbone's features, maps with the channels first: a neck may be there to turn them."""
        declared: Sequence[int] = self.model.encoder.out_channels  # type: ignore[assignment]
        turned = [_channels_first(feature, count) for feature, count in zip(features, declared, strict=False)]
        feats.check_channels(turned, declared, who="the backbone")
        return turned

    def _logits(self, decoded: torch.Tensor, size: feats.Size) -> torch.Tensor:
        head = self.model.headed(decoded)
        if isinstance(self.model, task_models.PixelWiseModel):
            return self.model.fitted(head, size)
        assert isinstance(self.model, task_models.ScalarOutputModel)
        return self.model.scalar(head)

    def _named(self, name: str, feature: torch.Tensor, size: feats.Size) -> dict[str, torch.Tensor]:
        layout = self.layout
        if feature.ndim != 3 or layout is None:
            return {name: feature}
        grid = layout.grid(size)
        if int(feature.shape[1]) != layout.prefix + grid[0] * grid[1]:
            return {name: feature}
        patches = feature[:, layout.prefix :]
        slots = {name: patches.transpose(1, 2).reshape(-1, int(feature.shape[2]), *grid)}
        classes = layout.prefix - layout.registers
        if classes == 1:
            slots[f"{name}.cls"] = feature[:, 0]
        if layout.registers:
            slots[f"{name}.register"] = feature[:, classes : layout.prefix]
        return slots


def _channels_first(feature: torch.Tensor, count: int) -> torch.Tensor:
    """Return a map [B, h, w, C] as [B, C, h, w] where its declared channels are the last axis and not the first."""
    last = feature.ndim == 4 and int(feature.shape[1]) != count and int(feature.shape[3]) == count
    return feature.permute(0, 3, 1, 2) if last else feature


def without_the_unused(model: task_models.TaskModel, outputs: Sequence[str]) -> None:
    """Drop what no slot needs, once the weights are in: auxiliary decoders; decoder and head when nobody asks."""
    model.aux_heads = nn.ModuleDict()
    if "logits" not in outputs:
        model.head = nn.Identity()
    if "logits" not in outputs and "decoder" not in outputs:
        model.decoder = nn.Identity()


def _check_padding(model: task_models.TaskModel, outputs: Sequence[str], size: feats.Size) -> None:
    """Refuse maps of an image that is padded inside the model: their cells would not lie where they seem to.

    Raises:
        InputError: such a map is asked for.
    """
    padded = model.padded_size(size)
    exact = isinstance(model, task_models.ScalarOutputModel) or getattr(model, "rescale", True)
    asked = [name for name in outputs if name != "logits" or not exact]
    if padded != size and asked:
        raise errors.InputError(
            f"images of {size[0]} x {size[1]} pixels are padded to {padded[0]} x {padded[1]} inside this model, so the "
            f"cells of {', '.join(asked)} would not lie where points are looked up. Give --image-size "
            f"{padded[0]}x{padded[1]}, or take logits with rescale true."
        )
