"""Description of the benchmark machine: processor, memory, devices and packages."""

import importlib.metadata
import os
import platform
import shutil
import subprocess
import time

from genenc_core.system import limits, proc

PACKAGES = ("genenc", "torch", "torchvision", "zarr", "prefect", "numpy")


def describe() -> dict[str, str]:
    """Describe the machine without user or host names and without importing torch."""
    return {
        "processor": proc.cpu_name(),
        "cores": str(limits.cores()),
        "memory": f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.0f} GiB",
        "devices": ", ".join(gpus()) or "no GPU",
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        **{name: version(name) for name in PACKAGES},
        "date": time.strftime("%Y-%m-%d"),
    }


def version(package: str) -> str:
    """Return the version of a package, `-` if it is not installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "-"


def gpus() -> list[str]:
    """Return the names of NVIDIA devices as listed by nvidia-smi."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return []
    try:
        command = [tool, "--query-gpu=name", "--format=csv,noheader"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return []
    return [line.strip() for line in done.stdout.splitlines() if line.strip()]
