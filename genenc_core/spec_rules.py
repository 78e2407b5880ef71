"""The rules of a RuntimeModelSpec: WhiskerToolbox's with their messages, in their order, then the ones it lacks."""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from genenc_core.spec import BatchModeSpec, RuntimeModelSpec, SlotSpec, WeightsVariant

LARGEST_SIDE = 16384
"""pixels of an image that a model takes"""
LARGEST_SIZE = 2**31 - 1
"""of one dimension"""
LARGEST_VALUES = 2**31
"""in one tensor of one image: 8 GiB of float32"""

BackendName = Literal["TorchScript", "AOTInductor", "ExecuTorch", "ExportedProgram", "ONNX", "Auto"]

BACKEND_ALIASES: Mapping[str, BackendName] = {
    "torchscript": "TorchScript",
    "torch_script": "TorchScript",
    "jit": "TorchScript",
    "aotinductor": "AOTInductor",
    "aot_inductor": "AOTInductor",
    "inductor": "AOTInductor",
    "aoti": "AOTInductor",
    "executorch": "ExecuTorch",
    "exec_torch": "ExecuTorch",
    # WhiskerToolbox takes these two for Auto, and decides by the file's extension.
    "exportedprogram": "ExportedProgram",
    "exported_program": "ExportedProgram",
    "onnx": "ONNX",
    "auto": "Auto",
}


def problems(spec: "RuntimeModelSpec") -> list[str]:
    """Return a message for every broken rule."""
    found = [] if spec.model_id else ["model_id must not be empty"]
    found += [] if spec.display_name else ["display_name must not be empty"]
    found += _slot_problems("inputs", spec.inputs, check_sequence=True)
    found += _slot_problems("outputs", spec.outputs, check_sequence=False)
    for field in ("preferred_batch_size", "max_batch_size"):
        if (getattr(spec, field) or 0) < 0:
            found.append(f"{field} must be >= 0")
    found += _batch_mode_problems(spec.batch_mode)
    found += _variant_problems(spec.weights_variants or ())
    return found + _own_problems(spec)


def _slot_problems(label: str, slots: "Sequence[SlotSpec]", *, check_sequence: bool) -> list[str]:
    found: list[str] = []
    seen: set[str] = set()
    for index, slot in enumerate(slots):
        where = f"{label}[{index}]"
        if not slot.name:
            found.append(f"{where}: name must not be empty")
        elif slot.name in seen:
            found.append(f"{where}: duplicate name '{slot.name}'")
        seen.add(slot.name)
        if not slot.shape:
            found.append(f"{where}: shape must not be empty")
        rank = len(slot.shape)
        if check_sequence and slot.sequence_dim is not None and slot.sequence_dim >= rank:
            found.append(f"{where}: sequence_dim ({slot.sequence_dim}) exceeds shape rank ({rank})")
    return found


def _batch_mode_problems(mode: "BatchModeSpec | None") -> list[str]:
    if mode is None:
        return []
    found: list[str] = []
    if sum((mode.fixed is not None, mode.dynamic is not None, bool(mode.recurrent_only))) > 1:
        found.append("batch_mode: only one of fixed, dynamic, or recurrent_only may be set")
    if mode.fixed is not None and mode.fixed < 1:
        found.append("batch_mode.fixed must be >= 1")
    if mode.dynamic is not None and mode.dynamic.min < 1:
        found.append("batch_mode.dynamic.min must be >= 1")
    if mode.dynamic is not None and 0 < mode.dynamic.max < mode.dynamic.min:
        found.append("batch_mode.dynamic.max must be >= min (or 0 for unlimited)")
    return found


def _variant_problems(variants: "Sequence[WeightsVariant]") -> list[str]:
    found: list[str] = []
    seen: set[int] = set()
    for index, variant in enumerate(variants):
        where = f"weights_variants[{index}]"
        if not variant.path:
            found.append(f"{where}: path must not be empty")
        if variant.batch_size < 1:
            found.append(f"{where}: batch_size must be >= 1")
        elif variant.batch_size in seen:
            found.append(f"{where}: duplicate batch_size {variant.batch_size}")
        seen.add(variant.batch_size)
    return found


def _own_problems(spec: "RuntimeModelSpec") -> list[str]:
    """Return the problems that WhiskerToolbox lets through and that would fail later, or silently."""
    slots = [
        (f"{label}[{index}]", slot.shape)
        for label, slots in (("inputs", spec.inputs), ("outputs", spec.outputs))
        for index, slot in enumerate(slots)
    ]
    found = [
        f"{where}: shape dimensions must be >= 1, got {_shape(shape)}"
        for where, shape in slots
        if any(size < 1 for size in shape)
    ]
    found += [
        f"{where}: shape {_shape(shape)} is invalid: a tensor has at most {LARGEST_VALUES} values for one image"
        for where, shape in slots
        if any(size > LARGEST_SIZE for size in shape) or math.prod(shape) > LARGEST_VALUES
    ]
    found += _batch_limits(spec)
    named = [("backend", spec.backend)]
    named += [(f"weights_variants[{i}].backend", v.backend) for i, v in enumerate(spec.weights_variants or ())]
    known = ", ".join(sorted(BACKEND_ALIASES))
    for where, backend in named:
        if backend and backend.lower() not in BACKEND_ALIASES:
            found.append(f"{where}: unknown name '{backend}' (known: {known})")
    dynamic = spec.batch_mode.dynamic if spec.batch_mode else None
    if dynamic is not None and dynamic.max < 0:
        found.append("batch_mode.dynamic.max must be >= 0")
    for index, slot in enumerate(spec.inputs):
        if slot.sequence_dim is not None and slot.sequence_dim < -1:
            found.append(f"inputs[{index}]: sequence_dim must be >= -1, got {slot.sequence_dim}")
    return found


def _batch_limits(spec: "RuntimeModelSpec") -> list[str]:
    mode, dynamic = spec.batch_mode, spec.batch_mode.dynamic if spec.batch_mode else None
    stated = {
        "preferred_batch_size": spec.preferred_batch_size,
        "max_batch_size": spec.max_batch_size,
        "batch_mode.fixed": mode and mode.fixed,
        "batch_mode.dynamic.min": dynamic and dynamic.min,
        "batch_mode.dynamic.max": dynamic and dynamic.max,
    }
    stated |= {f"weights_variants[{i}].batch_size": v.batch_size for i, v in enumerate(spec.weights_variants or ())}
    return [f"{name} must be <= {LARGEST_SIZE}" for name, size in stated.items() if size and size > LARGEST_SIZE]


def _shape(shape: "Sequence[int]") -> str:
    """Return a shape in words, however many and long its numbers are."""
    told = [str(size) if abs(size) < 10**18 else "a huge number" for size in shape[:8]]
    return f"[{', '.join([*told, '...'] if len(shape) > 8 else told)}]"
