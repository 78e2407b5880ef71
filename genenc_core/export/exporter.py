"""Export of a built model to artifacts, each verified against the eager model and described by a spec."""

import os
import re
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from genenc_core import errors, spec, spec_edits
from genenc_core.export import comparison, image_sizes
from genenc_core.models import encoder_module, receptive_field, resolve
from genenc_core.runtime import adaptation, describe
from genenc_core.runtime.describe import spec_for
from genenc_core.runtime.formats import interface, table
from genenc_core.system import digests

__all__ = ["ExportedModel", "Format", "export_encoder", "spec_for"]

Format = spec.ExportFormat
_FILE_ENDINGS = (".pt", ".pt2", ".pth", ".onnx", ".json", ".safetensors")


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportedModel:
    """An exported spec and its artifacts.

    `artifact_path` is the spec's weights_path; `seconds` is the wall time of the exports without the comparison.
    """

    spec_path: Path
    artifact_path: Path
    artifact_paths: tuple[Path, ...]
    spec: spec.RuntimeModelSpec
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class _Compiled:
    """One compiled file, before its comparison."""

    kind: Format
    path: Path
    batch: tuple[int, int]
    variant: bool
    shapes: tuple[comparison.Shape, ...]
    meter: comparison.Meter


def export_encoder(
    built: resolve.BuiltEncoder,
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
    """Write `<name>_<format>.<suffix>` and `<name>_<format>_spec.json` to `out` for each format, or nothing on failure.

    Artifacts take float32 [B, C, H, W] in [0, 1], RGB unless the model takes other channels, with
    batch_min <= B <= batch_max; equal bounds give a fixed batch. With `variants`, each format has several files of one
    fixed batch, `<name>_<format>_b<size>.<suffix>`, in one spec. With `size_range`, H and W vary within that range.
    Every file is compared with the eager model at its smallest, an odd and its largest batch, and at two or three other
    sizes with its smallest batch, on two random inputs each. `tolerance` bounds max |artifact - eager| / max |eager|,
    which is 0 for TorchScript and about 1e-6 for other formats of a deep network.

    Raises:
        InputError: invalid bounds, formats or name, or `out` is not writable.
        ExportError: a missing tool, a model that cannot be exported, or an artifact that differs from its model.
    """
    stem = describe.file_stem(built) if name is None else name
    _check_arguments(stem, formats, batch_min, batch_max, variants)
    check_folder(out)
    for kind in formats:
        table.FORMATS[kind].require(built.module)
    if size_range is not None:
        image_sizes.require(built, size_range)
    bounds = [(size, size) for size in sorted(variants)] or [(batch_min, batch_max)]
    with _staging(out) as folder:
        compiled = {
            kind: [_compile(built, kind, Path(folder), stem, batch, bool(variants), size_range) for batch in bounds]
            for kind in formats
        }
        infos = _compare(built, [item for items in compiled.values() for item in items], tolerance)
        cells = _cells(built)
        return [
            _publish(built, f"{stem}_{kind}", items, infos, size_range, cells, out) for kind, items in compiled.items()
        ]


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
    """Check that `out` can be a folder of artifacts, without creating it.

    Raises:
        InputError: it cannot; with the reason.
    """
    shown = f"--out {str(out)!r}"
    if re.match(r"[a-z][a-z0-9+.-]*:/", str(out), re.IGNORECASE):
        raise errors.InputError(f"{shown} is a URL: export artifacts to a local folder, then copy them")
    try:
        str(out).encode()
    except UnicodeEncodeError as error:
        raise errors.InputError(f"{shown} is not UTF-8, which torch needs to write files: give another") from error
    nearest = next(item for item in (out, *out.absolute().parents) if os.path.lexists(item))
    is_folder = nearest.is_dir()
    if nearest == out and not is_folder:
        what = "a link that does not lead to a folder" if out.is_symlink() else "not a folder"
        raise errors.InputError(f"{shown} is {what}: give a folder, in which artifacts are named after the model")
    if nearest != out and out.suffix.lower() in _FILE_ENDINGS:
        raise errors.InputError(
            f"{shown} looks like a file name: give a folder, in which artifacts are named after the model, such as "
            f"{str(out.with_suffix(''))!r}"
        )
    if not is_folder or not os.access(nearest, os.W_OK | os.X_OK):
        raise errors.InputError(f"{shown} is not writable: {str(nearest)!r} is not a writable folder")


def _staging(out: Path) -> "tempfile.TemporaryDirectory[str]":
    """Create the output folder and a staging folder in it, which detects a full or read-only disk early."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        return tempfile.TemporaryDirectory(prefix=".genenc-export-", dir=out)
    except OSError as error:
        raise errors.InputError(
            f"cannot write into {str(out)!r}: {error.strerror or error}. Give another --out."
        ) from error


def _compile(
    built: resolve.BuiltEncoder,
    kind: Format,
    folder: Path,
    stem: str,
    batch: tuple[int, int],
    variant: bool,
    size_range: spec.SizeRange | None,
) -> _Compiled:
    own = (built.preprocessing.height, built.preprocessing.width)
    # Exporters treat an example batch of 1 as a constant, so it is 2 if the bounds allow.
    count = max(batch[0], min(2, batch[1]))
    example = next(comparison.draw((count, *own), channels=built.preprocessing.channel_count))
    target = interface.Target(
        example=example, batch=batch, sizes=size_range, outputs=tuple(slot.name for slot in built.outputs)
    )
    path = folder / f"{stem}_{kind}{f'_b{batch[0]}' if variant else ''}{table.FORMATS[kind].suffix}"
    with comparison.Meter() as meter:
        table.FORMATS[kind].compile(built.module, target, path)
    shapes = [(size, *own) for size in comparison.batches(*batch)]
    shapes += [(batch[0], *size) for size in (image_sizes.other_sizes(size_range, own) if size_range else ())]
    return _Compiled(kind=kind, path=path, batch=batch, variant=variant, shapes=tuple(shapes), meter=meter)


def _compare(
    built: resolve.BuiltEncoder, compiled: Sequence[_Compiled], tolerance: float
) -> Mapping[Path, spec.ArtifactInfo]:
    """Compare all files with the model; return their records for the specs."""
    cpu = torch.device("cpu")
    candidates = [
        comparison.Candidate(
            name=item.path.stem,
            run=adaptation.adapted(table.FORMATS[item.kind].load(item.path, cpu, None).run, None),
            shapes=item.shapes,
        )
        for item in compiled
    ]
    differences = comparison.compare(built, candidates, tolerance=tolerance)
    return {item.path: _info(item, differences[item.path.stem], tolerance) for item in compiled}


def _info(compiled: _Compiled, difference: comparison.Difference, tolerance: float) -> spec.ArtifactInfo:
    facts = dict(table.FORMATS[compiled.kind].facts(compiled.path))
    return spec.ArtifactInfo(
        file=compiled.path.name,
        sha256=digests.ARTIFACT.hex_of_file(compiled.path),
        bytes=compiled.path.stat().st_size,
        seconds=round(compiled.meter.seconds, 3),
        peak_rss_bytes=compiled.meter.peak_rss_bytes,
        batches_compared=tuple(sorted({shape[0] for shape in compiled.shapes})),
        max_abs_error=difference.absolute,
        max_rel_error=difference.relative,
        tolerance=tolerance,
        platform={"device": "any", **facts, "torch": torch.__version__},
    )


def _publish(
    built: resolve.BuiltEncoder,
    model_id: str,
    compiled: Sequence[_Compiled],
    info_by_path: Mapping[Path, spec.ArtifactInfo],
    size_range: spec.SizeRange | None,
    cells: tuple[spec.MapCells, ...] | None,
    out: Path,
) -> ExportedModel:
    """Write the spec and move the files to `out`, the spec last, so that it never names a missing file."""
    infos = [info_by_path[item.path] for item in compiled]
    written = _spec(built, model_id, compiled, infos, size_range, cells)
    draft = compiled[0].path.with_name(f"{model_id}_spec.json")
    draft.write_text(written.to_json(), encoding="utf-8")
    for item in compiled:
        item.path.replace(out / item.path.name)
    spec_path = draft.replace(out / draft.name)
    return ExportedModel(
        spec_path=spec_path,
        artifact_path=out / infos[0].file,
        artifact_paths=tuple(out / info.file for info in infos),
        spec=written.resolved(out),
        seconds=sum(item.meter.seconds for item in compiled),
    )


def _cells(built: resolve.BuiltEncoder) -> tuple[spec.MapCells, ...] | None:
    """Return the cell positions of the model's maps, as far as they can be traced."""
    size = built.preprocessing.height, built.preprocessing.width
    grids = receptive_field.cells(
        built.module, encoder_module.EncoderModule.slots, size=size, channels=built.preprocessing.channel_count
    )
    cells = [
        spec.MapCells(slot=slot, size=size, stride=(down[0], across[0]), first=(down[1], across[1]))
        for slot, (down, across) in grids.items()
    ]
    return tuple(cells) or None


def _spec(
    built: resolve.BuiltEncoder,
    model_id: str,
    compiled: Sequence[_Compiled],
    infos: Sequence[spec.ArtifactInfo],
    size_range: spec.SizeRange | None,
    cells: tuple[spec.MapCells, ...] | None,
) -> spec.RuntimeModelSpec:
    base = spec_for(built, model_id=model_id)
    backend = table.FORMATS[compiled[0].kind].backend
    batch_min, batch_max = compiled[0].batch
    dynamic = spec.BatchModeSpec(dynamic=spec.DynamicBatch(min=batch_min, max=batch_max))
    several = compiled[0].variant
    assert base.genenc is not None  # spec_for always fills it
    own = {
        "artifact": infos[0],
        "variants": tuple(infos) if several else None,
        "dynamic_size": size_range,
        "cells": cells,
    }
    update: dict[str, object] = {
        "backend": backend,
        # WhiskerToolbox loads only this file and shortens the last batch, so the smallest variant is the safest.
        "weights_path": infos[0].file,
        "batch_mode": spec.BatchModeSpec(fixed=batch_max) if batch_min == batch_max else dynamic,
        "genenc": base.genenc.model_copy(update=own),
    }
    if several:
        update["weights_variants"] = tuple(
            spec.WeightsVariant(
                path=info.file, batch_size=item.batch[0], label=f"batch {item.batch[0]}", backend=backend
            )
            for item, info in zip(compiled, infos, strict=True)
        )
    written = spec_edits.with_digests(base.model_copy(update=update))
    written.check()
    return written
