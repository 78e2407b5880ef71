"""`RuntimeModelSpec`: the JSON description of a model, compatible with WhiskerToolbox field by field, and its rules."""

import json
import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Self, get_args

from pydantic import BaseModel, Field, ValidationError

from genenc_core import errors, spec_block, spec_edits
from genenc_core.choices import Decoding, ExportFormat, Fit
from genenc_core.spec_block import (
    ArtifactInfo,
    ArtifactInput,
    Channels,
    GenencBlock,
    MapCells,
    Preprocessing,
    Record,
    SizeRange,
    SourceInfo,
    SourceKind,
)
from genenc_core.system import small_files

MOST_CHANNELS = spec_block.MOST_CHANNELS
LARGEST_SIDE = 16384
"""maximum height and width of a model's input, in pixels"""
LARGEST_SIZE = 2**31 - 1
"""maximum size of a dimension"""
LARGEST_VALUES = 2**31
"""maximum number of values per image in a tensor: 8 GiB of float32"""

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
    # WhiskerToolbox treats ExportedProgram and ONNX as Auto, and goes by the file extension.
    "exportedprogram": "ExportedProgram",
    "exported_program": "ExportedProgram",
    "onnx": "ONNX",
    "auto": "Auto",
}
__all__ = [
    "ArtifactInfo",
    "ArtifactInput",
    "Channels",
    "MapCells",
    "Decoding",
    "ExportFormat",
    "Fit",
    "GenencBlock",
    "Preprocessing",
    "Record",
    "SizeRange",
    "SourceInfo",
    "SourceKind",
]

BACKEND_BY_EXTENSION: Mapping[str, BackendName] = {
    ".pt": "TorchScript",
    ".pt2": "AOTInductor",
    ".pte": "ExecuTorch",
    ".onnx": "ONNX",
}


_SHOWN_KEYS = 20


def rule_problems(spec: "RuntimeModelSpec") -> list[str]:
    """Return one message per violated rule."""
    problems = [] if spec.model_id else ["model_id must not be empty"]
    problems += [] if spec.display_name else ["display_name must not be empty"]
    problems += _slot_problems("inputs", spec.inputs, check_sequence=True)
    problems += _slot_problems("outputs", spec.outputs, check_sequence=False)
    for field in ("preferred_batch_size", "max_batch_size"):
        if (getattr(spec, field) or 0) < 0:
            problems.append(f"{field} must be >= 0")
    problems += _batch_mode_problems(spec.batch_mode)
    problems += _variant_problems(spec.weights_variants or ())
    return problems + _stricter_problems(spec)


def _slot_problems(label: str, slots: "Sequence[SlotSpec]", *, check_sequence: bool) -> list[str]:
    problems: list[str] = []
    seen: set[str] = set()
    for index, slot in enumerate(slots):
        where = f"{label}[{index}]"
        if not slot.name:
            problems.append(f"{where}: name must not be empty")
        elif slot.name in seen:
            problems.append(f"{where}: duplicate name '{slot.name}'")
        seen.add(slot.name)
        if not slot.shape:
            problems.append(f"{where}: shape must not be empty")
        rank = len(slot.shape)
        if check_sequence and slot.sequence_dim is not None and slot.sequence_dim >= rank:
            problems.append(f"{where}: sequence_dim ({slot.sequence_dim}) exceeds shape rank ({rank})")
    return problems


def _batch_mode_problems(mode: "BatchModeSpec | None") -> list[str]:
    if mode is None:
        return []
    problems: list[str] = []
    if sum((mode.fixed is not None, mode.dynamic is not None, bool(mode.recurrent_only))) > 1:
        problems.append("batch_mode: only one of fixed, dynamic, or recurrent_only may be set")
    if mode.fixed is not None and mode.fixed < 1:
        problems.append("batch_mode.fixed must be >= 1")
    if mode.dynamic is not None and mode.dynamic.min < 1:
        problems.append("batch_mode.dynamic.min must be >= 1")
    if mode.dynamic is not None and 0 < mode.dynamic.max < mode.dynamic.min:
        problems.append("batch_mode.dynamic.max must be >= min (or 0 for unlimited)")
    return problems


def _variant_problems(variants: "Sequence[WeightsVariant]") -> list[str]:
    problems: list[str] = []
    seen: set[int] = set()
    for index, variant in enumerate(variants):
        where = f"weights_variants[{index}]"
        if not variant.path:
            problems.append(f"{where}: path must not be empty")
        if variant.batch_size < 1:
            problems.append(f"{where}: batch_size must be >= 1")
        elif variant.batch_size in seen:
            problems.append(f"{where}: duplicate batch_size {variant.batch_size}")
        seen.add(variant.batch_size)
    return problems


def _stricter_problems(spec: "RuntimeModelSpec") -> list[str]:
    """Return problems that WhiskerToolbox accepts, but that would fail later or silently."""
    slots = [
        (f"{label}[{index}]", slot.shape)
        for label, slots in (("inputs", spec.inputs), ("outputs", spec.outputs))
        for index, slot in enumerate(slots)
    ]
    problems = [
        f"{where}: shape dimensions must be >= 1, got {_shape(shape)}"
        for where, shape in slots
        if any(size < 1 for size in shape)
    ]
    problems += [
        f"{where}: shape {_shape(shape)} is invalid: a tensor has at most {LARGEST_VALUES} values for one image"
        for where, shape in slots
        if any(size > LARGEST_SIZE for size in shape) or math.prod(shape) > LARGEST_VALUES
    ]
    problems += _batch_limits(spec)
    named = [("backend", spec.backend)]
    named += [(f"weights_variants[{i}].backend", v.backend) for i, v in enumerate(spec.weights_variants or ())]
    known = ", ".join(sorted(BACKEND_ALIASES))
    for where, backend in named:
        if backend and backend.lower() not in BACKEND_ALIASES:
            problems.append(f"{where}: unknown name '{backend}' (known: {known})")
    dynamic = spec.batch_mode.dynamic if spec.batch_mode else None
    if dynamic is not None and dynamic.max < 0:
        problems.append("batch_mode.dynamic.max must be >= 0")
    for index, slot in enumerate(spec.inputs):
        if slot.sequence_dim is not None and slot.sequence_dim < -1:
            problems.append(f"inputs[{index}]: sequence_dim must be >= -1, got {slot.sequence_dim}")
    return problems


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
    """Format a shape for a message, bounded in length whatever its numbers are."""
    sizes = [str(size) if abs(size) < 10**18 else "a huge number" for size in shape[:8]]
    return f"[{', '.join([*sizes, '...'] if len(shape) > 8 else sizes)}]"


class UnknownKeyWarning(UserWarning):
    """An unknown key in a spec, usually a misspelling."""


class SlotSpec(Record):
    """One named input or output tensor."""

    name: str
    shape: tuple[int, ...] = Field(description="Sizes without the batch dimension, e.g. [3, 224, 224].")
    description: str | None = None
    recommended_encoder: str | None = None
    recommended_decoder: str | None = None
    is_static: bool | None = None
    is_boolean_mask: bool | None = None
    sequence_dim: int | None = None


class WeightsVariant(Record):
    """The same weights exported for one batch size."""

    path: str
    batch_size: int
    label: str | None = None
    backend: str | None = None


class DynamicBatch(Record):
    """Bounds of a dynamic batch; max 0 means unlimited."""

    min: int
    max: int


class BatchModeSpec(Record):
    """How many samples one call takes; only one field may be set."""

    fixed: int | None = None
    dynamic: DynamicBatch | None = None
    recurrent_only: bool | None = None


class PostEncoderStep(Record):
    """A post-encoder module, as WhiskerToolbox writes it."""

    module: str
    interpolation: str | None = None


class BatchMode(Record):
    """The effective batch mode: its kind and bounds; max 0 means unlimited."""

    kind: Literal["fixed", "dynamic", "recurrent_only"]
    min: int
    max: int

    def describe(self) -> str:
        """Format the mode as WhiskerToolbox does, e.g. `Dynamic(1, unlimited)`."""
        if self.kind == "recurrent_only":
            return "RecurrentOnly"
        if self.kind == "fixed":
            return f"Fixed({self.max})"
        return f"Dynamic({self.min}, {self.max or 'unlimited'})"


class RuntimeModelSpec(Record):
    """One model: identity, weights, batch mode, input and output slots; genenc's own block is under "genenc"."""

    model_id: str
    display_name: str
    description: str | None = None
    weights_path: str | None = None
    backend: str | None = None
    preferred_batch_size: int | None = None
    max_batch_size: int | None = None
    batch_mode: BatchModeSpec | None = None
    weights_variants: tuple[WeightsVariant, ...] | None = None
    inputs: tuple[SlotSpec, ...]
    outputs: tuple[SlotSpec, ...]
    recommended_post_encoder: str | None = None
    post_encoder: tuple[PostEncoderStep, ...] | None = None
    genenc: GenencBlock | None = None

    @classmethod
    def from_json(cls, text: str, *, subject: str = "model spec") -> Self:
        """Parse a spec without checking its rules; unknown keys emit an `UnknownKeyWarning`.

        Raises:
            SpecError: invalid JSON, missing required fields or values of the wrong type; lists all of them.
        """
        try:
            spec = cls.model_validate_json(text)
        except ValidationError as error:
            raise errors.SpecError(subject, [_parse_message(item) for item in error.errors()]) from error
        unknown = _unknown_names(text, cls)
        if unknown:
            names = ", ".join(repr(name) for name in unknown[:_SHOWN_KEYS])
            warnings.warn(f"{subject}: unknown keys ignored: {names}", UnknownKeyWarning, stacklevel=2)
        return spec

    @classmethod
    def from_json_file(cls, path: Path) -> Self:
        """Parse a spec file and join relative weight paths to its folder (lexically).

        Raises:
            SpecError: the file cannot be opened, or see `from_json`.
        """
        try:
            text = small_files.read_text(path)
        except errors.InputError as error:
            raise errors.SpecError("model spec", [f"Failed to open {str(path)!r}: {error}"]) from error
        return cls.from_json(text, subject=f"model spec {str(path)!r}").resolved(path.parent)

    def to_json(self) -> str:
        """Serialize to JSON for `from_json` and WhiskerToolbox; unset fields are omitted."""
        return json.dumps(self.model_dump(mode="json", exclude_none=True), indent=2, ensure_ascii=False) + "\n"

    def resolved(self, folder: Path) -> Self:
        """Return the spec with non-empty relative weight paths joined to `folder`."""
        variants = self.weights_variants
        if variants is not None:
            variants = tuple(v.model_copy(update={"path": _joined(folder, v.path)}) for v in variants)
        weights = self.weights_path if self.weights_path is None else _joined(folder, self.weights_path)
        return self.model_copy(update={"weights_path": weights, "weights_variants": variants})

    def problems(self) -> list[str]:
        """Return all violated rules: WhiskerToolbox's messages in its order, then those of genenc's stricter rules."""
        return rule_problems(self)

    def check(self) -> None:
        """Raise `SpecError` with all violated rules, if any."""
        problems = self.problems()
        if problems:
            raise errors.SpecError(f"model spec {self.model_id!r}", problems)

    def resolved_batch_mode(self) -> BatchMode:
        """Return the effective mode: recurrent_only, variants, fixed, dynamic, then Dynamic(1, max_batch_size).

        Variants serve any batch size in parts; a batch above the largest variant gains nothing.
        """
        mode = self.batch_mode or BatchModeSpec()
        if mode.recurrent_only:
            return BatchMode(kind="recurrent_only", min=1, max=1)
        if self.weights_variants:
            return BatchMode(kind="dynamic", min=1, max=max(item.batch_size for item in self.weights_variants))
        if mode.fixed is not None:
            return BatchMode(kind="fixed", min=mode.fixed, max=mode.fixed)
        if mode.dynamic is not None:
            return BatchMode(kind="dynamic", min=mode.dynamic.min, max=mode.dynamic.max)
        legacy_max = 0 if self.batch_mode is not None else self.max_batch_size or 0
        return BatchMode(kind="dynamic", min=1, max=legacy_max)

    def resolved_backend(self) -> BackendName:
        """Return the named backend; for Auto or none, that of the weights' file extension."""
        return backend_of(self.backend, self.weights_path)


def backend_of(name: str | None, path: str | None) -> BackendName:
    """Return the backend of a name or alias; for Auto or none, that of the path's extension."""
    named = BACKEND_ALIASES.get((name or "auto").lower(), "Auto")
    if named != "Auto" or not path:
        return named
    return BACKEND_BY_EXTENSION.get(Path(path).suffix.lower(), "Auto")


def load_spec(path: Path) -> RuntimeModelSpec:
    """Read a spec file, resolve its paths and check its rules.

    Raises:
        SpecError: unreadable, unparsable, invalid, or with edits to protected parts; lists all problems.
    """
    spec = RuntimeModelSpec.from_json_file(path)
    problems = file_problems(spec)
    if problems:
        raise errors.SpecError(f"model spec {spec.model_id!r}", problems)
    return spec


def file_problems(spec: RuntimeModelSpec) -> list[str]:
    """Return all violated rules of a spec read from a file, and the edits to parts that genenc protects."""
    return spec.problems() + spec_edits.problems(spec)


def json_schema() -> str:
    """Return the JSON Schema of a RuntimeModelSpec, shipped as `runtime_model_spec.schema.json` beside this module."""
    schema = RuntimeModelSpec.model_json_schema()
    schema = {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}
    return json.dumps(schema, indent=2) + "\n"


def _joined(folder: Path, path: str) -> str:
    return str(folder / path) if path else path


def _parse_message(item: Mapping[str, Any]) -> str:
    where = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in item["loc"]).lstrip(".")
    if item["type"] == "missing":
        return f"missing required field {where!r}"
    return f"{where}: {item['msg']}" if where else str(item["msg"])


def _unknown_names(text: str, model: type[BaseModel]) -> list[str]:
    try:
        return list(_unknown_keys(json.loads(text), model))
    except (ValueError, RecursionError):
        # Unknown entries may be nested too deeply or hold numbers too long for Python's parser.
        return ["(nested too deeply to be named)"]


def _unknown_keys(value: Any, model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """Yield the dotted names of the keys of `value` that are not fields of `model`."""
    for key, inner in value.items():
        field = model.model_fields.get(key)
        if field is None:
            yield prefix + key
            continue
        nested = _nested_model(field.annotation)
        if nested is None:
            continue
        for index, entry in enumerate(inner if isinstance(inner, list) else [inner]):
            if isinstance(entry, dict):
                at = f"[{index}]" if isinstance(inner, list) else ""
                yield from _unknown_keys(entry, nested, f"{prefix}{key}{at}.")


def _nested_model(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    nested = (_nested_model(argument) for argument in get_args(annotation))
    return next((model for model in nested if model is not None), None)
