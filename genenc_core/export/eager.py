"""What runs an eager module on a device: as it is, in another number format, or compiled."""

import collections
import contextlib
import copy
import importlib
import threading
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import nn

from genenc_core import errors, torch_faults
from genenc_core.export.execution import Execution
from genenc_core.export.formats import record
from genenc_core.models import layers, sources, wording

STATELESS = frozenset({"torchvision", "timm", "genenc"})
"""Sources whose modules keep no state; a user's may, and so may what a model file puts together."""


def runner(module: nn.Module, device: torch.device, how: Execution) -> record.Runner:
    """Return what runs an eager module so on a device; the module itself stays as it is.

    A compiled one has its convolutions' channels last and is made for each batch size anew, so it should be given
    one size only. On CUDA it replays CUDA graphs, and must be called from one thread always; in half precision its
    convolutions' channels are last, too, as their kernels have them.
    """
    if device.type != "cpu" or how.compile:
        module = copy.deepcopy(module).to(device)
    if device.type == "cpu" and not how.identity():
        return module
    layout = torch.contiguous_format
    called: Callable[..., object] = module
    half = {"bfloat16": torch.bfloat16, "float16": torch.float16}.get(how.precision)
    replayed = how.compile and device.type == "cuda"
    convolves = any(isinstance(part, nn.Conv2d) for part in module.modules())
    if convolves and (how.compile or (half is not None and device.type == "cuda")):
        layout = torch.channels_last
        called = module = module.to(memory_format=layout)
    if how.compile:
        torch_faults.before_fake_tensors()
        called = torch.compile(module, dynamic=False, mode="reduce-overhead" if replayed else None)

    def run(images: torch.Tensor) -> Sequence[torch.Tensor]:
        if replayed:
            let_thread_have_graphs()
        casting = contextlib.nullcontext() if half is None else torch.autocast(device.type, dtype=half)
        try:
            with casting:
                given = record.tensors(called(images.contiguous(memory_format=layout)))
                found = list(given.values()) if isinstance(given, Mapping) else given
        except Exception as error:
            if replayed and "out of memory" in str(error):
                # What was begun for this size holds its memory, and older torch refuses to go on from there.
                importlib.import_module("torch._inductor.cudagraph_trees").reset_cudagraph_trees()
            compiling = how.compile and type(error).__module__.startswith(("torch._dynamo", "torch._inductor"))
            # Memory that runs out meanwhile says nothing of the model: a smaller batch may do.
            if compiling and "out of memory" not in str(error):
                raise errors.InputError(
                    f"torch cannot compile this model: {wording.reason(error)}. Leave --compile out, and give another "
                    "--out"
                ) from error
            raise
        if not replayed:
            return [item.float() for item in found]
        # The next replay of a CUDA graph writes over what this one returned.
        return [item.to(torch.float32, copy=True, memory_format=torch.contiguous_format) for item in found]

    return run


def keeps_no_state(built: sources.BuiltEncoder) -> bool:
    """Return whether a call of the model is known to leave nothing that changes what another call gives."""
    return built.kind in STATELESS and not layers.has_other_hooks(built.module)


def let_thread_have_graphs() -> None:
    """Give the calling thread what torch keeps its CUDA graphs in.

    In older torch only the thread has it that imports the module first (https://github.com/pytorch/pytorch/pull/184357).
    """
    trees = importlib.import_module("torch._inductor.cudagraph_trees")
    if not hasattr(trees.local, "tree_manager_containers"):
        trees.local.tree_manager_containers = {}
        trees.local.tree_manager_locks = collections.defaultdict(threading.Lock)
        for name in ("tree_manager_containers", "tree_manager_locks"):
            torch._C._stash_obj_in_tls(name, getattr(trees.local, name))
