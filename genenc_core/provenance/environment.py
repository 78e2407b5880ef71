"""What a run ran on: machine, interpreter, packages, torch and its devices, and the code's own version."""

import functools
import hashlib
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path


def describe_environment() -> dict[str, object]:
    """Return the environment as JSON data; nothing in it names a user, a host or a secret."""
    installed = dict(_packages_on(tuple(sys.path)))
    return {
        "genenc": installed.get("genenc", ""),
        "code": dict(describe_code(Path(__file__).resolve().parents[2])),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "machine": {"cpu": cpu_name(), "logical_cores": os.cpu_count(), "architecture": platform.machine()},
        "torch": describe_torch(),
        "packages": installed,
    }


def digest(record: Mapping[str, object]) -> str:
    """Return the sha256 of a JSON record in its canonical form: sorted keys, no spaces."""
    text = json.dumps(record, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


def describe_torch() -> dict[str, object]:
    """Return what of torch's build and settings can change a number; tf32 on CUDA is the run's own, not torch's."""
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
    """Return `packages()`, read once: a process keeps what it has imported, whatever is installed later."""
    return packages()


def packages() -> dict[str, str]:
    """Return every installed distribution and its version, sorted by name; of two by one name the one imported."""
    found: dict[str, str] = {}
    for item in importlib.metadata.distributions():
        name, version = _named(item)
        found.setdefault(name.lower(), version)
    return {name: found[name] for name in sorted(found) if name}


def _named(item: importlib.metadata.Distribution) -> tuple[str, str]:
    """Return a distribution's name and version, from the head of its metadata: parsing the whole takes far longer."""
    text = item.read_text("METADATA") or item.read_text("PKG-INFO") or ""
    head = text.partition("\n\n")[0].splitlines()
    fields = {name: value.strip() for name, _, value in (line.partition(":") for line in reversed(head))}
    return fields.get("Name", ""), fields.get("Version", "")


def cpu_name() -> str:
    """Return the processor's model name."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or "unknown"
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or "unknown")


@functools.cache
def describe_code(folder: Path) -> dict[str, object]:
    """Return the git commit of the code and whether it was changed since; empty for an installed package."""
    commit = _git(folder, "rev-parse", "HEAD")
    if not commit or not (folder / ".git").exists():
        return {}
    return {"git_commit": commit, "git_dirty": bool(_git(folder, "status", "--porcelain"))}


def _git(folder: Path, *arguments: str) -> str:
    command = ["git", "-C", str(folder), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip()
