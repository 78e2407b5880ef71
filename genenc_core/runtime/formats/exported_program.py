"""Exported program: graph and weights of torch.export (.pt2), portable between machines, run by torch in Python."""

import json
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import nn

from genenc_core import errors
from genenc_core.runtime.formats import interface
from genenc_core.system import torch_compat

_LEARNED, _TRAINING = 3, 5
"""positions of the learned mean and of the mode in the arguments of a batch normalisation"""


def require(_module: nn.Module | None) -> None:
    """Do nothing; only torch is needed."""


def save(module: nn.Module, target: interface.Target, path: Path) -> None:
    """Write the exported program of `module` to `path`.

    Raises:
        ExportError: torch.export does not support the model.
    """
    program = target.program(module)
    # The example would be saved with the program at full size.
    program.example_inputs = None
    try:
        with torch_compat.quiet_export():
            torch.export.save(program, path)
    except Exception as error:  # the serializer may raise anything for unknown content
        raise errors.ExportError(
            f"torch.export cannot save this model: {errors.reason(error)}. Use --formats torchscript, or --backend "
            "eager."
        ) from error


def facts(path: Path) -> Mapping[str, str]:
    """Return the versions of torch and of the schema that wrote a file; empty for older files."""
    with zipfile.ZipFile(path) as archive:
        name = next((name for name in archive.namelist() if name.endswith("models/model.json")), None)
        if name is None:
            return {}
        metadata = json.loads(archive.read(name))
    schema = metadata.get("schema_version") or {}
    versions = {"torch": metadata.get("torch_version"), "schema": schema.get("major")}
    return {key: str(value) for key, value in versions.items() if value is not None}


def load(path: Path, device: torch.device, _scratch: Path | None) -> interface.Loaded:
    """Load a file onto `device`, including constants that the export created on the CPU.

    Raises:
        InputError: the file is damaged, or this torch cannot read it.
    """
    torch_compat.prepare_fake_tensors()
    try:
        # As an open file, because torch checks the extension of a path, which a private copy lacks.
        with path.open("rb") as file, torch_compat.quiet_logs():
            program = torch.export.load(file)
    except Exception as error:  # the deserializer may raise anything for a damaged file
        raise errors.InputError(
            f"cannot load {str(path)!r}: {errors.reason(error)}. It is damaged or from another version of torch; "
            "export it again with genenc export."
        ) from error
    interface.require_one_input(path, [str(name) for name in program.graph_signature.user_inputs])
    if device.type != "cpu":
        from torch.export.passes import move_to_device_pass

        program = move_to_device_pass(program, str(device))
    module = program.module()

    def run(images: torch.Tensor) -> Sequence[torch.Tensor] | Mapping[str, torch.Tensor]:
        return interface.tensors(module(images))

    return interface.Loaded(run=run, declared=_declared(program), batch_statistics=_batch_statistics(program))


def _batch_statistics(program: torch.export.ExportedProgram) -> bool:
    """Return whether a batch normalisation with learned statistics is in training mode."""
    return any(
        "batch_norm" in str(node.target)
        and len(node.args) > _TRAINING
        and node.args[_TRAINING] is True
        # Without learned statistics it may normalise each image separately.
        and node.args[_LEARNED] is not None
        for node in program.graph.nodes
    )


def _declared(program: torch.export.ExportedProgram) -> interface.Declared | None:
    """Return the dtype and shape of the input, from the example that the program was exported with."""
    (name,) = program.graph_signature.user_inputs
    example = next((node.meta.get("val") for node in program.graph.nodes if node.name == name), None)
    if not isinstance(example, torch.Tensor):
        return None
    shape = tuple(size if isinstance(size, int) else None for size in example.shape)
    return interface.Declared(dtype=str(example.dtype).removeprefix("torch."), shape=shape or None)
