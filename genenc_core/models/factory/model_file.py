"""A model file: the arguments of `build_model` as TOML or YAML, and the encoder that it describes."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from genenc_core import errors, spec
from genenc_core.models import trust
from genenc_core.models.encoder import Parts
from genenc_core.models.factory import backbones, checkpoints, file_content, plan, registries, registry, sizes, trunk
from genenc_core.models.factory import build as builder
from genenc_core.models.factory import features as feats
from genenc_core.models.weights import WeightsChoice, construction_rng

OWN_KEYS = ("image_size", "mean", "std", "fit", "interpolation", "outputs")
_TASK_CLASSES = {
    "SemanticSegmentationTask": "segmentation",
    "PixelwiseRegressionTask": "regression",
    "ClassificationTask": "classification",
}
_WORDS = {"fit": ("stretch", "crop", "pad"), "interpolation": ("bilinear", "bicubic")}
_FACTORY = "EncoderDecoderFactory"


def read(path: Path, *, trusted: bool = False, task_aux_heads: bool = True) -> str:
    """Return the content of a model file as canonical JSON text (sorted keys, backbone and decoder with prefixes).

    The arguments of `build_model` stand at the top level, under `model_args`, or where a TerraTorch configuration
    has them (`model.init_args.model_args`); beside them our own keys `image_size`, `mean`, `std`, `fit`,
    `interpolation` and `outputs`. A backbone of somebody's own code is imported for it, if that is `trusted`. Without
    `task_aux_heads` the `aux_heads` of a configuration's task are left aside; no slot comes from them.

    Raises:
        InputError: the file cannot be read, does not describe a model (the key is named), or names unknown code.
    """
    arguments = _flattened_of(path, task_aux_heads)
    named = arguments.get("backbone")
    trust.require(trust.dotted(named) if isinstance(named, str) else None, who=_who(path), trust=trusted)
    try:
        _checked(arguments)
        return canonical(arguments)
    except errors.InputError as error:
        raise errors.InputError(f"{_who(path)}: {error}") from error


def _who(path: Path) -> str:
    return f"model file {str(path)!r}"


def _flattened_of(path: Path, task_aux_heads: bool) -> dict[str, Any]:
    try:
        return _flattened(file_content.content(path), task_aux_heads)
    except errors.InputError as error:
        raise errors.InputError(f"{_who(path)}: {error}") from error


def canonical(arguments: Mapping[str, Any]) -> str:
    """Return arguments as JSON text that is the same for the same model.

    Raises:
        InputError: a value that JSON does not have.
    """
    named = dict(arguments)
    named["backbone"] = registries.BACKBONE_REGISTRY.canonical(named["backbone"])
    named["decoder"] = registries.DECODER_REGISTRY.canonical(named["decoder"])
    try:
        return json.dumps(named, sort_keys=True, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise errors.InputError(f"a value is not text, a number, true, false, a list or a table: {error}.") from error


def build(arguments: str, choice: WeightsChoice, image_size: tuple[int, int] | None) -> Parts:
    """Build what `read` returned, as an encoder of RGB images.

    `random:SEED` seeds all weights; `pretrained` downloads the backbone's, and the rest is random (seed 0); a file
    holds the whole model's state dict, or is a checkpoint that TerraTorch wrote.

    Raises:
        InputError: arguments that do not fit each other, unusable weights or size, or no RGB backbone.
    """
    given: dict[str, Any] = json.loads(arguments)
    own = {key: given.pop(key) for key in OWN_KEYS if key in given}
    outputs = tuple(own.get("outputs", ("logits",)))
    made = plan.made(given)
    if made.temporal is not None:
        raise errors.InputError("backbone_use_temporal: an image is one time step; such a model encodes no images.")
    size = image_size or backbones.as_size(own.get("image_size"))
    made = sizes.with_weights(sizes.with_size(made, size), choice, outputs)
    with construction_rng(choice):
        model = builder.from_plan(made)
    if choice.path is not None:
        checkpoints.load(choice, model)
    trunk.without_the_unused(model, outputs)
    inputs = sizes.inputs_of(model.encoder)
    preprocessing = _preprocessing(made.task, own, inputs, size)
    mean, std = (_three(key, own.get(key, getattr(inputs, key))) for key in ("mean", "std"))
    model.eval()
    wanted = (preprocessing.height, preprocessing.width)
    padded = model.padded_size(wanted)
    return Parts(
        model=model,
        trunk=trunk.TaskTrunk(model, outputs, size=wanted),
        preprocessing=preprocessing,
        mean=mean,
        std=std,
        padded_inside=None if padded == wanted else padded,
    )


def _flattened(content: dict[str, Any], task_aux_heads: bool) -> dict[str, Any]:
    """Return one level of arguments, wherever they stood."""
    if "model" in content:
        content = _configuration(content, task_aux_heads)
    nested = content.pop("model_args", None) or {}
    if not isinstance(nested, dict):
        raise errors.InputError("model_args must be names and values.")
    both = sorted(set(nested) & set(content))
    if both:
        raise errors.InputError(f"{both[0]!r} stands at the top level and in model_args; leave one of them out.")
    return {key: value for key, value in {**content, **nested}.items() if value is not None}


def _configuration(content: Mapping[str, Any], task_aux_heads: bool) -> dict[str, Any]:
    """Return what a TerraTorch configuration says of the model; how it is trained, and on what, is left aside."""
    model = content["model"]
    options = model.get("init_args") if isinstance(model, dict) else None
    task = str(model.get("class_path", "")).rpartition(".")[2] if isinstance(model, dict) else ""
    if not isinstance(options, dict) or task not in _TASK_CLASSES or "model_args" not in options:
        raise errors.InputError(
            "under 'model' it has no TerraTorch task with model_args: class_path must end in one of "
            f"{', '.join(_TASK_CLASSES)}."
        )
    factory = options.get("model_factory", _FACTORY)
    if factory != _FACTORY:
        raise errors.InputError(f"model_factory {factory!r} is not offered, only {_FACTORY}.")
    arguments = options["model_args"]
    if not isinstance(arguments, dict):
        raise errors.InputError("model_args must be names and values.")
    if options.get("aux_heads") and task_aux_heads:
        if arguments.get("aux_decoders"):
            raise errors.InputError("aux_heads of the task and aux_decoders of model_args are the same; give one.")
        # TerraTorch's tasks hand their auxiliary heads to the factory under this name.
        arguments = {**arguments, "aux_decoders": options["aux_heads"]}
    beside = {key: content[key] for key in OWN_KEYS if key in content}
    return {**beside, "task": _TASK_CLASSES[task], "model_args": {k: v for k, v in arguments.items() if k != "task"}}


def _checked(arguments: Mapping[str, Any]) -> None:
    """Check every key and value that can be checked without building anything."""
    names = [key for key in arguments if key not in OWN_KEYS and key not in plan.ARGUMENTS]
    stray = [key for key in names if not key.startswith(tuple(f"{word}_" for word in plan.PREFIXED))]
    if stray:
        known = [*OWN_KEYS, *plan.ARGUMENTS, "model_args"]
        raise errors.InputError(f"it has an unknown key {stray[0]!r}.{registry.nearest(stray[0], known)}")
    made = plan.made({key: value for key, value in arguments.items() if key not in OWN_KEYS})
    if made.temporal is not None:
        raise errors.InputError("backbone_use_temporal: an image is one time step; such a model encodes no images.")
    backbones.as_size(arguments.get("image_size"))
    for key, words in _WORDS.items():
        if arguments.get(key, words[0]) not in words:
            raise errors.InputError(f"{key} {arguments[key]!r} is none of {', '.join(words)}.")
    for key in ("mean", "std"):
        if key in arguments:
            _three(key, arguments[key])
    outputs = arguments.get("outputs", ["logits"])
    if not isinstance(outputs, list) or not outputs or len({*map(str, outputs)}) != len(outputs):
        raise errors.InputError(f"outputs {outputs!r} must be a list of different words: {', '.join(trunk.OUTPUTS)}.")
    wrong = [word for word in outputs if word not in trunk.OUTPUTS]
    if wrong:
        raise errors.InputError(f"outputs: {wrong[0]!r} is none of {', '.join(trunk.OUTPUTS)}.")


def _preprocessing(
    task: str, own: Mapping[str, Any], inputs: feats.InputInfo, size: feats.Size | None
) -> spec.Preprocessing:
    height, width = size or (inputs.height, inputs.width)
    short = inputs.resize_short
    # Maps and points belong to the whole image; a class is judged from what the backbone's evaluation shows it.
    fit: spec.Fit = own.get("fit") or ("crop" if task == "classification" and short else "stretch")
    scaled = None if short is None else max(round(short * min(height, width) / min(inputs.height, inputs.width)), 1)
    return spec.Preprocessing(
        height=height,
        width=width,
        fit=fit,
        interpolation=own.get("interpolation", inputs.interpolation),
        resize_short=scaled if fit == "crop" else None,
    )


def _three(key: str, given: Any) -> tuple[float, float, float]:
    values = list(given) if isinstance(given, list | tuple) else []
    good = len(values) == 3 and all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)
    if not good or (key == "std" and min(values) <= 0):
        raise errors.InputError(f"{key} {given!r} must be three numbers, of R, G and B in [0, 1]; std above 0.")
    return float(values[0]), float(values[1]), float(values[2])
