"""Task models as encoders: image size, and the stages whose outputs become slots."""

import dataclasses
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from genenc_core import errors
from genenc_core.factory import backbones, plan, registries, task_models
from genenc_core.factory import features as feats
from genenc_core.models import tokens
from genenc_core.models.weights import WeightsChoice

OUTPUTS = ("logits", "decoder", "necks", "backbone")
_DEFAULT_SIZE = 224


class TaskTrunk(nn.Module):
    """Normalised images [B, 3, H, W] -> the requested slots: `logits`, `decoder`, `neck_0` ..., `backbone_0` ....

    Logits are maps [K, h, w] for pixel-wise tasks (one channel for regression), vectors [K] for classification.
    Token lists of known layout become a map, with additional slots `.cls` and `.register`.
    """

    def __init__(self, model: task_models.TaskModel, outputs: Sequence[str], *, size: feats.Size) -> None:
        super().__init__()
        self.model = model
        self.outputs = tuple(outputs)
        self.layout: feats.PatchTokens | None = getattr(model.encoder, "tokens", None)
        _check_padding(model, outputs, size)

    def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return the slots by name."""
        encoded = self.model.encode(images)
        slots: dict[str, torch.Tensor] = {}
        if "logits" in self.outputs or "decoder" in self.outputs:
            decoded = self.model.decode(encoded)
            if "logits" in self.outputs:
                slots["logits"] = self._logits(decoded, feats.image_size(images))
            if "decoder" in self.outputs:
                slots["decoder"] = decoded
        if "necks" in self.outputs:
            for index, feature in enumerate(encoded.necks):
                slots.update(self._slots(f"neck_{index}", feature, encoded.padded))
        if "backbone" in self.outputs:
            for index, feature in enumerate(self._backbone(encoded.backbone)):
                slots.update(self._slots(f"backbone_{index}", feature, encoded.padded))
        return slots

    def _backbone(self, features: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Return the backbone's features with channels first, which may otherwise be left to a neck."""
        declared: Sequence[int] = self.model.encoder.out_channels  # type: ignore[assignment]
        permuted = [_channels_first(feature, count) for feature, count in zip(features, declared, strict=False)]
        feats.check_channels(permuted, declared, who="the backbone")
        return permuted

    def _logits(self, decoded: torch.Tensor, size: feats.Size) -> torch.Tensor:
        head = self.model.apply_head(decoded)
        if isinstance(self.model, task_models.PixelWiseModel):
            return self.model.crop_padding(head, size)
        assert isinstance(self.model, task_models.ScalarOutputModel)
        return self.model.checked_logits(head)

    def _slots(self, name: str, feature: torch.Tensor, size: feats.Size) -> dict[str, torch.Tensor]:
        layout = None if self.layout is None else self.layout.at(size)
        if feature.ndim != 3 or layout is None or int(feature.shape[1]) != layout.patches + layout.prefixed:
            return {name: feature}
        slots = tokens.split(feature, layout, base=name)
        return {slot: value for slot, value in slots.items() if slot != tokens.slot_name(name, feats.OTHERS)}


def _channels_first(feature: torch.Tensor, count: int) -> torch.Tensor:
    """Permute a map [B, h, w, C] to [B, C, h, w] if only its last axis has the declared number of channels."""
    last = feature.ndim == 4 and int(feature.shape[1]) != count and int(feature.shape[3]) == count
    return feature.permute(0, 3, 1, 2) if last else feature


def drop_unused_parts(model: task_models.TaskModel, outputs: Sequence[str]) -> None:
    """Remove parts that no slot needs, after loading weights: auxiliary decoders, and unused decoder and head."""
    model.aux_heads = nn.ModuleDict()
    if "logits" not in outputs:
        model.head = nn.Identity()
    if "logits" not in outputs and "decoder" not in outputs:
        model.decoder = nn.Identity()


def _check_padding(model: task_models.TaskModel, outputs: Sequence[str], size: feats.Size) -> None:
    """Reject maps of images that are padded inside the model, because their cells do not align with the image.

    Raises:
        InputError: such a map is requested.
    """
    padded = model.padded_size(size)
    exact = isinstance(model, task_models.ScalarOutputModel) or getattr(model, "rescale", True)
    misaligned = [name for name in outputs if name != "logits" or not exact]
    if padded != size and misaligned:
        raise errors.InputError(
            f"images of {size[0]} x {size[1]} pixels are padded to {padded[0]} x {padded[1]} inside this model, so the "
            f"cells of {', '.join(misaligned)} do not align with points on the image. Give --image-size "
            f"{padded[0]}x{padded[1]}, or use logits with rescale true."
        )


class UntrainedPartsWarning(UserWarning):
    """Pretrained weights were requested, but only the backbone has any."""


def with_size(model_plan: plan.Plan, size: feats.Size | None) -> plan.Plan:
    """Return the plan with the (padded) image size among the backbone's arguments, if its architecture needs it.

    Raises:
        InputError: the backbone does not support this size.
    """
    if size is None or isinstance(model_plan.backbone, nn.Module):
        return model_plan
    prefix, name = registries.BACKBONE_REGISTRY.split(model_plan.backbone)
    key = {"timm": "img_size", "torchvision": "image_size", "genenc": "image_size"}.get(prefix)
    signature = registries.BACKBONE_REGISTRY.signature(model_plan.backbone)
    if key is None or key in model_plan.backbone_kwargs or (signature is not None and key not in signature.parameters):
        return model_plan
    if prefix == "timm" and not _fixed_size(name):
        return model_plan
    options = {**model_plan.backbone_kwargs, key: list(_padded(model_plan, prefix, name, size))}
    return dataclasses.replace(model_plan, backbone_kwargs=options)


def with_weights(model_plan: plan.Plan, choice: WeightsChoice, outputs: Sequence[str]) -> plan.Plan:
    """Return the plan with the backbone's `pretrained` set by the choice of weights.

    Raises:
        InputError: it contradicts the model file, or the backbone has no tags.
    """
    assert not isinstance(model_plan.backbone, nn.Module)
    options = dict(model_plan.backbone_kwargs)
    if choice.kind == "pretrained" and options.get("pretrained") is False:
        raise errors.InputError(
            "the model file sets backbone_pretrained to false, but pretrained weights were requested. Give --weights "
            "random:0 or a checkpoint, or omit backbone_pretrained."
        )
    signature = registries.BACKBONE_REGISTRY.signature(model_plan.backbone)
    if signature is None or feats.takes(signature, "pretrained"):
        options["pretrained"] = choice.kind == "pretrained"
    backbone = model_plan.backbone if choice.tag is None else _tagged(model_plan.backbone, choice.tag)
    if choice.kind == "pretrained" and {"logits", "decoder"} & set(outputs):
        warnings.warn(
            f"only the backbone {backbone!r} has pretrained weights; necks, decoder and head are random (seed 0), so "
            "logits and decoded maps are meaningless. Give a checkpoint of the whole model with --weights FILE",
            UntrainedPartsWarning,
            stacklevel=5,
        )
    return dataclasses.replace(model_plan, backbone=backbone, backbone_kwargs=options)


def inputs_of(encoder: nn.Module, model_plan: plan.Plan) -> feats.InputInfo:
    """Return the input that a backbone expects, by default 224 x 224 RGB in [0, 1].

    The channels of a backbone that does not say so itself are those of its arguments, or its attribute `in_chans`.
    """
    inputs = getattr(encoder, "inputs", None)
    if isinstance(inputs, feats.InputInfo):
        return inputs
    stated = [
        backbones.channels_in(model_plan.backbone_kwargs),
        *(getattr(encoder, name, None) for name in backbones.CHANNELS),
    ]
    count = next((each for each in stated if isinstance(each, int) and each > 0), 3)
    side = _DEFAULT_SIZE
    return feats.InputInfo(channels=count, height=side, width=side, mean=(0.0,) * count, std=(1.0,) * count)


def with_channels(model_plan: plan.Plan) -> plan.Plan:
    """Return the plan with `in_chans` for the bands or channels among the arguments of a library's backbone."""
    if isinstance(model_plan.backbone, nn.Module):
        return model_plan
    prefix, _ = registries.BACKBONE_REGISTRY.split(model_plan.backbone)
    if prefix not in ("timm", "torchvision"):
        return model_plan
    return dataclasses.replace(model_plan, backbone_kwargs=backbones.with_in_chans(model_plan.backbone_kwargs))


def refuse_other_channels(inputs: feats.InputInfo, wanted: int | None) -> None:
    """Check that a backbone takes as many channels as are chosen.

    Raises:
        InputError: it takes others.
    """
    if wanted not in (None, inputs.channels):
        raise errors.InputError(
            f"the backbone takes {inputs.channels} channels, not {wanted}: choose {inputs.channels} with --channels, "
            f"or set backbone_in_chans: {wanted} in the model file"
        )


def _fixed_size(name: str) -> bool:
    import timm

    config = timm.get_pretrained_cfg(name)
    return config is not None and bool(config.fixed_input_size)


def _padded(model_plan: plan.Plan, prefix: str, name: str, size: feats.Size) -> feats.Size:
    """Return the backbone's input size, padded to multiples of twice its patch size."""
    patch: Any = model_plan.patch_size
    if patch is None and prefix == "timm":
        import timm

        patch = _first_patch_size(timm.create_model, name, model_plan.backbone_kwargs)
    elif patch is None and prefix == "torchvision":
        import torchvision

        patch = _first_patch_size(torchvision.models.get_model, name.lower(), {})
    sides = task_models.patch_sides(patch)
    if sides is None:
        return size
    height, width = (-(-side // (2 * step)) * 2 * step for side, step in zip(size, sides[-2:], strict=True))
    return height, width


def _first_patch_size(create: Any, name: str, options: Any) -> Any:
    """Return the patch size of a model, built on the meta device to find out."""
    own = {key: value for key, value in options.items() if key not in ("pretrained", "output", "out_indices")}
    with torch.device("meta"):
        model = create(name, **own)
    return task_models.patch_size_of(model)


def _tagged(backbone: str, tag: str) -> str:
    prefix, name = registries.BACKBONE_REGISTRY.split(backbone)
    if prefix != "timm":
        raise errors.InputError(f"weights pretrained:{tag} need a timm backbone; {backbone!r} has no tags.")
    return registries.BACKBONE_REGISTRY.canonical(f"timm_{name.partition('.')[0]}.{tag}")
