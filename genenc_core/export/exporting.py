"""From a built model to its artifacts: exported, compared with the eager model, and described by a spec each."""

import os
import re
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from genenc_core import errors, spec, spec_edits
from genenc_core.export import adaptation, artifacts, comparison, describe, measure, sizes
from genenc_core.export.describe import spec_for
from genenc_core.export.formats import record, table
from genenc_core.models import sources

__all__ = ["ExportedModel", "Format", "export_encoder", "spec_for"]

Format = spec.ExportFormat
_FILE_ENDINGS = (".pt", ".pt2", ".pth", ".onnx", ".json", ".safetensors")


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportedModel:
    """A spec and its artifacts, as written.

    `artifact_path` is the one that the spec's weights_path names; `seconds` is the wall time of the exports, comparison
    excluded.
    """

    spec_path: Path
    artifact_path: Path
    artifact_paths: tuple[Path, ...]
    spec: spec.RuntimeModelSpec
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class _Made:
    """One compiled file that is not compared yet."""

    kind: Format
    path: Path
    batch: tuple[int, int]
    variant: bool
    shapes: tuple[comparison.Shape, ...]
    meter: measure.Meter


def export_encoder(
    built: sources.BuiltEncoder,
    *,
    out: Path,
    formats: Sequence[Format],
    batch_min: int = 1,
    batch_max: int = 32,
    variants: Sequence[int] = (),
    size_range: spec.SizeRange | None = None,
    tolerance: float = 1e-5,
    name: str | None = None,
) -> list[ExportedModel]:
    """Write `<name>_<format>.<suffix>` and `<name>_<format>_spec.json` into `out` per format, or nothing at all.

    Artifacts take float32 RGB [B, 3, H, W] in [0, 1] with batch_min <= B <= batch_max; equal bounds give a fixed
    batch. With `variants` each format is several files of one fixed batch each, `<name>_<format>_b<size>.<suffix>`, in
    one spec. With `size_range` H and W are any of that range. Every file is compared with the eager model at its
    smallest, an odd and its largest batch and, at its smallest batch, two further sizes; two random inputs each.
    `tolerance` bounds max |artifact - eager| / max |eager|: TorchScript is found at 0, the others of a deep network at
    about 1e-6.

    Raises:
        InputError: bounds, formats or a name that cannot be, or an `out` that cannot be written.
        ExportError: a missing tool, a model that cannot be exported, or an artifact that differs from its model.
    """
    stem = describe.file_stem(built) if name is None else name
    _check_arguments(stem, formats, batch_min, batch_max, variants)
    check_folder(out)
    for kind in formats:
        table.FORMATS[kind].require(built.module)
    if size_range is not None:
        sizes.require(built, size_range)
    bounds = [(size, size) for size in sorted(variants)] or [(batch_min, batch_max)]
    with _staging(out) as folder:
        made = {
            kind: [_compiled(built, kind, Path(folder), stem, batch, bool(variants), size_range) for batch in bounds]
            for kind in formats
        }
        found = _compared(built, [item for items in made.values() for item in items], tolerance)
        return [_published(built, f"{stem}_{kind}", items, found, size_range, out) for kind, items in made.items()]


def _check_arguments(
    stem: str, formats: Sequence[str], batch_min: int, batch_max: int, variants: Sequence[int]
) -> None:
    unknown = [kind for kind in formats if kind not in table.FORMATS]
    if unknown or not formats or len(set(formats)) != len(formats):
        raise errors.InputError(
            f"cannot export to formats {list(formats)}: give one or more of {', '.join(table.FORMATS)}, each once."
        )
    if not 1 <= batch_min <= batch_max:
        raise errors.InputError(f"batch bounds {batch_min} to {batch_max} are invalid: need 1 <= min <= max.")
    if variants and (min(variants) < 1 or len(set(variants)) != len(variants)):
        raise errors.InputError(f"variants {list(variants)} are invalid: give batch sizes of at least 1, each once.")
    if not stem or Path(stem).name != stem or stem.startswith("."):
        raise errors.InputError(f"model name {stem!r} must be a plain file name, without folders.")


def check_folder(out: Path) -> None:
    """Refuse at once what can be no folder of artifacts; nothing is made.

    Raises:
        InputError: what is wrong with it.
    """
    shown = f"--out {str(out)!r}"
    if re.match(r"[a-z][a-z0-9+.-]*:/", str(out), re.IGNORECASE):
        raise errors.InputError(f"{shown} is an address: artifacts are exported to a local folder, then copied")
    try:
        str(out).encode()
    except UnicodeEncodeError as error:
        raise errors.InputError(f"{shown} is not UTF-8, and torch writes no such names: give another") from error
    nearest = next(item for item in (out, *out.absolute().parents) if os.path.lexists(item))
    is_folder = nearest.is_dir()
    if nearest == out and not is_folder:
        what = "a link that leads to no folder" if out.is_symlink() else "no folder"
        raise errors.InputError(f"{shown} is {what}: artifacts get names of their own in a folder, so give one")
    if nearest != out and out.suffix.lower() in _FILE_ENDINGS:
        raise errors.InputError(
            f"{shown} looks like the name of a file: artifacts get names of their own in a folder, so give one, such "
            f"as {str(out.with_suffix(''))!r}"
        )
    if not is_folder or not os.access(nearest, os.W_OK | os.X_OK):
        raise errors.InputError(f"{shown} cannot be written: {str(nearest)!r} is not a writable folder")


def _staging(out: Path) -> "tempfile.TemporaryDirectory[str]":
    """Make the output folder and, in it, one for unfinished files: so a full or read-only disk is found at once."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        return tempfile.TemporaryDirectory(prefix=".genenc-export-", dir=out)
    except OSError as error:
        raise errors.InputError(
            f"cannot write into {str(out)!r}: {error.strerror or error}. Give another --out."
        ) from error


def _compiled(
    built: sources.BuiltEncoder,
    kind: Format,
    folder: Path,
    stem: str,
    batch: tuple[int, int],
    variant: bool,
    size_range: spec.SizeRange | None,
) -> _Made:
    own = (built.preprocessing.height, built.preprocessing.width)
    # Exporters take an example batch of 1 for a constant, so it is 2 wherever the bounds allow.
    count = max(batch[0], min(2, batch[1]))
    example = next(comparison.draw((count, *own)))
    target = record.Target(
        example=example, batch=batch, sizes=size_range, outputs=tuple(slot.name for slot in built.outputs)
    )
    path = folder / f"{stem}_{kind}{f'_b{batch[0]}' if variant else ''}{table.FORMATS[kind].suffix}"
    with measure.Meter() as meter:
        table.FORMATS[kind].compile(built.module, target, path)
    shapes = [(size, *own) for size in comparison.batches(*batch)]
    shapes += [(batch[0], *size) for size in (sizes.further(size_range, own) if size_range else ())]
    return _Made(kind=kind, path=path, batch=batch, variant=variant, shapes=tuple(shapes), meter=meter)


def _compared(built: sources.BuiltEncoder, made: Sequence[_Made], tolerance: float) -> Mapping[Path, spec.ArtifactInfo]:
    """Compare all files with the model; return what their specs say of them."""
    cpu = torch.device("cpu")
    candidates = [
        comparison.Candidate(
            name=item.path.stem,
            run=adaptation.adapted(table.FORMATS[item.kind].load(item.path, cpu, None).run, None),
            shapes=item.shapes,
        )
        for item in made
    ]
    found = comparison.compare(built, candidates, tolerance=tolerance)
    return {item.path: _info(item, found[item.path.stem], tolerance) for item in made}


def _info(made: _Made, difference: comparison.Difference, tolerance: float) -> spec.ArtifactInfo:
    facts = dict(table.FORMATS[made.kind].facts(made.path))
    return spec.ArtifactInfo(
        file=made.path.name,
        sha256=artifacts.file_sha256(made.path),
        bytes=made.path.stat().st_size,
        seconds=round(made.meter.seconds, 3),
        peak_rss_bytes=made.meter.peak_rss_bytes,
        batches_compared=tuple(sorted({shape[0] for shape in made.shapes})),
        max_abs_error=difference.absolute,
        max_rel_error=difference.relative,
        tolerance=tolerance,
        platform={"device": "any", **facts, "torch": torch.__version__},
    )


def _published(
    built: sources.BuiltEncoder,
    model_id: str,
    made: Sequence[_Made],
    found: Mapping[Path, spec.ArtifactInfo],
    size_range: spec.SizeRange | None,
    out: Path,
) -> ExportedModel:
    """Write the spec and move the files to their names, the spec last: it never names a file that is not there."""
    infos = [found[item.path] for item in made]
    written = _spec(built, model_id, made, infos, size_range)
    draft = made[0].path.with_name(f"{model_id}_spec.json")
    draft.write_text(written.to_json(), encoding="utf-8")
    for item in made:
        item.path.replace(out / item.path.name)
    spec_path = draft.replace(out / draft.name)
    return ExportedModel(
        spec_path=spec_path,
        artifact_path=out / infos[0].file,
        artifact_paths=tuple(out / info.file for info in infos),
        spec=written.resolved(out),
        seconds=sum(item.meter.seconds for item in made),
    )


def _spec(
    built: sources.BuiltEncoder,
    model_id: str,
    made: Sequence[_Made],
    infos: Sequence[spec.ArtifactInfo],
    size_range: spec.SizeRange | None,
) -> spec.RuntimeModelSpec:
    base = spec_for(built, model_id=model_id)
    backend = table.FORMATS[made[0].kind].backend
    least, most = made[0].batch
    dynamic = spec.BatchModeSpec(dynamic=spec.DynamicBatch(min=least, max=most))
    several = made[0].variant
    assert base.genenc is not None  # spec_for always fills it
    own = {"artifact": infos[0], "variants": tuple(infos) if several else None, "dynamic_size": size_range}
    update: dict[str, object] = {
        "backend": backend,
        # WhiskerToolbox loads this one file and shortens the last batch: the smallest variant is the safest there.
        "weights_path": infos[0].file,
        "batch_mode": spec.BatchModeSpec(fixed=most) if least == most else dynamic,
        "genenc": base.genenc.model_copy(update=own),
    }
    if several:
        update["weights_variants"] = tuple(
            spec.WeightsVariant(
                path=info.file, batch_size=item.batch[0], label=f"batch {item.batch[0]}", backend=backend
            )
            for item, info in zip(made, infos, strict=True)
        )
    written = spec_edits.sealed(base.model_copy(update=update))
    written.check()
    return written
