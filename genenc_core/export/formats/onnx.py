"""ONNX: an open graph format (.onnx) for many runtimes; genenc runs it with onnxruntime on the CPU."""

import importlib.util
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from genenc_core import errors, torch_logs
from genenc_core.export import onnx_file
from genenc_core.export.formats import record
from genenc_core.models import wording

LARGEST_BYTES = 2**31 - 2**24
"""protobuf messages end at 2 GiB; 16 MiB are left for the graph"""

_TO_EXPORT = ("onnx", "onnxscript", "onnxruntime")


def require(module: nn.Module | None) -> None:
    """Check that the packages are there, and that a model to be exported fits into one file.

    Raises:
        InputError: a package is missing.
        ExportError: the model is too large for one ONNX file.
    """
    missing = [name for name in (_TO_EXPORT if module else ("onnxruntime",)) if importlib.util.find_spec(name) is None]
    if missing:
        raise errors.InputError(f"ONNX needs {', '.join(missing)}, not installed here: pip install 'genenc[onnx]'.")
    if module is None:
        return
    size = sum(tensor.nbytes for tensor in (*module.parameters(), *module.buffers()))
    if size > LARGEST_BYTES:
        raise errors.ExportError(
            f"the model's weights are {size / 1e9:.1f} GB, and one ONNX file holds at most {LARGEST_BYTES / 1e9:.1f} "
            "GB; files with weights outside are not written, because one digest would not cover them. Use --formats "
            "torchscript or exported_program."
        )


def convert(module: nn.Module, target: record.Target, path: Path) -> None:
    """Write `module` as one ONNX file with the input `image` and one named output per slot.

    Raises:
        ExportError: a model that torch.export or the converter refuses.
    """
    program = target.program(module)
    loggers = [logging.getLogger(name) for name in ("onnxscript", "torch.onnx")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with torch_logs.without_prints():
            converted: Any = torch.onnx.export(
                program,
                dynamo=True,
                verbose=False,
                input_names=["image"],
                output_names=list(target.outputs),
                external_data=False,
            )
            converted.save(path, external_data=False)
    except Exception as error:  # the converter passes on whatever its stages raise
        raise errors.ExportError(
            f"this model cannot be converted to ONNX: {wording.reason(error)}. Use --formats torchscript or "
            "exported_program."
        ) from error
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def facts(path: Path) -> Mapping[str, str]:
    """Return the versions of format (ir) and operators (opset) that a file needs."""
    found = onnx_file.read(path)
    if found is None:
        return {}
    return {"ir": str(found.ir_version), "opset": str(found.opset), "device": "cpu"}


def load(path: Path, _device: torch.device, _scratch: Path | None) -> record.Loaded:
    """Load a file into onnxruntime on the CPU.

    Raises:
        InputError: a damaged file, one that needs a newer onnxruntime, or one with weights in other files.
    """
    about = onnx_file.read(path)
    if about is not None and about.external:
        raise errors.InputError(
            f"{str(path)!r} keeps weights in other files, which no digest covers. Save it as one file, or export the "
            "model with genenc export."
        )
    # Read when it is imported: without it onnxruntime 1.31 keeps a database of its use under ~/.cache.
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's exceptions share no base of their own
        raise errors.InputError(
            f"onnxruntime {onnxruntime.__version__} cannot load {str(path)!r}: {wording.reason(error)}. If the file is "
            "whole, install a newer onnxruntime, or export it again here with genenc export."
        ) from error
    # Older files list their weights among the inputs; onnxruntime does not.
    inputs = [item.name for item in session.get_inputs()]
    record.require_one_input(path, inputs)

    names = [item.name for item in session.get_outputs()]

    def run(images: torch.Tensor) -> Sequence[torch.Tensor] | Mapping[str, torch.Tensor]:
        try:
            found = session.run(None, {inputs[0]: images.numpy()})
        except Exception as error:  # onnxruntime's exceptions share no base of their own
            raise RuntimeError(wording.reason(error)) from error
        outputs = [_tensor(array) for array in found]
        # What an exporter calls the only one says little.
        return outputs if len(names) == 1 else dict(zip(names, outputs, strict=True))

    return record.Loaded(
        run=run,
        declared=_declared(session.get_inputs()[0]),
        batch_statistics=about is not None and about.batch_statistics,
    )


def _tensor(array: Any) -> Any:
    """Return an output as a tensor; what is none (texts, sequences) as it is."""
    try:
        return torch.from_numpy(array)
    except TypeError:
        return array


def _declared(item: Any) -> record.Declared:
    """Return the type and shape of an input as onnxruntime has them, `tensor(float16)` and `["batch", 3, 64, 64]`."""
    name = str(item.type)
    inner = name.removeprefix("tensor(").removesuffix(")")
    dtype = {"float": "float32", "double": "float64"}.get(inner, inner) if name.startswith("tensor(") else name
    shape = tuple(size if isinstance(size, int) and size > 0 else None for size in item.shape or ())
    return record.Declared(dtype=dtype, shape=shape or None)
