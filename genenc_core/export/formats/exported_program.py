"""Exported program: torch.export's graph and weights (.pt2), portable between machines, run by Python's torch."""

import json
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import nn

from genenc_core import errors, torch_faults, torch_logs
from genenc_core.export.formats import record
from genenc_core.models import wording

_LEARNT, _TRAINING = 3, 5
"""places of the learnt mean and of the mode among the arguments of a batch normalisation"""


def require(_module: nn.Module | None) -> None:
    """Need nothing beyond torch."""


def save(module: nn.Module, target: record.Target, path: Path) -> None:
    """Write the exported program of `module` to `path`.

    Raises:
        ExportError: a model that torch.export refuses.
    """
    program = target.program(module)
    # The example would travel with the file otherwise, at full size.
    program.example_inputs = None
    try:
        with torch_logs.without_prints():
            torch.export.save(program, path)
    except Exception as error:  # whatever the serializer does not know
        raise errors.ExportError(
            f"torch.export cannot save this model: {wording.reason(error)}. Use --formats torchscript, or --backend "
            "eager."
        ) from error


def facts(path: Path) -> Mapping[str, str]:
    """Return the versions of torch and of the schema that wrote a file; empty for files older than both."""
    with zipfile.ZipFile(path) as archive:
        name = next((name for name in archive.namelist() if name.endswith("models/model.json")), None)
        if name is None:
            return {}
        found = json.loads(archive.read(name))
    version = found.get("schema_version") or {}
    told = {"torch": found.get("torch_version"), "schema": version.get("major")}
    return {key: str(value) for key, value in told.items() if value is not None}


def load(path: Path, device: torch.device, _scratch: Path | None) -> record.Loaded:
    """Load a file onto `device`; constants made while exporting on the CPU move too.

    Raises:
        InputError: a damaged file, or one that this torch cannot read.
    """
    torch_faults.before_fake_tensors()
    try:
        # As an open file: of a path torch looks at the extension, and a private copy has none.
        with path.open("rb") as file, torch_logs.kept_back():
            program = torch.export.load(file)
    except Exception as error:  # the deserializer raises whatever a foreign or damaged file leads it to
        raise errors.InputError(
            f"cannot load {str(path)!r}: {wording.reason(error)}. It is damaged or of another version of torch; "
            "export it again with genenc export."
        ) from error
    record.require_one_input(path, [str(name) for name in program.graph_signature.user_inputs])
    if device.type != "cpu":
        from torch.export.passes import move_to_device_pass

        program = move_to_device_pass(program, str(device))
    module = program.module()

    def run(images: torch.Tensor) -> Sequence[torch.Tensor] | Mapping[str, torch.Tensor]:
        return record.tensors(module(images))

    return record.Loaded(run=run, declared=_declared(program), batch_statistics=_batch_statistics(program))


def _batch_statistics(program: torch.export.ExportedProgram) -> bool:
    """Whether a batch normalisation with learnt statistics is left in training mode."""
    return any(
        "batch_norm" in str(node.target)
        and len(node.args) > _TRAINING
        and node.args[_TRAINING] is True
        # Without learnt statistics it may be a normalisation of each image.
        and node.args[_LEARNT] is not None
        for node in program.graph.nodes
    )


def _declared(program: torch.export.ExportedProgram) -> record.Declared | None:
    """Return the type and shape of the input, from the example that the program was made with."""
    (name,) = program.graph_signature.user_inputs
    found = next((node.meta.get("val") for node in program.graph.nodes if node.name == name), None)
    if not isinstance(found, torch.Tensor):
        return None
    shape = tuple(size if isinstance(size, int) else None for size in found.shape)
    return record.Declared(dtype=str(found.dtype).removeprefix("torch."), shape=shape or None)
