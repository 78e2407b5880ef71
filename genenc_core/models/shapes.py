"""What a model would give, found without its weights: it is built and run on tensors with shapes and no numbers."""

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

from genenc_core import errors, spec, torch_faults
from genenc_core.models import encoder, sources, wording


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelShapes:
    """An encoder's slots and preprocessing; nothing was computed or downloaded for them."""

    kind: spec.SourceKind
    name: str
    outputs: tuple[spec.SlotSpec, ...]
    preprocessing: spec.Preprocessing
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    parameters: int


def measure(
    name: str,
    *,
    image_size: tuple[int, int] | None = None,
    layers: tuple[str, ...] = (),
    arguments: str | None = None,
    trust: bool = False,
) -> ModelShapes:
    """Build the model `name` without numbers and run two images through it.

    Raises:
        InputError: as `sources.build_encoder`, or a model whose code needs numbers; such a one must be built for real.
    """
    request = sources.ModelRequest(
        name=name, weights="random:0", image_size=image_size, layers=layers, arguments=arguments, trust=trust
    )
    resolved_name = sources.resolve_name(name)[1]
    with _without_numbers(name) as mode:
        kind, parts = sources.build_parts(request)
        module = encoder.EncoderModule(parts.trunk, mean=parts.mean, std=parts.std).eval()
        size, mode.building = parts.preprocessing, False
        outputs = encoder.dry_run(module, name=name, height=size.height, width=size.width)
        return ModelShapes(
            kind=kind,
            name=resolved_name,
            outputs=outputs,
            preprocessing=parts.preprocessing,
            mean=parts.mean,
            std=parts.std,
            parameters=sum(parameter.numel() for parameter in parts.trunk.parameters()),
        )


def stride(slot: spec.SlotSpec, preprocessing: spec.Preprocessing) -> tuple[float, float] | None:
    """Return how many input pixels (vertically, horizontally) one cell of a map stands for; None for no map."""
    if len(slot.shape) != 3:
        return None
    return preprocessing.height / slot.shape[1], preprocessing.width / slot.shape[2]


class _Shapes(FakeTensorMode):
    """Weights, images and what becomes of them have no numbers; what a constructor counts with (`linspace`) has them.

    Two tensors are equal when their shapes are: what a source compares, it compares with itself. While `building`, a
    question about a number is answered with no or 0: initialisation asks whether a draw is out of bounds.
    """

    building = True

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run one operation with numbers, without them, or (`torch.equal`) answer it."""
        if func is torch.ops.aten.equal.default:
            return args[0].shape == args[1].shape
        if self.building and func is torch.ops.aten._local_scalar_dense.default and args[0].dtype in _ANSWERS:
            return _ANSWERS[args[0].dtype]
        fake = any(isinstance(leaf, FakeTensor) for leaf in _pytree.tree_leaves((args, kwargs or {})))
        if fake or func.overloadpacket in _ALLOCATES:
            return super().__torch_dispatch__(func, types, args, kwargs or {})  # type: ignore[no-untyped-call]
        return func(*args, **(kwargs or {}))


_NEEDS_NUMBERS = (DataDependentOutputException, DynamicOutputShapeException)
_ANSWERS: Mapping[torch.dtype, bool | float] = {torch.bool: False, torch.float32: 0.0}
_ALLOCATES = frozenset(
    (torch.ops.aten.empty, torch.ops.aten.zeros, torch.ops.aten.ones, torch.ops.aten.rand, torch.ops.aten.randn)
)


@contextlib.contextmanager
def _without_numbers(name: str) -> Iterator[_Shapes]:
    torch_faults.before_fake_tensors()
    with warnings.catch_warnings():
        # torchvision's and timm's constructors warn of what only matters with numbers.
        warnings.simplefilter("ignore")
        try:
            with _Shapes(allow_non_fake_inputs=True) as mode:
                yield mode
        except errors.GenencError as error:
            if not isinstance(error.__cause__, _NEEDS_NUMBERS):
                raise
            raise _unknown(name, error.__cause__) from error
        except Exception as error:  # a model's own code may fail in any way on tensors without numbers
            raise _unknown(name, error) from error


def _unknown(name: str, error: BaseException) -> errors.InputError:
    return errors.InputError(
        f"the shapes of {name!r} are not known without running it ({type(error).__name__}: {wording.reason(error)}): "
        "genenc export and extract report them."
    )
