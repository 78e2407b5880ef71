"""`build_model`: assembly of a backbone, necks, a decoder and a head, and loading of their weights."""

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from genenc_core import errors
from genenc_core.factory import adapters, heads, plan, registries, task_models, temporal
from genenc_core.factory import features as feats
from genenc_core.models import state_files, weights

_LIGHTNING, _PARALLEL = "model.", "module."
_SHOWN = 4


def load(choice: weights.WeightsChoice, model: nn.Module) -> None:
    """Load the state dict in `choice.path` into `model`; it must hold exactly the model's tensors.

    From a Lightning checkpoint the entries under `model.` are loaded (others, such as those of a criterion, are not
    part of the model). The tensors of a backbone may be directly under `encoder.`, as in TerraTorch.

    Raises:
        InputError: unreadable, or of another model; the first mismatches are named.
    """
    own = model.state_dict()
    read = weights.read_state(choice)
    kept = _unwrapped(read, own)
    state = {_renamed(name, own): tensor for name, tensor in kept.items()}
    # BatchNorm counters are unused in evaluation mode, and missing in old files.
    missing = [name for name in own if name not in state and not name.endswith("num_batches_tracked")]
    surplus = [name for name in state if name not in own]
    sizes = [
        f"{name} is {list(tensor.shape)}, the model's is {list(own[name].shape)}"
        for name, tensor in state.items()
        if name in own and own[name].shape != tensor.shape
    ]
    problems = [
        f"{label}: {', '.join(names[:_SHOWN])}{f' and {len(names) - _SHOWN} more' if len(names) > _SHOWN else ''}"
        for label, names in (("missing", missing), ("not in the model", surplus), ("other sizes", sizes))
        if names
    ]
    if problems:
        raise errors.InputError(
            f"weights {str(choice.path)!r} do not fit the model file's model: {'; '.join(problems)}. Give a "
            "checkpoint of this exact model: same backbone, necks, decoder, classes and auxiliary decoders."
        )
    model.load_state_dict(state, strict=False)
    used = {id(value) for value in kept.values()}
    weights.note(
        state_files.unused_note([name for name, value in read.items() if id(value) not in used], len(read)), choice
    )


def _unwrapped(state: Mapping[str, torch.Tensor], own: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the model's entries, without the wrapper prefixes `module.` and `model.`."""
    kept = dict(state)
    for prefix in (_PARALLEL, _LIGHTNING, _PARALLEL):
        inside = {name.removeprefix(prefix): value for name, value in kept.items() if name.startswith(prefix)}
        if inside and not any(name in own for name in kept):
            kept = inside
    return kept


def _renamed(name: str, own: Mapping[str, torch.Tensor]) -> str:
    """Return the name of a tensor in genenc's model: `encoder.body.X` for TerraTorch's `encoder.X`."""
    if name in own:
        return name
    for prefix in ("encoder.base_model.model.", "encoder.encoder.", "encoder."):
        rest = name.removeprefix(prefix).removeprefix("_timm_module.")
        if name.startswith(prefix) and f"{prefix}body.{rest}" in own:
            return f"{prefix}body.{rest}"
    return name


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
    feature, and returns a list of features; a decoder has `out_channels`, one number, takes that list, and sets
    `includes_head = True` if no head follows. `necks` are dicts with `name` and arguments, or modules with
    `process_channel_list`. Arguments `backbone_*`, `decoder_*` and `head_*` are merged with `backbone_kwargs`,
    `decoder_kwargs` and `head_kwargs`. The caller's dicts are not modified. `peft_config` has `method`, `replace_qkv`
    and `peft_config_kwargs`.

    Raises:
        InputError: an unknown task, name or argument, one given twice or missing, or incompatible parts.
    """
    model_plan = plan.make(
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
    return from_plan(model_plan)


def from_plan(model_plan: plan.Plan) -> task_models.TaskModel:
    """Build the model of a plan.

    Raises:
        InputError: parts that cannot be built or are incompatible.
    """
    encoder = _backbone(model_plan)
    layout: feats.PatchTokens | None = getattr(encoder, "tokens", None)
    patch_size = model_plan.patch_size if model_plan.patch_size is not None else task_models.patch_size_of(encoder)
    if model_plan.adapter is not None:
        encoder = _adapted(encoder, model_plan)
    channel_list = _out_channels(encoder)
    neck, channel_list = _necks(model_plan, channel_list, layout)
    decoder, head = _decoder_and_head(model_plan.task, model_plan.main, channel_list, layout)
    auxiliary = {
        name: nn.Sequential(*_decoder_and_head(model_plan.task, aux, channel_list, layout))
        for name, aux in model_plan.auxiliary.items()
    }
    shared: dict[str, Any] = {
        "channel_list": channel_list,
        "patch_size": patch_size,
        "padding": model_plan.padding,
        "neck": neck,
        "aux_heads": auxiliary,
    }
    model: task_models.TaskModel
    if model_plan.task in plan.PIXEL_WISE_TASKS:
        model = task_models.PixelWiseModel(
            model_plan.task, encoder, decoder, head, rescale=model_plan.rescale, **shared
        )
    else:
        model = task_models.ScalarOutputModel(model_plan.task, encoder, decoder, head, **shared)
    return model.train()


def _backbone(model_plan: plan.Plan) -> nn.Module:
    if isinstance(model_plan.backbone, nn.Module):
        encoder = model_plan.backbone
    else:
        encoder = registries.BACKBONE_REGISTRY.build(model_plan.backbone, **model_plan.backbone_kwargs)
    _out_channels(encoder)
    return encoder if model_plan.temporal is None else temporal.TemporalWrapper(encoder, **model_plan.temporal)


def _out_channels(encoder: nn.Module) -> list[int]:
    channels = getattr(encoder, "out_channels", None)
    listed = list(channels) if isinstance(channels, list | tuple) else []
    if not listed or not all(isinstance(value, int) for value in listed):
        raise errors.InputError(
            f"the backbone {type(encoder).__name__} must have an attribute out_channels, one number per feature, not "
            f"{channels!r}."
        )
    return listed


def _adapted(encoder: nn.Module, model_plan: plan.Plan) -> nn.Module:
    assert model_plan.adapter is not None
    if not isinstance(model_plan.backbone, nn.Module) and not model_plan.backbone_kwargs.get("pretrained", False):
        text = "peft_config on a backbone without pretrained weights: an adapter learns little on random weights"
        warnings.warn(text, UserWarning, stacklevel=4)
    return adapters.adapted(encoder, model_plan.adapter)


def _necks(
    model_plan: plan.Plan, channel_list: list[int], layout: feats.PatchTokens | None
) -> tuple[nn.Module | None, list[int]]:
    if not model_plan.necks:
        return None, channel_list
    built: list[nn.Module] = []
    for named, options in model_plan.necks:
        neck = named if isinstance(named, nn.Module) else _built("neck", named, channel_list, options)
        _set_token_layout(neck, layout)
        if not hasattr(neck, "process_channel_list"):
            raise errors.InputError(f"the neck {type(neck).__name__} must have a method process_channel_list.")
        channel_list = [int(value) for value in neck.process_channel_list(list(channel_list))]  # type: ignore[operator]
        built.append(neck)
    return task_models.NeckSequence(*built), channel_list


def _decoder_and_head(
    task: str, decoder_plan: plan.DecoderPlan, channel_list: list[int], layout: feats.PatchTokens | None
) -> tuple[nn.Module, nn.Module]:
    if isinstance(decoder_plan.decoder, nn.Module):
        decoder = decoder_plan.decoder
    else:
        decoder = _built("decoder", decoder_plan.decoder, channel_list, decoder_plan.decoder_kwargs)
    _set_token_layout(decoder, layout)
    if decoder_plan.head_kwargs is None:
        return decoder, nn.Identity()
    channels = getattr(decoder, "out_channels", None)
    if not isinstance(channels, int):
        raise errors.InputError(
            f"the decoder {type(decoder).__name__} must have an attribute out_channels, one number; or includes_head = "
            "True if it includes a head."
        )
    return decoder, heads.HEADS[task](channels, **decoder_plan.head_kwargs)


def _built(kind: str, name: str, channel_list: list[int], options: Mapping[str, Any]) -> nn.Module:
    source = registries.NECK_REGISTRY if kind == "neck" else registries.DECODER_REGISTRY
    try:
        module: nn.Module = source.build(name, list(channel_list), **options)
    except (TypeError, ValueError, IndexError, RuntimeError) as error:
        raise errors.InputError(
            f"the {kind} {name!r} cannot be built for features with {channel_list} channels and {dict(options)}: "
            f"{errors.reason(error)}."
        ) from error
    return module


def _set_token_layout(part: nn.Module, layout: feats.PatchTokens | None) -> None:
    """Set the token layout of a part that has an unset attribute `tokens`."""
    if layout is not None and hasattr(type(part), "tokens") and getattr(part, "tokens", None) is None:
        part.tokens = layout  # type: ignore[assignment]
