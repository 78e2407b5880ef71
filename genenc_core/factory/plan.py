"""Plans of models: the arguments of `build_model`, sorted by part and validated before anything is built."""

import inspect
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from genenc_core import errors
from genenc_core.factory import adapters, heads, registries, registry, task_models

Options = dict[str, Any]
PIXEL_WISE_TASKS = ("segmentation", "regression")
TASKS = (*PIXEL_WISE_TASKS, "classification")
PREFIXED = ("backbone", "decoder", "head")
ARGUMENTS = (
    "task",
    "backbone",
    "decoder",
    "backbone_kwargs",
    "decoder_kwargs",
    "head_kwargs",
    "num_classes",
    "necks",
    "aux_decoders",
    "rescale",
    "peft_config",
)
_TEMPORAL = ("use_temporal", "temporal_")
_TEMPORAL_OPTIONS = (
    "use_temporal",
    "temporal_pooling",
    "temporal_concat",
    "temporal_n_timestamps",
    "temporal_features_permute_op",
    "temporal_subset_lengths",
)
_PADDINGS = ("reflect", "replicate", "constant", "circular")


def split(arguments: Mapping[str, Any], prefixes: Iterable[str]) -> tuple[dict[str, Options], Options]:
    """Group arguments by prefix (`prefix_x` merged with `prefix_kwargs`); return the groups and the rest.

    Raises:
        InputError: an argument is given both ways.
    """
    if not isinstance(arguments, Mapping):
        raise errors.InputError(f"{arguments!r} must be a mapping.")
    groups: dict[str, Options] = {}
    rest = dict(arguments)
    for prefix in prefixes:
        merged = rest.pop(f"{prefix}_kwargs", None) or {}
        if not isinstance(merged, Mapping):
            raise errors.InputError(f"{prefix}_kwargs {merged!r} must be a mapping.")
        single = {key.removeprefix(f"{prefix}_"): rest.pop(key) for key in list(rest) if key.startswith(f"{prefix}_")}
        both = sorted(set(merged) & set(single))
        if both:
            raise errors.InputError(
                f"{prefix}_{both[0]} is given twice: as {prefix}_{both[0]} and in {prefix}_kwargs. Remove one of them."
            )
        groups[prefix] = {**merged, **single}
    return groups, rest


def check(who: str, prefix: str, signature: inspect.Signature | None, given: Mapping[str, Any]) -> None:
    """Check arguments against a constructor's parameters, except its first positional one (the channels).

    Raises:
        InputError: an unknown argument, with the known ones, or a missing one.
    """
    if signature is None:
        return
    parameters = dict(signature.parameters)
    keyword_only = {name: item for name, item in parameters.items() if item.kind is item.KEYWORD_ONLY}
    first = next(iter(parameters), None)
    if not who.startswith("backbone") and first is not None and first not in keyword_only:
        del parameters[first]
    if any(item.kind is item.VAR_KEYWORD for item in parameters.values()):
        return
    unknown = sorted(set(given) - set(parameters))
    if unknown:
        known = ", ".join(f"{prefix}{name}" for name in parameters) or "none"
        raise errors.InputError(
            f"argument {prefix}{unknown[0]} = {given[unknown[0]]!r} is not used: {who} does not accept it. It accepts: "
            f"{known}."
        )
    missing = [
        name
        for name, item in parameters.items()
        if item.default is item.empty and item.kind is not item.VAR_POSITIONAL and name not in given
    ]
    if missing:
        raise errors.InputError(f"{who} needs {prefix}{missing[0]}.")


@dataclass(frozen=True, slots=True, kw_only=True)
class AuxiliaryHead:
    """An additional decoder of the same features; `decoder_args` holds its `decoder_*` and `head_*` arguments."""

    name: str
    decoder: str | nn.Module
    decoder_args: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class DecoderPlan:
    """A decoder with its arguments, and those of its head; None if the decoder includes its head."""

    decoder: str | nn.Module
    decoder_kwargs: Options
    head_kwargs: Options | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The parts that `build_model` builds, with their arguments."""

    task: str
    backbone: str | nn.Module
    backbone_kwargs: Options
    temporal: Options | None
    patch_size: Any
    padding: str
    necks: tuple[tuple[str | nn.Module, Options], ...]
    main: DecoderPlan
    auxiliary: dict[str, DecoderPlan] = field(default_factory=dict)
    rescale: bool
    adapter: adapters.AdapterConfig | None


def make(arguments: Mapping[str, Any]) -> Plan:
    """Sort the arguments of `build_model` by part and validate names, conflicts and the arguments of each part.

    Raises:
        InputError: an unknown task, part or argument, one given twice, or one that is missing.
    """
    task = _task(arguments.get("task"))
    groups, rest = split(arguments, PREFIXED)
    unused = sorted(set(rest) - set(ARGUMENTS))
    if unused:
        known = [*ARGUMENTS, "backbone_*", "decoder_*", "head_*"]
        raise errors.InputError(
            f"argument {unused[0]!r} = {rest[unused[0]]!r} is not used.{registry.nearest(unused[0], known)}"
            " Arguments of parts start with backbone_, decoder_ or head_."
        )
    backbone, decoder = (_part(rest.get(key), key) for key in ("backbone", "decoder"))
    num_classes = _num_classes(task, rest.get("num_classes"))
    temporal, padding, patch_size, backbone_kwargs = _backbone_options(backbone, groups["backbone"])
    main = _decoder_plan(task, decoder, groups["decoder"], groups["head"], num_classes)
    peft = rest.get("peft_config")
    return Plan(
        task=task,
        backbone=backbone,
        backbone_kwargs=backbone_kwargs,
        temporal=temporal,
        patch_size=patch_size,
        padding=padding,
        necks=tuple(_neck(item) for item in _list_of(rest, "necks")),
        main=main,
        auxiliary=_auxiliary(task, _list_of(rest, "aux_decoders"), num_classes),
        rescale=_flag("rescale", rest.get("rescale", True)),
        adapter=None if peft is None else adapters.check(peft),
    )


def _list_of(arguments: Mapping[str, Any], key: str) -> Sequence[Any]:
    value = arguments.get(key) or ()
    if not isinstance(value, list | tuple):
        raise errors.InputError(f"{key} must be a list, not {str(value)[:80]!r}.")
    return value


def _task(given: Any) -> str:
    task = given.lower() if isinstance(given, str) else given
    if task not in TASKS:
        raise errors.InputError(f"task {given!r} is not one of {', '.join(TASKS)}.")
    return str(task)


def _part(given: Any, key: str) -> str | nn.Module:
    if not isinstance(given, str | nn.Module):
        raise errors.InputError(f"{key} must be a name or a module, not {given!r}.")
    return given


def _flag(name: str, given: Any) -> bool:
    if not isinstance(given, bool):
        raise errors.InputError(f"{name} {given!r} must be true or false.")
    return given


def _num_classes(task: str, given: Any) -> int | None:
    if task == "regression":
        if given not in (None, 1):
            raise errors.InputError(f"num_classes {given!r}: regression predicts one value per pixel; omit it.")
        return None
    if not isinstance(given, int) or isinstance(given, bool) or given < 1:
        raise errors.InputError(f"num_classes must be an integer of at least 1 for {task}, not {given!r}.")
    return given


def _backbone_options(backbone: str | nn.Module, given: Options) -> tuple[Options | None, str, Any, Options]:
    """Split the backbone's options into temporal options, padding, patch size, and constructor arguments."""
    own = dict(given)
    temporal = {key: own.pop(key) for key in list(own) if key.startswith(_TEMPORAL)}
    padding = own.pop("padding", "reflect")
    if padding not in _PADDINGS:
        raise errors.InputError(f"backbone_padding {padding!r} is not one of {', '.join(_PADDINGS)}.")
    patch_size = own.get("patch_size")
    task_models.patch_sides(patch_size)
    if isinstance(backbone, nn.Module):
        own.pop("patch_size", None)
        if own:
            raise errors.InputError(
                f"backbone_{min(own)}: the backbone is already a module, so its arguments are not used."
            )
    else:
        signature = registries.BACKBONE_REGISTRY.signature(backbone)
        if signature is not None:
            if "patch_size" not in signature.parameters:
                own.pop("patch_size", None)
            check(f"backbone {backbone!r}", "backbone_", signature, own)
    return _temporal(temporal), padding, patch_size, own


def _temporal(given: Options) -> Options | None:
    unknown = sorted(set(given) - set(_TEMPORAL_OPTIONS))
    if unknown:
        raise errors.InputError(f"there is no backbone_{unknown[0]}.{registry.nearest(unknown[0], _TEMPORAL_OPTIONS)}")
    if not _flag("backbone_use_temporal", given.get("use_temporal", False)):
        rest = sorted(set(given) - {"use_temporal"})
        if rest:
            raise errors.InputError(f"backbone_{rest[0]} is not used without backbone_use_temporal true.")
        return None
    options = {key.removeprefix("temporal_"): value for key, value in given.items() if key != "use_temporal"}
    if options.pop("concat", None):
        if options.get("pooling", "concat") != "concat":
            raise errors.InputError("backbone_temporal_concat contradicts backbone_temporal_pooling; omit it.")
        options["pooling"] = "concat"
    return options


def _neck(given: Any) -> tuple[str | nn.Module, Options]:
    if isinstance(given, nn.Module):
        return given, {}
    if not isinstance(given, Mapping) or not isinstance(given.get("name"), str):
        raise errors.InputError(f"a neck must be a module, or a dict with 'name' and its arguments, not {given!r}.")
    options = {str(key): value for key, value in given.items() if key != "name"}
    name = given["name"]
    check(f"neck {name!r}", "", registries.NECK_REGISTRY.signature(name), options)
    return name, options


def _decoder_plan(
    task: str, decoder: str | nn.Module, decoder_kwargs: Options, head_kwargs: Options, num_classes: int | None
) -> DecoderPlan:
    decoder_kwargs = dict(decoder_kwargs)
    if isinstance(decoder, str):
        headed = registries.DECODER_REGISTRY.includes_head(decoder)
        signature = registries.DECODER_REGISTRY.signature(decoder)
        if headed and (signature is None or "num_classes" in signature.parameters):
            decoder_kwargs = {"num_classes": 1 if num_classes is None else num_classes, **decoder_kwargs}
        check(f"decoder {decoder!r}", "decoder_", signature, decoder_kwargs)
    else:
        headed = bool(getattr(decoder, "includes_head", False))
        if decoder_kwargs:
            raise errors.InputError(
                f"decoder_{min(decoder_kwargs)}: the decoder is already a module, so its arguments are not used."
            )
    if headed:
        if head_kwargs:
            raise errors.InputError(
                f"head_{min(head_kwargs)}: the decoder includes its head, so arguments of the head are not used."
            )
        return DecoderPlan(decoder=decoder, decoder_kwargs=decoder_kwargs, head_kwargs=None)
    head_kwargs = {**({} if num_classes is None else {"num_classes": num_classes}), **head_kwargs}
    check(f"the head for {task}", "head_", inspect.signature(heads.HEADS[task]), head_kwargs)
    return DecoderPlan(decoder=decoder, decoder_kwargs=decoder_kwargs, head_kwargs=head_kwargs)


def _auxiliary(task: str, given: Sequence[Any], num_classes: int | None) -> dict[str, DecoderPlan]:
    plans: dict[str, DecoderPlan] = {}
    for item in given:
        aux = item if isinstance(item, AuxiliaryHead) else _auxiliary_head(item)
        if aux.name in plans or not aux.name.isidentifier():
            raise errors.InputError(f"aux_decoders: the name {aux.name!r} must be a unique identifier.")
        options, rest = split(aux.decoder_args or {}, ("decoder", "head"))
        if rest:
            raise errors.InputError(
                f"aux_decoders: argument {min(rest)!r} of {aux.name!r} is not used; its arguments start with decoder_ "
                "or head_."
            )
        plans[aux.name] = _decoder_plan(task, aux.decoder, options["decoder"], options["head"], num_classes)
    return plans


def _auxiliary_head(given: Any) -> AuxiliaryHead:
    known = {"name", "decoder", "decoder_args"}
    if not isinstance(given, Mapping) or not {"name", "decoder"} <= set(given) <= known:
        raise errors.InputError(
            f"aux_decoders: {given!r} must be an AuxiliaryHead, or a dict with name, decoder and decoder_args."
        )
    return AuxiliaryHead(
        name=str(given["name"]), decoder=_part(given["decoder"], "decoder"), decoder_args=given.get("decoder_args")
    )
