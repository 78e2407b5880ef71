"""Declaration of options, shared by the command line, `--config` files, the Prefect form and Python."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Final, get_args

import pydantic_core
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    GetJsonSchemaHandler,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic.fields import FieldInfo

ADVANCED: Final = "advanced"
"""Section of the Prefect form for rarely used options."""
DEVICES: Final = "<auto|cpu|cuda:N>"
DEVICE_VALUES: Final = ("auto", "cpu", "cuda:0")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Shown:
    """Presentation of an option in help texts and forms."""

    help: str
    group: str
    often: bool = False
    """Whether it is among the few that most users need."""
    usually: str | None = None
    """Description of the default; None to show the default value, if any."""
    metavar: str | None = None
    values: tuple[str, ...] = ()
    """Values offered by shell completion; others are valid too."""
    flag: str | None = None
    """Name on the command line, if it differs from the field's."""
    negatable: bool = False
    """Whether a switch has a `--no-...` counterpart."""
    commas: bool = False
    """Whether one string may hold several comma-separated values."""
    path: bool = False
    """Whether its values are paths, which are resolved against the folder of a `--config` file."""

    def __call__(self, schema: dict[str, Any]) -> None:
        """Show an optional option as one input of its type in the form, not as a choice of two types."""
        one = [item for item in schema.get("anyOf", ()) if item.get("type") != "null"]
        if len(one) == 1:
            del schema["anyOf"]
            schema.update(one[0])
        if "default" in schema and schema["default"] is None:
            del schema["default"]


def option(default: Any = ..., *, limits: dict[str, Any] | None = None, **shown: Any) -> Any:
    """Return the field of an option; `shown` are arguments of `Shown`, `limits` of pydantic (`ge`, `le`, ...)."""
    how = Shown(**shown)
    unless = f" Default: {how.usually}." if how.usually else ""
    return Field(default, description=f"{how.help}{unless}", json_schema_extra=how, **(limits or {}))


def shown(field: FieldInfo) -> Shown:
    """Return the presentation of an option."""
    assert isinstance(field.json_schema_extra, Shown)
    return field.json_schema_extra


def usually(field: FieldInfo) -> str | None:
    """Return the default as shown to users; None if there is none or the option is required."""
    how = shown(field)
    if how.usually is not None or field.default in (None, (), pydantic_core.PydanticUndefined):
        return how.usually
    value = field.default[0] if isinstance(field.default, tuple) else field.default
    return f"{value:g}" if isinstance(value, float) else str(value)


def again(field: FieldInfo, usually: str, *, default: Any) -> Any:
    """Return the field of an option that a session may change; `usually` describes its default."""
    return Field(default, description=f"{shown(field).help} Default: {usually}.")


class Parameters(BaseModel):
    """Base model for options. Forms show common options first, the others in sections under `advanced`.

    Values of advanced options are also accepted at the top level.
    """

    # Accept numbers for strings: people write image_size = 224 and max_failures = 3 in TOML.
    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=(), coerce_numbers_to_str=True)

    @model_validator(mode="before")
    @classmethod
    def _form_is_flattened(cls, values: object) -> object:
        return flattened(values)

    @field_validator("*", mode="before")
    @classmethod
    def _lists_are_split(cls, value: object, info: ValidationInfo) -> object:
        if not shown(cls.model_fields[info.field_name or ""]).commas:
            return value
        if isinstance(value, str):
            value = [value]
        if not isinstance(value, list | tuple) or not all(isinstance(item, str) for item in value):
            return value
        parts = tuple(part.strip() for part in ",".join(value).split(",")) if value else ()
        if "" in parts or len(set(parts)) < len(parts):
            raise ValueError("give comma-separated values, each once")
        return parts

    @field_validator("*", mode="before")
    @classmethod
    def _numbers_are_numbers(cls, value: object, info: ValidationInfo) -> object:
        kind = cls.model_fields[info.field_name or ""].annotation
        if isinstance(value, bool) and kind is not bool and bool not in get_args(kind):
            raise ValueError(f"it cannot be {str(value).lower()}")  # pydantic takes true for 1
        return value

    @classmethod
    def __get_pydantic_json_schema__(
        cls, core_schema: pydantic_core.CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        return _as_form(handler.resolve_ref_schema(handler(core_schema)), cls.model_fields)


def _as_form(schema: dict[str, Any], fields: Mapping[str, FieldInfo]) -> dict[str, Any]:
    properties = schema["properties"]
    sections: dict[str, Any] = {}
    for name, field in fields.items():
        how = shown(field)
        if not how.often:
            key = how.group.lower().replace(" ", "_")
            section = sections.setdefault(key, {"type": "object", "title": how.group, "properties": {}})
            section["properties"][name] = properties.pop(name)
    properties[ADVANCED] = {
        "type": "object",
        "title": "Advanced",
        "description": "Options that few runs need.",
        "properties": sections,
    }
    return {key: value for key, value in schema.items() if key != "additionalProperties"}


def flattened(values: object) -> object:
    """Return parameters with the form's sections flattened to the top level.

    Raises:
        ValueError: an option is given twice.
    """
    if not isinstance(values, Mapping) or not isinstance(values.get(ADVANCED), Mapping):
        return values
    flat = {name: value for name, value in values.items() if name != ADVANCED}
    for key, section in values[ADVANCED].items():
        for name, value in section.items() if isinstance(section, Mapping) else [(key, section)]:
            if name in flat:
                raise ValueError(f"{name} is given twice, also under {ADVANCED}")
            flat[name] = value
    return flat
