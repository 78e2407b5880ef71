"""Creation of an `Encoder` on a device from a spec or a built model."""

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import torch

from genenc_core import errors, spec
from genenc_core.models import resolve, state_files, user_code, weights
from genenc_core.models import trust as trust_rules
from genenc_core.runtime import describe, loading
from genenc_core.runtime.eager import is_stateless, runner
from genenc_core.runtime.encoder import BackendKind, Encoder
from genenc_core.runtime.execution import Execution
from genenc_core.runtime.formats import interface, table

__all__ = ["BackendKind", "Encoder", "choose_backend", "eager_encoder", "load_encoder", "resized", "resolve_device"]

DEFAULT = Execution()


def resolve_device(name: str) -> torch.device:
    """Return the device `name`, with an index for CUDA; `auto` prefers CUDA.

    Raises:
        InputError: no such device; there is no fallback.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise errors.InputError(f"there is no device {name!r}. Give auto, cpu, cuda or cuda:0.") from error
    if device.type == "cpu":
        return torch.device("cpu")
    index = device.index or 0
    if device.type != "cuda" or index >= torch.cuda.device_count():
        raise errors.InputError(
            f"device {name!r} is not available: torch {torch.__version__} sees {torch.cuda.device_count()} CUDA "
            "devices. Give auto, cpu, or an existing device."
        )
    return torch.device("cuda", index)


def eager_encoder(built: resolve.BuiltEncoder, *, device: str = "cpu", how: Execution = DEFAULT) -> Encoder:
    """Return an encoder of a built model; on another device than the CPU, or compiled, it runs a copy.

    Raises:
        InputError: no such device, or it does not support the execution options.
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
    """Load a spec's artifact or variants, or its eager model for `eager`, and for `auto` without artifacts.

    All files except ONNX can run code, so they need a digest in the spec (or in `digests`, by the keys of
    `loading.artifact_files`), or `trust`. Code that the spec names needs `trust`. `device` `auto` is the first CUDA
    device if the backend supports one. `scratch` is a folder for temporary copies of files.

    Raises:
        InputError: missing, changed, unknown, untrusted or unsupported artifact, another platform, or unusable weights.
        SpecError: the spec does not describe an image encoder.
    """
    model_spec = describe.canonical(model_spec)
    describe.check_image_spec(model_spec)
    kind = choose_backend(model_spec, backend)
    if kind == "eager":
        return _eager(_rebuild(model_spec, trusted=trust), model_spec, resolve_device(device), how)
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
        InputError: the spec has nothing to run, or is for another backend than requested.
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
            f"model spec {model_spec.model_id!r} is for the backend {own}, but {wanted!r} was requested. Use --backend "
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
    """Return the spec for another size (height, width) in its range, with outputs measured by a run.

    Raises:
        InputError: the spec has a fixed size, or the size is outside its range; else as `load_encoder`.
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
            f"--image-size {size[0]}x{size[1]} is outside the range of the spec's artifact, {allowed.describe()}. Give "
            "a size in that range, or export the model again with that size."
        )
    changed = describe.at_size(model_spec, size)
    if backend == "eager":
        built = resolve.build_encoder(_request(changed, trusted=trust))
        return changed.model_copy(update={"outputs": built.outputs})
    run, _, where = loading.load(changed, device=device, trust=trust, scratch=None)
    return changed.model_copy(update={"outputs": _measured_outputs(changed, run, where)})


def _measured_outputs(
    model_spec: spec.RuntimeModelSpec, run: interface.Runner, device: torch.device
) -> tuple[spec.SlotSpec, ...]:
    """Return the output slots with shapes measured by a run."""
    count = model_spec.resolved_batch_mode().min
    shape = model_spec.inputs[0].shape
    try:
        with torch.inference_mode():
            outputs = run(torch.rand((count, *shape)).to(device))
    except Exception as error:  # every runtime has its own exceptions
        raise errors.InputError(
            f"the artifact of {model_spec.model_id!r} fails for images of {shape[1]} x {shape[2]} pixels, which its "
            f"spec allows: {errors.reason(error)}. Correct genenc.dynamic_size, or give another --image-size."
        ) from error
    if len(outputs) != len(model_spec.outputs):
        raise errors.InputError(
            f"the artifact of {model_spec.model_id!r} returns {len(outputs)} outputs, but its spec declares "
            f"{len(model_spec.outputs)}."
        )
    return tuple(
        slot.model_copy(update={"shape": tuple(tensor.shape[1:])})
        for slot, tensor in zip(model_spec.outputs, outputs, strict=True)
    )


def _rebuild(model_spec: spec.RuntimeModelSpec, *, trusted: bool) -> resolve.BuiltEncoder:
    """Build the eager model of a spec, and check that it is the same model."""
    block = model_spec.genenc
    if block is None or block.source is None:
        raise errors.InputError(
            f"model spec {model_spec.model_id!r} does not name its source model, so it cannot run eagerly. Use "
            "--backend auto for its artifact, or give the model by name."
        )
    request = _request(model_spec, trusted=trusted)
    built = resolve.build_encoder(request)
    name, origin = request.name, block.source
    _check_code(model_spec.model_id, block, built)
    # Earlier versions recorded the empty digest for a model without tensors.
    if block.weights_sha256 not in (None, weights.EMPTY_SHA256) and built.weights_sha256 != block.weights_sha256:
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


def _check_code(model_id: str, block: spec.GenencBlock, built: resolve.BuiltEncoder) -> None:
    """Check that the code and the files it declares are the recorded ones; older specs record none."""
    for what, recorded, now in (("code", block.code, built.own.code), ("data", block.files, built.own.files)):
        # In a spec with code, no files means that the code declared none.
        if (recorded is not None or block.code is not None) and (recorded or {}) != now:
            raise errors.InputError(
                f"the {what} of {built.request.name!r} differs from the one that model spec {model_id!r} was made "
                f"with: {user_code.describe_difference(recorded or {}, now)}. Restore the original, or start over: "
                "another --out for a run, genenc export for a spec."
            )


def _statistics(model_spec: spec.RuntimeModelSpec) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    """Return the spec's mean and std of channels, which may have been given; None of RGB, whose model has them."""
    block = model_spec.genenc
    if (
        block is None
        or block.mean is None
        or block.std is None
        or describe.preprocessing_of(model_spec).channels is None
    ):
        return None
    return block.mean, block.std


def _request(model_spec: spec.RuntimeModelSpec, *, trusted: bool) -> resolve.ModelRequest:
    """Return the request for the eager model of a spec with a source.

    Raises:
        InputError: it names code that is neither `trusted` nor remembered as trusted.
    """
    assert model_spec.genenc is not None
    assert model_spec.genenc.source is not None
    origin, size = model_spec.genenc.source, describe.preprocessing_of(model_spec)
    if origin.kind == "factory" and origin.arguments is None:
        raise errors.InputError(
            f"model spec {model_spec.model_id!r} is from a model file, but does not contain its arguments. Export the "
            "model file again with genenc export."
        )
    code = trust_rules.code_of(origin.kind, origin.name, origin.arguments)
    trust_rules.require(code, who=f"model spec {model_spec.model_id!r}", trust=trusted)
    return resolve.ModelRequest(
        name=origin.name if origin.kind == "python" else f"{origin.kind}/{origin.name}",
        weights=origin.weights,
        # A spec without a key is older than the field, or its file has no entries.
        weights_key=origin.weights_key or state_files.PLAIN,
        image_size=(size.height, size.width),
        layers=origin.layers or (),
        arguments=origin.arguments,
        channels=None if size.channels is None else size.channel_count,
        statistics=_statistics(model_spec),
    )


def _eager(
    built: resolve.BuiltEncoder, model_spec: spec.RuntimeModelSpec, device: torch.device, how: Execution
) -> Encoder:
    how.check("eager", device.type)
    return Encoder(
        model_spec,
        runner(built.module, device, how),
        backend="eager",
        device=device,
        tf32=how.precision != "float32",
        concurrent=not how.compile and is_stateless(built),
    )
