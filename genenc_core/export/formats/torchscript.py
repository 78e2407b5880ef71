"""TorchScript: a trace (.pt) that C++ and Python run on any device, without the model's code."""

import contextlib
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from genenc_core import errors
from genenc_core.export.formats import record
from genenc_core.models import wording

_KEPT = frozenset({"prim::GetAttr", "prim::Constant"})
"""Nodes whose values outlive a call."""
_HIDING = frozenset(
    {"prim::SetAttr", "prim::CallMethod", "prim::CallFunction", "prim::PythonOp", "prim::fork", "prim::awaitable"}
    | {"aten::manual_seed", "aten::set_data", "aten::native_batch_norm", "aten::_batch_norm_impl_index"}
    | {"aten::cudnn_batch_norm", "aten::miopen_batch_norm"}
)
"""Nodes that keep a value, write without saying so, or do what the graph does not show."""
_NUMBERS = frozenset({"IntType", "FloatType", "BoolType", "NumberType"})
_PLAIN = _NUMBERS | {"TensorType", "ClassType", "StringType", "NoneType", "DeviceObjType", "ComplexType"}
_MAKING = frozenset(
    {"aten::_convolution", "aten::conv2d", "aten::batch_norm", "aten::layer_norm", "aten::group_norm", "aten::linear"}
    | {"aten::add", "aten::sub", "aten::mul", "aten::div", "aten::matmul", "aten::bmm", "aten::cat", "aten::clone"}
    | {"aten::max_pool2d", "aten::mean", "aten::sum", "aten::zeros", "aten::new_zeros", "aten::ones"}
    | {"aten::empty", "aten::full"}
)
"""Operations whose result is always new memory."""
_DROPPING = {"aten::dropout": 2, "aten::scaled_dot_product_attention": 4}
"""Operations that draw random numbers unless the argument at this place is false or 0."""
_PASSING = frozenset(
    {"aten::add_", "aten::sub_", "aten::mul_", "aten::div_", "aten::relu_", "aten::leaky_relu_", "aten::hardtanh_"}
    | {"aten::hardswish_", "aten::hardsigmoid_", "aten::silu_", "aten::sigmoid_", "aten::clamp_", "aten::fill_"}
    | {"aten::slice", "aten::select", "aten::view", "aten::permute", "aten::transpose", "aten::unsqueeze"}
)
"""Operations whose result is their first input, or a view of it."""


def require(_module: nn.Module | None) -> None:
    """Need nothing beyond torch."""


def trace(module: nn.Module, target: record.Target, path: Path) -> None:
    """Write `module`, traced on the example, to `path`; a trace takes any batch.

    Raises:
        ExportError: a model that cannot be traced.
    """
    with _undeprecated():
        # What was constant while tracing is found by the comparison that follows.
        warnings.simplefilter("ignore", torch.jit.TracerWarning)  # type: ignore[attr-defined]
        try:
            with torch.no_grad():
                traced = torch.jit.trace(module, target.example, check_trace=False)  # type: ignore[no-untyped-call]
            traced.save(path)
        except Exception as error:  # tracing runs the model's own code
            raise errors.ExportError(
                f"TorchScript cannot trace this model: {wording.reason(error)}. "
                "Use --formats aotinductor, or --backend eager."
            ) from error


@contextlib.contextmanager
def _undeprecated() -> Iterator[None]:
    """Keep still about torch.jit's deprecation, which torch 2.11 tells in another way: it is used on purpose."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        warnings.simplefilter("ignore", DeprecationWarning)
        yield


def facts(_path: Path) -> Mapping[str, str]:
    """Return nothing: a trace does not say what wrote it; the spec beside it does."""
    return {}


def load(path: Path, device: torch.device, _scratch: Path | None) -> record.Loaded:
    """Load a file onto `device`.

    Raises:
        InputError: a damaged file, or one that this torch cannot read.
    """
    with _undeprecated():
        try:
            module: Any = torch.jit.load(path, map_location=device)  # type: ignore[no-untyped-call]
        except (RuntimeError, ValueError) as error:
            raise errors.InputError(
                f"cannot load {str(path)!r}: {wording.reason(error)}. It is damaged or of another version of torch; "
                "export it again with genenc export."
            ) from error
    module.eval()
    _require_one_input(path, module)

    def run(images: torch.Tensor) -> Sequence[torch.Tensor] | Mapping[str, torch.Tensor]:
        return record.tensors(module(images))

    return record.Loaded(
        run=run,
        concurrent=keeps_no_state(module),
        declared=_declared(module),
        batch_statistics=_batch_statistics(module),
    )


def _require_one_input(path: Path, module: Any) -> None:
    """Check that `forward` takes one tensor.

    Raises:
        InputError: it takes none or several, or there is none.
    """
    try:
        arguments = module._c._get_method("forward").schema.arguments[1:]
    except (AttributeError, RuntimeError) as error:
        raise errors.InputError(
            f"{str(path)!r} holds a module without a forward method, so there is nothing to run. Export it again with "
            "one that takes images."
        ) from error
    needed = [item.name for item in arguments if not item.has_default_value()]
    record.require_one_input(path, needed or [item.name for item in arguments[:1]])


def _batch_statistics(module: Any) -> bool:
    """Whether a batch normalisation with learnt statistics is left in training mode, as in a trace of such a model."""
    try:
        nodes = [node for node in _nodes(module.inlined_graph) if node.kind() == "aten::batch_norm"]
    except (AttributeError, RuntimeError):
        return False
    arguments = [list(node.inputs()) for node in nodes]
    # Without learnt statistics it may be a normalisation of each image.
    learning = [mode for _, _, _, learnt, _, mode, *_ in arguments if learnt.type().kind() != "NoneType"]
    return any(mode.node().kind() == "prim::Constant" and mode.toIValue() is True for mode in learning)


def _declared(module: Any) -> record.Declared | None:
    """Return the type of the weights; a script does not say what it takes."""
    kinds = {tensor.dtype for tensor in module.parameters() if tensor.is_floating_point()}
    kinds = kinds or {tensor.dtype for tensor in module.buffers() if tensor.is_floating_point()}
    if len(kinds) != 1:
        return None
    return record.Declared(dtype=str(kinds.pop()).removeprefix("torch."), hint=True)


def keeps_no_state(module: Any) -> bool:
    """Return whether it is known that nothing a call of a script module does can change what another call gives.

    That is so where its graph consists of torch's own operations, draws no random numbers, and writes only to what
    operations of this graph have just made; and where it keeps tensors and numbers alone, to which nothing is written
    as torch's alias analysis has it. That analysis does not look into containers, and some operations return their
    input without saying so: hence the other conditions.
    """
    try:
        hooked = module._c._get_forward_hooks() or module._c._get_forward_pre_hooks()
        graph = module.inlined_graph
        aliases = graph.alias_db()
    except (AttributeError, RuntimeError):  # no `forward`, or not one that can be told
        return False
    return not hooked and all(_harmless(node, aliases) for node in _nodes(graph))


def _harmless(node: Any, aliases: Any) -> bool:
    kind = node.kind()
    if kind in _HIDING or not kind.startswith(("aten::", "prim::")):
        return False
    if kind in _KEPT:
        return all(_is_plain(value.type()) and not aliases.has_writers(value) for value in node.outputs())
    if kind in _DROPPING:
        share = list(node.inputs())[_DROPPING[kind]]
        return share.node().kind() == "prim::Constant" and not share.toIValue()
    return not node.isNondeterministic() and all(map(_is_made_here, _written(node)))


def _is_plain(kind: Any) -> bool:
    """Whether a kept value holds no other that can be written to, but a module's own attributes."""
    if kind.kind() == "OptionalType":
        return _is_plain(kind.getElementType())
    if kind.kind() == "ListType":
        return kind.getElementType().kind() in _NUMBERS
    return kind.kind() in _PLAIN


def _written(node: Any) -> Iterator[Any]:
    """Yield the values that a node writes to, as its schema has it."""
    if node.schema() == "(no schema)":
        return
    schema = torch._C.parse_schema(node.schema())
    for argument, value in zip(schema.arguments, node.inputs(), strict=True):
        if argument.alias_info is not None and argument.alias_info.is_write:
            yield value


def _is_made_here(value: Any) -> bool:
    node = value.node()
    if node.kind() in _MAKING:
        return True
    return node.kind() in _PASSING and _is_made_here(next(node.inputs()))


def _nodes(block: Any) -> Iterator[Any]:
    """Yield the nodes of a graph, those of its branches and loops too."""
    for node in block.nodes():
        yield node
        for inner in node.blocks():
            yield from _nodes(inner)
