"""Runs of a model on fake tensors, which have shapes but no values, so nothing is computed."""

import copy
from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils import _pytree
from torch.utils._python_dispatch import TorchDispatchMode

from genenc_core.system import torch_compat

Result = TypeVar("Result")
Look = Callable[[Any, torch.Tensor], Result]


def observe(module: nn.Module, look: Look[Result], *, batch: int, size: tuple[int, int], channels: int = 3) -> Result:
    """Return `look(copy of module, images [batch, channels, height, width])`, run on fake tensors.

    If that fails, for example because the model needs values (`.item()`, a branch on a value), `look` gets the module
    itself and random images. Any exception thus comes from a real run.
    """
    torch_compat.prepare_fake_tensors()
    try:
        mode = FakeTensorMode(allow_non_fake_inputs=True)
        shadow = _fake_copy(module, mode)
        with mode, torch.no_grad():
            return look(shadow, torch.empty((batch, channels, *size)))
    except Exception:  # a model's own code may raise anything on fake tensors
        images = torch.rand((batch, channels, *size), generator=torch.Generator().manual_seed(0))
        # Not inference_mode: `look` may compare version counters, which inference tensors lack.
        with torch.no_grad():
            return look(module, images)


def _fake_copy(module: nn.Module, mode: FakeTensorMode) -> nn.Module:
    """Copy a module with fake parameters and buffers; side effects of a run stay in the copy."""
    known: dict[int, Any] = {id(item): mode.from_tensor(item) for item in (*module.parameters(), *module.buffers())}
    return copy.deepcopy(module, known)


@contextmanager
def hooked(modules: Mapping[str, nn.Module], call: Callable[[str, Any], None]) -> Iterator[None]:
    """Call `call(name, output)` after each call of each of `modules`."""
    handles = [
        module.register_forward_hook(lambda _module, _inputs, output, name=name: call(name, output))
        for name, module in modules.items()
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


class Operations(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Records the tensor operations that run, with their parameters, shapes and constants.

    Two runs with equal records compute the same function of the same parameters.
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        named = (*module.named_parameters(remove_duplicate=False), *module.named_buffers(remove_duplicate=False))
        self.record: list[Hashable] = []
        self._known: dict[int, Hashable] = {id(tensor): name for name, tensor in named}
        self._made: list[torch.Tensor] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Record one operation and run it."""
        leaves = _pytree.tree_leaves((args, kwargs or {}))
        self.record.append((str(func), tuple(self._described(leaf) for leaf in leaves)))
        result = func(*args, **(kwargs or {}))
        for tensor in _pytree.tree_leaves(result):
            if isinstance(tensor, torch.Tensor) and id(tensor) not in self._known:
                self._known[id(tensor)] = len(self._made)
                # Kept alive, so that no later tensor gets its id; fake tensors take no memory.
                self._made.append(tensor)
        return result

    def _described(self, leaf: Any) -> Hashable:
        if isinstance(leaf, torch.Tensor):
            return self._known.get(id(leaf), "constant"), tuple(leaf.shape), str(leaf.dtype)
        return repr(leaf)
