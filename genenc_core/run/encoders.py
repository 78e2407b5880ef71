"""From a model name or a spec to an encoder: resolved once when a run is made, loaded once per process."""

import contextlib
import dataclasses
import os
import shutil
import sys
import threading
import uuid
import warnings
from pathlib import Path
from typing import Any, cast

import torch

from genenc_core import errors, spec
from genenc_core.export import artifacts, backends, describe, exporting
from genenc_core.models import sources
from genenc_core.run import named_models
from genenc_core.run import parameters as run_parameters
from genenc_core.run.folder import MODEL_FOLDER, MODEL_SPEC, RunFolder


class UnusedVariantsWarning(UserWarning):
    """A spec offers the same weights for several batch sizes."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ResolvedModel:
    """A model as a run will use it: its spec with absolute paths, and the backend that runs it."""

    spec: spec.RuntimeModelSpec
    backend: backends.BackendKind


class EncoderCache:
    """The models and encoders of this process; the last few are kept, so that shard tasks share them."""

    def __init__(self, *, kept: int = 2) -> None:
        self._kept = kept
        self._lock = threading.RLock()
        self._built: dict[sources.ModelRequest, sources.BuiltEncoder] = {}
        self._encoders: dict[tuple[str, str, str], backends.Encoder] = {}

    def build(self, request: sources.ModelRequest) -> sources.BuiltEncoder:
        """Return the eager model of a request."""
        request = sources.resolved(request)
        with self._lock:
            if request not in self._built:
                # torch.hub writes the progress of a download to standard output, which may be a JSON document.
                with contextlib.redirect_stdout(sys.stderr):
                    self._built[request] = sources.build_encoder(request)
                _drop_oldest(self._built, self._kept)
            return self._built[request]

    def load(self, model: ResolvedModel, *, device: str, trust: bool) -> backends.Encoder:
        """Return the encoder of a resolved model on a device."""
        key = (model.spec.to_json(), model.backend, device)
        with self._lock:
            if key not in self._encoders:
                self._encoders[key] = self._load(model, device, trust)
                _drop_oldest(self._encoders, self._kept)
            return self._encoders[key]

    def clear(self) -> None:
        """Forget every model, so that memory is given back."""
        with self._lock:
            self._built.clear()
            self._encoders.clear()

    def _load(self, model: ResolvedModel, device: str, trust: bool) -> backends.Encoder:
        # A model that was just built to plan the run need not be built again to encode it.
        known = [
            built for built in self._built.values() if model.backend == "eager" and _is_model_of(built, model.spec)
        ]
        if known:
            return backends.eager_encoder(known[0], device=device)
        return backends.load_encoder(model.spec, backend=model.backend, device=device, trust=trust)


CACHE = EncoderCache()


def resolve_model(given: run_parameters.ExtractParameters, *, export_to: Path | None) -> ResolvedModel:
    """Return the model that the parameters name.

    A named model for an artifact backend is exported into `export_to`; with None its artifact is left open, as for a
    run that has one already.

    Raises:
        InputError: an unknown model or backend, or options that contradict the model.
        SpecError: a spec file that breaks a rule.
    """
    path = named_models.spec_file(given.model, given.models)
    general = path is None and named_models.is_general(given.model)
    if given.output_shape is not None and not general:
        raise errors.InputError(
            f"--output-shape {given.output_shape} goes with general_encoder only: the outputs of {given.model!r} are "
            "known"
        )
    if path is not None:
        return _from_spec_file(given, path)
    if general:
        return _from_exported_file(given)
    built = CACHE.build(_request(given))
    backend = "eager" if given.backend == "auto" else given.backend
    if backend == "eager" or export_to is None:
        return ResolvedModel(spec=describe.spec_for(built, model_id=describe.file_stem(built)), backend=backend)
    exported = exporting.export_encoder(built, out=export_to, formats=[backend])[0]
    return ResolvedModel(spec=exported.spec, backend=backend)


def run_model(folder: RunFolder) -> ResolvedModel:
    """Return the model of a run folder, its paths absolute."""
    return ResolvedModel(
        spec=read_run_spec(folder.root / MODEL_SPEC), backend=cast(backends.BackendKind, folder.backend)
    )


def warm(given: run_parameters.ExtractParameters) -> None:
    """Build an eager model ahead of its use; a spec's artifact is loaded when it is needed."""
    if named_models.spec_file(given.model, given.models) is None and not named_models.is_general(given.model):
        CACHE.build(_request(given))


def _request(given: run_parameters.ExtractParameters) -> sources.ModelRequest:
    size = None if given.image_size is None else run_parameters.parse_image_size(given.image_size)
    return sources.ModelRequest(
        name=given.model, weights=given.weights or "pretrained", image_size=size, layers=given.layers
    )


def _from_exported_file(given: run_parameters.ExtractParameters) -> ResolvedModel:
    found = named_models.general_spec(given)
    if given.backend == "eager":
        raise errors.InputError(
            f"--backend eager does not go with {given.model}: an exported file is run as it is; leave --backend out"
        )
    return ResolvedModel(spec=found, backend=backends.choose_backend(found, given.backend))


def _from_spec_file(given: run_parameters.ExtractParameters, path: Path) -> ResolvedModel:
    found = spec.load_spec(path)
    if given.weights is not None:
        raise errors.InputError(
            f"--weights {given.weights!r} does not go with a spec: {given.model!r} names its own weights; "
            "export the model again with the other weights"
        )
    if given.layers:
        raise errors.InputError(
            f"--layers {','.join(given.layers)} does not go with a spec: an artifact has the outputs it was exported "
            "with; export the model again with those layers"
        )
    describe.check_image_spec(found)
    if found.weights_variants:
        text = f"{given.model!r}: its weights_variants are not used; every batch runs its weights_path"
        warnings.warn(text, UnusedVariantsWarning, stacklevel=2)
    backend = backends.choose_backend(found, given.backend)
    declared = found.inputs[0].shape[-2:] if found.inputs else ()
    if given.image_size is not None and run_parameters.parse_image_size(given.image_size) != tuple(declared):
        raise errors.InputError(
            f"--image-size {given.image_size} differs from the spec's input {list(declared)}: "
            "an artifact has a fixed size; export the model again with that size"
        )
    return ResolvedModel(spec=found, backend=backend)


def try_once(model: ResolvedModel, *, device: str, trust: bool) -> None:
    """Load an artifact and encode one blank batch, so that what cannot work is refused before anything is made.

    Raises:
        InputError: it cannot be loaded, or its outputs are not what the spec declares.
    """
    if model.backend == "eager":
        # Its spec was written from a dry run of the model itself.
        return
    encoder = CACHE.load(model, device=device, trust=trust)
    smallest = model.spec.resolved_batch_mode().min
    try:
        encoder(torch.zeros(smallest, 3, *encoder.input_size, device=encoder.device))
    except errors.EncoderError as error:
        raise errors.InputError(str(error)) from error


def artifact_digest(found: spec.RuntimeModelSpec) -> str | None:
    """Return the sha256 of a spec's artifact: of the file as it is, whatever the spec says; None without one."""
    if not found.weights_path:
        return None
    path = Path(found.weights_path)
    if not path.is_file():
        raise errors.InputError(
            f"model spec {found.model_id!r}: its artifact {str(path)!r} is not there: put it back, or export again"
        )
    return artifacts.file_sha256(path)


def localised(model: ResolvedModel, run_folder: Path) -> ResolvedModel:
    """Copy the artifact or weights file into the run folder; return the model with paths relative to that folder."""
    found = model.spec
    if model.backend != "eager" and found.weights_path:
        name = _copied(Path(found.weights_path), run_folder)
        return dataclasses.replace(model, spec=found.model_copy(update={"weights_path": name}))
    file = _weights_file(found, Path())
    return model if file is None else dataclasses.replace(model, spec=_with_weights(found, _copied(file, run_folder)))


def read_run_spec(path: Path) -> spec.RuntimeModelSpec:
    """Return a run folder's spec with paths that can be opened from anywhere."""
    path = path.absolute()
    found = spec.RuntimeModelSpec.from_json_file(path)
    file = _weights_file(found, path.parent)
    return found if file is None else _with_weights(found, str(file))


def _weights_file(found: spec.RuntimeModelSpec, folder: Path) -> Path | None:
    """Return the file that an eager model's weights come from, relative names from `folder`; None for random ones."""
    source = found.genenc.source if found.genenc else None
    file = None if source is None else folder / source.weights
    return file if file is not None and file.is_file() else None


def _with_weights(found: spec.RuntimeModelSpec, weights: str) -> spec.RuntimeModelSpec:
    """Return the spec of the same eager model with its weights named otherwise."""
    assert found.genenc is not None
    assert found.genenc.source is not None
    source = found.genenc.source.model_copy(update={"weights": weights})
    return found.model_copy(update={"genenc": found.genenc.model_copy(update={"source": source})})


def _copied(path: Path, run_folder: Path) -> str:
    """Copy a file into the run's model folder, whole or not at all; return its name relative to the run folder."""
    target = run_folder / MODEL_FOLDER / path.name
    partial = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}.partial")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, partial)
        with partial.open("rb") as file:
            os.fsync(file.fileno())
        partial.replace(target)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise errors.InputError(f"cannot copy the model's file {str(path)!r} into the run folder: {error}") from error
    return f"{MODEL_FOLDER}/{path.name}"


def _is_model_of(built: sources.BuiltEncoder, found: spec.RuntimeModelSpec) -> bool:
    return _essence(describe.spec_for(built, model_id=found.model_id)) == _essence(found)


def _essence(found: spec.RuntimeModelSpec) -> tuple[object, ...]:
    """Return what two specs of the same model share, wherever its weights file lies."""
    block = found.genenc or spec.GenencBlock()
    source = block.source and (block.source.kind, block.source.name, block.source.layers, block.source.arguments)
    return source, block.weights_sha256, block.mean, block.std, found.inputs, found.outputs


def _drop_oldest(cache: dict[Any, Any], kept: int) -> None:
    while len(cache) > kept:
        del cache[next(iter(cache))]
