"""From a spec or a built model to an `Encoder`: the backend that runs it, and the sizes that it takes."""

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import torch

from genenc_core import errors, spec
from genenc_core.export import describe, loading
from genenc_core.export.devices import resolve_device
from genenc_core.export.eager import keeps_no_state, runner
from genenc_core.export.encoder import BackendKind, Encoder
from genenc_core.export.execution import Execution
from genenc_core.export.formats import record, table
from genenc_core.models import own_code, sources, state_files, weights, wording
from genenc_core.models import trust as trust_rules

__all__ = ["BackendKind", "Encoder", "choose_backend", "eager_encoder", "load_encoder", "resized", "resolve_device"]

DEFAULT = Execution()


def eager_encoder(built: sources.BuiltEncoder, *, device: str = "cpu", how: Execution = DEFAULT) -> Encoder:
    """Run a built model as it is; on another device than the CPU, or compiled, a copy of it runs.

    Raises:
        InputError: no such device, or one that cannot compute so.
    """
    model_spec = describe.spec_for(built, model_id=f"{describe.file_stem(built)}_eager")
    return _eager(built, model_spec, resolve_device(device), how)


def load_encoder(
    model_spec: spec.RuntimeModelSpec,
    *,
    backend: Literal["auto", "eager", spec.ExportFormat] = "auto",
    device: str = "auto",
    trust: bool = False,
    scratch: Path | None = None,
    digests: Mapping[int, str] | None = None,
    how: Execution = DEFAULT,
) -> Encoder:
    """Load what a spec names: its artifact or variants, or (`eager`, and `auto` without any) the model it was made of.

    All but ONNX files can run code, so they are loaded only with the digest that the spec records (or the caller, in
    `digests`, with the keys of `loading.artifact_files`), or on `trust`. Code that the spec names needs `trust`.
    `device` `auto` is the first CUDA device where the backend can use one. `scratch` is where files are copied for a
    moment.

    Raises:
        InputError: missing, changed, unknown, untrusted or foreign artifact, another platform, or unusable weights.
        SpecError: a spec that does not describe an image encoder.
    """
    model_spec = describe.canonical(model_spec)
    describe.check_image_spec(model_spec)
    kind = choose_backend(model_spec, backend)
    if kind == "eager":
        return _eager(_rebuilt(model_spec, trusted=trust), model_spec, resolve_device(device), how)
    run, loaded, where = loading.load(model_spec, device=device, trust=trust, scratch=scratch, digests=digests)
    how.check(kind, where.type)
    return Encoder(
        model_spec,
        run,
        backend=kind,
        device=where,
        concurrent=loaded.concurrent,
        batch_statistics=loaded.batch_statistics,
    )


def choose_backend(model_spec: spec.RuntimeModelSpec, wanted: str) -> BackendKind:
    """Return the backend that runs a spec.

    Raises:
        InputError: the spec has nothing to run, or is for another backend than the one wanted.
    """
    source = model_spec.genenc.source if model_spec.genenc else None
    if wanted == "eager":
        return "eager"
    files = loading.artifact_files(model_spec)
    if not files and wanted == "auto" and source:
        return "eager"
    if not files:
        raise errors.InputError(
            f"model spec {model_spec.model_id!r} names no weights_path, so there is nothing to run. Export the model "
            "with genenc export, or give the model by its name."
        )
    kinds = {file.format for file in files.values()}
    if wanted != "auto" and kinds != {wanted}:
        own = ", ".join(sorted(table.FORMATS[kind].backend for kind in kinds))
        raise errors.InputError(
            f"model spec {model_spec.model_id!r} is for the backend {own}, but {wanted!r} was asked for. Use --backend "
            "auto, or the spec of the other artifact."
        )
    return next(iter(files.values())).format


def resized(
    model_spec: spec.RuntimeModelSpec,
    size: tuple[int, int],
    *,
    backend: BackendKind,
    device: str = "auto",
    trust: bool = False,
) -> spec.RuntimeModelSpec:
    """Return the spec at another size (height, width) of its range: input, preprocessing, and the outputs measured.

    Raises:
        InputError: the spec has one size only, or the size is outside its range; else as `load_encoder`.
    """
    own = tuple(model_spec.inputs[0].shape[-2:])
    allowed = model_spec.genenc.dynamic_size if model_spec.genenc else None
    if size == own:
        return model_spec
    if allowed is None:
        raise errors.InputError(
            f"--image-size {size[0]}x{size[1]} differs from the spec's input {list(own)}: its artifact has a fixed "
            "size; export the model again with that size, or with --dynamic-size"
        )
    if not allowed.takes(*size):
        raise errors.InputError(
            f"--image-size {size[0]}x{size[1]} is outside what the spec's artifact takes: {allowed.describe()}. Give "
            "a size of that range, or export the model again with that size."
        )
    changed = describe.at_size(model_spec, size)
    if backend == "eager":
        built = sources.build_encoder(_request(changed, trusted=trust))
        return changed.model_copy(update={"outputs": built.outputs})
    run, _, where = loading.load(changed, device=device, trust=trust, scratch=None)
    return changed.model_copy(update={"outputs": _measured(changed, run, where)})


def _measured(model_spec: spec.RuntimeModelSpec, run: record.Runner, device: torch.device) -> tuple[spec.SlotSpec, ...]:
    """Return the output slots with the shapes that a dry run gives."""
    count = model_spec.resolved_batch_mode().min
    shape = model_spec.inputs[0].shape
    try:
        with torch.inference_mode():
            outputs = run(torch.rand((count, *shape)).to(device))
    except Exception as error:  # every runtime has exceptions of its own
        raise errors.InputError(
            f"the artifact of {model_spec.model_id!r} fails at images of {shape[1]} x {shape[2]} pixels, which its "
            f"spec says it takes: {wording.reason(error)}. Correct genenc.dynamic_size, or give another --image-size."
        ) from error
    if len(outputs) != len(model_spec.outputs):
        raise errors.InputError(
            f"the artifact of {model_spec.model_id!r} gives {len(outputs)} outputs, its spec {len(model_spec.outputs)}."
        )
    return tuple(
        slot.model_copy(update={"shape": tuple(tensor.shape[1:])})
        for slot, tensor in zip(model_spec.outputs, outputs, strict=True)
    )


def _rebuilt(model_spec: spec.RuntimeModelSpec, *, trusted: bool) -> sources.BuiltEncoder:
    """Build the eager model that the spec was made of, and check that it is the same one."""
    block = model_spec.genenc
    if block is None or block.source is None:
        raise errors.InputError(
            f"model spec {model_spec.model_id!r} does not say which model it was made of, so it cannot run eager. Use "
            "--backend auto for its artifact, or give the model by its name."
        )
    request = _request(model_spec, trusted=trusted)
    built = sources.build_encoder(request)
    name, origin = request.name, block.source
    _refuse_other_code(model_spec.model_id, block, built)
    # Earlier versions recorded the digest of nothing for a model without tensors.
    if block.weights_sha256 not in (None, weights.OF_NOTHING) and built.weights_sha256 != block.weights_sha256:
        raise errors.InputError(
            f"the weights {origin.weights!r} of {name!r} are not those of model spec {model_spec.model_id!r}: sha256 "
            f"{(built.weights_sha256 or 'none')[:12]}..., recorded {block.weights_sha256[:12]}.... Give the right "
            "weights, or export the model again."
        )
    same = ((block.mean or built.mean, block.std or built.std), tuple((s.name, s.shape) for s in model_spec.outputs))
    if same != ((built.mean, built.std), tuple((slot.name, slot.shape) for slot in built.outputs)):
        raise errors.InputError(
            f"model spec {model_spec.model_id!r} declares a different mean, std or outputs than {name!r} has here. "
            "Write the spec again with genenc export."
        )
    return built


def _refuse_other_code(who: str, block: spec.GenencBlock, built: sources.BuiltEncoder) -> None:
    """Raise when the code, or a file that it declares, is not the one recorded; older specs record none."""
    for what, recorded, now in (("code", block.code, built.own.code), ("data", block.files, built.own.files)):
        # A spec with code but no files is of code that declared none.
        if (recorded is not None or block.code is not None) and (recorded or {}) != now:
            raise errors.InputError(
                f"the {what} of {built.request.name!r} differs from that which model spec {who!r} was made with: "
                f"{own_code.describe_difference(recorded or {}, now)}. Put back what was there, or start over: another "
                "--out for a run, genenc export for a spec."
            )


def _request(model_spec: spec.RuntimeModelSpec, *, trusted: bool) -> sources.ModelRequest:
    """Return the request that builds the eager model of a spec whose source is known.

    Raises:
        InputError: it names code that is neither `trusted` nor known.
    """
    assert model_spec.genenc is not None
    assert model_spec.genenc.source is not None
    origin, size = model_spec.genenc.source, describe.preprocessing_of(model_spec)
    if origin.kind == "factory" and origin.arguments is None:
        raise errors.InputError(
            f"model spec {model_spec.model_id!r} is of a model file, whose arguments it does not hold. Export the "
            "model file again with genenc export."
        )
    code = trust_rules.code_of(origin.kind, origin.name, origin.arguments)
    trust_rules.require(code, who=f"model spec {model_spec.model_id!r}", trust=trusted)
    return sources.ModelRequest(
        name=origin.name if origin.kind == "python" else f"{origin.kind}/{origin.name}",
        weights=origin.weights,
        # A spec without the word is older than it, or of a file that has no entries.
        weights_key=origin.weights_key or state_files.PLAIN,
        image_size=(size.height, size.width),
        layers=origin.layers or (),
        arguments=origin.arguments,
    )


def _eager(
    built: sources.BuiltEncoder, model_spec: spec.RuntimeModelSpec, device: torch.device, how: Execution
) -> Encoder:
    how.check("eager", device.type)
    return Encoder(
        model_spec,
        runner(built.module, device, how),
        backend="eager",
        device=device,
        tf32=how.precision != "float32",
        concurrent=not how.compile and keeps_no_state(built),
    )
