"""Fits a plan to the pipeline: the backbone told its image size and whether to fetch weights, and what it takes."""

import dataclasses
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from genenc_core import errors
from genenc_core.models.factory import call_arguments, plan, registries, task_models
from genenc_core.models.factory import features as feats
from genenc_core.models.weights import WeightsChoice

_DEFAULT_SIZE = 224


class UntrainedPartsWarning(UserWarning):
    """Pretrained weights were asked for, but only the backbone has any."""


def with_size(made: plan.Plan, size: feats.Size | None) -> plan.Plan:
    """Return the plan with the backbone told the (padded) image size, where its architecture depends on it.

    Raises:
        InputError: the backbone cannot be made for this size.
    """
    if size is None or isinstance(made.backbone, nn.Module):
        return made
    prefix, name = registries.BACKBONE_REGISTRY.split(made.backbone)
    key = {"timm": "img_size", "torchvision": "image_size", "genenc": "image_size"}.get(prefix)
    signature = registries.BACKBONE_REGISTRY.signature(made.backbone)
    if key is None or key in made.backbone_kwargs or (signature is not None and key not in signature.parameters):
        return made
    if prefix == "timm" and not _fixed_size(name):
        return made
    options = {**made.backbone_kwargs, key: list(_padded(made, prefix, name, size))}
    return dataclasses.replace(made, backbone_kwargs=options)


def with_weights(made: plan.Plan, choice: WeightsChoice, outputs: Sequence[str]) -> plan.Plan:
    """Return the plan with `pretrained` of the backbone as the weights' choice says it.

    Raises:
        InputError: the model file says that the backbone is not pretrained, or a tag that cannot be given.
    """
    assert not isinstance(made.backbone, nn.Module)
    options = dict(made.backbone_kwargs)
    if choice.kind == "pretrained" and options.get("pretrained") is False:
        raise errors.InputError(
            "the model file says backbone_pretrained false, but pretrained weights were asked for. Give --weights "
            "random:0 or a checkpoint, or leave backbone_pretrained out."
        )
    signature = registries.BACKBONE_REGISTRY.signature(made.backbone)
    if signature is None or call_arguments.takes(signature, "pretrained"):
        options["pretrained"] = choice.kind == "pretrained"
    backbone = made.backbone if choice.tag is None else _tagged(made.backbone, choice.tag)
    if choice.kind == "pretrained" and {"logits", "decoder"} & set(outputs):
        warnings.warn(
            f"only the backbone {backbone!r} has pretrained weights; necks, decoder and head are random (seed 0), so "
            "logits and decoded maps mean nothing yet. Give a checkpoint of the whole model with --weights FILE",
            UntrainedPartsWarning,
            stacklevel=5,
        )
    return dataclasses.replace(made, backbone=backbone, backbone_kwargs=options)


def inputs_of(encoder: nn.Module) -> feats.InputInfo:
    """Return what a backbone was made for; one that does not say takes 224 x 224 RGB in [0, 1].

    Raises:
        InputError: it does not take three channels.
    """
    found = getattr(encoder, "inputs", None)
    if not isinstance(found, feats.InputInfo):
        side = _DEFAULT_SIZE
        return feats.InputInfo(channels=3, height=side, width=side, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    if found.channels != 3:
        raise errors.InputError(
            f"the backbone takes {found.channels} channels, but images have three (RGB): take a backbone of three "
            "channels (backbone_in_chans), or call build_model from Python with tensors of your own."
        )
    return found


def _fixed_size(name: str) -> bool:
    import timm

    config = timm.get_pretrained_cfg(name)
    return config is not None and bool(config.fixed_input_size)


def _padded(made: plan.Plan, prefix: str, name: str, size: feats.Size) -> feats.Size:
    """Return the size that the backbone gets, which is padded to multiples of twice its patch size."""
    patch: Any = made.patch_size
    if patch is None and prefix == "timm":
        import timm

        patch = _first_patch_size(timm.create_model, name, made.backbone_kwargs)
    elif patch is None and prefix == "torchvision":
        import torchvision

        patch = _first_patch_size(torchvision.models.get_model, name.lower(), {})
    sides = task_models.patch_sides(patch)
    if sides is None:
        return size
    height, width = (-(-side // (2 * step)) * 2 * step for side, step in zip(size, sides[-2:], strict=True))
    return height, width


def _first_patch_size(create: Any, name: str, options: Any) -> Any:
    """Return the patch size of a model that is built without memory, only to be asked."""
    own = {key: value for key, value in options.items() if key not in ("pretrained", "output", "out_indices")}
    with torch.device("meta"):
        model = create(name, **own)
    return task_models.patch_size_of(model)


def _tagged(backbone: str, tag: str) -> str:
    prefix, name = registries.BACKBONE_REGISTRY.split(backbone)
    if prefix != "timm":
        raise errors.InputError(f"weights pretrained:{tag} need a backbone of timm; {backbone!r} has no such tags.")
    return registries.BACKBONE_REGISTRY.canonical(f"timm_{name.partition('.')[0]}.{tag}")
