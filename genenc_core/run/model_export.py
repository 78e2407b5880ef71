"""A model export from its parameters to artifacts and specs, and what to tell about it."""

from pathlib import Path
from typing import Literal, cast, get_args

from pydantic import BaseModel, ConfigDict, Field

from genenc_core import errors
from genenc_core.export import exporting
from genenc_core.models import sources
from genenc_core.run import encoders
from genenc_core.run import parameters as run_parameters

Format = Literal["torchscript", "aotinductor"]


class ExportParameters(BaseModel):
    """What to export, and how."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    model: str = Field(description="A model's name, package.module:factory, or a model file (.toml, .yaml).")
    out: str = Field(description="Folder for the artifacts and their specs.")
    weights: str = Field(default="pretrained", description="pretrained[:TAG], random:SEED, or a state dict file.")
    image_size: str | None = Field(default=None, description="Model input, H or HxW in pixels; none: the model's own.")
    layers: tuple[str, ...] = Field(
        default=(), description="Modules, or stage indices (-1: the last), whose outputs become slots; none: its own."
    )
    formats: tuple[Format, ...] = Field(default=("torchscript",), min_length=1, description="One artifact each.")
    batch_min: int = Field(default=1, ge=1, description="Fewest images per call.")
    batch_max: int = Field(default=32, ge=1, description="Most images per call.")


def parse_formats(text: str) -> tuple[Format, ...]:
    """Read `torchscript,aotinductor`.

    Raises:
        InputError: an unknown format; the known ones are listed.
    """
    names = [part.strip().lower() for part in text.split(",")]
    unknown = [name for name in names if name not in get_args(Format)]
    if unknown:
        raise errors.InputError(f"format {unknown[0]!r} is unknown; known: {', '.join(get_args(Format))}")
    return tuple(cast(Format, name) for name in dict.fromkeys(names))


def export(given: ExportParameters) -> list[exporting.ExportedModel]:
    """Build the model and export it; raises as `sources.build_encoder` and `exporting.export_encoder`."""
    if given.batch_min > given.batch_max:
        raise errors.InputError(
            f"--batch-min {given.batch_min} is larger than --batch-max {given.batch_max}: swap or widen them"
        )
    size = None if given.image_size is None else run_parameters.parse_image_size(given.image_size)
    request = sources.ModelRequest(name=given.model, weights=given.weights, image_size=size, layers=given.layers)
    return exporting.export_encoder(
        encoders.CACHE.build(request),
        out=Path(given.out),
        formats=given.formats,
        batch_min=given.batch_min,
        batch_max=given.batch_max,
    )


def describe(done: exporting.ExportedModel) -> dict[str, object]:
    """Return an export as JSON data."""
    return {
        "artifact": str(done.artifact_path),
        "spec": str(done.spec_path),
        "seconds": round(done.seconds, 2),
        "model_spec": done.spec.model_dump(mode="json", exclude_none=True),
    }


def _size(count: int) -> str:
    return f"{count / 1e6:.1f} MB" if count >= 1e6 else f"{count / 1e3:.1f} kB"


def words(done: exporting.ExportedModel) -> list[str]:
    """Return what a person wants to know of an export: files, shapes, time and error."""
    block = done.spec.genenc
    assert block is not None
    assert block.artifact is not None
    shapes = ", ".join(f"{slot.name} {list(slot.shape)}" for slot in done.spec.outputs)
    found = block.artifact
    return [
        f"{done.artifact_path}  {_size(found.bytes)} in {done.seconds:.1f} s",
        f"  image {list(done.spec.inputs[0].shape)} -> {shapes}, {done.spec.resolved_batch_mode().describe()}",
        f"  compared with eager at batches {', '.join(map(str, found.batches_compared))}: "
        f"largest relative error {found.max_rel_error:.1e} (allowed {found.tolerance:.0e})",
        f"  spec: {done.spec_path}",
    ]
