"""Pipeline flow: export a model, write its spec, then extract or update with the exported file."""

from pathlib import Path
from typing import Any

from prefect import flow
from prefect.client.schemas.objects import State
from pydantic import Field

from genenc_core import choices, errors, spec
from genenc_core.dataset.parameters import UpdateParameters
from genenc_core.run.parameters import ExportParameters
from genenc_flows import dataset, extraction, model

OF_MODEL = ("weights", "weights_key", "image_size", "layers", "backend", "precision", "compile")
"""Options that an exported file already has."""


@flow(name="pipeline", flow_run_name="pipeline {given.title}")
def pipeline(
    given: UpdateParameters,
    model_folder: str = Field(description="Folder for the exported model and its spec; one that is there is used."),
    model_format: choices.ExportFormat = Field(default="torchscript", description="What the model is exported as."),
    single_run: bool = Field(default=False, description="Make one run with a fixed list of images, not a dataset."),
) -> State[Any]:
    """Export a model unless it is exported already, then encode new and changed images with the file.

    Raises:
        InputError: images or model is missing, or the folder holds specs of several models.
    """
    path = exported(given, model_folder, model_format)
    options = {name: getattr(given, name) for name in given.model_fields_set if name not in OF_MODEL}
    if not single_run:
        return _own(
            dataset.update_dataset(UpdateParameters.model_validate({**options, "model": str(path)}), return_state=True)
        )
    whole = UpdateParameters.model_validate({**options, "model": str(path)}).completed({})
    return _own(extraction.extract_features(whole.extraction(given.out), return_state=True))


def _own(state: State[Any]) -> State[Any]:
    """Return a subflow's state as one of this flow: Prefect would sum up a subflow's as `All states completed.`"""
    return State(type=state.type, name=state.name, message=state.message, data=state.data)


def exported(given: UpdateParameters, folder: str, model_format: choices.ExportFormat) -> Path:
    """Return the spec of the model's file in a folder; the model is exported if there is none.

    An export is not the same bytes each time, so a second firing uses the first one's file.
    """
    specs = sorted(Path(folder).glob(f"*_{model_format}_spec.json"))
    if len(specs) > 1:
        raise errors.InputError(f"{folder!r} holds specs of several models: {', '.join(path.name for path in specs)}")
    if specs:
        spec.load_spec(specs[0])
        return specs[0]
    if not given.model:
        raise errors.InputError(f"model is missing: {folder!r} holds no exported model yet")
    options = {name: getattr(given, name) for name in ("weights", "weights_key", "image_size", "layers", "trust")}
    asked = ExportParameters.model_validate(
        {**options, "model": given.model, "out": folder, "formats": (model_format,)}
    )
    (made,) = model.export_model(asked)
    return made.spec_path
