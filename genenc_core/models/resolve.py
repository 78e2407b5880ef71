"""Resolution of model names to encoders (torchvision, timm, built-in, user factory), and the list of all names."""

import dataclasses
import difflib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from genenc_core import errors, spec
from genenc_core.choices import ZooSource
from genenc_core.factory import model_file
from genenc_core.models import channels, encoder_module, heads, layers, trust, user_code, weights
from genenc_core.models.sources import builtin_source, python_source, timm_source, torchvision_source

MODEL_FILE_SUFFIXES = (".toml", ".yaml", ".yml")


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelRequest:
    """A model with weights and input size (height, width); None is the model's own size."""

    name: str
    weights: str = "pretrained"
    image_size: tuple[int, int] | None = None
    layers: tuple[str, ...] = ()
    """module names or stage indices whose outputs become the slots; empty: the model's own outputs"""
    arguments: str | None = None
    """factory models only: content of the model file as canonical JSON; None until `resolved` has read it"""
    weights_key: str | None = None
    """entry of a weights file: its dotted name, `ema` or `plain`; None: timm's rule, EMA first"""
    trust: bool = False
    """allow the import of code that a model file names; code named by `name` itself is always imported"""
    task_aux_heads: bool = True
    """model files only: use the `aux_heads` of a TerraTorch task, which genenc 0.1.0 ignored"""
    channels: int | None = None
    """of the images, where they are not 8-bit RGB; None: RGB, or as the model declares"""
    statistics: tuple[encoder_module.PerChannel, encoder_module.PerChannel] | None = None
    """mean and std of these channels, or one number for all; None: the model's"""

    @property
    def code(self) -> str | None:
        """Dotted path of the user code that building the model imports; None if none or the file is not read yet."""
        return trust.code_of(*resolve_name(self.name), self.arguments)


@dataclass(frozen=True, slots=True, kw_only=True)
class BuiltEncoder:
    """An eager encoder with its metadata."""

    module: nn.Module
    """eval, float32, CPU, no gradients: [B, C, H, W] in [0, 1] -> tuple of maps [B, C, h, w]; normalises inside"""
    request: ModelRequest
    kind: spec.SourceKind
    weights_sha256: str | None
    """`weights.state_sha256` of the encoder's tensors, without the classifier; None: it has none"""
    parameters: int
    preprocessing: spec.Preprocessing
    mean: encoder_module.PerChannel
    std: encoder_module.PerChannel
    outputs: tuple[spec.SlotSpec, ...]
    """one per map, from a dry run; shapes without the batch"""
    own: user_code.Digests
    """digests of the user's code and files; empty for other models"""
    weights_entry: str | None = None
    """the entry of the weights file that was loaded; None: no file, or the file itself"""
    weights_notes: tuple[str, ...] = ()
    """how a weights file was read"""


def build_encoder(request: ModelRequest) -> BuiltEncoder:
    """Build the requested encoder.

    `name` is a built-in name, else a torchvision name, else a timm name; `genenc/NAME`, `torchvision/NAME` and
    `timm/NAME` select the source; `package.module:factory` is called without arguments; a `.toml` or `.yaml` file
    describes a model for the EncoderDecoderFactory. `weights` is `random:SEED` (seeded right before the
    constructor; the caller's generator is restored), `pretrained`, `pretrained:TAG`, or a file.

    Raises:
        InputError: unknown name (with the closest names), unusable weights or size, or no feature maps.
    """
    request = resolved(request)
    kind, parts = build_parts(request)
    module = encoder_module.from_parts(parts)
    size = parts.preprocessing
    outputs = encoder_module.dry_run(module, name=request.name, height=size.height, width=size.width)
    state = weights.encoder_state(parts.model, parts.trunk)
    module.slot_names = tuple(slot.name for slot in outputs)
    return BuiltEncoder(
        module=module,
        request=request,
        kind=kind,
        weights_sha256=weights.state_sha256(state) if state else None,
        parameters=sum(parameter.numel() for parameter in parts.trunk.parameters()),
        preprocessing=parts.preprocessing,
        mean=parts.mean,
        std=parts.std,
        outputs=outputs,
        weights_entry=parts.weights_entry,
        weights_notes=parts.weights_notes,
        own=user_code.digests(request.code, parts.model),
    )


def build_parts(request: ModelRequest) -> tuple[spec.SourceKind, encoder_module.Parts]:
    """Return the source and the parts of the requested model without running it; raises as `build_encoder`."""
    _check_size(request)
    request = resolved(request)
    kind, name = resolve_name(request.name)
    parts = _with_layers(kind, name, request)
    return kind, dataclasses.replace(parts, **_of_channels(request, parts))


def _with_layers(kind: spec.SourceKind, name: str, request: ModelRequest) -> encoder_module.Parts:
    """Return the parts of a model, with the layers that are wanted.

    The head of a library's model is kept only if a layer in it is wanted.
    """
    head: heads.Head | None = heads.PRE_LOGITS if heads.PRE_LOGITS in request.layers else None
    parts = _built(kind, name, request, head)
    if not request.layers:
        return parts
    try:
        return layers.tapped(parts, request.layers)
    except layers.NotInTrunk:
        if kind not in _WITH_HEADS or head is not None:
            raise
    del parts  # frees its memory
    return layers.tapped(_built(kind, name, request, "whole"), request.layers)


def _built(kind: spec.SourceKind, name: str, request: ModelRequest, head: heads.Head | None) -> encoder_module.Parts:
    choice = weights.parse_weights(request.weights, request.weights_key)
    if kind == "factory":
        assert request.arguments is not None
        parts = model_file.build(request.arguments, choice, request.image_size, request.channels)
    elif kind in _WITH_HEADS:
        parts = _WITH_HEADS[kind](name, choice, request.image_size, request.channels, head)
    else:
        parts = _BUILDERS[kind](name, choice, request.image_size, request.channels)
    read = choice.reading
    return dataclasses.replace(parts, weights_entry=read.entry or choice.key, weights_notes=tuple(read.notes))


def _of_channels(request: ModelRequest, parts: encoder_module.Parts) -> dict[str, Any]:
    """Return what differs where channels or statistics are asked for: preprocessing, mean and std.

    Raises:
        InputError: another number of them than the model has.
    """
    if request.statistics is None:
        if parts.statistics_adapted:
            channels.warn_of_statistics(request.name, parts.mean, parts.std)
        if request.channels is None:
            return {}
    count = parts.preprocessing.channel_count
    given = request.statistics or (parts.mean, parts.std)
    mean, std = (values * count if len(values) == 1 else values for values in given)
    if {len(mean), len(std)} - {count}:
        raise errors.InputError(
            f"--mean and --std have {len(mean)} and {len(std)} numbers, but {request.name!r} takes {count} channels: "
            "give one number per channel"
        )
    used = parts.preprocessing.model_copy(update={"channels": spec.Channels(count=count)})
    return {"preprocessing": used, "mean": mean, "std": std}


def resolved(request: ModelRequest) -> ModelRequest:
    """Return the request with the content of its model file in `arguments`, so that the file is no longer needed.

    Raises:
        InputError: the model file cannot be read or is invalid.
    """
    if request.arguments is None and Path(request.name).suffix.lower() in MODEL_FILE_SUFFIXES:
        arguments = model_file.read(Path(request.name), trusted=request.trust, task_aux_heads=request.task_aux_heads)
        return dataclasses.replace(request, arguments=arguments)
    return request


def model_names() -> list[str]:
    """Return all built-in, torchvision and timm names; duplicates of an earlier source are written `SOURCE/NAME`."""
    own = builtin_source.names()
    zoo = [f"torchvision/{name}" if name in own else name for name in torchvision_source.names()]
    taken = {*own, *zoo}
    return sorted(own + zoo + [f"timm/{name}" if name in taken else name for name in timm_source.names()])


def resolve_name(name: str) -> tuple[spec.SourceKind, str]:
    """Return the source of `name` and its name there.

    Raises:
        InputError: unknown name; the message lists the closest ones.
    """
    if timm_source.is_hub_name(name):
        return "timm", _known_on_hub(name)
    if name.startswith("factory/"):
        return "factory", name.removeprefix("factory/")
    if Path(name).suffix.lower() in MODEL_FILE_SUFFIXES:
        return "factory", Path(name).stem
    if name.startswith("genenc/"):
        return "genenc", _known_builtin(name.removeprefix("genenc/"))
    if name.startswith("timm/"):
        return "timm", _known_timm(name.removeprefix("timm/"))
    if name.startswith("torchvision/"):
        return "torchvision", _known_torchvision(name.removeprefix("torchvision/"))
    if ":" in name:
        return "python", name
    if name in builtin_source.names():
        return "genenc", name
    if name.lower() in torchvision_source.names():
        return "torchvision", name.lower()
    if timm_source.knows(name):
        return "timm", name
    known = model_names()
    absent = "" if timm_source.names() else " timm is not installed; for its models: pip install 'genenc[timm]'."
    raise errors.InputError(
        f"there is no model {name!r} in genenc, torchvision or timm.{_nearest(name, known)}{absent} Name your own "
        "model as package.module:factory."
    )


def _known_builtin(name: str) -> str:
    known = builtin_source.names()
    if name not in known:
        raise errors.InputError(f"there is no built-in model {name!r}.{_nearest(name, known)}")
    return name


def _known_torchvision(name: str) -> str:
    known = torchvision_source.names()
    if name.lower() not in known:
        raise errors.InputError(f"there is no model {name!r} in torchvision.{_nearest(name, known)}")
    return name.lower()


def _known_timm(name: str) -> str:
    known = timm_source.names()
    if not known:
        raise errors.InputError(f"model 'timm/{name}' needs timm, which is not installed: pip install 'genenc[timm]'.")
    if not timm_source.knows(name):
        raise errors.InputError(f"there is no model {name!r} in timm.{_nearest(name, known)}")
    return name


def _known_on_hub(name: str) -> str:
    """Return timm's name of a model on the Hugging Face Hub.

    Raises:
        InputError: timm is not installed, a repository that is not timm's (with the closest names), or a revision.
    """
    owner, bare, revision = timm_source.split(name)
    if owner == "timm":
        if revision not in ("", "main"):
            raise errors.InputError(
                f"model {name!r} names the revision {revision!r}, but timm's models are loaded from main: omit @"
                f"{revision}, or download the file and give it with --weights FILE"
            )
        return _known_timm(bare)
    same = timm_source.names_with_words(bare, timm_source.names())
    near = f" The closest names are: {', '.join(same)}." if same else _nearest(bare, timm_source.names())
    raise errors.InputError(
        f"model {name!r} is a Hugging Face Hub repository that is not timm's, which genenc does not support."
        f"{near} Give one of timm's (hf-hub:timm/NAME), or your own "
        "package.module:factory that loads the repository."
    )


def _nearest(name: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(name.lower(), known, n=5, cutoff=0.6)
    near = near or timm_source.names_with_words(name, known)
    return f" The closest names are: {', '.join(near)}." if near else ""


def _check_size(request: ModelRequest) -> None:
    if request.image_size is not None and min(request.image_size) < 1:
        raise errors.InputError(f"image size {request.image_size} must be at least 1 x 1 pixels (height, width).")


_BUILDERS = {"genenc": builtin_source.build, "python": python_source.build}
_WITH_HEADS = {"torchvision": torchvision_source.build, "timm": timm_source.build}
"""Sources whose models have a classifier."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ModelEntry:
    """A name for `--model`, its source, and the input size (height, width) of its pretrained configuration."""

    name: str
    source: ZooSource
    input_size: tuple[int, int] | None


def model_entries() -> Iterator[ModelEntry]:
    """Yield built-in encoders, then torchvision's, then timm's; duplicate names get their source as a prefix."""
    own = set(builtin_source.names())
    for name in builtin_source.names():
        yield ModelEntry(name=name, source="genenc", input_size=builtin_source.native_size(name))
    zoo = torchvision_source.names()
    for name in zoo:
        shown = f"torchvision/{name}" if name in own else name
        yield ModelEntry(name=shown, source="torchvision", input_size=_torchvision_size(name))
    taken = own | set(zoo)
    for name in timm_source.names():
        shown = f"timm/{name}" if name in taken else name
        yield ModelEntry(name=shown, source="timm", input_size=_timm_size(name))


def _torchvision_size(name: str) -> tuple[int, int]:
    from torchvision import models as zoo

    side = int(zoo.get_model_weights(name).DEFAULT.transforms().crop_size[0])
    return side, side


def _timm_size(name: str) -> tuple[int, int] | None:
    import timm

    config = timm.models.get_pretrained_cfg(name)
    return None if config is None else (int(config.input_size[1]), int(config.input_size[2]))
