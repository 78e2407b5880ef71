"""What a model in float64 computes in a narrower type all the same."""

from collections.abc import Callable, Iterable
from typing import Any, Final, NamedTuple, TypeVar

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from genenc_core.system import digests

_Result = TypeVar("_Result")
_NARROW: Final = frozenset({torch.float32, torch.float16, torch.bfloat16})


class Narrow(NamedTuple):
    """A tensor of a narrow type that an operation returned: the operation, and a digest of the values."""

    operation: str
    digest: str


class _Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.found: list[Narrow] = []

    def __torch_dispatch__(
        self,
        func: Any,
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        given = func(*args, **(kwargs or {}))
        for each in tree_leaves(given):
            if isinstance(each, torch.Tensor) and each.dtype in _NARROW:
                self.found.append(Narrow(str(func), _digest(each)))
        return given


def _digest(tensor: torch.Tensor) -> str:
    found = digests.WEIGHTS.new()
    found.update(tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return str(found.hexdigest())


def watched(work: Callable[..., _Result], *arguments: object) -> tuple[_Result, list[Narrow]]:
    """Call `work`; also return all tensors of types narrower than float64 that were computed, in their order."""
    with _Watch() as watch:
        result = work(*arguments)
    return result, watch.found
