"""What runs an eager module on a device: as it is, in another number format, or compiled."""

import contextlib
import copy
from collections.abc import Callable, Sequence

import torch
from torch import nn

from genenc_core import errors
from genenc_core.export.execution import Execution
from genenc_core.export.formats import record
from genenc_core.models import wording


def runner(module: nn.Module, device: torch.device, how: Execution) -> record.Runner:
    """Return what runs an eager module so on a device; the module itself stays as it is.

    A compiled one has its convolutions' channels last and is made for each batch size anew, so it should be given
    one size only. On CUDA it replays CUDA graphs, and must be called from one thread always.
    """
    if device.type != "cpu" or how.compile:
        module = copy.deepcopy(module).to(device)
    if device.type == "cpu" and not how.identity():
        return module
    layout = torch.contiguous_format
    called: Callable[..., object] = module
    if how.compile:
        if any(isinstance(part, nn.Conv2d) for part in module.modules()):
            layout = torch.channels_last
            module = module.to(memory_format=layout)
        called = torch.compile(module, dynamic=False, mode="reduce-overhead" if device.type == "cuda" else None)
    half = {"bfloat16": torch.bfloat16, "float16": torch.float16}.get(how.precision)

    def run(images: torch.Tensor) -> Sequence[torch.Tensor]:
        casting = contextlib.nullcontext() if half is None else torch.autocast(device.type, dtype=half)
        try:
            with casting:
                found = record.tensors(called(images.contiguous(memory_format=layout)))
        except Exception as error:
            compiling = how.compile and type(error).__module__.startswith(("torch._dynamo", "torch._inductor"))
            # Memory that runs out meanwhile says nothing of the model: a smaller batch may do.
            if compiling and "out of memory" not in str(error):
                raise errors.InputError(
                    f"torch cannot compile this model: {wording.reason(error)}. Leave --compile out, and give another "
                    "--out"
                ) from error
            raise
        # The next replay of a CUDA graph writes over what this one returned.
        replayed = how.compile and device.type == "cuda"
        return [item.float() if item.dtype != torch.float32 or not replayed else item.clone() for item in found]

    return run
