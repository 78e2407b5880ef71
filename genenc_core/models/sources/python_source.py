"""Encoders from user code, named `package.module:factory`, and their declarations."""

import contextlib
import functools
import itertools
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import pydantic
import torch
from torch import fx, nn

from genenc_core import errors, spec
from genenc_core.models import tokens, user_code
from genenc_core.models.encoder_module import Parts, PerChannel, named_outputs, warn_of_size
from genenc_core.models.weights import WeightsChoice, construction_rng, load_file

ATTRIBUTE = user_code.ATTRIBUTE
Sides = tuple[pydantic.PositiveInt, pydantic.PositiveInt]
Byte = Annotated[int, pydantic.Field(ge=0, le=255)]


class InnerDeclaration(UserWarning):
    """A declaration of a module inside the one that a factory returns is not used."""


class RandomWeights(UserWarning):
    """A factory seems to return a model with random weights."""


class Declaration(pydantic.BaseModel):
    """A model's declaration in its attribute `genenc`, a dict with any of these keys.

    It is a separate attribute because a model that normalises images itself often has a `mean` too.
    """

    model_config = pydantic.ConfigDict(frozen=True, extra="forbid")

    image_size: pydantic.PositiveInt | Sides = 224
    """default size in pixels, one number or (height, width)"""
    mean: tuple[float, ...] = (0.0, 0.0, 0.0)
    std: tuple[pydantic.PositiveFloat, ...] = (1.0, 1.0, 1.0)
    """the model receives (image in [0, 1] - mean) / std, one number per channel"""
    channels: Annotated[int, pydantic.Field(gt=0, le=spec.MOST_CHANNELS)] = 3
    """of the images that it takes; three are RGB"""
    fit: spec.Fit = "stretch"
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"
    antialias: bool = True
    pad_position: Literal["corner", "center"] = "center"
    pad_value: tuple[Byte, Byte, Byte] = (0, 0, 0)
    stages: tuple[str, ...] = ()
    """modules that stage indices refer to; empty: the model's children"""
    output_fmt: Literal["NCHW", "NHWC"] | None = None
    """layout of its output and intermediate maps"""
    patch_size: pydantic.PositiveInt | Sides | None = None
    num_prefix_tokens: pydantic.NonNegativeInt | None = None
    num_reg_tokens: pydantic.NonNegativeInt = 0
    """for tokens [B, N, C]: patch size in pixels, number of prefix tokens, and how many of those are registers"""
    files: tuple[str | Path, ...] = ()
    """files that the code reads, relative to the folder it is imported from; a run records their digests"""

    @pydantic.model_validator(mode="after")
    def _check_tokens(self) -> "Declaration":
        if (self.patch_size is None) != (self.num_prefix_tokens is None):
            raise ValueError("patch_size and num_prefix_tokens must be set together")
        if self.num_reg_tokens > (self.num_prefix_tokens or 0):
            raise ValueError("num_reg_tokens is more than num_prefix_tokens")
        return self

    @pydantic.model_validator(mode="after")
    def _check_statistics(self) -> "Declaration":
        for name in ("mean", "std"):
            if name in self.model_fields_set and len(getattr(self, name)) != self.channels:
                raise ValueError(f"{name} has {len(getattr(self, name))} numbers for {self.channels} channels")
        return self

    @property
    def statistics(self) -> tuple[PerChannel, PerChannel]:
        """Mean and std, by default 0 and 1."""
        given = self.model_fields_set
        mean = self.mean if "mean" in given else (0.0,) * self.channels
        return mean, self.std if "std" in given else (1.0,) * self.channels


def build(name: str, choice: WeightsChoice, image_size: tuple[int, int] | None, channels: int | None = None) -> Parts:
    """Call the factory without arguments; it returns a module that maps RGB [B, 3, H, W] in [0, 1] to feature maps.

    `channels` must be those that it declares, if it is not None.

    The module may return one map [B, C, h, w], or a tuple, list or dict of maps and vectors [B, C]. Its attribute
    `genenc` (see `Declaration`) may declare preprocessing, stages, and the layout of tokens [B, N, C] or maps
    [B, h, w, C].

    `pretrained` keeps the factory's weights, `random:SEED` seeds torch before the call, a file is loaded afterwards.

    Changes that the code makes to process state are undone (see `user_code.restored`).

    Raises:
        InputError: no such module or factory, a factory that fails or does not return a module, an invalid
            declaration, or weights that do not fit.
    """
    if choice.tag is not None:
        raise errors.InputError(
            f"a factory has no pretrained tags, but {choice.tag!r} was requested for {name!r}. Give random:SEED or a "
            "file, or leave the weights to the factory."
        )
    with construction_rng(choice), user_code.restored(name), _weight_loads() as loads:
        before = torch.default_generator.get_state()
        module = _call_factory(name)
        drew = not torch.equal(before, torch.default_generator.get_state())
    if choice.kind == "pretrained" and drew:
        _warn_of_random_weights(name, module, loads)
    _allow_mode_changes(module)
    if choice.path is not None:
        load_file(choice, model=module, trunk=module)
    _refuse_empty_tensors(name, module)
    declared = _declaration(name, module)
    if channels not in (None, declared.channels):
        raise errors.InputError(
            f"{name!r} takes {declared.channels} channels, not {channels}: choose {declared.channels} with --channels, "
            f"or declare the number that it takes: model.{ATTRIBUTE} = {{'channels': {channels}}}"
        )
    return _parts(name, module, declared, image_size)


class _Loads:
    """What was loaded while a factory ran."""

    def __init__(self) -> None:
        self.stated = False
        """Whether `load_state_dict` was called, with whatever effect."""
        self.read = False
        """Whether `torch.load` was called."""
        self.tensors: set[int] = set()
        """Addresses of tensors that a state dict was loaded into."""


@contextlib.contextmanager
def _weight_loads() -> Iterator[_Loads]:
    """Yield a record of the calls of `load_state_dict` and `torch.load`."""
    loads = _Loads()
    load_state_dict, load = nn.Module.load_state_dict, torch.load

    @functools.wraps(load_state_dict)
    def loading(self: nn.Module, state_dict: Mapping[str, Any], *args: Any, **kwargs: Any) -> Any:
        done = load_state_dict(self, state_dict, *args, **kwargs)
        loads.stated = True
        own = self.state_dict(keep_vars=True)
        loads.tensors.update(own[key].data_ptr() for key in own.keys() & state_dict.keys() if torch.is_tensor(own[key]))
        return done

    @functools.wraps(load)
    def reading(*args: Any, **kwargs: Any) -> Any:
        loads.read = True
        return load(*args, **kwargs)

    nn.Module.load_state_dict, torch.load = loading, reading  # type: ignore[method-assign]
    try:
        yield loads
    finally:
        nn.Module.load_state_dict, torch.load = load_state_dict, load  # type: ignore[method-assign]


def _warn_of_random_weights(name: str, module: nn.Module, loads: _Loads) -> None:
    """Warn of weights that a factory, which draws random numbers, did not load."""
    found = dict(module.named_parameters())
    if not found or (loads.read and not loads.stated):  # copied in some other way
        return
    drawn = [which for which, tensor in found.items() if _may_be_drawn(tensor, loads)]
    if not drawn:
        return
    some = f"{len(drawn)} of {len(found)} tensors, such as {drawn[0]!r},"
    what = some if loads.stated else f"the weights of {name!r}"
    why = "loads no state for them" if loads.stated else "loads no state dict"
    warnings.warn(
        f"{what} seem to be random: the factory {name!r} draws random numbers and {why}. Give --weights FILE, or "
        "--weights random:0 if this is intended",
        RandomWeights,
        stacklevel=3,
    )


def _may_be_drawn(tensor: nn.Parameter, loads: _Loads) -> bool:
    """Return whether a parameter may hold random numbers: not loaded, and not of one value, as norms begin."""
    if nn.parameter.is_lazy(tensor) or tensor.is_meta or not tensor.is_floating_point():
        return False
    return tensor.data_ptr() not in loads.tensors and tensor.numel() > 1 and bool((tensor != tensor.flatten()[0]).any())


def _allow_mode_changes(module: nn.Module) -> None:
    """Allow `eval()` on modules of exported programs, which compute the same in every mode."""
    for part in module.modules():
        if isinstance(part, fx.GraphModule):  # `ExportedProgram.module()` shadows them with functions that raise
            for method in ("train", "eval"):
                part.__dict__.pop(method, None)


def _refuse_empty_tensors(name: str, module: nn.Module) -> None:
    tensors = itertools.chain(module.named_parameters(), module.named_buffers())
    empty = [which for which, tensor in tensors if tensor.is_meta or nn.parameter.is_lazy(tensor)]
    if empty:
        raise errors.InputError(
            f"the module of {name!r} has {len(empty)} uninitialised tensors, such as {empty[0]!r}: it is on the meta "
            "device, or lazy. Let the factory load its weights, and run a lazy module once before returning it."
        )


def _declaration(name: str, module: nn.Module) -> Declaration:
    value = getattr(module, ATTRIBUTE, None)
    if value is None:
        _warn_of_inner_declaration(name, module)
        value = {}
    try:
        declared = Declaration.model_validate(dict(value))
    except pydantic.ValidationError as error:
        problems = "; ".join(f"{'.'.join(map(str, item['loc'])) or 'it'}: {item['msg']}" for item in error.errors())
        known = ", ".join(Declaration.model_fields)
        raise errors.InputError(
            f"the attribute {ATTRIBUTE!r} of {name!r} is invalid: {problems}. It may hold {known}."
        ) from error
    except (TypeError, ValueError) as error:
        raise errors.InputError(
            f"the attribute {ATTRIBUTE!r} of {name!r} is a {type(value).__name__}, but must be a dict."
        ) from error
    unknown = sorted(set(declared.stages) - dict(module.named_modules()).keys())
    if unknown:
        raise errors.InputError(f"{name!r} declares the stage {unknown[0]!r}, but has no such module.")
    return declared


def _warn_of_inner_declaration(name: str, module: nn.Module) -> None:
    """Warn if only a module inside the returned one has a declaration, which is not used then."""
    inner = next(
        (where for where, part in module.named_modules() if isinstance(getattr(part, ATTRIBUTE, None), dict)), ""
    )
    if inner:
        warnings.warn(
            f"{name!r} returns a {type(module).__name__} without the attribute {ATTRIBUTE!r}, but its module {inner!r} "
            f"has one, which is not used: set it on what is returned, as `wrapped.{ATTRIBUTE} = net.{ATTRIBUTE}`",
            InnerDeclaration,
            stacklevel=4,
        )


def _parts(name: str, module: nn.Module, declared: Declaration, image_size: tuple[int, int] | None) -> Parts:
    height, width = image_size or _pair(declared.image_size)
    preprocessing = spec.Preprocessing(
        height=height,
        width=width,
        fit=declared.fit,
        interpolation=declared.interpolation,
        antialias=declared.antialias,
        pad_position=declared.pad_position,
        pad_value=declared.pad_value,
        channels=None if declared.channels == 3 else spec.Channels(count=declared.channels),
    )
    mean, std = declared.statistics
    if image_size is None and "image_size" not in declared.model_fields_set:
        warn_of_size(name, preprocessing)
    layout = _layout(name, declared, (height, width))
    channels_last = None if declared.output_fmt is None else declared.output_fmt == "NHWC"
    return Parts(
        model=module,
        trunk=_Arranged(module, layout, channels_last=bool(channels_last)) if channels_last or layout else module,
        preprocessing=preprocessing,
        mean=mean,
        std=std,
        stages=declared.stages,
        token_layout=layout,
        channels_last=channels_last,
    )


def declares_layout(module: nn.Module) -> bool:
    """Return whether a user's encoder declares the channel axis of its maps."""
    trunk = getattr(module, "trunk", module)
    return isinstance(trunk, _Arranged) or dict(getattr(trunk, ATTRIBUTE, {})).get("output_fmt") is not None


def _layout(name: str, declared: Declaration, size: tuple[int, int]) -> tokens.TokenLayout | None:
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
    """A user's model with its tokens or NHWC maps converted to slots."""

    def __init__(self, model: nn.Module, layout: tokens.TokenLayout | None, *, channels_last: bool) -> None:
        super().__init__()
        self.model = model
        self.layout = layout
        self.channels_last = channels_last

    def forward(self, images: torch.Tensor) -> Mapping[str, torch.Tensor]:
        outputs = self.model(images)
        slots: dict[str, torch.Tensor] = {}
        for base, value in named_outputs(outputs).items():
            # A named list, such as registers, need not be patches.
            named = isinstance(outputs, Mapping) and not (self.layout and self.layout.holds(value.shape[1]))
            layout = None if named else self.layout
            slots.update(tokens.arranged(value, layout, channels_last=self.channels_last, base=base))
        return slots


def _call_factory(name: str) -> nn.Module:
    try:
        factory = user_code.load_object(name)
    except (ImportError, AttributeError, ValueError) as error:
        raise errors.InputError(
            f"cannot find the model factory {name!r}: {errors.reason(error)}. Give package.module:factory, "
            f"importable from the working directory ({Path.cwd()}) or installed."
        ) from error
    except SystemExit as error:
        raise _system_exit(f"importing {name.partition(':')[0]!r}", error) from error
    except Exception as error:  # the user's module may raise anything on import
        raise errors.InputError(
            f"importing {name.partition(':')[0]!r} failed: {type(error).__name__}: {errors.reason(error)}."
        ) from error
    try:
        module = factory()
    except SystemExit as error:
        raise _system_exit(f"the model factory {name!r}", error) from error
    except Exception as error:  # the user's code may raise anything
        raise errors.InputError(
            f"the model factory {name!r} failed: {type(error).__name__}: {errors.reason(error)}."
        ) from error
    if not isinstance(module, nn.Module):
        raise errors.InputError(
            f"the model factory {name!r} returned a {type(module).__name__}, not a torch.nn.Module. Name a function "
            "that takes no arguments and returns one."
        )
    return module


def _system_exit(where: str, error: SystemExit) -> errors.InputError:
    return errors.InputError(
        f"{where} raised SystemExit({error.code!r}). If it parses the command line: genenc passes no arguments, so "
        "give all options defaults, or name a function that builds the model without argparse. Move code of a script "
        "under `if __name__ == '__main__':`."
    )
