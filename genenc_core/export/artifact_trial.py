"""Which batches an exported file takes and what it gives, when no spec tells: tried out in a process of its own."""

import json
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from genenc_core import children, errors, spec
from genenc_core.export import loading
from genenc_core.export.formats import record
from genenc_core.models import wording

# A package has bounds; above 32 images a batch gains little.
_LEAST = (1, 2, 3, 4, 5, 6, 7, 8, 16, 32)
_MOST = (32, 24, 16, 12, 8, 7, 6, 5, 4, 3, 2)
_SECONDS = 600


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """Batches from `least` to `most` images (0: no bound was found); output shapes without the batch."""

    least: int
    most: int
    outputs: tuple[tuple[int, ...], ...]


def tried(model_spec: spec.RuntimeModelSpec) -> Trial:
    """Run the artifact of a spec on random images of its input size; its declared outputs do not count.

    A package runs with its own checks turned on, which only a fresh process can do, and where a wrong batch may crash.

    Raises:
        InputError: it cannot be loaded or run, takes no batch of up to 32 images of this size, mixes the images of a
            batch, or gives something else than float32 tensors.
    """
    done = subprocess.run(
        children.command("-m", "genenc_core.export.artifact_trial"),
        input=model_spec.to_json(),
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
        raise errors.InputError(
            f"the artifact {model_spec.weights_path!r} ended its process (code {done.returncode}) when it was tried: "
            f"{end or 'it said nothing'}."
        )
    found = json.loads(said)
    if "error" in found:
        raise errors.InputError(found["error"])
    return Trial(least=found["least"], most=found["most"], outputs=tuple(tuple(shape) for shape in found["outputs"]))


def find(run: record.Runner, *, name: str, size: tuple[int, int], bounded: bool) -> Trial:
    """Try batches of images [B, 3, height, width]; `bounded`: the file refuses batches outside of bounds of its own.

    Raises:
        InputError: as `tried`.
    """
    refusals: list[str] = []

    def takes(batch: int) -> bool:
        try:
            _outputs(run, batch, size)
        except (RuntimeError, ValueError, TypeError, IndexError, AssertionError) as error:
            refusals.append(wording.reason(error))
            return False
        return True

    least = next((batch for batch in _LEAST if takes(batch)), None)
    if least is None:
        told = "; ".join(list(dict.fromkeys(refusals))[:2])
        raise errors.InputError(
            f"the artifact {name!r} takes no batch of images of {size[0]} x {size[1]} pixels: {told}. Give the "
            "--image-size that it was exported for."
        )
    outputs = _outputs(run, least, size)
    if least > 1 and _mixes(run, least, size):
        raise errors.InputError(
            f"the artifact {name!r} gives an image other features in another place of the batch, so it cannot be used. "
            "Export it in evaluation mode."
        )
    shapes = tuple(tuple(tensor.shape[1:]) for tensor in outputs)
    if not takes(least + 1) or _mixes(run, least + 1, size):
        return Trial(least=least, most=least, outputs=shapes)
    return Trial(least=least, most=_most(takes, least) if bounded else 0, outputs=shapes)


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
        if not isinstance(tensor, torch.Tensor) or tensor.dtype != torch.float32:
            kind = tensor.dtype if isinstance(tensor, torch.Tensor) else type(tensor).__name__
            raise ValueError(f"it gives {kind} instead of a float32 tensor")
        if tensor.ndim < 2 or tensor.shape[0] != batch:
            raise ValueError(f"it gives {list(tensor.shape)} for a batch of {batch}")
    if not outputs:
        raise ValueError("it gives nothing")
    return outputs


def _mixes(run: record.Runner, batch: int, size: tuple[int, int]) -> bool:
    """Tell whether images in another order give other features than the same ones in that order."""
    with torch.inference_mode():
        images = _images(batch, size)
        there, back = run(images), run(images.roll(1, 0).contiguous())
    return any(
        bool((one.roll(1, 0) - other).abs().max() > 1e-3 * one.abs().max())
        for one, other in zip(there, back, strict=True)
    )


def _images(batch: int, size: tuple[int, int]) -> torch.Tensor:
    return torch.rand((batch, 3, *size), generator=torch.Generator().manual_seed(0))


def _answer(text: str) -> Mapping[str, object]:
    model_spec = spec.RuntimeModelSpec.from_json(text)
    path = Path(model_spec.weights_path or "")
    _, height, width = model_spec.inputs[0].shape
    try:
        (file,) = loading.artifact_files(model_spec).values()
        loaded, _ = loading.load(model_spec, device="cpu", trust=True, scratch=None)
        # A trace takes whatever its operations take; the others hold bounds and refuse what lies outside.
        found = find(loaded.run, name=str(path), size=(height, width), bounded=file.format != "torchscript")
    except errors.GenencError as error:
        return {"error": str(error)}
    return {"least": found.least, "most": found.most, "outputs": found.outputs}


if __name__ == "__main__":
    sys.stdout.write("\n" + json.dumps(_answer(sys.stdin.read())) + "\n")
