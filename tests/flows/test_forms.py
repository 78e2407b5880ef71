"""What Prefect's form asks for, and how what is filled in is read."""

from typing import Any

import pydantic
import pytest
from prefect.utilities.callables import parameter_schema
from prefect.utilities.schema_tools import validation

from genenc_core.run.parameters import ExtractParameters
from genenc_flows import dataset, extraction, features, model, pipeline, probing

FLOWS: tuple[Any, ...] = (
    extraction.extract_features,
    extraction.rerun_shards,
    model.export_model,
    dataset.update_dataset,
    pipeline.pipeline,
    probing.probe_features,
    features.rerun_from,
    features.export_features,
)


def schemas() -> list[tuple[str, dict[str, Any]]]:
    """Every property of the forms of all flows, by its place."""
    found: list[tuple[str, dict[str, Any]]] = []

    def add(place: str, schema: dict[str, Any]) -> None:
        for name, item in schema.get("properties", {}).items():
            found.append((f"{place}.{name}", item))
            add(f"{place}.{name}", item)

    for work in FLOWS:
        schema = parameter_schema(work).model_dump()
        add(work.name, schema)
        for name, item in schema["definitions"].items():
            add(f"{work.name}.{name}", item)
    return found


def test_the_form_asks_for_values_never_for_none() -> None:
    found = dict(schemas())
    assert len(found) > 60
    assert not [place for place, item in found.items() if "null" in str(item.get("anyOf", ""))]
    shown = [place for place in found if place.count(".") == 2 and place.startswith("extract_features.")]
    assert [place.rpartition(".")[2] for place in shown] == [
        *("images", "model", "out", "points", "regions", "weights", "image_size", "fit", "products", "maps"),
        *("device", "batch_size", "advanced"),
    ]
    shown = [place for place in found if place.count(".") == 2 and place.startswith("update_dataset.")]
    assert [place.rpartition(".")[2] for place in shown] == [
        *("images", "model", "out", "points", "regions", "weights", "image_size", "fit", "products", "maps"),
        *("device", "batch_size", "by", "vanished", "retry_unreadable", "advanced"),
    ]


@pytest.mark.parametrize("flow", FLOWS, ids=lambda flow: flow.name)
def test_a_form_is_accepted_with_its_defaults(flow: Any) -> None:
    """The form sends the defaults of all fields; the server checks them as here before it makes a run."""
    schema = parameter_schema(flow).model_dump()
    values = {name: field["default"] for name, field in schema["properties"].items() if "default" in field}
    required = {"given": {"images": "p", "model": "m", "out": "o", "source": "s"}, "run": "r", "model_folder": "f"}
    values |= {name: value for name, value in required.items() if name in schema["properties"]}
    prepared = validation.preprocess_schema(schema)
    assert [error.message for error in validation.validate(values, prepared, preprocess=False)] == []


def test_options_of_the_form_may_stand_in_their_sections_or_beside_the_others() -> None:
    usual = {"images": "photos", "model": "resnet18", "out": "run"}
    section = {"advanced": {"run": {"decode_workers": 3}, "store": {"shard_rows": 4}}}
    schema = parameter_schema(extraction.extract_features).model_dump()
    for given in ({**usual, **section}, {**usual, "decode_workers": 3, "shard_rows": 4}):
        assert validation.validate({"given": given}, schema) == []
        found = ExtractParameters.model_validate(given)
        assert (found.decode_workers, found.shard_rows) == (3, 4)
    with pytest.raises(pydantic.ValidationError, match="shard_rows is given twice"):
        ExtractParameters.model_validate({**usual, **section, "shard_rows": 5})
    with pytest.raises(pydantic.ValidationError, match="decode_worker\n"):
        ExtractParameters.model_validate({**usual, "advanced": {"run": {"decode_worker": 3}}})
