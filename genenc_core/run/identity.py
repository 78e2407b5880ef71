"""Schemas of a run's identity and commit details, validated on reading because run folders are untrusted."""

from collections.abc import Mapping
from typing import Annotated, Any

import pydantic

from genenc_core import errors, spec
from genenc_core.choices import Precision
from genenc_core.images.labels.scale import PointsScale


def _is_scale(text: str) -> str:
    try:
        PointsScale.parse(text)
    except errors.InputError as error:
        raise ValueError(str(error)) from error
    return text


class _Images(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(strict=True)

    rows: int
    digest: str
    points: list[str]
    regions: str | None = None


class _Tiles(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(strict=True)

    size: tuple[pydantic.PositiveInt, pydantic.PositiveInt]
    overlap: pydantic.NonNegativeInt
    trim: pydantic.NonNegativeInt
    blend: str


class _Execution(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(strict=True, extra="forbid")

    precision: Precision = "float32"
    compile: bool = False


class _Reproducible(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(strict=True)

    rule: int
    tensors: str
    pixels: str


class _Cells(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(strict=True)

    stride: tuple[pydantic.PositiveFloat, pydantic.PositiveFloat]
    first: tuple[pydantic.FiniteFloat, pydantic.FiniteFloat]


class _Probed(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(strict=True)

    source: str
    version: int | None
    slots: dict[str, str]


class _Identity(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(strict=True)

    model: str
    backend: str
    artifact: str | None
    weights: str | None
    preprocessing: spec.Preprocessing
    tiles: _Tiles | None = None
    execution: _Execution | None = None
    reproducible: _Reproducible | None = None
    products: list[str]
    cells: dict[str, _Cells] | None = None
    points_scale: Annotated[str, pydantic.AfterValidator(_is_scale)] | None = None
    probed: _Probed | None = None
    images: _Images


class _Unreadable(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(strict=True)

    row: int
    image_id: str
    reason: str


class _Loss(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(strict=True)

    vectors: pydantic.NonNegativeInt
    cosine_mean: pydantic.FiniteFloat | None
    cosine_worst: pydantic.FiniteFloat | None
    recall_at_10: pydantic.FiniteFloat | None


class _Decided(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(strict=True)

    images: pydantic.NonNegativeInt
    again: pydantic.NonNegativeInt
    by_rule: pydantic.NonNegativeInt
    undecided: pydantic.NonNegativeInt
    used: pydantic.FiniteFloat


class _Details(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(strict=True)

    points: dict[str, int]
    regions: dict[str, int] | None = None
    unreadable: list[_Unreadable]
    seconds: dict[str, pydantic.FiniteFloat]
    work: dict[str, pydantic.FiniteFloat] | None = None
    quantized: dict[str, _Loss] = {}
    further_frames: list[pydantic.NonNegativeInt] = []
    reproducible: _Decided | None = None


def check_identity(identity: Any, *, subject: str) -> None:
    """Check that a run's identity has all required entries with the right types.

    Raises:
        StoreError: an entry is missing or invalid.
    """
    _validated(_Identity, identity, subject)


def check_details(details: Any, *, subject: str) -> None:
    """Check that a commit record has the details needed by a survey.

    Raises:
        StoreError: an entry is missing or invalid.
    """
    _validated(_Details, details, subject)


def _validated(kind: type[pydantic.BaseModel], value: Any, subject: str) -> None:
    try:
        # Through JSON, so that lists are accepted as tuples.
        kind.model_validate_json(pydantic.TypeAdapter(Any).dump_json(value))
    except (pydantic.ValidationError, ValueError) as error:
        first = error.errors()[0] if isinstance(error, pydantic.ValidationError) else {"loc": (), "msg": str(error)}
        where = ".".join(map(str, first["loc"]))
        raise errors.StoreError(
            f"{subject} is not valid ({where}: {str(first['msg'])[:200]}): the run folder is damaged, or "
            "made by another program"
        ) from error


def without_images(identity: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a run's identity says of anything but its images."""
    return {key: value for key, value in identity.items() if key != "images"}
