"""Outputs of a model's inner layers as slots."""

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
from genenc_core.models import probing, tokens
from genenc_core.models.encoder import Parts

Form = Literal["as it is", "channels last", "tokens"]

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
    """One layer: its name in the model, which is its slot, where the trunk has it, and the form of its output."""

    name: str
    path: str
    form: Form


def tapped(parts: Parts, wanted: Sequence[str]) -> Parts:
    """Return `parts` with a trunk that gives the outputs of the layers of `wanted` instead of its own.

    A layer is a module's dotted name in `parts.model` (`layer3`, `blocks.5.mlp`), or the index of one of
    `parts.stages`, negative from the end; its slot has the module's name. Maps [B, C, h, w] come as they are,
    [B, h, w, C] with the channels first, vectors [B, C] as they are, and tokens [B, N, C] on their grid with their
    prefix tokens in slots beside them (`blocks.5`, `blocks.5.cls`, `blocks.5.register`).

    Raises:
        InputError: no such module (the nearest names are offered) or index, a module named twice, one that a forward
            pass does not call or calls several times, or an output that cannot be understood.
    """
    paths = {id(module): path for path, module in parts.trunk.named_modules() if path}
    inside = {name: paths[id(module)] for name, module in parts.model.named_modules() if id(module) in paths}
    names = [_resolved(item, parts, inside) for item in wanted]
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise errors.InputError(
            f"layers {', '.join(wanted)} name {twice[0]!r} twice (an index stands for a stage); name each layer once."
        )
    chosen = {name: inside[name] for name in names}
    size = (parts.preprocessing.height, parts.preprocessing.width)
    outputs = _observed(parts.trunk, chosen, size)
    taps = tuple(
        Tap(name=name, path=path, form=_form(name, parts.trunk.get_submodule(path), outputs[name], parts))
        for name, path in chosen.items()
    )
    return dataclasses.replace(parts, trunk=_Tapped(parts.trunk, taps, parts.token_layout))


def _resolved(item: str, parts: Parts, inside: Mapping[str, str]) -> str:
    """Return the module name that `item` names or numbers."""
    stages = _stages(parts, inside)
    if not _INDEX.match(item):
        if item in inside:
            return item
        if item in dict(parts.model.named_modules()):
            raise errors.InputError(
                f"layer {item!r} is not part of the encoder: it comes after the feature maps. Its stages are "
                f"{_listed(stages)}."
            )
        near = difflib.get_close_matches(item, inside, n=5, cutoff=0.5)
        hint = f"The nearest names are: {', '.join(near)}. " if near else ""
        raise errors.InputError(f"the model has no layer {item!r}. {hint}Its stages are {_listed(stages)}.")
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


def _observed(trunk: nn.Module, chosen: Mapping[str, str], size: tuple[int, int]) -> Mapping[str, list[object]]:
    """Return what every call of the chosen modules gives for two images, without computing it."""

    def look(module: nn.Module, images: torch.Tensor) -> Mapping[str, list[object]]:
        found: dict[str, list[object]] = {name: [] for name in chosen}
        watched = {name: module.get_submodule(path) for name, path in chosen.items()}
        with probing.hooked(watched, lambda name, output: found[name].append(output)):
            module(images)
        return found

    try:
        return probing.observe(trunk, look, batch=2, size=size)
    except (RuntimeError, AssertionError, ValueError, TypeError, IndexError) as error:
        raise errors.InputError(
            f"the model cannot encode images of {size[0]} x {size[1]} pixels: {error}. Give another --image-size."
        ) from error


def _form(name: str, module: nn.Module, calls: Sequence[object], parts: Parts) -> Form:
    """Tell what the output of a layer is, from its calls with two images.

    Raises:
        InputError: not exactly one call with one tensor, or a tensor that is no map, vector or list of tokens.
    """
    if len(calls) != 1:
        told = "is not called" if not calls else f"is called {len(calls)} times, so it has no one output,"
        raise errors.InputError(f"layer {name!r} {told} in a forward pass. Name the module around it, or one inside.")
    (output,) = calls
    if not isinstance(output, torch.Tensor):
        raise errors.InputError(
            f"layer {name!r} gives a {type(output).__name__}, not a tensor. Name a module inside it, or another one."
        )
    shape, size = tuple(output.shape), (parts.preprocessing.height, parts.preprocessing.width)
    if len(shape) < 2 or shape[0] != 2:
        raise _not_understood(name, shape, "it does not keep the images apart (windows, for example)")
    if len(shape) == 3:
        layout = parts.token_layout
        if layout is None or not layout.holds(shape[1]):
            known = "" if layout is None else f" (its patches are {layout.grid[0]} x {layout.grid[1]})"
            raise _not_understood(name, shape, f"these are tokens on a grid that the model does not tell{known}")
        return "tokens"
    if len(shape) > 4:
        raise _not_understood(name, shape, "it is not a map [B, C, h, w], tokens [B, N, C] or a vector [B, C]")
    if len(shape) == 2:
        return "as it is"
    if parts.padded_inside is not None:
        inner = "x".join(map(str, parts.padded_inside))
        reason = f"the model pads images of {size[0]} x {size[1]} pixels to {inner}, so its cells are elsewhere"
        raise _not_understood(
            name, shape, f"{reason} than points are looked up (--image-size {inner} needs no padding)"
        )
    if isinstance(module, _CHANNELS_FIRST):
        return "as it is"
    return _map_form(name, module, shape, size, parts.channels_last)


def _map_form(
    name: str, module: nn.Module, shape: tuple[int, ...], size: tuple[int, int], declared: bool | None
) -> Form:
    """Tell where the channels of a map are: by its sides, else by what its module is made of, else by its model."""
    first, last = tokens.map_axes(shape, size)
    if first and last:
        inner = list(module.modules())
        first = any(isinstance(item, _CHANNELS_FIRST) for item in inner)
        # Exactly LayerNorm: subclasses that normalise the channels of [B, C, h, w] are common.
        last = any(isinstance(item, nn.Linear) or type(item) is nn.LayerNorm for item in inner)
        if first == last and declared is not None:
            first, last = not declared, declared
    if first == last:
        reason = f"it is not known which axis holds the channels (the images are {size[0]} x {size[1]} pixels)"
        raise _not_understood(name, shape, reason)
    return "channels last" if last else "as it is"


def _not_understood(name: str, shape: tuple[int, ...], reason: str) -> errors.InputError:
    return errors.InputError(
        f"layer {name!r} gives {list(shape)} for two images, which cannot be made a map: {reason}. Name another layer, "
        "such as the block around it."
    )


class _Enough(BaseException):
    """Every layer asked for has run; not an Exception, which a model's own code might catch."""


@dataclasses.dataclass(slots=True)
class _Call:
    """One pass through a tapped trunk: what is wanted, what was found, and whether the rest may be left out."""

    wanted: frozenset[str]
    may_stop: bool
    found: dict[str, torch.Tensor] = dataclasses.field(default_factory=dict)


# Of the running pass, so that threads that share a module do not mix what they find.
_CURRENT: ContextVar[_Call | None] = ContextVar("genenc_tapped_call", default=None)


class _Capture:
    """A forward hook that hands a layer's output to the running pass; it holds no state, so copies of it work too."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __call__(self, _module: nn.Module, _inputs: object, output: torch.Tensor) -> None:
        call = _CURRENT.get()
        if call is None or self.name not in call.wanted:
            return
        if self.name in call.found:
            raise _varying(self.name, "is called several times")
        enough = call.may_stop and len(call.found) + 1 == len(call.wanted)
        # Later layers may change the tensor in place.
        call.found[self.name] = output if enough else output.clone()
        if enough:
            raise _Enough


def _varying(name: str, what: str) -> errors.EncoderError:
    return errors.EncoderError(
        f"layer {name!r} {what} for some images, and is called once for others, so it has no one output: name the "
        "module around it, or one that is always called once."
    )


def has_other_hooks(module: nn.Module) -> bool:
    """Return whether hooks are called besides those of taps; timm's keep what they see on the module."""
    return any(
        not isinstance(hook, _Capture)
        for part in module.modules()
        for hook in (*part._forward_hooks.values(), *part._forward_pre_hooks.values())
    )


class _Tapped(nn.Module):
    """A trunk whose slots are the outputs of some of its layers."""

    def __init__(self, trunk: nn.Module, taps: tuple[Tap, ...], layout: tokens.TokenLayout | None) -> None:
        super().__init__()
        self.trunk = trunk
        self.taps = taps
        self.layout = layout
        for tap in taps:
            trunk.get_submodule(tap.path).register_forward_hook(_Capture(tap.name))

    def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return the slots of every tap.

        Raises:
            EncoderError: one is not called once for these images, as it was for those that it was looked at with.
        """
        # An exporter follows the whole pass; what its graph does not need it leaves out by itself.
        exporting = torch.jit.is_tracing() or torch.compiler.is_compiling()  # type: ignore[attr-defined, no-untyped-call]
        call = _Call(frozenset(tap.name for tap in self.taps), may_stop=not exporting)
        token = _CURRENT.set(call)
        try:
            with contextlib.suppress(_Enough):
                self.trunk(images)
        finally:
            _CURRENT.reset(token)
        slots: dict[str, torch.Tensor] = {}
        for tap in self.taps:
            if tap.name not in call.found:
                raise _varying(tap.name, "is not called")
            slots.update(self._slots(tap, call.found[tap.name]))
        return slots

    def _slots(self, tap: Tap, output: torch.Tensor) -> dict[str, torch.Tensor]:
        if tap.form == "tokens":
            return tokens.split(output, cast(tokens.TokenLayout, self.layout), base=tap.name)
        return {tap.name: tokens.channels_first(output) if tap.form == "channels last" else output}
