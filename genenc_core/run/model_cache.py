"""Resolve model names and specs to encoders, with a cache of loaded models per process."""

import contextlib
import dataclasses
import functools
import json
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch

from genenc_core import errors, spec, spec_edits
from genenc_core.encoding import cancellation, encoder_threads
from genenc_core.export import exporter
from genenc_core.models import resolve, tokens
from genenc_core.models import trust as trust_rules
from genenc_core.models.sources import python_source
from genenc_core.run import channels, model_files, named_models, records
from genenc_core.run import parameters as run_parameters
from genenc_core.run.folder import MODEL_FOLDER, MODEL_SPEC, RunFolder, is_earlier_run
from genenc_core.runtime import adaptation, backends, describe, general_encoder, loading, output_axes
from genenc_core.runtime.execution import Execution
from genenc_core.runtime.formats import table
from genenc_core.store.backends.objects import join

_INFERRED = (
    "input",
    "output_positions",
    "channels_last_outputs",
    "channels_first_lists",
    "output_names",
    "outputs_left_out",
)
"""Spec entries that the general encoder infers from a file."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ResolvedModel:
    """A model as used by a run: its spec with absolute paths, and the backend that runs it."""

    spec: spec.RuntimeModelSpec
    backend: backends.BackendKind
    digests: Mapping[int, str] | None = None
    """sha256 of the run's artifacts."""
    execution: Execution = backends.DEFAULT


_UNTRACKED = ("python", "factory")
"""Model kinds that may depend on state not in the cache key: files, module and environment variables."""


class EncoderCache:
    """Cache of the last few models and encoders of this process, shared by shard tasks."""

    def __init__(self, *, kept: int = 2) -> None:
        self._kept = kept
        self._lock = threading.RLock()
        # Keys include file stamps, so that a rewritten file is reloaded.
        self._built: dict[tuple[object, ...], resolve.BuiltEncoder] = {}
        self._encoders: dict[tuple[object, ...], backends.Encoder] = {}
        self._ahead: set[tuple[object, ...]] = set()
        """Keys of models built for the next run."""

    def begin(self) -> None:
        """Drop models that may have changed, before a run is planned or a model is exported.

        Models built ahead are kept.
        """
        with self._lock:
            for key in [key for key, built in self._built.items() if built.kind in _UNTRACKED]:
                if key not in self._ahead:
                    del self._built[key]
            self._ahead.clear()
            for place, encoder in list(self._encoders.items()):
                source = (encoder.spec.genenc or spec.GenencBlock()).source
                if source is not None and source.kind in _UNTRACKED:
                    del self._encoders[place]

    def build_ahead(self, request: resolve.ModelRequest) -> None:
        """Build the eager model of the next run ahead of planning."""
        with self._lock:
            self.begin()
            self._ahead.add(self._key(resolve.resolved(request)))
            self.build(request)

    def build(self, request: resolve.ModelRequest) -> resolve.BuiltEncoder:
        """Return the eager model of a request, from the cache if possible."""
        request = resolve.resolved(request)
        key = self._key(request)
        with self._lock:
            if key not in self._built:
                # torch.hub prints download progress to standard output, which may be a JSON document.
                with contextlib.redirect_stdout(sys.stderr):
                    self._built[key] = encoder_threads.run_in_thread(resolve.build_encoder, request)
                trust_rules.remember(request.code)
                _drop_oldest(self._built, self._kept)
            return self._built[key]

    @staticmethod
    def _key(request: resolve.ModelRequest) -> tuple[object, ...]:
        return request, model_files.stamps([Path(request.weights)])

    def load(self, model: ResolvedModel, *, device: str, trust: bool, keep: bool = True) -> backends.Encoder:
        """Return the encoder of a resolved model on a device; with `keep=False` it is not cached."""
        files = () if model.backend == "eager" else loading.artifact_files(model.spec).values()
        stamps = model_files.stamps(file.path for file in files)
        key = (spec_edits.without_digests(model.spec).to_json(), model.backend, model.execution, device, stamps)
        with self._lock:
            # An encoder loaded without trust also serves trusting callers.
            for trusted in {False, trust}:
                if (*key, trusted) in self._encoders:
                    return self._encoders[*key, trusted]
            encoder = self._load(model, device, trust)
            if keep:
                self._encoders[*key, trust] = encoder
                _drop_oldest(self._encoders, self._kept)
            return encoder

    def clear(self) -> None:
        """Drop all models to free memory."""
        with self._lock:
            self._built.clear()
            self._encoders.clear()

    def _load(self, model: ResolvedModel, device: str, trust: bool) -> backends.Encoder:
        # Reuse a model that was just built to plan the run.
        known = [
            built for built in self._built.values() if model.backend == "eager" and _is_model_of(built, model.spec)
        ]
        if known:
            return backends.eager_encoder(known[0], device=device, how=model.execution)
        work = functools.partial(
            backends.load_encoder,
            model.spec,
            backend=model.backend,
            device=device,
            trust=trust,
            digests=model.digests,
            how=model.execution,
        )
        encoder = encoder_threads.run_in_thread(work)
        if model.backend == "eager":
            trust_rules.remember(code_of(model.spec))
        return encoder


CACHE = EncoderCache()


def resolve_model(given: run_parameters.ExtractParameters, *, export_to: Path | None) -> ResolvedModel:
    """Resolve the model that the parameters name, with its precision and compilation.

    Raises:
        InputError: as `_resolved`, or the model or device does not support the precision or compilation.
    """
    how = Execution(precision=given.precision, compile=given.compile)
    model = dataclasses.replace(_resolved(given, export_to=export_to), execution=how)
    how.check(model.backend, device_of(model, given.device))
    return model


def _resolved(given: run_parameters.ExtractParameters, *, export_to: Path | None) -> ResolvedModel:
    """Resolve the model that the parameters name.

    A named model for an artifact backend is exported into `export_to`; with None no artifact is set, as for a run
    that already has one.

    Raises:
        InputError: an unknown model or backend, or options that contradict the model.
        SpecError: an invalid spec file.
    """
    path = named_models.spec_file(given.model, given.models)
    general = path is None and named_models.is_general(given.model)
    if given.output_shape is not None and not general:
        raise errors.InputError(
            f"--output-shape {given.output_shape} is for general_encoder only: {given.model!r} has known output "
            "shapes; leave it out"
        )
    if path is not None:
        return _from_spec_file(given, path)
    if general:
        return _from_exported_file(given)
    if (given.mean is not None or given.std is not None) and not channels.are_given(given):
        raise errors.InputError(
            f"--mean and --std are for exported files, and for images that are read as channels (--channels or "
            f"--value-range): {given.model!r} is normalised as it declares (genenc info "
            "shows how). Leave them out; your own module declares them by its attribute genenc: "
            'model.genenc = {"mean": (...), "std": (...)}'
        )
    built = CACHE.build(_request(given))
    backend = "eager" if given.backend == "auto" else given.backend
    if backend == "eager" or export_to is None:
        return ResolvedModel(spec=describe.spec_for(built, model_id=describe.file_stem(built)), backend=backend)
    exported = exporter.export_encoder(built, out=export_to, formats=[backend])[0]
    return ResolvedModel(spec=exported.spec, backend=backend)


def with_recorded_outputs(model: ResolvedModel, folder: RunFolder) -> ResolvedModel:
    """Return a general encoder with the outputs recorded in the run: later versions infer more from a file."""
    found = model.spec
    if found.model_id != general_encoder.MODEL_ID or folder.identity["model"] != general_encoder.MODEL_ID:
        return model
    recorded = spec.RuntimeModelSpec.from_json(json.dumps(records.read_json(folder.objects, MODEL_SPEC)))
    same = recorded.inputs == found.inputs
    if not same or model_files.identity_digest(model_files.artifact_digests(found)) != folder.identity["artifact"]:
        return model
    before, block = (item.genenc or spec.GenencBlock() for item in (recorded, found))
    update = {name: getattr(before, name) for name in _INFERRED}
    changed = {"outputs": recorded.outputs, "genenc": block.model_copy(update=update)}
    return dataclasses.replace(model, spec=found.model_copy(update=changed))


def run_model(folder: RunFolder) -> ResolvedModel:
    """Return the model of a run folder, with absolute paths.

    Raises:
        InputError: an artifact file is missing.
        StoreError: an artifact file or the model is not the one that the run was made with.
    """
    place = folder.model_files()
    found = model_files.read_run_spec(place / MODEL_SPEC)
    source = found.genenc.source if found.genenc else None
    named = found.model_id if source is None else f"{source.kind}/{source.name}"
    arguments = source.arguments if source else None
    # The identity is compared with what the user asks for, but the spec is what runs: they must agree.
    if (named, arguments) != (folder.identity["model"], folder.identity.get("arguments")):
        raise errors.StoreError(
            f"{join(folder.root, MODEL_SPEC)!r} describes the model {named!r}, but the run was made with "
            f"{folder.identity['model']!r}: the model was replaced; put it back, or extract to another --out"
        )
    eager = folder.backend == "eager"
    # A third-party spec may lack the digest of its file; the run's identity always has it.
    digests = None if eager else model_files.artifact_digests(found)
    if model_files.identity_digest(digests) != folder.identity["artifact"]:
        raise errors.StoreError(
            f"the model's files in {join(folder.root, MODEL_FOLDER)!r} are not those this run was made with (their "
            "digest differs): put the originals back, or extract to another --out"
        )
    backend = cast(backends.BackendKind, folder.backend)
    return ResolvedModel(spec=found, backend=backend, digests=digests, execution=folder.execution)


def code_of(found: spec.RuntimeModelSpec) -> str | None:
    """Return the dotted path imported to build a spec's eager model, None if there is none."""
    source = found.genenc.source if found.genenc else None
    return None if source is None else trust_rules.code_of(source.kind, source.name, source.arguments)


def warm(given: run_parameters.ExtractParameters) -> None:
    """Build an eager model ahead of its use; artifacts are loaded on demand."""
    if named_models.spec_file(given.model, given.models) is None and not named_models.is_general(given.model):
        cancellation.current().on_phase("loading the model")
        CACHE.build_ahead(_request(given))


def built_model(given: run_parameters.ExtractParameters) -> resolve.BuiltEncoder | None:
    """Return the eager model that the parameters name; None for specs and artifacts."""
    if named_models.spec_file(given.model, given.models) is not None or named_models.is_general(given.model):
        return None
    return CACHE.build(_request(given))


def _request(given: run_parameters.ExtractParameters) -> resolve.ModelRequest:
    size = None if given.image_size is None else run_parameters.parse_image_size(given.image_size)
    return resolve.ModelRequest(
        name=given.model,
        weights=given.weights or "pretrained",
        weights_key=given.weights_key,
        image_size=size,
        layers=given.layers,
        trust=given.trust,
        channels=channels.wanted_count(given),
        statistics=channels.statistics(given),
        task_aux_heads=not (given.model.lower().endswith(resolve.MODEL_FILE_SUFFIXES) and is_earlier_run(given.out)),
    )


def _from_exported_file(given: run_parameters.ExtractParameters) -> ResolvedModel:
    found = named_models.general_spec(given)
    if given.backend == "eager":
        raise errors.InputError(
            f"--backend eager cannot be used with {given.model}, which runs an exported file as is; leave --backend out"
        )
    return ResolvedModel(spec=found, backend=backends.choose_backend(found, given.backend))


def _from_spec_file(given: run_parameters.ExtractParameters, path: Path) -> ResolvedModel:
    found = describe.canonical(spec.load_spec(path), grey_of_rgb=not channels.are_given(given))
    if given.weights is not None:
        raise errors.InputError(
            f"--weights {given.weights!r} cannot be used with a spec: {given.model!r} names its own weights; "
            "leave it out, or export the model again with these weights"
        )
    if given.weights_key is not None:
        raise errors.InputError(
            f"--weights-key {given.weights_key!r} cannot be used with a spec, whose artifact contains its weights; "
            "leave it out"
        )
    if given.layers:
        raise errors.InputError(
            f"--layers {','.join(given.layers)} cannot be used with a spec: the outputs of an artifact are fixed; "
            "leave it out, or export the model again with these layers"
        )
    wanted = channels.normalisation(given, found.inputs[0].shape[0] if found.inputs else 3)
    if wanted is not None:
        found = adaptation.applied(found, wanted)
    elif adaptation.is_undeclared(found):
        adaptation.warn_undeclared(path.name)
    describe.check_image_spec(found)
    backend = backends.choose_backend(found, given.backend)
    if given.image_size is not None:
        size = run_parameters.parse_image_size(given.image_size)
        found = backends.resized(found, size, backend=backend, device=given.device, trust=given.trust)
    return ResolvedModel(spec=found, backend=backend)


def device_of(model: ResolvedModel, wanted: str) -> str:
    """Return the device that a model runs on; `auto` is a CUDA device only if the model can run on it.

    Raises:
        InputError: no such device.
    """
    if model.backend != "eager" and wanted == "auto":
        files = loading.artifact_files(model.spec)
        bound = files and loading.device_for(files, wanted).type == "cpu"
        if bound or table.FORMATS[model.backend].cpu_only:
            return "cpu"
    return str(backends.resolve_device(wanted))


def with_named_outputs(model: ResolvedModel, *, device: str, trust: bool) -> ResolvedModel:
    """Return the model with the outputs of a third-party file matched to slots by name, if they are named.

    Raises:
        InputError: it cannot be loaded, or its output names do not match the slots.
    """
    found = model.spec
    block = found.genenc or spec.GenencBlock()
    # In ONNX files exported by genenc, outputs are named after slots: another order means that the spec was edited.
    ours = block.source is not None
    known = (
        (ours and model.backend != "onnx")
        or block.output_names is not None
        or found.model_id == general_encoder.MODEL_ID
    )
    if model.backend == "eager" or len(found.outputs) < 2 or known:
        return model
    loaded, where = loading.load_raw(found, device=device, trust=trust, scratch=None)
    given: list[object] = []

    def noted(images: torch.Tensor) -> Any:
        given.append(loaded.run(images))
        return given[0]

    size = describe.preprocessing_of(found)
    batch = torch.zeros((found.resolved_batch_mode().min, size.channel_count, size.height, size.width), device=where)
    with torch.inference_mode(), contextlib.suppress(Exception):  # `try_once` reports errors
        adaptation.adapted(noted, found.genenc)(batch)
    if not given or (ours and not _is_reordered(given[0], found)):
        return model
    return dataclasses.replace(model, spec=output_axes.with_names(found, cast(Any, given[0])))


def _is_reordered(given: object, model_spec: spec.RuntimeModelSpec) -> bool:
    slots = [slot.name for slot in model_spec.outputs]
    return isinstance(given, Mapping) and sorted(given) == sorted(slots) and list(given) != slots


def refuse_other_axes(model: ResolvedModel, given: run_parameters.ExtractParameters) -> None:
    """Check that maps with undeclared axes look like [C, h, w].

    Raises:
        InputError: a map matches the aspect ratio of the images only as [h, w, C].
    """
    found, block = model.spec, model.spec.genenc or spec.GenencBlock()
    own = block.source is not None and block.source.kind == "python" and not block.source.layers
    if block.channels_last_outputs is not None or (block.source is not None and not own):
        return
    built = built_model(given) if own else None
    if built is not None and python_source.declares_layout(built.module):
        return
    size = describe.preprocessing_of(found)
    if own:
        remedy = "Return [B, C, h, w], or declare output_fmt, 'NHWC' or 'NCHW', in the model's attribute genenc"
    else:
        remedy = (
            "List its position in genenc.channels_last_outputs and give the slot the shape [C, h, w], or leave that "
            "list empty if the shape is correct"
        )
    for slot in found.outputs:
        if len(slot.shape) == 3 and tokens.map_axes((1, *slot.shape), (size.height, size.width)) == (False, True):
            raise errors.InputError(
                f"output slot {slot.name!r} of {found.model_id!r} has the shape {list(slot.shape)}, which for images "
                f"of {size.height} x {size.width} pixels is a map [h, w, C], not [C, h, w]. {remedy}"
            )


def try_once(model: ResolvedModel, *, device: str, trust: bool) -> None:
    """Load an artifact and encode one blank batch, so that unusable models are refused before a run is created.

    Raises:
        InputError: it cannot be loaded, or its outputs do not match the spec.
    """
    if model.backend == "eager":
        # Its spec was made from a dry run.
        return
    encoder = CACHE.load(model, device=device, trust=trust)
    smallest = model.spec.resolved_batch_mode().min
    try:
        encoder_threads.run_in_thread(
            encoder, torch.zeros(smallest, encoder.channels, *encoder.input_size, device=encoder.device)
        )
    except errors.EncoderError as error:
        raise errors.InputError(str(error)) from error
    except Exception as error:  # every runtime has its own exceptions
        height, width = encoder.input_size
        form = (model.spec.genenc and model.spec.genenc.input) or spec.ArtifactInput()
        raise errors.InputError(
            f"the artifact of model spec {model.spec.model_id!r} fails at a batch of {smallest} of {height} x {width} "
            f"pixels: {errors.reason(error)}. It was given {form.describe()}. The spec's inputs, genenc.input or "
            "batch_mode do not match the file: correct them, or export the model again."
        ) from error


def _is_model_of(built: resolve.BuiltEncoder, found: spec.RuntimeModelSpec) -> bool:
    return _model_key(describe.spec_for(built, model_id=found.model_id)) == _model_key(found)


def _model_key(found: spec.RuntimeModelSpec) -> tuple[object, ...]:
    """Return the part of a spec that identifies the model, regardless of where its weights file is."""
    block = found.genenc or spec.GenencBlock()
    source = block.source and (block.source.kind, block.source.name, block.source.layers, block.source.arguments)
    return source, block.weights_sha256, block.code, block.files, block.mean, block.std, found.inputs, found.outputs


def _drop_oldest(cache: dict[Any, Any], kept: int) -> None:
    while len(cache) > kept:
        del cache[next(iter(cache))]
