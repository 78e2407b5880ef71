"""genenc's own records in a RuntimeModelSpec, under the key "genenc": source, preprocessing, artifact."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, SerializerFunctionWrapHandler, model_serializer

from genenc_core.choices import Decoding, Fit, Resampling

SourceKind = Literal["torchvision", "timm", "python", "genenc", "factory"]


class Record(BaseModel):
    """Base class of spec records: immutable and strictly typed; the parser reports unknown keys."""

    model_config = ConfigDict(frozen=True, strict=True, extra="ignore", populate_by_name=True, allow_inf_nan=False)


MOST_CHANNELS = 1024
"""maximum number of a model's input channels"""


class Channels(Record):
    """Channels of images that are not read as 8-bit RGB: the model gets float32 values of the files' own depth."""

    count: int = Field(gt=0, le=MOST_CHANNELS, description="Channels of the model's input.")
    chosen: tuple[int, ...] | None = Field(
        default=None, description="Channels of a file, from 0, in the order of the model's; none: all, in their order."
    )
    names: tuple[str, ...] | None = Field(
        default=None,
        description="Instead of `chosen`: names of a file's channels, as each file states them, in the order of the "
        "model's.",
    )
    value_range: tuple[tuple[float, float], ...] | None = Field(
        default=None,
        description="Values that become 0 and 1: one pair, or one per channel; none: from 0 to the largest value of an "
        "integer type, and floats in [0, 1].",
    )

    @model_serializer(mode="wrap")
    def _omit_names(self, serialize: SerializerFunctionWrapHandler) -> dict[str, object]:
        """Omit `names` where there are none: runs and specs older than these serialize to the same bytes."""
        fields: dict[str, object] = serialize(self)
        if self.names is None:
            fields.pop("names", None)
        return fields

    def describe(self) -> str:
        """Return a description, e.g. `channels 3, 2, 1 (from 0), 0 to 10000 as 0 to 1`."""
        named = f"{self.count} channel{'' if self.count == 1 else 's'}"
        if self.chosen is not None:
            named = f"channel{'' if self.count == 1 else 's'} {', '.join(map(str, self.chosen))} (from 0)"
        if self.names is not None:
            named = f"channel{'' if self.count == 1 else 's'} {', '.join(self.names)}"
        pairs = [f"{low:g} to {high:g}" for low, high in self.value_range or ()]
        return f"{named}, {', '.join(pairs)} as 0 to 1" if pairs else named


class Preprocessing(Record):
    """Conversion of an image of any size to the model's [C, height, width] input; RGB without `channels`."""

    height: int = Field(gt=0, description="Model input height in pixels.")
    width: int = Field(gt=0, description="Model input width in pixels.")
    fit: Fit = Field(
        default="stretch", description="stretch: aspect ratio not kept; crop: resize, then centre crop; pad: add bars."
    )
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"
    antialias: bool = True
    resize_short: int | None = Field(
        default=None,
        gt=0,
        description="crop only: length of the shorter side before the centre crop; none: just covers the input.",
    )
    pad_position: Literal["corner", "center"] = Field(
        default="center", description="pad only: position of the image; corner: top left (SAM)."
    )
    pad_value: tuple[int, int, int] = Field(default=(0, 0, 0), description="pad only: RGB, 0 to 255.")
    decode: Decoding = Field(
        default="full",
        description="scaled: decode a JPEG at the smallest of 1/2, 1/4, 1/8 that covers the resized size; faster, with "
        "different pixels. gpu: decode and resize common JPEGs on a CUDA device; different pixels.",
    )
    channels: Channels | None = Field(default=None, description="Channels other than 8-bit RGB; none: 8-bit RGB.")
    resampling: Resampling = Field(
        default="torch", description="pillow: resized by Pillow, as tools do that read with PIL; slightly other pixels."
    )

    @model_serializer(mode="wrap")
    def _omit_defaults(self, serialize: SerializerFunctionWrapHandler) -> dict[str, object]:
        """Omit defaults of newer fields: runs and specs older than these serialize to the same bytes."""
        fields: dict[str, object] = serialize(self)
        if self.decode == "full":
            fields.pop("decode", None)
        if self.resampling == "torch":
            fields.pop("resampling", None)
        if self.channels is None:
            fields.pop("channels", None)
        return fields

    @property
    def channel_count(self) -> int:
        """Channels of the model's input."""
        return 3 if self.channels is None else self.channels.count

    def describe(self) -> str:
        """Return a description, e.g. `crop to 224 x 224 (shorter side to 256 first), bilinear`."""
        first = f" (shorter side to {self.resize_short} first)" if self.resize_short and self.fit == "crop" else ""
        bars = f" ({self.pad_position}, bars {list(self.pad_value)})" if self.fit == "pad" else ""
        smooth = "" if self.antialias else ", not antialiased"
        by = ", by Pillow" if self.resampling == "pillow" else ""
        decoded = {"full": "", "scaled": ", JPEG decoded at a reduction", "gpu": ", JPEG decoded on a GPU"}[self.decode]
        channels = "" if self.channels is None else f"; {self.channels.describe()}"
        size = f"{self.fit} to {self.height} x {self.width}{first}{bars}"
        return f"{size}, {self.interpolation}{smooth}{by}{decoded}{channels}"


class SourceInfo(Record):
    """Origin of the eager model, sufficient to rebuild it."""

    kind: SourceKind
    name: str = Field(description="Model name in its source, package.module:factory, or the stem of a model file.")
    weights: str = Field(description="random:SEED, pretrained[:TAG], or a file.")
    weights_key: str | None = Field(default=None, description="Entry of the weights file; none: the file itself.")
    layers: tuple[str, ...] | None = Field(
        default=None, description="Modules or stage indices whose outputs are the slots; none: the encoder's outputs."
    )
    arguments: str | None = Field(default=None, description="factory only: content of the model file as JSON.")


class ArtifactInfo(Record):
    """An exported file and the result of its comparison with the eager model."""

    file: str
    sha256: str
    bytes: int
    seconds: float = Field(description="Wall time of the export, without the comparison.")
    peak_rss_bytes: int | None = Field(
        default=None,
        description="Peak resident memory of the process and its children during the export (without the comparison), "
        "sampled every 20 ms; includes memory in use before.",
    )
    batches_compared: tuple[int, ...]
    max_abs_error: float
    max_rel_error: float = Field(description="max |artifact - eager| / max |eager|, worst output and batch.")
    tolerance: float = Field(description="Largest max_rel_error that the export accepted.")
    platform: dict[str, str] = Field(
        default_factory=dict, description="Requirements: device, isa, machine, system, torch, schema, ir, opset."
    )


class ArtifactInput(Record):
    """Input format of an artifact, where it is not float32 [B, 3, H, W]; slot shapes always have genenc's order."""

    dtype: Literal["float32", "float16", "bfloat16", "float64", "uint8"] = Field(
        default="float32", description="uint8: 0 to 255, rounded; others: 0 to 1, or normalised with mean and std."
    )
    layout: Literal["NCHW", "NHWC"] = "NCHW"
    channels: int = Field(
        default=3,
        gt=0,
        le=MOST_CHANNELS,
        description="1: grey, 0.299 R + 0.587 G + 0.114 B, of an input slot of three channels; otherwise as the slot.",
    )

    def describe(self) -> str:
        """Return a description, e.g. `uint8 [B, H, W, 3], 0 to 255`."""
        sides = ("H", "W")
        shape = ("B", str(self.channels), *sides) if self.layout == "NCHW" else ("B", *sides, str(self.channels))
        values = ", 0 to 255" if self.dtype == "uint8" else ""
        return f"{self.dtype} [{', '.join(shape)}]{values}"


class SizeRange(Record):
    """Image sizes (height, width) in pixels that an artifact accepts: multiples of a step within inclusive bounds."""

    min: tuple[int, int]
    max: tuple[int, int]
    multiple: int = Field(gt=0, description="Every height and width is a multiple of this.")

    def takes(self, height: int, width: int) -> bool:
        """Return whether images of this size are accepted."""
        return all(
            low <= side <= high and side % self.multiple == 0
            for side, low, high in zip((height, width), self.min, self.max, strict=True)
        )

    def describe(self) -> str:
        """Return a description, e.g. `128 x 128 to 448 x 448 in steps of 32`."""
        steps = f" in steps of {self.multiple}" if self.multiple > 1 else ""
        return f"{self.min[0]} x {self.min[1]} to {self.max[0]} x {self.max[1]}{steps}"


class MapCells(Record):
    """Positions of a feature map's cells on the model's input, (y, x) in pixels from the top-left corner."""

    slot: str
    size: tuple[int, int] = Field(description="Height and width of the input to which this applies.")
    stride: tuple[float, float]
    first: tuple[float, float] = Field(description="Centre of the first cell.")


class GenencBlock(Record):
    """genenc's own data under the key "genenc", which other readers ignore."""

    source: SourceInfo | None = None
    weights_sha256: str | None = None
    code: dict[str, str] | None = Field(
        default=None, description="sha256 of the source of package.module:factory and its imports, by file name."
    )
    files: dict[str, str] | None = Field(default=None, description="sha256 of the files declared by the code.")
    parameters: int | None = None
    weights_notes: tuple[str, ...] | None = Field(default=None, description="How the weights file was read.")
    preprocessing: Preprocessing | None = None
    mean: tuple[float, ...] | None = Field(default=None, description="One number per channel.")
    std: tuple[float, ...] | None = Field(default=None, description="One number per channel.")
    normalization_inside: bool = Field(
        default=True, description="false: genenc normalises images with mean and std before it calls the artifact."
    )
    input: ArtifactInput | None = Field(default=None, description="Input format of the artifact; none: as the slot.")
    output_positions: tuple[int, ...] | None = Field(
        default=None, description="Positions of the slots among the artifact's outputs; none: all, in order."
    )
    channels_last_outputs: tuple[int, ...] | None = Field(
        default=None, description="Positions of outputs [B, h, w, C], to be permuted to [B, C, h, w]."
    )
    channels_first_lists: tuple[int, ...] | None = Field(
        default=None, description="Positions of outputs [B, C, N], to be transposed to [B, N, C]."
    )
    output_names: tuple[str, ...] | None = Field(
        default=None, description="Names of all outputs of the artifact, in the order of their positions."
    )
    outputs_left_out: tuple[str, ...] | None = Field(
        default=None, description="Outputs of the artifact that are not slots, with the reason."
    )
    precision: str = "float32"
    artifact: ArtifactInfo | None = Field(default=None, description="The file at weights_path.")
    variants: tuple[ArtifactInfo, ...] | None = Field(
        default=None, description="The files of weights_variants, in the same order."
    )
    dynamic_size: SizeRange | None = Field(
        default=None, description="Input sizes that the artifacts accept; none: only that of inputs."
    )
    genenc_version: str | None = None
    cells: tuple[MapCells, ...] | None = Field(
        default=None,
        description="Cells of the exported model's feature maps, which cannot be derived from an ONNX file or package.",
    )
    written_sha256: dict[str, str] | None = Field(
        default=None,
        description="sha256 of the inputs, outputs and genenc entries that define the meaning of the numbers, as "
        "genenc wrote them: a spec with edits to these is rejected.",
    )

    @property
    def normalization(self) -> str | None:
        """Description of mean and std and where they are applied; None if unknown."""
        if self.mean is None or self.std is None:
            return None
        where = "inside the model" if self.normalization_inside else "by genenc, before the artifact"
        return f"mean {list(self.mean)}, std {list(self.std)}, {where}"
