"""Adaptation of artifacts to float32 [B, C, H, W] in [0, 1]: normalisation, casts, axes, and output order."""

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from genenc_core import errors, spec, text
from genenc_core.models.encoder_module import PerChannel, is_for_bytes
from genenc_core.runtime import output_axes
from genenc_core.runtime.formats import interface

_GREY = (0.299, 0.587, 0.114)
"""luma weights of ITU-R BT.601, as in Pillow's mode L"""
_DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float64": torch.float64, "float32": torch.float32}
NAMED: Mapping[str, tuple[PerChannel, PerChannel]] = {
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "clip": ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
    "half": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
}
"""mean and std of RGB in [0, 1]"""


def adapted(run: interface.FileRunner, block: spec.GenencBlock | None) -> interface.Runner:
    """Return a runner from float32 [B, C, H, W] in [0, 1] to float32 tensors, adapted as `block` describes.

    Images are normalised with `mean` and `std` if `normalization_inside` is false, and converted to the channels, dtype
    and layout of `input`. The outputs at `output_positions` are cast to float32, except complex ones, which are
    rejected later. Named outputs are ordered by `output_names`; without it, as in specs of genenc 0.1.0, by their order
    in the first batch.
    """
    block = block or spec.GenencBlock()
    form = block.input or spec.ArtifactInput()
    mean = std = None
    if not block.normalization_inside and block.mean and block.std:
        mean, std = (torch.tensor(values).reshape(1, -1, 1, 1) for values in (block.mean, block.std))
    orders: dict[int, tuple[int, ...]] = dict.fromkeys(block.channels_last_outputs or (), (0, 3, 1, 2))
    orders |= dict.fromkeys(block.channels_first_lists or (), (0, 2, 1))
    positions, names = block.output_positions, list(block.output_names or ())

    def run_adapted(images: torch.Tensor) -> Sequence[torch.Tensor]:
        if mean is not None and std is not None:
            images = (images - mean.to(images.device)) / std.to(images.device)
        outputs = run(_convert(images, form))
        if isinstance(outputs, Mapping):
            if not names:
                names.extend(outputs)
            outputs = output_axes.ordered(outputs, names)
        kept = range(len(outputs)) if positions is None else [at for at in positions if at < len(outputs)]
        return [_plain(outputs[at], orders.get(at)) for at in kept]

    return run_adapted


def _convert(images: torch.Tensor, form: spec.ArtifactInput) -> torch.Tensor:
    if form.channels == 1 and images.shape[1] == 3:
        weights = torch.tensor(_GREY, device=images.device).reshape(1, 3, 1, 1)
        images = (images * weights).sum(1, keepdim=True)
    if form.dtype == "uint8":
        images = (images * 255).round().clamp(0, 255).to(torch.uint8)
    else:
        images = images.to(_DTYPES[form.dtype])
    return images.permute(0, 2, 3, 1).contiguous() if form.layout == "NHWC" else images


def _plain(tensor: torch.Tensor, order: tuple[int, ...] | None) -> torch.Tensor:
    if not isinstance(tensor, torch.Tensor) or tensor.is_complex():
        return tensor
    tensor = tensor.to(torch.float32)
    return tensor if order is None else tensor.permute(order).contiguous()


class NormalisationWarning(UserWarning):
    """A file does not declare whether it expects normalised images."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Normalisation:
    """Normalisation of images to (RGB in [0, 1] - mean) / std before they reach an artifact."""

    mean: PerChannel
    std: PerChannel


def parse(mean: str | None, std: str | None, *, channels: int = 3, any_unit: bool = False) -> Normalisation | None:
    """Parse `--mean` and `--std`: comma-separated numbers per channel, one for all, or a name in `NAMED`.

    A name as mean also sets the std, unless one is given. Returns None if neither is given. With `any_unit` the values
    of images may be other than in [0, 1].

    Raises:
        InputError: invalid values, one without the other, values for pixels from 0 to 255, or a std of 0.
    """
    if mean is None and std is None:
        return None
    names = ", ".join(NAMED)
    numbers = "three numbers" if channels == 3 else text.plural(channels, "number")
    if mean is None:
        raise errors.InputError(f"--std {std!r} needs a --mean: {numbers} such as 0.485,0.456,0.406, or {names}")
    if std is None:
        std = mean.strip().lower()
        if std not in NAMED:
            raise errors.InputError(f"--mean {mean!r} needs a --std: {numbers} (1,1,1 for none), or {names}")
    parsed = Normalisation(mean=_numbers("--mean", mean, 0, channels), std=_numbers("--std", std, 1, channels))
    if not any_unit and is_for_bytes(parsed.mean, parsed.std):
        raise errors.InputError(
            f"--mean {mean!r} and --std {std!r} are for pixels from 0 to 255, but images are in [0, 1]: divide both by "
            "255 (for a model that takes 0 to 255: --mean 0 --std 0.00392157)"
        )
    if min(parsed.std) <= 0:
        raise errors.InputError(f"--std {std!r} is invalid: each number must be above 0")
    return parsed


def _numbers(option: str, given: str, place: int, channels: int) -> PerChannel:
    if given.strip().lower() in NAMED and channels == 3:
        return NAMED[given.strip().lower()][place]
    try:
        values = [float(part) for part in given.split(",")]
    except ValueError:
        values = []
    if len(values) not in (1, channels) or not all(map(math.isfinite, values)):
        wanted = "three" if channels == 3 else str(channels)
        named = f", or one of {', '.join(NAMED)}" if channels == 3 else ""
        raise errors.InputError(
            f"{option} {given!r} is invalid: give {wanted} comma-separated numbers (or one for all {wanted}){named}"
        )
    return tuple(values * (channels // len(values)))


def applied(model_spec: spec.RuntimeModelSpec, wanted: Normalisation) -> spec.RuntimeModelSpec:
    """Return the spec with normalisation by genenc before the artifact.

    Raises:
        InputError: the spec already declares its normalisation, or the artifact's input does not allow it.
    """
    block = model_spec.genenc or spec.GenencBlock()
    if block.mean is not None or block.std is not None or block.source is not None:
        inside = "inside the artifact" if block.normalization_inside else "by genenc, before it"
        edit = ", or correct genenc.mean, genenc.std and genenc.normalization_inside in the spec"
        raise errors.InputError(
            f"--mean and --std do not apply to model spec {model_spec.model_id!r}, which declares its normalisation "
            f"(mean {_words(block.mean)}, std {_words(block.std)}, {inside}): omit them"
            f"{edit if block.source is None else ''}"
        )
    form = block.input or spec.ArtifactInput()
    if form.dtype == "uint8":
        raise errors.InputError(
            f"--mean and --std do not apply to {model_spec.model_id!r}: it takes uint8, 0 to 255, and normalises it "
            "itself; omit them"
        )
    if form.channels == 1 and len(wanted.mean) == 3 and (len(set(wanted.mean)) > 1 or len(set(wanted.std)) > 1):
        raise errors.InputError(
            f"--mean and --std of {model_spec.model_id!r} must be one number each, because it takes grey images: for "
            "example --mean 0.5 --std 0.5"
        )
    update = {"mean": wanted.mean, "std": wanted.std, "normalization_inside": False}
    return model_spec.model_copy(update={"genenc": block.model_copy(update=update)})


def is_undeclared(model_spec: spec.RuntimeModelSpec) -> bool:
    """Return whether a spec does not declare normalisation, such as one that genenc did not write."""
    block = model_spec.genenc
    if block is None:
        return True
    # A mean alone does not say who normalises.
    declared = block.source is not None or "normalization_inside" in block.model_fields_set
    return not declared and (block.input is None or block.input.dtype != "uint8")


def warn_undeclared(name: str) -> None:
    """Warn that a file of undeclared normalisation receives RGB values in [0, 1]."""
    said = (
        f"{name} does not declare whether it expects normalised images: it receives RGB values in [0, 1]. If it "
        "expects others, add --mean and --std (--mean imagenet), or, to a spec that has them, "
        '"normalization_inside": false'
    )
    warnings.warn(said, NormalisationWarning, stacklevel=3)


def _words(values: PerChannel | None) -> str:
    return "not declared" if values is None else str(list(values))
