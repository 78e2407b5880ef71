"""TorchScript: a trace (.pt) that C++ and Python run on any device, without the model's code."""

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
_HIDING = frozenset({"prim::SetAttr", "prim::CallMethod", "prim::CallFunction", "prim::PythonOp", "prim::fork"})
"""Nodes that keep a value, or do what the graph does not show."""


def require(_module: nn.Module | None) -> None:
    """Need nothing beyond torch."""


def trace(module: nn.Module, target: record.Target, path: Path) -> None:
    """Write `module`, traced on the example, to `path`; a trace takes any batch.

    Raises:
        ExportError: a model that cannot be traced.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # torch.jit is deprecated, and kept on purpose
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


def facts(_path: Path) -> Mapping[str, str]:
    """Return nothing: a trace does not say what wrote it; the spec beside it does."""
    return {}


def load(path: Path, device: torch.device, _scratch: Path | None) -> record.Loaded:
    """Load a file onto `device`.

    Raises:
        InputError: a damaged file, or one that this torch cannot read.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        try:
            module: Any = torch.jit.load(path, map_location=device)  # type: ignore[no-untyped-call]
        except (RuntimeError, ValueError) as error:
            raise errors.InputError(
                f"cannot load {str(path)!r}: {wording.reason(error)}. It is damaged or of another version of torch; "
                "export it again with genenc export."
            ) from error
    module.eval()

    def run(images: torch.Tensor) -> Sequence[torch.Tensor]:
        return record.tensors(module(images))

    return record.Loaded(run=run, concurrent=keeps_no_state(module))


def keeps_no_state(module: Any) -> bool:
    """Return whether nothing that a call of a script module does can change what another call gives.

    That is so where its graph consists of torch's own operations and none writes to an attribute, a constant, or what
    may be a view of one, as torch's alias analysis has it; where that cannot tell, the answer is no.
    """
    graph = module.inlined_graph
    aliases = graph.alias_db()
    for node in _nodes(graph):
        if node.kind() in _HIDING or not node.kind().startswith(("aten::", "prim::")):
            return False
        if node.kind() in _KEPT and any(aliases.has_writers(value) for value in node.outputs()):
            return False
    return True


def _nodes(block: Any) -> Iterator[Any]:
    """Yield the nodes of a graph, those of its branches and loops too."""
    for node in block.nodes():
        yield node
        for inner in node.blocks():
            yield from _nodes(inner)
