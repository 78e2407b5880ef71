"""Trial run of an exported file without a spec, in a subprocess, to determine its input and outputs."""

import itertools
import json
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from genenc_core import errors, spec
from genenc_core.runtime import adaptation, consistency, input_form, loading, output_axes
from genenc_core.runtime.formats import interface
from genenc_core.system import processes

# A package has bounds; batches above 32 images gain little.
_MIN_BATCHES = (1, 2, 3, 4, 5, 6, 7, 8, 16, 32)
_MAX_BATCHES = (32, 24, 16, 12, 8, 7, 6, 5, 4, 3, 2)
_TIMEOUT_SECONDS = 600
_REJECTIONS = (RuntimeError, ValueError, TypeError, IndexError, AssertionError, torch.jit.Error)
"""exceptions of a file for images that it does not accept"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """Result of a trial: batches from `batch_min` to `batch_max` images (0: unlimited); shapes without the batch."""

    batch_min: int
    batch_max: int
    outputs: tuple[tuple[int, ...], ...]
    size: tuple[int, int]
    """height and width of the images"""
    form: spec.ArtifactInput | None = None
    """input format; None: float32 [B, 3, H, W]"""
    positions: tuple[int, ...] = ()
    """positions of `outputs` among the file's outputs"""
    channels_last: tuple[int, ...] = ()
    """positions of outputs [B, h, w, C]"""
    left_out: tuple[str, ...] = ()
    """descriptions of the other outputs"""
    channels_first: tuple[int, ...] = ()
    """positions of outputs that are lists [B, C, N]"""
    names: tuple[str, ...] = ()
    """the file's names of all its outputs; empty: it has none"""


@dataclass(slots=True)
class _Outputs:
    """The outputs of a file to keep, and their layouts."""

    positions: tuple[int, ...] = ()
    channels_last: tuple[int, ...] = ()
    channels_first: tuple[int, ...] = ()
    left_out: list[str] = field(default_factory=list)
    names: tuple[str, ...] = ()


def run_trial(model_spec: spec.RuntimeModelSpec, *, any_size: bool = False) -> Trial:
    """Run the artifact of a spec on random images of its input size, ignoring its declared outputs.

    With `any_size` a size declared by the file takes precedence over the spec's. The subprocess is needed to enable the
    input checks of a package, and because a wrong batch size may crash it.

    Raises:
        InputError: it cannot be loaded or run, accepts no batch of up to 32 images of this size, mixes the images of a
            batch, or returns no floating-point tensor.
    """
    answered = answer(model_spec.to_json(), any_size=any_size)
    if "error" in answered:
        raise errors.InputError(answered["error"])
    form = answered["form"]
    return Trial(
        batch_min=answered["batch_min"],
        batch_max=answered["batch_max"],
        outputs=tuple(tuple(shape) for shape in answered["outputs"]),
        size=tuple(answered["size"]),
        form=None if form is None else spec.ArtifactInput.model_validate(form),
        positions=tuple(answered["positions"]),
        channels_last=tuple(answered["channels_last"]),
        channels_first=tuple(answered["channels_first"]),
        left_out=tuple(answered["left_out"]),
        names=tuple(answered["names"]),
    )


def _answer_from_subprocess(spec_json: str, *, any_size: bool) -> Mapping[str, Any]:
    """Return the result of `run_here` in a subprocess.

    Raises:
        InputError: the process ended without a result.
    """
    done = subprocess.run(
        processes.command("-m", "genenc_core.runtime.artifact_trial", "any" if any_size else "same"),
        input=spec_json,
        capture_output=True,
        text=True,
        check=False,
        timeout=_TIMEOUT_SECONDS,
        # Read once per process by a package; without it a wrong size or batch gives wrong numbers.
        env=processes.environment(AOTI_RUNTIME_CHECK_INPUTS="1"),
    )
    last_line = done.stdout.strip().rpartition("\n")[2]
    if done.returncode != 0 or not last_line.startswith("{"):
        end = done.stderr.strip().rpartition("\n")[2][-300:]
        path = json.loads(spec_json)["weights_path"]
        raise errors.InputError(
            f"the artifact {path!r} crashed its trial process (exit code {done.returncode}): {end or 'no message'}."
        )
    result: Mapping[str, Any] = json.loads(last_line)
    return result


answer = _answer_from_subprocess


def find(
    run: interface.FileRunner,
    *,
    name: str,
    size: tuple[int, int],
    bounded: bool,
    forms: Sequence[spec.ArtifactInput] = (spec.ArtifactInput(),),
    channels: int = 3,
) -> Trial:
    """Try batches of images of height and width `size` in each of `forms`, and use the first form that works.

    `bounded`: the file rejects batches outside its own bounds.

    Raises:
        InputError: as `run_trial`.
    """
    form, batch_min = _first_accepted_form(run, name, size, forms, channels)
    kept = _select_outputs(run, name, form, batch_min, size, channels)
    block = spec.GenencBlock(
        input=form,
        output_positions=kept.positions,
        channels_last_outputs=kept.channels_last or None,
        channels_first_lists=kept.channels_first or None,
        output_names=kept.names or None,
    )
    adapted = adaptation.adapted(run, block)

    def takes(batch: int) -> bool:
        try:
            _outputs(adapted, batch, size, channels)
        except _REJECTIONS:
            return False
        return True

    outputs = _outputs(adapted, batch_min, size, channels)
    problem = _fault(adapted, batch_min, batch_min, size, channels)
    more = takes(batch_min + 1)
    mixed = _fault(adapted, batch_min, batch_min + 1, size, channels) if more and not problem else None
    if mixed and batch_min == 1 and _uses_batch_statistics(adapted, size, channels):
        problem = mixed
    if problem:
        raise errors.InputError(f"the artifact {name!r} {problem}, {consistency.REMEDY}")
    fixed = not more or mixed is not None
    batch_max = batch_min if fixed else _max_batch(takes, batch_min) if bounded else 0
    return Trial(
        batch_min=batch_min,
        batch_max=batch_max,
        outputs=tuple(tuple(tensor.shape[1:]) for tensor in outputs),
        size=size,
        form=None if form in (spec.ArtifactInput(), spec.ArtifactInput(channels=channels)) else form,
        positions=kept.positions,
        channels_last=kept.channels_last,
        channels_first=kept.channels_first,
        left_out=tuple(kept.left_out),
        names=kept.names,
    )


def _first_accepted_form(
    run: interface.FileRunner,
    name: str,
    size: tuple[int, int],
    forms: Sequence[spec.ArtifactInput],
    channels: int,
) -> tuple[spec.ArtifactInput, int]:
    """Return the first form that the file accepts, and its smallest batch.

    Raises:
        InputError: it accepts none; with its errors for the first form, and the remedy.
    """
    rejections: list[str] = []
    for form, batch in itertools.product(forms, _MIN_BATCHES):
        rejection = _rejection(run, form, batch, size, channels)
        if rejection is None:
            return form, batch
        if form == forms[0]:
            rejections.append(rejection)
    others = (other for other in input_form.COMMON_SIZES if other != size)
    accepted = next((other for other in others if _rejection(run, forms[0], 1, other, channels) is None), None)
    raise errors.InputError(
        input_form.rejection_message(
            name, size, list(dict.fromkeys(rejections))[:2], tried=forms, accepted_size=accepted
        )
    )


def _rejection(
    run: interface.FileRunner, form: spec.ArtifactInput, batch: int, size: tuple[int, int], channels: int
) -> str | None:
    """Return the file's error for a batch; None if it accepts the batch."""
    try:
        with torch.inference_mode():
            adaptation.adapted(run, spec.GenencBlock(input=form))(_images(batch, size, channels))
    except _REJECTIONS as error:
        return errors.reason(error)
    return None


def _select_outputs(
    run: interface.FileRunner, name: str, form: spec.ArtifactInput, batch: int, size: tuple[int, int], channels: int
) -> _Outputs:
    """Return the outputs to keep: floating-point tensors with an entry of at least one axis per image.

    Raises:
        InputError: there is none.
    """
    selected = _Outputs()

    def select(images: torch.Tensor) -> Sequence[torch.Tensor]:
        returned = run(images)
        selected.names = tuple(returned) if isinstance(returned, Mapping) else ()
        outputs = list(returned.values()) if isinstance(returned, Mapping) else returned
        kept = []
        for position, item in enumerate(outputs):
            why = input_form.why_unusable(item, batch)
            if why is None:
                kept.append(position)
            else:
                label = selected.names[position] if selected.names else position
                selected.left_out.append(f"output {label} ({why})")
        selected.positions = tuple(kept)
        if form.layout == "NHWC":
            shapes = {position: tuple(outputs[position].shape[1:]) for position in kept}
            selected.channels_last = tuple(at for at in kept if input_form.is_channels_last(shapes[at], size))
        return [outputs[position] for position in kept]

    with torch.inference_mode():
        adaptation.adapted(select, spec.GenencBlock(input=form))(_images(batch, size, channels))
    if not selected.positions:
        returned = "; ".join(selected.left_out) or "nothing"
        raise errors.InputError(
            f"the artifact {name!r} returns no features: {returned}. Export the model so that it returns "
            "floating-point feature maps [B, C, h, w] or vectors [B, C]."
        )
    _find_axes(run, name, form, batch, size, selected, channels)
    return selected


def _find_axes(
    run: interface.FileRunner,
    name: str,
    form: spec.ArtifactInput,
    batch: int,
    size: tuple[int, int],
    selected: _Outputs,
    channels: int,
) -> None:
    """Record which outputs have another channel axis than maps [B, C, h, w] and lists [B, N, C].

    Raises:
        InputError: the layout of a map is ambiguous from its shape and its values, or has its columns before its rows.
    """

    def run_ordered(images: torch.Tensor) -> Sequence[torch.Tensor]:
        returned = run(images)
        return output_axes.ordered(returned, selected.names) if isinstance(returned, Mapping) else returned

    adapted = adaptation.adapted(run_ordered, spec.GenencBlock(input=form))
    with torch.inference_mode():
        is_last = output_axes.channels_last(adapted, selected.positions, size=size, batch=batch, channels=channels)
        ranks = {at: value.ndim for at, value in enumerate(adapted(_images(batch, size, channels)))}
    selected.channels_first = tuple(at for at, last in is_last.items() if last and ranks[at] == 3)
    if form.layout == "NHWC":
        return  # ambiguous maps have the layout of the input
    selected.channels_last = tuple(at for at, last in is_last.items() if last and ranks[at] == 4)
    unclear = [at for at, last in is_last.items() if last is None and ranks[at] == 4]
    if unclear:
        if problem := _fault(adapted, batch, batch, size, channels):  # random outputs do not reveal their axes
            raise errors.InputError(f"the artifact {name!r} {problem}, {consistency.REMEDY}")
        label = selected.names[unclear[0]] if selected.names else unclear[0]
        raise errors.InputError(
            f"output {label} of the artifact {name!r} may be a map [C, h, w] or [h, w, C], or has its columns before "
            f"its rows, for images of {size[0]} x {size[1]} pixels. Export it as [C, h, w], or give an --image-size "
            "whose height and width differ, or a spec with the positions of channels-last outputs in "
            "genenc.channels_last_outputs (an empty list for none)"
        )


def _max_batch(takes: Callable[[int], bool], batch_min: int) -> int:
    return next((batch for batch in _MAX_BATCHES if batch > batch_min + 1 and takes(batch)), batch_min + 1)


def _outputs(run: interface.Runner, batch: int, size: tuple[int, int], channels: int) -> Sequence[torch.Tensor]:
    """Return the outputs for random images.

    Raises:
        ValueError: not one float32 tensor per output, with one entry per image.
    """
    with torch.inference_mode():
        outputs = run(_images(batch, size, channels))
    for tensor in outputs:
        if tensor.ndim < 2 or tensor.shape[0] != batch:
            raise ValueError(f"it returns {list(tensor.shape)} for a batch of {batch}")
    if not outputs:
        raise ValueError("it returns nothing")
    return outputs


def _fault(run: interface.Runner, batch_min: int, batch: int, size: tuple[int, int], channels: int) -> str | None:
    """Describe how an image's features depend on the rest of a batch of `batch`; None if they do not.

    Images are also run alone if `batch_min` is 1, and a batch of one is thus accepted.
    """
    smallest = 1 if batch_min == 1 else batch
    named = consistency.by_position(run)
    cpu = torch.device("cpu")
    return consistency.fault(named, size=size, batch_min=smallest, batch_max=batch, device=cpu, channels=channels)


def _uses_batch_statistics(run: interface.Runner, size: tuple[int, int], channels: int) -> bool:
    """Distinguish batch statistics from a file made for one image, which mixes up the values of two.

    The statistics of an image and its copy equal those of the image, but mixed-up values stay mixed up.
    """
    image = consistency.images(size, 1, channels=channels)
    named = consistency.by_position(run)
    once, twice = named(image), named(image.expand(2, -1, -1, -1).contiguous())
    return not consistency.difference(once, {slot: value[:1] for slot, value in twice.items()})


def _images(batch: int, size: tuple[int, int], channels: int) -> torch.Tensor:
    return torch.rand((batch, channels, *size), generator=torch.Generator().manual_seed(0))


def run_here(spec_json: str, *, any_size: bool) -> Mapping[str, Any]:
    """Run a trial in this process; return a `Trial` as JSON data, or `error`."""
    model_spec = spec.RuntimeModelSpec.from_json(spec_json)
    path = Path(model_spec.weights_path or "")
    count, height, width = model_spec.inputs[0].shape
    block = model_spec.genenc
    own = count if block is not None and block.preprocessing is not None and block.preprocessing.channels else None
    try:
        (file,) = loading.artifact_files(model_spec).values()
        loaded, _ = loading.load_raw(model_spec, device="cpu", trust=True, scratch=None)
        numpy = file.format == "onnx"
        forms = tuple(input_form.candidates(loaded.declared, name=str(path), numpy=numpy, channels=own))
        size = input_form.size_for(loaded.declared, (height, width), name=str(path), any_size=any_size)
        # A trace accepts whatever its operations accept; other formats record bounds and check them.
        bounded = file.format != "torchscript"
        trial = find(loaded.run, name=str(path), size=size, bounded=bounded, forms=forms, channels=count)
    except errors.GenencError as error:
        return {"error": str(error)}
    return _as_json(trial)


def _as_json(trial: Trial) -> dict[str, object]:
    form = None if trial.form is None else trial.form.model_dump(mode="json")
    return {name: getattr(trial, name) for name in Trial.__slots__} | {"form": form}


if __name__ == "__main__":
    sys.stdout.write("\n" + json.dumps(run_here(sys.stdin.read(), any_size=sys.argv[1:] == ["any"])) + "\n")
