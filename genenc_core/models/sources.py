"""Names to encoders: torchvision, timm, or the user's own factory, with the weights asked for."""

import dataclasses
import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from genenc_core import errors, spec
from genenc_core.models import (
    builtin_source,
    encoder,
    hub_name,
    layers,
    own_code,
    python_source,
    timm_source,
    torchvision_source,
    trust,
    weights,
)
from genenc_core.models.factory import model_file

MODEL_FILE_SUFFIXES = (".toml", ".yaml", ".yml")


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelRequest:
    """Which model, with which weights, at which input size (height, width); None is the model's own size."""

    name: str
    weights: str = "pretrained"
    image_size: tuple[int, int] | None = None
    layers: tuple[str, ...] = ()
    """modules by name, or indices of the model's stages, whose outputs become the slots; none: its own outputs"""
    arguments: str | None = None
    """factory models only: the model file's content as canonical JSON; None until `resolved` has read the file"""
    weights_key: str | None = None
    """which entry of a weights file: its dotted name, `ema` or `plain`; None: as timm has it, the EMA first"""
    trust: bool = False
    """import the code that a model file names; what `name` itself names is the caller's own word"""
    task_aux_heads: bool = True
    """model files only: take the `aux_heads` of a TerraTorch task, which genenc 0.1.0 left aside"""

    @property
    def code(self) -> str | None:
        """The dotted path that building the model imports; None for none, or while its file was not read."""
        return trust.code_of(*resolve_name(self.name), self.arguments)


@dataclass(frozen=True, slots=True, kw_only=True)
class BuiltEncoder:
    """An eager encoder and what is known of it."""

    module: nn.Module
    """eval, float32, CPU, no gradients: RGB [B, 3, H, W] in [0, 1] -> tuple of maps [B, C, h, w]; normalises inside"""
    request: ModelRequest
    kind: spec.SourceKind
    weights_sha256: str | None
    """digest of the encoder's own tensors (classifier left out): `weights.state_sha256`; None: it has none"""
    parameters: int
    preprocessing: spec.Preprocessing
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    outputs: tuple[spec.SlotSpec, ...]
    """one per map, from a dry run; shapes without the batch"""
    own: own_code.Digests
    """of code and files of the user's own; empty for other models"""
    weights_entry: str | None = None
    """the entry of a weights file that was taken; None: no file, or the file itself"""
    weights_notes: tuple[str, ...] = ()
    """how a weights file was read"""


def build_encoder(request: ModelRequest) -> BuiltEncoder:
    """Build the encoder that `request` names.

    `name` is one of genenc's own, else a torchvision name, else a timm name; `genenc/NAME`, `torchvision/NAME` and
    `timm/NAME` force one of them; `package.module:factory` is called without arguments; a `.toml` or `.yaml` file
    describes a model for the EncoderDecoderFactory. `weights` is `random:SEED` (seeded right before the
    constructor, the caller's generator is left as it was), `pretrained`, `pretrained:TAG`, or a file.

    Raises:
        InputError: unknown name (the nearest ones are offered), unusable weights or size, or no feature maps.
    """
    request = resolved(request)
    kind, parts = build_parts(request)
    module = encoder.finished(parts)
    size = parts.preprocessing
    outputs = encoder.dry_run(module, name=request.name, height=size.height, width=size.width)
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
        own=own_code.digests(request.code, parts.model),
    )


def build_parts(request: ModelRequest) -> tuple[spec.SourceKind, encoder.Parts]:
    """Return the source and the parts of what `request` names, not run yet; raises as `build_encoder`."""
    _check_size(request)
    request = resolved(request)
    kind, name = resolve_name(request.name)
    choice = weights.parse_weights(request.weights, request.weights_key)
    if kind == "factory":
        assert request.arguments is not None
        parts = model_file.build(request.arguments, choice, request.image_size)
    else:
        parts = _BUILDERS[kind](name, choice, request.image_size)
    read = choice.reading
    parts = dataclasses.replace(parts, weights_entry=read.entry or choice.key, weights_notes=tuple(read.notes))
    return kind, layers.tapped(parts, request.layers) if request.layers else parts


def resolved(request: ModelRequest) -> ModelRequest:
    """Return the request with a model file's content read into it, so that the file is needed no more.

    Raises:
        InputError: the model file cannot be read, or is no description of a model.
    """
    if request.arguments is None and Path(request.name).suffix.lower() in MODEL_FILE_SUFFIXES:
        found = model_file.read(Path(request.name), trusted=request.trust, task_aux_heads=request.task_aux_heads)
        return dataclasses.replace(request, arguments=found)
    return request


def model_names() -> list[str]:
    """Return every built-in, torchvision and timm name; a name taken by an earlier one is written `SOURCE/NAME`."""
    own = builtin_source.names()
    zoo = [f"torchvision/{name}" if name in own else name for name in torchvision_source.names()]
    taken = {*own, *zoo}
    return sorted(own + zoo + [f"timm/{name}" if name in taken else name for name in timm_source.names()])


def resolve_name(name: str) -> tuple[spec.SourceKind, str]:
    """Return the source of `name` and its name there.

    Raises:
        InputError: no source has it; the nearest names are offered.
    """
    if hub_name.is_one(name):
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
    absent = "" if timm_source.names() else " timm is not installed; its models come with pip install 'genenc[timm]'."
    raise errors.InputError(
        f"there is no model {name!r} in genenc, torchvision or timm.{_nearest(name, known)}{absent} Your own "
        "model is named package.module:factory."
    )


def _known_builtin(name: str) -> str:
    known = builtin_source.names()
    if name not in known:
        raise errors.InputError(f"there is no model {name!r} of genenc's own.{_nearest(name, known)}")
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
    """Return timm's name of a model of the Hugging Face hub.

    Raises:
        InputError: timm is not installed, or it is none of timm's own; the nearest names are offered.
    """
    owner, bare = hub_name.split(name)
    if owner == "timm":
        return _known_timm(bare)
    same = hub_name.with_its_words(bare, timm_source.names())
    near = f" The nearest names are: {', '.join(same)}." if same else _nearest(bare, timm_source.names())
    raise errors.InputError(
        f"model {name!r} is a repository of the Hugging Face hub that is not timm's own, which genenc does not read."
        f"{near} Give one of timm's (hf-hub:timm/NAME), or your own "
        "package.module:factory that loads the repository."
    )


def _nearest(name: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(name.lower(), known, n=5, cutoff=0.6)
    near = near or hub_name.with_its_words(name, known)
    return f" The nearest names are: {', '.join(near)}." if near else ""


def _check_size(request: ModelRequest) -> None:
    if request.image_size is not None and min(request.image_size) < 1:
        raise errors.InputError(f"image size {request.image_size} must be at least 1 x 1 pixels (height, width).")


_BUILDERS = {
    "genenc": builtin_source.build,
    "torchvision": torchvision_source.build,
    "timm": timm_source.build,
    "python": python_source.build,
}
