"""The general encoder: runs an exported file without a spec, whose input and outputs are determined by trial."""

import warnings
from pathlib import Path

from genenc_core import errors, spec, text
from genenc_core.runtime import adaptation, artifact_kinds, artifact_trial
from genenc_core.runtime.formats import interface, table

MODEL_ID = "general_encoder"
DISPLAY_NAME = "General Encoder"
NATIVE = (224, 224)


class UndeclaredFormatWarning(UserWarning):
    """The input format or omitted outputs of a file were determined by running it."""


def spec_of(
    path: Path,
    *,
    image_size: tuple[int, int] | None = None,
    output_shape: str | None = None,
    normalised: adaptation.Normalisation | None = None,
    trust: bool = False,
    channels: int | None = None,
) -> spec.RuntimeModelSpec:
    """Describe an artifact of any format that takes a batch of images, by default of 224 x 224 pixels.

    Dtype, layout, batch sizes and outputs are determined by running it. A single output is the slot `features`; several
    have the file's names, or are `features_0`, ... by position. Outputs that are not floating-point are omitted with a
    warning. `output_shape` ("768,7,7") is the expected shape of the first output, which is only compared. Images are
    stretched, as in WhiskerToolbox. The file receives RGB, or `channels`, in [0, 1], normalised if `normalised` is
    given, else with a warning.

    Raises:
        InputError: no `trust` (the file runs code), no such artifact, an unsupported size, dtype or number of channels,
            or another output shape.
    """
    declared = None if output_shape is None else parse_shape(output_shape)
    known = _format(path)
    if known.runs_code and not trust:
        raise errors.InputError(
            f"{MODEL_ID} runs {str(path)!r}, and loading such a file runs code from it; no spec records its digest. If "
            "you trust its origin, add --trust."
        )
    draft = _draft(path, known, image_size or NATIVE, channels)
    trial = artifact_trial.run_trial(draft, any_size=image_size is None)
    if declared is not None and declared != trial.outputs[0]:
        raise errors.InputError(
            f"the output shape {output_shape!r} differs from that of {str(path)!r} for images of {trial.size[0]} x "
            f"{trial.size[1]} pixels: its first output is {_joined(trial.outputs[0])}. Correct it, or omit it."
        )
    described = _draft(path, known, trial.size, channels)
    described = described.model_copy(
        update={"outputs": _slots(trial), "batch_mode": _batch_mode(trial), "genenc": _block(trial, described.genenc)}
    )
    _warn(path, trial, normalised)
    return described if normalised is None else adaptation.applied(described, normalised)


def _draft(path: Path, known: interface.Format, size: tuple[int, int], channels: int | None) -> spec.RuntimeModelSpec:
    block = None
    if channels is not None:
        used = spec.Preprocessing(
            height=size[0], width=size[1], antialias=False, channels=spec.Channels(count=channels)
        )
        block = spec.GenencBlock(preprocessing=used)
    return spec.RuntimeModelSpec(
        model_id=MODEL_ID,
        display_name=DISPLAY_NAME,
        description=f"Outputs of {path.name} as observed by running it.",
        weights_path=str(path.resolve()),
        backend=known.backend,
        inputs=(
            spec.SlotSpec(
                name="image",
                shape=(channels or 3, *size),
                description="RGB in [0, 1]" if channels is None else f"{channels} channels in [0, 1]",
                recommended_encoder="ImageEncoder",
            ),
        ),
        outputs=(),
        recommended_post_encoder="global_avg_pool",
        genenc=block,
    )


def _block(trial: artifact_trial.Trial, drafted: spec.GenencBlock | None) -> spec.GenencBlock | None:
    """Return what the file needs beyond the spec's standard fields; None for most files."""
    if not any((trial.form, trial.left_out, trial.channels_last, trial.channels_first, trial.names)):
        return drafted
    return spec.GenencBlock(
        preprocessing=drafted.preprocessing if drafted else None,
        input=trial.form,
        output_positions=trial.positions if trial.left_out else None,
        output_names=trial.names or None,
        outputs_left_out=trial.left_out or None,
        channels_last_outputs=trial.channels_last or None,
        channels_first_lists=trial.channels_first or None,
    )


def _warn(path: Path, trial: artifact_trial.Trial, normalised: adaptation.Normalisation | None) -> None:
    """Warn about an unusual input format, omitted outputs and undeclared normalisation."""
    if trial.form is not None:
        text = f"{path.name} receives images as {trial.form.describe()}"
        warnings.warn(text, UndeclaredFormatWarning, stacklevel=3)
    if trial.left_out:
        text = f"{path.name}: {'; '.join(trial.left_out)}: not stored. Declare it as a slot in a spec to have it cast"
        warnings.warn(text, UndeclaredFormatWarning, stacklevel=3)
    if normalised is None and (trial.form is None or trial.form.dtype != "uint8"):
        adaptation.warn_undeclared(path.name)


def parse_shape(given: str) -> tuple[int, ...]:
    """Parse `768,7,7`: channels, height, width, without the batch.

    Raises:
        InputError: not comma-separated integers of at least 1.
    """
    parts = [part.strip() for part in given.split(",")]
    sides = tuple(text.whole_number(part) or 0 for part in parts)
    if 0 in sides:
        raise errors.InputError(
            f"output shape {given!r} is invalid: {parts[sides.index(0)]!r} is not an integer of at least 1. Give "
            "comma-separated sizes without the batch, such as 768,7,7."
        )
    return sides


def _format(path: Path) -> interface.Format:
    suffixes = " or ".join(dict.fromkeys(item.suffix for item in table.FORMATS.values()))
    if not path.is_file():
        raise errors.InputError(
            f"{MODEL_ID} runs an exported file, but there is no file {str(path)!r}: give a {suffixes} file with "
            "--weights FILE."
        )
    kind = artifact_kinds.artifact_kind(path)
    known = next((item for item in table.FORMATS.values() if item.kind == kind), None)
    if known is None:
        what = "not an exported model" if kind is None else f"a {kind} file"
        raise errors.InputError(
            f"{MODEL_ID} runs {', '.join(item.kind for item in table.FORMATS.values())} files, but {str(path)!r} is "
            f"{what}. Give a state dict together with its model: --model NAME --weights FILE."
        )
    return known


def _slots(trial: artifact_trial.Trial) -> tuple[spec.SlotSpec, ...]:
    shapes = trial.outputs
    names = ("features",) if len(shapes) == 1 else tuple(f"features_{index}" for index in trial.positions)
    # An output's name may be empty.
    names = tuple(trial.names[at] or f"features_{at}" for at in trial.positions) if trial.names else names
    return tuple(
        spec.SlotSpec(name=name, shape=shape, recommended_decoder="TensorToFeatureVector")
        for name, shape in zip(names, shapes, strict=True)
    )


def _batch_mode(trial: artifact_trial.Trial) -> spec.BatchModeSpec:
    if trial.batch_min == trial.batch_max:
        return spec.BatchModeSpec(fixed=trial.batch_min)
    return spec.BatchModeSpec(dynamic=spec.DynamicBatch(min=trial.batch_min, max=trial.batch_max))


def _joined(shape: tuple[int, ...]) -> str:
    return ",".join(map(str, shape))
