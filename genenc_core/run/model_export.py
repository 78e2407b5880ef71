"""A model export from its parameters to artifacts and specs, and what to tell about it."""

from pathlib import Path
from typing import cast, get_args

from pydantic import BaseModel, ConfigDict, Field, field_validator

from genenc_core import errors, spec, text
from genenc_core.export import exporting, sizes
from genenc_core.models import sources
from genenc_core.run import encoders, outputs_check
from genenc_core.run import parameters as run_parameters

Format = spec.ExportFormat

LARGEST_BATCH = 65536


class ExportParameters(BaseModel):
    """What to export, and how."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    model: str = Field(description="A model's name, package.module:factory, or a model file (.toml, .yaml).")
    out: str = Field(description="Folder for the artifacts and their specs.")
    weights: str = Field(default="pretrained", description="pretrained[:TAG], random:SEED, or a state dict file.")
    weights_key: str | None = Field(
        default=None,
        description="Which entry of a weights file: its name (dotted), ema or plain; none: the EMA where there is one.",
    )
    image_size: str | None = Field(default=None, description="Model input, H or HxW in pixels; none: the model's own.")
    layers: tuple[str, ...] = Field(
        default=(), description="Modules, or stage indices (-1: the last), whose outputs become slots; none: its own."
    )
    formats: tuple[Format, ...] = Field(default=("torchscript",), min_length=1, description="One artifact each.")
    batch_min: int = Field(default=1, ge=1, description="Fewest images per call.")
    batch_max: int = Field(default=32, ge=1, le=LARGEST_BATCH, description="Most images per call.")
    variants: tuple[int, ...] = Field(
        default=(), description="Instead of bounds: one file per batch size, and one spec for all of a format."
    )
    dynamic_size: bool = Field(default=False, description="The artifact takes a range of image sizes.")
    size_min: str | None = Field(default=None, description="Smallest size, H or HxW; none: half of the model's.")
    size_max: str | None = Field(default=None, description="Largest size, H or HxW; none: twice the model's.")
    trust: bool = Field(default=False, description="Import the code that a model file names.")

    @field_validator("*")
    @classmethod
    def _texts_are_usable(cls, value: object) -> object:
        return run_parameters.encodable(run_parameters.usable(value))

    @property
    def title(self) -> str:
        """What is exported, as a name to be shown."""
        return text.title(self.model)


def parse_variants(given: str) -> tuple[int, ...]:
    """Read `1,8,32`.

    Raises:
        InputError: no whole numbers of at least 1, or one of them twice.
    """
    sizes_given = [text.whole_number(part.strip()) or 0 for part in given.split(",")]
    if not all(sizes_given) or len(set(sizes_given)) < len(sizes_given):
        raise errors.InputError(f"--variants {given!r}: give batch sizes of at least 1, each once, such as 1,8,32")
    return tuple(sorted(sizes_given))


def parse_formats(text: str) -> tuple[Format, ...]:
    """Read `torchscript,onnx`.

    Raises:
        InputError: an unknown format; the known ones are listed.
    """
    names = [part.strip().lower() for part in text.split(",")]
    unknown = [name for name in names if name not in get_args(Format)]
    if unknown:
        raise errors.InputError(f"format {unknown[0]!r} is unknown; known: {', '.join(get_args(Format))}")
    return tuple(cast(Format, name) for name in dict.fromkeys(names))


def export(given: ExportParameters) -> list[exporting.ExportedModel]:
    """Build the model and export it; raises as `sources.build_encoder` and `exporting.export_encoder`.

    Somebody's own model is also refused when its features of an image depend on more than the image.
    """
    _check(given)
    request = sources.ModelRequest(
        name=given.model,
        weights=given.weights,
        weights_key=given.weights_key,
        image_size=_parsed(given.image_size),
        layers=given.layers,
        trust=given.trust,
    )
    built = encoders.CACHE.build(request)
    outputs_check.refuse_unsteady(built)
    ranged = sizes.size_range(built, _parsed(given.size_min), _parsed(given.size_max)) if given.dynamic_size else None
    return exporting.export_encoder(
        built,
        out=Path(given.out),
        formats=given.formats,
        batch_min=given.batch_min,
        batch_max=given.batch_max,
        variants=given.variants,
        size_range=ranged,
    )


def _check(given: ExportParameters) -> None:
    if not given.out:
        raise errors.InputError("--out is empty: name a folder")
    exporting.check_folder(Path(given.out))
    if given.batch_min > given.batch_max:
        raise errors.InputError(
            f"--batch-min {given.batch_min} is larger than --batch-max {given.batch_max}: swap or widen them"
        )
    if given.variants and (given.batch_min, given.batch_max) != (1, 32):
        raise errors.InputError(
            "--variants are files of one batch size each, so --batch-min and --batch-max do not go with them: leave "
            "the one or the other out"
        )
    if not given.dynamic_size and (given.size_min or given.size_max):
        raise errors.InputError("--size-min and --size-max bound --dynamic-size: give it too, or leave them out")


def _parsed(size: str | None) -> tuple[int, int] | None:
    return None if size is None else run_parameters.parse_image_size(size)


def describe(done: exporting.ExportedModel) -> dict[str, object]:
    """Return an export as JSON data."""
    return {
        "artifact": str(done.artifact_path),
        "artifacts": [str(path) for path in done.artifact_paths],
        "spec": str(done.spec_path),
        "seconds": round(done.seconds, 2),
        "model_spec": done.spec.model_dump(mode="json", exclude_none=True),
    }


def _size(count: int) -> str:
    return f"{count / 1e6:.1f} MB" if count >= 1e6 else f"{count / 1e3:.1f} kB"


def words(done: exporting.ExportedModel) -> list[str]:
    """Return what a person wants to know of an export: files, shapes, time, memory and error."""
    block = done.spec.genenc
    assert block is not None
    assert block.artifact is not None
    shapes = ", ".join(f"{slot.name} {list(slot.shape)}" for slot in done.spec.outputs)
    found = block.variants or (block.artifact,)
    ranged = f", sizes {block.dynamic_size.describe()}" if block.dynamic_size else ""
    batches = sorted({batch for info in found for batch in info.batches_compared})
    return [
        *(_file_words(path, info) for path, info in zip(done.artifact_paths, found, strict=True)),
        f"  image {list(done.spec.inputs[0].shape)} -> {shapes}, {done.spec.resolved_batch_mode().describe()}{ranged}",
        f"  compared with eager at batches {', '.join(map(str, batches))}: largest relative error "
        f"{max(info.max_rel_error for info in found):.1e} (allowed {found[0].tolerance:.0e})",
        f"  spec: {done.spec_path}",
    ]


def _file_words(path: Path, info: spec.ArtifactInfo) -> str:
    memory = "" if info.peak_rss_bytes is None else f", at most {_size(info.peak_rss_bytes)} in memory"
    return f"{path}  {_size(info.bytes)} in {info.seconds:.1f} s{memory}"
