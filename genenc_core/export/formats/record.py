"""What an export aims at, and what every format is able to do."""

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from genenc_core import errors, spec, spec_rules, torch_faults, torch_logs
from genenc_core.export import artifacts
from genenc_core.models import wording

Runner = Callable[[torch.Tensor], Sequence[torch.Tensor]]
FileRunner = Callable[[torch.Tensor], Sequence[torch.Tensor] | Mapping[str, torch.Tensor]]
"""of a file as it is: by place, or by name where it has names, in an order that may vary"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Declared:
    """What a file says of its one input."""

    dtype: str
    """torch's name of it (float16, int64), or the file's own where torch has none"""
    shape: tuple[int | None, ...] | None = None
    """with the batch; None for a size that is not fixed, or for all of it"""
    hint: bool = False
    """whether the dtype is that of the weights, and the file may take another"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Loaded:
    """An artifact that was loaded."""

    run: FileRunner
    declared: Declared | None = None
    concurrent: bool = False
    """whether it is known that `run` may be called from several threads at once, and no call changes another's result
    """
    batch_statistics: bool = False
    """whether it is known to normalise by the mean and variance of the batch, although it has learnt ones"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """What one artifact takes and gives."""

    example: torch.Tensor
    """float32 [B, 3, H, W]; B is 2 or more unless the batch is fixed: exporters take 1 for a constant"""
    batch: tuple[int, int]
    """fewest and most images of one call; equal: fixed"""
    sizes: spec.SizeRange | None
    """the image sizes that the artifact takes; none: the example's alone"""
    outputs: tuple[str, ...]
    """names of the output slots"""

    def program(self, module: nn.Module) -> torch.export.ExportedProgram:
        """Return `module` as an exported program with this batch and these sizes.

        Raises:
            ExportError: torch.export refuses the model; its reason is told.
        """
        torch_faults.before_fake_tensors()
        try:
            return self._exported(module, deferred=False)
        except Exception as error:  # exporting runs the model's own code
            if self.sizes is not None:
                # What torch cannot prove of all sizes, such as a rounding, the program then checks when it runs.
                with contextlib.suppress(Exception):
                    return self._exported(module, deferred=True)
            raise errors.ExportError(
                f"torch.export cannot export this model{' with dynamic sizes' if self.sizes else ''}: "
                f"{wording.reason(error)}. Use --formats torchscript, or --backend eager"
                f"{', or leave --dynamic-size out' if self.sizes else ''}."
            ) from error

    def _exported(self, module: nn.Module, *, deferred: bool) -> torch.export.ExportedProgram:
        with torch.no_grad(), torch_logs.without_prints():
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
                least, most = self.sizes.min[axis] // step, self.sizes.max[axis] // step
                if least < most:
                    count = torch.export.Dim(name, min=least, max=most)
                    # Told as a multiple, so that what halves and doubles a size keeps its shape in the proof.
                    dims[2 + axis] = step * count if step > 1 else count
        return (dims,) if dims else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Format:
    """One kind of artifact: how it is named, made, checked and run."""

    kind: artifacts.ArtifactKind
    backend: spec_rules.BackendName
    """the name that a spec carries"""
    suffix: str
    runs_code: bool
    """whether loading a file can run code from it"""
    cpu_only: bool
    torch_rule: Literal["same", "not newer", "any"]
    """which torch may run an artifact, against the one that wrote it (major.minor)"""
    require: Callable[[nn.Module | None], None]
    """raise ExportError or InputError when this machine lacks what the format needs; with a module: to export it"""
    compile: Callable[[nn.Module, Target, Path], None]
    facts: Callable[[Path], Mapping[str, str]]
    """read from a file, without loading it, what it needs: device, torch, isa, machine, system, schema, opset, ir"""
    load: Callable[[Path, torch.device, Path | None], Loaded]
    """load a checked file onto a device; the folder is for what must be unpacked for a moment"""


def require_one_input(path: Path, names: Sequence[str]) -> None:
    """Check how many tensors a file takes.

    Raises:
        InputError: none, or several.
    """
    if len(names) != 1:
        several = f"has the inputs {', '.join(names[:8])}" if names else "has no input"
        raise errors.InputError(
            f"{str(path)!r} {several}, but an image encoder takes one tensor of images. Export it again with the "
            "others made constant, or wrap it and give package.module:factory."
        )


def tensors(outputs: object) -> Sequence[torch.Tensor] | Mapping[str, torch.Tensor]:
    """Return what a module gave as a sequence, or by its names."""
    if isinstance(outputs, torch.Tensor):
        return (outputs,)
    if isinstance(outputs, dict):
        return {str(name): value for name, value in outputs.items()}
    fields = getattr(outputs, "_fields", None)
    found: tuple[torch.Tensor, ...] = tuple(outputs)  # type: ignore[arg-type]
    return found if fields is None else dict(zip(fields, found, strict=True))
