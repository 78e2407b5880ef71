"""RuntimeModelSpec: the JSON contract of one model, field for field as WhiskerToolbox reads it, and its rules."""

import json
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, Self, get_args

from pydantic import BaseModel, Field, ValidationError

from genenc_core import errors, small_files, spec_edits, spec_rules
from genenc_core.choices import DecodeScale, ExportFormat, Fit
from genenc_core.spec_block import (
    ArtifactInfo,
    ArtifactInput,
    GenencBlock,
    Preprocessing,
    Record,
    SizeRange,
    SourceInfo,
    SourceKind,
)
from genenc_core.spec_rules import BackendName

__all__ = [
    "ArtifactInfo",
    "ArtifactInput",
    "DecodeScale",
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


class UnknownKeyWarning(UserWarning):
    """A key that no reader of the spec understands; most often a misspelling."""


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
    """One post-encoder module as WhiskerToolbox writes it."""

    module: str
    interpolation: str | None = None


class BatchMode(Record):
    """The batch mode in force: its kind and bounds; max 0 means unlimited."""

    kind: Literal["fixed", "dynamic", "recurrent_only"]
    min: int
    max: int

    @property
    def locked(self) -> bool:
        """Whether no other size than 1 is possible."""
        return self.kind == "recurrent_only" or (self.kind == "fixed" and self.max == 1)

    def describe(self) -> str:
        """Return the mode in WhiskerToolbox's words, e.g. `Dynamic(1, unlimited)`."""
        if self.kind == "recurrent_only":
            return "RecurrentOnly"
        if self.kind == "fixed":
            return f"Fixed({self.max})"
        return f"Dynamic({self.min}, {self.max or 'unlimited'})"


class RuntimeModelSpec(Record):
    """One model: identity, weights, batch mode, input and output slots; plus our block under "genenc"."""

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
        """Parse a spec without checking its rules; unknown keys give an `UnknownKeyWarning`.

        Raises:
            SpecError: not JSON, a required field missing, or a value of the wrong type; lists all.
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
        """Parse a spec file; relative weight paths become paths beside it (lexical join).

        Raises:
            SpecError: the file cannot be opened, or as `from_json`.
        """
        try:
            text = small_files.read_text(path)
        except errors.InputError as error:
            raise errors.SpecError("model spec", [f"Failed to open {str(path)!r}: {error}"]) from error
        return cls.from_json(text, subject=f"model spec {str(path)!r}").resolved(path.parent)

    def to_json(self) -> str:
        """Return the spec as JSON text that `from_json` and WhiskerToolbox read; unset fields are left out."""
        return json.dumps(self.model_dump(mode="json", exclude_none=True), indent=2, ensure_ascii=False) + "\n"

    def resolved(self, folder: Path) -> Self:
        """Return the spec with non-empty relative weight paths joined to `folder`."""
        variants = self.weights_variants
        if variants is not None:
            variants = tuple(v.model_copy(update={"path": _joined(folder, v.path)}) for v in variants)
        weights = self.weights_path if self.weights_path is None else _joined(folder, self.weights_path)
        return self.model_copy(update={"weights_path": weights, "weights_variants": variants})

    def problems(self) -> list[str]:
        """Return every broken rule: WhiskerToolbox's messages in its order, then the rules it lacks."""
        return spec_rules.problems(self)

    def check(self) -> None:
        """Raise `SpecError` with every broken rule, if there is one."""
        found = self.problems()
        if found:
            raise errors.SpecError(f"model spec {self.model_id!r}", found)

    def resolved_batch_mode(self) -> BatchMode:
        """Return the mode in force: recurrent_only, variants, fixed, dynamic, then Dynamic(1, max_batch_size).

        With variants any batch can be put together from theirs; more than the largest gains nothing.
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
        """Return the backend by name, or by the weights' extension when the spec says Auto or nothing."""
        return backend_of(self.backend, self.weights_path)


def backend_of(name: str | None, path: str | None) -> BackendName:
    """Return the backend that a name means; for Auto or none, the one of the path's extension."""
    named = spec_rules.BACKEND_ALIASES.get((name or "auto").lower(), "Auto")
    if named != "Auto" or not path:
        return named
    return BACKEND_BY_EXTENSION.get(Path(path).suffix.lower(), "Auto")


def load_spec(path: Path) -> RuntimeModelSpec:
    """Read a spec file, resolve its paths and check its rules.

    Raises:
        SpecError: unreadable, unparsable, breaking a rule, or edited where genenc wrote it; lists every problem.
    """
    spec = RuntimeModelSpec.from_json_file(path)
    found = file_problems(spec)
    if found:
        raise errors.SpecError(f"model spec {spec.model_id!r}", found)
    return spec


def file_problems(spec: RuntimeModelSpec) -> list[str]:
    """Return every broken rule of a spec as its file has it, and what was edited after genenc wrote it."""
    return spec.problems() + spec_edits.problems(spec)


def json_schema() -> str:
    """Return the JSON Schema of a RuntimeModelSpec, as `runtime_model_spec.schema.json` beside this module holds it."""
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
        # What no record has a place for may be deeper or longer than Python's reader takes.
        return ["(nested too deeply to be named)"]


def _unknown_keys(value: Any, model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """Yield the dotted names of keys of `value` that `model` has no field for."""
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
