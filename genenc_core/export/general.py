"""The general encoder: any exported file without a spec, its input size given and its outputs found by running it."""

import warnings
from pathlib import Path

from genenc_core import errors, spec, text
from genenc_core.export import artifact_trial, artifacts, normalisation
from genenc_core.export.formats import record, table

MODEL_ID = "general_encoder"
DISPLAY_NAME = "General Encoder"
NATIVE = (224, 224)


class GivenValuesWarning(UserWarning):
    """What is given to a file, or left out of it, where the file itself does not say."""


def spec_of(
    path: Path,
    *,
    image_size: tuple[int, int] | None = None,
    output_shape: str | None = None,
    normalised: normalisation.Normalisation | None = None,
    trust: bool = False,
) -> spec.RuntimeModelSpec:
    """Describe an artifact of any format that takes a batch of images; 224 x 224 pixels unless it or the caller says.

    Type, layout, batches and outputs are determined by running it: one output is the slot `features`, several have the
    file's names for them, or are `features_0`, ... by their place; outputs without floating-point numbers are left out,
    with a warning.
    `output_shape` ("768,7,7") is what the first one should be; it is compared, never believed. Images are stretched,
    as WhiskerToolbox does it. The file is given RGB in [0, 1], `normalised` first; without it a warning says so.

    Raises:
        InputError: no `trust` (the file runs code), no such artifact, a size, type or number of channels that does not
            suit, or another output.
    """
    declared = None if output_shape is None else parse_shape(output_shape)
    known = _format(path)
    if known.runs_code and not trust:
        raise errors.InputError(
            f"{MODEL_ID} runs {str(path)!r}, and loading such a file runs code from it; no spec records its digest. If "
            "you know where it comes from, add --trust."
        )
    draft = _draft(path, known, image_size or NATIVE)
    found = artifact_trial.tried(draft, any_size=image_size is None)
    if declared is not None and declared != found.outputs[0]:
        raise errors.InputError(
            f"the output shape {output_shape!r} is not what {str(path)!r} gives for images of {found.size[0]} x "
            f"{found.size[1]} pixels: its first output is {_joined(found.outputs[0])}. Correct it, or leave it out."
        )
    described = _draft(path, known, found.size).model_copy(
        update={"outputs": _slots(found), "batch_mode": _batch_mode(found), "genenc": _block(found)}
    )
    _say(path, found, normalised)
    return described if normalised is None else normalisation.applied(described, normalised)


def _draft(path: Path, known: record.Format, size: tuple[int, int]) -> spec.RuntimeModelSpec:
    return spec.RuntimeModelSpec(
        model_id=MODEL_ID,
        display_name=DISPLAY_NAME,
        description=f"Outputs of {path.name} as observed by running it.",
        weights_path=str(path.resolve()),
        backend=known.backend,
        inputs=(
            spec.SlotSpec(
                name="image",
                shape=(3, *size),
                description="RGB in [0, 1]",
                recommended_encoder="ImageEncoder",
            ),
        ),
        outputs=(),
        recommended_post_encoder="global_avg_pool",
    )


def _block(found: artifact_trial.Trial) -> spec.GenencBlock | None:
    """Return what the file needs beyond a spec's own words; None: nothing, as for most."""
    if not any((found.form, found.left_out, found.channels_last, found.channels_first, found.names)):
        return None
    return spec.GenencBlock(
        input=found.form,
        output_positions=found.positions if found.left_out else None,
        output_names=found.names or None,
        outputs_left_out=found.left_out or None,
        channels_last_outputs=found.channels_last or None,
        channels_first_lists=found.channels_first or None,
    )


def _say(path: Path, found: artifact_trial.Trial, normalised: normalisation.Normalisation | None) -> None:
    """Warn of what a user would not expect: values, types and outputs."""
    if found.form is not None:
        warnings.warn(f"{path.name} is given images as {found.form.describe()}", GivenValuesWarning, stacklevel=3)
    if found.left_out:
        text = f"{path.name}: {'; '.join(found.left_out)}: not stored. A spec that declares it as a slot has it cast"
        warnings.warn(text, GivenValuesWarning, stacklevel=3)
    if normalised is None and (found.form is None or found.form.dtype != "uint8"):
        normalisation.warn_of_none(path.name)


def parse_shape(given: str) -> tuple[int, ...]:
    """Read `768,7,7`: channels, height, width, without the batch.

    Raises:
        InputError: anything but whole numbers of at least 1 with commas between; nothing is skipped.
    """
    parts = [part.strip() for part in given.split(",")]
    sides = tuple(text.whole_number(part) or 0 for part in parts)
    if 0 in sides:
        raise errors.InputError(
            f"output shape {given!r} cannot be read: {parts[sides.index(0)]!r} is not a whole number of at least "
            "1. Give sizes with commas between, without the batch, such as 768,7,7."
        )
    return sides


def _format(path: Path) -> record.Format:
    suffixes = " or ".join(dict.fromkeys(item.suffix for item in table.FORMATS.values()))
    if not path.is_file():
        raise errors.InputError(
            f"{MODEL_ID} runs an exported file, and there is no file {str(path)!r}: give a {suffixes} file with "
            "--weights FILE."
        )
    kind = artifacts.artifact_kind(path)
    known = next((item for item in table.FORMATS.values() if item.kind == kind), None)
    if known is None:
        told = "no exported model" if kind is None else f"a file of the kind {kind}"
        raise errors.InputError(
            f"{MODEL_ID} runs {', '.join(item.kind for item in table.FORMATS.values())} files, but {str(path)!r} is "
            f"{told}. A state dict goes with its model: --model NAME --weights FILE."
        )
    return known


def _slots(found: artifact_trial.Trial) -> tuple[spec.SlotSpec, ...]:
    shapes = found.outputs
    names = ("features",) if len(shapes) == 1 else tuple(f"features_{index}" for index in found.positions)
    # A file may call an output nothing at all.
    names = tuple(found.names[at] or f"features_{at}" for at in found.positions) if found.names else names
    return tuple(
        spec.SlotSpec(name=name, shape=shape, recommended_decoder="TensorToFeatureVector")
        for name, shape in zip(names, shapes, strict=True)
    )


def _batch_mode(found: artifact_trial.Trial) -> spec.BatchModeSpec:
    if found.least == found.most:
        return spec.BatchModeSpec(fixed=found.least)
    return spec.BatchModeSpec(dynamic=spec.DynamicBatch(min=found.least, max=found.most))


def _joined(shape: tuple[int, ...]) -> str:
    return ",".join(map(str, shape))
