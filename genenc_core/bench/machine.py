"""The machine that figures are of: its processor, memory, devices and packages, and how busy it is."""

import importlib.metadata
import os
import platform
import shutil
import subprocess
import time
from pathlib import Path

from genenc_core import host
from genenc_core.provenance import environment

PACKAGES = ("genenc", "torch", "torchvision", "zarr", "prefect", "numpy")


def describe() -> dict[str, str]:
    """Return the machine's description; nothing in it names a user or a host, and torch is not imported for it."""
    return {
        "processor": environment.cpu_name(),
        "cores": str(host.cores()),
        "memory": f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.0f} GiB",
        "devices": ", ".join(gpus()) or "no GPU",
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        **{name: version(name) for name in PACKAGES},
        "date": time.strftime("%Y-%m-%d"),
    }


def version(package: str) -> str:
    """Return the version of an installed package, `-` for none."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "-"


def gpus() -> list[str]:
    """Return the names of NVIDIA devices, as their driver's tool lists them."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return []
    try:
        command = [tool, "--query-gpu=name", "--format=csv,noheader"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return []
    return [line.strip() for line in done.stdout.splitlines() if line.strip()]


def busy_seconds() -> float | None:
    """Return the CPU seconds that the whole machine has worked since it started; None where /proc does not tell."""
    try:
        fields = Path("/proc/stat").read_text().splitlines()[0].split()[1:]
    except OSError:
        return None
    user, nice, system, _idle, _waiting, interrupt, soft = map(int, fields[:7])
    return (user + nice + system + interrupt + soft) / os.sysconf("SC_CLK_TCK")
