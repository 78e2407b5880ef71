"""Checks of this machine for `genenc doctor`: packages, devices, decoders, folders, limits, S3."""

import dataclasses
import importlib.metadata
import importlib.util
import os
import platform
import resource
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from packaging.requirements import Requirement

from genenc_core import errors
from genenc_core.system import limits

OK, NOTE, FAILED = "ok", "note", "failed"
SHOWN = ("torch", "torchvision", "zarr", "prefect")
"""Packages whose versions are shown when all is well."""
LEAST_FREE = 2 << 30
LEAST_MEMORY = 2 << 30
LEAST_FILES = 1024
PROBE = "genenc-doctor"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """What was looked at, what was found, and how to mend it."""

    name: str
    state: str = OK
    """`ok`, `note` (works, with less), or `failed`."""
    found: str
    remedy: str = ""

    def lines(self) -> Iterator[str]:
        """Yield the check as text, the remedy on a line of its own."""
        yield f"{self.state:<6}  {self.name}: {self.found}"
        if self.remedy:
            yield f"        -> {self.remedy}"


def machine(place: str | None = None) -> Iterator[Check]:
    """Yield the checks of this machine, and of a place for runs."""
    yield from packages()
    yield devices()
    yield decoders()
    yield temporary_folder()
    yield memory()
    yield open_files()
    if place is not None:
        yield stored_at(place)


def packages() -> Iterator[Check]:
    """Check the installed packages against what this version of genenc needs."""
    yield Check(name="Python", found=platform.python_version())
    wrong = list(_wrong_packages(importlib.metadata.requires("genenc") or []))
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in SHOWN if _installed(name))
    yield from wrong or [Check(name="packages", found=versions)]


def _wrong_packages(requirements: list[str]) -> Iterator[Check]:
    for requirement in map(Requirement, requirements):
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        version = _installed(requirement.name)
        if version is not None and requirement.specifier.contains(version, prereleases=True):
            continue
        needed = f"{requirement.name}{requirement.specifier}"
        yield Check(
            name=requirement.name,
            state=FAILED,
            found=f"{version or 'not installed'}, genenc needs {needed}",
            remedy=f"pip install '{needed}'",
        )


def _installed(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def devices() -> Check:
    """Check torch, its operators for images, and CUDA."""
    try:
        import torch
        import torchvision  # noqa: F401 (registers its operators, which fails beside another torch)
    except (ImportError, OSError, RuntimeError) as error:
        return Check(
            name="torch",
            state=FAILED,
            found=f"cannot be imported: {errors.reason(error)}",
            remedy="install torch and torchvision of one release: pip install --force-reinstall torch torchvision",
        )
    if torch.cuda.is_available():
        names = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
        return Check(name="devices", found=", ".join(names))
    if Path("/proc/driver/nvidia/version").exists():
        return Check(
            name="devices",
            state=FAILED,
            found=f"there is an NVIDIA driver, but torch {torch.__version__} sees no device",
            remedy="install a torch built for this driver's CUDA (pytorch.org), and check CUDA_VISIBLE_DEVICES",
        )
    return Check(name="devices", found=f"no GPU; runs use {limits.cores()} CPU cores")


def decoders() -> Check:
    """Check which formats of images can be read."""
    try:
        import imagecodecs
        from PIL import features
    except (ImportError, OSError, ValueError) as error:
        return Check(
            name="images",
            state=FAILED,
            found=f"decoders cannot be imported: {errors.reason(error)}",
            remedy="pip install --force-reinstall pillow imagecodecs",
        )
    there = {
        "JPEG": imagecodecs.JPEG8.available,
        "PNG": True,
        "TIFF": True,
        "WebP": features.check("webp"),
        "AVIF": importlib.util.find_spec("PIL._avif") is not None,
        "HEIC": importlib.util.find_spec("pillow_heif") is not None,
    }
    missing = [name for name, available in there.items() if not available]
    found = ", ".join(name for name, available in there.items() if available)
    if not missing:
        return Check(name="images", found=found)
    remedy = "pip install 'genenc[heif]'" if missing == ["HEIC"] else "pip install -U pillow imagecodecs pillow-heif"
    return Check(name="images", state=NOTE, found=f"{found}; not {', '.join(missing)}", remedy=remedy)


def temporary_folder() -> Check:
    """Check that temporary files can be written."""
    try:
        folder = tempfile.gettempdir()
    except OSError as error:
        return Check(
            name="temporary folder",
            state=FAILED,
            found=error.strerror or str(error),
            remedy="set TMPDIR to a folder that can be written",
        )
    return _space("temporary folder", Path(folder), remedy="set TMPDIR to a folder with more space")


def _space(name: str, folder: Path, remedy: str) -> Check:
    free = shutil.disk_usage(folder).free
    words = f"{folder}, {free / (1 << 30):.1f} GiB free"
    if free < LEAST_FREE:
        return Check(name=name, state=NOTE, found=words, remedy=remedy)
    return Check(name=name, found=words)


def memory() -> Check:
    """Check the memory that is left to this process."""
    left = limits.available_bytes()
    words = "unknown" if left is None else f"{left / (1 << 30):.1f} GiB available"
    if left is not None and left < LEAST_MEMORY:
        return Check(name="memory", state=NOTE, found=words, remedy="give smaller --batch-size and --decode-workers")
    return Check(name="memory", found=words)


def open_files() -> Check:
    """Check how many files a process may have open."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < LEAST_FILES:
        allowed = LEAST_FILES if hard == resource.RLIM_INFINITY else min(hard, LEAST_FILES)
        return Check(name="open files", state=NOTE, found=f"at most {soft}", remedy=f"ulimit -n {allowed}")
    return Check(name="open files", found="no limit" if soft == resource.RLIM_INFINITY else f"at most {soft}")


def stored_at(place: str) -> Check:
    """Check that runs can be stored in a place: a file is created there and removed."""
    from genenc_core.store.backends import objects

    name = "place for runs"
    root = objects.to_root(place)
    try:
        if objects.is_remote(root):
            found = objects.open_objects(objects.join(root, PROBE))
            key = f"{os.getpid()}"
            found.replace(key, b"written by genenc doctor")
            found.remove(key)
            return Check(name=name, found=f"{place}, can be written")
        folder = Path(place).absolute()
        parent = next(each for each in (folder, *folder.parents) if each.exists())
        with tempfile.NamedTemporaryFile(dir=parent, prefix=PROBE):
            return _space(name, parent, remedy="give a place with more space")
    except (errors.GenencError, OSError) as error:
        remedy = "see genenc_core/store/S3.md" if objects.is_remote(root) else "give a folder that you may write to"
        return Check(name=name, state=FAILED, found=f"{place}: {errors.reason(error)}", remedy=remedy)
