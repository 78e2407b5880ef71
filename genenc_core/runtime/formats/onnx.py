"""ONNX: an open graph format (.onnx) for many runtimes; genenc runs it with onnxruntime on the CPU."""

import importlib.util
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from genenc_core import errors
from genenc_core.runtime import onnx_file
from genenc_core.runtime.formats import interface
from genenc_core.system import torch_compat

LARGEST_BYTES = 2**31 - 2**24
"""limit of weights: 2 GiB for a protobuf message, less 16 MiB for the graph"""

_EXPORT_PACKAGES = ("onnx", "onnxscript", "onnxruntime")


def require(module: nn.Module | None) -> None:
    """Check that the required packages are installed, and that a model to export fits into one file.

    Raises:
        InputError: a package is missing.
        ExportError: the model is too large for one ONNX file.
    """
    needed = _EXPORT_PACKAGES if module else ("onnxruntime",)
    missing = [name for name in needed if importlib.util.find_spec(name) is None]
    if missing:
        raise errors.InputError(f"ONNX needs {', '.join(missing)}, not installed here: pip install 'genenc[onnx]'.")
    if module is None:
        return
    size = sum(tensor.nbytes for tensor in (*module.parameters(), *module.buffers()))
    if size > LARGEST_BYTES:
        raise errors.ExportError(
            f"the model's weights are {size / 1e9:.1f} GB, but one ONNX file holds at most {LARGEST_BYTES / 1e9:.1f} "
            "GB; external weights are not supported, because one digest would not cover them. Use --formats "
            "torchscript or exported_program."
        )


def convert(module: nn.Module, target: interface.Target, path: Path) -> None:
    """Write `module` as one ONNX file with the input `image` and one named output per slot.

    Raises:
        ExportError: torch.export or the converter does not support the model.
    """
    program = target.program(module)
    loggers = [logging.getLogger(name) for name in ("onnxscript", "torch.onnx")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with torch_compat.quiet_export():
            converted: Any = torch.onnx.export(
                program,
                dynamo=True,
                verbose=False,
                input_names=["image"],
                output_names=list(target.outputs),
                external_data=False,
            )
            converted.save(path, external_data=False)
    except Exception as error:  # the converter's stages may raise anything
        raise errors.ExportError(
            f"this model cannot be converted to ONNX: {errors.reason(error)}. Use --formats torchscript or "
            "exported_program."
        ) from error
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def facts(path: Path) -> Mapping[str, str]:
    """Return the versions of the format (ir) and operators (opset) that a file requires."""
    metadata = onnx_file.read(path)
    if metadata is None:
        return {}
    return {"ir": str(metadata.ir_version), "opset": str(metadata.opset), "device": "cpu"}


def load(path: Path, _device: torch.device, _scratch: Path | None) -> interface.Loaded:
    """Load a file into onnxruntime on the CPU.

    Raises:
        InputError: a damaged file, one that needs a newer onnxruntime, or one with external weights.
    """
    metadata = onnx_file.read(path)
    if metadata is not None and metadata.external:
        raise errors.InputError(
            f"{str(path)!r} has weights in external files, which its digest does not cover. Save it as one file, or "
            "export the model with genenc export."
        )
    # Read on import; without it onnxruntime 1.31 keeps a usage database under ~/.cache.
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's exceptions share no base of their own
        raise errors.InputError(
            f"onnxruntime {onnxruntime.__version__} cannot load {str(path)!r}: {errors.reason(error)}. If the file is "
            "intact, install a newer onnxruntime, or export it again here with genenc export."
        ) from error
    # Unlike the graph of older files, onnxruntime does not list weights among the inputs.
    inputs = [item.name for item in session.get_inputs()]
    interface.require_one_input(path, inputs)

    names = [item.name for item in session.get_outputs()]

    def run(images: torch.Tensor) -> Sequence[torch.Tensor] | Mapping[str, torch.Tensor]:
        try:
            arrays = session.run(None, {inputs[0]: images.numpy()})
        except Exception as error:  # onnxruntime's exceptions share no base of their own
            raise RuntimeError(errors.reason(error)) from error
        outputs = [_tensor(array) for array in arrays]
        # The exporter's name of a single output is rarely meaningful.
        return outputs if len(names) == 1 else dict(zip(names, outputs, strict=True))

    return interface.Loaded(
        run=run,
        declared=_declared(session.get_inputs()[0]),
        batch_statistics=metadata is not None and metadata.batch_statistics,
    )


def _tensor(array: Any) -> Any:
    """Convert an output to a tensor; others (strings, sequences) are returned unchanged."""
    try:
        return torch.from_numpy(array)
    except TypeError:
        return array


def _declared(item: Any) -> interface.Declared:
    """Return the dtype and shape of an input from onnxruntime's `tensor(float16)` and `["batch", 3, 64, 64]`."""
    name = str(item.type)
    inner = name.removeprefix("tensor(").removesuffix(")")
    dtype = {"float": "float32", "double": "float64"}.get(inner, inner) if name.startswith("tensor(") else name
    shape = tuple(size if isinstance(size, int) and size > 0 else None for size in item.shape or ())
    return interface.Declared(dtype=dtype, shape=shape or None)
