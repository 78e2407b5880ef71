"""The table of formats, and the choice of one by a spec's backend or a file's content."""

from collections.abc import Mapping
from pathlib import Path

from genenc_core import spec
from genenc_core.runtime import artifact_kinds
from genenc_core.runtime.formats import aotinductor, exported_program, interface, onnx, torchscript

FORMATS: Mapping[spec.ExportFormat, interface.Format] = {
    "torchscript": interface.Format(
        kind="TorchScript",
        backend="TorchScript",
        suffix=".pt",
        runs_code=True,
        cpu_only=False,
        torch_rule="not newer",
        require=torchscript.require,
        compile=torchscript.trace,
        facts=torchscript.facts,
        load=torchscript.load,
    ),
    "aotinductor": interface.Format(
        kind="AOTInductor",
        backend="AOTInductor",
        suffix=".pt2",
        runs_code=True,
        cpu_only=True,
        torch_rule="same",
        require=aotinductor.require,
        compile=aotinductor.compile_package,
        facts=aotinductor.facts,
        load=aotinductor.load,
    ),
    "exported_program": interface.Format(
        kind="exported program",
        backend="ExportedProgram",
        suffix=".pt2",
        runs_code=True,
        cpu_only=False,
        torch_rule="not newer",
        require=exported_program.require,
        compile=exported_program.save,
        facts=exported_program.facts,
        load=exported_program.load,
    ),
    "onnx": interface.Format(
        kind="ONNX",
        backend="ONNX",
        suffix=".onnx",
        runs_code=False,
        cpu_only=True,
        torch_rule="any",
        require=onnx.require,
        compile=onnx.convert,
        facts=onnx.facts,
        load=onnx.load,
    ),
}


def format_of(backend: str | None, path: Path) -> spec.ExportFormat | None:
    """Return the format of a spec's backend; without one, that of the file's content, then of its extension."""
    own = spec.backend_of(backend, None)
    if own == "Auto":
        kind = artifact_kinds.artifact_kind(path)
        by_content = next((name for name, item in FORMATS.items() if item.kind == kind), None)
        if by_content is not None:
            return by_content
        own = spec.backend_of(None, str(path))
    return next((name for name, item in FORMATS.items() if item.backend == own), None)
