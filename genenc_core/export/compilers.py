"""The two exporters of torch: tracing to TorchScript, and export plus AOTInductor compilation to a package."""

import importlib
import logging
import warnings
from pathlib import Path

import torch
from torch import nn

from genenc_core import errors
from genenc_core.export import artifacts
from genenc_core.models import wording


def trace(module: nn.Module, example: torch.Tensor, batch_min: int, batch_max: int, path: Path) -> None:  # noqa: ARG001
    """Write `module`, traced on `example` [B, 3, H, W], to `path`; a trace takes any batch.

    Raises:
        ExportError: a model that cannot be traced.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # torch.jit is deprecated, and kept on purpose
        # What was constant while tracing is found by the comparison that follows.
        warnings.simplefilter("ignore", torch.jit.TracerWarning)  # type: ignore[attr-defined]
        try:
            with torch.no_grad():
                traced = torch.jit.trace(module, example, check_trace=False)  # type: ignore[no-untyped-call]
            traced.save(path)
        except Exception as error:  # tracing runs the model's own code
            raise errors.ExportError(
                f"TorchScript cannot trace this model: {wording.reason(error)}. "
                "Use --formats aotinductor, or --backend eager."
            ) from error


def compile_package(module: nn.Module, example: torch.Tensor, batch_min: int, batch_max: int, path: Path) -> None:
    """Compile `module` for CPU batches of batch_min to batch_max images and write the package to `path` (.pt2).

    `example` [B, 3, H, W] must hold two images or more unless the batch is fixed. Takes about a minute of CPU time
    for a ConvNeXt-T.

    Raises:
        ExportError: a model that torch.export or the compiler refuses.
    """
    _import_inductor()
    dynamic = None
    if batch_min < batch_max:
        dynamic = ({0: torch.export.Dim("batch", min=batch_min, max=batch_max)},)
    try:
        with torch.no_grad():
            program = torch.export.export(module, (example,), dynamic_shapes=dynamic)
        torch._inductor.aoti_compile_and_package(
            program,
            package_path=str(path),
            inductor_configs={
                # The package's own check, where someone turns it on, would refuse a batch of 1 otherwise.
                "aot_inductor.check_lowerbound": False,
                "aot_inductor.metadata": {artifacts.TORCH_KEY: torch.__version__},
            },
        )
    except Exception as error:  # the compiler passes on whatever its stages raise
        raise errors.ExportError(
            f"AOTInductor cannot compile this model: {wording.reason(error)}. Use "
            "--formats torchscript, or --backend eager."
        ) from error


def require_compiler() -> None:
    """Check that the C++ compiler that AOTInductor needs is there.

    Raises:
        ExportError: it is not.
    """
    _import_inductor()
    from torch._inductor import cpp_builder, exc

    try:
        cpp_builder.get_cpp_compiler()
    except exc.InvalidCxxCompiler as error:
        raise errors.ExportError(
            "AOTInductor export needs a C++ compiler (g++), and none was found. Install one (apt install g++), or "
            "export with --formats torchscript."
        ) from error


def _import_inductor() -> None:
    """Import the compiler (seconds, so only here), without its remark that CUDA is installed but has no device."""
    logger = logging.getLogger("torch.utils.cpp_extension")
    before, logger.disabled = logger.disabled, True
    try:
        importlib.import_module("torch.utils.cpp_extension")
    finally:
        logger.disabled = before
    importlib.import_module("torch._inductor")
