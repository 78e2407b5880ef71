"""AOTInductor: a package (.pt2) with the model compiled to a library for one kind of CPU and one version of torch."""

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

from genenc_core import errors, torch_logs
from genenc_core.export import artifacts
from genenc_core.export.formats import record
from genenc_core.models import wording

TORCH_KEY = "GENENC_TORCH"
"""Name under which a package of ours carries the version of torch that compiled it."""

_MANY = 16
"""Images from which on torch chooses another kernel for a convolution; the package's check keeps its example's side."""

_KEYS = {
    "device": "AOTI_DEVICE_KEY",
    "isa": "AOTI_CPU_ISA",
    "machine": "AOTI_MACHINE",
    "system": "AOTI_PLATFORM",
    "torch": TORCH_KEY,
}


def require(module: nn.Module | None) -> None:
    """Check, before an export, that the C++ compiler is there; running a package needs none.

    Raises:
        ExportError: it is not.
    """
    if module is None:
        return
    _import_inductor()
    from torch._inductor import cpp_builder, exc

    try:
        cpp_builder.get_cpp_compiler()
    except exc.InvalidCxxCompiler as error:
        raise errors.ExportError(
            "AOTInductor export needs a C++ compiler (g++), but there is none. Install one (apt install g++), or "
            "export with --formats torchscript."
        ) from error


def compile_package(module: nn.Module, target: record.Target, path: Path) -> None:
    """Compile `module` for the CPU and write the package to `path`; about a minute of CPU time for a ConvNeXt-T.

    Raises:
        ExportError: a model that torch.export or the compiler refuses.
    """
    _import_inductor()
    _own_cache()
    program = _with_many(target).program(module)
    try:
        with torch_logs.without_prints():
            torch._inductor.aoti_compile_and_package(
                program,
                package_path=str(path),
                inductor_configs={
                    # The package's own check, where someone turns it on, would refuse a batch of 1 otherwise.
                    "aot_inductor.check_lowerbound": False,
                    "aot_inductor.metadata": {TORCH_KEY: torch.__version__},
                },
            )
    except Exception as error:  # the compiler passes on whatever its stages raise
        raise errors.ExportError(
            f"AOTInductor cannot compile this model: {wording.reason(error)}. Use "
            "--formats torchscript, or --backend eager."
        ) from error


def _with_many(target: record.Target) -> record.Target:
    """Give an example of so many images that the package takes more: one made from fewer refuses a convolution's 16."""
    count = min(target.batch[1], _MANY)
    if len(target.example) >= count:
        return target
    return dataclasses.replace(target, example=target.example[:1].repeat(count, 1, 1, 1))


def facts(path: Path) -> Mapping[str, str]:
    """Return what a package was compiled for, from its metadata."""
    with zipfile.ZipFile(path) as archive:
        for name in archive.namelist():
            if artifacts.PACKAGED in name and name.endswith("wrapper_metadata.json"):
                found = {str(key): str(value) for key, value in json.loads(archive.read(name)).items()}
                return {fact: found[key] for fact, key in _KEYS.items() if key in found}
    return {}


def load(path: Path, _device: torch.device, scratch: Path | None) -> record.Loaded:
    """Load a CPU package; its platform must have been checked.

    The library inside is unpacked into a folder of our own (in `scratch`, else in the system's temporary folder) and
    that folder is removed at once: a loaded library needs its file no more. torch's package loader keeps it, and
    leaves it behind when the process is killed; it also compiles test programs for seconds, this does not.

    Raises:
        InputError: a damaged package.
    """
    # Read by the package at its first call: without it a size or a batch that it was not made for gives wrong numbers.
    os.environ.setdefault("AOTI_RUNTIME_CHECK_INPUTS", "1")
    with tempfile.TemporaryDirectory(prefix="genenc-aoti-", dir=scratch) as folder:
        library = Path(folder) / "model.so"
        try:
            with zipfile.ZipFile(path) as archive:
                (member,) = (n for n in archive.namelist() if artifacts.PACKAGED in n and n.endswith(".so"))
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

    return record.Loaded(run=run)


def _own_cache() -> None:
    """Make sure that the compiler's cache is the user's: its name in the temporary folder can be guessed by anybody.

    Raises:
        ExportError: it belongs to somebody else, or others may write to it.
    """
    from torch._inductor.runtime import cache_dir_utils

    folder = Path(os.environ.get("TORCHINDUCTOR_CACHE_DIR") or cache_dir_utils.default_cache_dir())
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    about = folder.lstat()
    if not stat.S_ISDIR(about.st_mode) or about.st_uid != os.geteuid() or about.st_mode & 0o022:
        raise errors.ExportError(
            f"the compiler's cache {str(folder)!r} is a link, another user's, or can be written by others, so code in "
            "it is not to be trusted. Remove it, or set TORCHINDUCTOR_CACHE_DIR to a folder of your own."
        )


def _import_inductor() -> None:
    """Import the compiler (seconds, so only here), without its remark that CUDA is installed but has no device."""
    logger = logging.getLogger("torch.utils.cpp_extension")
    before, logger.disabled = logger.disabled, True
    try:
        importlib.import_module("torch.utils.cpp_extension")
    finally:
        logger.disabled = before
    importlib.import_module("torch._inductor")
