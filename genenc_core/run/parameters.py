"""Parameters of extractions and exports, as set by users, config files or the Prefect form."""

import dataclasses
import glob
import os
import re
from pathlib import Path
from typing import Any, Literal, get_args

import pydantic.dataclasses
import pydantic_core
from pydantic import PositiveInt, ValidationError, ValidationInfo, field_validator, model_validator
from pydantic.fields import FieldInfo

from genenc_core import choices, errors, spec, text
from genenc_core.choices import ARTIFACTS, INPUT, MODEL, POINTS, PRODUCTS, RUN, SIZES, STORE
from genenc_core.images.decode import limits
from genenc_core.run import options, presets
from genenc_core.run.options import DEVICE_VALUES, DEVICES, option

LARGEST_EXPORTED_BATCH = 65536
_MODEL_FILES = (".json", ".toml", ".yaml", ".yml", ".pt", ".pt2", ".onnx")
_SIZE = re.compile(r"([0-9]{1,9})(?:[xX]([0-9]{1,9}))?\Z")

WEIGHTS: Any = option(
    None,
    help="Weights of a model by name.",
    group=MODEL,
    often=True,
    usually="pretrained",
    metavar="<pretrained[:TAG]|random:SEED|file>",
    values=("pretrained", "random:0"),
)
WEIGHTS_KEY: Any = option(
    None,
    help="Entry of a weights file: a name (dotted), ema or plain.",
    group=MODEL,
    usually="state_dict_ema or model_ema where there is one",
    metavar="<name|ema|plain>",
    values=("ema", "plain"),
)
IMAGE_SIZE: Any = option(
    None,
    help="Model input in pixels, height first.",
    group=SIZES,
    often=True,
    usually="the model's own",
    metavar="<H|HxW>",
)
LAYERS: Any = option(
    (),
    help="Modules or stage indices whose outputs become slots, comma-separated: -2,-1.",
    group=MODEL,
    usually="the model's own",
    metavar="<NAME|INDEX,...>",
    commas=True,
)
TRUST: Any = option(False, help="Load artifacts of unknown digest, and import code that files name.", group=MODEL)


class ExtractParameters(options.Parameters):
    """Parameters of an extraction: images, model, products and output."""

    images: str = option(
        help="A folder, a quoted glob, a list (CSV, Parquet, JSON lines), an address, or a tar, video or array.",
        group=INPUT,
        often=True,
        path=True,
    )
    model: str = option(
        help="A model name, package.module:factory, a .toml/.yaml model file, a spec JSON, or the model_id of one.",
        group=MODEL,
        often=True,
        metavar="<name|file>",
    )
    out: str = option(
        help="The run folder to create or continue, or s3://bucket/prefix.",
        group=STORE,
        often=True,
        metavar="<folder>",
        path=True,
    )
    points: str | None = option(
        None,
        help="Labelled points: a table (image,point,x,y), COCO, LabelMe, SLEAP, or DeepLabCut (file or project).",
        group=POINTS,
        often=True,
        metavar="<file|folder|glob>",
        path=True,
    )
    regions: tuple[str, ...] = option(
        (),
        help="Labelled regions: a table of boxes, COCO, LabelMe, or a folder of mask images. May be repeated.",
        group=POINTS,
        often=True,
        metavar="<file|folder|glob>",
        path=True,
    )
    weights: str | None = WEIGHTS
    image_size: str | None = IMAGE_SIZE
    fit: choices.Fit | None = option(
        None,
        help="How images are fitted to the model input.",
        group=SIZES,
        often=True,
        usually="pad with points or regions, else the model's own",
    )
    products: tuple[str, ...] = option(
        (),
        help="What to store: a slot (else the first), modules that reduce it, the stored type. May be repeated.",
        group=PRODUCTS,
        often=True,
        usually="features, probes with points, regions with regions",
        metavar="<NAME=[SLOT:]MODULE[+MODULE...][@TYPE]>",
        flag="product",
    )
    maps: bool = option(
        False,
        help="Also store feature maps (float16, or as --dtype if that is int8 or uint8).",
        group=PRODUCTS,
        often=True,
        usually="no-maps",
        negatable=True,
    )
    device: str = option(
        "auto", help="Where the model runs.", group=RUN, often=True, metavar=DEVICES, values=DEVICE_VALUES
    )
    batch_size: int | Literal["auto"] = option(
        "auto",
        help="Images (with a canvas: tiles) per call, on a CPU per core; auto: measured.",
        group=RUN,
        often=True,
        metavar="<N|auto>",
        values=("auto",),
    )
    image_column: str | None = option(None, help="The list's column of image paths.", group=INPUT, metavar="<column>")
    frames: str | None = option(
        None,
        help="Which frames of videos, arrays and TIFF stacks are images; with it, a folder means these files in it.",
        group=INPUT,
        metavar="<all|A:B:STEP|N,N,...|N/s>",
        values=("all", "1/s"),
        usually="all; of a TIFF the first",
    )
    channels: str | None = option(
        None,
        help="Channels of a file to take, from 0, in the model's order: 3,2,1 or 0:6; or by name: DAPI,GFP.",
        group=INPUT,
        metavar="<N,N,...|A:B|NAME,...>",
        usually="8-bit RGB, or all where the model takes others",
    )
    value_range: str | None = option(
        None,
        help="Values that become 0 and 1, of all channels or each: 0,10000. With it images are read as channels.",
        group=INPUT,
        metavar="<LOW,HIGH[,LOW,HIGH...]>",
        usually="an integer type's own range; floats in [0, 1]",
    )
    limit: int | None = option(None, help="Only the first N images.", group=INPUT, usually="all images")
    image_timeout: float = option(
        60.0,
        help="Seconds an image may take before its row is recorded as unreadable.",
        group=INPUT,
        limits={"gt": 0, "le": 86400},
    )
    max_megapixels: float = option(
        400.0,
        help="Largest image in millions of pixels; larger ones are recorded as unreadable.",
        group=INPUT,
        limits={"gt": 0, "le": limits.LARGEST_MEGAPIXELS},
    )
    points_columns: str | None = option(
        None,
        help="Other column names in a tidy points file: image=FRAME,point=BODYPART,x=...,y=...",
        group=POINTS,
        metavar="<COLUMN=NAME,...>",
        usually="the usual names",
    )
    min_likelihood: float | None = option(
        None,
        help="Least likelihood of a point; others count as missing.",
        group=POINTS,
        usually="all labels count",
        limits={"ge": 0, "le": 1},
    )
    points_scale: str | None = option(
        None,
        help="Factor that converts point coordinates to pixels: 2, 1/2, 2,1.5 (x,y), normalized or percent.",
        group=POINTS,
        usually="they are pixels",
        metavar="<S|SX,SY|normalized|percent>",
        values=("normalized", "percent"),
    )
    regions_columns: str | None = option(
        None,
        help="Other column names in a table of regions: image=FRAME,x_min=LEFT,...",
        group=POINTS,
        metavar="<COLUMN=NAME,...>",
        usually="the usual names",
    )
    regions_scale: str | None = option(
        None,
        help="Factor that converts coordinates of regions to pixels, as for points.",
        group=POINTS,
        usually="they are pixels",
        metavar="<S|SX,SY|normalized|percent>",
        values=("normalized", "percent"),
    )
    min_score: float | None = option(
        None,
        help="Least score of a region; others are left out.",
        group=POINTS,
        usually="all regions count",
        limits={"ge": 0, "le": 1},
    )
    like: choices.Like | None = option(
        None,
        help="Features as another tool makes them: sets the options that `genenc presets` shows; yours beside it win.",
        group=MODEL,
        usually="genenc's own",
    )
    weights_key: str | None = WEIGHTS_KEY
    mean: str | None = option(
        None,
        help="Artifacts made elsewhere, models of other channels: mean of RGB in [0, 1], or per channel.",
        group=MODEL,
        usually="the spec's, else none",
        metavar="<R,G,B|N,...|imagenet|clip|half>",
        values=("imagenet", "clip", "half"),
    )
    std: str | None = option(
        None,
        help="Likewise: std, as mean.",
        group=MODEL,
        usually="that of the mean by name",
        metavar="<R,G,B|N,...|imagenet|clip|half>",
        values=("imagenet", "clip", "half"),
    )
    models: tuple[str, ...] = option(
        (),
        help="Folders of spec JSONs, whose model_ids are names of models too. May be repeated.",
        group=MODEL,
        metavar="<folder>",
        path=True,
    )
    layers: tuple[str, ...] = LAYERS
    output_shape: str | None = option(
        None,
        help="general_encoder only: expected shape of its first output, such as 768,7,7.",
        group=MODEL,
        metavar="<C,H,W>",
    )
    backend: choices.Backend = option(
        "auto", help="What runs the model; auto: a spec's artifact, else eager.", group=MODEL
    )
    precision: choices.Precision = option(
        "float32",
        help="What an eager model computes in; part of what the run means. tf32: CUDA only.",
        group=MODEL,
    )
    compile: bool = option(
        False,
        help="Compile an eager model; part of what the run means.",
        group=MODEL,
        usually="no-compile",
        negatable=True,
    )
    trust: bool = TRUST
    antialias: bool | None = option(
        None,
        help="Filter images as they are reduced, as PIL and torchvision do.",
        group=SIZES,
        usually="the model's own: yes, except for files made elsewhere that do not say",
        negatable=True,
    )
    resampling: choices.Resampling | None = option(
        None,
        help="What resizes images. pillow: the very pixels of tools that read with PIL, slower; 8-bit RGB only.",
        group=SIZES,
        usually="torch",
    )
    crop_share: float | None = option(
        None,
        help="With --fit crop: share of the shorter side that the crop keeps, as timm's crop_pct; 1: all of it.",
        group=SIZES,
        usually="the model's own",
        limits={"gt": 0, "le": 1},
    )
    decode: choices.Decoding | None = option(
        None,
        help="scaled: read large JPEG at 1/2, 1/4 or 1/8; gpu: JPEG on the GPU; slightly other pixels.",
        group=SIZES,
        usually="full",
    )
    canvas: str | None = option(
        None,
        help="Fit images to this size, height first, and encode it in tiles of the model input.",
        group=SIZES,
        usually="no tiles",
        metavar="<H|HxW>",
    )
    tile_overlap: int | None = option(
        None, help="Pixels that tiles share.", group=SIZES, usually="an eighth of the tile", limits={"ge": 0}
    )
    tile_trim: int | None = option(
        None,
        help="Border pixels of a tile dropped where another covers them.",
        group=SIZES,
        usually="0",
        limits={"ge": 0},
    )
    tile_blend: choices.Blend | None = option(
        None, help="How overlapping tiles are weighted.", group=SIZES, usually="cosine"
    )
    dtype: choices.StoredType = option(
        "float32", help="How vectors are stored; int8, uint8: with a scale per vector, maps too.", group=PRODUCTS
    )
    reproducible: bool = option(
        False,
        help="Store the same bytes on any CPU (with AVX2), batch size and threads; part of what the run means.",
        group=PRODUCTS,
        usually="no-reproducible",
        negatable=True,
    )
    shard_rows: int | None = option(
        None,
        help="Images per shard.",
        group=STORE,
        usually="an eighth of the images, 32 to 256 on a CPU, to 4096 on a GPU",
    )
    chunk_channels: int | None = option(
        None,
        help="Channels per stored chunk, so that some of them are read without the rest.",
        group=STORE,
        usually="all",
        limits={"ge": 1},
    )
    decode_workers: int | None = option(
        None,
        help="Processes that decode images.",
        group=RUN,
        usually="one per core, 8 at most for a GPU that decodes",
        limits={"ge": 1, "le": 256},
    )
    engine: choices.Engine = option(
        "threads",
        help="What runs the shards: threads of this process, or processes of a Dask or Ray cluster.",
        group=RUN,
    )
    engine_address: str | None = option(
        None, help="Address of that cluster.", group=RUN, usually="a local one for this run", metavar="<address>"
    )
    engine_workers: int | None = option(
        None,
        help="Processes of a local cluster.",
        group=RUN,
        usually="one per CUDA device, else 2",
        limits={"ge": 1, "le": 256},
    )
    max_failures: str | None = option(
        None,
        help="Unreadable images allowed per shard: 12, 5% or 0.05.",
        group=RUN,
        usually="5%, and always 10",
        metavar="<N|N%>",
    )
    accept_changed: bool = option(
        False,
        help="Store files that changed since the run was planned, and record those gone as unreadable.",
        group=RUN,
    )

    @model_validator(mode="before")
    @classmethod
    def _preset_is_expanded(cls, values: object) -> object:
        return presets.expanded(options.flattened(values))

    @field_validator("batch_size", mode="before")
    @classmethod
    def _batch_size_is_a_number(cls, value: object) -> object:
        if isinstance(value, str) and value != "auto":
            value = text.whole_number(value)
            if not value:
                raise ValueError("give auto or a number of images of at least 1")
        return value

    @field_validator("*")
    @classmethod
    def _texts_are_usable(cls, value: object, info: ValidationInfo) -> object:
        # For folders of images, `open_source` reports a better remedy.
        return usable(value) if info.field_name == "images" else encodable(usable(value))

    @property
    def title(self) -> str:
        """Display name: images and model."""
        return text.title(f"{text.place(self.images)} with {text.place(self.model)}")

    @property
    def run_title(self) -> str:
        """Display name of the run."""
        return text.title(text.place(self.out))


@pydantic.dataclasses.dataclass(frozen=True, kw_only=True)
class Changes:
    """Options that a session may override; None keeps the run's own.

    `trust` and `accept_changed` apply to one session only.
    """

    device: str | None = None
    batch_size: PositiveInt | None = None
    max_failures: str | None = None
    trust: bool = False
    accept_changed: bool = False
    engine: choices.Engine | None = None
    engine_address: str | None = None
    engine_workers: PositiveInt | None = None


def check_engine(kind: str | None, address: str | None, workers: int | None, *, threads_only: str = "") -> None:
    """Check that options of a cluster come with one.

    Args:
        kind: the engine; None for threads.
        address: of a cluster.
        workers: of a local cluster.
        threads_only: why only threads are there, "" if all engines are.

    Raises:
        InputError: an option that would do nothing, or an engine that is not there.
    """
    if kind not in (None, "threads"):
        if threads_only:
            raise errors.InputError(f"--engine {kind} works through Prefect: {threads_only}")
        return
    for name, value in (("engine-address", address), ("engine-workers", workers)):
        if value is not None:
            raise errors.InputError(f"--{name} {value} is for --engine dask or ray: give one of these, or leave it out")


def fields_of_changes() -> dict[str, FieldInfo]:
    """Return the fields of the options that a session may change."""
    return {each.name: ExtractParameters.model_fields[each.name] for each in dataclasses.fields(Changes)}


class ExportParameters(options.Parameters):
    """Parameters of a model export."""

    model: str = option(
        help="A model name, package.module:factory, or a .toml/.yaml model file.", group=MODEL, often=True
    )
    out: str = option(
        help="Folder for the artifacts and their specs.", group=STORE, often=True, metavar="<folder>", path=True
    )
    formats: tuple[choices.ExportFormat, ...] = option(
        ("torchscript",),
        help="One artifact each; comma-separated.",
        commas=True,
        group=ARTIFACTS,
        often=True,
        metavar=f"<{'|'.join(get_args(choices.ExportFormat))}>,...",
        values=get_args(choices.ExportFormat),
        limits={"min_length": 1},
    )
    weights: str | None = WEIGHTS
    image_size: str | None = IMAGE_SIZE
    weights_key: str | None = WEIGHTS_KEY
    layers: tuple[str, ...] = LAYERS
    trust: bool = TRUST
    in_channels: int | None = option(
        None,
        help="Channels of its images, to which the first convolution of a library's model is adapted.",
        group=MODEL,
        usually="the model's own, mostly 3",
        limits={"ge": 1, "le": spec.MOST_CHANNELS},
    )
    mean: str | None = option(
        None,
        help="With --in-channels: mean of its channels in [0, 1], or one for all.",
        group=MODEL,
        usually="those of the colours whose filters they get",
        metavar="<N,...>",
    )
    std: str | None = option(None, help="Likewise: std, as mean.", group=MODEL, usually="likewise", metavar="<N,...>")
    dynamic_size: bool = option(False, help="Take a range of image sizes.", group=SIZES)
    size_min: str | None = option(
        None, help="Smallest size of that range.", group=SIZES, usually="half of the model's", metavar="<H|HxW>"
    )
    size_max: str | None = option(
        None, help="Largest size of that range.", group=SIZES, usually="twice the model's", metavar="<H|HxW>"
    )
    batch_min: int = option(1, help="Fewest images per call.", group=ARTIFACTS, limits={"ge": 1})
    batch_max: int = option(
        32, help="Most images per call.", group=ARTIFACTS, limits={"ge": 1, "le": LARGEST_EXPORTED_BATCH}
    )
    variants: tuple[int, ...] = option(
        (),
        help="Instead of these bounds, one file per batch size: 1,8,32.",
        group=ARTIFACTS,
        metavar="<N,...>",
        commas=True,
    )

    @field_validator("formats", mode="before")
    @classmethod
    def _formats_are_lower_case(cls, value: object) -> object:
        if isinstance(value, list | tuple):
            return [item.lower() if isinstance(item, str) else item for item in value]
        return value.lower() if isinstance(value, str) else value

    @field_validator("variants")
    @classmethod
    def _variants_ascend(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        if any(size < 1 for size in value) or len(set(value)) < len(value):
            raise ValueError("give batch sizes of at least 1, each once, such as 1,8,32")
        return tuple(sorted(value))

    @field_validator("*")
    @classmethod
    def _texts_are_usable(cls, value: object) -> object:
        return encodable(usable(value))

    @property
    def title(self) -> str:
        """Display name: the model."""
        return text.title(self.model)


def located(name: str, value: Any, folder: Path, field: FieldInfo) -> Any:
    """Return an option's value with relative paths resolved against a folder."""
    is_path = options.shown(field).path
    if is_path and isinstance(value, list | tuple):
        return type(value)(_located(item, folder) for item in value)
    if is_path and type(value) in (int, float):
        value = str(value)  # a folder named by a number, written without quotes
    if not isinstance(value, str):
        return value
    if name == "images" and glob.has_magic(value):
        folder = Path(glob.escape(str(folder)))
    is_path |= name == "model" and ":" not in value and value.lower().endswith(_MODEL_FILES)
    is_path |= name == "weights" and value.partition(":")[0] not in ("pretrained", "random")
    return _located(value, folder) if is_path else value


def _located(value: Any, folder: Path) -> Any:
    if not isinstance(value, str) or not value or "://" in value:
        return value
    if value.startswith("~"):
        return os.path.expanduser(value)  # noqa: PTH111 -- a Path would drop the slash at the end
    return os.path.join(folder, value) if folder != Path() else value  # noqa: PTH118 -- likewise


def wrong_options(error: ValidationError, *, flags: bool) -> str:
    """Describe validation errors; with `flags`, options are named as on the command line."""
    return "; ".join(_wrong_option(dict(item), flags=flags) for item in error.errors())


def _wrong_option(item: dict[str, Any], *, flags: bool) -> str:
    name, value = str(item["loc"][0]) if item["loc"] else "", item["input"]
    if isinstance(value, tuple) and len(value) == 1:
        value = value[0]
    if not item["loc"]:
        return str(item["ctx"]["error"] if item["type"] == "value_error" else item["msg"])
    field = ExtractParameters.model_fields.get(name)
    flag = field and options.shown(field).flag
    shown = f"--{flag or name.replace('_', '-')}" if flags else name
    if item["type"] == "missing":
        return f"{shown} is missing"
    if item["type"] == "extra_forbidden":
        hint = text.nearest(name, list(ExtractParameters.model_fields))
        return f"unknown option {shown}{hint and '; '}{hint}"
    if item["type"] == "literal_error":
        expected = str(item["ctx"]["expected"])
        near = text.nearest(str(value), re.findall(r"'([^']*)'", expected))
        return f"{shown} {value!r} is not valid: give {expected}{near and '; '}{near}"
    if item["type"] == "string_unicode":
        return f"{shown} {value!r} is not valid UTF-8: rename the file or folder, or link to it"
    if item["type"] == "value_error":
        return f"{shown} {value!r} is not valid: {item['ctx']['error']}"
    said = str(item["msg"]).removeprefix("Input should be ").removeprefix("a valid ")
    if item["type"] == "tuple_type":
        said = 'a list, such as ["a", "b"]'
    return f"{shown} {value!r} is not valid: it should be {said}"


def usable(value: object) -> object:
    """Return an option's value if its strings can be stored and displayed.

    Raises:
        ValueError: a NUL character, or an address with credentials in it.
    """
    for item in value if isinstance(value, tuple) else (value,):
        if not isinstance(item, str):
            continue
        if "\0" in item:
            raise ValueError("it contains a NUL character")
        if ":/" in item and text.holds_credentials(item):
            raise ValueError(
                "it contains credentials, which would be stored in the run's records: remove them, and set them in "
                "environment variables or a profile, as for the service's own tools"
            )
    return value


def encodable(value: object) -> object:
    """Return an option's value if its strings can be encoded as UTF-8.

    Raises:
        PydanticCustomError: a path with bytes that are not UTF-8.
    """
    for item in value if isinstance(value, tuple) else (value,):
        if isinstance(item, str) and text.encodable(item) != item:
            raise pydantic_core.PydanticCustomError("string_unicode", "a path of UTF-8, as records are")
    return value


def parse_image_size(text: str, *, name: str = "image size") -> tuple[int, int]:
    """Parse `224` or `HxW` as (height, width) in pixels; `name` is used in errors.

    Raises:
        InputError: not of this form, zero, or over 16384 pixels.
    """
    match = _SIZE.match(text.strip())
    if match is None:
        raise errors.InputError(f"{name} {text!r} is not of the form H or HxW, e.g. 224 or 480x640")
    height = int(match.group(1))
    width = int(match.group(2) or height)
    if not 0 < min(height, width) <= max(height, width) <= spec.LARGEST_SIDE:
        raise errors.InputError(f"{name} {text!r} is out of range: each side is 1 to {spec.LARGEST_SIDE} pixels")
    return height, width
