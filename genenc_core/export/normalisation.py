"""Mean and std for artifacts that expect normalised images: read from options, put into a spec, warned of."""

import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass

from genenc_core import errors, spec

Triple = tuple[float, float, float]

NAMED: Mapping[str, tuple[Triple, Triple]] = {
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "clip": ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
    "half": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
}
"""mean and std, of RGB in [0, 1]"""
_LARGEST = 2


class NormalisationWarning(UserWarning):
    """A file that does not say whether it expects normalised images."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Normalisation:
    """Images become (RGB in [0, 1] - mean) / std before an artifact sees them."""

    mean: Triple
    std: Triple


def parse(mean: str | None, std: str | None) -> Normalisation | None:
    """Read `--mean` and `--std`: three numbers with commas between, one for all three, or a name of `NAMED`.

    A name as mean stands for its std too, unless that is given; None: neither was given.

    Raises:
        InputError: another form, one without the other, numbers that are for pixels from 0 to 255, or a std of 0.
    """
    if mean is None and std is None:
        return None
    names = ", ".join(NAMED)
    if mean is None:
        raise errors.InputError(f"--std {std!r} needs a --mean: three numbers such as 0.485,0.456,0.406, or {names}")
    if std is None:
        std = mean.strip().lower()
        if std not in NAMED:
            raise errors.InputError(f"--mean {mean!r} needs a --std: three numbers (1,1,1 for none), or {names}")
    found = Normalisation(mean=_triple("--mean", mean, 0), std=_triple("--std", std, 1))
    if is_for_bytes(found.mean, found.std):
        raise errors.InputError(
            f"--mean {mean!r} and --std {std!r} are for pixels from 0 to 255, and images are given in [0, 1]: divide "
            "both by 255 (a model that takes 0 to 255: --mean 0 --std 0.00392157)"
        )
    if min(found.std) <= 0:
        raise errors.InputError(f"--std {std!r} cannot be used: each number is above 0")
    return found


def is_for_bytes(mean: Triple, std: Triple) -> bool:
    """Tell whether a mean or a std is of pixels from 0 to 255: with it, images in [0, 1] become all but constant."""
    return max(map(abs, mean)) > _LARGEST or max(std) > _LARGEST


def _triple(option: str, given: str, place: int) -> Triple:
    if given.strip().lower() in NAMED:
        return NAMED[given.strip().lower()][place]
    try:
        values = [float(part) for part in given.split(",")]
    except ValueError:
        values = []
    if len(values) not in (1, 3) or not all(map(math.isfinite, values)):
        raise errors.InputError(
            f"{option} {given!r} cannot be read: give three numbers with commas between (or one for all three), or one "
            f"of {', '.join(NAMED)}"
        )
    red, green, blue = values * (3 // len(values))
    return red, green, blue


def applied(model_spec: spec.RuntimeModelSpec, wanted: Normalisation) -> spec.RuntimeModelSpec:
    """Return the spec of an artifact that is given normalised images.

    Raises:
        InputError: the spec says how it is normalised, or its artifact takes no such values.
    """
    block = model_spec.genenc or spec.GenencBlock()
    if block.mean is not None or block.std is not None or block.source is not None:
        inside = "inside the artifact" if block.normalization_inside else "by genenc, before it"
        edit = ", or correct genenc.mean, genenc.std and genenc.normalization_inside in the spec"
        raise errors.InputError(
            f"--mean and --std do not go with model spec {model_spec.model_id!r}, which says how its images are "
            f"normalised (mean {_words(block.mean)}, std {_words(block.std)}, {inside}): leave them out"
            f"{edit if block.source is None else ''}"
        )
    form = block.input or spec.ArtifactInput()
    if form.dtype == "uint8":
        raise errors.InputError(
            f"--mean and --std do not go with {model_spec.model_id!r}: it takes uint8, 0 to 255, and normalises those "
            "itself; leave them out"
        )
    if form.channels == 1 and (len(set(wanted.mean)) > 1 or len(set(wanted.std)) > 1):
        raise errors.InputError(
            f"--mean and --std of {model_spec.model_id!r} are one number each, for it takes grey images: such as "
            "--mean 0.5 --std 0.5"
        )
    update = {"mean": wanted.mean, "std": wanted.std, "normalization_inside": False}
    return model_spec.model_copy(update={"genenc": block.model_copy(update=update)})


def says_nothing(model_spec: spec.RuntimeModelSpec) -> bool:
    """Whether a spec has no word of normalisation, as those that genenc did not write."""
    block = model_spec.genenc
    if block is None:
        return True
    said = block.mean is not None or block.source is not None or "normalization_inside" in block.model_fields_set
    return not said and (block.input is None or block.input.dtype != "uint8")


def warn_of_none(name: str) -> None:
    """Warn that values in [0, 1] are given."""
    text = (
        f"{name} does not say whether it expects normalised images: it is given RGB values in [0, 1]. If it expects "
        "others, add --mean and --std (--mean imagenet)"
    )
    warnings.warn(text, NormalisationWarning, stacklevel=3)


def _words(values: Triple | None) -> str:
    return "not stated" if values is None else str(list(values))
