"""One `Encoder` for eager modules and artifacts alike, which checks every call and what comes back."""

import copy
from pathlib import Path
from typing import Literal

import torch

from genenc_core import errors, spec
from genenc_core.export import artifacts, describe
from genenc_core.models import sources

BackendKind = Literal["eager", "torchscript", "aotinductor"]

_ARTIFACT_KINDS: dict[BackendKind, Literal["TorchScript", "AOTInductor"]] = {
    "torchscript": "TorchScript",
    "aotinductor": "AOTInductor",
}


class Encoder:
    """A model ready to run: float32 RGB [B, 3, H, W] in [0, 1] -> {slot: float32 [B, C, h, w]}.

    Every call is checked, because an AOTInductor package checks nothing: wrong sizes or strides give wrong numbers.
    """

    def __init__(
        self, model_spec: spec.RuntimeModelSpec, run: artifacts.Runner, *, backend: BackendKind, device: torch.device
    ) -> None:
        self.spec = model_spec
        self.backend = backend
        self.device = device
        self.outputs = model_spec.outputs
        self.preprocessing = describe.preprocessing_of(model_spec)
        self.input_size = (self.preprocessing.height, self.preprocessing.width)
        self._slot = model_spec.inputs[0].name
        self._batch = model_spec.resolved_batch_mode()
        self._run = run

    def __call__(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        """Encode float32 RGB [B, 3, H, W] in [0, 1], contiguous, on `device`; return contiguous float32 maps.

        Raises:
            EncoderError: rank, shape, dtype, strides, device or batch size against the spec, or outputs against it.
        """
        self._check_input(images)
        with torch.inference_mode():
            found = self._run(images)
        if len(found) != len(self.outputs):
            raise self._error(f"returned {len(found)} outputs, but its spec declares {len(self.outputs)}")
        return {
            slot.name: self._checked(slot, tensor, images.shape[0])
            for slot, tensor in zip(self.outputs, found, strict=True)
        }

    def _check_input(self, images: torch.Tensor) -> None:
        expected = (3, *self.input_size)
        if images.ndim != 4 or tuple(images.shape[1:]) != expected:
            raise self._error(
                f"slot {self._slot!r} takes [B, 3, {expected[1]}, {expected[2]}], got {list(images.shape)}; fit the "
                "images to the spec's preprocessing first"
            )
        if images.dtype != torch.float32:
            raise self._error(
                f"slot {self._slot!r} takes float32, got {images.dtype}; convert bytes with images.float() / 255"
            )
        if images.device != self.device:
            raise self._error(
                f"slot {self._slot!r} takes tensors on {self.device}, got one on {images.device}; move it with "
                f"images.to({str(self.device)!r})"
            )
        if not images.is_contiguous():
            raise self._error(
                f"slot {self._slot!r} takes contiguous tensors, got strides {images.stride()}; call .contiguous()"
            )
        batch, most = images.shape[0], self._batch.max
        if batch < self._batch.min or (most and batch > most):
            raise self._error(
                f"slot {self._slot!r} takes batches of {self._batch.describe()}, got {batch}; split the batch or pad it"
            )

    def _checked(self, slot: spec.SlotSpec, tensor: object, batch: int) -> torch.Tensor:
        if not isinstance(tensor, torch.Tensor):
            raise self._error(f"output {slot.name!r} is a {type(tensor).__name__}, not a tensor")
        if tuple(tensor.shape) != (batch, *slot.shape) or tensor.dtype != torch.float32:
            raise self._error(
                f"output {slot.name!r} is {tensor.dtype} {list(tensor.shape)}, but its spec declares float32 "
                f"{[batch, *slot.shape]}; the spec belongs to another model or version"
            )
        return tensor.contiguous()

    def _error(self, what: str) -> errors.EncoderError:
        return errors.EncoderError(f"model {self.spec.model_id!r} ({self.backend}): {what}.")


def eager_encoder(built: sources.BuiltEncoder, *, device: str = "cpu") -> Encoder:
    """Run a built model as it is; on another device than the CPU a copy of it runs.

    Raises:
        InputError: no such device.
    """
    model_spec = describe.spec_for(built, model_id=f"{describe.file_stem(built)}_eager")
    return _eager(built, model_spec, resolve_device(device))


def load_encoder(
    model_spec: spec.RuntimeModelSpec,
    *,
    backend: Literal["auto", "eager", "torchscript", "aotinductor"] = "auto",
    device: str = "auto",
    trust: bool = False,
    scratch: Path | None = None,
) -> Encoder:
    """Load what a spec names: its artifact, or (`eager`, and `auto` without one) the model it was made of.

    TorchScript and AOTInductor files run code, so they are loaded only with the digest that the spec records, or on
    `trust`. `device` `auto` is the first CUDA device where the backend can use one. `scratch` is where an AOTInductor
    package is unpacked for a moment.

    Raises:
        InputError: missing, changed, unknown, untrusted or foreign artifact, another platform, or unusable weights.
        SpecError: a spec that does not describe an image encoder.
    """
    describe.check_image_spec(model_spec)
    kind = choose_backend(model_spec, backend)
    if kind == "eager":
        return _eager(_rebuilt(model_spec), model_spec, resolve_device(device))
    path = Path(model_spec.weights_path or "")
    artifacts.require_kind(path, _ARTIFACT_KINDS[kind])
    _check_digest(model_spec, path, trust=trust)
    if kind == "torchscript":
        where = resolve_device(device)
        return Encoder(model_spec, artifacts.load_torchscript(path, device=where), backend=kind, device=where)
    artifacts.check_platform(path, artifacts.package_metadata(path))
    if device not in ("auto", "cpu"):
        raise errors.InputError(
            f"the package {str(path)!r} runs on the CPU, not on {device!r}. Use --device cpu, or --backend torchscript "
            "or eager on that device."
        )
    run = artifacts.load_aotinductor(path, scratch=scratch)
    return Encoder(model_spec, run, backend=kind, device=torch.device("cpu"))


def choose_backend(model_spec: spec.RuntimeModelSpec, wanted: str) -> BackendKind:
    """Return the backend that runs a spec.

    Raises:
        InputError: the spec has nothing to run, or is for another backend than the one wanted.
    """
    source = model_spec.genenc.source if model_spec.genenc else None
    if wanted == "eager" or (wanted == "auto" and not model_spec.weights_path and source):
        return "eager"
    if not model_spec.weights_path:
        raise errors.InputError(
            f"model spec {model_spec.model_id!r} names no weights_path, so there is nothing to run. Export the model "
            "with genenc export, or give the model by its name."
        )
    own = model_spec.resolved_backend()
    kind = next((kind for kind, name in _ARTIFACT_KINDS.items() if name == own), None)
    if kind is None:
        raise errors.InputError(
            f"model spec {model_spec.model_id!r} is for the backend {own} ({model_spec.weights_path!r}), which genenc "
            "does not run. It runs TorchScript (.pt) and AOTInductor (.pt2)."
        )
    if wanted not in ("auto", kind):
        raise errors.InputError(
            f"model spec {model_spec.model_id!r} is for the backend {own}, but {wanted!r} was asked for. Use --backend "
            "auto, or the spec of the other artifact."
        )
    return kind


def _check_digest(model_spec: spec.RuntimeModelSpec, path: Path, *, trust: bool) -> None:
    recorded = model_spec.genenc.artifact if model_spec.genenc else None
    if recorded is None:
        if trust:
            return
        raise errors.InputError(
            f"model spec {model_spec.model_id!r} records no digest of {str(path)!r}, and loading that file runs code "
            "from it. If you know where it comes from, load it with --trust."
        )
    found = artifacts.file_sha256(path)
    if found != recorded.sha256:
        raise errors.InputError(
            f"the artifact {str(path)!r} is not the one its spec was written for: sha256 {found[:12]}..., recorded "
            f"{recorded.sha256[:12]}.... It was changed or damaged; export the model again with genenc export."
        )


def _rebuilt(model_spec: spec.RuntimeModelSpec) -> sources.BuiltEncoder:
    """Build the eager model that the spec was made of, and check that it is the same one."""
    block = model_spec.genenc
    if block is None or block.source is None:
        raise errors.InputError(
            f"model spec {model_spec.model_id!r} does not say which model it was made of, so it cannot run eager. Use "
            "--backend auto for its artifact, or give the model by its name."
        )
    origin, size = block.source, describe.preprocessing_of(model_spec)
    name = origin.name if origin.kind == "python" else f"{origin.kind}/{origin.name}"
    built = sources.build_encoder(
        sources.ModelRequest(
            name=name,
            weights=origin.weights,
            image_size=(size.height, size.width),
            layers=origin.layers or (),
            arguments=origin.arguments,
        )
    )
    if block.weights_sha256 and built.weights_sha256 != block.weights_sha256:
        raise errors.InputError(
            f"the weights {origin.weights!r} of {name!r} are not those of model spec {model_spec.model_id!r}: sha256 "
            f"{built.weights_sha256[:12]}..., recorded {block.weights_sha256[:12]}.... Give the right weights, or "
            "export the model again."
        )
    same = ((block.mean or built.mean, block.std or built.std), tuple((s.name, s.shape) for s in model_spec.outputs))
    if same != ((built.mean, built.std), tuple((slot.name, slot.shape) for slot in built.outputs)):
        raise errors.InputError(
            f"model spec {model_spec.model_id!r} declares another mean, std or outputs than {name!r} has here. Write "
            "the spec again with genenc export."
        )
    return built


def _eager(built: sources.BuiltEncoder, model_spec: spec.RuntimeModelSpec, device: torch.device) -> Encoder:
    module = built.module if device.type == "cpu" else copy.deepcopy(built.module).to(device)
    return Encoder(model_spec, module, backend="eager", device=device)


def resolve_device(name: str) -> torch.device:
    """Return the device `name`, with an index for CUDA; `auto` prefers CUDA.

    Raises:
        InputError: no such device here; nothing else is used in its place.
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
            f"device {name!r} cannot be used: torch {torch.__version__} sees {torch.cuda.device_count()} CUDA devices "
            "here. Give auto, cpu, or one that is there."
        )
    return torch.device("cuda", index)
