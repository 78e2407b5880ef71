"""Exported files: what kind a file is, told from its content, and its digest; nothing of it is run."""

import contextlib
import hashlib
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from genenc_core import errors
from genenc_core.export import onnx_file

ArtifactKind = Literal["TorchScript", "AOTInductor", "exported program", "ONNX", "ExecuTorch", "state dict"]

PACKAGED = "/data/aotinductor/"
"""folder of the compiled model inside an AOTInductor package"""

_EXECUTORCH_MARK = b"ET"


def file_sha256(path: Path) -> str:
    """Return the sha256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextlib.contextmanager
def private_copy(path: Path, folder: Path | None) -> Iterator[tuple[Path, str]]:
    """Give a copy of a file that nobody else can change, and the sha256 of its bytes; it is gone afterwards.

    The copy has no name in any folder (in `folder`, else the system's temporary one, it only takes space), so none is
    left by a process that is killed.

    Raises:
        InputError: the file cannot be read, or there is no space for the copy.
    """
    digest = hashlib.sha256()
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
            f"{error.strerror or error}. Make it readable, and have as much space there (TMPDIR names another folder)."
        ) from error


def artifact_kind(path: Path) -> ArtifactKind | None:
    """Tell what kind of model file `path` is, from its content; None: none of them."""
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
    """Tell the kinds that are no archive: a flatbuffer names its type at byte 4, ONNX is one protobuf message."""
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
            f"the artifact {str(path)!r} does not exist. Put the file that belongs to the spec there, or export the "
            "model again with genenc export."
        )
    found = artifact_kind(path)
    if found != wanted:
        raise errors.InputError(
            f"the artifact {str(path)!r} is not {_described(wanted)} but {_described(found)}. Export the model again "
            "with genenc export, or correct backend and weights_path in the spec."
        )


def _described(kind: ArtifactKind | None) -> str:
    if kind is None:
        return "none that genenc knows (or a damaged one)"
    return f"{'an' if kind[0] in 'AEOe' else 'a'} {kind} file"
