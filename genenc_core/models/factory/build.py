"""`build_model`: a backbone, necks, a decoder and a head, by name or as modules, into one model for a task."""

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from genenc_core import errors
from genenc_core.models import wording
from genenc_core.models.factory import adapters, heads, plan, registries, task_models, temporal
from genenc_core.models.factory import features as feats


def build_model(
    task: str,
    backbone: str | nn.Module,
    decoder: str | nn.Module,
    backbone_kwargs: Mapping[str, Any] | None = None,
    decoder_kwargs: Mapping[str, Any] | None = None,
    head_kwargs: Mapping[str, Any] | None = None,
    num_classes: int | None = None,
    necks: Sequence[Mapping[str, Any] | nn.Module] | None = None,
    aux_decoders: Sequence[plan.AuxiliaryHead | Mapping[str, Any]] | None = None,
    rescale: bool = True,
    peft_config: Mapping[str, Any] | None = None,
    **kwargs: Any,
) -> task_models.TaskModel:
    """Build a model: images [B, C, H, W] -> `ModelOutput`.

    `task` is segmentation, regression or classification. `backbone` and `decoder` are names in
    `registries.BACKBONE_REGISTRY` and `DECODER_REGISTRY`, or modules: a backbone has `out_channels`, one number per
    feature, and gives a list of features; a decoder has `out_channels`, a number, takes that list, and says with
    `includes_head = True` that no head follows. `necks` are dicts with `name` and arguments, or modules with
    `process_channel_list`. Arguments `backbone_*`, `decoder_*` and `head_*` join `backbone_kwargs`, `decoder_kwargs`
    and `head_kwargs`. No dict of the caller's is changed. `peft_config` has `method`, `replace_qkv` and
    `peft_config_kwargs`.

    Raises:
        InputError: an unknown task, name or argument, one given twice or missing, or parts that do not fit.
    """
    made = plan.made(
        {
            "task": task,
            "backbone": backbone,
            "decoder": decoder,
            "backbone_kwargs": backbone_kwargs,
            "decoder_kwargs": decoder_kwargs,
            "head_kwargs": head_kwargs,
            "num_classes": num_classes,
            "necks": necks,
            "aux_decoders": aux_decoders,
            "rescale": rescale,
            "peft_config": peft_config,
            **kwargs,
        }
    )
    return from_plan(made)


def from_plan(made: plan.Plan) -> task_models.TaskModel:
    """Build what was planned.

    Raises:
        InputError: parts that cannot be built, or do not fit each other.
    """
    encoder = _backbone(made)
    layout: feats.TokenLayout | None = getattr(encoder, "tokens", None)
    patch_size = made.patch_size if made.patch_size is not None else task_models.patch_size_of(encoder)
    if made.adapter is not None:
        encoder = _adapted(encoder, made)
    channel_list = _out_channels(encoder)
    neck, channel_list = _necks(made, channel_list, layout)
    decoder, head = _decoder_and_head(made.task, made.main, channel_list, layout)
    auxiliary = {
        name: nn.Sequential(*_decoder_and_head(made.task, aux, channel_list, layout))
        for name, aux in made.auxiliary.items()
    }
    shared: dict[str, Any] = {
        "channel_list": channel_list,
        "patch_size": patch_size,
        "padding": made.padding,
        "neck": neck,
        "aux_heads": auxiliary,
    }
    model: task_models.TaskModel
    if made.task in plan.PIXEL_WISE_TASKS:
        model = task_models.PixelWiseModel(made.task, encoder, decoder, head, rescale=made.rescale, **shared)
    else:
        model = task_models.ScalarOutputModel(made.task, encoder, decoder, head, **shared)
    return model.train()


def _backbone(made: plan.Plan) -> nn.Module:
    if isinstance(made.backbone, nn.Module):
        encoder = made.backbone
    else:
        encoder = registries.BACKBONE_REGISTRY.build(made.backbone, **made.backbone_kwargs)
    _out_channels(encoder)
    return encoder if made.temporal is None else temporal.TemporalWrapper(encoder, **made.temporal)


def _out_channels(encoder: nn.Module) -> list[int]:
    channels = getattr(encoder, "out_channels", None)
    listed = list(channels) if isinstance(channels, list | tuple) else []
    if not listed or not all(isinstance(value, int) for value in listed):
        raise errors.InputError(
            f"the backbone {type(encoder).__name__} must have an attribute out_channels, one number per feature, not "
            f"{channels!r}."
        )
    return listed


def _adapted(encoder: nn.Module, made: plan.Plan) -> nn.Module:
    assert made.adapter is not None
    if not isinstance(made.backbone, nn.Module) and not made.backbone_kwargs.get("pretrained", False):
        text = "peft_config on a backbone without pretrained weights: an adapter learns little on random ones"
        warnings.warn(text, UserWarning, stacklevel=4)
    return adapters.adapted(encoder, made.adapter)


def _necks(
    made: plan.Plan, channel_list: list[int], layout: feats.TokenLayout | None
) -> tuple[nn.Module | None, list[int]]:
    if not made.necks:
        return None, channel_list
    built: list[nn.Module] = []
    for named, options in made.necks:
        neck = named if isinstance(named, nn.Module) else _built("neck", named, channel_list, options)
        _tell(neck, layout)
        if not hasattr(neck, "process_channel_list"):
            raise errors.InputError(f"the neck {type(neck).__name__} must have a method process_channel_list.")
        channel_list = [int(value) for value in neck.process_channel_list(list(channel_list))]  # type: ignore[operator]
        built.append(neck)
    return task_models.NeckSequence(*built), channel_list


def _decoder_and_head(
    task: str, made: plan.DecoderPlan, channel_list: list[int], layout: feats.TokenLayout | None
) -> tuple[nn.Module, nn.Module]:
    if isinstance(made.decoder, nn.Module):
        decoder = made.decoder
    else:
        decoder = _built("decoder", made.decoder, channel_list, made.decoder_kwargs)
    _tell(decoder, layout)
    if made.head_kwargs is None:
        return decoder, nn.Identity()
    channels = getattr(decoder, "out_channels", None)
    if not isinstance(channels, int):
        raise errors.InputError(
            f"the decoder {type(decoder).__name__} must have an attribute out_channels, a number; or includes_head = "
            "True if it needs no head."
        )
    return decoder, heads.HEADS[task](channels, **made.head_kwargs)


def _built(kind: str, name: str, channel_list: list[int], options: Mapping[str, Any]) -> nn.Module:
    source = registries.NECK_REGISTRY if kind == "neck" else registries.DECODER_REGISTRY
    try:
        module: nn.Module = source.build(name, list(channel_list), **options)
    except (TypeError, ValueError, IndexError, RuntimeError) as error:
        raise errors.InputError(
            f"the {kind} {name!r} cannot be built for features with {channel_list} channels and {dict(options)}: "
            f"{wording.reason(error)}."
        ) from error
    return module


def _tell(part: nn.Module, layout: feats.TokenLayout | None) -> None:
    """Tell a part how tokens stand, if it wants to know and was not told."""
    if layout is not None and hasattr(type(part), "tokens") and getattr(part, "tokens", None) is None:
        part.tokens = layout  # type: ignore[assignment]
