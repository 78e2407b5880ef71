"""Encoders from a user's own code, named `package.module:factory`, and what such a model may tell of itself."""

import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

import pydantic
import torch
from torch import fx, nn

from genenc_core import errors, spec
from genenc_core.models import own_code, process_state, tokens, wording
from genenc_core.models.encoder import Parts, named_outputs
from genenc_core.models.weights import WeightsChoice, construction_rng, load_file

ATTRIBUTE = own_code.ATTRIBUTE
Sides = tuple[pydantic.PositiveInt, pydantic.PositiveInt]
Byte = Annotated[int, pydantic.Field(ge=0, le=255)]


class Declared(pydantic.BaseModel):
    """What a model tells of itself in an attribute `genenc`, a dict with any of these keys.

    It is one attribute of its own, because a model that normalises by itself often has a `mean` too.
    """

    model_config = pydantic.ConfigDict(frozen=True, extra="forbid")

    image_size: pydantic.PositiveInt | Sides = 224
    """pixels, one number or (height, width), where the user asks for none"""
    mean: tuple[float, float, float] = (0.0, 0.0, 0.0)
    std: tuple[pydantic.PositiveFloat, pydantic.PositiveFloat, pydantic.PositiveFloat] = (1.0, 1.0, 1.0)
    """genenc gives the model (RGB in [0, 1] - mean) / std"""
    fit: spec.Fit = "stretch"
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"
    antialias: bool = True
    pad_position: Literal["corner", "center"] = "center"
    pad_value: tuple[Byte, Byte, Byte] = (0, 0, 0)
    stages: tuple[str, ...] = ()
    """modules that a layer's index stands for; without them the model's children"""
    output_fmt: Literal["NCHW", "NHWC"] | None = None
    """where its maps have their channels, at the end and inside"""
    patch_size: pydantic.PositiveInt | Sides | None = None
    num_prefix_tokens: pydantic.NonNegativeInt | None = None
    num_reg_tokens: pydantic.NonNegativeInt = 0
    """for tokens [B, N, C]: pixels of a patch, tokens before the patches, and how many of these are registers"""
    files: tuple[str | Path, ...] = ()
    """files that the code reads by itself, relative to the folder it is imported from: a run holds their digests"""

    @pydantic.model_validator(mode="after")
    def _tokens_are_told_whole(self) -> "Declared":
        if (self.patch_size is None) != (self.num_prefix_tokens is None):
            raise ValueError("patch_size and num_prefix_tokens must be set together")
        if self.num_reg_tokens > (self.num_prefix_tokens or 0):
            raise ValueError("num_reg_tokens is more than num_prefix_tokens")
        return self


def build(name: str, choice: WeightsChoice, image_size: tuple[int, int] | None) -> Parts:
    """Call the factory without arguments; it returns a module that maps RGB [B, 3, H, W] in [0, 1] to feature maps.

    It may return one map [B, C, h, w], or a tuple, list or dict of maps and vectors [B, C]. What it tells of itself in
    an attribute `genenc` (see `Declared`) is its preprocessing, its stages, and how its tokens [B, N, C] or maps
    [B, h, w, C] are to be read.

    `pretrained` leaves the weights to the factory, `random:SEED` seeds torch before it, a file is loaded into it.

    What of the process's state the code changes meanwhile is undone (see `process_state.restored`).

    Raises:
        InputError: no such module or factory, a factory that fails or returns no module, a wrong declaration, or
            unfit weights.
    """
    if choice.tag is not None:
        raise errors.InputError(
            f"a factory has no pretrained tags, but {choice.tag!r} was asked of {name!r}. Give random:SEED or a file, "
            "or leave the weights to the factory."
        )
    with construction_rng(choice), process_state.restored(name):
        module = _called(name)
    _accept_one_mode(module)
    if choice.path is not None:
        load_file(choice, model=module, trunk=module)
    _refuse_empty_tensors(name, module)
    return _parts(name, module, _declared(name, module), image_size)


def _accept_one_mode(module: nn.Module) -> None:
    """Let the modules of exported programs be put into evaluation mode: they compute the same in every mode."""
    for part in module.modules():
        if isinstance(part, fx.GraphModule):  # `ExportedProgram.module()` sets functions that raise on the object
            for method in ("train", "eval"):
                part.__dict__.pop(method, None)


def _refuse_empty_tensors(name: str, module: nn.Module) -> None:
    tensors = itertools.chain(module.named_parameters(), module.named_buffers())
    found = [which for which, tensor in tensors if tensor.is_meta or nn.parameter.is_lazy(tensor)]
    if found:
        raise errors.InputError(
            f"the module of {name!r} has {len(found)} tensors without numbers, such as {found[0]!r}: it is on the meta "
            "device, or lazy. Let the factory load its weights, and run a lazy module once before it is returned."
        )


def _declared(name: str, module: nn.Module) -> Declared:
    told = getattr(module, ATTRIBUTE, {})
    try:
        found = Declared.model_validate(dict(told))
    except pydantic.ValidationError as error:
        problems = "; ".join(f"{'.'.join(map(str, item['loc'])) or 'it'}: {item['msg']}" for item in error.errors())
        known = ", ".join(Declared.model_fields)
        raise errors.InputError(
            f"what {name!r} declares in its attribute {ATTRIBUTE!r} cannot be used: {problems}. It may hold {known}."
        ) from error
    except (TypeError, ValueError) as error:
        raise errors.InputError(
            f"the attribute {ATTRIBUTE!r} of {name!r} is a {type(told).__name__}, not a dict of what it declares."
        ) from error
    unknown = sorted(set(found.stages) - dict(module.named_modules()).keys())
    if unknown:
        raise errors.InputError(f"{name!r} declares the stage {unknown[0]!r}, but has no such module.")
    return found


def _parts(name: str, module: nn.Module, declared: Declared, image_size: tuple[int, int] | None) -> Parts:
    height, width = image_size or _pair(declared.image_size)
    preprocessing = spec.Preprocessing(
        height=height,
        width=width,
        fit=declared.fit,
        interpolation=declared.interpolation,
        antialias=declared.antialias,
        pad_position=declared.pad_position,
        pad_value=declared.pad_value,
    )
    layout = _layout(name, declared, (height, width))
    channels_last = None if declared.output_fmt is None else declared.output_fmt == "NHWC"
    return Parts(
        model=module,
        trunk=_Arranged(module, layout, channels_last=bool(channels_last)) if channels_last or layout else module,
        preprocessing=preprocessing,
        mean=declared.mean,
        std=declared.std,
        stages=declared.stages,
        token_layout=layout,
        channels_last=channels_last,
    )


def states_axes(module: nn.Module) -> bool:
    """Tell whether an own model's encoder says where the channels of its maps are."""
    trunk = getattr(module, "trunk", module)
    return isinstance(trunk, _Arranged) or dict(getattr(trunk, ATTRIBUTE, {})).get("output_fmt") is not None


def _layout(name: str, declared: Declared, size: tuple[int, int]) -> tokens.TokenLayout | None:
    if declared.patch_size is None or declared.num_prefix_tokens is None:
        return None
    patch = _pair(declared.patch_size)
    if size[0] % patch[0] or size[1] % patch[1]:
        raise errors.InputError(
            f"{name!r} has patches of {patch[0]} x {patch[1]} pixels; {size[0]} x {size[1]} is not a multiple. "
            "Give another --image-size."
        )
    count, registers = declared.num_prefix_tokens, declared.num_reg_tokens
    prefix = tokens.prefix_of(count, registers=registers, class_token=count > registers)
    return tokens.TokenLayout(grid=(size[0] // patch[0], size[1] // patch[1]), prefix=prefix)


def _pair(sides: int | tuple[int, int]) -> tuple[int, int]:
    return (sides, sides) if isinstance(sides, int) else sides


class _Arranged(nn.Module):
    """A user's model whose tokens or NHWC maps are brought to slots, each output for itself."""

    def __init__(self, model: nn.Module, layout: tokens.TokenLayout | None, *, channels_last: bool) -> None:
        super().__init__()
        self.model = model
        self.layout = layout
        self.channels_last = channels_last

    def forward(self, images: torch.Tensor) -> Mapping[str, torch.Tensor]:
        found = self.model(images)
        slots: dict[str, torch.Tensor] = {}
        for base, value in named_outputs(found).items():
            # A list under a name of its own, such as registers, need not be patches.
            named = isinstance(found, Mapping) and not (self.layout and self.layout.holds(value.shape[1]))
            layout = None if named else self.layout
            slots.update(tokens.arranged(value, layout, channels_last=self.channels_last, base=base))
        return slots


def _called(name: str) -> nn.Module:
    try:
        factory = own_code.found(name)
    except (ImportError, AttributeError, ValueError) as error:
        raise errors.InputError(
            f"cannot find the model factory {name!r}: {wording.reason(error)}. Give package.module:factory, "
            f"importable from the working directory ({Path.cwd()}) or installed."
        ) from error
    except SystemExit as ended:
        raise _ended(f"importing {name.partition(':')[0]!r}", ended) from ended
    except Exception as error:  # the user's module may raise anything while it is imported
        raise errors.InputError(
            f"importing {name.partition(':')[0]!r} failed: {type(error).__name__}: {wording.reason(error)}."
        ) from error
    try:
        module = factory()
    except SystemExit as ended:
        raise _ended(f"the model factory {name!r}", ended) from ended
    except Exception as error:  # the user's code may raise anything
        raise errors.InputError(
            f"the model factory {name!r} failed: {type(error).__name__}: {wording.reason(error)}."
        ) from error
    if not isinstance(module, nn.Module):
        raise errors.InputError(
            f"the model factory {name!r} returned a {type(module).__name__}, not a torch.nn.Module. Name a function "
            "that takes no arguments and returns one."
        )
    return module


def _ended(what: str, ended: SystemExit) -> errors.InputError:
    return errors.InputError(
        f"{what} raised SystemExit({ended.code!r}). If it parses the command line: genenc passes it no arguments, so "
        "give all options defaults, or name a function that builds the model without argparse. Code of a program "
        "belongs under `if __name__ == '__main__':`."
    )
