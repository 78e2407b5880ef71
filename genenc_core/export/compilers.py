"""The two exporters of torch: tracing to TorchScript, and export plus AOTInductor compilation to a package."""

import warnings
from pathlib import Path

import torch
from torch import nn

from genenc_core import errors
from genenc_core.export import artifacts


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
        except (RuntimeError, ValueError, TypeError) as error:
            raise errors.ExportError(
                f"TorchScript cannot trace this model: {_short(error)}. Use --formats aotinductor, or --backend eager."
            ) from error


def compile_package(module: nn.Module, example: torch.Tensor, batch_min: int, batch_max: int, path: Path) -> None:
    """Compile `module` for CPU batches of batch_min to batch_max images and write the package to `path` (.pt2).

    `example` [B, 3, H, W] must hold two images or more unless the batch is fixed. Takes about a minute of CPU time
    for a ConvNeXt-T.

    Raises:
        ExportError: a model that torch.export or the compiler refuses.
    """
    import torch._inductor  # imported where it is used: it costs seconds

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
    except (RuntimeError, ValueError, TypeError, AssertionError, NotImplementedError) as error:
        raise errors.ExportError(
            f"AOTInductor cannot compile this model: {_short(error)}. Use --formats torchscript, or --backend eager."
        ) from error


def require_compiler() -> None:
    """Check that the C++ compiler that AOTInductor needs is there.

    Raises:
        ExportError: it is not.
    """
    from torch._inductor import cpp_builder, exc

    try:
        cpp_builder.get_cpp_compiler()
    except exc.InvalidCxxCompiler as error:
        raise errors.ExportError(
            "AOTInductor export needs a C++ compiler (g++), and none was found. Install one (apt install g++), or "
            "export with --formats torchscript."
        ) from error


def _short(error: BaseException) -> str:
    return " ".join(str(error).split())[:400] or type(error).__name__
