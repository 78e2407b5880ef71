"""Pipeline flow: export a model, write its spec, then extract or update with the exported file."""

import functools
import json
import os
from pathlib import Path
from typing import Any

from prefect import flow
from prefect.client.schemas.objects import State
from pydantic import Field

from genenc_core import choices, errors, spec
from genenc_core.dataset.parameters import UpdateParameters
from genenc_core.factory import model_file
from genenc_core.models import trust, user_code
from genenc_core.run import parameters
from genenc_core.system import files
from genenc_flows import dataset, extraction, model

OF_MODEL = ("model", "weights", "weights_key", "image_size", "layers")
"""Options that an exported file has; what was asked for is recorded beside it."""
OF_OTHERS = ("backend", "precision", "compile", "reproducible")
"""Options that an exported file does not take."""


@flow(name="pipeline", flow_run_name="pipeline {given.title}")
def pipeline(
    given: UpdateParameters,
    model_folder: str = Field(description="Folder for the exported model and its spec; one that is there is used."),
    model_format: choices.ExportFormat = Field(default="torchscript", description="What the model is exported as."),
    single_run: bool = Field(default=False, description="Make one run with a fixed list of images, not a dataset."),
) -> State[Any]:
    """Export a model unless it is exported already, then encode new and changed images with the file.

    Raises:
        InputError: images or model is missing, the folder holds specs of several models or of another model than
            asked for, or an option does not apply to exported files.
    """
    for name in OF_OTHERS:
        if getattr(given, name) != UpdateParameters.model_fields[name].default:
            raise errors.InputError(
                f"{name} {getattr(given, name)!r} does not apply to an exported model, which runs as it was exported: "
                "leave it out, or use update_dataset with the model itself"
            )
    path = exported(given, model_folder, model_format)
    options = {name: getattr(given, name) for name in given.model_fields_set if name not in (*OF_MODEL, *OF_OTHERS)}
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
        _refuse_other(given, specs[0])
        return specs[0]
    if not given.model:
        raise errors.InputError(f"model is missing: {folder!r} holds no exported model yet")
    asked, digest = _asked(given), _weights_digest(given)
    options = {name: getattr(given, name) for name in (*OF_MODEL, "trust")}
    (made,) = model.export_model(
        parameters.ExportParameters.model_validate({**options, "out": folder, "formats": (model_format,)})
    )
    record = (json.dumps({**asked, "weights_sha256": digest}, indent=2) + "\n").encode()
    files.replace(_record_of(made.spec_path), lambda partial: files.write_new(partial, record))
    return made.spec_path


def _asked(given: UpdateParameters) -> dict[str, Any]:
    """Return the options of the model as JSON values, with an absolute path of a weights file."""
    asked = {name: getattr(given, name) for name in OF_MODEL}
    is_file = given.weights and given.weights.partition(":")[0] not in ("pretrained", "random")
    weights = os.path.abspath(given.weights) if given.weights and is_file else given.weights  # noqa: PTH100 -- keeps links
    model = os.path.abspath(given.model) if Path(given.model).is_file() else given.model  # noqa: PTH100 -- likewise
    size = given.image_size and list(parameters.parse_image_size(given.image_size))
    return {**asked, "model": model, "weights": weights, "image_size": size, "layers": list(given.layers)}


def _record_of(spec_path: Path) -> Path:
    """Return the file beside a spec that says what was asked for: `OF_MODEL`, and the digest of a weights file."""
    return spec_path.with_name(f"{spec_path.stem}_asked.json")


def _refuse_other(given: UpdateParameters, spec_path: Path) -> None:
    """Check that an exported model is the one asked for, as far as anything is asked for: its code and files, too.

    Raises:
        InputError: it is another one; the message names the differences.
    """
    found = spec.load_spec(spec_path)
    own = _recorded(_record_of(spec_path), found)
    asked = {name: value for name, value in _asked(given).items() if value}
    if asked.get("model") in (found.model_id, os.path.abspath(spec_path)):  # noqa: PTH100 -- keeps links
        del asked["model"]
    asked |= {"weights_sha256": digest} if (digest := _weights_digest(given)) and "weights_sha256" in own else {}
    lines = [
        "the content of the weights file has changed" if name == "weights_sha256" else f"{name} {own[name]} -> {value}"
        for name, value in asked.items()
        if own[name] != value
    ]
    if "model" in asked and not lines:
        lines = _changes_of_source(given, found)
    if lines:
        raise errors.InputError(
            f"{str(spec_path.parent)!r} holds another exported model than asked for: {'; '.join(lines)}. Give another "
            "folder for the model, or leave these options out to use the one that is there"
        )


def _changes_of_source(given: UpdateParameters, found: spec.RuntimeModelSpec) -> list[str]:
    """Return how the model file or the code asked for differs from what was exported, without building it."""
    source = found.genenc.source if found.genenc else None
    if found.genenc is None or source is None:
        return []
    lines = []
    if source.arguments is not None and Path(given.model).is_file():
        before, now = json.loads(source.arguments), _arguments(given, source.arguments)
        lines += [
            f"{name} {before.get(name)} -> {now.get(name)}"
            for name in sorted(before.keys() | now.keys())
            if before.get(name) != now.get(name)
        ]
    code = trust.code_of(source.kind, source.name, source.arguments)
    if code is not None and found.genenc.code is not None:
        recorded = user_code.Digests(code=found.genenc.code, files=found.genenc.files or {})
        changes = user_code.changes_since(code, recorded)
        lines += [f"the code of {code!r} has changed ({changes})"] if changes else []
    return lines


def _arguments(given: UpdateParameters, before: str) -> dict[str, Any]:
    """Return the content of a model file: as 0.1.0 read it, if it was `before` so."""
    read = functools.partial(model_file.read, Path(given.model), trusted=given.is_trusted)
    found: dict[str, Any] = json.loads(before if read(task_aux_heads=False) == before else read())
    return found


def _recorded(record: Path, found: spec.RuntimeModelSpec) -> dict[str, Any]:
    """Return what was asked for when a model was exported; from its spec if it was not by this flow."""
    if record.exists():
        try:
            read = json.loads(record.read_text(encoding="utf-8"))
            return {name: read[name] for name in (*OF_MODEL, "weights_sha256")}
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise errors.InputError(
                f"{str(record)!r} is damaged ({error}): remove it if the model beside it is the one you mean"
            ) from error
    _, height, width = found.inputs[0].shape
    own: dict[str, Any] = {"image_size": [height, width]}
    source = found.genenc.source if found.genenc else None
    if source is None:
        return {**own, "model": found.model_id, "weights": None, "weights_key": None, "layers": []}
    own |= {"weights": source.weights, "weights_key": source.weights_key, "layers": list(source.layers or ())}
    return {**own, "model": source.name}


def _weights_digest(given: UpdateParameters) -> str | None:
    """Return the sha256 of the weights file asked for; None if none is, or it is gone."""
    path = Path(given.weights or "")
    return files.digest(path)[1] if path.is_file() else None
