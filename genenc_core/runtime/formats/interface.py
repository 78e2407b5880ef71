"""The interface of export formats: export targets, loaded files, and the functions of a format."""

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from genenc_core import errors, spec
from genenc_core.runtime import artifact_kinds
from genenc_core.system import torch_compat

Runner = Callable[[torch.Tensor], Sequence[torch.Tensor]]
FileRunner = Callable[[torch.Tensor], Sequence[torch.Tensor] | Mapping[str, torch.Tensor]]
"""runner of an unadapted file: outputs by position, or by name in an order that may vary"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Declared:
    """A file's declaration of its input."""

    dtype: str
    """torch's name (float16, int64), or the file's own name if torch has none"""
    shape: tuple[int | None, ...] | None = None
    """including the batch; None for dynamic sizes, or if unknown"""
    hint: bool = False
    """whether the dtype is that of the weights, so that the file may accept another"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Loaded:
    """A loaded artifact."""

    run: FileRunner
    declared: Declared | None = None
    concurrent: bool = False
    """whether concurrent calls of `run` are known not to affect each other's results"""
    batch_statistics: bool = False
    """whether it is known to normalise with the batch's mean and variance although it has learned ones"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """Inputs and outputs of an artifact to export."""

    example: torch.Tensor
    """float32 [B, 3, H, W]; B is at least 2 unless the batch is fixed, because exporters treat 1 as a constant"""
    batch: tuple[int, int]
    """minimum and maximum images per call; equal: fixed"""
    sizes: spec.SizeRange | None
    """accepted image sizes; none: only the example's"""
    outputs: tuple[str, ...]
    """names of the output slots"""

    def program(self, module: nn.Module) -> torch.export.ExportedProgram:
        """Return `module` as an exported program with this batch and these sizes.

        Raises:
            ExportError: torch.export does not support the model; with its reason.
        """
        torch_compat.prepare_fake_tensors()
        try:
            return self._export(module, deferred=False)
        except Exception as error:  # exporting runs the model's own code
            if self.sizes is not None:
                # The program then checks at run time what torch cannot prove for all sizes, such as a rounding.
                with contextlib.suppress(Exception):
                    return self._export(module, deferred=True)
            raise errors.ExportError(
                f"torch.export cannot export this model{' with dynamic sizes' if self.sizes else ''}: "
                f"{errors.reason(error)}. Use --formats torchscript, or --backend eager"
                f"{', or omit --dynamic-size' if self.sizes else ''}."
            ) from error

    def _export(self, module: nn.Module, *, deferred: bool) -> torch.export.ExportedProgram:
        with torch.no_grad(), torch_compat.quiet_export():
            return torch.export.export(
                module,
                (self.example,),
                dynamic_shapes=self._dynamic(),
                prefer_deferred_runtime_asserts_over_guards=deferred,
            )

    def _dynamic(self) -> tuple[dict[int, Any]] | None:
        dims: dict[int, Any] = {}
        if self.batch[0] < self.batch[1]:
            dims[0] = torch.export.Dim("batch", min=self.batch[0], max=self.batch[1])
        if self.sizes is not None:
            step = self.sizes.multiple
            for axis, name in enumerate(("height", "width")):
                low, high = self.sizes.min[axis] // step, self.sizes.max[axis] // step
                if low < high:
                    count = torch.export.Dim(name, min=low, max=high)
                    # Stated as a multiple, so that torch can prove shapes that are halved and doubled again.
                    dims[2 + axis] = step * count if step > 1 else count
        return (dims,) if dims else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Format:
    """An export format: its names, and functions to export, check and load artifacts."""

    kind: artifact_kinds.ArtifactKind
    backend: spec.BackendName
    """the name in specs"""
    suffix: str
    runs_code: bool
    """whether loading a file can run code from it"""
    cpu_only: bool
    torch_rule: Literal["same", "not newer", "any"]
    """required relation between the version of torch (major.minor) that wrote an artifact and the one that runs it"""
    require: Callable[[nn.Module | None], None]
    """raise ExportError or InputError if this machine lacks requirements; given a module, those for its export"""
    compile: Callable[[nn.Module, Target, Path], None]
    facts: Callable[[Path], Mapping[str, str]]
    """read requirements from a file without loading it: device, torch, isa, machine, system, schema, opset, ir"""
    load: Callable[[Path, torch.device, Path | None], Loaded]
    """load a checked file onto a device; the folder is for temporary files"""


def require_one_input(path: Path, names: Sequence[str]) -> None:
    """Check that a file has one input.

    Raises:
        InputError: it has none, or several.
    """
    if len(names) != 1:
        inputs = f"has the inputs {', '.join(names[:8])}" if names else "has no input"
        raise errors.InputError(
            f"{str(path)!r} {inputs}, but an image encoder takes one tensor of images. Export it again with the "
            "others as constants, or wrap it and give package.module:factory."
        )


def tensors(outputs: object) -> Sequence[torch.Tensor] | Mapping[str, torch.Tensor]:
    """Return a module's output (tensor, sequence, dict or named tuple) as a sequence, or by name."""
    if isinstance(outputs, torch.Tensor):
        return (outputs,)
    if isinstance(outputs, dict):
        return {str(name): value for name, value in outputs.items()}
    fields = getattr(outputs, "_fields", None)
    values: tuple[torch.Tensor, ...] = tuple(outputs)  # type: ignore[arg-type]
    return values if fields is None else dict(zip(fields, values, strict=True))
