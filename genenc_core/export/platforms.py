"""What an artifact needs against what this machine has."""

import platform
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Literal

import torch

from genenc_core import errors

_CPU_FEATURES: Mapping[str, Callable[[], bool]] = {
    "AVX2": torch.cpu._is_avx2_supported,
    "AVX512": torch.cpu._is_avx512_supported,
    "AVX512_VNNI": torch.cpu._is_vnni_supported,
    "AMX_TILE": torch.cpu._is_amx_tile_supported,
}


def check(path: Path, facts: Mapping[str, str], *, kind: str, torch_rule: Literal["same", "not newer", "any"]) -> None:
    """Compare the facts of an artifact with this machine; what a file does not tell is not compared.

    Raises:
        InputError: it cannot run here; every reason is named.
    """
    problems = [*_machine_problems(facts), *_torch_problems(facts, torch_rule)]
    if problems:
        raise errors.InputError(
            f"the {kind} file {str(path)!r} cannot run here. It needs {'; it needs '.join(problems)}. Export the model "
            "again here with genenc export, or use --backend eager."
        )


def _machine_problems(facts: Mapping[str, str]) -> Iterator[str]:
    for key, label, found in (
        ("system", "the operating system", sys.platform),
        ("machine", "the machine", platform.machine()),
    ):
        if facts.get(key, found) != found:
            yield f"{label} {facts[key]}, this is {found}"
    if facts.get("device", "any") not in ("any", "cpu"):
        yield f"the device {facts['device']}, and genenc runs such files on the CPU only"
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
    """Return (major, minor); None for what is no version."""
    parts = (version or "").split(".")
    return (int(parts[0]), int(parts[1])) if len(parts) > 1 and parts[0].isdigit() and parts[1].isdigit() else None
