"""What an exported file without a spec takes and gives: tried out in a process of its own."""

import itertools
import json
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from genenc_core import children, errors, spec
from genenc_core.export import adaptation, axes, behaviour, input_form, loading, naming
from genenc_core.export.formats import record
from genenc_core.models import wording

# A package has bounds; above 32 images a batch gains little.
_LEAST = (1, 2, 3, 4, 5, 6, 7, 8, 16, 32)
_MOST = (32, 24, 16, 12, 8, 7, 6, 5, 4, 3, 2)
_SECONDS = 600
_RAISED = (RuntimeError, ValueError, TypeError, IndexError, AssertionError, torch.jit.Error)
"""What a file raises at images that it does not take."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """Batches from `least` to `most` images (0: no bound was found); output shapes without the batch."""

    least: int
    most: int
    outputs: tuple[tuple[int, ...], ...]
    size: tuple[int, int]
    """height and width of the images"""
    form: spec.ArtifactInput | None = None
    """how it takes images; None: float32 [B, 3, H, W]"""
    positions: tuple[int, ...] = ()
    """which of the file's outputs `outputs` are"""
    channels_last: tuple[int, ...] = ()
    """positions of the outputs that are [B, h, w, C] in the file"""
    left_out: tuple[str, ...] = ()
    """what the other outputs are, in words"""
    channels_first: tuple[int, ...] = ()
    """positions of the outputs that are lists [B, C, N] in the file"""
    names: tuple[str, ...] = ()
    """the file's own names of all its outputs; empty: it has none"""


@dataclass(slots=True)
class _Outputs:
    """Which outputs of a file are kept."""

    positions: tuple[int, ...] = ()
    channels_last: tuple[int, ...] = ()
    channels_first: tuple[int, ...] = ()
    left_out: list[str] = field(default_factory=list)
    names: tuple[str, ...] = ()


def tried(model_spec: spec.RuntimeModelSpec, *, any_size: bool = False) -> Trial:
    """Run the artifact of a spec on random images of its input size; its declared outputs do not count.

    With `any_size` a size that the file itself declares goes before the spec's. A package runs with its own checks
    turned on, which only a fresh process can do, and where a wrong batch may crash.

    Raises:
        InputError: it cannot be loaded or run, takes no batch of up to 32 images of this size, mixes the images of a
            batch, or gives no tensor of floating-point numbers.
    """
    found = answer(model_spec.to_json(), any_size=any_size)
    if "error" in found:
        raise errors.InputError(found["error"])
    form = found["form"]
    return Trial(
        least=found["least"],
        most=found["most"],
        outputs=tuple(tuple(shape) for shape in found["outputs"]),
        size=tuple(found["size"]),
        form=None if form is None else spec.ArtifactInput.model_validate(form),
        positions=tuple(found["positions"]),
        channels_last=tuple(found["channels_last"]),
        channels_first=tuple(found["channels_first"]),
        left_out=tuple(found["left_out"]),
        names=tuple(found["names"]),
    )


def _in_a_process_of_its_own(asked: str, *, any_size: bool) -> Mapping[str, Any]:
    """Return what `here` gives in a new process.

    Raises:
        InputError: the process ended without an answer.
    """
    done = subprocess.run(
        children.command("-m", "genenc_core.export.artifact_trial", "any" if any_size else "same"),
        input=asked,
        capture_output=True,
        text=True,
        check=False,
        timeout=_SECONDS,
        # Read by the package itself, once per process: without it a wrong size or batch gives wrong numbers.
        env=children.environment(AOTI_RUNTIME_CHECK_INPUTS="1"),
    )
    said = done.stdout.strip().rpartition("\n")[2]
    if done.returncode != 0 or not said.startswith("{"):
        end = done.stderr.strip().rpartition("\n")[2][-300:]
        path = json.loads(asked)["weights_path"]
        raise errors.InputError(
            f"the artifact {path!r} ended its process (code {done.returncode}) when it was tried: "
            f"{end or 'no message'}."
        )
    found: Mapping[str, Any] = json.loads(said)
    return found


answer = _in_a_process_of_its_own


def find(
    run: record.FileRunner,
    *,
    name: str,
    size: tuple[int, int],
    bounded: bool,
    forms: Sequence[spec.ArtifactInput] = (spec.ArtifactInput(),),
) -> Trial:
    """Try batches of images of height and width `size` in each of `forms`, of which the first that works is taken.

    `bounded`: the file refuses batches outside of bounds of its own.

    Raises:
        InputError: as `tried`.
    """
    form, least = _first_that_works(run, name, size, forms)
    found = _chosen(run, name, form, least, size)
    block = spec.GenencBlock(
        input=form,
        output_positions=found.positions,
        channels_last_outputs=found.channels_last or None,
        channels_first_lists=found.channels_first or None,
        output_names=found.names or None,
    )
    adapted = adaptation.adapted(run, block)

    def takes(batch: int) -> bool:
        try:
            _outputs(adapted, batch, size)
        except _RAISED:
            return False
        return True

    outputs = _outputs(adapted, least, size)
    told = _fault(adapted, least, least, size)
    more = takes(least + 1)
    mixed = _fault(adapted, least, least + 1, size) if more and not told else None
    if mixed and least == 1 and _looks_at_the_batch(adapted, size):
        told = mixed
    if told:
        raise errors.InputError(f"the artifact {name!r} {told}, {behaviour.REMEDY}")
    fixed = not more or mixed is not None
    most = least if fixed else _most(takes, least) if bounded else 0
    return Trial(
        least=least,
        most=most,
        outputs=tuple(tuple(tensor.shape[1:]) for tensor in outputs),
        size=size,
        form=None if form == spec.ArtifactInput() else form,
        positions=found.positions,
        channels_last=found.channels_last,
        channels_first=found.channels_first,
        left_out=tuple(found.left_out),
        names=found.names,
    )


def _first_that_works(
    run: record.FileRunner, name: str, size: tuple[int, int], forms: Sequence[spec.ArtifactInput]
) -> tuple[spec.ArtifactInput, int]:
    """Return the first form that the file takes, and the smallest batch of it.

    Raises:
        InputError: it takes none; with what it says to the first, and the remedy.
    """
    refusals: list[str] = []
    for form, batch in itertools.product(forms, _LEAST):
        refusal = _refusal(run, form, batch, size)
        if refusal is None:
            return form, batch
        if form == forms[0]:
            refusals.append(refusal)
    others = (other for other in input_form.COMMON_SIZES if other != size)
    taken = next((other for other in others if _refusal(run, forms[0], 1, other) is None), None)
    raise errors.InputError(
        input_form.refused(name, size, list(dict.fromkeys(refusals))[:2], tried=forms, size_taken=taken)
    )


def _refusal(run: record.FileRunner, form: spec.ArtifactInput, batch: int, size: tuple[int, int]) -> str | None:
    """Return what the file says to a batch; None: it takes it."""
    try:
        with torch.inference_mode():
            adaptation.adapted(run, spec.GenencBlock(input=form))(_images(batch, size))
    except _RAISED as error:
        return wording.reason(error)
    return None


def _chosen(run: record.FileRunner, name: str, form: spec.ArtifactInput, batch: int, size: tuple[int, int]) -> _Outputs:
    """Return which outputs are kept: tensors of floating-point numbers with an entry of one axis or more per image.

    Raises:
        InputError: none is.
    """
    found = _Outputs()

    def noted(images: torch.Tensor) -> Sequence[torch.Tensor]:
        given = run(images)
        found.names = tuple(given) if isinstance(given, Mapping) else ()
        outputs = list(given.values()) if isinstance(given, Mapping) else given
        kept = []
        for position, item in enumerate(outputs):
            why = input_form.why_left_out(item, batch)
            if why is None:
                kept.append(position)
            else:
                found.left_out.append(f"output {found.names[position] if found.names else position} ({why})")
        found.positions = tuple(kept)
        if form.layout == "NHWC":
            shapes = {position: tuple(outputs[position].shape[1:]) for position in kept}
            found.channels_last = tuple(at for at in kept if input_form.is_channels_last(shapes[at], size))
        return [outputs[position] for position in kept]

    with torch.inference_mode():
        adaptation.adapted(noted, spec.GenencBlock(input=form))(_images(batch, size))
    if not found.positions:
        told = "; ".join(found.left_out) or "nothing"
        raise errors.InputError(
            f"the artifact {name!r} returns no features: {told}. Export the model so that it returns feature maps "
            "[B, C, h, w] or vectors [B, C] of floating-point numbers."
        )
    _find_axes(run, name, form, batch, size, found)
    return found


def _find_axes(
    run: record.FileRunner,
    name: str,
    form: spec.ArtifactInput,
    batch: int,
    size: tuple[int, int],
    found: _Outputs,
) -> None:
    """Note which outputs have their channels in another place than maps [B, C, h, w] and lists [B, N, C].

    Raises:
        InputError: a map of which neither its sides nor its values say so.
    """

    def whole(images: torch.Tensor) -> Sequence[torch.Tensor]:
        given = run(images)
        return naming.ordered(given, found.names) if isinstance(given, Mapping) else given

    adapted = adaptation.adapted(whole, spec.GenencBlock(input=form))
    with torch.inference_mode():
        seen = axes.channels_last(adapted, found.positions, size=size, batch=batch)
        ranks = {at: value.ndim for at, value in enumerate(adapted(_images(batch, size)))}
    found.channels_first = tuple(at for at, last in seen.items() if last and ranks[at] == 3)
    if form.layout == "NHWC":
        return  # where both orders would do, the file's own counts
    found.channels_last = tuple(at for at, last in seen.items() if last and ranks[at] == 4)
    unclear = [at for at, last in seen.items() if last is None and ranks[at] == 4]
    if unclear:
        if told := _fault(adapted, batch, batch, size):  # what is random tells nothing of axes
            raise errors.InputError(f"the artifact {name!r} {told}, {behaviour.REMEDY}")
        called = found.names[unclear[0]] if found.names else unclear[0]
        raise errors.InputError(
            f"output {called} of the artifact {name!r} may be a map [C, h, w] or [h, w, C] for images of {size[0]} x "
            f"{size[1]} pixels. Give an --image-size whose height and width differ, or a spec that lists it in "
            "genenc.channels_last_outputs, or has that empty"
        )


def _most(takes: Callable[[int], bool], least: int) -> int:
    return next((batch for batch in _MOST if batch > least + 1 and takes(batch)), least + 1)


def _outputs(run: record.Runner, batch: int, size: tuple[int, int]) -> Sequence[torch.Tensor]:
    """Return the outputs for random images.

    Raises:
        ValueError: not one float32 tensor per output, with one entry per image.
    """
    with torch.inference_mode():
        outputs = run(_images(batch, size))
    for tensor in outputs:
        if tensor.ndim < 2 or tensor.shape[0] != batch:
            raise ValueError(f"it gives {list(tensor.shape)} for a batch of {batch}")
    if not outputs:
        raise ValueError("it returns nothing")
    return outputs


def _fault(run: record.Runner, least: int, batch: int, size: tuple[int, int]) -> str | None:
    """Return how images get other features in other batches of `batch`, or `least` being 1 alone; None: they do not."""
    # Alone is a batch of one, which is known to be taken when it is the least.
    alone = 1 if least == 1 else batch
    named = behaviour.by_position(run)
    return behaviour.fault(named, size=size, least=alone, most=batch, device=torch.device("cpu"))


def _looks_at_the_batch(run: record.Runner, size: tuple[int, int]) -> bool:
    """Tell batch statistics from a file that was made for one image and mixes up the values of two.

    The statistics of an image and its copy are those of the image; what is mixed up stays so.
    """
    image = behaviour.images(size, 1)
    named = behaviour.by_position(run)
    alone, twice = named(image), named(image.expand(2, -1, -1, -1).contiguous())
    return not behaviour.difference(alone, {slot: value[:1] for slot, value in twice.items()})


def _images(batch: int, size: tuple[int, int]) -> torch.Tensor:
    return torch.rand((batch, 3, *size), generator=torch.Generator().manual_seed(0))


def here(text: str, *, any_size: bool) -> Mapping[str, Any]:
    """Return a `Trial` as JSON data, or `error`; in this process."""
    model_spec = spec.RuntimeModelSpec.from_json(text)
    path = Path(model_spec.weights_path or "")
    _, height, width = model_spec.inputs[0].shape
    try:
        (file,) = loading.artifact_files(model_spec).values()
        loaded, _ = loading.load_raw(model_spec, device="cpu", trust=True, scratch=None)
        forms = tuple(input_form.candidates(loaded.declared, name=str(path), numpy=file.format == "onnx"))
        size = input_form.size_for(loaded.declared, (height, width), name=str(path), any_size=any_size)
        # A trace takes whatever its operations take; the others hold bounds and refuse what lies outside.
        found = find(loaded.run, name=str(path), size=size, bounded=file.format != "torchscript", forms=forms)
    except errors.GenencError as error:
        return {"error": str(error)}
    return _as_json(found)


def _as_json(found: Trial) -> dict[str, object]:
    form = None if found.form is None else found.form.model_dump(mode="json")
    return {name: getattr(found, name) for name in Trial.__slots__} | {"form": form}


if __name__ == "__main__":
    sys.stdout.write("\n" + json.dumps(here(sys.stdin.read(), any_size=sys.argv[1:] == ["any"])) + "\n")
