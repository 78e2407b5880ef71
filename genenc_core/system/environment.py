"""Environment of a run: machine, interpreter, packages, torch and its devices, genenc's commit."""

import functools
import importlib.metadata
import os
import platform
import sys

from genenc_core.system import code_version, proc


def describe_environment() -> dict[str, object]:
    """Return the environment as JSON data, without user names, host names or secrets."""
    installed = dict(_packages_on(tuple(sys.path)))
    return {
        "genenc": installed.get("genenc", ""),
        "code": dict(code_version.describe()),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "machine": {"cpu": proc.cpu_name(), "logical_cores": os.cpu_count(), "architecture": platform.machine()},
        "torch": describe_torch(),
        "packages": installed,
    }


def describe_torch() -> dict[str, object]:
    """Return the torch build and settings that can change results; TF32 on CUDA is a setting of the run itself."""
    import torch

    found: dict[str, object] = {
        "version": torch.__version__,
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "deterministic_algorithms": torch.are_deterministic_algorithms_enabled(),
        "float32_matmul_precision": torch.get_float32_matmul_precision(),
    }
    if torch.cuda.is_available():
        found |= {
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),  # type: ignore[no-untyped-call]
            "devices": [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())],
        }
    return found


@functools.cache
def _packages_on(_path: tuple[str, ...]) -> dict[str, str]:
    """Return `packages()`, cached: later installs do not change what a process has imported."""
    return packages()


def packages() -> dict[str, str]:
    """Return all installed distributions and versions, sorted by name; of duplicates the one on the path first."""
    found: dict[str, str] = {}
    for item in importlib.metadata.distributions():
        name, version = _name_and_version(item)
        found.setdefault(name.lower(), version)
    return {name: found[name] for name in sorted(found) if name}


def _name_and_version(item: importlib.metadata.Distribution) -> tuple[str, str]:
    """Return a distribution's name and version from its metadata header; parsing all of it is far slower."""
    text = item.read_text("METADATA") or item.read_text("PKG-INFO") or ""
    head = text.partition("\n\n")[0].splitlines()
    fields = {name: value.strip() for name, _, value in (line.partition(":") for line in reversed(head))}
    return fields.get("Name", ""), fields.get("Version", "")
