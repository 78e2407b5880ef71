"""Model files: arguments of `build_model` as TOML or YAML, and the encoders that they describe."""

import difflib
import json
import tomllib
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from genenc_core import errors, spec
from genenc_core.factory import backbones, build_model, plan, registries, registry, task_encoder
from genenc_core.factory import build_model as builder
from genenc_core.factory import features as feats
from genenc_core.models import channels as adapting
from genenc_core.models import trust
from genenc_core.models.encoder_module import Parts, PerChannel, warn_of_size
from genenc_core.models.sources import channel_loading
from genenc_core.models.weights import WeightsChoice, construction_rng
from genenc_core.system import small_files

MAX_BYTES = 2**16
MAX_DEPTH = 64
MAX_NODES = 20_000
"""values of a YAML file with all aliases expanded"""
OWN_KEYS = ("image_size", "mean", "std", "fit", "interpolation", "outputs")
_TASK_CLASSES = {
    "SemanticSegmentationTask": "segmentation",
    "PixelwiseRegressionTask": "regression",
    "ClassificationTask": "classification",
}
_CHOICES = {"fit": ("stretch", "crop", "pad"), "interpolation": ("bilinear", "bicubic")}
_NO_TEMPORAL = "backbone_use_temporal: an image is one time step, so a temporal model cannot encode images; omit it."
_FACTORY = "EncoderDecoderFactory"
_PIXEL_KEYS = ("band", "mean", "std", "rgb_", "normal", "scale")
"""parts of keys in a configuration's data that describe how images are prepared for the model"""

_MAX_NAMED = 8
_COLOURS = ["RED", "GREEN", "BLUE"]
_SIMILAR = 0.85
"""Similarity of a key to one of genenc's own from which it is taken for a slip of that"""


def read_content(path: Path) -> dict[str, Any]:
    """Read the mapping in a model file, safely: no object of any other class is constructed.

    Raises:
        InputError: it cannot be read, or is not a mapping; the message does not name the file.
    """
    try:
        text = small_files.read_text(path, most=MAX_BYTES)
        _check_depth(text)
        content = tomllib.loads(text) if path.suffix.lower() == ".toml" else _yaml(text)
    except errors.InputError as error:
        raise errors.InputError(f"it cannot be read: {error}") from error
    except RecursionError as error:
        raise errors.InputError("it cannot be read: its values are nested too deeply.") from error
    except (ValueError, yaml.YAMLError) as error:
        raise errors.InputError(f"it cannot be read: {errors.reason(error)}.") from error
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise errors.InputError("it is not a mapping. Give at least task, backbone and decoder.")
    return content


def _check_depth(text: str) -> None:
    """Reject deeply nested brackets before parsing, since the YAML parser takes time quadratic in their depth."""
    depth = 0
    for char in text:
        if char in "[{":
            depth += 1
        elif char in "]}":
            depth = max(depth - 1, 0)
        if depth > MAX_DEPTH:
            raise errors.InputError(f"its values are nested too deeply: more than {MAX_DEPTH} open brackets.")


def _yaml(text: str) -> Any:
    loader = yaml.SafeLoader(text)
    try:
        root = loader.get_single_node()
        # Aliases are shared here, but merge keys (`<<`) and JSON would copy the values they refer to.
        if root is not None and _expanded_count(root, {}, set()) > MAX_NODES:
            raise errors.InputError(f"its aliases expand to more than {MAX_NODES} values")
        return None if root is None else loader.construct_document(root)
    finally:
        loader.dispose()


def _expanded_count(node: yaml.Node, known: dict[int, int], open_nodes: set[int]) -> int:
    """Return the number of values of a node with all aliases expanded."""
    key = id(node)
    if key in open_nodes:
        raise errors.InputError("one of its values contains itself")
    if key not in known:
        open_nodes.add(key)
        inner: list[yaml.Node] = []
        if isinstance(node, yaml.MappingNode):
            inner = [part for pair in node.value for part in pair]
            _refuse_repeated(node)
        elif isinstance(node, yaml.SequenceNode):
            inner = node.value
        known[key] = 1 + sum(_expanded_count(part, known, open_nodes) for part in inner)
        open_nodes.discard(key)
    return known[key]


def _refuse_repeated(node: yaml.MappingNode) -> None:
    """Refuse a key that is given twice, of which YAML's parser would take the last one."""
    names = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode) and key.value != "<<"]
    repeated = [name for name, count in Counter(names).items() if count > 1]
    if repeated:
        line = node.start_mark.line + 1
        raise errors.InputError(f"the key {repeated[0]!r} is given twice in the mapping that begins in line {line}")


class DataIgnoredWarning(UserWarning):
    """A configuration describes how images are prepared for the model, which is ignored."""


def read(path: Path, *, trusted: bool = False, task_aux_heads: bool = True) -> str:
    """Return the content of a model file as canonical JSON (sorted keys, backbone and decoder with prefixes).

    The arguments of `build_model` are at the top level, under `model_args`, or where a TerraTorch configuration has
    them (`model.init_args.model_args`); genenc's own keys `image_size`, `mean`, `std`, `fit`, `interpolation` and
    `outputs` are at the top level. A backbone in user code is imported if `trusted`. Unless `task_aux_heads`, the
    `aux_heads` of a configuration's task are ignored; they never become slots.

    Raises:
        InputError: the file cannot be read, does not describe a model (the key is named), or names untrusted code.
    """
    try:
        content = read_content(path)
        arguments = _flattened(content, task_aux_heads)
    except errors.InputError as error:
        raise errors.InputError(f"{_who(path)}: {error}") from error
    _warn_of_ignored_data(path, content.get("data"), arguments)
    named = arguments.get("backbone")
    trust.require(trust.dotted(named) if isinstance(named, str) else None, who=_who(path), trust=trusted)
    try:
        _check(arguments)
        return canonical(arguments)
    except errors.InputError as error:
        raise errors.InputError(f"{_who(path)}: {error}") from error


def _warn_of_ignored_data(path: Path, data: object, arguments: Mapping[str, Any]) -> None:
    """Warn about a data module, which has its own bands and statistics, stated in the file or not."""
    order = next(_colour_orders(data), None)
    if order is not None:
        warnings.warn(
            f"{_who(path)} describes under 'data' three bands in the order {', '.join(order)}: images are given as "
            "RGB, red first. If the model was trained in the other order, wrap it in a package.module:factory that "
            "reorders the channels (x[:, [2, 1, 0]])",
            DataIgnoredWarning,
            stacklevel=3,
        )
    ignored = [*dict.fromkeys(_pixel_keys(data))][:_MAX_NAMED]
    if ignored and not {"mean", "std"} <= arguments.keys():
        warnings.warn(
            f"{_who(path)} describes under 'data' how images are prepared for the model ({', '.join(ignored)}), which "
            "is ignored: images are RGB, normalised as for the backbone's own weights, unless the backbone takes other "
            "channels. If the model was trained differently, add mean and std per channel in [0, 1] at the top level",
            DataIgnoredWarning,
            stacklevel=3,
        )


def _colour_orders(data: object) -> Iterator[list[str]]:
    """Yield lists of the three colours that are in another order than red, green, blue, at any depth."""
    if isinstance(data, dict):
        data = list(data.values())
    if not isinstance(data, list):
        return
    names = [str(item).rpartition(".")[2].upper() for item in data]
    if sorted(names) == sorted(_COLOURS) and names != _COLOURS:
        yield names
    for item in data:
        yield from _colour_orders(item)


def _pixel_keys(data: object) -> Iterator[str]:
    """Yield the data classes, and the keys that describe the preparation of images, at any depth."""
    if isinstance(data, list):
        for item in data:
            yield from _pixel_keys(item)
    if not isinstance(data, dict):
        return
    for key, value in data.items():
        if key == "class_path" and isinstance(value, str):
            yield value.rpartition(".")[2]
        elif value is not None and any(part in str(key).lower() for part in _PIXEL_KEYS):
            yield str(key)
        else:
            yield from _pixel_keys(value)


def _who(path: Path) -> str:
    return f"model file {str(path)!r}"


def canonical(arguments: Mapping[str, Any]) -> str:
    """Return arguments as JSON, equal for equal models.

    Raises:
        InputError: a value that JSON cannot represent.
    """
    named = dict(arguments)
    named["backbone"] = registries.BACKBONE_REGISTRY.canonical(named["backbone"])
    named["decoder"] = registries.DECODER_REGISTRY.canonical(named["decoder"])
    try:
        return json.dumps(named, sort_keys=True, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise errors.InputError(f"a value is not text, number, true, false, list or table: {error}.") from error


def build(
    arguments: str, choice: WeightsChoice, image_size: tuple[int, int] | None, channels: int | None = None
) -> Parts:
    """Build an encoder of images from the result of `read`.

    `channels` of the images must be those of its backbone, if it is not None.

    `random:SEED` seeds all weights; `pretrained` downloads the backbone's, the rest is random (seed 0); a file holds
    the whole model's state dict, or a TerraTorch checkpoint.

    Raises:
        InputError: incompatible arguments, unusable weights or size, or a backbone of other channels.
    """
    options: dict[str, Any] = json.loads(arguments)
    own = {key: options.pop(key) for key in OWN_KEYS if key in options}
    outputs = tuple(own.get("outputs", ("logits",)))
    model_plan = plan.make(options)
    if model_plan.temporal is not None:
        raise errors.InputError(_NO_TEMPORAL)
    size = image_size or backbones.as_size(own.get("image_size"))
    model_plan = task_encoder.with_size(task_encoder.with_channels(model_plan), size)
    model_plan = task_encoder.with_weights(model_plan, choice, outputs)
    with construction_rng(choice):
        model = builder.from_plan(model_plan)
    if choice.path is not None:
        build_model.load(choice, model)
    task_encoder.drop_unused_parts(model, outputs)
    inputs = task_encoder.inputs_of(model.encoder, model_plan)
    task_encoder.refuse_other_channels(inputs, channels)
    preprocessing = _preprocessing(model_plan.task, own, inputs, size)
    if size is None and not isinstance(getattr(model.encoder, "inputs", None), feats.InputInfo):
        warn_of_size(str(model_plan.backbone), preprocessing)
    mean, std = (
        _numbers(key, own[key], inputs.channels)
        if key in own
        else adapting.adapted_statistics(getattr(inputs, key), inputs.channels)
        for key in ("mean", "std")
    )
    model.eval()
    wanted = (preprocessing.height, preprocessing.width)
    padded = model.padded_size(wanted)
    return Parts(
        model=model,
        trunk=task_encoder.TaskTrunk(model, outputs, size=wanted),
        preprocessing=channel_loading.for_channels(preprocessing, inputs.channels),
        mean=mean,
        std=std,
        statistics_adapted=inputs.channels != adapting.RGB and not {"mean", "std"} <= own.keys(),
        padded_inside=None if padded == wanted else padded,
    )


def _flattened(content: dict[str, Any], task_aux_heads: bool) -> dict[str, Any]:
    """Return the arguments at one level, from wherever they are in the file."""
    if "model" in content:
        content = _configuration(content, task_aux_heads)
    nested = content.pop("model_args", None) or {}
    if not isinstance(nested, dict):
        raise errors.InputError("model_args must be a mapping.")
    both = sorted(set(nested) & set(content))
    if both:
        raise errors.InputError(f"{both[0]!r} is given at the top level and in model_args; remove one of them.")
    return {key: value for key, value in {**content, **nested}.items() if value is not None}


def _configuration(content: Mapping[str, Any], task_aux_heads: bool) -> dict[str, Any]:
    """Return the model arguments of a TerraTorch configuration, without its training and data options."""
    model = content["model"]
    options = model.get("init_args") if isinstance(model, dict) else None
    task = str(model.get("class_path", "")).rpartition(".")[2] if isinstance(model, dict) else ""
    if not isinstance(options, dict) or task not in _TASK_CLASSES or "model_args" not in options:
        raise errors.InputError(
            "it has no TerraTorch task with model_args under 'model': class_path must end in one of "
            f"{', '.join(_TASK_CLASSES)}."
        )
    factory = options.get("model_factory", _FACTORY)
    if factory != _FACTORY:
        raise errors.InputError(f"model_factory {factory!r} is not supported, only {_FACTORY}.")
    arguments = options["model_args"]
    if not isinstance(arguments, dict):
        raise errors.InputError("model_args must be a mapping.")
    if options.get("aux_heads") and task_aux_heads:
        if arguments.get("aux_decoders"):
            raise errors.InputError("aux_heads of the task and aux_decoders of model_args are the same; give one.")
        # TerraTorch's tasks pass their auxiliary heads to the factory under this name.
        arguments = {**arguments, "aux_decoders": options["aux_heads"]}
    for key in content:
        meant = difflib.get_close_matches(_plain(key), map(_plain, OWN_KEYS), n=1, cutoff=_SIMILAR)
        if meant and key not in OWN_KEYS:
            own_key = next(name for name in OWN_KEYS if _plain(name) == meant[0])
            raise errors.InputError(f"it has an unknown key {key!r} at the top level; did you mean {own_key!r}?")
    misplaced = [key for key in OWN_KEYS if key in options or key in model]
    if misplaced:
        raise errors.InputError(f"{misplaced[0]!r} stands under 'model'; genenc reads it at the top level.")
    own = {key: content[key] for key in OWN_KEYS if key in content}
    return {**own, "task": _TASK_CLASSES[task], "model_args": {k: v for k, v in arguments.items() if k != "task"}}


def _plain(key: str) -> str:
    return key.lower().replace("_", "").replace("-", "")


def _check(arguments: Mapping[str, Any]) -> None:
    """Check all keys and values that can be checked without building anything."""
    names = [key for key in arguments if key not in OWN_KEYS and key not in plan.ARGUMENTS]
    stray = [key for key in names if not key.startswith(tuple(f"{prefix}_" for prefix in plan.PREFIXED))]
    if stray:
        known = [*OWN_KEYS, *plan.ARGUMENTS, "model_args"]
        raise errors.InputError(f"it has an unknown key {stray[0]!r}.{registry.nearest(stray[0], known)}")
    model_plan = plan.make({key: value for key, value in arguments.items() if key not in OWN_KEYS})
    if model_plan.temporal is not None:
        raise errors.InputError(_NO_TEMPORAL)
    backbones.as_size(arguments.get("image_size"))
    for key, choices in _CHOICES.items():
        if arguments.get(key, choices[0]) not in choices:
            raise errors.InputError(f"{key} {arguments[key]!r} is not one of {', '.join(choices)}.")
    for key in ("mean", "std"):
        if key in arguments:
            _numbers(key, arguments[key], _stated_channels(model_plan))
    outputs = arguments.get("outputs", ["logits"])
    if not isinstance(outputs, list) or not outputs or len({*map(str, outputs)}) != len(outputs):
        raise errors.InputError(
            f"outputs {outputs!r} must be a list of distinct names from {', '.join(task_encoder.OUTPUTS)}."
        )
    wrong = [name for name in outputs if name not in task_encoder.OUTPUTS]
    if wrong:
        raise errors.InputError(f"outputs: {wrong[0]!r} is not one of {', '.join(task_encoder.OUTPUTS)}.")


def _preprocessing(
    task: str, own: Mapping[str, Any], inputs: feats.InputInfo, size: feats.Size | None
) -> spec.Preprocessing:
    height, width = size or (inputs.height, inputs.width)
    short = inputs.resize_short
    # Maps and points need the whole image; classification uses the crop of the backbone's evaluation.
    fit: spec.Fit = own.get("fit") or ("crop" if task == "classification" and short else "stretch")
    scaled = None if short is None else max(round(short * min(height, width) / min(inputs.height, inputs.width)), 1)
    return spec.Preprocessing(
        height=height,
        width=width,
        fit=fit,
        interpolation=own.get("interpolation", inputs.interpolation),
        resize_short=scaled if fit == "crop" else None,
    )


def _stated_channels(model_plan: plan.Plan) -> int | None:
    """Return the channels of the images by the model file alone; None if the backbone's own code says them."""
    count = backbones.channels_in(model_plan.backbone_kwargs)
    is_named = isinstance(model_plan.backbone, str)
    known = is_named and registries.BACKBONE_REGISTRY.split(str(model_plan.backbone))[0] != "python"
    return count or (adapting.RGB if known else None)


def _numbers(key: str, given: Any, count: int | None) -> PerChannel:
    """Return mean or std as numbers, one per channel; `count` None: any number of them."""
    values = list(given) if isinstance(given, list | tuple) else []
    good = bool(values) and all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)
    if not good or (key == "std" and min(values) <= 0) or count not in (None, len(values)):
        what = "three numbers, for R, G and B in [0, 1]"
        if count not in (None, adapting.RGB):
            what = f"{count} numbers, one per channel"
        raise errors.InputError(f"{key} {given!r} must be {what}; std above 0.")
    return tuple(float(value) for value in values)
