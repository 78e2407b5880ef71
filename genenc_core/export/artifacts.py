"""Exported files: what kind a file is, its digest, the platform it needs, and how it is loaded to be run."""

import hashlib
import json
import platform
import shutil
import sys
import tempfile
import warnings
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch

from genenc_core import errors
from genenc_core.models import wording

ArtifactKind = Literal["TorchScript", "AOTInductor", "exported program", "state dict"]
Runner = Callable[[torch.Tensor], Sequence[torch.Tensor]]

TORCH_KEY = "GENENC_TORCH"
"""Name under which a package of ours carries the version of torch that compiled it."""

_PACKAGED = "/data/aotinductor/"
_CPU_FEATURES: Mapping[str, Callable[[], bool]] = {
    "AVX2": torch.cpu._is_avx2_supported,
    "AVX512": torch.cpu._is_avx512_supported,
    "AVX512_VNNI": torch.cpu._is_vnni_supported,
    "AMX_TILE": torch.cpu._is_amx_tile_supported,
}


def file_sha256(path: Path) -> str:
    """Return the sha256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def artifact_kind(path: Path) -> ArtifactKind | None:
    """Tell what kind of PyTorch file `path` is, from the names inside; None: none of them. Nothing of it is run."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, OSError):
        return None
    inner = {name.partition("/")[2] for name in names}
    if any(_PACKAGED in name for name in names):
        return "AOTInductor"
    if "constants.pkl" in inner and any(name.startswith("code/") for name in inner):
        return "TorchScript"
    if any(name.endswith(("serialized_exported_program.json", "models/model.json")) for name in names):
        return "exported program"
    return "state dict" if "data.pkl" in inner else None


def require_kind(path: Path, wanted: ArtifactKind) -> None:
    """Check that `path` is a `wanted` file.

    Raises:
        InputError: missing, or another kind of file.
    """
    if not path.is_file():
        raise errors.InputError(
            f"the artifact {str(path)!r} does not exist. Put the file that belongs to the spec there, or export the "
            "model again with genenc export."
        )
    found = artifact_kind(path)
    if found != wanted:
        raise errors.InputError(
            f"the artifact {str(path)!r} is not a {wanted} file but {_described(found)}. Export the model again with "
            "genenc export, or correct backend and weights_path in the spec."
        )


def _described(kind: ArtifactKind | None) -> str:
    if kind is None:
        return "no PyTorch archive at all (or a damaged one)"
    return f"a {kind}"


def package_metadata(path: Path) -> dict[str, str]:
    """Return the metadata of an AOTInductor package (device, ISA, ...) without loading it."""
    with zipfile.ZipFile(path) as archive:
        for name in archive.namelist():
            if _PACKAGED in name and name.endswith("wrapper_metadata.json"):
                return {str(key): str(value) for key, value in json.loads(archive.read(name)).items()}
    return {}


def check_platform(path: Path, metadata: Mapping[str, str]) -> None:
    """Compare what a package was compiled for with this machine.

    Raises:
        InputError: other device, operating system, machine, instruction set, or version of torch (major.minor).
    """
    problems = [
        f"{label} {wanted}, this is {found}"
        for label, wanted, found in (
            ("the operating system", metadata.get("AOTI_PLATFORM"), sys.platform),
            ("the machine", metadata.get("AOTI_MACHINE"), platform.machine()),
            ("torch", _release(metadata.get(TORCH_KEY)), _release(torch.__version__)),
            ("the device", metadata.get("AOTI_DEVICE_KEY"), "cpu (the only device genenc runs packages on)"),
        )
        if wanted and wanted != found.partition(" ")[0]
    ]
    words = metadata.get("AOTI_CPU_ISA", "").split()
    absent = [word for word in words if word in _CPU_FEATURES and not _CPU_FEATURES[word]()]
    if absent:
        problems.append(f"the CPU instructions {' '.join(absent)}, which this CPU lacks")
    if problems:
        raise errors.InputError(
            f"the package {str(path)!r} cannot run here. It needs {'; it needs '.join(problems)}. Export the model "
            "again on this machine with genenc export, or use --backend torchscript or eager."
        )


def _release(version: str | None) -> str:
    return ".".join((version or "").split(".")[:2])


def load_torchscript(path: Path, *, device: torch.device) -> Runner:
    """Load a TorchScript file onto `device`.

    Raises:
        InputError: a damaged file, or one that this torch cannot read.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # torch.jit is deprecated, and kept on purpose
        try:
            module: Any = torch.jit.load(path, map_location=device)  # type: ignore[no-untyped-call]
        except (RuntimeError, ValueError) as error:
            raise errors.InputError(f"cannot load {str(path)!r}: {wording.reason(error)}.") from error
    module.eval()

    def run(images: torch.Tensor) -> Sequence[torch.Tensor]:
        outputs = module(images)
        if isinstance(outputs, torch.Tensor):
            return (outputs,)
        return tuple(outputs.values()) if isinstance(outputs, dict) else tuple(outputs)

    return run


def load_aotinductor(path: Path, *, scratch: Path | None = None) -> Runner:
    """Load a CPU package; its platform must have been checked.

    The library inside is unpacked into a folder of our own (in `scratch`, else in the system's temporary folder) and
    that folder is removed at once: a loaded library needs its file no more. torch's package loader keeps it, and
    leaves it behind when the process is killed; it also compiles test programs for seconds, this does not.

    Raises:
        InputError: a damaged package.
    """
    with tempfile.TemporaryDirectory(prefix="genenc-aoti-", dir=scratch) as folder:
        library = Path(folder) / "model.so"
        try:
            with zipfile.ZipFile(path) as archive:
                (member,) = (n for n in archive.namelist() if _PACKAGED in n and n.endswith(".so"))
                with archive.open(member) as source, library.open("wb") as target:
                    shutil.copyfileobj(source, target, 1 << 20)
            runner = torch._C._aoti.AOTIModelContainerRunnerCpu(str(library), 1)
        except (ValueError, zipfile.BadZipFile, RuntimeError) as error:
            raise errors.InputError(
                f"cannot load the package {str(path)!r}: {wording.reason(error)}. Export it again with genenc export."
            ) from error

    def run(images: torch.Tensor) -> Sequence[torch.Tensor]:
        outputs: Sequence[torch.Tensor] = runner.run([images])
        return outputs

    return run
