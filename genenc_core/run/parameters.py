"""The parameters of an extraction, as a person, a file or the Prefect form fills them in."""

import re
from typing import Literal, get_args

import pydantic_core
from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator

from genenc_core import choices, errors, spec_rules, text
from genenc_core.images import limits

_SIZE = re.compile(r"([0-9]{1,9})(?:[xX]([0-9]{1,9}))?\Z")


class ExtractParameters(BaseModel):
    """What to extract, from what, with what, and where to."""

    # Numbers where text is taken: image_size = 224 and max_failures = 3 are how people write them in TOML.
    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=(), coerce_numbers_to_str=True)

    images: str = Field(description="A folder, a glob, or a CSV/Parquet list with an image column.")
    model: str = Field(
        description="A model's name, package.module:factory, a .toml or .yaml model file, a RuntimeModelSpec JSON, or "
        "the model_id of one in models."
    )
    out: str = Field(description="The run folder to create or continue.")
    weights: str | None = Field(
        default=None, description="pretrained[:TAG] (the default), random:SEED, or a state dict file."
    )
    weights_key: str | None = Field(
        default=None,
        description="Which entry of a weights file: its name (dotted), ema or plain; none: the EMA where there is one.",
    )
    mean: str | None = Field(
        default=None,
        description="Artifacts only: mean of RGB in [0, 1] that images are normalised with, such as "
        "0.485,0.456,0.406, or imagenet, clip, half (with their std); none: as the spec says, else not.",
    )
    std: str | None = Field(default=None, description="Artifacts only: std of RGB in [0, 1], as mean.")
    points: str | None = Field(default=None, description="Labelled points: tidy CSV/Parquet or a DeepLabCut CSV.")
    points_columns: str | None = Field(
        default=None,
        description="Columns of a tidy points file with other names: image=FRAME,point=BODYPART,x=...,y=...",
    )
    points_scale: str | None = Field(
        default=None,
        description="What makes the points file's coordinates pixels: a factor (2, 1/2), one for x and one for y "
        "(2,1.5), normalized (0 to 1 across the image) or percent; none: they are pixels.",
    )
    products: tuple[str, ...] = Field(
        default=(), description="NAME=[SLOT:]MODULE[(argument=value)][+MODULE...][@TYPE]; none: features and probes."
    )
    maps: bool = Field(default=False, description="Also store the feature maps, in float16.")
    models: tuple[str, ...] = Field(
        default=(), description="Folders of RuntimeModelSpec JSON files; model may then be the model_id of one."
    )
    layers: tuple[str, ...] = Field(
        default=(), description="Modules, or stage indices (-1: the last), whose outputs become slots; none: its own."
    )
    image_size: str | None = Field(default=None, description="Model input, H or HxW in pixels; none: the model's own.")
    output_shape: str | None = Field(
        default=None, description="general_encoder only: what its first output should be, such as 768,7,7; compared."
    )
    fit: choices.Fit | None = Field(
        default=None, description="How images meet the model's size; none: the model's own."
    )
    decode: choices.DecodeScale | None = Field(
        default=None,
        description="scaled: JPEG at the largest of 1/2, 1/4, 1/8 that covers the model's size, faster and with "
        "slightly other pixels; full: as they are; none: the model's own, which is full.",
    )
    canvas: str | None = Field(
        default=None,
        description="Fit images to this size, H or HxW, and encode it in tiles of the model input; none: no tiles.",
    )
    tile_overlap: int | None = Field(
        default=None, ge=0, description="Pixels that neighbouring tiles share; none: an eighth of the tile."
    )
    tile_trim: int | None = Field(
        default=None, ge=0, description="Pixels of a tile's border dropped where another tile covers them; none: 0."
    )
    tile_blend: choices.Blend | None = Field(
        default=None, description="How overlapping tiles are weighted; none: cosine."
    )
    backend: choices.Backend = Field(
        default="auto", description="What runs the model; auto: a spec's artifact, else eager."
    )
    precision: choices.Precision = Field(
        default="float32", description="What an eager model computes in; part of what the run means. tf32: CUDA only."
    )
    compile: bool = Field(default=False, description="Compile an eager model; part of what the run means.")
    trust: bool = Field(
        default=False, description="Load an artifact of unknown digest, and import code that a file names."
    )
    device: str = Field(default="auto", description="auto, cpu, or cuda:N.")
    dtype: choices.StoredType = Field(default="float32", description="How vectors are stored.")
    image_column: str | None = Field(default=None, description="The list's column of image paths.")
    limit: int | None = Field(default=None, description="Only the first N images.")
    shard_rows: int | None = Field(
        default=None,
        description="Images per shard; none: an eighth of the images, 32 to 256 on a CPU, to 4096 on a GPU.",
    )
    batch_size: int | Literal["auto"] = Field(
        default="auto", description="Images (with a canvas: tiles) per call, on a CPU per core; auto: measured."
    )
    max_failures: str | None = Field(
        default=None, description="Unreadable images allowed per shard: 12, 5% or 0.05; none: 5%, and always 10."
    )
    decode_workers: int | None = Field(default=None, ge=1, le=256, description="Decode workers; none: one per core.")
    image_timeout: float = Field(
        default=60.0, gt=0, le=86400, description="Seconds an image may take before its row is recorded as unreadable."
    )
    max_megapixels: float = Field(
        default=400.0,
        gt=0,
        le=limits.LARGEST_MEGAPIXELS,
        description="Width x height in millions that a file may announce; larger ones are recorded as unreadable.",
    )

    accept_changed: bool = Field(
        default=False,
        description="Store files that changed since the run was planned, and record those gone as unreadable.",
    )

    @field_validator("*", mode="before")
    @classmethod
    def _numbers_are_numbers(cls, value: object, info: ValidationInfo) -> object:
        kind = cls.model_fields[info.field_name or ""].annotation
        if isinstance(value, bool) and kind is not bool and bool not in get_args(kind):
            raise ValueError(f"{str(value).lower()} is no value of it")  # pydantic takes true for 1
        return value

    @field_validator("*")
    @classmethod
    def _texts_are_usable(cls, value: object, info: ValidationInfo) -> object:
        # A folder of images has a way out, which `sources.open_source` says.
        return usable(value) if info.field_name == "images" else encodable(usable(value))

    @property
    def title(self) -> str:
        """What is extracted with what, as a name to be shown."""
        return text.title(f"{self.images} with {self.model}")


def usable(value: object) -> object:
    """Return an option's value if its texts can be kept and shown.

    Raises:
        ValueError: a NUL character, or an address with credentials in it.
    """
    for item in value if isinstance(value, tuple) else (value,):
        if not isinstance(item, str):
            continue
        if "\0" in item:
            raise ValueError("it holds a NUL character")
        if ":/" in item and text.holds_credentials(item):
            raise ValueError(
                "it holds credentials, which would be kept in the run's records: leave them out, and give them as the "
                "service's own tools take them (environment variables or a profile)"
            )
    return value


def encodable(value: object) -> object:
    """Return an option's value if its texts can be recorded.

    Raises:
        PydanticCustomError: a path with bytes that are not UTF-8.
    """
    for item in value if isinstance(value, tuple) else (value,):
        if isinstance(item, str) and text.encodable(item) != item:
            raise pydantic_core.PydanticCustomError("string_unicode", "a path of UTF-8, as records are")
    return value


def parse_image_size(text: str, *, name: str = "image size") -> tuple[int, int]:
    """Read `224` or `HxW` as (height, width) in pixels; `name` is what the size is called in errors.

    Raises:
        InputError: another form, zero, or over 16384 pixels.
    """
    match = _SIZE.match(text.strip())
    if match is None:
        raise errors.InputError(f"{name} {text!r} is not of the form H or HxW, e.g. 224 or 480x640")
    height = int(match.group(1))
    width = int(match.group(2) or height)
    if not 0 < min(height, width) <= max(height, width) <= spec_rules.LARGEST_SIDE:
        raise errors.InputError(f"{name} {text!r} is out of range: each side is 1 to {spec_rules.LARGEST_SIDE} pixels")
    return height, width
