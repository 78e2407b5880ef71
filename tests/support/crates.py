"""What an RO-Crate must be: RO-Crate 1.1 and Process Run Crate 0.5, checked without a library and without a network."""

import hashlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

PROFILE = "https://w3id.org/ro/wfrun/process/0.5"
SCHEMA = "http://schema.org/"
_TERMS = """about actionStatus agent author contentSize CreateAction CreativeWork Dataset datePublished description
    encodingFormat endTime error hasPart identifier instrument license mentions name object operatingSystem Person
    processorRequirements PropertyValue result SoftwareApplication softwareRequirements softwareVersion startTime
    subjectOf unitText url value variableMeasured version"""
CONTEXT = {
    **{term: SCHEMA + term for term in _TERMS.split()},
    "File": f"{SCHEMA}MediaObject",
    "conformsTo": "http://purl.org/dc/terms/conformsTo",
}
"""The terms of RO-Crate 1.1 that genenc uses, as its context maps them."""
_TIME = re.compile(r"\d{4}-\d{2}-\d{2}T\d{2}:\d{2}:\d{2}(\.\d{3})?\+\d{2}:\d{2}")


def read(folder: Path) -> dict[str, Any]:
    """Return the document of a crate."""
    found: dict[str, Any] = json.loads((folder / "ro-crate-metadata.json").read_text(encoding="utf-8"))
    return found


def entities(document: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the entities by `@id`."""
    return {each["@id"]: each for each in document["@graph"]}


def of_type(document: dict[str, Any], kind: str) -> list[dict[str, Any]]:
    """Return the entities of a type."""
    return [each for each in document["@graph"] if each["@type"] == kind]


def many(value: Any) -> list[Any]:
    """Return one or several values as a list."""
    return value if isinstance(value, list) else [] if value is None else [value]


def problems(folder: Path) -> list[str]:
    """Return what is wrong with the crate in a folder."""
    document = read(folder)
    return [*_of_form(document), *_of_root(document), *_of_data(document, folder), *_of_actions(document)]


def _of_form(document: dict[str, Any]) -> Iterator[str]:
    base, own = document["@context"]
    known = {*CONTEXT, *own, "@id", "@type"}
    if base != "https://w3id.org/ro/crate/1.1/context":
        yield "context"
    every = entities(document)
    if len(every) != len(document["@graph"]):
        yield "an @id is there twice"
    for entity in document["@graph"]:
        yield from (f"unknown term {name}" for name in {*entity, entity["@type"]} - known)
        for name, value in entity.items():
            for item in many(value):
                if isinstance(item, dict) and (set(item) != {"@id"} or not _resolves(item["@id"], every)):
                    yield f"{entity['@id']}: {name} is not flat, or leads nowhere: {item}"


def _resolves(name: str, every: dict[str, Any]) -> bool:
    return name in every or name == "https://w3id.org/ro/crate/1.1"


def _of_root(document: dict[str, Any]) -> Iterator[str]:
    every = entities(document)
    descriptor, root = every.get("ro-crate-metadata.json", {}), every.get("./", {})
    if (descriptor.get("@type"), descriptor.get("about")) != ("CreativeWork", {"@id": "./"}):
        yield "descriptor"
    if not str(descriptor.get("conformsTo", {}).get("@id")).startswith("https://w3id.org/ro/crate/1."):
        yield "the descriptor names no version of RO-Crate"
    if root.get("@type") != "Dataset" or not all(root.get(name) for name in ("name", "description", "license")):
        yield "root"
    if not _TIME.fullmatch(str(root.get("datePublished"))):
        yield f"datePublished {root.get('datePublished')!r}"
    profiles = [every[each["@id"]] for each in many(root.get("conformsTo"))]
    if not any(each["@id"] == PROFILE and each["@type"] == "CreativeWork" for each in profiles):
        yield "the root names no profile"


def _of_data(document: dict[str, Any], folder: Path) -> Iterator[str]:
    every = entities(document)
    reached, todo = set(), ["./"]
    while todo:
        name = todo.pop()
        reached.add(name)
        todo += [each["@id"] for each in many(every[name].get("hasPart")) if each["@id"] not in reached]
    for entity in [*of_type(document, "File"), *of_type(document, "Dataset")]:
        name = entity["@id"]
        if name not in reached:
            yield f"{name} is no part of the crate"
        if "://" in name:
            continue
        path = folder / name
        if entity["@type"] == "Dataset":
            if not name.endswith("/") or not path.is_dir():
                yield f"{name} is no folder"
        elif not path.is_file() or str(path.stat().st_size) != entity["contentSize"]:
            yield f"{name} is not there, or of another size"
        elif "sha256" in entity and hashlib.sha256(path.read_bytes()).hexdigest() != entity["sha256"]:
            yield f"{name} has another sha256"


def _of_actions(document: dict[str, Any]) -> Iterator[str]:
    every = entities(document)
    mentioned = {each["@id"] for each in many(every["./"].get("mentions"))}
    actions = of_type(document, "CreateAction")
    if mentioned != {each["@id"] for each in actions} or not actions:
        yield "actions that the root does not mention, or none"
    for action in actions:
        tools = [every[each["@id"]] for each in many(action.get("instrument"))]
        if [each["@type"] for each in tools] != ["SoftwareApplication"]:
            yield f"{action['@id']} has no instrument"
        for name in ("startTime", "endTime"):
            if name in action and not _TIME.fullmatch(action[name]):
                yield f"{action['@id']}: {name} {action[name]!r}"
        if "error" in action and not action["actionStatus"].endswith("FailedActionStatus"):
            yield f"{action['@id']} has an error and did not fail"
        for each in (*many(action.get("object")), *many(action.get("result"))):
            if every[each["@id"]]["@type"] not in ("File", "Dataset", "CreativeWork", "PropertyValue"):
                yield f"{action['@id']} works on {each}"
