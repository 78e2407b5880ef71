"""From a model name or a spec to an encoder: resolved once when a run is made, loaded once per process."""

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
from genenc_core.encoding import calls, control
from genenc_core.export import adaptation, backends, describe, exporting, general, loading, naming, normalisation
from genenc_core.export.execution import Execution
from genenc_core.export.formats import table
from genenc_core.models import python_source, sources, tokens, wording
from genenc_core.models import trust as trust_rules
from genenc_core.run import model_files, named_models, records
from genenc_core.run import parameters as run_parameters
from genenc_core.run.folder import MODEL_FOLDER, MODEL_SPEC, RunFolder, is_earlier_run
from genenc_core.store.objects import join

_FOUND_OUT = (
    "input",
    "output_positions",
    "channels_last_outputs",
    "channels_first_lists",
    "output_names",
    "outputs_left_out",
)
"""what the general encoder finds out of a file"""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ResolvedModel:
    """A model as a run will use it: its spec with absolute paths, and the backend that runs it."""

    spec: spec.RuntimeModelSpec
    backend: backends.BackendKind
    digests: Mapping[int, str] | None = None
    """sha256 of the artifacts that a run was made with"""
    execution: Execution = backends.DEFAULT


class EncoderCache:
    """The models and encoders of this process; the last few are kept, so that shard tasks share them."""

    def __init__(self, *, kept: int = 2) -> None:
        self._kept = kept
        self._lock = threading.RLock()
        # Keys tell of files too, so that one written anew is read anew.
        self._built: dict[tuple[object, ...], sources.BuiltEncoder] = {}
        self._encoders: dict[tuple[object, ...], backends.Encoder] = {}

    def build(self, request: sources.ModelRequest) -> sources.BuiltEncoder:
        """Return the eager model of a request."""
        request = sources.resolved(request)
        key = (request, model_files.stamps([Path(request.weights)]))
        with self._lock:
            if key not in self._built:
                # torch.hub writes the progress of a download to standard output, which may be a JSON document.
                with contextlib.redirect_stdout(sys.stderr):
                    self._built[key] = calls.alone(sources.build_encoder, request)
                trust_rules.remember(request.code)
                _drop_oldest(self._built, self._kept)
            return self._built[key]

    def load(self, model: ResolvedModel, *, device: str, trust: bool, keep: bool = True) -> backends.Encoder:
        """Return the encoder of a resolved model on a device; `keep` is false for one that is needed once only."""
        files = () if model.backend == "eager" else loading.artifact_files(model.spec).values()
        stamps = model_files.stamps(file.path for file in files)
        key = (spec_edits.unsealed(model.spec).to_json(), model.backend, model.execution, device, stamps)
        with self._lock:
            # What was loaded without trust serves those who trust, too.
            for trusted in {False, trust}:
                if (*key, trusted) in self._encoders:
                    return self._encoders[*key, trusted]
            encoder = self._load(model, device, trust)
            if keep:
                self._encoders[*key, trust] = encoder
                _drop_oldest(self._encoders, self._kept)
            return encoder

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
        encoder = calls.alone(work)
        if model.backend == "eager":
            trust_rules.remember(code_of(model.spec))
        return encoder


CACHE = EncoderCache()


def resolve_model(given: run_parameters.ExtractParameters, *, export_to: Path | None) -> ResolvedModel:
    """Return the model that the parameters name, and how it is computed.

    Raises:
        InputError: as `_resolved`, or a model or device that cannot compute so.
    """
    how = Execution(precision=given.precision, compile=given.compile)
    model = dataclasses.replace(_resolved(given, export_to=export_to), execution=how)
    how.check(model.backend, device_of(model, given.device))
    return model


def _resolved(given: run_parameters.ExtractParameters, *, export_to: Path | None) -> ResolvedModel:
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
    if given.mean is not None or given.std is not None:
        raise errors.InputError(
            f"--mean and --std are for exported files: {given.model!r} normalises its images by itself (genenc info "
            "shows how). Leave them out; your own model states them as attributes mean and std"
        )
    built = CACHE.build(_request(given))
    backend = "eager" if given.backend == "auto" else given.backend
    if backend == "eager" or export_to is None:
        return ResolvedModel(spec=describe.spec_for(built, model_id=describe.file_stem(built)), backend=backend)
    exported = exporting.export_encoder(built, out=export_to, formats=[backend])[0]
    return ResolvedModel(spec=exported.spec, backend=backend)


def as_recorded(model: ResolvedModel, folder: RunFolder) -> ResolvedModel:
    """Return the exported file of a run with the outputs that the run has: later versions find out more of a file."""
    found = model.spec
    if found.model_id != general.MODEL_ID or folder.identity["model"] != general.MODEL_ID:
        return model
    recorded = spec.RuntimeModelSpec.from_json(json.dumps(records.read_json(folder.objects, MODEL_SPEC)))
    same = recorded.inputs == found.inputs
    if not same or model_files.identity_digest(model_files.artifact_digests(found)) != folder.identity["artifact"]:
        return model
    before, block = (item.genenc or spec.GenencBlock() for item in (recorded, found))
    update = {name: getattr(before, name) for name in _FOUND_OUT}
    changed = {"outputs": recorded.outputs, "genenc": block.model_copy(update=update)}
    return dataclasses.replace(model, spec=found.model_copy(update=changed))


def run_model(folder: RunFolder) -> ResolvedModel:
    """Return the model of a run folder, its paths absolute.

    Raises:
        InputError: a file of its artifact is not there.
        StoreError: one of them, or the model, is not the one that the run was made with.
    """
    place = folder.model_files()
    found = model_files.read_run_spec(place / MODEL_SPEC)
    source = found.genenc.source if found.genenc else None
    named = found.model_id if source is None else f"{source.kind}/{source.name}"
    arguments = source.arguments if source else None
    # The one is compared with what a user asks for, the other is run.
    if (named, arguments) != (folder.identity["model"], folder.identity.get("arguments")):
        raise errors.StoreError(
            f"{join(folder.root, MODEL_SPEC)!r} is of the model {named!r}, but the run is of "
            f"{folder.identity['model']!r}: the model there was replaced; extract to another --out"
        )
    eager = folder.backend == "eager"
    # A spec from elsewhere may record no digest of its file; the run's identity has it always.
    digests = None if eager else model_files.artifact_digests(found)
    if model_files.identity_digest(digests) != folder.identity["artifact"]:
        raise errors.StoreError(
            f"the model's files in {join(folder.root, MODEL_FOLDER)!r} are not those this run was made with (their "
            "digest differs): put the originals back, or extract to another --out"
        )
    backend = cast(backends.BackendKind, folder.backend)
    return ResolvedModel(spec=found, backend=backend, digests=digests, execution=folder.execution)


def code_of(found: spec.RuntimeModelSpec) -> str | None:
    """Return the dotted path that building a spec's eager model imports."""
    source = found.genenc.source if found.genenc else None
    return None if source is None else trust_rules.code_of(source.kind, source.name, source.arguments)


def warm(given: run_parameters.ExtractParameters) -> None:
    """Build an eager model ahead of its use; a spec's artifact is loaded when it is needed."""
    if named_models.spec_file(given.model, given.models) is None and not named_models.is_general(given.model):
        control.current().on_phase("loading the model")
        CACHE.build(_request(given))


def built_model(given: run_parameters.ExtractParameters) -> sources.BuiltEncoder | None:
    """Return the eager model that the parameters name; None for a spec or an artifact."""
    if named_models.spec_file(given.model, given.models) is not None or named_models.is_general(given.model):
        return None
    return CACHE.build(_request(given))


def _request(given: run_parameters.ExtractParameters) -> sources.ModelRequest:
    size = None if given.image_size is None else run_parameters.parse_image_size(given.image_size)
    return sources.ModelRequest(
        name=given.model,
        weights=given.weights or "pretrained",
        weights_key=given.weights_key,
        image_size=size,
        layers=given.layers,
        trust=given.trust,
        task_aux_heads=not (given.model.lower().endswith(sources.MODEL_FILE_SUFFIXES) and is_earlier_run(given.out)),
    )


def _from_exported_file(given: run_parameters.ExtractParameters) -> ResolvedModel:
    found = named_models.general_spec(given)
    if given.backend == "eager":
        raise errors.InputError(
            f"--backend eager does not go with {given.model}: an exported file is run as it is; leave --backend out"
        )
    return ResolvedModel(spec=found, backend=backends.choose_backend(found, given.backend))


def _from_spec_file(given: run_parameters.ExtractParameters, path: Path) -> ResolvedModel:
    found = describe.canonical(spec.load_spec(path))
    if given.weights is not None:
        raise errors.InputError(
            f"--weights {given.weights!r} does not go with a spec: {given.model!r} names its own weights; "
            "export the model again with the other weights"
        )
    if given.weights_key is not None:
        raise errors.InputError(
            f"--weights-key {given.weights_key!r} does not go with a spec, whose artifact has its weights inside"
        )
    if given.layers:
        raise errors.InputError(
            f"--layers {','.join(given.layers)} does not go with a spec: an artifact has the outputs it was exported "
            "with; export the model again with those layers"
        )
    wanted = normalisation.parse(given.mean, given.std)
    if wanted is not None:
        found = normalisation.applied(found, wanted)
    elif normalisation.says_nothing(found):
        normalisation.warn_of_none(path.name)
    describe.check_image_spec(found)
    backend = backends.choose_backend(found, given.backend)
    if given.image_size is not None:
        size = run_parameters.parse_image_size(given.image_size)
        found = backends.resized(found, size, backend=backend, device=given.device, trust=given.trust)
    return ResolvedModel(spec=found, backend=backend)


def device_of(model: ResolvedModel, wanted: str) -> str:
    """Return where a model runs; `auto` is a CUDA device only for what can run on it.

    Raises:
        InputError: no such device.
    """
    if model.backend != "eager" and wanted == "auto":
        files = loading.artifact_files(model.spec)
        bound = files and loading.device_for(files, wanted).type == "cpu"
        if bound or table.FORMATS[model.backend].cpu_only:
            return "cpu"
    return str(backends.resolve_device(wanted))


def by_name(model: ResolvedModel, *, device: str, trust: bool) -> ResolvedModel:
    """Return the model with the outputs of a file from elsewhere found by their names, where it has any.

    Raises:
        InputError: it cannot be loaded, or the names of its outputs are those of other slots.
    """
    found = model.spec
    block = found.genenc or spec.GenencBlock()
    # Our own ONNX files have the names of their slots: a spec in another order was edited.
    ours = block.source is not None
    known = (ours and model.backend != "onnx") or block.output_names is not None or found.model_id == general.MODEL_ID
    if model.backend == "eager" or len(found.outputs) < 2 or known:
        return model
    loaded, where = loading.load_raw(found, device=device, trust=trust, scratch=None)
    given: list[object] = []

    def noted(images: torch.Tensor) -> Any:
        given.append(loaded.run(images))
        return given[0]

    size = describe.preprocessing_of(found)
    batch = torch.zeros((found.resolved_batch_mode().min, 3, size.height, size.width), device=where)
    with torch.inference_mode(), contextlib.suppress(Exception):  # `try_once` says what is wrong
        adaptation.adapted(noted, found.genenc)(batch)
    if not given or (ours and not _in_another_order(given[0], found)):
        return model
    return dataclasses.replace(model, spec=naming.with_names(found, cast(Any, given[0])))


def _in_another_order(given: object, model_spec: spec.RuntimeModelSpec) -> bool:
    slots = [slot.name for slot in model_spec.outputs]
    return isinstance(given, Mapping) and sorted(given) == sorted(slots) and list(given) != slots


def refuse_other_axes(model: ResolvedModel, given: run_parameters.ExtractParameters) -> None:
    """Check that maps whose axes nobody has stated look like [C, h, w].

    Raises:
        InputError: the sides of one are in proportion to the images' only as [h, w, C].
    """
    found, block = model.spec, model.spec.genenc or spec.GenencBlock()
    own = block.source is not None and block.source.kind == "python" and not block.source.layers
    if block.channels_last_outputs is not None or (block.source is not None and not own):
        return
    built = built_model(given) if own else None
    if built is not None and python_source.states_axes(built.module):
        return
    size = describe.preprocessing_of(found)
    if own:
        remedy = "Return [B, C, h, w], or state its output_fmt, 'NHWC' or 'NCHW', in the model's attribute genenc"
    else:
        remedy = (
            "List its position in genenc.channels_last_outputs and give the slot the shape [C, h, w], or have that "
            "list empty if it is right so"
        )
    for slot in found.outputs:
        if len(slot.shape) == 3 and tokens.map_axes((1, *slot.shape), (size.height, size.width)) == (False, True):
            raise errors.InputError(
                f"output slot {slot.name!r} of {found.model_id!r} has the shape {list(slot.shape)}, which is a map "
                f"[h, w, C] and none [C, h, w] of images of {size.height} x {size.width} pixels. {remedy}"
            )


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
        calls.alone(encoder, torch.zeros(smallest, 3, *encoder.input_size, device=encoder.device))
    except errors.EncoderError as error:
        raise errors.InputError(str(error)) from error
    except Exception as error:  # every runtime has exceptions of its own
        height, width = encoder.input_size
        form = (model.spec.genenc and model.spec.genenc.input) or spec.ArtifactInput()
        raise errors.InputError(
            f"the artifact of model spec {model.spec.model_id!r} fails at a batch of {smallest} of {height} x {width} "
            f"pixels: {wording.reason(error)}. It was given {form.describe()}. The spec's inputs, genenc.input or "
            "batch_mode are not the file's: correct them, or export the model again."
        ) from error


def _is_model_of(built: sources.BuiltEncoder, found: spec.RuntimeModelSpec) -> bool:
    return _essence(describe.spec_for(built, model_id=found.model_id)) == _essence(found)


def _essence(found: spec.RuntimeModelSpec) -> tuple[object, ...]:
    """Return what two specs of the same model share, wherever its weights file lies."""
    block = found.genenc or spec.GenencBlock()
    source = block.source and (block.source.kind, block.source.name, block.source.layers, block.source.arguments)
    return source, block.weights_sha256, block.code, block.files, block.mean, block.std, found.inputs, found.outputs


def _drop_oldest(cache: dict[Any, Any], kept: int) -> None:
    while len(cache) > kept:
        del cache[next(iter(cache))]
