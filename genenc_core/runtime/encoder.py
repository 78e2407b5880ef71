"""The `Encoder` for eager modules and artifacts, which checks the inputs and outputs of every call."""

import copy
from typing import Literal

import torch
from torch import nn

from genenc_core import errors, spec
from genenc_core.runtime import describe
from genenc_core.runtime.formats import interface

BackendKind = Literal["eager", spec.ExportFormat]


class Encoder:
    """A model ready to run: float32 [B, C, H, W] in [0, 1], usually RGB -> {slot: float32 [B, C, h, w]}.

    Every call is checked, for clear errors, and because AOTInductor packages may compute wrong numbers otherwise.
    """

    def __init__(
        self,
        model_spec: spec.RuntimeModelSpec,
        run: interface.Runner,
        *,
        backend: BackendKind,
        device: torch.device,
        tf32: bool = False,
        concurrent: bool = False,
        batch_statistics: bool = False,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        """`concurrent`: calls from several threads do not affect each other; ignored on devices other than the CPU.

        `batch_statistics`: as in `interface.Loaded`. `dtype`: of images and outputs.
        """
        self.spec = model_spec
        self.backend = backend
        self.device = device
        self.outputs = model_spec.outputs
        self.preprocessing = describe.preprocessing_of(model_spec)
        self.concurrent = concurrent and device.type == "cpu"
        self.input_size = (self.preprocessing.height, self.preprocessing.width)
        self.channels = model_spec.inputs[0].shape[0]
        self.batch_statistics = batch_statistics
        self.dtype = dtype
        self._slot = model_spec.inputs[0].name
        self._batch = model_spec.resolved_batch_mode()
        self._run = run
        self._tf32 = tf32

    @property
    def module(self) -> nn.Module | None:
        """The eager module that it calls as it is, on the CPU; None for all else."""
        return self._run if isinstance(self._run, nn.Module) else None

    def in_float64(self) -> "Encoder":
        """Return the same model with all its tensors in float64, for images in float64, which returns float64.

        Raises:
            InputError: it is not an eager model in float32 on the CPU, or cannot be copied.
        """
        if self.module is None:
            raise errors.InputError(f"model {self.spec.model_id!r} ({self.backend}) cannot compute in float64")
        try:
            module = copy.deepcopy(self.module).double()
        except Exception as error:  # user models may raise anything
            raise errors.InputError(
                f"model {self.spec.model_id!r} cannot be copied to float64: {errors.reason(error)}"
            ) from error
        return Encoder(
            self.spec,
            module,
            backend=self.backend,
            device=self.device,
            concurrent=self.concurrent,
            batch_statistics=self.batch_statistics,
            dtype=torch.float64,
        )

    def __call__(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        """Encode float32 [B, C, H, W] in [0, 1], usually RGB, contiguous, on `device`; return contiguous float32 maps.

        Raises:
            EncoderError: rank, shape, dtype, strides, device or batch size, or the outputs, violate the spec.
        """
        self._check_input(images)
        if self.device.type == "cuda":
            # Process-wide, so set on every call; by default torch allows tf32 in convolutions.
            torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = self._tf32
        elif torch.get_float32_matmul_precision() != "highest":
            # Otherwise CPUs with bfloat16 instructions multiply in it.
            torch.set_float32_matmul_precision("highest")
        with torch.inference_mode():
            outputs = self._run(images)
        if len(outputs) != len(self.outputs):
            raise self._error(f"returned {len(outputs)} outputs, but its spec declares {len(self.outputs)}")
        return {
            slot.name: self._checked(slot, tensor, images.shape[0])
            for slot, tensor in zip(self.outputs, outputs, strict=True)
        }

    def _check_input(self, images: torch.Tensor) -> None:
        expected = (self.channels, *self.input_size)
        if images.ndim != 4 or tuple(images.shape[1:]) != expected:
            raise self._error(
                f"slot {self._slot!r} takes [B, {expected[0]}, {expected[1]}, {expected[2]}], got {list(images.shape)}"
                "; fit the images to the spec's preprocessing first"
            )
        if images.dtype != self.dtype:
            raise self._error(
                f"slot {self._slot!r} takes {_name(self.dtype)}, got {images.dtype}; convert bytes with "
                "images.float() / 255"
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
        batch, limit = images.shape[0], self._batch.max
        if batch < self._batch.min or (limit and batch > limit):
            raise self._error(
                f"slot {self._slot!r} takes batches of {self._batch.describe()}, got {batch}; split the batch or pad it"
            )

    def _checked(self, slot: spec.SlotSpec, tensor: object, batch: int) -> torch.Tensor:
        if not isinstance(tensor, torch.Tensor):
            raise self._error(f"output {slot.name!r} is a {type(tensor).__name__}, not a tensor")
        if tuple(tensor.shape) != (batch, *slot.shape) or tensor.dtype != self.dtype:
            raise self._error(
                f"output {slot.name!r} is {tensor.dtype} {list(tensor.shape)}, but its spec declares "
                f"{_name(self.dtype)} {[batch, *slot.shape]}; the spec belongs to another model or version"
            )
        return tensor.contiguous()

    def _error(self, problem: str) -> errors.EncoderError:
        return errors.EncoderError(f"model {self.spec.model_id!r} ({self.backend}): {problem}.")


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
