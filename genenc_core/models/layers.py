"""Outputs of intermediate layers as slots."""

import contextlib
import dataclasses
import difflib
import re
from collections.abc import Mapping, Sequence
from contextvars import ContextVar
from typing import Literal, cast

import torch
from torch import nn

from genenc_core import errors
from genenc_core.models import fake_run, heads, tokens
from genenc_core.models.encoder_module import Parts

Form = Literal["unchanged", "channels last", "tokens"]

_INDEX = re.compile(r"[+-]?[0-9]{1,9}\Z")
_CHANNELS_FIRST = (
    nn.Conv2d,
    nn.ConvTranspose2d,
    nn.BatchNorm2d,
    nn.InstanceNorm2d,
    nn.GroupNorm,
    nn.MaxPool2d,
    nn.AvgPool2d,
)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Tap:
    """One layer: its name in the model (also its slot), its path in the trunk, and the form of its output."""

    name: str
    path: str
    form: Form


class NotInTrunk(errors.InputError):
    """A layer is not run by the trunk; it may come after the maps, or not exist."""


def tapped(parts: Parts, wanted: Sequence[str]) -> Parts:
    """Return `parts` with a trunk that returns the outputs of the layers `wanted` instead of its own.

    A layer is a module's dotted name in `parts.model` (`layer3`, `blocks.5.mlp`), or an index into `parts.stages`,
    negative from the end; its slot has the module's name. Maps [B, C, h, w] and vectors [B, C] are kept, maps
    [B, h, w, C] are permuted to channels first, and tokens [B, N, C] become a map on their grid with additional slots
    for the prefix tokens (`blocks.5`, `blocks.5.cls`, `blocks.5.register`).

    Raises:
        NotInTrunk: unknown module (with the closest names), or one that a forward pass does not call.
        InputError: unknown index, a module named twice, one that a forward pass calls several times, or an output of
            unsupported form.
    """
    inside = _inside(parts)
    names = [_resolved(item, parts, inside) for item in wanted]
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise errors.InputError(
            f"layers {', '.join(wanted)} name {twice[0]!r} twice (an index refers to a stage); name each layer once."
        )
    chosen = {name: inside[name] for name in names}
    size = (parts.preprocessing.height, parts.preprocessing.width)
    outputs = _observed(parts.trunk, chosen, size, parts.preprocessing.channel_count)
    taps = tuple(
        Tap(name=name, path=path, form=_form(name, parts.trunk.get_submodule(path), outputs[name], parts))
        for name, path in chosen.items()
    )
    return dataclasses.replace(parts, trunk=_Tapped(parts.trunk, taps, parts.token_layout))


def _inside(parts: Parts) -> dict[str, str]:
    """Return the path in the trunk of each of its layers by their names."""
    paths = {id(module): path for path, module in parts.trunk.named_modules() if path}
    inside = {name: paths[id(module)] for name, module in parts.model.named_modules() if id(module) in paths}
    if isinstance(parts.trunk, heads.WholeModel) and parts.trunk.ends_in_vector:
        inside = {name: path for name, path in inside.items() if name not in parts.trunk.removed}
        inside[heads.PRE_LOGITS] = heads.PRE_LOGITS
    return inside


def _resolved(item: str, parts: Parts, inside: Mapping[str, str]) -> str:
    """Return the module name of `item`, a name or a stage index."""
    stages = _stages(parts, inside)
    if not _INDEX.match(item):
        if item in inside:
            return item
        if isinstance(parts.trunk, heads.WholeModel) and item in parts.trunk.removed:
            raise NotInTrunk(f"layer {item!r} comes after {heads.PRE_LOGITS!r}: ask for one of the two.")
        if item in dict(parts.model.named_modules()):
            raise NotInTrunk(
                f"layer {item!r} is not part of the encoder: it comes after the feature maps. The stages are "
                f"{_listed(stages)}."
            )
        near = difflib.get_close_matches(item, inside, n=5, cutoff=0.5)
        hint = f"The closest names are: {', '.join(near)}. " if near else ""
        raise NotInTrunk(f"the model has no layer {item!r}. {hint}Its stages are {_listed(stages)}.")
    index = int(item)
    if not -len(stages) <= index < len(stages):
        raise errors.InputError(
            f"there is no layer {item}: the model's stages are {-len(stages)} to {len(stages) - 1}, {_listed(stages)}."
        )
    return stages[index]


def _stages(parts: Parts, inside: Mapping[str, str]) -> tuple[str, ...]:
    declared = tuple(name for name in parts.stages if name in inside)
    return declared or tuple(name for name, _ in parts.model.named_children() if name in inside) or tuple(inside)[:1]


def _listed(stages: Sequence[str]) -> str:
    if len(stages) <= 8:
        return ", ".join(stages)
    return f"{', '.join(stages[:4])}, ... {', '.join(stages[-2:])}"


def _observed(
    trunk: nn.Module, chosen: Mapping[str, str], size: tuple[int, int], channels: int
) -> Mapping[str, list[object]]:
    """Return the output of every call of the chosen modules for two images, from a fake run."""

    def look(module: nn.Module, images: torch.Tensor) -> Mapping[str, list[object]]:
        outputs: dict[str, list[object]] = {name: [] for name in chosen}
        watched = {name: module.get_submodule(path) for name, path in chosen.items()}
        with fake_run.hooked(watched, lambda name, output: outputs[name].append(output)):
            module(images)
        return outputs

    try:
        return fake_run.observe(trunk, look, batch=2, size=size, channels=channels)
    except (RuntimeError, AssertionError, ValueError, TypeError, IndexError) as error:
        raise errors.InputError(
            f"the model cannot encode images of {size[0]} x {size[1]} pixels: {error}. Give another --image-size."
        ) from error


def _form(name: str, module: nn.Module, calls: Sequence[object], parts: Parts) -> Form:
    """Determine the form of a layer's output from its calls for two images.

    Raises:
        InputError: not exactly one call that returns a tensor, or a tensor that is no map, vector or token list.
    """
    if len(calls) != 1:
        problem = "is not called" if not calls else f"is called {len(calls)} times, so its output is ambiguous,"
        kind = errors.InputError if calls else NotInTrunk
        raise kind(f"layer {name!r} {problem} in a forward pass. Name its parent module or one inside it.")
    (output,) = calls
    if not isinstance(output, torch.Tensor):
        raise errors.InputError(
            f"layer {name!r} returns a {type(output).__name__}, not a tensor. Name a module inside it, or another one."
        )
    shape, size = tuple(output.shape), (parts.preprocessing.height, parts.preprocessing.width)
    if len(shape) < 2 or shape[0] != 2:
        raise _unsupported(name, shape, "its first dimension is not the batch (it may split images into windows)")
    if len(shape) == 3:
        layout = parts.token_layout
        if layout is None or not layout.holds(shape[1]):
            known = "" if layout is None else f" (its patches are {layout.grid[0]} x {layout.grid[1]})"
            raise _unsupported(name, shape, f"the model does not declare the grid of these tokens{known}")
        return "tokens"
    if len(shape) > 4:
        raise _unsupported(name, shape, "it is not a map [B, C, h, w], tokens [B, N, C] or a vector [B, C]")
    if len(shape) == 2:
        return "unchanged"
    if parts.padded_inside is not None:
        inner = "x".join(map(str, parts.padded_inside))
        raise _unsupported(
            name,
            shape,
            f"the model pads images of {size[0]} x {size[1]} pixels to {inner}, so its cells do not align with points "
            f"on the image (--image-size {inner} needs no padding)",
        )
    if isinstance(module, _CHANNELS_FIRST):
        return "unchanged"
    return _map_form(name, module, shape, size, parts.channels_last)


def _map_form(
    name: str, module: nn.Module, shape: tuple[int, ...], size: tuple[int, int], declared: bool | None
) -> Form:
    """Determine the channel axis of a map: from its aspect ratio, else its module's layers, else the model's format."""
    first, last = tokens.map_axes(shape, size)
    if first and last:
        inner = list(module.modules())
        first = any(isinstance(item, _CHANNELS_FIRST) for item in inner)
        # Not isinstance: subclasses of LayerNorm that normalise the channels of [B, C, h, w] are common.
        last = any(isinstance(item, nn.Linear) or type(item) is nn.LayerNorm for item in inner)
        if first == last and declared is not None:
            first, last = not declared, declared
    if first == last:
        reason = f"its channel axis is ambiguous (the images are {size[0]} x {size[1]} pixels)"
        raise _unsupported(name, shape, reason)
    return "channels last" if last else "unchanged"


def _unsupported(name: str, shape: tuple[int, ...], reason: str) -> errors.InputError:
    return errors.InputError(
        f"layer {name!r} returns {list(shape)} for two images, which cannot be used as a map: {reason}. Name another "
        "layer, such as the block around it."
    )


class _AllCaptured(BaseException):
    """Ends a forward pass after the last requested layer; a BaseException, because model code may catch Exception."""


@dataclasses.dataclass(slots=True)
class _Call:
    """One forward pass through a tapped trunk: the layers wanted, those captured, and whether it may end early."""

    wanted: frozenset[str]
    may_stop: bool
    captured: dict[str, torch.Tensor] = dataclasses.field(default_factory=dict)


# Per context, so that threads that share a module do not mix their outputs.
_CURRENT: ContextVar[_Call | None] = ContextVar("genenc_tapped_call", default=None)


class _Capture:
    """Forward hook that stores a layer's output in the current call; stateless, so copies of a module work too."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __call__(self, _module: nn.Module, _inputs: object, output: torch.Tensor) -> None:
        call = _CURRENT.get()
        if call is None or self.name not in call.wanted:
            return
        if self.name in call.captured:
            raise _varying(self.name, "is called several times")
        is_last = call.may_stop and len(call.captured) + 1 == len(call.wanted)
        # Later layers may change the tensor in place.
        call.captured[self.name] = output if is_last else output.clone()
        if is_last:
            raise _AllCaptured


def _varying(name: str, problem: str) -> errors.EncoderError:
    return errors.EncoderError(
        f"layer {name!r} {problem} for some images and is called once for others, so its output is ambiguous: name "
        "its parent module, or one that is always called once."
    )


def has_other_hooks(module: nn.Module) -> bool:
    """Return whether a module has hooks other than taps; those of timm store outputs on the module."""
    return any(
        not isinstance(hook, _Capture)
        for part in module.modules()
        for hook in (*part._forward_hooks.values(), *part._forward_pre_hooks.values())
    )


class _Tapped(nn.Module):
    """A trunk whose slots are outputs of its intermediate layers."""

    def __init__(self, trunk: nn.Module, taps: tuple[Tap, ...], layout: tokens.TokenLayout | None) -> None:
        super().__init__()
        self.trunk = trunk
        self.taps = taps
        self.layout = layout
        for tap in taps:
            trunk.get_submodule(tap.path).register_forward_hook(_Capture(tap.name))

    def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return the slots of all taps.

        Raises:
            EncoderError: a layer is not called exactly once for these images, as it was in the dry run.
        """
        # An exporter must trace the whole pass; it prunes unused nodes itself.
        exporting = torch.jit.is_tracing() or torch.compiler.is_compiling()  # type: ignore[attr-defined, no-untyped-call]
        call = _Call(wanted=frozenset(tap.name for tap in self.taps), may_stop=not exporting)
        token = _CURRENT.set(call)
        try:
            with contextlib.suppress(_AllCaptured):
                self.trunk(images)
        finally:
            _CURRENT.reset(token)
        slots: dict[str, torch.Tensor] = {}
        for tap in self.taps:
            if tap.name not in call.captured:
                raise _varying(tap.name, "is not called")
            slots.update(self._slots(tap, call.captured[tap.name]))
        return slots

    def _slots(self, tap: Tap, output: torch.Tensor) -> dict[str, torch.Tensor]:
        if tap.form == "tokens":
            return tokens.split(output, cast(tokens.TokenLayout, self.layout), base=tap.name)
        return {tap.name: tokens.channels_first(output) if tap.form == "channels last" else output}
