"""Output shapes of a model, determined on fake tensors without its weights."""

import contextlib
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensor,
    FakeTensorMode,
)
from torch.utils import _pytree

from genenc_core import errors, spec
from genenc_core.models import encoder_module, resolve
from genenc_core.system import torch_compat


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelShapes:
    """Slots and preprocessing of an encoder, determined without computing or downloading anything."""

    kind: spec.SourceKind
    name: str
    outputs: tuple[spec.SlotSpec, ...]
    preprocessing: spec.Preprocessing
    mean: encoder_module.PerChannel
    std: encoder_module.PerChannel
    parameters: int


def measure(
    name: str,
    *,
    image_size: tuple[int, int] | None = None,
    layers: tuple[str, ...] = (),
    arguments: str | None = None,
    trust: bool = False,
) -> ModelShapes:
    """Build the model `name` on fake tensors and run two images through it.

    Raises:
        InputError: as `resolve.build_encoder`, or the model's code needs values, so it must be built for real.
    """
    request = resolve.ModelRequest(
        name=name, weights="random:0", image_size=image_size, layers=layers, arguments=arguments, trust=trust
    )
    resolved_name = resolve.resolve_name(name)[1]
    with _fake_mode(name) as mode:
        kind, parts = resolve.build_parts(request)
        module = encoder_module.EncoderModule(parts.trunk, mean=parts.mean, std=parts.std).eval()
        size, mode.building = parts.preprocessing, False
        outputs = encoder_module.dry_run(module, name=name, height=size.height, width=size.width)
        return ModelShapes(
            kind=kind,
            name=resolved_name,
            outputs=outputs,
            preprocessing=parts.preprocessing,
            mean=parts.mean,
            std=parts.std,
            parameters=sum(parameter.numel() for parameter in parts.trunk.parameters()),
        )


class _FakeWeights(FakeTensorMode):
    """Fake weights and images; tensors that constructors compute with (`linspace`) stay real.

    Two fake tensors are equal if their shapes are, since sources only compare a tensor with itself. While `building`,
    values read from a fake tensor are False or 0: initialisation checks whether a draw is out of bounds.
    """

    building = True

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run one operation on real or fake tensors, or answer it (`torch.equal`, reading a value)."""
        if func is torch.ops.aten.equal.default:
            return args[0].shape == args[1].shape
        if self.building and func is torch.ops.aten._local_scalar_dense.default and args[0].dtype in _ANSWERS:
            return _ANSWERS[args[0].dtype]
        fake = any(isinstance(leaf, FakeTensor) for leaf in _pytree.tree_leaves((args, kwargs or {})))
        if fake or func.overloadpacket in _ALLOCATES:
            return super().__torch_dispatch__(func, types, args, kwargs or {})  # type: ignore[no-untyped-call]
        return func(*args, **(kwargs or {}))


_NEEDS_VALUES = (DataDependentOutputException, DynamicOutputShapeException)
_ANSWERS: Mapping[torch.dtype, bool | float] = {torch.bool: False, torch.float32: 0.0}
_ALLOCATES = frozenset(
    (torch.ops.aten.empty, torch.ops.aten.zeros, torch.ops.aten.ones, torch.ops.aten.rand, torch.ops.aten.randn)
)


@contextlib.contextmanager
def _fake_mode(name: str) -> Iterator[_FakeWeights]:
    torch_compat.prepare_fake_tensors()
    with warnings.catch_warnings():
        # Constructors of torchvision and timm warn about values, which do not matter here.
        warnings.simplefilter("ignore")
        try:
            with _FakeWeights(allow_non_fake_inputs=True) as mode:
                yield mode
        except errors.GenencError as error:
            if not isinstance(error.__cause__, _NEEDS_VALUES):
                raise
            raise _unknown(name, error.__cause__) from error
        except Exception as error:  # a model's own code may raise anything on fake tensors
            raise _unknown(name, error) from error


def _unknown(name: str, error: BaseException) -> errors.InputError:
    return errors.InputError(
        f"the shapes of {name!r} cannot be determined without running it ({type(error).__name__}: "
        f"{errors.reason(error)}): genenc export and extract report them."
    )
