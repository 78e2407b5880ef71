"""Loading of a spec's artifact or variants, with checks of digests, trust and platform."""

import functools
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from genenc_core import errors, spec
from genenc_core.runtime import adaptation, artifact_kinds, backends, output_axes
from genenc_core.runtime.formats import interface, table
from genenc_core.system import digests

_CASTS = frozenset({"float16", "bfloat16", "float64", "uint8"})


def cover(count: int, sizes: Sequence[int]) -> tuple[int, ...]:
    """Return the batch sizes, largest first, that encode `count` images with the least padding.

    Of several with equal padding, the one with the fewest calls is used.
    """
    return _cover(count, tuple(sorted(set(sizes))))


@functools.lru_cache(maxsize=4096)
def _cover(count: int, sizes: tuple[int, ...]) -> tuple[int, ...]:
    # calls[n]: fewest calls that compute exactly n images; last[n]: one of the sizes used for it.
    limit = count + sizes[0]
    calls: list[int | None] = [0, *[None] * limit]
    last = [0] * (limit + 1)
    for total in range(1, limit + 1):
        for size in sizes:
            before = calls[total - size] if size <= total else None
            best = calls[total]
            if before is not None and (best is None or before + 1 < best):
                calls[total], last[total] = before + 1, size
    # Multiples of the smallest size are always possible, so one lies in count .. count + smallest - 1.
    total = next(total for total in range(count, limit + 1) if calls[total] is not None)
    used = []
    while total:
        used.append(last[total])
        total -= last[total]
    return tuple(sorted(used, reverse=True))


class VariantRunner:
    """Runs batches of any size through artifacts of fixed batch sizes, which are loaded on first use."""

    def __init__(self, loaders: Mapping[int, Callable[[], interface.Loaded]]) -> None:
        self._loaders = dict(loaders)
        self._loaded: dict[int, interface.FileRunner] = {}
        self._lock = threading.Lock()

    @property
    def loaded(self) -> tuple[int, ...]:
        """Batch sizes of the artifacts in memory."""
        return tuple(sorted(self._loaded))

    def __call__(self, images: torch.Tensor) -> Sequence[torch.Tensor] | Mapping[str, torch.Tensor]:
        """Encode [B, 3, H, W]; rows from padding are removed."""
        parts: list[Sequence[torch.Tensor]] = []
        names: tuple[str, ...] | None = None
        start = 0
        for size in cover(len(images), tuple(self._loaders)):
            piece = images[start : start + size]
            start += len(piece)
            outputs = self._runner(size)(_padded(piece, size))
            if isinstance(outputs, Mapping):
                names = names or tuple(outputs)
                outputs = output_axes.ordered(outputs, names)
            parts.append([tensor[: len(piece)] for tensor in outputs])
        joined = parts[0] if len(parts) == 1 else [torch.cat(tensors) for tensors in zip(*parts, strict=True)]
        return joined if names is None else dict(zip(names, joined, strict=True))

    def _runner(self, size: int) -> interface.FileRunner:
        with self._lock:
            if size not in self._loaded:
                self._loaded[size] = self._loaders[size]().run
            return self._loaded[size]


def _padded(images: torch.Tensor, size: int) -> torch.Tensor:
    """Pad to `size` images by repeating the last one."""
    missing = size - len(images)
    return images.contiguous() if missing == 0 else torch.cat([images, images[-1:].expand(missing, -1, -1, -1)])


@dataclass(frozen=True, slots=True, kw_only=True)
class ArtifactFile:
    """A file that a spec names, its format, and its record in the spec."""

    path: Path
    format: spec.ExportFormat
    recorded: spec.ArtifactInfo | None


def artifact_files(model_spec: spec.RuntimeModelSpec) -> dict[int, ArtifactFile]:
    """Return the files of a spec: its variants by batch size, or its single artifact under 0; empty if none.

    Raises:
        InputError: a file for an unsupported backend.
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
    kind = table.format_of(backend, Path(path))
    if kind is not None:
        return ArtifactFile(path=Path(path), format=kind, recorded=recorded)
    own = spec.backend_of(backend, path)
    if own == "ExecuTorch" or artifact_kinds.artifact_kind(Path(path)) == "ExecuTorch":
        raise errors.InputError(
            f"model spec {model_spec.model_id!r} is for ExecuTorch ({path!r}), a format for devices without Python "
            "that genenc does not support. Export the model again with genenc export, or run the file in "
            "WhiskerToolbox built with ExecuTorch."
        )
    known = ", ".join(f"{item.backend} ({item.suffix})" for item in table.FORMATS.values())
    raise errors.InputError(
        f"model spec {model_spec.model_id!r} is for the backend {own} ({path!r}), which genenc does not support. "
        f"Supported are {known}."
    )


def load(
    model_spec: spec.RuntimeModelSpec,
    *,
    device: str,
    trust: bool,
    scratch: Path | None,
    digests: Mapping[int, str] | None = None,
) -> tuple[interface.Runner, interface.Loaded, torch.device]:
    """Load a spec's artifact or variants; return an adapted runner, the loaded files, and their device.

    The runner takes float32 RGB [B, 3, H, W] in [0, 1] and returns float32, whatever the files take and return.

    Raises:
        InputError: as `load_raw`.
    """
    loaded, where = load_raw(model_spec, device=device, trust=trust, scratch=scratch, digests=digests)
    block = model_spec.genenc or spec.GenencBlock()
    declared = loaded.declared
    form = block.input or spec.ArtifactInput()
    if "dtype" not in form.model_fields_set and declared and not declared.hint and declared.dtype in _CASTS:
        # The file declares its dtype, and a spec that genenc did not write does not.
        block = block.model_copy(update={"input": form.model_copy(update={"dtype": declared.dtype})})
    return adaptation.adapted(loaded.run, block), loaded, where


def load_raw(
    model_spec: spec.RuntimeModelSpec,
    *,
    device: str,
    trust: bool,
    scratch: Path | None,
    digests: Mapping[int, str] | None = None,
) -> tuple[interface.Loaded, torch.device]:
    """Load a spec's artifact or variants without adaptation; return them and their device.

    All files are checked first; variants are loaded on first use. Files are loaded from a private copy whose digest is
    checked again, so a file replaced in the meantime is rejected. `digests` are sha256 known to the caller, by the keys
    of `artifact_files`; they override those in the spec.

    Raises:
        InputError: a missing, changed, unknown, untrusted or unsupported file, another platform, or no such device.
    """
    files = artifact_files(model_spec)
    known = {size: file.recorded.sha256 for size, file in files.items() if file.recorded} | dict(digests or {})
    checked = {size: _check(model_spec, file, known.get(size), trust=trust) for size, file in files.items()}
    where = device_for(files, device)
    loaders: dict[int, Callable[[], interface.Loaded]] = {
        size: partial(_load_checked, file, checked[size], where, scratch) for size, file in files.items()
    }
    return (loaders[0]() if 0 in loaders else interface.Loaded(run=VariantRunner(loaders))), where


def _load_checked(file: ArtifactFile, digest: str, device: torch.device, scratch: Path | None) -> interface.Loaded:
    with artifact_kinds.private_copy(file.path, scratch) as (copy, actual):
        _require_digest(file.path, actual, digest)
        try:
            return table.FORMATS[file.format].load(copy, device, scratch)
        except errors.InputError as error:
            raise errors.InputError(str(error).replace(str(copy), str(file.path))) from error


def _require_digest(path: Path, actual: str, recorded: str) -> None:
    if actual != recorded:
        raise errors.InputError(
            f"the artifact {str(path)!r} is not the one its spec was written for: sha256 {actual[:12]}..., recorded "
            f"{recorded[:12]}.... It was changed or damaged; export the model again with genenc export."
        )


def _check(model_spec: spec.RuntimeModelSpec, file: ArtifactFile, recorded: str | None, *, trust: bool) -> str:
    """Check that a file may be loaded, and return its digest."""
    known = table.FORMATS[file.format]
    artifact_kinds.require_kind(file.path, known.kind)
    digest = digests.ARTIFACT.hex_of_file(file.path)
    if recorded is not None:
        _require_digest(file.path, digest, recorded)
    elif known.runs_code and not trust:
        raise errors.InputError(
            f"model spec {model_spec.model_id!r} records no digest of {str(file.path)!r}, and loading that file runs "
            "code from it. If you trust its origin, load it with --trust."
        )
    known.require(None)
    recorded_facts = file.recorded.platform if file.recorded else {}
    # The file's own facts take precedence over those in the spec.
    facts = {**recorded_facts, **known.facts(file.path)}
    artifact_kinds.check(file.path, facts, kind=known.kind, torch_rule=known.torch_rule)
    return digest


def device_for(files: Mapping[int, ArtifactFile], device: str) -> torch.device:
    """Return the device for the files; `auto` is the CPU if one of them only runs there.

    Raises:
        InputError: no such device, or a file does not run on it.
    """
    cpu_file = next((file for file in files.values() if table.FORMATS[file.format].cpu_only), None)
    if cpu_file is None:
        return backends.resolve_device(device)
    if device not in ("auto", "cpu"):
        raise errors.InputError(
            f"{str(cpu_file.path)!r} ({table.FORMATS[cpu_file.format].kind}) runs on the CPU, not on {device!r}. Use "
            "--device cpu, or --backend torchscript, exported_program or eager on that device."
        )
    return torch.device("cpu")
