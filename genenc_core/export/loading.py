"""From a spec to what runs it: which files, whether they may be loaded, and one call for a file or its variants."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from genenc_core import errors, spec
from genenc_core.export import adaptation, artifacts, devices, platforms, variants
from genenc_core.export.formats import record, table

_CASTS = frozenset({"float16", "bfloat16", "float64", "uint8"})


@dataclass(frozen=True, slots=True, kw_only=True)
class ArtifactFile:
    """One file that a spec names, the format it is said to have, and what its spec records of it."""

    path: Path
    format: spec.ExportFormat
    recorded: spec.ArtifactInfo | None


def artifact_files(model_spec: spec.RuntimeModelSpec) -> dict[int, ArtifactFile]:
    """Return the files that run a spec: by batch size its variants, else under 0 its one artifact; empty: none.

    Raises:
        InputError: a file for a backend that genenc does not run.
    """
    block = model_spec.genenc or spec.GenencBlock()
    if not model_spec.weights_variants:
        if not model_spec.weights_path:
            return {}
        return {0: _file(model_spec, model_spec.weights_path, model_spec.backend, block.artifact)}
    recorded = block.variants or ()
    return {
        item.batch_size: _file(model_spec, item.path, item.backend, recorded[index] if index < len(recorded) else None)
        for index, item in enumerate(model_spec.weights_variants)
    }


def _file(
    model_spec: spec.RuntimeModelSpec, path: str, backend: str | None, recorded: spec.ArtifactInfo | None
) -> ArtifactFile:
    kind = table.named(backend, Path(path))
    if kind is not None:
        return ArtifactFile(path=Path(path), format=kind, recorded=recorded)
    own = spec.backend_of(backend, path)
    if own == "ExecuTorch" or artifacts.artifact_kind(Path(path)) == "ExecuTorch":
        raise errors.InputError(
            f"model spec {model_spec.model_id!r} is for ExecuTorch ({path!r}), which is made for devices without "
            "Python and which genenc does not run. Export the model again with genenc export, or run the file in "
            "WhiskerToolbox built with ExecuTorch."
        )
    known = ", ".join(f"{item.backend} ({item.suffix})" for item in table.FORMATS.values())
    raise errors.InputError(
        f"model spec {model_spec.model_id!r} is for the backend {own} ({path!r}), which genenc does not run. It runs "
        f"{known}."
    )


def load(
    model_spec: spec.RuntimeModelSpec,
    *,
    device: str,
    trust: bool,
    scratch: Path | None,
    digests: Mapping[int, str] | None = None,
) -> tuple[record.Runner, record.Loaded, torch.device]:
    """Return what runs a spec's artifact or variants, the file or files, loaded, and the device they run on.

    It takes float32 RGB [B, 3, H, W] in [0, 1] and gives float32, whatever the files take and give.

    Raises:
        InputError: as `load_raw`.
    """
    loaded, where = load_raw(model_spec, device=device, trust=trust, scratch=scratch, digests=digests)
    block = model_spec.genenc or spec.GenencBlock()
    told = loaded.declared
    form = block.input or spec.ArtifactInput()
    if "dtype" not in form.model_fields_set and told is not None and not told.hint and told.dtype in _CASTS:
        # A spec from elsewhere has no word for it, and the file has one.
        block = block.model_copy(update={"input": form.model_copy(update={"dtype": told.dtype})})
    return adaptation.adapted(loaded.run, block), loaded, where


def load_raw(
    model_spec: spec.RuntimeModelSpec,
    *,
    device: str,
    trust: bool,
    scratch: Path | None,
    digests: Mapping[int, str] | None = None,
) -> tuple[record.Loaded, torch.device]:
    """Return a spec's artifact or variants as they are, loaded, and the device they run on.

    Every file is checked at once; variants are loaded when they are first needed. What is loaded is a copy that nobody
    else can write to, with the digest that was checked: a file replaced meanwhile is refused. `digests` are sha256 that
    the caller knows, by the keys of `artifact_files`; they stand for those that a spec records.

    Raises:
        InputError: a missing, changed, unknown, untrusted or foreign file, another platform, or no such device.
    """
    files = artifact_files(model_spec)
    known = {size: file.recorded.sha256 for size, file in files.items() if file.recorded} | dict(digests or {})
    found = {size: _check(model_spec, file, known.get(size), trust=trust) for size, file in files.items()}
    where = device_for(files, device)
    loaders: dict[int, Callable[[], record.Loaded]] = {
        size: partial(_loaded, file, found[size], where, scratch) for size, file in files.items()
    }
    return (loaders[0]() if 0 in loaders else record.Loaded(run=variants.VariantRunner(loaders))), where


def _loaded(file: ArtifactFile, digest: str, device: torch.device, scratch: Path | None) -> record.Loaded:
    """Load a file that was checked."""
    with artifacts.private_copy(file.path, scratch) as (copy, found):
        _require_digest(file.path, found, digest)
        try:
            return table.FORMATS[file.format].load(copy, device, scratch)
        except errors.InputError as error:
            raise errors.InputError(str(error).replace(str(copy), str(file.path))) from error


def _require_digest(path: Path, found: str, recorded: str) -> None:
    if found != recorded:
        raise errors.InputError(
            f"the artifact {str(path)!r} is not the one its spec was written for: sha256 {found[:12]}..., recorded "
            f"{recorded[:12]}.... It was changed or damaged; export the model again with genenc export."
        )


def _check(model_spec: spec.RuntimeModelSpec, file: ArtifactFile, recorded: str | None, *, trust: bool) -> str:
    """Return the digest of a file that may be loaded."""
    known = table.FORMATS[file.format]
    artifacts.require_kind(file.path, known.kind)
    digest = artifacts.file_sha256(file.path)
    if recorded is not None:
        _require_digest(file.path, digest, recorded)
    elif known.runs_code and not trust:
        raise errors.InputError(
            f"model spec {model_spec.model_id!r} records no digest of {str(file.path)!r}, and loading that file runs "
            "code from it. If you know where it comes from, load it with --trust."
        )
    known.require(None)
    told = file.recorded.platform if file.recorded else {}
    # What the file itself says counts most: it is what will run.
    facts = {**told, **known.facts(file.path)}
    platforms.check(file.path, facts, kind=known.kind, torch_rule=known.torch_rule)
    return digest


def device_for(files: Mapping[int, ArtifactFile], device: str) -> torch.device:
    """Return where files run; `auto` is the CPU where one of them runs on nothing else.

    Raises:
        InputError: no such device, or one that a file does not run on.
    """
    bound = next((file for file in files.values() if table.FORMATS[file.format].cpu_only), None)
    if bound is None:
        return devices.resolve_device(device)
    if device not in ("auto", "cpu"):
        raise errors.InputError(
            f"{str(bound.path)!r} ({table.FORMATS[bound.format].kind}) runs on the CPU, not on {device!r}. Use "
            "--device cpu, or --backend torchscript, exported_program or eager on that device."
        )
    return torch.device("cpu")
