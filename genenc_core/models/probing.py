"""What a model would do with images of a size, without computing it: a copy with shapes and no numbers is run."""

import copy
from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils import _pytree
from torch.utils._python_dispatch import TorchDispatchMode

from genenc_core import torch_faults

Result = TypeVar("Result")
Look = Callable[[Any, torch.Tensor], Result]


def observe(module: nn.Module, look: Look[Result], *, batch: int, size: tuple[int, int]) -> Result:
    """Return `look(copy of module, images [batch, 3, height, width])`, run on shapes alone.

    A model whose code needs numbers (`.item()`, a branch on a value) is run for real, as itself, on random images.
    Whatever `look` raises comes from that real run, so it is what the model itself would raise.
    """
    torch_faults.before_fake_tensors()
    try:
        mode = FakeTensorMode(allow_non_fake_inputs=True)
        shadow = _without_numbers(module, mode)
        with mode, torch.no_grad():
            return look(shadow, torch.empty((batch, 3, *size)))
    except Exception:  # a model's own code may fail in any way on tensors without numbers
        images = torch.rand((batch, 3, *size), generator=torch.Generator().manual_seed(0))
        # Not inference_mode: `look` may compare versions of tensors, which inference tensors do not have.
        with torch.no_grad():
            return look(module, images)


def _without_numbers(module: nn.Module, mode: FakeTensorMode) -> nn.Module:
    """Copy a module with its parameters and buffers replaced; what its run leaves behind stays in the copy."""
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
    """Records which tensor operations run, on which parameters, shapes and constants.

    Two runs with equal records compute the same from the same parameters.
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
        """Note one operation and run it."""
        leaves = _pytree.tree_leaves((args, kwargs or {}))
        self.record.append((str(func), tuple(self._told(leaf) for leaf in leaves)))
        result = func(*args, **(kwargs or {}))
        for tensor in _pytree.tree_leaves(result):
            if isinstance(tensor, torch.Tensor) and id(tensor) not in self._known:
                self._known[id(tensor)] = len(self._made)
                # Kept, so that no later tensor has its id; shapes without numbers cost nothing.
                self._made.append(tensor)
        return result

    def _told(self, leaf: Any) -> Hashable:
        if isinstance(leaf, torch.Tensor):
            return self._known.get(id(leaf), "constant"), tuple(leaf.shape), str(leaf.dtype)
        return repr(leaf)
