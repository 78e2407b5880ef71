"""Export a model from its parameters to artifacts and specs, and summarise the result."""

from pathlib import Path

from genenc_core import errors, spec, text
from genenc_core.export import exporter, image_sizes
from genenc_core.models import resolve
from genenc_core.run import model_cache, outputs_check
from genenc_core.run import parameters as run_parameters
from genenc_core.run.parameters import ExportParameters
from genenc_core.runtime import adaptation


def export(given: ExportParameters) -> list[exporter.ExportedModel]:
    """Build the model and export it; raises as `resolve.build_encoder` and `exporter.export_encoder`.

    A user's model is also refused if the features of an image depend on anything but the image.
    """
    _check(given)
    model_cache.CACHE.begin()
    request = resolve.ModelRequest(
        name=given.model,
        weights="pretrained" if given.weights is None else given.weights,
        weights_key=given.weights_key,
        image_size=_parsed(given.image_size),
        layers=given.layers,
        trust=given.trust,
        channels=given.in_channels,
        statistics=_statistics(given),
    )
    built = model_cache.CACHE.build(request)
    outputs_check.refuse_unsteady(built)
    ranged = (
        image_sizes.size_range(built, _parsed(given.size_min), _parsed(given.size_max)) if given.dynamic_size else None
    )
    return exporter.export_encoder(
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
    exporter.check_folder(Path(given.out))
    if given.batch_min > given.batch_max:
        raise errors.InputError(
            f"--batch-min {given.batch_min} is larger than --batch-max {given.batch_max}: swap or widen them"
        )
    if given.variants and (given.batch_min, given.batch_max) != (1, 32):
        raise errors.InputError(
            "--variants writes one file per batch size, so it cannot be combined with --batch-min and --batch-max: "
            "leave one or the other out"
        )
    if not given.dynamic_size and (given.size_min or given.size_max):
        raise errors.InputError("--size-min and --size-max need --dynamic-size: add it, or leave them out")


def _statistics(given: ExportParameters) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    """Return mean and std of the channels; None if they are not given."""
    if given.in_channels is None:
        if given.mean is not None or given.std is not None:
            raise errors.InputError(
                "--mean and --std of an export need --in-channels: without it a model is normalised as it declares"
            )
        return None
    # They may be in the unit of the images, which whoever runs the file states by a range.
    found = adaptation.parse(given.mean, given.std, channels=given.in_channels, any_unit=True)
    return None if found is None else (found.mean, found.std)


def _parsed(size: str | None) -> tuple[int, int] | None:
    return None if size is None else run_parameters.parse_image_size(size)


def describe(done: exporter.ExportedModel) -> dict[str, object]:
    """Return an export as JSON data."""
    return {
        "artifact": str(done.artifact_path),
        "artifacts": [str(path) for path in done.artifact_paths],
        "spec": str(done.spec_path),
        "seconds": round(done.seconds, 2),
        "model_spec": done.spec.model_dump(mode="json", exclude_none=True),
    }


def summary(done: exporter.ExportedModel) -> list[str]:
    """Return a summary of an export: files, shapes, time, memory and error."""
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
    memory = "" if info.peak_rss_bytes is None else f", at most {text.size(info.peak_rss_bytes)} in memory"
    return f"{path}  {text.size(info.bytes)} in {info.seconds:.1f} s{memory}"
