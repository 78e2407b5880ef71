"""Resolve `--model` values that are not model names: spec files, spec ids in folders, exported files."""

import warnings
from pathlib import Path

from genenc_core import errors, spec
from genenc_core.run import channels
from genenc_core.run import parameters as run_parameters
from genenc_core.runtime import general_encoder, model_registry


class UnusableSpecWarning(UserWarning):
    """A file in a folder of specs is not a usable spec."""


def spec_file(model: str, folders: tuple[str, ...]) -> Path | None:
    """Return the spec file named by path or by model_id in one of `folders`; None if `model` is another name.

    Warns about each file in the folders that is not a usable spec.

    Raises:
        InputError: no such folder, or two files with that id.
    """
    if model.lower().endswith(".json"):
        return Path(model)
    if not folders:
        return None
    known, problems = model_registry.folders(folders)
    found = known.find(model)
    if found is None:
        for path, problem in problems.items():
            warnings.warn(f"{path} is skipped: {problem}", UnusableSpecWarning, stacklevel=2)
    return None if found is None else found.path


def is_general(model: str) -> bool:
    """Return whether `model` is the general encoder, which runs an exported file without a spec."""
    return model.removeprefix("genenc/") == general_encoder.MODEL_ID


def general_spec(given: run_parameters.ExtractParameters) -> spec.RuntimeModelSpec:
    """Infer the spec of the exported file that `--weights` names.

    Raises:
        InputError: no file, options that do not apply to it, or as `general_encoder.spec_of`.
    """
    if given.layers:
        raise errors.InputError(
            f"--layers {','.join(given.layers)} cannot be used with {given.model}: the outputs of an exported file are "
            "fixed; leave it out"
        )
    if given.weights_key is not None:
        raise errors.InputError(
            f"--weights-key {given.weights_key!r} cannot be used with {given.model}: an exported file contains its "
            "weights; leave it out"
        )
    if given.weights is None:
        raise errors.InputError(f"{given.model} runs an exported file: give it with --weights FILE.pt")
    count = channels.wanted_count(given)
    return general_encoder.spec_of(
        Path(given.weights),
        image_size=None if given.image_size is None else run_parameters.parse_image_size(given.image_size),
        output_shape=given.output_shape,
        normalised=channels.normalisation(given, count or 3),
        trust=given.trust,
        channels=count,
    )
