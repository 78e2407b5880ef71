"""Our own records in a RuntimeModelSpec, under the key "genenc": source, preprocessing, artifact."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, SerializerFunctionWrapHandler, model_serializer

from genenc_core.choices import DecodeScale, Fit

SourceKind = Literal["torchvision", "timm", "python", "genenc", "factory"]


class Record(BaseModel):
    """Base of every spec record: immutable, strict about types, unknown keys reported by the parser."""

    model_config = ConfigDict(frozen=True, strict=True, extra="ignore", populate_by_name=True, allow_inf_nan=False)


class Preprocessing(Record):
    """How an image of any size becomes the model's [3, height, width] pixels; all geometry of a run."""

    height: int = Field(gt=0, description="Model input height in pixels.")
    width: int = Field(gt=0, description="Model input width in pixels.")
    fit: Fit = Field(default="stretch", description="stretch: aspect not kept; crop: resize, centre crop; pad.")
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"
    antialias: bool = True
    resize_short: int | None = Field(
        default=None,
        gt=0,
        description="crop only: the shorter side is resized to this before the centre crop; none: just covering.",
    )
    pad_position: Literal["corner", "center"] = Field(
        default="center", description="pad only: where the image lies; corner is top left (SAM)."
    )
    pad_value: tuple[int, int, int] = Field(default=(0, 0, 0), description="pad only: RGB, 0 to 255.")
    decode: DecodeScale = Field(
        default="full",
        description="scaled: a JPEG is decoded at the largest of 1/2, 1/4, 1/8 that still covers the size it is "
        "resized to; other pixels, faster.",
    )

    @model_serializer(mode="wrap")
    def _without_the_usual_decode(self, as_usual: SerializerFunctionWrapHandler) -> dict[str, object]:
        """Leave out what runs and specs made before it could be chosen have no word of: they stay the same."""
        told: dict[str, object] = as_usual(self)
        if self.decode == "full":
            told.pop("decode", None)
        return told

    def describe(self) -> str:
        """Return the preprocessing in words, e.g. `crop to 224 x 224 (shorter side to 256 first), bilinear`."""
        first = f" (shorter side to {self.resize_short} first)" if self.resize_short and self.fit == "crop" else ""
        bars = f" ({self.pad_position}, bars {list(self.pad_value)})" if self.fit == "pad" else ""
        smooth = "" if self.antialias else ", not antialiased"
        scaled = ", JPEG decoded at a reduction" if self.decode == "scaled" else ""
        return f"{self.fit} to {self.height} x {self.width}{first}{bars}, {self.interpolation}{smooth}{scaled}"


class SourceInfo(Record):
    """Where the eager model comes from; enough to build it again."""

    kind: SourceKind
    name: str = Field(description="Model name in its source, package.module:factory, or a model file's stem.")
    weights: str = Field(description="random:SEED, pretrained[:TAG], or a file.")
    weights_key: str | None = Field(default=None, description="The entry of the weights file; none: the file itself.")
    layers: tuple[str, ...] | None = Field(
        default=None, description="Modules or stage indices whose outputs are the slots; none: the encoder's own."
    )
    arguments: str | None = Field(default=None, description="factory only: the model file's content as JSON text.")


class ArtifactInfo(Record):
    """One exported file and what its comparison with the eager model found."""

    file: str
    sha256: str
    bytes: int
    seconds: float = Field(description="Wall time of the export, comparison excluded.")
    peak_rss_bytes: int | None = Field(
        default=None,
        description="Most resident memory of the process and its children during the export (comparison excluded), "
        "sampled every 20 ms; what was in memory before counts.",
    )
    batches_compared: tuple[int, ...]
    max_abs_error: float
    max_rel_error: float = Field(description="max |artifact - eager| / max |eager|, worst output and batch.")
    tolerance: float = Field(description="The max_rel_error above which the export was to be refused.")
    platform: dict[str, str] = Field(
        default_factory=dict, description="What it needs: device, isa, machine, system, torch, schema, ir, opset."
    )


class ArtifactInput(Record):
    """How an artifact takes its images, where that is not float32 [B, 3, H, W]; a slot's shape is genenc's own."""

    dtype: Literal["float32", "float16", "bfloat16", "float64", "uint8"] = Field(
        default="float32", description="uint8: 0 to 255, rounded; the others hold 0 to 1, or what mean and std make."
    )
    layout: Literal["NCHW", "NHWC"] = "NCHW"
    channels: Literal[1, 3] = Field(default=3, description="1: grey, 0.299 R + 0.587 G + 0.114 B.")

    def describe(self) -> str:
        """Return it in words, e.g. `uint8 [B, H, W, 3]`."""
        sides = ("H", "W")
        shape = ("B", str(self.channels), *sides) if self.layout == "NCHW" else ("B", *sides, str(self.channels))
        values = ", 0 to 255" if self.dtype == "uint8" else ""
        return f"{self.dtype} [{', '.join(shape)}]{values}"


class SizeRange(Record):
    """The image sizes (height, width) in pixels that an artifact takes: multiples within bounds, both included."""

    min: tuple[int, int]
    max: tuple[int, int]
    multiple: int = Field(gt=0, description="Every height and width is a multiple of this.")

    def takes(self, height: int, width: int) -> bool:
        """Whether an image of this size fits."""
        return all(
            least <= side <= most and side % self.multiple == 0
            for side, least, most in zip((height, width), self.min, self.max, strict=True)
        )

    def describe(self) -> str:
        """Return the range in words, e.g. `128 x 128 to 448 x 448 in steps of 32`."""
        steps = f" in steps of {self.multiple}" if self.multiple > 1 else ""
        return f"{self.min[0]} x {self.min[1]} to {self.max[0]} x {self.max[1]}{steps}"


class GenencBlock(Record):
    """Our own data under the key "genenc", which other readers ignore."""

    source: SourceInfo | None = None
    weights_sha256: str | None = None
    code: dict[str, str] | None = Field(
        default=None, description="sha256 of the source of package.module:factory and of what it imports, by file name."
    )
    files: dict[str, str] | None = Field(default=None, description="sha256 of the files that the code declares.")
    parameters: int | None = None
    weights_notes: tuple[str, ...] | None = Field(default=None, description="How the weights file was read.")
    preprocessing: Preprocessing | None = None
    mean: tuple[float, float, float] | None = None
    std: tuple[float, float, float] | None = None
    normalization_inside: bool = Field(
        default=True, description="false: genenc normalises images with mean and std before the artifact."
    )
    input: ArtifactInput | None = Field(default=None, description="How the artifact takes images; none: as the slot.")
    output_positions: tuple[int, ...] | None = Field(
        default=None, description="Which of the artifact's outputs the slots are; none: all, in order."
    )
    channels_last_outputs: tuple[int, ...] | None = Field(
        default=None, description="Positions of outputs [B, h, w, C], which become [B, C, h, w]."
    )
    channels_first_lists: tuple[int, ...] | None = Field(
        default=None, description="Positions of outputs [B, C, N], which become [B, N, C]."
    )
    output_names: tuple[str, ...] | None = Field(
        default=None, description="The artifact's names of all its outputs, in the order that positions count in."
    )
    outputs_left_out: tuple[str, ...] | None = Field(
        default=None, description="The artifact's outputs that are no slots, and why."
    )
    precision: str = "float32"
    artifact: ArtifactInfo | None = Field(default=None, description="The file that weights_path names.")
    variants: tuple[ArtifactInfo, ...] | None = Field(
        default=None, description="The files of weights_variants, in their order."
    )
    dynamic_size: SizeRange | None = Field(
        default=None, description="Sizes that the artifacts take; none: only that of inputs."
    )
    genenc_version: str | None = None
    written_sha256: dict[str, str] | None = Field(
        default=None,
        description="sha256 of the inputs, outputs and genenc entries that say what numbers mean, as genenc wrote "
        "them: a spec edited there is refused.",
    )
