"""From a built model to its artifacts: exported, compared with the eager model, and described by a spec each."""

import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from genenc_core import errors, spec, spec_rules
from genenc_core.export import artifacts, comparison, compilers, describe
from genenc_core.export.describe import spec_for
from genenc_core.models import sources

__all__ = ["ExportedModel", "Format", "export_encoder", "spec_for"]

Format = Literal["torchscript", "aotinductor"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportedModel:
    """One artifact and its spec, as written; `seconds` is the wall time of export and comparison together."""

    spec_path: Path
    artifact_path: Path
    spec: spec.RuntimeModelSpec
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class _Kind:
    backend: spec_rules.BackendName
    suffix: str
    compile: Callable[[torch.nn.Module, torch.Tensor, int, int, Path], None]
    load: Callable[[Path], artifacts.Runner]


def export_encoder(
    built: sources.BuiltEncoder,
    *,
    out: Path,
    formats: Sequence[Format],
    batch_min: int = 1,
    batch_max: int = 32,
    tolerance: float = 1e-5,
    name: str | None = None,
) -> list[ExportedModel]:
    """Write `<name>_<format>.pt|.pt2` and `<name>_<format>_spec.json` into `out` for every format, or nothing at all.

    Artifacts take float32 RGB [B, 3, H, W] in [0, 1] with batch_min <= B <= batch_max; equal bounds give a fixed
    batch. Each one is compared with the eager model at the smallest, an odd and the largest batch, two random inputs
    each. `tolerance` bounds max |artifact - eager| / max |eager| for both formats: TorchScript is found at 0, an
    AOTInductor package of a deep network at about 1e-6.

    Raises:
        InputError: bounds, formats or a name that cannot be, or an `out` that cannot be written.
        ExportError: no C++ compiler, a model that cannot be exported, or an artifact that differs from its model.
    """
    stem = describe.file_stem(built) if name is None else name
    _check_arguments(stem, formats, batch_min, batch_max)
    if "aotinductor" in formats:
        compilers.require_compiler()
    with _staging(out) as folder:
        samples = comparison.draw_samples(built, comparison.batches(batch_min, batch_max))
        mode = (batch_min, batch_max)
        drafts = [_export(built, f"{stem}_{kind}", _KINDS[kind], folder, samples, mode, tolerance) for kind in formats]
        return [_publish(draft, out) for draft in drafts]


def _check_arguments(stem: str, formats: Sequence[str], batch_min: int, batch_max: int) -> None:
    unknown = [kind for kind in formats if kind not in _KINDS]
    if unknown or not formats or len(set(formats)) != len(formats):
        raise errors.InputError(
            f"cannot export to formats {list(formats)}: give one or more of {', '.join(_KINDS)}, each once."
        )
    if not 1 <= batch_min <= batch_max:
        raise errors.InputError(
            f"batch bounds {batch_min} to {batch_max} cannot be: the least must be at least 1 and not above the most."
        )
    if not stem or Path(stem).name != stem or stem.startswith("."):
        raise errors.InputError(f"model name {stem!r} must be a plain file name, without folders.")


def _staging(out: Path) -> "tempfile.TemporaryDirectory[str]":
    """Make the output folder and, in it, one for unfinished files: so a full or read-only disk is found at once."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        return tempfile.TemporaryDirectory(prefix=".genenc-export-", dir=out)
    except OSError as error:
        raise errors.InputError(f"cannot write into {str(out)!r}: {error}. Give another --out.") from error


def _export(
    built: sources.BuiltEncoder,
    model_id: str,
    kind: _Kind,
    folder: str,
    samples: Sequence[comparison.Sample],
    mode: tuple[int, int],
    tolerance: float,
) -> ExportedModel:
    """Export into `folder`, compare, and write the spec beside the artifact."""
    started = time.perf_counter()
    path = Path(folder) / f"{model_id}{kind.suffix}"
    # Both exporters take an example batch of 1 for a constant, so it is 2 wherever the bounds allow.
    example = samples[-1].images[: max(mode[0], min(2, mode[1]))].clone()
    kind.compile(built.module, example, mode[0], mode[1], path)
    exported = time.perf_counter() - started
    difference = comparison.compare(kind.load(path), samples, model_id=model_id, tolerance=tolerance)
    info = spec.ArtifactInfo(
        file=path.name,
        sha256=artifacts.file_sha256(path),
        bytes=path.stat().st_size,
        seconds=round(exported, 3),
        batches_compared=tuple(sorted({len(sample.images) for sample in samples})),
        max_abs_error=difference.absolute,
        max_rel_error=difference.relative,
        tolerance=tolerance,
        platform=_platform(kind, path),
    )
    written = _spec(built, model_id, kind, mode, info)
    spec_path = path.with_name(f"{model_id}_spec.json")
    spec_path.write_text(written.to_json(), encoding="utf-8")
    seconds = time.perf_counter() - started
    return ExportedModel(spec_path=spec_path, artifact_path=path, spec=written, seconds=seconds)


def _spec(
    built: sources.BuiltEncoder, model_id: str, kind: _Kind, mode: tuple[int, int], info: spec.ArtifactInfo
) -> spec.RuntimeModelSpec:
    base = spec_for(built, model_id=model_id)
    least, most = mode
    batch_mode = (
        spec.BatchModeSpec(fixed=most)
        if least == most
        else spec.BatchModeSpec(dynamic=spec.DynamicBatch(min=least, max=most))
    )
    assert base.genenc is not None  # spec_for always fills it
    written = base.model_copy(
        update={
            "backend": kind.backend,
            "weights_path": info.file,
            "batch_mode": batch_mode,
            "genenc": base.genenc.model_copy(update={"artifact": info}),
        }
    )
    written.check()
    return written


def _platform(kind: _Kind, path: Path) -> dict[str, str]:
    if kind.backend == "TorchScript":
        return {"device": "any", "torch": torch.__version__}
    metadata = artifacts.package_metadata(path)
    keys = {"device": "AOTI_DEVICE_KEY", "isa": "AOTI_CPU_ISA", "machine": "AOTI_MACHINE", "system": "AOTI_PLATFORM"}
    return {name: metadata[key] for name, key in keys.items() if key in metadata} | {"torch": torch.__version__}


def _publish(draft: ExportedModel, out: Path) -> ExportedModel:
    """Move the files to their names, the spec last; a spec never names an artifact that is not there."""
    artifact, written = out / draft.artifact_path.name, out / draft.spec_path.name
    draft.artifact_path.replace(artifact)
    draft.spec_path.replace(written)
    resolved = draft.spec.resolved(out)
    return ExportedModel(spec_path=written, artifact_path=artifact, spec=resolved, seconds=draft.seconds)


_KINDS: dict[Format, _Kind] = {
    "torchscript": _Kind(
        backend="TorchScript",
        suffix=".pt",
        compile=compilers.trace,
        load=lambda path: artifacts.load_torchscript(path, device=torch.device("cpu")),
    ),
    "aotinductor": _Kind(
        backend="AOTInductor", suffix=".pt2", compile=compilers.compile_package, load=artifacts.load_aotinductor
    ),
}
