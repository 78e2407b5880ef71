"""The table of formats, and which one a spec's words or a file's content mean."""

from collections.abc import Mapping
from pathlib import Path

from genenc_core import spec
from genenc_core.export import artifacts
from genenc_core.export.formats import aotinductor, exported_program, onnx, record, torchscript

FORMATS: Mapping[spec.ExportFormat, record.Format] = {
    "torchscript": record.Format(
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
    "aotinductor": record.Format(
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
    "exported_program": record.Format(
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
    "onnx": record.Format(
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


def named(backend: str | None, path: Path) -> spec.ExportFormat | None:
    """Return the format that a spec's backend name means; without one, the file's content, then its extension."""
    own = spec.backend_of(backend, None)
    if own == "Auto":
        kind = artifacts.artifact_kind(path)
        by_content = next((name for name, item in FORMATS.items() if item.kind == kind), None)
        if by_content is not None:
            return by_content
        own = spec.backend_of(None, str(path))
    return next((name for name, item in FORMATS.items() if item.backend == own), None)
