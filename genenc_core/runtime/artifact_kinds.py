"""Exported files: detection of their kind from the content, digests, and compatibility with this machine."""

import contextlib
import platform
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Literal

import torch

from genenc_core import errors
from genenc_core.runtime import onnx_file
from genenc_core.system import digests

ArtifactKind = Literal["TorchScript", "AOTInductor", "exported program", "ONNX", "ExecuTorch", "state dict"]

PACKAGED = "/data/aotinductor/"
"""folder of the compiled model inside an AOTInductor package"""

_EXECUTORCH_MARK = b"ET"
_CPU_FEATURES: Mapping[str, Callable[[], bool]] = {
    "AVX2": torch.cpu._is_avx2_supported,
    "AVX512": torch.cpu._is_avx512_supported,
    "AVX512_VNNI": torch.cpu._is_vnni_supported,
    "AMX_TILE": torch.cpu._is_amx_tile_supported,
}


@contextlib.contextmanager
def private_copy(path: Path, folder: Path | None) -> Iterator[tuple[Path, str]]:
    """Yield a temporary copy of a file that nobody else can modify, and the sha256 of its bytes.

    The copy is unlinked, so that a killed process leaves nothing behind; it uses space in `folder`, by default the
    system's temporary folder.

    Raises:
        InputError: the file cannot be read, or there is no space for the copy.
    """
    digest = digests.ARTIFACT.new()
    try:
        with path.open("rb") as source, tempfile.TemporaryFile(dir=folder) as copy:
            while block := source.read(1 << 20):
                digest.update(block)
                copy.write(block)
            copy.flush()
            copy.seek(0)
            yield Path(f"/dev/fd/{copy.fileno()}"), digest.hexdigest()
    except OSError as error:
        raise errors.InputError(
            f"the artifact {str(path)!r} cannot be copied to {str(folder or tempfile.gettempdir())!r} to be loaded: "
            f"{error.strerror or error}. Make it readable, and free enough space there (or set TMPDIR)."
        ) from error


def artifact_kind(path: Path) -> ArtifactKind | None:
    """Detect the kind of a model file from its content; None if unknown."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, OSError):
        return _flat_kind(path)
    inner = {name.partition("/")[2] for name in names}
    if any(PACKAGED in name for name in names):
        return "AOTInductor"
    if "constants.pkl" in inner and any(name.startswith("code/") for name in inner):
        return "TorchScript"
    if any(name.endswith(("serialized_exported_program.json", "models/model.json")) for name in names):
        return "exported program"
    return "state dict" if "data.pkl" in inner else None


def _flat_kind(path: Path) -> ArtifactKind | None:
    """Detect the kinds that are not archives: a flatbuffer has its type at byte 4, ONNX is a protobuf message."""
    try:
        with path.open("rb") as file:
            mark = file.read(8)[4:]
    except OSError:
        return None
    if mark[:2] == _EXECUTORCH_MARK and mark[2:].isdigit():
        return "ExecuTorch"
    return None if onnx_file.read(path) is None else "ONNX"


def require_kind(path: Path, wanted: ArtifactKind) -> None:
    """Check that `path` is a `wanted` file.

    Raises:
        InputError: missing, or another kind of file.
    """
    if not path.is_file():
        raise errors.InputError(
            f"the artifact {str(path)!r} does not exist. Put the file of the spec there, or export the model again "
            "with genenc export."
        )
    found = artifact_kind(path)
    if found != wanted:
        raise errors.InputError(
            f"the artifact {str(path)!r} is not {_described(wanted)} but {_described(found)}. Export the model again "
            "with genenc export, or correct backend and weights_path in the spec."
        )


def _described(kind: ArtifactKind | None) -> str:
    if kind is None:
        return "an unknown or damaged file"
    return f"{'an' if kind[0] in 'AEOe' else 'a'} {kind} file"


def check(path: Path, facts: Mapping[str, str], *, kind: str, torch_rule: Literal["same", "not newer", "any"]) -> None:
    """Compare an artifact's requirements with this machine; facts that the file does not record are skipped.

    Raises:
        InputError: it cannot run here; all reasons are listed.
    """
    problems = [*_machine_problems(facts), *_torch_problems(facts, torch_rule)]
    if problems:
        raise errors.InputError(
            f"the {kind} file {str(path)!r} cannot run here. It needs {'; it needs '.join(problems)}. Export the model "
            "again here with genenc export, or use --backend eager."
        )


def _machine_problems(facts: Mapping[str, str]) -> Iterator[str]:
    for key, label, actual in (
        ("system", "the operating system", sys.platform),
        ("machine", "the machine", platform.machine()),
    ):
        if facts.get(key, actual) != actual:
            yield f"{label} {facts[key]}, this is {actual}"
    if facts.get("device", "any") not in ("any", "cpu"):
        yield f"the device {facts['device']}, but genenc runs such files on the CPU only"
    absent = [word for word in facts.get("isa", "").split() if word in _CPU_FEATURES and not _CPU_FEATURES[word]()]
    if absent:
        yield f"the CPU instructions {' '.join(absent)}, which this CPU lacks"


def _torch_problems(facts: Mapping[str, str], rule: Literal["same", "not newer", "any"]) -> Iterator[str]:
    written, here = _release(facts.get("torch")), _release(torch.__version__)
    if written is not None and here is not None:
        needed = ".".join(map(str, written))
        if rule == "same" and written != here:
            yield f"torch {needed}, this is {'.'.join(map(str, here))}"
        if rule == "not newer" and written > here:
            yield f"torch {needed} or newer, this is {'.'.join(map(str, here))}"
    if "schema" in facts:
        from torch._export.serde.schema import SCHEMA_VERSION

        if facts["schema"] != str(SCHEMA_VERSION[0]):
            yield f"a torch that reads programs of schema {facts['schema']}, this one reads {SCHEMA_VERSION[0]}"


def _release(version: str | None) -> tuple[int, int] | None:
    """Return (major, minor); None if it is not a version."""
    parts = (version or "").split(".")
    return (int(parts[0]), int(parts[1])) if len(parts) > 1 and parts[0].isdigit() and parts[1].isdigit() else None
