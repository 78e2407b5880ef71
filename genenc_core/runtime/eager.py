"""Runners of eager modules on a device, optionally with another precision or compiled."""

import collections
import contextlib
import copy
import importlib
import threading
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import nn

from genenc_core import errors
from genenc_core.models import layers, resolve
from genenc_core.runtime.execution import Execution
from genenc_core.runtime.formats import interface
from genenc_core.system import torch_compat

STATELESS = frozenset({"torchvision", "timm", "genenc"})
"""sources whose modules keep no state; those of user code and model files may"""


def runner(module: nn.Module, device: torch.device, how: Execution) -> interface.Runner:
    """Return a runner of an eager module on a device; the module itself is not modified.

    Compiled models use channels-last convolutions and are recompiled for each batch size, so call them with one size
    only. On CUDA they replay CUDA graphs and must always be called from the same thread. Half precision on CUDA also
    uses channels-last convolutions, as its kernels do.
    """
    if device.type != "cpu" or how.compile:
        module = copy.deepcopy(module).to(device)
    if device.type == "cpu" and not how.identity():
        return module
    layout = torch.contiguous_format
    call: Callable[..., object] = module
    half = {"bfloat16": torch.bfloat16, "float16": torch.float16}.get(how.precision)
    replayed = how.compile and device.type == "cuda"
    convolves = any(isinstance(part, nn.Conv2d) for part in module.modules())
    if convolves and (how.compile or (half is not None and device.type == "cuda")):
        layout = torch.channels_last
        call = module = module.to(memory_format=layout)
    if how.compile:
        torch_compat.prepare_fake_tensors()
        call = torch.compile(module, dynamic=False, mode="reduce-overhead" if replayed else None)

    def run(images: torch.Tensor) -> Sequence[torch.Tensor]:
        if replayed:
            init_cudagraph_trees()
        autocast = contextlib.nullcontext() if half is None else torch.autocast(device.type, dtype=half)
        try:
            with autocast:
                returned = interface.tensors(call(images.contiguous(memory_format=layout)))
                outputs = list(returned.values()) if isinstance(returned, Mapping) else returned
        except Exception as error:
            if replayed and "out of memory" in str(error):
                # An incomplete recording keeps its memory, and older torch cannot continue from it.
                importlib.import_module("torch._inductor.cudagraph_trees").reset_cudagraph_trees()
            compiling = how.compile and type(error).__module__.startswith(("torch._dynamo", "torch._inductor"))
            # Running out of memory does not mean that the model cannot be compiled: a smaller batch may fit.
            if compiling and "out of memory" not in str(error):
                raise errors.InputError(
                    f"torch cannot compile this model: {errors.reason(error)}. Omit --compile, and give another --out"
                ) from error
            raise
        if not replayed:
            return [item.float() for item in outputs]
        # The next replay of a CUDA graph overwrites these outputs.
        return [item.to(torch.float32, copy=True, memory_format=torch.contiguous_format) for item in outputs]

    return run


def is_stateless(built: resolve.BuiltEncoder) -> bool:
    """Return whether a call of the model is known not to affect the result of another call."""
    return built.kind in STATELESS and not layers.has_other_hooks(built.module)


def init_cudagraph_trees() -> None:
    """Initialise torch's thread-local containers of CUDA graphs in the calling thread.

    Older torch only does so in the thread that first imports the module (https://github.com/pytorch/pytorch/pull/184357).
    """
    trees = importlib.import_module("torch._inductor.cudagraph_trees")
    if not hasattr(trees.local, "tree_manager_containers"):
        trees.local.tree_manager_containers = {}
        trees.local.tree_manager_locks = collections.defaultdict(threading.Lock)
        for name in ("tree_manager_containers", "tree_manager_locks"):
            torch._C._stash_obj_in_tls(name, getattr(trees.local, name))
