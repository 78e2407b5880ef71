"""What `--model` names besides a model's own name: a spec file, a spec's id in a folder, an exported file."""

import warnings
from pathlib import Path

from genenc_core import errors, spec
from genenc_core.export import general, normalisation, registry
from genenc_core.run import parameters as run_parameters


class UnusableSpecWarning(UserWarning):
    """A file in a folder of specs that is none."""


def spec_file(model: str, folders: tuple[str, ...]) -> Path | None:
    """Return the spec file that `model` is, or whose model_id it is in one of `folders`; None: it is another name.

    Files in the folders that are no usable specs give a warning each.

    Raises:
        InputError: no such folder, or two files with that id.
    """
    if model.lower().endswith(".json"):
        return Path(model)
    if not folders:
        return None
    known, problems = registry.folders(folders)
    found = known.find(model)
    if found is None:
        for path, problem in problems.items():
            warnings.warn(f"{path} is left out: {problem}", UnusableSpecWarning, stacklevel=2)
    return None if found is None else found.path


def is_general(model: str) -> bool:
    """Tell whether `model` is the general encoder, which runs an exported file that has no spec."""
    return model.removeprefix("genenc/") == general.MODEL_ID


def general_spec(given: run_parameters.ExtractParameters) -> spec.RuntimeModelSpec:
    """Describe the exported file that `--weights` names, as `general.spec_of` finds it.

    Raises:
        InputError: no file, options that do not go with it, or as `general.spec_of`.
    """
    if given.layers:
        raise errors.InputError(
            f"--layers {','.join(given.layers)} does not go with {given.model}: an exported file has the outputs it "
            "was exported with"
        )
    if given.weights_key is not None:
        raise errors.InputError(
            f"--weights-key {given.weights_key!r} does not go with {given.model}: an exported file has its weights "
            "inside"
        )
    if given.weights is None:
        raise errors.InputError(f"{given.model} runs an exported file: give it with --weights FILE.pt")
    return general.spec_of(
        Path(given.weights),
        image_size=None if given.image_size is None else run_parameters.parse_image_size(given.image_size),
        output_shape=given.output_shape,
        normalised=normalisation.parse(given.mean, given.std),
        trust=given.trust,
    )
