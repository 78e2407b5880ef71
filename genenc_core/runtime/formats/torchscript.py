"""TorchScript: a trace (.pt) that runs in C++ and Python on any device, without the model's code."""

import contextlib
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from genenc_core import errors
from genenc_core.runtime.formats import interface

_PERSISTENT = frozenset({"prim::GetAttr", "prim::Constant"})
"""nodes whose values outlive a call"""
_OPAQUE = frozenset(
    {"prim::SetAttr", "prim::CallMethod", "prim::CallFunction", "prim::PythonOp", "prim::fork", "prim::awaitable"}
    | {"aten::manual_seed", "aten::set_data", "aten::native_batch_norm", "aten::_batch_norm_impl_index"}
    | {"aten::cudnn_batch_norm", "aten::miopen_batch_norm"}
)
"""nodes that keep a value, write without declaring it, or have effects that the graph does not show"""
_NUMBERS = frozenset({"IntType", "FloatType", "BoolType", "NumberType"})
_PLAIN = _NUMBERS | {"TensorType", "ClassType", "StringType", "NoneType", "DeviceObjType", "ComplexType"}
_ALLOCATING = frozenset(
    {"aten::_convolution", "aten::conv2d", "aten::batch_norm", "aten::layer_norm", "aten::group_norm", "aten::linear"}
    | {"aten::add", "aten::sub", "aten::mul", "aten::div", "aten::matmul", "aten::bmm", "aten::cat", "aten::clone"}
    | {"aten::max_pool2d", "aten::mean", "aten::sum", "aten::zeros", "aten::new_zeros", "aten::ones"}
    | {"aten::empty", "aten::full"}
)
"""operations whose result is always newly allocated"""
_RANDOM = {"aten::dropout": 2, "aten::scaled_dot_product_attention": 4}
"""operations that draw random numbers unless the argument at this position is false or 0"""
_ALIASING = frozenset(
    {"aten::add_", "aten::sub_", "aten::mul_", "aten::div_", "aten::relu_", "aten::leaky_relu_", "aten::hardtanh_"}
    | {"aten::hardswish_", "aten::hardsigmoid_", "aten::silu_", "aten::sigmoid_", "aten::clamp_", "aten::fill_"}
    | {"aten::slice", "aten::select", "aten::view", "aten::permute", "aten::transpose", "aten::unsqueeze"}
)
"""operations whose result is their first input, or a view of it"""


def require(_module: nn.Module | None) -> None:
    """Do nothing; only torch is needed."""


def trace(module: nn.Module, target: interface.Target, path: Path) -> None:
    """Trace `module` on the example and save it to `path`; a trace accepts any batch size.

    Raises:
        ExportError: the model cannot be traced.
    """
    with _no_deprecation_warnings():
        # Values that tracing turned into constants are detected by the comparison that follows.
        warnings.simplefilter("ignore", torch.jit.TracerWarning)  # type: ignore[attr-defined]
        try:
            with torch.no_grad():
                traced = torch.jit.trace(module, target.example, check_trace=False)  # type: ignore[no-untyped-call]
            traced.save(path)
        except Exception as error:  # tracing runs the model's own code
            raise errors.ExportError(
                f"TorchScript cannot trace this model: {errors.reason(error)}. "
                "Use --formats aotinductor, or --backend eager."
            ) from error


@contextlib.contextmanager
def _no_deprecation_warnings() -> Iterator[None]:
    """Suppress warnings about the deprecation of torch.jit, whose category changed in torch 2.11."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        warnings.simplefilter("ignore", DeprecationWarning)
        yield


def facts(_path: Path) -> Mapping[str, str]:
    """Return nothing, since a trace does not record its requirements; its spec does."""
    return {}


def load(path: Path, device: torch.device, _scratch: Path | None) -> interface.Loaded:
    """Load a file onto `device`.

    Raises:
        InputError: the file is damaged, or this torch cannot read it.
    """
    with _no_deprecation_warnings():
        try:
            module: Any = torch.jit.load(path, map_location=device)  # type: ignore[no-untyped-call]
        except (RuntimeError, ValueError) as error:
            raise errors.InputError(
                f"cannot load {str(path)!r}: {errors.reason(error)}. It is damaged or from another version of torch; "
                "export it again with genenc export."
            ) from error
    module.eval()
    _require_one_input(path, module)

    def run(images: torch.Tensor) -> Sequence[torch.Tensor] | Mapping[str, torch.Tensor]:
        return interface.tensors(module(images))

    return interface.Loaded(
        run=run,
        concurrent=is_stateless(module),
        declared=_declared(module),
        batch_statistics=_batch_statistics(module),
    )


def _require_one_input(path: Path, module: Any) -> None:
    """Check that `forward` takes one tensor.

    Raises:
        InputError: it takes none or several, or does not exist.
    """
    try:
        arguments = module._c._get_method("forward").schema.arguments[1:]
    except (AttributeError, RuntimeError) as error:
        raise errors.InputError(
            f"{str(path)!r} holds a module without a forward method. Export it again with one that takes images."
        ) from error
    needed = [item.name for item in arguments if not item.has_default_value()]
    interface.require_one_input(path, needed or [item.name for item in arguments[:1]])


def _batch_statistics(module: Any) -> bool:
    """Return whether a batch normalisation with learned statistics is in training mode."""
    try:
        nodes = [node for node in _nodes(module.inlined_graph) if node.kind() == "aten::batch_norm"]
    except (AttributeError, RuntimeError):
        return False
    arguments = [list(node.inputs()) for node in nodes]
    # Without learned statistics it may normalise each image separately.
    modes = [mode for _, _, _, learned, _, mode, *_ in arguments if learned.type().kind() != "NoneType"]
    return any(mode.node().kind() == "prim::Constant" and mode.toIValue() is True for mode in modes)


def _declared(module: Any) -> interface.Declared | None:
    """Return the dtype of the weights as a hint, since a script does not declare its input."""
    kinds = {tensor.dtype for tensor in module.parameters() if tensor.is_floating_point()}
    kinds = kinds or {tensor.dtype for tensor in module.buffers() if tensor.is_floating_point()}
    if len(kinds) != 1:
        return None
    return interface.Declared(dtype=str(kinds.pop()).removeprefix("torch."), hint=True)


def is_stateless(module: Any) -> bool:
    """Return whether a call of a script module is known not to affect the result of another call.

    This holds if its graph consists of torch's own operations, draws no random numbers, and writes only to tensors
    allocated in the graph; and if it keeps only tensors and numbers, which torch's alias analysis shows are never
    written. That analysis does not look into containers, and some operations return their input without declaring it,
    hence the other conditions.
    """
    try:
        hooked = module._c._get_forward_hooks() or module._c._get_forward_pre_hooks()
        graph = module.inlined_graph
        aliases = graph.alias_db()
    except (AttributeError, RuntimeError):  # no `forward`, or no graph of it
        return False
    return not hooked and all(_is_harmless(node, aliases) for node in _nodes(graph))


def _is_harmless(node: Any, aliases: Any) -> bool:
    kind = node.kind()
    if kind in _OPAQUE or not kind.startswith(("aten::", "prim::")):
        return False
    if kind in _PERSISTENT:
        return all(_is_plain(value.type()) and not aliases.has_writers(value) for value in node.outputs())
    if kind in _RANDOM:
        share = list(node.inputs())[_RANDOM[kind]]
        return share.node().kind() == "prim::Constant" and not share.toIValue()
    return not node.isNondeterministic() and all(map(_is_allocated_here, _written(node)))


def _is_plain(kind: Any) -> bool:
    """Return whether a persistent value contains no other writable value, except a module's own attributes."""
    if kind.kind() == "OptionalType":
        return _is_plain(kind.getElementType())
    if kind.kind() == "ListType":
        return kind.getElementType().kind() in _NUMBERS
    return kind.kind() in _PLAIN


def _written(node: Any) -> Iterator[Any]:
    """Yield the values that a node writes to, according to its schema."""
    if node.schema() == "(no schema)":
        return
    schema = torch._C.parse_schema(node.schema())
    for argument, value in zip(schema.arguments, node.inputs(), strict=True):
        if argument.alias_info is not None and argument.alias_info.is_write:
            yield value


def _is_allocated_here(value: Any) -> bool:
    node = value.node()
    if node.kind() in _ALLOCATING:
        return True
    return node.kind() in _ALIASING and _is_allocated_here(next(node.inputs()))


def _nodes(block: Any) -> Iterator[Any]:
    """Yield the nodes of a graph, including those of its branches and loops."""
    for node in block.nodes():
        yield node
        for inner in node.blocks():
            yield from _nodes(inner)
