"""AOTInductor: a package (.pt2) of the model, compiled for one kind of CPU and one version of torch."""

import dataclasses
import importlib
import json
import logging
import os
import shutil
import stat
import tempfile
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import nn

from genenc_core import errors
from genenc_core.runtime import artifact_kinds
from genenc_core.runtime.formats import interface
from genenc_core.system import torch_compat

TORCH_KEY = "GENENC_TORCH"
"""metadata key in genenc's packages for the version of torch that compiled them"""

_KERNEL_BATCH = 16
"""batch size from which torch uses another convolution kernel; a package rejects batches on the other side of it"""

_KEYS = {
    "device": "AOTI_DEVICE_KEY",
    "isa": "AOTI_CPU_ISA",
    "machine": "AOTI_MACHINE",
    "system": "AOTI_PLATFORM",
    "torch": TORCH_KEY,
}


def require(module: nn.Module | None) -> None:
    """Check, for an export, that a C++ compiler is installed; running a package needs none.

    Raises:
        ExportError: there is none.
    """
    if module is None:
        return
    _import_inductor()
    from torch._inductor import cpp_builder, exc

    try:
        cpp_builder.get_cpp_compiler()
    except exc.InvalidCxxCompiler as error:
        raise errors.ExportError(
            "AOTInductor export needs a C++ compiler (g++), but none is installed. Install one (apt install g++), or "
            "export with --formats torchscript."
        ) from error


def compile_package(module: nn.Module, target: interface.Target, path: Path) -> None:
    """Compile `module` for the CPU and write the package to `path`; about a minute of CPU time for a ConvNeXt-T.

    Raises:
        ExportError: torch.export or the compiler does not support the model.
    """
    _import_inductor()
    _check_cache_owner()
    program = _with_larger_example(target).program(module)
    try:
        with torch_compat.quiet_export():
            torch._inductor.aoti_compile_and_package(
                program,
                package_path=str(path),
                inductor_configs={
                    # Otherwise the package's input check, if enabled, rejects a batch of 1.
                    "aot_inductor.check_lowerbound": False,
                    "aot_inductor.metadata": {TORCH_KEY: torch.__version__},
                },
            )
    except Exception as error:  # the compiler's stages may raise anything
        raise errors.ExportError(
            f"AOTInductor cannot compile this model: {errors.reason(error)}. Use "
            "--formats torchscript, or --backend eager."
        ) from error


def _with_larger_example(target: interface.Target) -> interface.Target:
    """Enlarge the example to `_KERNEL_BATCH` images if allowed, so that the package accepts batches of that size."""
    count = min(target.batch[1], _KERNEL_BATCH)
    if len(target.example) >= count:
        return target
    return dataclasses.replace(target, example=target.example[:1].repeat(count, 1, 1, 1))


def facts(path: Path) -> Mapping[str, str]:
    """Return a package's requirements from its metadata."""
    with zipfile.ZipFile(path) as archive:
        for name in archive.namelist():
            if artifact_kinds.PACKAGED in name and name.endswith("wrapper_metadata.json"):
                metadata = {str(key): str(value) for key, value in json.loads(archive.read(name)).items()}
                return {fact: metadata[key] for fact, key in _KEYS.items() if key in metadata}
    return {}


def load(path: Path, _device: torch.device, scratch: Path | None) -> interface.Loaded:
    """Load a CPU package whose platform has been checked.

    The library is extracted to a private folder (in `scratch`, by default the system's temporary folder), which is
    removed right after loading, because a loaded library no longer needs its file. torch's own loader leaves the file
    behind if the process is killed, and spends seconds compiling test programs.

    Raises:
        InputError: the package is damaged.
    """
    # Read by the package on its first call; without it an unsupported size or batch gives wrong numbers.
    os.environ.setdefault("AOTI_RUNTIME_CHECK_INPUTS", "1")
    with tempfile.TemporaryDirectory(prefix="genenc-aoti-", dir=scratch) as folder:
        library = Path(folder) / "model.so"
        try:
            with zipfile.ZipFile(path) as archive:
                (member,) = (n for n in archive.namelist() if artifact_kinds.PACKAGED in n and n.endswith(".so"))
                with archive.open(member) as source, library.open("wb") as target:
                    shutil.copyfileobj(source, target, 1 << 20)
            runner = torch._C._aoti.AOTIModelContainerRunnerCpu(str(library), 1)
        except (ValueError, zipfile.BadZipFile, RuntimeError) as error:
            raise errors.InputError(
                f"cannot load the package {str(path)!r}: {errors.reason(error)}. Export it again with genenc export."
            ) from error

    def run(images: torch.Tensor) -> Sequence[torch.Tensor]:
        outputs: Sequence[torch.Tensor] = runner.run([images])
        return outputs

    return interface.Loaded(run=run)


def _check_cache_owner() -> None:
    """Check that the compiler's cache is private to the user, since its path in the temporary folder is predictable.

    Raises:
        ExportError: it belongs to another user, or others may write to it.
    """
    from torch._inductor.runtime import cache_dir_utils

    folder = Path(os.environ.get("TORCHINDUCTOR_CACHE_DIR") or cache_dir_utils.default_cache_dir())
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    status = folder.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid() or status.st_mode & 0o022:
        raise errors.ExportError(
            f"the compiler's cache {str(folder)!r} is a link, belongs to another user, or is writable by others, so "
            "its code cannot be trusted. Remove it, or set TORCHINDUCTOR_CACHE_DIR to a private folder."
        )


def _import_inductor() -> None:
    """Import the compiler lazily (it takes seconds), without its warning that CUDA is installed but has no device."""
    logger = logging.getLogger("torch.utils.cpp_extension")
    before, logger.disabled = logger.disabled, True
    try:
        importlib.import_module("torch.utils.cpp_extension")
    finally:
        logger.disabled = before
    importlib.import_module("torch._inductor")
